//! From modules to models: dotted names, in the order in which PyTorch itself gives them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::extra::Extra;
use super::module::{Graph, ModuleObject};
use super::no_layout;
use super::problem::Problem;
use super::script::{Scripts, unread_model};
use super::tensor::Layout;
use crate::addr::VirtAddr;
use crate::cpython::{Objects, UNREADABLE};
use crate::diagnostic::Diagnostic;
use crate::model::{self, Model, Module, NamedTensor, TensorKind};

/// Occurrences beside the first that modules and tensors of all models together may have, for each one that there is,
/// and at least: modules that are shared on every level of a hostile tree would give 2^depth.
const OCCURRENCES_PER_ITEM: usize = 16;
const MIN_OCCURRENCES: usize = 1 << 16;
/// The longest name, in bytes.
const MAX_NAME: usize = 4096;
/// A name of so few bytes is given in any case.
const MIN_NAME: usize = 128;
/// Bytes of the names of one model: of all models' share, and at most and at least.
const ALL_NAMES: usize = 1 << 26;
const MAX_NAMES: usize = 1 << 24;
const MIN_NAMES: usize = 1 << 16;
/// Maximum bytes of attributes that one model repeats, for modules that are listed again.
const MAX_REPEATED: usize = 1 << 20;
/// The deepest nesting of modules.
const MAX_DEPTH: usize = 200;
/// Problems of one model that are listed.
const MAX_PROBLEMS: usize = 64;
/// Modules that can't be read, of those that no other names, that are listed.
const MAX_DAMAGED: usize = 1 << 10;

/// Every root module that has a tensor anywhere below it, with all names; bytes are not looked at yet.
pub(super) fn models(
    graph: &Graph,
    scripts: &Scripts<'_>,
    objects: &Objects<'_>,
    layout: Option<&Layout>,
) -> Vec<Model> {
    // One tensor can have a million names.
    let items = graph.modules.len() + graph.tensors().len();
    let all_occurrences = items.saturating_mul(OCCURRENCES_PER_ITEM).max(MIN_OCCURRENCES);
    let roots = graph.roots();
    let mut known = HashMap::new();
    let needs: Vec<u64> = roots.iter().map(|root| occurrences(graph, *root, &mut known)).collect();
    let most_occurrences = model::share(needs, all_occurrences as u64);
    let names = (ALL_NAMES / roots.len().max(1)).clamp(MIN_NAMES, MAX_NAMES);
    let readable =
        roots.into_iter().filter_map(|root| model(graph, scripts, objects, layout, root, (most_occurrences, names)));
    readable.chain(damaged(graph)).collect()
}

/// The modules that can't be read, and that no other module names as its child.
fn damaged(graph: &Graph) -> impl Iterator<Item = Model> {
    let children = graph.modules.values().flat_map(|module| &module.children);
    let held: HashSet<VirtAddr> = children.filter_map(|(_, child)| *child).collect();
    let damaged = graph.damaged.iter().filter(move |(object, _)| !held.contains(object)).take(MAX_DAMAGED);
    damaged.filter_map(|(object, class)| {
        let error = graph.unreadable.get(object)?;
        let problem = Problem::UnreadableRoot { object: *object, error: *error };
        Some(unread_model(Some(class.clone()), *object, vec![problem.into()]))
    })
}

/// How many occurrences the modules and tensors at and below a module have; saturates. Modules that hold each other count
/// once. `known` keeps what was counted; a zero stands for a module that is being counted.
fn occurrences(graph: &Graph, module: VirtAddr, known: &mut HashMap<VirtAddr, u64>) -> u64 {
    let children = |of: VirtAddr| graph.modules.get(&of).into_iter().flat_map(|module| &module.children);
    let mut todo = vec![(module, false)];
    while let Some((at, is_below_counted)) = todo.pop() {
        if is_below_counted {
            let below = children(at).filter_map(|(_, child)| known.get(&(*child)?).copied());
            let tensors = graph.modules.get(&at).map_or(0, |module| module.parameters.len() + module.buffers.len());
            let all = below.fold(1 + tensors as u64, u64::saturating_add);
            known.insert(at, all);
        } else if let Entry::Vacant(entry) = known.entry(at) {
            entry.insert(0);
            todo.push((at, true));
            todo.extend(children(at).filter_map(|(_, child)| Some(((*child)?, false))));
        }
    }
    known.get(&module).copied().unwrap_or_default()
}

fn model(
    graph: &Graph,
    scripts: &Scripts<'_>,
    objects: &Objects<'_>,
    layout: Option<&Layout>,
    root: VirtAddr,
    (occurrences, names): (u64, usize),
) -> Option<Model> {
    let class = graph.modules.get(&root)?.class.clone();
    let mut walk = Walk {
        graph,
        scripts,
        objects,
        layout,
        modules: Vec::new(),
        tensors: Vec::new(),
        training: Vec::new(),
        problems: Vec::new(),
        more_problems: 0,
        first_names: BTreeMap::new(),
        classes: HashMap::new(),
        seen: HashSet::new(),
        extra: BTreeMap::new(),
        above: Vec::new(),
        is_too_deep: false,
        occurrences,
        names,
        repeated: MAX_REPEATED,
        left_out: 0,
        not_repeated: 0,
    };
    walk.visit(root, "");
    walk.add_what_is_left_out();
    walk.add_what_may_be_more();
    let Walk { modules, tensors, training, problems, is_too_deep, .. } = walk;
    let model = Model {
        id: String::new(),
        class: Some(class),
        object: root,
        chain: None,
        sightings: Vec::new(),
        modules,
        tensors,
        training,
        optimizers: Vec::new(),
        problems,
    };
    // One whose class can't be read, or whose tensors may lie too deep, says so in any case.
    let is_reported = is_too_deep || graph.of_unread_class.contains_key(&root);
    (!model.tensors.is_empty() || is_reported).then_some(model)
}

struct Walk<'a> {
    graph: &'a Graph,
    scripts: &'a Scripts<'a>,
    objects: &'a Objects<'a>,
    layout: Option<&'a Layout>,
    modules: Vec<Module>,
    tensors: Vec<NamedTensor>,
    training: Vec<NamedTensor>,
    problems: Vec<Diagnostic>,
    /// Problems beyond those that are listed.
    more_problems: usize,
    /// The name under which each tensor came first.
    first_names: BTreeMap<VirtAddr, String>,
    /// Names of the tensors' classes.
    classes: HashMap<VirtAddr, Option<String>>,
    /// The modules that are listed.
    seen: HashSet<VirtAddr>,
    /// Why `state_dict()` may hold more, with the first module that it holds for and the number of others.
    extra: BTreeMap<Extra, (String, usize)>,
    /// The modules above the one that is visited.
    above: Vec<VirtAddr>,
    /// Whether a module is left out because it is nested too deeply.
    is_too_deep: bool,
    /// Occurrences beside the first that may still be listed.
    occurrences: u64,
    /// Bytes of names that may still be given.
    names: usize,
    /// Bytes of attributes that may still be repeated.
    repeated: usize,
    /// Second occurrences that are left out, and those that are listed without the attributes.
    left_out: usize,
    not_repeated: usize,
}

impl Walk<'_> {
    /// Lists a module and its descendants. Every module and every tensor is listed at least once; the number of
    /// repeated listings is limited.
    fn visit(&mut self, object: VirtAddr, name: &str) {
        if self.above.len() > MAX_DEPTH || self.above.contains(&object) {
            self.is_too_deep |= self.above.len() > MAX_DEPTH;
            self.problem(Problem::NestedTooDeeply { name: name.to_owned(), object });
            return;
        }
        let graph = self.graph;
        let Some(module) = graph.modules.get(&object) else {
            if self.add_script(object, name) {
                return;
            }
            let name = name.to_owned();
            self.problem(match graph.unreadable.get(&object) {
                Some(error) => Problem::UnreadableModule { name, object, error: *error },
                None => Problem::NoModule { name, object },
            });
            return;
        };
        let is_first = !self.seen.contains(&object);
        let Some(name) = self.name(name.to_owned(), object, is_first) else { return };
        self.seen.insert(object);
        if let Some((class_object, error)) = graph.of_unread_class.get(&object).filter(|_| is_first) {
            let (name, class, class_object) = (name.clone(), module.class.clone(), *class_object);
            self.problem(Problem::UnreadableClass { name, object, class, class_object, error: *error });
        }
        // What a method adds to state_dict() is most often what the module has packed, and that is listed.
        let has_packed = module.objects.iter().any(|(_, held)| self.scripts.holds(*held));
        let is_listed = |extra: &&Extra| has_packed && matches!(extra, Extra::Method { class: Some(_), .. });
        for extra in module.extra.iter().filter(|extra| !is_listed(extra)) {
            let with = self.extra.entry(extra.clone());
            with.and_modify(|(_, others)| *others += 1).or_insert_with(|| (name.clone(), 0));
        }
        let full_name = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        let mut row = describe(module, object, &name);
        if !is_first && !self.may_repeat(&row) {
            (row.hyperparameters, row.private) = (Vec::new(), Vec::new());
        }
        let index = self.modules.len();
        self.modules.push(row);
        let registered = [&module.parameters, &module.buffers, &module.children].into_iter().flatten();
        let nameless = registered.filter(|(key, _)| key.starts_with(UNREADABLE)).count();
        if nameless > 0 {
            self.problem(Problem::UnreadableNames { module: name.clone(), object, count: nameless });
        }
        if module.left_out > 0 && is_first {
            self.problem(Problem::EntriesLeftOut { module: name.clone(), object, count: module.left_out });
        }
        let parameters = module.parameters.iter().map(|(key, tensor)| (key, tensor, TensorKind::Parameter, true));
        let buffers = module
            .buffers
            .iter()
            .map(|(key, tensor)| (key, tensor, TensorKind::Buffer, !module.non_persistent.contains(key)));
        for (key, tensor, kind, persistent) in parameters.chain(buffers) {
            let Some(tensor) = *tensor else { continue };
            let is_first = !self.first_names.contains_key(&tensor);
            let Some(full) = self.name(full_name(key), tensor, is_first) else { continue };
            if let Some(row) = self.modules.get_mut(index) {
                let names = if kind == TensorKind::Buffer { &mut row.buffers } else { &mut row.parameters };
                names.push(full.clone());
            }
            self.add(full, tensor, kind, persistent);
        }
        for (key, held) in &module.objects {
            self.add_packed(full_name(key), *held);
        }
        self.above.push(object);
        for (key, child) in module.children.iter().filter_map(|(key, child)| Some((key, (*child)?))) {
            self.visit(child, &full_name(key));
        }
        self.above.pop();
    }

    /// Reports why `state_dict()` may hold more than what is listed.
    fn add_what_may_be_more(&mut self) {
        for (extra, (module, others)) in std::mem::take(&mut self.extra) {
            self.problem(Problem::StateDict { extra, module, others });
        }
    }

    /// The name under which an object is listed, or `None` if the limit is reached. The first listing always has a
    /// name: an overlong name is replaced by the address.
    fn name(&mut self, name: String, object: VirtAddr, is_first: bool) -> Option<String> {
        if is_first {
            let is_short = name.len() <= MAX_NAME && (name.len() <= MIN_NAME || name.len() <= self.names);
            self.names = self.names.saturating_sub(name.len());
            if is_short {
                return Some(name);
            }
            self.problem(Problem::NameTooLong { object, len: name.len() });
            return Some(format!("{UNREADABLE}{object}"));
        }
        if name.len() > MAX_NAME || name.len() > self.names || self.occurrences == 0 {
            self.left_out += 1;
            return None;
        }
        self.names -= name.len();
        self.occurrences -= 1;
        Some(name)
    }

    /// Whether the attributes of a repeated module are listed again.
    fn may_repeat(&mut self, row: &Module) -> bool {
        let bytes: usize =
            row.hyperparameters.iter().chain(&row.private).map(|(name, value)| name.len() + value.text_len()).sum();
        match self.repeated.checked_sub(bytes) {
            Some(rest) => self.repeated = rest,
            None => self.not_repeated += 1,
        }
        self.not_repeated == 0
    }

    fn problem(&mut self, problem: impl Into<Diagnostic>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem.into());
        } else {
            self.more_problems += 1;
        }
    }

    fn add_what_is_left_out(&mut self) {
        let left_out = [
            (self.left_out, Problem::NamesLeftOut(self.left_out)),
            (self.not_repeated, Problem::AttributesLeftOut(self.not_repeated)),
            (self.more_problems, Problem::ProblemsLeftOut(self.more_problems)),
        ];
        let left_out = left_out.into_iter().filter(|(count, _)| *count > 0);
        self.problems.extend(left_out.map(|(_, problem)| problem.into()));
    }

    fn add(&mut self, name: String, object: VirtAddr, kind: TensorKind, persistent: bool) {
        let same_as = self.first_names.get(&object).cloned();
        self.first_names.entry(object).or_insert_with(|| name.clone());
        let read = match self.layout {
            Some(layout) => layout.read_header(self.objects.memory(), object).map_err(Diagnostic::from),
            None => Err(no_layout(Some(object))),
        };
        // A gradient is of the tensor, not of its names.
        if let (Some(layout), Ok(info), None) = (self.layout, &read, &same_as) {
            let grad = layout.read_grad(self.objects.memory(), info).map_err(Diagnostic::from);
            if let Some(grad) = grad.transpose() {
                let object = grad.as_ref().map(|info| info.object).unwrap_or_default();
                self.training.push(NamedTensor::new(name.clone(), TensorKind::Gradient, object, grad));
            }
        }
        let objects = self.objects;
        let of_type = |found: VirtAddr| objects.type_name(found).ok();
        let type_object = objects.type_of(object).ok();
        let class = type_object.and_then(|found| self.classes.entry(found).or_insert_with(|| of_type(found)).clone());
        self.tensors.push(NamedTensor { persistent, same_as, class, ..NamedTensor::new(name, kind, object, read) });
    }
}

impl Walk<'_> {
    /// Lists what an attribute has packed in a C++ object, if it has.
    fn add_packed(&mut self, name: String, value: VirtAddr) {
        if !self.scripts.holds(value) {
            return;
        }
        let is_first = self.seen.insert(value);
        if let Some(name) = self.name(name, value, is_first) {
            self.tensors.extend(self.scripts.packed(&name, value));
        }
    }

    /// Lists a script module and all below it; `false` if the Python module at `object` is none.
    fn add_script(&mut self, object: VirtAddr, name: &str) -> bool {
        let Some(held) = self.scripts.of_module(object, name) else { return false };
        if !self.seen.insert(object) {
            // In a second place, each of its names counts.
            let names = (held.modules.len() + held.tensors.len()) as u64;
            let Some(rest) = self.occurrences.checked_sub(names) else {
                self.left_out += names as usize;
                return true;
            };
            self.occurrences = rest;
        }
        self.modules.extend(held.modules);
        self.tensors.extend(held.tensors);
        self.training.extend(held.training);
        held.problems.into_iter().for_each(|problem| self.problem(problem));
        true
    }
}

/// A module without the names of its tensors.
fn describe(module: &ModuleObject, object: VirtAddr, name: &str) -> Module {
    let unset = |items: &[(String, Option<VirtAddr>)], kind| -> Vec<(String, TensorKind)> {
        items.iter().filter(|(_, tensor)| tensor.is_none()).map(|(key, _)| (key.clone(), kind)).collect()
    };
    let (private, hyperparameters) = module.attributes.iter().cloned().partition(|(name, _)| name.starts_with('_'));
    let mut unset_names = unset(&module.parameters, TensorKind::Parameter);
    unset_names.extend(unset(&module.buffers, TensorKind::Buffer));
    Module {
        name: name.to_owned(),
        class: Some(module.class.clone()),
        framework_class: module.torch_class.clone(),
        training: module.training,
        hyperparameters,
        private,
        parameters: Vec::new(),
        buffers: Vec::new(),
        unset: unset_names,
        object,
    }
}
