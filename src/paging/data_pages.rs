//! The pages of data of several address spaces, swept for pointers.

use std::collections::BTreeSet;
use std::ops::Range;

use rayon::prelude::*;

use super::{Mapping, ReverseMap};
use crate::addr::{PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::scan::{Backend, PointerSet, sweep};

/// Addresses of one space under which a slot is looked at: a hostile space maps a frame a million times.
const MAX_ALIASES: usize = 16;

/// The pages of several spaces, ready to be swept.
pub struct DataPages {
    memory: PhysicalMemory,
    backend: Backend,
    reverse: ReverseMap,
}

impl DataPages {
    /// The pages of spaces, each given with its position.
    pub fn new(memory: PhysicalMemory, backend: Backend, mapped: Vec<(usize, Vec<Mapping>)>) -> Self {
        Self { memory, backend, reverse: ReverseMap::new(mapped) }
    }

    /// The memory that they are pages of.
    pub fn memory(&self) -> &PhysicalMemory {
        &self.memory
    }

    /// Their physical addresses: sorted, without overlap.
    pub fn frames(&self) -> Vec<Range<PhysAddr>> {
        self.reverse.frames()
    }

    /// Aligned slots that hold one of the wanted addresses of their space, as address of the slot and value, for each space.
    pub fn sweep(&self, wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        let values = PointerSet::of(wanted.iter().flatten());
        self.by_space(&sweep(&self.memory, &self.frames(), &values, self.backend, &|_| ()), wanted)
    }

    /// The slots at physical addresses, sorted, as each space has them.
    pub fn by_space(&self, hits: &[(PhysAddr, u64)], wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        // Slots that the same mappings hold are looked up together.
        let mut runs: Vec<Vec<Run<'_>>> = vec![Vec::new(); wanted.len()];
        let mut rest = hits;
        while let Some((first, _)) = rest.first() {
            let (places, end) = self.reverse.lookup_run(*first, MAX_ALIASES * MAX_ALIASES.max(wanted.len()));
            let count = rest.iter().take_while(|(pa, _)| *pa < end).count().max(1);
            let (slots, behind) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            for (space, start) in places {
                if let Some(runs) = runs.get_mut(space) {
                    let aliases = runs
                        .iter()
                        .rev()
                        .take(MAX_ALIASES)
                        .take_while(|run| run.slots.as_ptr_range() == slots.as_ptr_range());
                    if aliases.count() < MAX_ALIASES {
                        runs.push(Run { start, slots });
                    }
                }
            }
            rest = behind;
        }
        runs.into_par_iter().zip(wanted).map(|(runs, wanted)| wanted_slots(runs, wanted)).collect()
    }

    /// Where the spaces have a physical address: position of the space, and virtual address.
    pub fn addresses(&self, pa: PhysAddr) -> impl Iterator<Item = (usize, VirtAddr)> {
        self.reverse.lookup(pa).take(MAX_ALIASES * MAX_ALIASES)
    }
}

/// Slots that one space has in one piece, by their physical addresses, and the virtual address of the first.
#[derive(Clone, Copy)]
struct Run<'s> {
    start: VirtAddr,
    slots: &'s [(PhysAddr, u64)],
}

/// The virtual addresses of the slots of a space that hold a wanted value, sorted, and the values.
fn wanted_slots<'s>(mut runs: Vec<Run<'s>>, wanted: &BTreeSet<VirtAddr>) -> Vec<(VirtAddr, VirtAddr)> {
    let wanted = PointerSet::of(wanted);
    runs.par_sort_unstable_by_key(|run| run.start);
    let slots_of = |run: Run<'s>| {
        let first = run.slots.first().map_or(0, |(pa, _)| pa.0);
        let slots = run.slots.iter().filter(|(_, value)| wanted.contains_quick(*value));
        // Addresses of a mapping do not wrap; those of a hostile image are no worse for it.
        slots.map(move |(pa, value)| (VirtAddr(run.start.0.wrapping_add(pa.0 - first)), VirtAddr(*value)))
    };
    let mut found: Vec<(VirtAddr, VirtAddr)> = runs.into_par_iter().flat_map_iter(slots_of).collect();
    // Pages do not overlap, the ranges of an image might.
    if !found.is_sorted() {
        found.par_sort_unstable();
    }
    found
}
