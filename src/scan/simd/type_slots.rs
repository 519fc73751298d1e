//! The slots in which the type of an object can stand.

use super::select::SlotTest;
use super::slot_tests::VectorSpan;
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::scan::chunk::View;
use crate::scan::type_slots::{ABOVE_COUNT, COUNT, FrameSlots, TypeSlot, WORDS};
use crate::scan::vector::Vector;

/// Bytes of a frame.
const FRAME: usize = FRAME_SIZE as usize;
/// Bytes of the slots whose bits fill a word.
const GROUP: usize = FRAME / WORDS;

/// Adds the slots of whole frames that look like `slot`, frame by frame; frames without any are left out.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn type_slots<V: Vector>(slot: &TypeSlot, frames: View<'_>, found: &mut Vec<FrameSlots>) {
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`. Vectors are loaded from a frame, which
    // holds a whole number of them; those of the words before begin eight bytes earlier, the first in `start`.
    unsafe {
        let test = VectorSpan::<V>::new(slot.types);
        let (count, above_count) = (V::splat(COUNT), V::splat(ABOVE_COUNT));
        for (frame, address) in frames.bytes.as_chunks::<FRAME>().0.iter().zip((frames.start.0..).step_by(FRAME)) {
            // The word before the frame may be any, as a count may.
            let mut start = [1u64; 8];
            let words = frame.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word));
            start.iter_mut().skip(1).zip(words).for_each(|(to, word)| *to = word);
            let mut slots = FrameSlots { frame: PhysAddr(address), bits: [0; WORDS] };
            for (bits, group) in slots.bits.iter_mut().zip((0..FRAME).step_by(GROUP)) {
                for at in (0..GROUP).step_by(V::BYTES) {
                    let value = frame.as_ptr().add(group + at);
                    let before = if group + at == 0 { start.as_ptr().cast() } else { value.sub(8) };
                    let mut passed = test.test(V::load(value), V::splat(0));
                    if slot.after_count {
                        let before = V::load(before);
                        passed = V::both(passed, V::both(before.lacks(above_count), before.has(count)));
                    }
                    *bits |= u64::from(V::bits(passed)) << (at / 8);
                }
            }
            if !slots.is_empty() {
                found.push(slots);
            }
        }
    }
}
