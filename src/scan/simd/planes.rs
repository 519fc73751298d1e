//! The sieve in vectors: all slots of a frame, a digit of many of them at a time.

use super::frames::FrameTest;
use super::select::{AHEAD, LINE, prefetch_after};
use crate::addr::FRAME_SIZE;
use crate::scan::byte_vector::ByteVector;
use crate::scan::prefetch::prefetch;
use crate::scan::sieve::{self, Group, PlaneDigit, QUAD, RELATIVE, SOURCES, Sieve};

const FRAME: usize = FRAME_SIZE as usize;
/// Slots of a frame.
const SLOTS: usize = FRAME / 8;
/// Slots of the widest vector.
const WIDEST: usize = 64;
/// Slots of a frame, and a vector on either side.
const PADDED: usize = WIDEST + SLOTS + WIDEST;
/// Vectors that are looked up together: as many as there are registers for.
const TOGETHER: usize = 8;
/// A byte for which every table has zeros.
const NO_DIGIT: u8 = 0x80;

/// A frame in which each slot holds its own place.
static PLACES: [[u8; 8]; SLOTS] = {
    let mut places = [[0; 8]; SLOTS];
    let mut slot = 0;
    #[expect(clippy::indexing_slicing, reason = "done by the compiler")]
    while slot < SLOTS {
        places[slot] = (8 * slot as u64).to_le_bytes();
        slot += 1;
    }
    places
};

/// A [`Sieve`] that looks at `QUADS` times four bytes of a slot.
#[repr(align(64))]
pub(super) struct Planes<'a, B: ByteVector, const QUADS: usize> {
    /// The digits of a frame's slots; beside the frame, what is none.
    digits: [[u8; PADDED]; SOURCES],
    /// Lower and upper bytes of the slots' own places, in the order of planes.
    places: [[u8; SLOTS]; 2],
    quads: [B::Quad; QUADS],
    sieve: &'a Sieve,
}

impl<'a, B: ByteVector, const QUADS: usize> Planes<'a, B, QUADS> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `B`.
    #[inline(always)]
    pub(super) unsafe fn new(sieve: &'a Sieve) -> Self {
        const { assert!(QUADS <= sieve::QUADS) };
        const { assert!(B::SLOTS <= WIDEST && SLOTS.is_multiple_of(TOGETHER * B::SLOTS)) };
        // SAFETY: the caller has made sure that the CPU has the instruction set of `B`. Vectors are loaded from a frame, and
        // stored in arrays, each of which holds a whole number of them.
        unsafe {
            let mut places = [[0; SLOTS]; 2];
            for first in (0..SLOTS).step_by(B::SLOTS) {
                let [low, high, ..] = B::planes(PLACES.as_ptr().add(first).cast(), B::quad([0, 1, 2, 3]));
                let [to_low, to_high] = &mut places;
                B::store(low, to_low.as_mut_ptr().add(first));
                B::store(high, to_high.as_mut_ptr().add(first));
            }
            let mut quads = [B::quad([0, 1, 2, 3]); QUADS];
            for (to, bytes) in quads.iter_mut().zip(&sieve.quads) {
                *to = B::quad(*bytes);
            }
            Self { digits: [[NO_DIGIT; PADDED]; SOURCES], places, quads, sieve }
        }
    }

    /// Takes the slots of a vector, from `first` on, apart into digits.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `B`; the slots lie in the frame.
    #[inline(always)]
    unsafe fn take_apart(&mut self, frame: &[u8; FRAME], first: usize) {
        debug_assert!(first + B::SLOTS <= SLOTS);
        // SAFETY: the caller has made sure that the CPU has the instruction set of `B`, and that the slots are in the frame; so
        // are their bytes in the arrays.
        unsafe {
            let slots = frame.as_ptr().add(8 * first);
            let (of_bytes, relative) = self.digits.split_at_mut(RELATIVE);
            for (n, (quad, to)) in self.quads.iter().zip(of_bytes.chunks_exact_mut(2 * QUAD)).enumerate() {
                let planes = B::planes(slots, *quad);
                for (plane, to) in planes.into_iter().zip(to.chunks_exact_mut(2)) {
                    let plane = plane.in_order();
                    for (to, digits) in to.iter_mut().zip([plane.low_digits(), plane.high_digits()]) {
                        B::store(digits, to.as_mut_ptr().add(WIDEST + first));
                    }
                }
                if n == 0 && self.sieve.is_relative {
                    let [low, high, ..] = planes;
                    let [low_places, high_places] = &self.places;
                    let places = [B::load(low_places.as_ptr().add(first)), B::load(high_places.as_ptr().add(first))];
                    let [low, high] = B::less([low, high], places);
                    let (low, high) = (low.in_order(), high.in_order());
                    for (to, digits) in
                        relative.iter_mut().zip([low.low_digits(), low.high_digits(), high.low_digits()])
                    {
                        B::store(digits, to.as_mut_ptr().add(WIDEST + first));
                    }
                }
            }
        }
    }

    /// Where the digits are that are looked up for the slots from `first` on.
    #[inline(always)]
    unsafe fn digits_of(&self, digit: &PlaneDigit, first: usize) -> *const u8 {
        debug_assert!(digit.distance.unsigned_abs() <= WIDEST && first < SLOTS && digit.source < SOURCES);
        // SAFETY: the digits of a whole frame are there, and beside them room for a vector, which no distance exceeds.
        unsafe {
            let row = self.digits.as_ptr().add(digit.source).cast::<u8>();
            row.add(WIDEST + first).offset(digit.distance)
        }
    }

    /// The buckets of a group that no slot from `first` on can be in, a vector after the other. Asks for the memory from `ahead`
    /// on meanwhile: nothing is read that was not read before.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `B`; the vectors' slots lie in the frame, and have been taken apart.
    #[inline(always)]
    unsafe fn denied(&self, group: &Group, first: usize, ahead: &mut *const u8) -> [B; TOGETHER] {
        debug_assert!(first + TOGETHER * B::SLOTS <= SLOTS);
        // SAFETY: the caller has made sure that the CPU has the instruction set of `B`. The digits of a whole frame are there,
        // and beside them room for a vector, which no distance exceeds.
        unsafe {
            let mut denied = [B::repeat(&[0; 16]); TOGETHER];
            let mut digits = group.digits.iter();
            while let Some(one) = digits.next() {
                // Two at a time take fewer instructions; the last one may be looked up twice.
                let other = digits.next().unwrap_or(one);
                prefetch(*ahead);
                prefetch(ahead.wrapping_add(LINE));
                *ahead = ahead.wrapping_add(2 * LINE);
                let (one_table, other_table) = (B::repeat(&one.table), B::repeat(&other.table));
                let (one, other) = (self.digits_of(one, first), self.digits_of(other, first));
                for (n, denied) in denied.iter_mut().enumerate() {
                    let by_one = B::look_up(one_table, B::load(one.add(n * B::SLOTS)));
                    let by_other = B::look_up(other_table, B::load(other.add(n * B::SLOTS)));
                    *denied = denied.or(by_one).or(by_other);
                }
            }
            denied
        }
    }
}

impl<B: ByteVector, const QUADS: usize> FrameTest for Planes<'_, B, QUADS> {
    #[inline(always)]
    unsafe fn find(&mut self, frame: &[u8; FRAME], found: &mut impl FnMut(usize, usize)) {
        // SAFETY: the caller has made sure that the CPU has the instruction set of `B`. The slots of a vector lie in the frame,
        // and so do those of `TOGETHER` vectors.
        unsafe {
            for (first, slots) in (0..SLOTS).step_by(B::SLOTS).zip(frame.chunks_exact(8 * B::SLOTS)) {
                prefetch_after(slots, AHEAD);
                self.take_apart(frame, first);
            }
            // What is nearer has been asked for.
            let mut ahead = frame.as_ptr().wrapping_add(FRAME + AHEAD);
            for group in &self.sieve.groups {
                for first in (0..SLOTS).step_by(TOGETHER * B::SLOTS) {
                    let denied = self.denied(group, first, &mut ahead);
                    let mut everywhere = B::repeat(&[u8::MAX; 16]);
                    for denied in denied {
                        everywhere = everywhere.and(denied);
                    }
                    if everywhere.not_full() == 0 {
                        continue;
                    }
                    for (denied, first) in denied.into_iter().zip((first..).step_by(B::SLOTS)) {
                        let mut passed = denied.not_full();
                        if passed == 0 {
                            continue;
                        }
                        let mut bytes = [0; WIDEST];
                        B::store(denied, bytes.as_mut_ptr());
                        while passed != 0 {
                            let slot = passed.trailing_zeros() as usize;
                            passed &= passed - 1;
                            let (place, denied) = (8 * (first + slot), bytes.get(slot).copied().unwrap_or_default());
                            self.sieve.members(frame, place, group, !denied).for_each(|member| found(place, member));
                        }
                    }
                }
            }
        }
    }
}
