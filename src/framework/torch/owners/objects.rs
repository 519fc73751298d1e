//! Script objects (`c10::ivalue::Object`) that are found from what their slots hold.

use std::collections::{BTreeMap, BTreeSet};

use super::Hit;
use crate::addr::{VirtAddr, field};
use crate::framework::torch::script::{
    MAX_SLOTS, OBJECT_WORDS, ObjectNumbers, Reader, ScriptLayouts, Scripts, SlotValue, is_pointer,
};
use crate::framework::torch::tensor::Layout;
use crate::model::Model;
use crate::paging::VirtualMemory;

/// Tags of values are numbers below this one (ATen/core/ivalue.h, `TORCH_FORALL_TAGS`: 21 in PyTorch 1.7, 30 in 2.6).
const TAGS: u64 = 64;
/// Slots before one that was found in which the vector may begin, unless another was found among them.
const MAX_BEFORE: i64 = 1 << 10;
/// More references to one object than there are.
const MAX_COUNT: u64 = 1 << 24;
/// Bytes of a word.
const WORD: i64 = 8;

/// The script objects that hold some tensors.
pub(super) struct ScriptObjects<'a> {
    memory: &'a dyn VirtualMemory,
    all: &'a [ObjectNumbers],
    tensors: &'a BTreeSet<VirtAddr>,
    /// Where a vector of slots may begin.
    begins: BTreeSet<VirtAddr>,
    /// Vectors that begin there, before it is known where in its object one lies.
    vectors: BTreeSet<VirtAddr>,
    /// Where an object with such a vector may begin.
    candidates: BTreeSet<VirtAddr>,
    reader: Option<Reader<'a>>,
    objects: BTreeSet<VirtAddr>,
}

impl<'a> ScriptObjects<'a> {
    pub(super) fn new(
        memory: &'a dyn VirtualMemory,
        all: &'a [ObjectNumbers],
        tensors: &'a BTreeSet<VirtAddr>,
    ) -> Self {
        let (begins, vectors, candidates, objects) = Default::default();
        Self { memory, all, tensors, begins, vectors, candidates, reader: None, objects }
    }

    /// Takes what a sweep found, and says what is to be looked for next.
    pub(super) fn follow(&mut self, hits: &[Hit]) -> BTreeSet<VirtAddr> {
        let mut wanted = BTreeSet::new();
        if self.reader.is_none() && !self.candidates.is_empty() {
            self.elect(hits);
        }
        for (slot, value) in hits {
            if self.tensors.contains(value) || self.objects.contains(value) {
                self.add_begins(*slot, &mut wanted);
            }
            if self.begins.contains(value) && self.is_vector(*slot, *value) {
                self.add_vector(*slot, &mut wanted);
            }
        }
        wanted
    }

    /// Adds where a vector may begin that has a value at `slot`, if that is one: a word and a tag.
    fn add_begins(&mut self, slot: VirtAddr, wanted: &mut BTreeSet<VirtAddr>) {
        let Some(numbers) = self.all.first() else { return };
        let first = field(slot, numbers.ivalue_payload.wrapping_neg());
        for index in 0..MAX_BEFORE {
            let value = field(first, numbers.ivalue_size.wrapping_mul(index).wrapping_neg());
            let tag = self.memory.word(value, numbers.ivalue_tag).map(|tag| tag & u64::from(u32::MAX));
            let is_value = tag.is_ok_and(|tag| tag < TAGS && (index > 0 || tag != numbers.tag_none.cast_unsigned()));
            if !is_value || !self.begins.insert(value) {
                break;
            }
            wanted.insert(value);
        }
    }

    /// Whether a vector of values with that begin lies at `at`.
    fn is_vector(&self, at: VirtAddr, begin: VirtAddr) -> bool {
        let size = self.all.first().map_or(1, |numbers| numbers.ivalue_size.unsigned_abs().max(1));
        let [Ok(end), Ok(room)] = [WORD, 2 * WORD].map(|offset| self.memory.word(at, offset)) else { return false };
        let bytes = end.wrapping_sub(begin.0);
        bytes.is_multiple_of(size) && (1..=MAX_SLOTS).contains(&(bytes / size)) && room >= end
    }

    /// Adds the object whose slots are the vector at `at`; before an object is known, all addresses where it may begin.
    fn add_vector(&mut self, at: VirtAddr, wanted: &mut BTreeSet<VirtAddr>) {
        if let Some(reader) = &self.reader {
            let object = reader.object_of(at);
            if reader.read(object).is_ok() && self.objects.insert(object) {
                wanted.insert(object);
            }
            return;
        }
        self.vectors.insert(at);
        for candidate in before(at) {
            if self.is_counted(candidate) && self.candidates.insert(candidate) {
                wanted.insert(candidate);
            }
        }
    }

    /// Whether a virtual table and reference counts lie at the begin of a candidate (c10/util/intrusive_ptr.h,
    /// `intrusive_ptr_target`): two counts in two words, or both in one.
    fn is_counted(&self, candidate: VirtAddr) -> bool {
        let [Ok(table), Ok(counts)] = [0, WORD].map(|offset| self.memory.word(candidate, offset)) else { return false };
        let (low, high) = (counts & u64::from(u32::MAX), counts >> u32::BITS);
        is_pointer(&VirtAddr(table)) && (1..=MAX_COUNT).contains(&low) && high <= MAX_COUNT
    }

    /// Learns where the fields of objects lie: the nearest address before a vector that memory holds is probably where its object
    /// begins, and the objects vote.
    fn elect(&mut self, hits: &[Hit]) {
        let named: BTreeSet<VirtAddr> =
            hits.iter().map(|(_, value)| *value).filter(|value| self.candidates.contains(value)).collect();
        let nearest = |at: &VirtAddr| before(*at).find(|candidate| named.contains(candidate));
        let voters: Vec<VirtAddr> = self.vectors.iter().filter_map(nearest).collect();
        self.candidates.clear();
        self.reader = Reader::elect(self.memory, self.all, &voters);
        let Some(reader) = &self.reader else { return };
        let objects = std::mem::take(&mut self.vectors).into_iter().map(|at| reader.object_of(at));
        // All of them are among the candidates: this sweep has looked for them already.
        self.objects.extend(objects.filter(|object| reader.read(*object).is_ok()));
    }

    /// The models: script modules that no other object holds.
    pub(super) fn models(&self, layouts: &ScriptLayouts, layout: &Layout) -> Vec<Model> {
        let Some(reader) = self.reader else { return Vec::new() };
        let read: BTreeMap<VirtAddr, _> =
            self.objects.iter().filter_map(|object| Some((*object, reader.read(*object).ok()?))).collect();
        let slots = read.values().flat_map(|object| &object.slots);
        let held: BTreeSet<VirtAddr> = slots
            .filter_map(|slot| match slot.value {
                SlotValue::Object(object) => Some(object),
                _ => None,
            })
            .collect();
        let scripts = Scripts::of_memory(self.memory, layouts, Some(reader), Some(layout));
        let roots = read.keys().filter(|object| !held.contains(object));
        let models = roots.filter_map(|object| scripts.model(*object, *object));
        // An object of another class has neither a training flag nor parameters.
        let is_module = |model: &Model| {
            let root = model.modules.first();
            root.is_some_and(|root| root.training.is_some()) || model.tensors.iter().any(|tensor| tensor.persistent)
        };
        models.filter(is_module).collect()
    }
}

/// Where an object may begin whose vector of slots lies at `at`, the nearest first.
fn before(at: VirtAddr) -> impl Iterator<Item = VirtAddr> {
    (1..OBJECT_WORDS.cast_signed()).map(move |words| field(at, words.wrapping_mul(-WORD)))
}
