//! Optimizers: found by what they are, joined to the models by the parameters that they hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::problem::Problem;
use super::tensor::Layout;
use super::{MAX_OPTIMIZERS, no_layout};
use crate::addr::VirtAddr;
use crate::cpython::{Builtins, Interpreter, ObjectError, Objects, Value};
use crate::diagnostic::Diagnostic;
use crate::model::{Model, NamedTensor, Optimizer, ParamGroup, TensorKind};

/// Where the base class of all optimizers is defined, in every PyTorch.
const OPTIMIZER_CLASS: (&str, &str) = ("torch.optim.optimizer", "Optimizer");
/// How deep lists and dictionaries of tensors may be nested in an optimizer's state.
const MAX_DEPTH: u32 = 4;
/// Values of one optimizer that are read, on all levels together.
const MAX_VALUES: usize = 1 << 20;
/// Bytes of the text that is listed of one optimizer for one model.
const MAX_TEXT: usize = 1 << 24;
/// The longest name, in bytes.
const MAX_NAME: usize = 4096;

/// The types whose instances are optimizers.
pub(super) fn optimizer_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    let bases = interpreter.heap_type(OPTIMIZER_CLASS.0, OPTIMIZER_CLASS.1);
    bases.into_iter().flat_map(|base| interpreter.subtypes(base)).collect()
}

/// Gives every model the optimizers that hold some of its parameters, and their tensors.
///
/// `types` are those of [`optimizer_types`].
pub(super) fn attach_optimizers(
    models: &mut [Model],
    interpreter: &Interpreter,
    builtins: &Builtins,
    layout: Option<&Layout>,
    types: &BTreeSet<VirtAddr>,
) {
    let objects = interpreter.objects();
    for type_object in types {
        let instances = interpreter.instances.get(type_object).map(Vec::as_slice).unwrap_or_default();
        // What is no optimizer after all, but a stale pointer to its type, is passed over.
        for content in instances.iter().filter_map(|object| Content::read(&objects, *object).ok()) {
            let class = objects.type_name(*type_object).unwrap_or_else(|_| "?".to_owned());
            let holders = models.iter_mut().filter(|model| content.holds_any_of(model));
            for model in holders {
                if model.optimizers.len() >= MAX_OPTIMIZERS {
                    let problem = Diagnostic::from(Problem::OptimizersLeftOut);
                    if model.problems.last() != Some(&problem) {
                        model.problems.push(problem);
                    }
                    continue;
                }
                attach(model, &content, &class, &objects, builtins, layout);
            }
        }
    }
}

/// The two dictionaries that make an optimizer.
struct Content {
    object: VirtAddr,
    groups: Vec<Group>,
    /// The positions of each parameter: its group, and its number in that.
    positions: HashMap<VirtAddr, Vec<(usize, usize)>>,
    /// The state of each parameter, or why it can't be read.
    state: Result<Vec<(VirtAddr, VirtAddr)>, ObjectError>,
    /// Where that is among them.
    state_of: HashMap<VirtAddr, usize>,
}

struct Group {
    parameters: Vec<VirtAddr>,
    settings: Vec<(String, VirtAddr)>,
}

impl Content {
    fn read(objects: &Objects<'_>, object: VirtAddr) -> Result<Self, ObjectError> {
        let attributes = objects.attributes(object)?;
        let missing = ObjectError::WrongType { address: object, expected: "optimizer with its dictionaries" };
        let attribute =
            |name: &str| attributes.iter().find(|(key, _)| key == name).map(|(_, value)| *value).ok_or(missing);
        let group = |dict: VirtAddr| -> Result<Group, ObjectError> {
            let mut settings = objects.str_dict(dict)?;
            let at = settings.iter().position(|(key, _)| key == "params").ok_or(missing)?;
            let (_, parameters) = settings.remove(at);
            Ok(Group { parameters: objects.list(parameters)?, settings })
        };
        let groups = objects.list(attribute("param_groups")?)?;
        let groups: Vec<Group> = groups.into_iter().map(group).collect::<Result<_, _>>()?;
        let state = objects.dict(attribute("state")?);
        let mut positions: HashMap<VirtAddr, Vec<(usize, usize)>> = HashMap::new();
        for (index, group) in groups.iter().enumerate() {
            for (number, parameter) in group.parameters.iter().enumerate() {
                positions.entry(*parameter).or_default().push((index, number));
            }
        }
        let of_state = state.iter().flatten().enumerate();
        let state_of = of_state.map(|(index, (parameter, _))| (*parameter, index)).collect();
        Ok(Self { object, groups, positions, state, state_of })
    }

    fn holds_any_of(&self, model: &Model) -> bool {
        let mut parameters = model.tensors.iter().filter(|tensor| tensor.kind == TensorKind::Parameter);
        parameters.any(|tensor| self.positions.contains_key(&tensor.object))
    }
}

fn attach(
    model: &mut Model,
    content: &Content,
    class: &str,
    objects: &Objects<'_>,
    builtins: &Builtins,
    layout: Option<&Layout>,
) {
    let parameters = model.tensors.iter().filter(|tensor| tensor.kind == TensorKind::Parameter);
    let mut names: BTreeMap<VirtAddr, String> = BTreeMap::new();
    for tensor in parameters {
        names.entry(tensor.object).or_insert_with(|| tensor.name.clone());
    }
    let plain = |value: VirtAddr| Value::read(objects, builtins, value);
    let held = names.iter().filter_map(|(object, name)| Some((content.positions.get(object)?, name)));
    let mut held: Vec<((usize, usize), &String)> =
        held.flat_map(|(positions, name)| positions.iter().map(move |position| (*position, name))).collect();
    held.sort_unstable();
    let groups: Vec<ParamGroup> = content
        .groups
        .iter()
        .enumerate()
        .map(|(index, group)| {
            let first = held.partition_point(|((of, _), _)| *of < index);
            let here = held.iter().skip(first).take_while(|((of, _), _)| *of == index);
            let parameters: Vec<String> = here.map(|(_, name)| (*name).clone()).collect();
            let settings = group.settings.iter();
            ParamGroup {
                others: group.parameters.len().saturating_sub(parameters.len()),
                parameters,
                settings: settings.filter_map(|(key, value)| Some((key.clone(), plain(*value)?))).collect(),
            }
        })
        .collect();
    let mut walk = State {
        objects,
        builtins,
        layout,
        tensors: Vec::new(),
        plain: Vec::new(),
        left: MAX_VALUES,
        text: MAX_TEXT,
        left_out: 0,
    };
    let mut problems: Vec<Diagnostic> = Vec::new();
    match &content.state {
        Err(error) => problems.push(Problem::UnreadableState { object: content.object, error: *error }.into()),
        Ok(state) => {
            let mut of_model: Vec<usize> =
                names.keys().filter_map(|object| content.state_of.get(object).copied()).collect();
            of_model.sort_unstable();
            for (parameter, values) in of_model.into_iter().filter_map(|index| state.get(index)) {
                let Some(name) = names.get(parameter) else { continue };
                match objects.str_dict(*values) {
                    Err(error) => {
                        let (parameter, object) = (name.clone(), *values);
                        problems.push(Problem::UnreadableStateOf { parameter, object, error }.into());
                    }
                    Ok(values) => {
                        for (key, value) in values {
                            walk.visit(*parameter, name, key, value, MAX_DEPTH);
                        }
                    }
                }
            }
        }
    }
    if walk.left_out > 0 {
        problems.push(Problem::ValuesLeftOut(walk.left_out).into());
    }
    model.training.append(&mut walk.tensors);
    let optimizer = Optimizer { class: class.to_owned(), object: content.object, groups, state: walk.plain, problems };
    model.optimizers.push(optimizer);
}

/// The walk through an optimizer's state.
struct State<'a> {
    objects: &'a Objects<'a>,
    builtins: &'a Builtins,
    layout: Option<&'a Layout>,
    tensors: Vec<NamedTensor>,
    plain: Vec<(String, String, Value)>,
    /// Values that may still be read.
    left: usize,
    /// Bytes of text that may still be listed.
    text: usize,
    /// Those that were not.
    left_out: usize,
}

impl State<'_> {
    /// Notes a value under its key; what is neither plain, a tensor, nor holds any is passed over.
    fn visit(&mut self, parameter: VirtAddr, name: &str, key: String, value: VirtAddr, depth: u32) {
        let (Some(left), Some(depth)) = (self.left.checked_sub(1), depth.checked_sub(1)) else {
            self.left_out += 1;
            return;
        };
        let len = name.len() + key.len();
        if len > MAX_NAME || len > self.text {
            self.left_out += 1;
            return;
        }
        self.left = left;
        self.text -= len;
        if let Some(plain) = Value::read_within(self.objects, self.builtins, value, &mut self.text) {
            self.plain.push((name.to_owned(), key, plain));
        } else if self.is_tensor_like(value, parameter) {
            let read = match self.layout {
                Some(layout) => layout.read_header(self.objects.memory(), value).map_err(Diagnostic::from),
                None => Err(no_layout(Some(value))),
            };
            self.tensors.push(NamedTensor::new(format!("{name}.{key}"), TensorKind::Optimizer, value, read));
        } else if let Ok(items) = self.objects.list(value).or_else(|_| self.objects.tuple(value)) {
            for (index, item) in items.into_iter().enumerate() {
                self.visit(parameter, name, format!("{key}.{index}"), item, depth);
            }
        } else if let Ok(items) = self.objects.str_dict(value) {
            for (inner, item) in items {
                self.visit(parameter, name, format!("{key}.{inner}"), item, depth);
            }
        }
    }

    /// Whether an object is a tensor: it and a parameter derive from something that is not `object`.
    fn is_tensor_like(&self, value: VirtAddr, parameter: VirtAddr) -> bool {
        let mro = |object| self.objects.type_of(object).and_then(|found| self.objects.mro(found));
        let (Ok(bases), Ok(known)) = (mro(value), mro(parameter)) else { return false };
        bases.iter().filter(|base| known.contains(base)).count() > 1
    }
}
