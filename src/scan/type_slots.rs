//! The slots in which the type of an object can stand: a pointer, behind the object's reference count.
//!
//! Numbers, text and weights hold next to nothing that looks like it. So the pages of a process are read once, to find these
//! slots; every later sweep for objects reads the slots alone.

use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;

use super::backend::Backend;
use super::chunk::View;
use super::filter::Span;
use super::pointer_set::PointerSet;
use super::prefetch::prefetch;
use super::sweep::views;
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;

/// 8-byte slots in a frame.
const SLOTS: usize = FRAME_SIZE as usize / 8;
/// Words of bits, one for each slot of a frame.
pub(super) const WORDS: usize = SLOTS / 64;
/// Frames whose slots one thread looks at at a time.
const FRAMES: usize = 256;
/// Bytes of a cache line.
const LINE: usize = 64;
/// A pointer to a type is a multiple of 8.
const ALIGNMENT_BITS: u32 = 3;
/// Bits of a reference count, of which one is set.
pub(super) const COUNT: u64 = 0xffff_ffff;
/// Bits above the count, none of which is set. The 16 bits above these hold flags from CPython 3.14 on.
pub(super) const ABOVE_COUNT: u64 = 0xffff << 32;

/// What the slot of an object's type looks like.
#[derive(Clone, Debug)]
pub struct TypeSlot {
    /// The multiples of 8 that may be pointers to types.
    pub(super) types: Span,
    /// Whether the word before the slot is a reference count.
    pub(super) after_count: bool,
}

impl TypeSlot {
    /// A slot that holds a multiple of 8 in `types`. With `after_count`, the word before it is the reference count, as in all
    /// builds of CPython but the free-threaded ones.
    pub fn new(types: RangeInclusive<VirtAddr>, after_count: bool) -> Self {
        let alignment = 1 << ALIGNMENT_BITS;
        let first = types.start().0.checked_next_multiple_of(alignment).unwrap_or(u64::MAX - alignment + 1);
        Self { types: Span::new(first, types.end().0.max(first), ALIGNMENT_BITS), after_count }
    }

    /// Whether a value is that of such a slot. `before` is the word before the slot: in another frame, it may be any.
    pub(super) fn accepts(&self, value: u64, before: Option<u64>) -> bool {
        let is_count = |word: u64| word & ABOVE_COUNT == 0 && word & COUNT != 0;
        self.types.contains(value) && (!self.after_count || before.is_none_or(is_count))
    }
}

/// Slots of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameSlots {
    /// Address of the frame.
    pub frame: PhysAddr,
    /// Bit `n % 64` of word `n / 64` stands for the slot at byte `8 * n`.
    pub bits: [u64; WORDS],
}

impl FrameSlots {
    /// Positions of the slots in the frame, counted in slots, ascending.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.bits.iter().zip((0..).step_by(64)).flat_map(|(bits, first)| {
            let mut rest = *bits;
            std::iter::from_fn(move || {
                let position = (rest != 0).then(|| first + rest.trailing_zeros() as usize);
                rest &= rest.wrapping_sub(1);
                position
            })
        })
    }

    /// Only the slots whose positions pass.
    pub fn filtered(&self, passes: impl Fn(usize) -> bool) -> Self {
        let mut left = Self { frame: self.frame, bits: [0; WORDS] };
        self.positions().filter(|position| passes(*position)).for_each(|position| left.add(position));
        left
    }

    /// The words of the frame, if the dump holds it whole.
    fn words<'a>(&self, memory: &'a PhysicalMemory) -> Option<&'a [[u8; 8]]> {
        memory.bytes(self.frame, FRAME_SIZE).map(|bytes| bytes.as_chunks().0)
    }

    fn add(&mut self, position: usize) {
        self.bits.get_mut(position / 64).into_iter().for_each(|bits| *bits |= 1 << (position % 64));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|bits| *bits == 0)
    }

    /// Address and value of every slot that `memory` holds, by ascending address.
    pub fn values<'a>(&'a self, memory: &'a PhysicalMemory) -> impl Iterator<Item = (PhysAddr, u64)> + 'a {
        let words = self.words(memory);
        self.positions().filter_map(move |position| {
            let address = PhysAddr(self.frame.0 + 8 * position as u64);
            let bytes = match words {
                Some(words) => words.get(position)?,
                None => memory.bytes(address, 8)?.first_chunk()?,
            };
            Some((address, u64::from_le_bytes(*bytes)))
        })
    }
}

/// The slots of `frames` that look like `slot`, sorted by frame; frames without any are left out. With them, what
/// [`sweep`](super::sweep) finds there for `values`: the frames are in the cache, so it costs little to look for a few.
///
/// `frames` are runs of physical addresses, as for [`sweep`](super::sweep). Where the dump holds a frame only in part, every
/// slot that it holds is returned. Ends early where the dump can't be read any more, see [`PhysicalMemory::check`].
pub fn type_slots(
    memory: &PhysicalMemory,
    frames: &[Range<PhysAddr>],
    slot: &TypeSlot,
    values: &PointerSet,
    backend: Backend,
) -> (Vec<FrameSlots>, Vec<(PhysAddr, u64)>) {
    let engine = backend.engine();
    let in_view = |view: View<'_>| {
        let (mut found, mut hits) = (Vec::new(), Vec::new());
        if !memory.is_lost() {
            let whole = view.whole_frames();
            found.extend(view.part(view.start..whole.start).frames().map(all_slots));
            engine.type_slots(slot, whole, &mut found);
            found.extend(view.part(whole.end()..view.end()).frames().map(all_slots));
            engine.sweep(values, view, &mut hits);
        }
        (found, hits)
    };
    let found: Vec<_> = views(memory, frames).into_par_iter().map(in_view).collect();
    let mut slots: Vec<FrameSlots> = Vec::with_capacity(found.iter().map(|(slots, _)| slots.len()).sum());
    let mut hits = Vec::new();
    for (of_view, hits_of_view) in found {
        hits.extend(hits_of_view);
        for of_frame in of_view {
            match slots.last_mut() {
                // Two ranges of the dump share the frame.
                Some(last) if last.frame == of_frame.frame => {
                    last.bits.iter_mut().zip(of_frame.bits).for_each(|(bits, more)| *bits |= more);
                }
                _ => slots.push(of_frame),
            }
        }
    }
    (slots, hits)
}

/// Those of the slots that hold one of `values`: address and value, by ascending address.
///
/// Ends early where the dump can't be read any more, see [`PhysicalMemory::check`].
pub fn sweep_slots(memory: &PhysicalMemory, slots: &[FrameSlots], values: &PointerSet) -> Vec<(PhysAddr, u64)> {
    let in_frames = |slots: &[FrameSlots]| {
        let mut hits = Vec::new();
        if !memory.is_lost() {
            sweep_frames(memory, slots, values, &mut hits);
        }
        hits
    };
    let hits: Vec<Vec<(PhysAddr, u64)>> = slots.par_chunks(FRAMES).map(in_frames).collect();
    hits.concat()
}

/// Adds those of the slots that hold one of `values`. The next frame is asked for while one is read.
fn sweep_frames(memory: &PhysicalMemory, slots: &[FrameSlots], values: &PointerSet, hits: &mut Vec<(PhysAddr, u64)>) {
    let mut whole = slots.first().and_then(|slots| slots.words(memory));
    for (slots, next) in slots.iter().zip(slots.iter().skip(1).map(Some).chain([None])) {
        let next = next.and_then(|next| next.words(memory));
        next.unwrap_or_default().iter().step_by(LINE / 8).for_each(|line| prefetch(line.as_ptr()));
        match whole {
            Some(words) => {
                for ((bits, words), first) in slots.bits.iter().zip(words.chunks_exact(64)).zip((0..).step_by(8 * 64)) {
                    let mut rest = *bits;
                    while rest != 0 {
                        let position = rest.trailing_zeros();
                        rest &= rest - 1;
                        let value = words.get(position as usize).map_or(0, |word| u64::from_le_bytes(*word));
                        if values.contains_quick(value) {
                            hits.push((PhysAddr(slots.frame.0 + first + u64::from(position) * 8), value));
                        }
                    }
                }
            }
            None => hits.extend(slots.values(memory).filter(|(_, value)| values.contains_quick(*value))),
        }
        whole = next;
    }
}

/// All slots of a part of a frame.
fn all_slots(part: View<'_>) -> FrameSlots {
    let mut slots = FrameSlots { frame: part.start.frame(), bits: [0; WORDS] };
    let first = part.start.in_frame() as usize / 8;
    (first..first + part.bytes.len() / 8).for_each(|position| slots.add(position));
    slots
}
