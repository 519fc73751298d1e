//! From modules to models: dotted names, in the order in which PyTorch itself gives them.

use std::collections::BTreeMap;

use super::find::{Graph, ModuleObject};
use super::{Model, Module, NamedTensor, TensorKind};
use crate::addr::VirtAddr;
use crate::cpython::{Objects, UNREADABLE};
use crate::tensor;

/// Places that modules and tensors of all models together may have, for each one that there is, and
/// at least: modules that are shared on every level of a hostile tree would give 2^depth.
const PLACES_PER_ITEM: usize = 16;
const MIN_PLACES: usize = 1 << 16;
/// The longest name, in bytes.
const MAX_NAME: usize = 4096;
/// The deepest nesting of modules.
const MAX_DEPTH: usize = 200;

/// Every root module that has a tensor anywhere below it, with all names; bytes are not looked at yet.
pub fn models(graph: &Graph, objects: &Objects<'_>, layout: Option<&tensor::Layout>) -> Vec<Model> {
    let items = graph.modules.values().map(|module| 1 + module.parameters.len() + module.buffers.len());
    let mut places = items.sum::<usize>().saturating_mul(PLACES_PER_ITEM).max(MIN_PLACES);
    graph.roots().into_iter().filter_map(|root| model(graph, objects, layout, root, &mut places)).collect()
}

fn model(
    graph: &Graph,
    objects: &Objects<'_>,
    layout: Option<&tensor::Layout>,
    root: VirtAddr,
    places: &mut usize,
) -> Option<Model> {
    let class = graph.modules.get(&root)?.class.clone();
    let mut walk = Walk {
        graph,
        objects,
        layout,
        modules: Vec::new(),
        tensors: Vec::new(),
        training: Vec::new(),
        problems: Vec::new(),
        first_names: BTreeMap::new(),
        above: Vec::new(),
        places,
    };
    if !walk.visit(root, "") {
        walk.problems.push("more of it is left out: its modules or tensors have too many names".to_owned());
    }
    let Walk { modules, tensors, training, problems, .. } = walk;
    let model = Model {
        id: String::new(),
        class,
        object: root,
        sightings: Vec::new(),
        modules,
        tensors,
        training,
        optimizers: Vec::new(),
        problems,
    };
    (!model.tensors.is_empty()).then_some(model)
}

struct Walk<'a> {
    graph: &'a Graph,
    objects: &'a Objects<'a>,
    layout: Option<&'a tensor::Layout>,
    modules: Vec<Module>,
    tensors: Vec<NamedTensor>,
    training: Vec<NamedTensor>,
    problems: Vec<String>,
    /// The name under which each tensor came first.
    first_names: BTreeMap<VirtAddr, String>,
    /// The modules above the one that is visited.
    above: Vec<VirtAddr>,
    /// Names that may still be given.
    places: &'a mut usize,
}

impl Walk<'_> {
    /// Lists a module and all below it; `false` if there are too many.
    fn visit(&mut self, object: VirtAddr, name: &str) -> bool {
        if !self.take_place() {
            return false;
        }
        if name.len() > MAX_NAME {
            self.problems.push(format!("the module at {object} is left out: its name has {} bytes", name.len()));
            return true;
        }
        if self.above.len() > MAX_DEPTH || self.above.contains(&object) {
            self.problems.push(format!("the module {name:?} at {object} is left out: modules nest without end"));
            return true;
        }
        let Some(module) = self.graph.modules.get(&object) else {
            let reason = match self.graph.unreadable.get(&object) {
                Some(reason) => reason.to_string(),
                None => "there is no object of a module's type".to_owned(),
            };
            self.problems.push(format!("the module {name:?} at {object} could not be read: {reason}"));
            return true;
        };
        let own = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        self.modules.push(describe(module, object, name, own));
        let registered = [&module.parameters, &module.buffers, &module.children].into_iter().flatten();
        let nameless = registered.filter(|(key, _)| key.starts_with(UNREADABLE)).count();
        if nameless > 0 {
            self.problems.push(format!("{nameless} names of what the module {name:?} holds could not be read"));
        }
        let parameters = module.parameters.iter().map(|(key, tensor)| (key, tensor, TensorKind::Parameter, true));
        let buffers = module
            .buffers
            .iter()
            .map(|(key, tensor)| (key, tensor, TensorKind::Buffer, !module.non_persistent.contains(key)));
        for (key, tensor, kind, persistent) in parameters.chain(buffers) {
            let Some(tensor) = *tensor else { continue };
            if !self.take_place() {
                return false;
            }
            if key.len() > MAX_NAME {
                self.problems.push(format!("the tensor at {tensor} is left out: its name has {} bytes", key.len()));
                continue;
            }
            self.add(own(key), tensor, kind, persistent);
        }
        self.above.push(object);
        let children = module.children.iter().filter_map(|(key, child)| Some((key, (*child)?)));
        let mut is_whole = true;
        for (key, child) in children {
            is_whole = self.visit(child, &own(key));
            if !is_whole {
                break;
            }
        }
        self.above.pop();
        is_whole
    }

    /// Counts a name; `false` if it is one too many.
    fn take_place(&mut self) -> bool {
        match self.places.checked_sub(1) {
            Some(rest) => {
                *self.places = rest;
                true
            }
            None => false,
        }
    }

    fn add(&mut self, name: String, object: VirtAddr, kind: TensorKind, persistent: bool) {
        let same_as = self.first_names.get(&object).cloned();
        self.first_names.entry(object).or_insert_with(|| name.clone());
        let read = match self.layout {
            Some(layout) => layout.read(self.objects, object).map_err(|error| error.to_string()),
            None => Err("no known layout reads the tensors of this PyTorch".to_owned()),
        };
        // A gradient is of the tensor, not of its names.
        if let (Some(layout), Ok(info), None) = (self.layout, &read, &same_as) {
            let grad = layout.read_grad(self.objects, info).map_err(|error| error.to_string());
            if let Some(grad) = grad.transpose() {
                let object = grad.as_ref().map(|info| info.object).unwrap_or_default();
                self.training.push(NamedTensor::new(name.clone(), TensorKind::Gradient, object, grad));
            }
        }
        self.tensors.push(NamedTensor { persistent, same_as, ..NamedTensor::new(name, kind, object, read) });
    }
}

fn describe(module: &ModuleObject, object: VirtAddr, name: &str, own: impl Fn(&str) -> String) -> Module {
    let set = |items: &[(String, Option<VirtAddr>)]| -> Vec<String> {
        items.iter().filter(|(_, tensor)| tensor.is_some()).map(|(key, _)| own(key)).collect()
    };
    let unset = |items: &[(String, Option<VirtAddr>)], kind| -> Vec<(String, TensorKind)> {
        items.iter().filter(|(_, tensor)| tensor.is_none()).map(|(key, _)| (key.clone(), kind)).collect()
    };
    let (private, hyper) = module.attributes.iter().cloned().partition(|(name, _)| name.starts_with('_'));
    let mut unset_names = unset(&module.parameters, TensorKind::Parameter);
    unset_names.extend(unset(&module.buffers, TensorKind::Buffer));
    Module {
        name: name.to_owned(),
        class: module.class.clone(),
        torch_class: module.torch_class.clone(),
        training: module.training,
        hyper,
        private,
        parameters: set(&module.parameters),
        buffers: set(&module.buffers),
        unset: unset_names,
        object,
    }
}
