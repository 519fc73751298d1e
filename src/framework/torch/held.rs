//! What a walk through modules of C++ collects: their tensors under the names that `state_dict()` gives them.

use std::collections::BTreeMap;

use super::no_layout;
use super::tensor::Layout;
use crate::addr::VirtAddr;
use crate::cpython::Objects;
use crate::diagnostic::Diagnostic;
use crate::model::{Module, NamedTensor, TensorKind};
use crate::paging::VirtualMemory;

/// Names that the tensors and modules of one model may have.
const MAX_NAMES: usize = 1 << 16;

/// What a module holds, and all below it.
#[derive(Default)]
pub(super) struct Held {
    pub(super) modules: Vec<Module>,
    pub(super) tensors: Vec<NamedTensor>,
    pub(super) training: Vec<NamedTensor>,
    pub(super) problems: Vec<Diagnostic>,
}

/// Collects what modules hold.
pub(super) struct Collector<'a> {
    memory: &'a dyn VirtualMemory,
    /// The objects of Python, where that runs.
    python: Option<Objects<'a>>,
    layout: Option<&'a Layout>,
    /// What is collected.
    pub(super) held: Held,
    /// The first name of each tensor, by its header.
    first_names: BTreeMap<VirtAddr, String>,
    /// Names that are left.
    left: usize,
}

impl<'a> Collector<'a> {
    /// One that has collected nothing; `layout` reads the tensors.
    pub(super) fn new(memory: &'a dyn VirtualMemory, python: Option<Objects<'a>>, layout: Option<&'a Layout>) -> Self {
        let (held, first_names) = (Held::default(), BTreeMap::new());
        Self { memory, python, layout, held, first_names, left: MAX_NAMES }
    }

    /// Counts a name; `false` if the limit is reached.
    pub(super) fn take_name(&mut self) -> bool {
        let rest = self.left.checked_sub(1);
        self.left = rest.unwrap_or_default();
        rest.is_some()
    }

    /// Whether a header stands for no tensor.
    pub(super) fn is_undefined(&self, tensor: VirtAddr) -> bool {
        self.layout.is_some_and(|layout| layout.is_undefined(self.memory, tensor))
    }

    /// Adds the tensor with the header at `tensor`, and its gradient under the same name; not what stands for no tensor.
    pub(super) fn add(&mut self, name: String, tensor: VirtAddr, kind: TensorKind, persistent: bool) {
        let Self { memory, python, .. } = *self;
        let Some(layout) = self.layout else {
            let unread = NamedTensor::new(name, kind, VirtAddr(0), Err(no_layout(None)));
            self.held.tensors.push(NamedTensor { persistent, ..unread });
            return;
        };
        if self.is_undefined(tensor) {
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
}
