//! The pages of interpreters, swept for the objects of certain types.

use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
use super::references::References;
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::{PhysicalMemory, Question, RemoteMemory, ShardMemory};
use crate::paging::{DataPages, data_mappings};
use crate::scan::{
    Backend, FrameSlots, PointerSet, Slots, TypeSlot, ask_about_runs, from_pairs, sweep, sweep_slots, type_slots,
};

/// The pages of several interpreters, ready to be swept for their objects.
pub struct Sweeper {
    pages: DataPages,
    /// Where the type of a live object may stand, by how it is told; found where the memory is.
    live: LiveSlots,
    slots: Vec<FrameSlots>,
    /// Slots that hold the `type` of a candidate, and their values.
    classes: Vec<(PhysAddr, u64)>,
}

impl Sweeper {
    /// Collects the pages of the candidates' spaces; their positions are the indices of [`Sweeper::sweep`].
    ///
    /// `limit` bounds the page tables that are read and the mappings that are kept of each space, so that
    /// a hostile one hides no other; spaces that exceed it are left out and named in the second value.
    pub fn new(memory: PhysicalMemory, backend: Backend, candidates: &[Candidate], limit: u64) -> (Self, Vec<usize>) {
        // Objects are data; code is most of what a process maps.
        let (mapped, left_out) = data_mappings(candidates.iter().map(|candidate| &candidate.space), limit);
        let mut types = VirtAddr(u64::MAX)..=VirtAddr(0);
        for (index, mappings) in &mapped {
            let Some(candidate) = candidates.get(*index) else { continue };
            // Types are objects too: they lie where something is mapped.
            let (first, last) = (mappings.first(), mappings.last());
            let first = first.map_or(candidate.type_object, |first| candidate.type_object.min(first.va));
            let last = last.map_or(candidate.type_object, |last| {
                candidate.type_object.max(VirtAddr(last.va.0.saturating_add(last.len)))
            });
            // One can begin just before the page that its own type stands in.
            let first = VirtAddr(first.0.saturating_sub(FRAME_SIZE));
            types = first.min(*types.start())..=last.max(*types.end());
        }
        let pages = DataPages::new(memory, backend, mapped);
        let layouts = candidates.iter().flat_map(|candidate| &candidate.layouts);
        let mut references: Option<BTreeSet<References>> = layouts.map(References::of).collect();
        // A table can read `type` and still be wrong about the counts: those of free-threaded builds may be one count.
        references.iter_mut().for_each(|known| _ = known.insert(References::WORD_BEFORE));
        let values = PointerSet::of(candidates.iter().map(|candidate| &candidate.type_object));
        let live = LiveSlots { types: [types.start().0, types.end().0], references };
        let (slots, classes) = match pages.memory().remote() {
            Some(_) => (Vec::new(), sweep(pages.memory(), &pages.frames(), &values, backend, &|_| ())),
            None => live.find(pages.memory(), &pages.frames(), &values, backend),
        };
        (Self { pages, live, slots, classes }, left_out)
    }

    /// Slots that hold the `type` of each candidate, as address of the slot and value: all those of its classes, and some
    /// others.
    pub fn classes(&self, candidates: &[Candidate]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        let types: Vec<_> = candidates.iter().map(|candidate| BTreeSet::from([candidate.type_object])).collect();
        self.pages.by_space(&self.classes, &types)
    }

    /// Slots that hold one of `wanted` of their space, as address of the slot and value, for each space:
    /// all those that are the type of a live object, and some others. Every slot is looked at once,
    /// however many spaces share it.
    pub fn sweep(&self, wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        let values = PointerSet::of(wanted.iter().flatten());
        let found = match self.pages.memory().remote() {
            Some(remote) => self.live.sweep_remote(&remote, &self.pages.frames(), &values),
            None => sweep_slots(self.pages.memory(), &self.slots, &values),
        };
        self.pages.by_space(&found, wanted)
    }

    /// Aligned slots that hold one of `wanted` of their space, in all its pages of data: also in those that can hold no
    /// object, as structures of the interpreter do.
    pub fn sweep_all(&self, wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        self.pages.sweep(wanted)
    }

    /// Where the candidates' spaces have a physical address: position of the candidate, and virtual address.
    pub(super) fn addresses(&self, pa: PhysAddr) -> impl Iterator<Item = (usize, VirtAddr)> {
        self.pages.addresses(pa)
    }
}

/// How the slot with the type of a live object is told from others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LiveSlots {
    /// The lowest and the highest address of a type.
    types: [u64; 2],
    /// How references may be counted; `None` where one layout does not say so: then all slots are taken.
    references: Option<BTreeSet<References>>,
}

impl LiveSlots {
    /// The slots of the types of live objects in `frames`, and some others. With them, all slots that hold one of `values`.
    fn find(
        &self,
        memory: &PhysicalMemory,
        frames: &[Range<PhysAddr>],
        values: &PointerSet,
        backend: Backend,
    ) -> (Vec<FrameSlots>, Vec<(PhysAddr, u64)>) {
        let Self { types: [first, last], references } = self;
        let after_count = references
            .as_ref()
            .is_some_and(|references| references.iter().all(|known| *known == References::WORD_BEFORE));
        let slot = TypeSlot::new(VirtAddr(*first)..=VirtAddr(*last), after_count);
        let (slots, hits) = type_slots(memory, frames, &slot, values, backend);
        let Some(references) = references.as_ref().filter(|_| !after_count) else { return (slots, hits) };
        let of_live = |slots: &FrameSlots| {
            // A frame that the dump holds in part is for the sweep to sort out.
            let Some(words) = memory.bytes(slots.frame, FRAME_SIZE).map(|bytes| bytes.as_chunks().0) else {
                return Some(slots.clone());
            };
            let live = slots.filtered(|position| {
                let word = |distance: i64| {
                    let at = position.checked_add_signed((distance / 8) as isize).filter(|_| distance % 8 == 0);
                    at.and_then(|at| words.get(at)).map(|word| u64::from_le_bytes(*word)).ok_or(())
                };
                // A count that lies in another frame could be any.
                references.iter().any(|references| references.are_live(word).unwrap_or(true))
            });
            (!live.is_empty()).then_some(live)
        };
        (slots.par_iter().filter_map(of_live).collect(), hits)
    }

    /// Those of the slots that hold one of `values`, found by those who have the memory.
    fn sweep_remote(
        &self,
        remote: &RemoteMemory<'_>,
        frames: &[Range<PhysAddr>],
        values: &PointerSet,
    ) -> Vec<(PhysAddr, u64)> {
        let live = || self.clone();
        ask_about_runs(remote, frames, &|_| (), |runs| LiveSweep {
            live: live(),
            runs,
            values: values.values().to_vec(),
        })
    }
}

/// A sweep of the slots of live objects in a part of a dump. The slots are kept for the next one.
#[derive(Serialize, Deserialize)]
pub(crate) struct LiveSweep {
    live: LiveSlots,
    /// Start and end of each run of frames.
    runs: Vec<[u64; 2]>,
    values: Vec<u64>,
}

impl Question for LiveSweep {
    const NAME: &'static str = "sweep of live objects";
    type Answer = Slots;

    fn answer(self, shard: &ShardMemory) -> Slots {
        let Self { live, runs, values } = self;
        let find = || live.find(&shard.memory, &from_pairs(&runs), &PointerSet::default(), Backend::detect_best()).0;
        let slots = shard.keep(&(&live, &runs), find);
        Slots::new(&sweep_slots(&shard.memory, &slots, &PointerSet::new(&values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FileOffset;
    use crate::dump::MemoryRange;

    #[test]
    fn slots_without_a_live_object_are_left_out() {
        let address = 0x7f12_3456_7000u64;
        let mut words = vec![0u64; 1024];
        // Free-threaded: the count of the owner in the upper half of a word, that of the others in the next.
        words[4..7].copy_from_slice(&[7 << 32 | 0x0102, 0, address]);
        words[14..17].copy_from_slice(&[0, 0, address]);
        // One count in one word.
        words[24..26].copy_from_slice(&[3, address]);
        words[34..36].copy_from_slice(&[0, address]);
        // Counts that may lie in the frame before.
        words[512..514].copy_from_slice(&[0, address]);
        let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(0x2000), offset: FileOffset(0) };
        let memory = PhysicalMemory::owned(bytes, vec![range]).unwrap();
        let slots = |references: Option<&[References]>| -> Vec<u64> {
            let references = references.map(|all| all.iter().copied().collect());
            let frames = [PhysAddr(0)..PhysAddr(0x2000)];
            let nothing = PointerSet::default();
            let live = LiveSlots { types: [0x1000, 1 << 47], references };
            let (slots, _) = live.find(&memory, &frames, &nothing, Backend::Scalar);
            slots.iter().flat_map(|slots| slots.values(&memory)).map(|(slot, _)| slot.0 / 8).collect()
        };
        let split = References::Split { local: -12, shared: -8, flags: 2 };
        assert_eq!(slots(Some(&[References::One(-8)])), [25]);
        assert_eq!(slots(Some(&[split])), [6, 513]);
        assert_eq!(slots(Some(&[References::One(-8), split])), [6, 25, 513]);
        assert_eq!(slots(None), [6, 16, 25, 35, 513]);
    }
}
