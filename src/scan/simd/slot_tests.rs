//! Tests of slots: a filter or a [`Sieve`] in registers, or the values of a sweep.

use super::select::SlotTest;
use crate::scan::filter::Span;
use crate::scan::sieve::{self, Neighbour, Sieve};
use crate::scan::vector::Vector;

/// A sieve that needs no more digits of the value lets hardly anything through.
const FEW_DIGITS: usize = 3;
/// Neighbours of slots that are tested before it is seen whether that left any.
const AT_ONCE: usize = 3;

/// For scans that look for nothing but page tables.
#[derive(Clone, Copy)]
pub(super) struct NoTest;

impl<V: Vector> SlotTest<V> for NoTest {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, _values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        (unsafe { V::none() }, ())
    }
}

/// [`Filter::Masked`] in every lane.
#[derive(Clone, Copy)]
pub(super) struct MaskedTest<V> {
    pub(super) mask: V,
    pub(super) value: V,
}

impl<V: Vector> SlotTest<V> for MaskedTest<V> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        (unsafe { values.xor(self.value).lacks(self.mask) }, ())
    }
}

/// [`Filter::MaskedRelative`] in every lane.
#[derive(Clone, Copy)]
pub(super) struct RelativeTest<V> {
    pub(super) masked: MaskedTest<V>,
    /// All bits where zeros may pass, else none: in a frame of zeros one slot would, and be checked.
    pub(super) zeros: V,
}

impl<V: Vector> SlotTest<V> for RelativeTest<V> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, ()) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let passed = self.masked.test(values.sub(places), places).0;
            let seen = values.or(self.zeros);
            (V::both(passed, seen.has(seen)), ())
        }
    }
}

/// The tables of a [`Sieve`] in registers: `RELATIVE` digits of the value less its place, `VALUE` of the value.
#[derive(Clone, Copy)]
pub(super) struct SieveTest<'a, V: Vector, const SKIP_ZEROS: bool, const RELATIVE: usize, const VALUE: usize> {
    relative: [(V, V::Lookup); RELATIVE],
    value: [(V, V::Lookup); VALUE],
    neighbours: &'a [Neighbour],
}

impl<'a, V: Vector, const SKIP_ZEROS: bool, const RELATIVE: usize, const VALUE: usize>
    SieveTest<'a, V, SKIP_ZEROS, RELATIVE, VALUE>
{
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    pub(super) unsafe fn new(sieve: &'a Sieve) -> Self {
        let neighbours = &sieve.neighbours;
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            Self {
                relative: digits::<V, RELATIVE>(&sieve.relative),
                value: digits::<V, VALUE>(&sieve.value),
                neighbours,
            }
        }
    }
}

/// Shifts and tables in registers; tables that allow all where the sieve has fewer.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn digits<V: Vector, const N: usize>(digits: &[(u32, sieve::Table)]) -> [(V, V::Lookup); N] {
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
    unsafe {
        let mut registers = [(V::splat(0), V::lookup_table(&[u64::MAX; 16])); N];
        for (to, (shift, table)) in registers.iter_mut().zip(digits) {
            *to = (V::splat((*shift).into()), V::lookup_table(table));
        }
        registers
    }
}

impl<V: Vector, const SKIP_ZEROS: bool, const RELATIVE: usize, const VALUE: usize> SlotTest<V>
    for SieveTest<'_, V, SKIP_ZEROS, RELATIVE, VALUE>
{
    /// The entries that each slot could be.
    type Known = V;
    const GROUP: usize = if VALUE > FEW_DIGITS { V::SIEVE_GROUP } else { 4 };

    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, V) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut left = V::splat(V::LOOKED_UP);
            for (shift, table) in &self.value {
                left = left.and(values.digit(*shift).look_up(*table));
            }
            if RELATIVE > 0 {
                let relative = values.sub(places);
                for (shift, table) in &self.relative {
                    left = left.and(relative.digit(*shift).look_up(*table));
                }
            }
            let passed = left.has(left);
            (if SKIP_ZEROS { V::both(passed, values.has(values)) } else { passed }, left)
        }
    }

    #[inline(always)]
    unsafe fn survivors(&self, passed: (V::Mask, V), bytes: &[u8], place: usize, found: &mut impl FnMut(usize, u64)) {
        debug_assert!(place + V::BYTES <= bytes.len());
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`, and that a vector lies in the bytes,
        // so that the subtraction does not wrap. Neighbours are loaded only where a whole vector of them lies in the bytes.
        unsafe {
            let mut left = passed.1.keep(passed.0);
            for neighbours in self.neighbours.chunks(AT_ONCE) {
                if !left.has_any(left) {
                    return;
                }
                for neighbour in neighbours {
                    // Where some lie in another frame, the exact check decides.
                    let at = place.wrapping_add_signed(neighbour.distance);
                    if at > bytes.len() - V::BYTES {
                        continue;
                    }
                    let beside = V::load(bytes.as_ptr().add(at));
                    let mut allowed = V::splat(neighbour.zero).or(V::splat(u64::MAX).keep(beside.has(beside)));
                    for (shift, table) in &neighbour.digits {
                        let digit = beside.digit(V::splat((*shift).into()));
                        allowed = allowed.and(digit.look_up(V::lookup_table(table)));
                    }
                    left = left.and(allowed);
                }
            }
            let mut bits = V::bits(left.has(left));
            let mut lanes = [0; 8];
            V::store(left, &mut lanes);
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize;
                found(place + lane * 8, lanes.get(lane).copied().unwrap_or_default());
                bits &= bits - 1;
            }
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
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        (unsafe { values.rotate(self.right, self.left).sub(self.low).at_most(self.bound) }, ())
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
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut mask = V::none();
            for value in &self.0 {
                mask = V::either(mask, values.equal(*value));
            }
            (mask, ())
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
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, ()) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        unsafe {
            let mut mask = V::none();
            for span in &self.0 {
                mask = V::either(mask, span.test(values, places).0);
            }
            (mask, ())
        }
    }
}
