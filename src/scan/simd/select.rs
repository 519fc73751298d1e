//! The loop over slots: which of them pass a test.

use crate::scan::prefetch::prefetch;
use crate::scan::vector::Vector;

/// Vectors that are tested together: most of the time none of them passes.
const GROUP: usize = 4;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
/// How far ahead memory is asked for. Operations that wait for a load fill the core's scheduler, so that it does not
/// look far ahead by itself where there are many for each load.
pub(super) const AHEAD: usize = 2048;

/// Asks for the memory so far after these bytes.
#[inline(always)]
pub(super) fn prefetch_after(bytes: &[u8], distance: usize) {
    for line in bytes.chunks(LINE) {
        prefetch(line.as_ptr().wrapping_add(distance));
    }
}

/// A test of slots.
pub(super) trait SlotTest<V: Vector>: Copy {
    /// The lanes that may be what is looked for.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    unsafe fn test(&self, values: V, places: V) -> V::Mask;
}

/// Calls `found` with the place of every slot of `bytes` that passes `test`.
/// Bytes past the last whole group of vectors are not looked at; their number is returned.
///
/// Tests are traits, not closures: only functions can be told to be inlined, and one that is not would lack the
/// instruction set.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn select<V: Vector, T: SlotTest<V>>(bytes: &[u8], test: &T, found: &mut impl FnMut(usize)) -> usize {
    let groups = bytes.chunks_exact(GROUP * V::BYTES);
    let rest = groups.remainder().len();
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`. A vector is loaded from a group, which
    // holds `GROUP` of them.
    unsafe {
        let step = V::splat(V::BYTES as u64);
        let mut slots = V::slots();
        for (group, start) in groups.zip((0..).step_by(GROUP * V::BYTES)) {
            prefetch_after(group, AHEAD);
            let mut tested = [V::none(); GROUP];
            let mut any = V::none();
            for (n, passed) in tested.iter_mut().enumerate() {
                *passed = test.test(V::load(group.as_ptr().add(n * V::BYTES)), slots);
                any = V::either(any, *passed);
                slots = slots.add(step);
            }
            if V::any(any) {
                for (passed, place) in tested.into_iter().zip((start..).step_by(V::BYTES)) {
                    let mut bits = V::bits(passed);
                    while bits != 0 {
                        found(place + bits.trailing_zeros() as usize * 8);
                        bits &= bits - 1;
                    }
                }
            }
        }
    }
    rest
}
