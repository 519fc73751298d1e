//! What optimizers of C++ keep for a parameter.
//!
//! An optimizer has a hash map from parameters to structures with a virtual table, numbers and tensors
//! (torch/optim/optimizer.h, torch/optim/adam.h, torch/optim/sgd.h). The key is the address of the parameter's `TensorImpl`:
//! a pointer from PyTorch 2.1 on, and text before. Which optimizer it is, and what it calls the tensors, memory does not say.

use std::collections::{BTreeMap, BTreeSet};

use super::Hit;
use crate::addr::{VirtAddr, field};
use crate::diagnostic::Diagnostic;
use crate::framework::torch::script::{ObjectNumbers, is_pointer, text_at};
use crate::framework::torch::tensor::Layout;
use crate::model::{Model, NamedTensor, TensorKind};
use crate::paging::VirtualMemory;

/// Words behind the virtual table of a structure in which its tensors lie: RMSprop has four fields (torch/optim/rmsprop.h).
const FIELDS: i64 = 5;
/// Bytes of a word.
const WORD: i64 = 8;

/// The structures that optimizers keep for some tensors.
pub(super) struct States<'a> {
    memory: &'a dyn VirtualMemory,
    all: &'a [ObjectNumbers],
    tensors: &'a BTreeSet<VirtAddr>,
    /// Where a structure may begin.
    candidates: BTreeSet<VirtAddr>,
    /// The structure of a parameter, by its header.
    of: BTreeMap<VirtAddr, VirtAddr>,
}

impl<'a> States<'a> {
    pub(super) fn new(
        memory: &'a dyn VirtualMemory,
        all: &'a [ObjectNumbers],
        tensors: &'a BTreeSet<VirtAddr>,
    ) -> Self {
        let (candidates, of) = Default::default();
        Self { memory, all, tensors, candidates, of }
    }

    /// Takes what a sweep found, and says what is to be looked for next.
    pub(super) fn follow(&mut self, hits: &[Hit]) -> BTreeSet<VirtAddr> {
        let mut wanted = BTreeSet::new();
        for (slot, value) in hits {
            if self.candidates.contains(value)
                && let Some(parameter) = self.key(*slot)
            {
                self.of.entry(parameter).or_insert(*value);
            }
            if self.tensors.contains(value) {
                for state in (1..=FIELDS).map(|words| field(*slot, words.wrapping_mul(-WORD))) {
                    let has_table = self.memory.pointer(state, 0).is_ok_and(|table| is_pointer(&table));
                    if has_table && self.candidates.insert(state) {
                        wanted.insert(state);
                    }
                }
            }
        }
        wanted
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
        for parameter in model.tensors.iter().filter(|tensor| tensor.same_as.is_none()) {
            let Some(info) = &parameter.info else { continue };
            let Some(state) = self.of.get(&info.header) else { continue };
            let fields = (1..=FIELDS).filter_map(|words| self.memory.pointer(*state, words.wrapping_mul(WORD)).ok());
            let tensors = fields.filter(|header| self.tensors.contains(header) && *header != info.header);
            let read = tensors.filter_map(|header| layout.read_tensor_impl(self.memory, header).ok());
            for (index, kept) in read.filter(|kept| kept.shape == info.shape).enumerate() {
                let name = format!("{}.state{index}", parameter.name);
                let read = Ok::<_, Diagnostic>(kept);
                model.training.push(NamedTensor::new(name, TensorKind::Optimizer, VirtAddr(0), read));
            }
        }
    }
}
