//! Script modules: the names under which their tensors stand in `state_dict()`.

use std::collections::BTreeMap;

use super::Scripts;
use super::object::{Slot, SlotKind, SlotValue};
use super::packed::capsule;
use super::problem::Problem;
use crate::addr::VirtAddr;
use crate::cpython::Value;
use crate::diagnostic::Diagnostic;
use crate::framework::torch::no_layout;
use crate::model::{Module, NamedTensor, TensorKind};

/// The deepest nesting of modules.
const MAX_DEPTH: usize = 200;
/// The longest name, in bytes.
const MAX_NAME: usize = 4096;
/// Names that the tensors and modules of one script module may have.
const MAX_NAMES: usize = 1 << 16;
/// The attribute that all modules have, unless they are frozen (torch/csrc/jit/passes/freeze_module.cpp).
const TRAINING: &str = "training";

/// What a script module holds.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) modules: Vec<Module>,
    pub(crate) tensors: Vec<NamedTensor>,
    pub(crate) training: Vec<NamedTensor>,
    pub(crate) problems: Vec<Diagnostic>,
}

/// A walk through a script module and those below it.
pub(super) struct Walk<'a> {
    scripts: &'a Scripts<'a>,
    held: Held,
    first_names: BTreeMap<VirtAddr, String>,
    above: Vec<VirtAddr>,
    left: usize,
}

impl<'a> Walk<'a> {
    /// All that the module at `object` holds, under names that begin with `name`.
    pub(super) fn run(scripts: &'a Scripts<'a>, object: VirtAddr, name: &str) -> Held {
        let (held, first_names, above) = (Held::default(), BTreeMap::new(), Vec::new());
        let mut walk = Self { scripts, held, first_names, above, left: MAX_NAMES };
        if !walk.visit(object, name) {
            walk.held.problems.push(Problem::NamesLeftOut.into());
        }
        walk.held
    }

    /// Lists a module and its descendants; `false` if there are too many.
    fn visit(&mut self, object: VirtAddr, name: &str) -> bool {
        if !self.take_name() {
            return false;
        }
        if self.above.len() > MAX_DEPTH || self.above.contains(&object) || name.len() > MAX_NAME {
            self.held.problems.push(Problem::NestedTooDeeply { object }.into());
            return true;
        }
        let read = match self.scripts.read(object) {
            Ok(read) => read,
            Err(error) => {
                let name = name.to_owned();
                self.held.problems.push(Problem::Unreadable { name, object, error }.into());
                return true;
            }
        };
        let full_name = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        let is_tensor = |slot: &&Slot| matches!(slot.value, SlotValue::Tensor(_));
        let of_kind = |kind: SlotKind| -> Vec<&Slot> { read.slots.iter().filter(|slot| slot.kind == kind).collect() };
        let (parameters, buffers) = (of_kind(SlotKind::Parameter), of_kind(SlotKind::Buffer));
        let training = read.slots.iter().find_map(|slot| match slot.value {
            SlotValue::Other(payload) if slot.name == TRAINING => Some(payload & 0xff == 1),
            _ => None,
        });
        let names =
            |slots: &[&Slot]| slots.iter().copied().filter(is_tensor).map(|slot| full_name(&slot.name)).collect();
        let unset = |slots: &[&Slot], kind| -> Vec<(String, TensorKind)> {
            let unset = slots.iter().filter(|slot| slot.value == SlotValue::Unset);
            unset.map(|slot| (slot.name.clone(), kind)).collect()
        };
        self.held.modules.push(Module {
            name: name.to_owned(),
            class: read.class.clone(),
            framework_class: None,
            training,
            hyperparameters: training.map(|value| (TRAINING.to_owned(), Value::Bool(value))).into_iter().collect(),
            private: Vec::new(),
            parameters: names(&parameters),
            buffers: names(&buffers),
            unset: [unset(&parameters, TensorKind::Parameter), unset(&buffers, TensorKind::Buffer)].concat(),
            object: self.scripts.python_module(object).unwrap_or(object),
        });
        let others = of_kind(SlotKind::Attribute);
        let kinds = [(parameters, TensorKind::Parameter, true), (buffers, TensorKind::Buffer, true)];
        for (slots, kind, persistent) in kinds.into_iter().chain([(others.clone(), TensorKind::Buffer, false)]) {
            for slot in slots {
                let SlotValue::Tensor(tensor) = slot.value else { continue };
                if !self.take_name() {
                    return false;
                }
                self.add(full_name(&slot.name), tensor, kind, persistent);
            }
        }
        self.above.push(object);
        let mut is_whole = true;
        for slot in others {
            let SlotValue::Object(child) = slot.value else { continue };
            let name = full_name(&slot.name);
            let is_packed = self.scripts.read(child).is_ok_and(|child| capsule(&child.slots).is_some());
            is_whole = if is_packed { self.add_packed(&name, child) } else { self.visit(child, &name) };
            if !is_whole {
                break;
            }
        }
        self.above.pop();
        is_whole
    }

    /// Counts a name; `false` if the limit is reached.
    fn take_name(&mut self) -> bool {
        let rest = self.left.checked_sub(1);
        self.left = rest.unwrap_or_default();
        rest.is_some()
    }

    fn add(&mut self, name: String, tensor: VirtAddr, kind: TensorKind, persistent: bool) {
        let Scripts { memory, python, .. } = *self.scripts;
        let Some(layout) = self.scripts.layout else {
            let unread = NamedTensor::new(name, kind, VirtAddr(0), Err(no_layout(None)));
            self.held.tensors.push(NamedTensor { persistent, ..unread });
            return;
        };
        if layout.is_undefined(memory, tensor) {
            return;
        }
        let same_as = self.first_names.get(&tensor).cloned();
        self.first_names.entry(tensor).or_insert_with(|| name.clone());
        let read = layout.read_tensor_impl(memory, tensor).map_err(Diagnostic::from);
        if let (Ok(info), None) = (&read, &same_as) {
            let grad = layout.read_grad(memory, info).map_err(Diagnostic::from);
            if let Some(grad) = grad.transpose() {
                let object = grad.as_ref().map(|info| info.object).unwrap_or_default();
                self.held.training.push(NamedTensor::new(name.clone(), TensorKind::Gradient, object, grad));
            }
        }
        let object = read.as_ref().map(|info| info.object).unwrap_or_default();
        let objects = python.filter(|_| object.0 != 0);
        let class = objects.and_then(|objects| objects.type_name(objects.type_of(object).ok()?).ok());
        let named = NamedTensor::new(name, kind, object, read);
        self.held.tensors.push(NamedTensor { persistent, same_as, class, ..named });
    }

    /// Lists what a module has packed, which `state_dict()` of a script module leaves out.
    fn add_packed(&mut self, name: &str, object: VirtAddr) -> bool {
        for tensor in self.scripts.packed_at(name, object, VirtAddr(0), false) {
            if !self.take_name() {
                return false;
            }
            self.held.tensors.push(tensor);
        }
        true
    }
}
