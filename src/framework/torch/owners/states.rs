//! What optimizers of C++ keep for a parameter.
//!
//! An optimizer has a hash map from parameters to structures with a virtual table, numbers and tensors
//! (torch/optim/optimizer.h, torch/optim/adam.h, torch/optim/sgd.h). The key is the address of the parameter's `TensorImpl`:
//! a pointer from PyTorch 2.1 on, and text before. Which optimizer it is, and what it calls the tensors, memory does not say.

use std::collections::{BTreeMap, BTreeSet};

use super::Hit;
use crate::addr::{VirtAddr, field};
use crate::framework::torch::script::{ObjectNumbers, is_pointer, text_at};
use crate::framework::torch::tensor::Layout;
use crate::model::{Model, NamedTensor, TensorKind};
use crate::paging::VirtualMemory;
use crate::tensor::TensorInfo;

/// Words behind the virtual table of a structure in which its tensors lie: RMSprop has four fields (torch/optim/rmsprop.h).
const FIELDS: i64 = 5;
/// Structures that are looked for.
const MAX_STATES: usize = 1 << 20;
/// Bytes of a word.
const WORD: i64 = 8;

/// The structures that optimizers keep for some tensors.
pub(super) struct States<'a> {
    memory: &'a dyn VirtualMemory,
    all: &'a [ObjectNumbers],
    tensors: &'a BTreeSet<VirtAddr>,
    /// What may be the structure of a parameter, by its header.
    of: BTreeMap<VirtAddr, BTreeSet<VirtAddr>>,
}

impl<'a> States<'a> {
    pub(super) fn new(
        memory: &'a dyn VirtualMemory,
        all: &'a [ObjectNumbers],
        tensors: &'a BTreeSet<VirtAddr>,
    ) -> Self {
        Self { memory, all, tensors, of: BTreeMap::new() }
    }

    /// Where the structures with the tensors at those slots may begin.
    pub(super) fn begins(&self, references: &[Hit]) -> BTreeSet<VirtAddr> {
        let begins = |slot: VirtAddr| (1..=FIELDS).map(move |words| field(slot, words.wrapping_mul(-WORD)));
        let has_table = |state: &VirtAddr| self.memory.pointer(*state, 0).is_ok_and(|table| is_pointer(&table));
        references.iter().flat_map(|(slot, _)| begins(*slot)).filter(has_table).take(MAX_STATES).collect()
    }

    /// Takes the slots that hold such a begin: a structure is the value of a parameter in a hash map.
    pub(super) fn find(&mut self, hits: &[Hit]) {
        for (slot, state) in hits {
            if let Some(parameter) = self.key(*slot) {
                self.of.entry(parameter).or_default().insert(*state);
            }
        }
    }

    /// The parameter whose header is the key of the value at `slot` in a hash map.
    fn key(&self, slot: VirtAddr) -> Option<VirtAddr> {
        let pointer = self.memory.pointer(slot, -WORD).ok();
        pointer.filter(|key| self.tensors.contains(key)).or_else(|| {
            let keys = self.all.iter().filter_map(|numbers| {
                let text = text_at(self.memory, numbers, field(slot, numbers.string_size.wrapping_neg()))?;
                u64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(VirtAddr)
            });
            keys.into_iter().find(|key| self.tensors.contains(key))
        })
    }

    /// Lists what is kept for the parameters of a model, numbered: tensors of the parameter's shape.
    pub(super) fn attach(&self, model: &mut Model, layout: &Layout) {
        let gradients: BTreeSet<VirtAddr> = headers(&model.training).collect();
        for parameter in model.tensors.iter().filter(|tensor| tensor.same_as.is_none()) {
            let Some(info) = &parameter.info else { continue };
            let kept = |state: &VirtAddr| -> Vec<TensorInfo> {
                let fields =
                    (1..=FIELDS).filter_map(|words| self.memory.pointer(*state, words.wrapping_mul(WORD)).ok());
                let tensors = fields.filter(|header| self.tensors.contains(header));
                let others = tensors.filter(|header| *header != info.header && !gradients.contains(header));
                let read = others.filter_map(|header| layout.read_tensor_impl(self.memory, header).ok());
                read.filter(|kept| kept.shape == info.shape).collect()
            };
            let states = self.of.get(&info.header).into_iter().flatten();
            let kept = states.map(kept).find(|kept| !kept.is_empty()).unwrap_or_default();
            model.training.extend(kept.into_iter().enumerate().map(|(index, kept)| {
                let name = format!("{}.state{index}", parameter.name);
                NamedTensor::new(name, TensorKind::Optimizer, kept.object, Ok(kept))
            }));
        }
    }
}

/// The headers of tensors that could be read.
fn headers(tensors: &[NamedTensor]) -> impl Iterator<Item = VirtAddr> {
    tensors.iter().filter_map(|tensor| Some(tensor.info.as_ref()?.header))
}
