//! The reference: every slot of every frame, one after the other. All other engines must find the same.

use super::Hit;
use super::chunk::View;
use super::engine::{Engine, Plan, needle_at};
use super::frames::{ABSENT_FRAME, ZERO_FRAME};
use super::pointer_set::PointerSet;
use super::structures;
use super::type_slots::{FrameSlots, TypeSlot};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::signature::{Leaf, Mmu, Structure};

/// Runs anywhere.
pub(super) struct Scalar;

impl Engine for Scalar {
    fn has_vectors(&self) -> bool {
        false
    }

    fn scan_frames(&self, plan: &Plan<'_>, range: View<'_>, frames: View<'_>, classes: &mut [u8], hits: &mut Vec<Hit>) {
        for (frame, class) in frames.frames().zip(classes) {
            *class = classify(plan.mmu, frame.bytes);
            match_view(plan, range, frame, hits);
        }
    }

    fn sweep(&self, values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
        for (slot, bytes) in (slots.start.0..).step_by(8).zip(slots.bytes.as_chunks::<8>().0) {
            let value = u64::from_le_bytes(*bytes);
            if values.contains(value) {
                found.push((PhysAddr(slot), value));
            }
        }
    }

    fn type_slots(&self, slot: &TypeSlot, frames: View<'_>, found: &mut Vec<FrameSlots>) {
        for frame in frames.frames() {
            let mut slots = FrameSlots { frame: frame.start, bits: Default::default() };
            let mut before = None;
            for (bits, words) in slots.bits.iter_mut().zip(frame.bytes.as_chunks::<8>().0.chunks(64)) {
                for (word, position) in words.iter().zip(0..) {
                    let value = u64::from_le_bytes(*word);
                    *bits |= u64::from(slot.accepts(value, before)) << position;
                    before = Some(value);
                }
            }
            if !slots.is_empty() {
                found.push(slots);
            }
        }
    }
}

/// Which levels of page table the 4,096 bytes of a frame could be, or [`ZERO_FRAME`]; 0 where there are no rules.
pub(super) fn classify(mmu: Option<&Mmu>, frame: &[u8]) -> u8 {
    let Some(mmu) = mmu else { return 0 };
    let entries = || frame.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    if entries().all(|entry| entry == 0) {
        return ZERO_FRAME;
    }
    let present = || entries().filter(|entry| entry & mmu.present != 0);
    if present().count() == 0 {
        return ABSENT_FRAME;
    }
    if present().any(|entry| entry & mmu.reserved != 0) {
        return 0;
    }
    let mut class = 0;
    for level in &mmu.levels {
        let possible = present().filter(|entry| entry & mmu.leaf_bit != 0).all(|entry| match level.leaf {
            Leaf::Always => true,
            Leaf::ByLeafBit => entry & level.leaf_zero == 0,
            Leaf::Never => false,
        });
        if possible {
            class |= 1 << (level.level - 1);
        }
    }
    class
}

/// Tries all structures, and the needles that stand in slots, at every place in a frame or part of one.
pub(super) fn match_view(plan: &Plan<'_>, range: View<'_>, frame: View<'_>, hits: &mut Vec<Hit>) {
    for (structure, signature) in plan.structures.iter().zip(0..) {
        match_structure(structure, signature, frame, hits);
    }
    for (signature, needle) in &plan.slot_needles {
        let first = frame.start.0.checked_next_multiple_of(needle.align).unwrap_or(u64::MAX);
        let places = (first..frame.end().0).step_by(needle.align as usize);
        hits.extend(places.filter_map(|at| needle_at(needle, *signature, range, PhysAddr(at))));
    }
}

/// Tries one structure at every place in a frame or part of one.
pub(super) fn match_structure(structure: &Structure, signature: u16, frame: View<'_>, hits: &mut Vec<Hit>) {
    hits.extend(places(structure, frame).filter_map(|at| structures::check(structure, signature, frame, at)));
}

/// Where in a frame or part of one the anchor of an aligned structure may begin.
pub(super) fn places(structure: &Structure, frame: View<'_>) -> impl Iterator<Item = usize> + use<> {
    // The first place whose base would be aligned, counted from the frame's own border.
    let phase = structure.anchor().offset % structure.align;
    let first = phase.wrapping_sub(frame.start.0) % structure.align;
    (first as usize..frame.bytes.len().min(FRAME_SIZE as usize)).step_by(structure.align as usize)
}
