//! The pass over frames: what stands in each, and while it is in the cache its class.

use std::marker::PhantomData;

use super::planes::Planes;
use super::select::{AHEAD, SlotTest, prefetch_after, select};
use super::slot_tests::{FewTest, MaskedTest, RelativeTest, VectorSpan};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::scan::Hit;
use crate::scan::byte_vector::ByteVector;
use crate::scan::chunk::View;
use crate::scan::engine::{FrameRules, Pass, Plan};
use crate::scan::few::{MAX_OWN, MAX_PLAIN};
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
pub(super) unsafe fn scan_frames<V: Vector + ByteVector>(
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
                            let test = Slots::<V, _>::new(MaskedTest::new(mask, value));
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        Filter::MaskedRelative { mask, value } => {
                            let test = Slots::<V, _>::new(RelativeTest(MaskedTest::new(mask, value)));
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                        Filter::Span(span) => {
                            let test = Slots::<V, _>::new(VectorSpan::new(span));
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }
                    }
                }
                Pass::Few(few) => {
                    let found = &mut |frame: View<'_>, at: usize, _| {
                        few.members.iter().for_each(|index| plan.check(*index, range, frame, at, hits));
                    };
                    macro_rules! pass {
                        ($own:literal, $plain:literal) => {{
                            let test = Slots::<V, _>::new(FewTest::<V, $own, $plain>::new(few));
                            V::call_compiled(FramePass { test, rules, frames, classes, found });
                        }};
                    }
                    const { assert!(MAX_OWN == 2 && MAX_PLAIN == 4) };
                    match (few.own.len(), few.plain.len()) {
                        (0, 0..=2) => pass!(0, 2),
                        (0, _) => pass!(0, 4),
                        (1, 0) => pass!(1, 0),
                        (1, 1..=2) => pass!(1, 2),
                        (1, _) => pass!(1, 4),
                        (_, 0) => pass!(2, 0),
                        (_, 1..=2) => pass!(2, 2),
                        (..) => pass!(2, 4),
                    }
                }
                Pass::Many(sieve) => {
                    let found = &mut |frame: View<'_>, at: usize, index| plan.check(index, range, frame, at, hits);
                    if sieve.quads.len() > 1 {
                        let test = Planes::<V, 2>::new(sieve);
                        V::call_compiled(FramePass { test, rules, frames, classes, found });
                    } else {
                        let test = Planes::<V, 1>::new(sieve);
                        V::call_compiled(FramePass { test, rules, frames, classes, found });
                    }
                }
            }
        }
        if let Some(rules) = rules {
            let (test, found) = (Nothing, &mut |_: View<'_>, _, _| ());
            V::call_compiled(FramePass { test, rules: Some(rules), frames, classes, found });
        }
    }
    for (signature, structure) in &plan.unaligned {
        frames.frames().for_each(|frame| match_structure(structure, *signature, frame, hits));
    }
}

/// What is looked for in a frame.
pub(super) trait FrameTest {
    /// Calls `found` with the place of every slot that may be what is looked for, and with the number of what it may be.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of the test's vectors.
    unsafe fn find(&mut self, frame: &[u8; FRAME], found: &mut impl FnMut(usize, usize));
}

/// Nothing: for scans for page tables alone.
struct Nothing;

impl FrameTest for Nothing {
    #[inline(always)]
    unsafe fn find(&mut self, _frame: &[u8; FRAME], _found: &mut impl FnMut(usize, usize)) {}
}

/// One thing, which a single test of a slot finds.
struct Slots<V, T> {
    test: T,
    vectors: PhantomData<V>,
}

impl<V: Vector, T: SlotTest<V>> Slots<V, T> {
    fn new(test: T) -> Self {
        Self { test, vectors: PhantomData }
    }
}

impl<V: Vector, T: SlotTest<V>> FrameTest for Slots<V, T> {
    #[inline(always)]
    unsafe fn find(&mut self, frame: &[u8; FRAME], found: &mut impl FnMut(usize, usize)) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe { select(frame, &self.test, &mut |at| found(at, 0)) };
    }
}

/// One pass over all frames, which fills in their classes if `rules` is there.
struct FramePass<'a, V, T> {
    test: T,
    rules: Option<TableRules<'a, V>>,
    frames: View<'a>,
    classes: &'a mut [u8],
    /// Gets the frame, the place in it, and the number of what may be there.
    found: &'a mut dyn FnMut(View<'_>, usize, usize),
}

impl<V: Vector, T: FrameTest> Work for FramePass<'_, V, T> {
    #[inline(always)]
    unsafe fn run(mut self) {
        let starts = (0..).map(|n: u64| PhysAddr(self.frames.start.0 + n * FRAME_SIZE));
        let frames = self.frames.bytes.as_chunks::<FRAME>().0;
        for ((frame, class), start) in frames.iter().zip(self.classes).zip(starts) {
            let mut found = |at: usize, index: usize| (self.found)(View { start, bytes: frame }, at, index);
            // SAFETY: the caller has made sure that the CPU has the instruction set of `V`, which is that of the test.
            unsafe {
                self.test.find(frame, &mut found);
                if let Some(rules) = self.rules {
                    *class = classify::<V>(rules, frame);
                }
            }
        }
    }
}

/// The class of a frame, as [`crate::scan::scalar::classify`] says. Most frames are no page tables, and are read no further than
/// that shows.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn classify<V: Vector>(rules: TableRules<'_, V>, frame: &[u8; FRAME]) -> u8 {
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`. Vectors are loaded from blocks, each of which
    // holds a whole number of them.
    unsafe {
        const { assert!(BLOCK.is_multiple_of(V::BYTES)) };
        // All entries, or-ed, those that are present, and those of them with the leaf bit.
        let (mut seen, mut present, mut leaves) = (V::splat(0), V::splat(0), V::splat(0));
        for block in frame.as_chunks::<BLOCK>().0 {
            // What is nearer has been asked for, when this frame was searched.
            prefetch_after(block, FRAME + AHEAD);
            for vector in (0..BLOCK).step_by(V::BYTES) {
                let v = V::load(block.as_ptr().add(vector));
                seen = seen.or(v);
                let here = v.keep(v.has(rules.present));
                present = present.or(here);
                leaves = leaves.or(here.keep(here.has(rules.leaf)));
            }
            if present.has_any(rules.reserved) {
                return rules.rules.class(rules.rules.reserved, 0);
            }
        }
        if !seen.has_any(seen) {
            return ZERO_FRAME;
        }
        rules.rules.class(present.fold(), leaves.fold())
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
