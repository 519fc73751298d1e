//! The loop over slots: which of them pass a test, with whatever else is to be learned of the same vectors.

use std::ops::Range;

use crate::scan::prefetch::prefetch;
use crate::scan::vector::Vector;

/// The most vectors that are tested together.
const MAX_GROUP: usize = 8;
/// Bytes of a cache line.
const LINE: usize = 64;
/// How far ahead memory is asked for. Operations that wait for a load fill the core's scheduler, so that it does not
/// look far ahead by itself where there are many for each load.
const AHEAD: usize = 2048;

/// A test of slots.
pub(super) trait SlotTest<V: Vector>: Copy {
    /// What the test learns of the slots of a vector besides whether they pass.
    type Known: Copy;
    /// Vectors that are tested together: most of the time none of them passes. More of them mean fewer branches, where
    /// a few slots of some frames always pass.
    const GROUP: usize = 4;

    /// The lanes that may be what is looked for.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, Self::Known);

    /// Calls `found` with the place of every slot in the vector at `place` of `bytes` that passes, and with what it
    /// could be as bits.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`, and the vector lies in `bytes`.
    #[inline(always)]
    unsafe fn survivors(
        &self,
        passed: (V::Mask, Self::Known),
        _bytes: &[u8],
        place: usize,
        found: &mut impl FnMut(usize, u64),
    ) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        let mut bits = unsafe { V::bits(passed.0) };
        while bits != 0 {
            found(place + bits.trailing_zeros() as usize * 8, u64::MAX);
            bits &= bits - 1;
        }
    }
}

/// Learns from every vector that is loaded.
pub(super) trait Accumulator<V: Vector> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    unsafe fn add(&mut self, v: V);
}

/// Watches nothing.
pub(super) struct Ignore;

impl<V: Vector> Accumulator<V> for Ignore {
    #[inline(always)]
    unsafe fn add(&mut self, _v: V) {}
}

/// All vectors, or-ed.
pub(super) struct Union<V>(pub(super) V);

impl<V: Vector> Accumulator<V> for Union<V> {
    #[inline(always)]
    unsafe fn add(&mut self, v: V) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
        self.0 = unsafe { self.0.or(v) };
    }
}

/// Calls `found` for every slot of `places` that passes `test`, as [`SlotTest::survivors`] does.
/// Bytes past the last whole group of vectors are not looked at; their number is returned.
///
/// Tests and accumulators are traits, not closures: only functions can be told to be inlined, and one that is not
/// would lack the instruction set.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn select<V: Vector, T: SlotTest<V>, W: Accumulator<V>>(
    bytes: &[u8],
    places: Range<usize>,
    test: &T,
    accumulator: &mut W,
    found: &mut impl FnMut(usize, u64),
) -> usize {
    let looked_at = bytes.get(places.clone()).unwrap_or_default();
    let groups = looked_at.chunks_exact(T::GROUP * V::BYTES);
    let rest = groups.remainder().len();
    const { assert!(T::GROUP <= MAX_GROUP) };
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`. A vector is loaded from a group, which
    // holds `T::GROUP` of them. Survivors are asked for at places of vectors that were loaded from `bytes`.
    unsafe {
        let step = V::splat(V::BYTES as u64);
        let mut slots = V::slots().add(V::splat(places.start as u64));
        for (group, start) in groups.zip((places.start..).step_by(T::GROUP * V::BYTES)) {
            // The first vector only fills the array, to be tested in its turn.
            let mut tested = [test.test(V::splat(0), slots); MAX_GROUP];
            let mut any = V::none();
            for (n, tested) in tested.iter_mut().enumerate().take(T::GROUP) {
                let vector = group.as_ptr().add(n * V::BYTES);
                let v = V::load(vector);
                if n * V::BYTES % LINE == 0 {
                    prefetch(vector.wrapping_add(AHEAD));
                }
                accumulator.add(v);
                *tested = test.test(v, slots);
                any = V::either(any, tested.0);
                slots = slots.add(step);
            }
            if V::any(any) {
                for (passed, place) in tested.into_iter().take(T::GROUP).zip((start..).step_by(V::BYTES)) {
                    if V::any(passed.0) {
                        test.survivors(passed, bytes, place, found);
                    }
                }
            }
        }
    }
    rest
}
