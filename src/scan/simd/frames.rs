//! The pass over frames: each vector is loaded once, to classify the frame and to find what stands in it.

use super::select::{Accumulator, Ignore, SlotTest, Union, select};
use super::slot_tests::{MaskedTest, NoTest, RelativeTest, SieveTest, VectorSpan};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::scan::Hit;
use crate::scan::chunk::View;
use crate::scan::engine::{FrameRules, Pass, Plan};
use crate::scan::filter::Filter;
use crate::scan::frames::ZERO_FRAME;
use crate::scan::scalar::match_structure;
use crate::scan::vector::{Vector, Work};

const FRAME: usize = FRAME_SIZE as usize;
/// After so many bytes of a frame it is checked whether it can still be a page table.
const BLOCK: usize = 512;

/// Classifies whole frames, and matches what stands in them.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn scan_frames<V: Vector, const RELATIVE: usize, const FEW: usize, const MANY: usize>(
    plan: &Plan<'_>,
    range: View<'_>,
    frames: View<'_>,
    classes: &mut [u8],
    hits: &mut Vec<Hit>,
) {
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
    unsafe {
        #[expect(clippy::manual_map, reason = "a closure may lack the instruction set")]
        let mut rules = match &plan.rules {
            Some(rules) => Some(TableRules::<V>::new(rules)),
            None => None,
        };
        for pass in &plan.passes {
            let rules = rules.take();
            match pass {
                Pass::One(filter, index) => {
                    let found = &mut |frame: View<'_>, at: usize, _| plan.check(*index, range, frame, at, hits);
                    match *filter {
                        Filter::Masked { mask, value } => {
                            let test = MaskedTest { mask: V::splat(mask), value: V::splat(value) };
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        Filter::MaskedRelative { mask, value, may_be_zero } => {
                            let masked = MaskedTest { mask: V::splat(mask), value: V::splat(value) };
                            let test = RelativeTest { masked, zeros: V::splat(if may_be_zero { u64::MAX } else { 0 }) };
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        Filter::Span(span) => {
                            V::call_compiled(FramePass { test: VectorSpan::new(span), rules, frames, classes, found });
                        }
                    }
                }
                Pass::Many(sieve) => {
                    let found = &mut |frame: View<'_>, at: usize, bits: u64| {
                        sieve.members(bits).for_each(|index| plan.check(index, range, frame, at, hits));
                    };
                    let (relative, few) = (!sieve.relative.is_empty(), sieve.value.len() <= FEW);
                    match (sieve.skips_zeros, relative, few) {
                        (true, false, true) => {
                            let test = SieveTest::<V, true, 0, FEW>::new(sieve);
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        (true, false, false) => {
                            let test = SieveTest::<V, true, 0, MANY>::new(sieve);
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        (true, true, true) => {
                            let test = SieveTest::<V, true, RELATIVE, FEW>::new(sieve);
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        (true, true, false) => {
                            let test = SieveTest::<V, true, RELATIVE, MANY>::new(sieve);
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        (false, ..) => {
                            let test = SieveTest::<V, false, RELATIVE, MANY>::new(sieve);
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                    }
                }
            }
        }
        if let Some(rules) = rules {
            V::call_compiled(FramePass { test: NoTest, rules: Some(rules), frames, classes, found: &mut |_, _, _| () });
        }
    }
    for (signature, structure) in &plan.unaligned {
        frames.frames().for_each(|frame| match_structure(structure, *signature, frame, hits));
    }
}

/// One pass over all frames, which fills in their classes if `rules` is there.
struct FramePass<'a, V, T> {
    test: T,
    rules: Option<TableRules<'a, V>>,
    frames: View<'a>,
    classes: &'a mut [u8],
    /// Gets the frame, the place in it, and bits that say what it could be.
    found: &'a mut dyn FnMut(View<'_>, usize, u64),
}

impl<V: Vector, T: SlotTest<V>> Work for FramePass<'_, V, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let starts = (0..).map(|n: u64| PhysAddr(self.frames.start.0 + n * FRAME_SIZE));
        let frames = self.frames.bytes.as_chunks::<FRAME>().0;
        for ((frame, class), start) in frames.iter().zip(self.classes).zip(starts) {
            let mut found = |at: usize, bits: u64| (self.found)(View { start, bytes: frame }, at, bits);
            // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
            unsafe {
                match self.rules {
                    Some(rules) => *class = classify::<V, T>(&self.test, rules, frame, &mut found),
                    None => _ = select(frame, 0..FRAME, &self.test, &mut Ignore, &mut found),
                }
            }
        }
    }
}

/// Reads a frame once: its class, as [`crate::scan::scalar::classify`] says, and the slots that pass the test.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn classify<V: Vector, T: SlotTest<V>>(
    test: &T,
    rules: TableRules<'_, V>,
    frame: &[u8; FRAME],
    found: &mut impl FnMut(usize, u64),
) -> u8 {
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
    unsafe {
        let mut table = TableEvidence { rules, seen: Union(V::splat(0)), present: V::splat(0), leaves: V::splat(0) };
        let mut could_be_table = true;
        for start in (0..FRAME).step_by(BLOCK) {
            let block = start..start + BLOCK;
            if could_be_table {
                select(frame, block, test, &mut table, found);
                could_be_table = !table.present.has_any(rules.reserved);
            } else {
                select(frame, block, test, &mut table.seen, found);
            }
        }
        if !table.seen.0.has_any(table.seen.0) {
            return ZERO_FRAME;
        }
        rules.rules.class(table.present.fold(), table.leaves.fold())
    }
}

/// By what a page table is recognized: its present entries, or-ed, and those of them with the leaf bit.
struct TableEvidence<'a, V> {
    rules: TableRules<'a, V>,
    seen: Union<V>,
    present: V,
    leaves: V,
}

impl<V: Vector> Accumulator<V> for TableEvidence<'_, V> {
    #[inline(always)]
    unsafe fn add(&mut self, v: V) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            self.seen.add(v);
            let present = v.keep(v.and(self.rules.present).equal(self.rules.present));
            self.present = self.present.or(present);
            self.leaves = self.leaves.or(present.keep(present.and(self.rules.leaf).equal(self.rules.leaf)));
        }
    }
}

/// The rules of page tables in every lane.
#[derive(Clone, Copy)]
struct TableRules<'a, V> {
    rules: &'a FrameRules,
    present: V,
    leaf: V,
    reserved: V,
}

impl<'a, V: Vector> TableRules<'a, V> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(rules: &'a FrameRules) -> Self {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            Self {
                rules,
                present: V::splat(rules.present),
                leaf: V::splat(rules.leaf_bit),
                reserved: V::splat(rules.reserved),
            }
        }
    }
}
