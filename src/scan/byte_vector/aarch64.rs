//! The operations for ARM: two NEON registers at a time. Loads that sort bytes put the planes together.

use std::arch::aarch64::*;

use super::ByteVector;
use crate::scan::vector::{Neon, methods};

/// The bytes of both registers.
fn halves(vector: Neon) -> [uint8x16_t; 2] {
    // SAFETY: every computer for which this is compiled has NEON, and registers are only seen as others.
    unsafe { [vreinterpretq_u8_u64(vector.0), vreinterpretq_u8_u64(vector.1)] }
}

fn vector(halves: [uint8x16_t; 2]) -> Neon {
    // SAFETY: as above.
    unsafe { Neon(vreinterpretq_u64_u8(halves[0]), vreinterpretq_u64_u8(halves[1])) }
}

/// The same with both registers.
#[inline(always)]
fn each(a: Neon, op: impl Fn(uint8x16_t) -> uint8x16_t) -> Neon {
    vector(halves(a).map(op))
}

/// The same with both registers of two vectors.
#[inline(always)]
fn zip(a: Neon, b: Neon, op: impl Fn(uint8x16_t, uint8x16_t) -> uint8x16_t) -> Neon {
    let ([a_low, a_high], [b_low, b_high]) = (halves(a), halves(b));
    vector([op(a_low, b_low), op(a_high, b_high)])
}

impl ByteVector for Neon {
    const SLOTS: usize = 32;
    type Quad = [u8; 4];

    methods! { @static
        repeat(bytes: &[u8; 16]) -> Self {{
            let bytes = vld1q_u8(bytes.as_ptr());
            vector([bytes, bytes])
        }}
        load(bytes: *const u8) -> Self { vector([vld1q_u8(bytes), vld1q_u8(bytes.add(16))]) }
        store(self_: Self, bytes: *mut u8) -> () {{
            let [low, high] = halves(self_);
            vst1q_u8(bytes, low);
            vst1q_u8(bytes.add(16), high);
        }}
        quad(bytes: [u8; 4]) -> [u8; 4] { bytes }
        planes(slots: *const u8, quad: [u8; 4]) -> [Self; 4] {{
            // Every fourth byte of eight slots: alternately one of the lower half of a slot, and of the upper one.
            let fourths = |n: usize| vld4q_u8(slots.add(64 * n));
            let uint8x16x4_t(a0, b0, c0, d0) = fourths(0);
            let uint8x16x4_t(a1, b1, c1, d1) = fourths(1);
            let uint8x16x4_t(a2, b2, c2, d2) = fourths(2);
            let uint8x16x4_t(a3, b3, c3, d3) = fourths(3);
            let lower = |[a, b, c, d]: [uint8x16_t; 4]| vector([vuzp1q_u8(a, b), vuzp1q_u8(c, d)]);
            let upper = |[a, b, c, d]: [uint8x16_t; 4]| vector([vuzp2q_u8(a, b), vuzp2q_u8(c, d)]);
            let sorted = [[a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3], [d0, d1, d2, d3]];
            let (lower, upper) = (sorted.map(lower), sorted.map(upper));
            quad.map(|byte| {
                let planes = if byte < 4 { lower } else { upper };
                planes.get(usize::from(byte % 4)).copied().unwrap_or(Self::repeat(&[0; 16]))
            })
        }}
        look_up(table: Self, digits: Self) -> Self { zip(table, digits, |table, digits| vqtbl1q_u8(table, digits)) }
        less(numbers: [Self; 2], others: [Self; 2]) -> [Self; 2] {{
            let borrow = zip(numbers[0], others[0], |number, other| vcltq_u8(number, other));
            let high = zip(numbers[1], others[1], |number, other| vsubq_u8(number, other));
            let low = zip(numbers[0], others[0], |number, other| vsubq_u8(number, other));
            [low, zip(high, borrow, |high, borrow| vaddq_u8(high, borrow))]
        }}
    }

    methods! { @self
        in_order(self) -> Self { self }
        and(self, b: Self) -> Self { zip(self, b, |a, b| vandq_u8(a, b)) }
        or(self, b: Self) -> Self { zip(self, b, |a, b| vorrq_u8(a, b)) }
        low_digits(self) -> Self { each(self, |bytes| vandq_u8(bytes, vdupq_n_u8(15))) }
        high_digits(self) -> Self { each(self, |bytes| vshrq_n_u8::<4>(bytes)) }
        not_full(self) -> u64 {{
            let bit_of_byte = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let of_half = |half| {
                let bits = vbicq_u8(bit_of_byte, vceqq_u8(half, vdupq_n_u8(u8::MAX)));
                u64::from(vaddv_u8(vget_low_u8(bits))) | u64::from(vaddv_u8(vget_high_u8(bits))) << 8
            };
            let [low, high] = halves(self);
            of_half(low) | of_half(high) << 16
        }}
    }
}
