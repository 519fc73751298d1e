//! Scanning with vectors: one algorithm, compiled once per instruction set, chosen at run time.

use super::Hit;
use super::chunk::View;
use super::engine::{Engine, FrameRules, Plan};
use super::filter::{Filter, Span};
use super::frames::ZERO_FRAME;
use super::pointer_set::{PointerSet, Search};
use super::scalar::{Scalar, match_structure};
use super::structures;
use super::vector::Vector;
use crate::addr::{FRAME_SIZE, PhysAddr};

const FRAME: usize = FRAME_SIZE as usize;
/// Vectors whose matches are looked at together: most of the time there are none.
const GROUP: usize = 4;
/// Bytes of a frame between two looks at whether it can still be a page table.
const TYPING_BLOCK: usize = 512;

/// Classifies and matches whole frames.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn scan_frames<V: Vector>(plan: &Plan<'_>, frames: View<'_>, classes: &mut [u8], hits: &mut Vec<Hit>) {
    let starts = (0..).map(|n: u64| PhysAddr(frames.start.0 + n * FRAME_SIZE));
    for ((bytes, class), start) in frames.bytes.as_chunks::<FRAME>().0.iter().zip(classes).zip(starts) {
        // SAFETY: as for this function.
        *class = unsafe { classify::<V>(plan.rules.as_ref(), bytes) };
        let frame = View { start, bytes };
        for ((structure, anchor), signature) in plan.structures.iter().zip(&plan.anchors).zip(0..) {
            if *class == ZERO_FRAME && !anchor.may_be_zero {
                continue;
            }
            let survivor = |at: usize| hits.extend(structures::check(structure, signature, frame, at));
            // SAFETY: as for this function.
            unsafe {
                match anchor.filter {
                    Filter::Masked { mask, value, slot_step } => {
                        let (mask, step) = (V::splat(mask), V::splat(slot_step * V::BYTES as u64));
                        let mut wanted = V::splat(value);
                        if slot_step != 0 {
                            wanted = wanted.add(V::slots());
                        }
                        let test = |v: V| {
                            let different = v.xor(wanted);
                            wanted = wanted.add(step);
                            different.lacks(mask)
                        };
                        select::<V>(bytes, test, survivor);
                    }
                    Filter::Span(span) => {
                        let span = VectorSpan::<V>::new(span);
                        select::<V>(bytes, |v| span.holds(v), survivor);
                    }
                    Filter::None => match_structure(structure, signature, frame, hits),
                }
            }
        }
    }
}

/// Calls `survivor` with the byte position of every slot that passes `test`; `test` sees the vectors in order.
/// Bytes past the last whole group of vectors are not looked at; their number is returned.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn select<V: Vector>(
    bytes: &[u8],
    mut test: impl FnMut(V) -> V::Mask,
    mut survivor: impl FnMut(usize),
) -> usize {
    let groups = bytes.chunks_exact(GROUP * V::BYTES);
    let rest = groups.remainder().len();
    for (group, start) in groups.zip((0..).step_by(GROUP * V::BYTES)) {
        let vectors = group.as_ptr();
        // SAFETY: as for this function; the group holds GROUP vectors.
        unsafe {
            let masks: [V::Mask; GROUP] = std::array::from_fn(|n| test(V::load(vectors.add(n * V::BYTES))));
            let [a, b, c, d] = masks;
            if !V::any(V::either(V::either(a, b), V::either(c, d))) {
                continue;
            }
            for (mask, vector) in masks.into_iter().zip((start..).step_by(V::BYTES)) {
                let mut bits = V::bits(mask);
                while bits != 0 {
                    survivor(vector + bits.trailing_zeros() as usize * 8);
                    bits &= bits - 1;
                }
            }
        }
    }
    rest
}

/// A [`Span`] in every lane.
#[derive(Clone, Copy)]
struct VectorSpan<V> {
    right: V,
    left: V,
    low: V,
    bound: V,
}

impl<V: Vector> VectorSpan<V> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(span: Span) -> Self {
        // SAFETY: as for this function.
        unsafe {
            Self {
                right: V::splat(span.rotate.into()),
                left: V::splat(u64::from(64 - span.rotate)),
                // Subtracting the bias is adding it, modulo 2^64.
                low: V::splat(span.low.wrapping_add(V::BIAS)),
                bound: V::splat(span.span.wrapping_add(V::BIAS)),
            }
        }
    }

    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn holds(self, v: V) -> V::Mask {
        // SAFETY: as for this function.
        unsafe { v.rotate(self.right, self.left).sub(self.low).at_most(self.bound) }
    }
}

/// Which levels of page table a frame could be, or [`ZERO_FRAME`]: as [`super::scalar::classify`].
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn classify<V: Vector>(rules: Option<&FrameRules>, frame: &[u8; FRAME]) -> u8 {
    let nothing = FrameRules::default();
    let rules = rules.unwrap_or(&nothing);
    // SAFETY: as for this function; the loads end at the end of the frame.
    unsafe {
        let present = V::splat(rules.present);
        let present_leaf = V::splat(rules.present | rules.leaf_bit);
        let reserved = V::splat(rules.reserved);
        let (mut any, mut tables, mut leaves) = (V::splat(0), V::splat(0), V::splat(0));
        for block in frame.as_chunks::<TYPING_BLOCK>().0 {
            for vector in block.chunks_exact(V::BYTES) {
                let entries = V::load(vector.as_ptr());
                any = any.or(entries);
                tables = tables.or(entries.keep(entries.and(present).equal(present)));
                leaves = leaves.or(entries.keep(entries.and(present_leaf).equal(present_leaf)));
            }
            if tables.has_any(reserved) {
                return 0;
            }
        }
        if !any.has_any(any) { ZERO_FRAME } else { rules.class(tables.fold(), leaves.fold()) }
    }
}

/// Adds every slot whose value is in the set.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn sweep<V: Vector>(values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
    let value_at = |at: usize| slots.bytes.get(at..).and_then(<[u8]>::first_chunk).map(|b| u64::from_le_bytes(*b));
    let mut survivor = |at: usize| {
        if let Some(value) = value_at(at)
            && values.contains_quick(value)
        {
            found.push((PhysAddr(slots.start.0 + at as u64), value));
        }
    };
    // SAFETY: as for this function.
    let rest = unsafe {
        match values.search() {
            Search::Few1(values) => select_equal::<V, 1>(slots.bytes, values, &mut survivor),
            Search::Few2(values) => select_equal::<V, 2>(slots.bytes, values, &mut survivor),
            Search::Few4(values) => select_equal::<V, 4>(slots.bytes, values, &mut survivor),
            Search::Few8(values) => select_equal::<V, 8>(slots.bytes, values, &mut survivor),
            Search::Spans1(spans) => select_spans::<V, 1>(slots.bytes, spans, &mut survivor),
            Search::Spans4(spans) => select_spans::<V, 4>(slots.bytes, spans, &mut survivor),
        }
    };
    let tail = PhysAddr(slots.end().0 - rest as u64)..slots.end();
    Scalar.sweep(values, slots.part(tail), found);
}

/// The slots equal to one of a few values.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn select_equal<V: Vector, const N: usize>(
    bytes: &[u8],
    values: &[u64; N],
    survivor: impl FnMut(usize),
) -> usize {
    // SAFETY: as for this function.
    unsafe {
        let values = values.map(|value| V::splat(value));
        let test = |v: V| values.iter().fold(V::none(), |mask, value| V::either(mask, v.equal(*value)));
        select::<V>(bytes, test, survivor)
    }
}

/// The slots in one of a few spans.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn select_spans<V: Vector, const N: usize>(
    bytes: &[u8],
    spans: &[Span; N],
    survivor: impl FnMut(usize),
) -> usize {
    // SAFETY: as for this function.
    unsafe {
        let spans = spans.map(|span| VectorSpan::<V>::new(span));
        let test = |v: V| spans.iter().fold(V::none(), |mask, span| V::either(mask, span.holds(v)));
        select::<V>(bytes, test, survivor)
    }
}

/// An engine of the algorithm above for one instruction set.
macro_rules! engine {
    ($(#[$doc:meta])* $engine:ident, $vector:ty, $feature:tt, $detected:expr) => {
        $(#[$doc])*
        pub(super) struct $engine(());

        impl $engine {
            /// The engine, where the CPU has the instruction set.
            pub(super) fn detect() -> Option<&'static dyn Engine> {
                static ENGINE: $engine = $engine(());
                $detected.then_some(&ENGINE)
            }
        }

        impl Engine for $engine {
            fn scan_frames(&self, plan: &Plan<'_>, frames: View<'_>, classes: &mut [u8], hits: &mut Vec<Hit>) {
                #[target_feature(enable = $feature)]
                fn compiled(plan: &Plan<'_>, frames: View<'_>, classes: &mut [u8], hits: &mut Vec<Hit>) {
                    // SAFETY: this function is only called where the feature is there.
                    unsafe { scan_frames::<$vector>(plan, frames, classes, hits) }
                }
                // SAFETY: `detect`, the only constructor, has found the feature.
                unsafe { compiled(plan, frames, classes, hits) }
            }

            fn sweep(&self, values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
                #[target_feature(enable = $feature)]
                fn compiled(values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
                    // SAFETY: this function is only called where the feature is there.
                    unsafe { sweep::<$vector>(values, slots, found) }
                }
                // SAFETY: `detect`, the only constructor, has found the feature.
                unsafe { compiled(values, slots, found) }
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
engine!(
    /// Four slots at a time.
    Neon, super::vector::Neon, "neon",
    // A slot is little-endian, the lanes are as the computer is.
    (cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon"))
);
#[cfg(target_arch = "x86_64")]
engine!(
    /// Four slots at a time.
    Avx2, std::arch::x86_64::__m256i, "avx2", std::is_x86_feature_detected!("avx2")
);
#[cfg(target_arch = "x86_64")]
engine!(
    /// Eight slots at a time.
    Avx512, std::arch::x86_64::__m512i, "avx512f", std::is_x86_feature_detected!("avx512f")
);
