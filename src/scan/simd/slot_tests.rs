//! Tests of slots: a filter in registers, or the values of a sweep.

use super::select::SlotTest;
use crate::scan::few::{Bits, Few, MAX_PLAIN};
use crate::scan::filter::Span;
use crate::scan::vector::Vector;

/// [`Filter::Masked`] in every lane; bits of the value that are not in the mask are not set.
#[derive(Clone, Copy)]
pub(super) struct MaskedTest<V> {
    mask: V,
    value: V,
}

impl<V: Vector> MaskedTest<V> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    pub(super) unsafe fn new(mask: u64, value: u64) -> Self {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe { Self { mask: V::splat(mask), value: V::splat(value & mask) } }
    }
}

impl<V: Vector> SlotTest<V> for MaskedTest<V> {
    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> V::Mask {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe { values.equal_in(self.mask, self.value) }
    }
}

/// [`Filter::MaskedRelative`] in every lane.
#[derive(Clone, Copy)]
pub(super) struct RelativeTest<V>(pub(super) MaskedTest<V>);

impl<V: Vector> SlotTest<V> for RelativeTest<V> {
    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> V::Mask {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe { self.0.test(values.sub(places), places) }
    }
}

/// [`Few`] in every lane.
#[derive(Clone, Copy)]
pub(super) struct FewTest<V, const OWN: usize, const PLAIN: usize> {
    own: [MaskedTest<V>; OWN],
    plain: [MaskedTest<V>; PLAIN],
}

impl<V: Vector, const OWN: usize, const PLAIN: usize> FewTest<V, OWN, PLAIN> {
    /// `few` has at most so many comparisons of each kind; the last one is done again for those that it lacks.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    pub(super) unsafe fn new(few: &Few) -> Self {
        debug_assert!(few.own.len() <= OWN && few.plain.len() <= PLAIN);
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let all = |bits: &[Bits]| {
                let last = bits.last().copied().unwrap_or_default();
                std::array::from_fn::<Bits, MAX_PLAIN, _>(|n| bits.get(n).copied().unwrap_or(last))
            };
            let mut own = [MaskedTest::new(0, 0); OWN];
            for (to, bits) in own.iter_mut().zip(all(&few.own)) {
                *to = MaskedTest::new(bits.mask, bits.value);
            }
            let mut plain = [MaskedTest::new(0, 0); PLAIN];
            for (to, bits) in plain.iter_mut().zip(all(&few.plain)) {
                *to = MaskedTest::new(bits.mask, bits.value);
            }
            Self { own, plain }
        }
    }
}

impl<V: Vector, const OWN: usize, const PLAIN: usize> SlotTest<V> for FewTest<V, OWN, PLAIN> {
    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> V::Mask {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut mask = V::none();
            let distances = values.sub(places);
            for test in &self.own {
                mask = V::either(mask, test.test(distances, places));
            }
            for test in &self.plain {
                mask = V::either(mask, test.test(values, places));
            }
            mask
        }
    }
}

/// A [`Span`] in every lane.
#[derive(Clone, Copy)]
pub(super) struct VectorSpan<V> {
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
    pub(super) unsafe fn new(span: Span) -> Self {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
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
}

impl<V: Vector> SlotTest<V> for VectorSpan<V> {
    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> V::Mask {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe { values.rotate(self.right, self.left).sub(self.low).at_most(self.bound) }
    }
}

/// Equal to one of a few values.
#[derive(Clone, Copy)]
pub(super) struct EqualTest<V, const N: usize>([V; N]);

impl<V: Vector, const N: usize> EqualTest<V, N> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    pub(super) unsafe fn new(values: &[u64; N]) -> Self {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut registers = [V::splat(0); N];
            for (to, value) in registers.iter_mut().zip(values) {
                *to = V::splat(*value);
            }
            Self(registers)
        }
    }
}

impl<V: Vector, const N: usize> SlotTest<V> for EqualTest<V, N> {
    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> V::Mask {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut mask = V::none();
            for value in &self.0 {
                mask = V::either(mask, values.equal(*value));
            }
            mask
        }
    }
}

/// In one of a few spans.
#[derive(Clone, Copy)]
pub(super) struct SpansTest<V, const N: usize>([VectorSpan<V>; N]);

impl<V: Vector, const N: usize> SpansTest<V, N> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    pub(super) unsafe fn new(spans: &[Span; N]) -> Self {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut registers = [VectorSpan::new(Span::new(0, 0, 0)); N];
            for (to, span) in registers.iter_mut().zip(spans) {
                *to = VectorSpan::new(*span);
            }
            Self(registers)
        }
    }
}

impl<V: Vector, const N: usize> SlotTest<V> for SpansTest<V, N> {
    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> V::Mask {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut mask = V::none();
            for span in &self.0 {
                mask = V::either(mask, span.test(values, places));
            }
            mask
        }
    }
}
