//! The pages of interpreters, swept for the objects of certain types.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

use super::candidate::Candidate;
use super::references::References;
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::paging::ReverseMap;
use crate::scan::{Backend, PointerSet, sweep};

/// Spaces that may use up what is granted to each; real ones need a small part of it.
const SPACES_AT_LIMIT: u64 = 16;
/// Addresses of one space under which a slot is looked at: a hostile space maps a frame a million times.
const MAX_ALIASES: usize = 16;
/// Bytes that one thread looks through for headers of objects at a time.
const PIECE: u64 = 1 << 20;
/// Words of a frame that are looked at together; a frame is a multiple of it.
const BLOCK: usize = 32;
/// What a C structure with pointers in it is aligned to.
const ALIGNMENT: u64 = 8;

/// The pages of several interpreters, ready to be swept for their objects.
pub struct Sweeper {
    memory: PhysicalMemory,
    backend: Backend,
    reverse: ReverseMap,
    frames: Vec<Range<PhysAddr>>,
}

impl Sweeper {
    /// Collects the pages of the candidates' spaces; their positions are the indices of [`Sweeper::sweep`].
    ///
    /// `limit` bounds the page tables that are read and the mappings that are kept of each space, so that
    /// a hostile one hides no other; spaces that exceed it are left out and named in the second value.
    pub fn new(memory: PhysicalMemory, backend: Backend, candidates: &[Candidate], limit: u64) -> (Self, Vec<usize>) {
        let mut left = limit.saturating_mul(SPACES_AT_LIMIT);
        let mut mapped = Vec::new();
        let mut left_out = Vec::new();
        let mut types = VirtAddr(u64::MAX)..=VirtAddr(0);
        for (index, candidate) in candidates.iter().enumerate() {
            let granted = limit.min(left);
            let mut budget = granted;
            let mappings = candidate.space.user_mappings(&mut budget);
            left -= granted - budget;
            let Some(mut mappings) = mappings else {
                left_out.push(index);
                continue;
            };
            // Objects are data; code is most of what a process maps.
            mappings.retain(|mapping| !mapping.executable);
            // Types are objects too: they lie where something is mapped.
            let (first, last) = (mappings.first(), mappings.last());
            let first = first.map_or(candidate.type_object, |first| candidate.type_object.min(first.va));
            let last = last.map_or(candidate.type_object, |last| {
                candidate.type_object.max(VirtAddr(last.va.0.saturating_add(last.len)))
            });
            // One can begin just before the page that its own type stands in.
            let first = VirtAddr(first.0.saturating_sub(FRAME_SIZE));
            types = first.min(*types.start())..=last.max(*types.end());
            mapped.push((index, mappings));
        }
        let reverse = ReverseMap::new(mapped);
        let layouts = candidates.iter().flat_map(|candidate| &candidate.layouts);
        let headers = Headers { references: layouts.map(References::of).collect(), types: ends(types) };
        let frames = headers.frames(&memory, &reverse.frames());
        (Self { memory, backend, reverse, frames }, left_out)
    }

    /// Aligned slots that hold one of `wanted` of their space, as address of the slot and value, for each space:
    /// all those that are the type of a live object, and some others. Every frame is looked at once,
    /// however many spaces share it.
    pub fn sweep(&self, wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        self.sweep_frames(&self.frames, wanted)
    }

    /// Aligned slots that hold one of `wanted` of their space, in all its pages of data: also in those that can hold no
    /// object, as structures of the interpreter do.
    pub fn sweep_all(&self, wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        self.sweep_frames(&self.reverse.frames(), wanted)
    }

    fn sweep_frames(
        &self,
        frames: &[Range<PhysAddr>],
        wanted: &[BTreeSet<VirtAddr>],
    ) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        let values: Vec<u64> = wanted.iter().flatten().map(|address| address.0).collect();
        let hits = sweep(&self.memory, frames, &PointerSet::new(&values), self.backend, &|_| ());
        // Slots that the same mappings hold are looked up together.
        let mut runs: Vec<Vec<Run<'_>>> = vec![Vec::new(); wanted.len()];
        let mut rest = hits.as_slice();
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
}

/// Slots that one space has in one piece, by their physical addresses, and the virtual address of the first.
#[derive(Clone, Copy)]
struct Run<'s> {
    start: VirtAddr,
    slots: &'s [(PhysAddr, u64)],
}

/// The virtual addresses of the slots of a space that hold a wanted value, sorted, and the values.
fn wanted_slots<'s>(mut runs: Vec<Run<'s>>, wanted: &BTreeSet<VirtAddr>) -> Vec<(VirtAddr, VirtAddr)> {
    let wanted = PointerSet::new(&wanted.iter().map(|address| address.0).collect::<Vec<u64>>());
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

impl Sweeper {
    /// Where the candidates' spaces have a physical address: position of the candidate, and virtual address.
    pub(super) fn addresses(&self, pa: PhysAddr) -> impl Iterator<Item = (usize, VirtAddr)> {
        self.reverse.lookup(pa).take(MAX_ALIASES * MAX_ALIASES)
    }
}

/// What an object begins with: the count of references, and after it the type.
///
/// Numbers, text and weights hold next to nothing of that look: most of what a process keeps that computes
/// needs to be looked at only once, to see that.
struct Headers {
    /// Where the layouts count references; `None` where one does not say.
    references: Option<BTreeSet<References>>,
    /// Lowest address of a type, and how far the highest is above it.
    types: (u64, u64),
}

impl Headers {
    /// Whether the type of a live object could stand in one of the words of a frame.
    fn may_stand_in(&self, frame: &[u8]) -> bool {
        let Some(references) = &self.references else { return true };
        let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
        let (first, span) = self.types;
        let above = u64::MAX.checked_shl(u64::BITS - first.saturating_add(span).leading_zeros()).unwrap_or_default();
        let (words, _) = frame.as_chunks();
        words.as_chunks::<BLOCK>().0.iter().zip((0..).step_by(BLOCK)).any(|(block, start)| {
            // All at once, in a form that compiles to vectors: a weight has bits above those of any address.
            if !block.iter().fold(false, |any, value| any | (word(value).wrapping_sub(1) & above == 0)) {
                return false;
            }
            block.iter().zip(start..).any(|(value, at): (_, usize)| {
                let value = word(value);
                let may_be_type = value.wrapping_sub(first) <= span && value.is_multiple_of(ALIGNMENT);
                // A count that lies in another frame could be any.
                let near = |distance: i64| {
                    let at = at.checked_add_signed((distance / 8) as isize)?;
                    words.get(at).filter(|_| distance % 8 == 0).map(word)
                };
                let are_live = |references: &References| references.are_live(|at| near(at).ok_or(())).unwrap_or(true);
                may_be_type && references.iter().any(are_live)
            })
        })
    }

    /// The frames among `frames` in which the type of a live object could stand, as far as the dump holds them.
    fn frames(&self, memory: &PhysicalMemory, frames: &[Range<PhysAddr>]) -> Vec<Range<PhysAddr>> {
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for run in frames {
            let first = memory.ranges().partition_point(|range| range.end <= run.start);
            // What a space maps and the dump does not hold may be without end.
            for range in memory.ranges().iter().skip(first).take_while(|range| range.start < run.end) {
                let (start, end) = (range.start.max(run.start).frame().0, range.end.min(run.end).0);
                let starts = (start..end).step_by(PIECE as usize);
                pieces.extend(starts.map(|start| start..end.min(start.saturating_add(PIECE))));
            }
        }
        let in_piece = |piece: Range<u64>| {
            let starts = piece.step_by(FRAME_SIZE as usize).map(PhysAddr);
            // A frame that the dump holds in part is for the sweep to sort out.
            let may_stand_in =
                |frame: &PhysAddr| memory.bytes(*frame, FRAME_SIZE).is_none_or(|bytes| self.may_stand_in(bytes));
            let kept = starts.filter(may_stand_in);
            joined(kept.map(|frame| frame..PhysAddr(frame.0.saturating_add(FRAME_SIZE))))
        };
        let kept: Vec<Vec<Range<PhysAddr>>> = pieces.into_par_iter().map(in_piece).collect();
        joined(kept.into_iter().flatten())
    }
}

/// The first of a range of addresses, and how far the last is above it.
fn ends(range: RangeInclusive<VirtAddr>) -> (u64, u64) {
    let (first, last) = (range.start().0, range.end().0);
    (first, last.saturating_sub(first))
}

/// Sorted ranges, those that touch made one.
fn joined(ranges: impl Iterator<Item = Range<PhysAddr>>) -> Vec<Range<PhysAddr>> {
    let mut joined: Vec<Range<PhysAddr>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FileOffset;
    use crate::dump::MemoryRange;

    /// A frame with these words at these places, and weights elsewhere.
    fn frame(words: &[(usize, u64)]) -> Vec<u8> {
        let mut values = [0x3c23_d70a_bc23_d70au64; 512];
        words.iter().for_each(|(at, word)| values[*at] = *word);
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn only_frames_that_could_hold_an_object_are_kept() {
        let (low, high) = (0x40_0000, 0x7fff_ffff_f000);
        let headers = Headers { references: Some(BTreeSet::from([References::One(-8)])), types: (low, high - low) };
        let holds = |words: &[(usize, u64)]| headers.may_stand_in(&frame(words));
        assert!(!holds(&[]));
        for at in [2, 31, 32, 33, 300, 511] {
            for address in [low, 0x55_5555_5550, high] {
                assert!(holds(&[(at - 1, 7), (at, address)]), "{at}");
                // Flags above the count, as 3.14 has them.
                assert!(holds(&[(at - 1, 0x8000_0000_0000_0001), (at, address)]));
                assert!(!holds(&[(at - 1, 0x55_5555_5550), (at, address)]), "no count");
                assert!(!holds(&[(at - 1, 7), (at, address + 4)]), "not aligned");
            }
            assert!(!holds(&[(at - 1, 7), (at, low - 8)]) && !holds(&[(at - 1, 7), (at, high + 8)]));
        }
        assert!(holds(&[(0, low)]), "the count is in the frame before");
        assert!(!holds(&[(0, 0), (1, 0), (511, 0)]));
        let unknown = Headers { references: None, types: (low, high - low) };
        assert!(unknown.may_stand_in(&frame(&[])));
    }

    #[test]
    fn frames_are_cut_where_the_dump_ends_and_listed_once() {
        let range =
            |start, end, offset| MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset: FileOffset(offset) };
        // Two ranges share a frame that neither holds whole; the first frame is zeros, the second holds an object.
        let mut bytes = vec![0; 0x2000];
        bytes.extend(frame(&[(8, 1), (9, 0x1000)]));
        bytes.extend(vec![0; 0x1000]);
        let ranges = vec![range(0x1000, 0x4800, 0x1000), range(0x4900, 0x5000, 0)];
        let memory = PhysicalMemory::owned([bytes, vec![0; 0x4000]].concat(), ranges).unwrap();
        let headers = Headers { references: Some(BTreeSet::from([References::One(-8)])), types: (0x1000, 0x1000) };
        let kept = headers.frames(&memory, &[PhysAddr(0x1000)..PhysAddr(1 << 50)]);
        assert_eq!(kept, [PhysAddr(0x2000)..PhysAddr(0x3000), PhysAddr(0x4000)..PhysAddr(0x5000)]);
    }
}
