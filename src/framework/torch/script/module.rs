//! Script modules: the names under which their tensors stand in `state_dict()`.

use super::Scripts;
use super::object::{Slot, SlotKind, SlotValue};
use super::packed::capsule;
use super::problem::Problem;
use crate::addr::VirtAddr;
use crate::cpython::Value;
use crate::framework::torch::held::{Collector, Held};
use crate::model::{Module, TensorKind};

/// The deepest nesting of modules.
const MAX_DEPTH: usize = 200;
/// The longest name, in bytes.
const MAX_NAME: usize = 4096;
/// The attribute that all modules have, unless they are frozen (torch/csrc/jit/passes/freeze_module.cpp).
const TRAINING: &str = "training";

/// A walk through a script module and those below it.
pub(super) struct Walk<'a> {
    scripts: &'a Scripts<'a>,
    collector: Collector<'a>,
    above: Vec<VirtAddr>,
}

impl<'a> Walk<'a> {
    /// All that the module at `object` holds, under names that begin with `name`.
    pub(super) fn run(scripts: &'a Scripts<'a>, object: VirtAddr, name: &str) -> Held {
        let Scripts { memory, python, layout, .. } = *scripts;
        let mut walk = Self { scripts, collector: Collector::new(memory, python, layout), above: Vec::new() };
        if !walk.visit(object, name) {
            walk.collector.held.problems.push(Problem::NamesLeftOut.into());
        }
        walk.collector.held
    }

    /// Lists a module and its descendants; `false` if there are too many.
    fn visit(&mut self, object: VirtAddr, name: &str) -> bool {
        if !self.collector.take_name() {
            return false;
        }
        if self.above.len() > MAX_DEPTH || self.above.contains(&object) || name.len() > MAX_NAME {
            self.collector.held.problems.push(Problem::NestedTooDeeply { object }.into());
            return true;
        }
        let read = match self.scripts.read(object) {
            Ok(read) => read,
            Err(error) => {
                let name = name.to_owned();
                self.collector.held.problems.push(Problem::Unreadable { name, object, error }.into());
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
        self.collector.held.modules.push(Module {
            name: name.to_owned(),
            class: Some(read.class.clone()),
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
                if !self.collector.take_name() {
                    return false;
                }
                self.collector.add(full_name(&slot.name), tensor, kind, persistent);
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

    /// Lists what a module has packed, which `state_dict()` of a script module leaves out.
    fn add_packed(&mut self, name: &str, object: VirtAddr) -> bool {
        for tensor in self.scripts.packed_at(name, object, VirtAddr(0), false) {
            if !self.collector.take_name() {
                return false;
            }
            self.collector.held.tensors.push(tensor);
        }
        true
    }
}
