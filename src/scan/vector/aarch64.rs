//! The vector operations for ARM: two NEON registers at a time.

use std::arch::aarch64::*;

use super::{Vector, Work};

/// Two registers: as many lanes as AVX2 has, and as many vectors (16) in the register file.
#[derive(Clone, Copy)]
pub(in crate::scan) struct Neon(pub(in crate::scan) uint64x2_t, pub(in crate::scan) uint64x2_t);

impl Neon {
    /// The same in both registers.
    #[inline(always)]
    fn each(self, op: impl Fn(uint64x2_t) -> uint64x2_t) -> Self {
        Self(op(self.0), op(self.1))
    }

    /// The bits that both have.
    #[inline(always)]
    fn common(self, other: Self) -> Self {
        // SAFETY: every computer for which this is compiled has NEON.
        self.zip(other, |a, b| unsafe { vandq_u64(a, b) })
    }

    /// The same in both registers, with those of another vector.
    #[inline(always)]
    fn zip(self, other: Self, op: impl Fn(uint64x2_t, uint64x2_t) -> uint64x2_t) -> Self {
        Self(op(self.0, other.0), op(self.1, other.1))
    }
}

impl Vector for Neon {
    const BYTES: usize = 32;
    const BIAS: u64 = 0;
    /// All bits of a lane, or none.
    type Mask = Self;

    #[inline(always)]
    unsafe fn call_compiled(work: impl Work) {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn compiled(work: impl Work) {
            // SAFETY: this function is only called where the feature is there.
            unsafe { work.run() }
        }
        // SAFETY: the caller vouches for the instruction set.
        unsafe { compiled(work) }
    }

    methods! { @static
        load(bytes: *const u8) -> Self {{
            let load = |bytes| vreinterpretq_u64_u8(vld1q_u8(bytes));
            Self(load(bytes), load(bytes.add(16)))
        }}
        splat(value: u64) -> Self { Self(vdupq_n_u64(value), vdupq_n_u64(value)) }
        slots() -> Self {{
            let low = vcombine_u64(vcreate_u64(0), vcreate_u64(8));
            Self(low, vaddq_u64(low, vdupq_n_u64(16)))
        }}
        either(a: Self, b: Self) -> Self { a.or(b) }
        both(a: Self, b: Self) -> Self { a.common(b) }
        any(mask: Self) -> bool { vmaxvq_u32(vreinterpretq_u32_u64(vorrq_u64(mask.0, mask.1))) != 0 }
        bits(mask: Self) -> u32 {{
            let lanes = vcombine_u32(vmovn_u64(mask.0), vmovn_u64(mask.1));
            let bit_of_lane = vcombine_u32(vcreate_u32(0x2_0000_0001), vcreate_u32(0x8_0000_0004));
            vaddvq_u32(vandq_u32(lanes, bit_of_lane))
        }}
        none() -> Self { Self::splat(0) }
    }

    methods! { @self
        or(self, b: Self) -> Self { self.zip(b, |a, b| vorrq_u64(a, b)) }
        add(self, b: Self) -> Self { self.zip(b, |a, b| vaddq_u64(a, b)) }
        sub(self, b: Self) -> Self { self.zip(b, |a, b| vsubq_u64(a, b)) }
        // A shift to the left by less than nothing is one to the right.
        rotate(self, right: Self, left: Self) -> Self {{
            let shift = |v, by| vshlq_u64(v, vreinterpretq_s64_u64(by));
            let down = self.zip(right, |v, by| vshlq_u64(v, vnegq_s64(vreinterpretq_s64_u64(by))));
            down.or(self.zip(left, shift))
        }}
        has(self, bits: Self) -> Self { self.zip(bits, |v, bits| vtstq_u64(v, bits)) }
        equal(self, b: Self) -> Self { self.zip(b, |a, b| vceqq_u64(a, b)) }
        at_most(self, bound: Self) -> Self { self.zip(bound, |a, b| vcleq_u64(a, b)) }
        lacks(self, bits: Self) -> Self { self.common(bits).each(|v| vceqzq_u64(v)) }
        equal_in(self, bits: Self, value: Self) -> Self { self.common(bits).equal(value) }
        keep(self, mask: Self) -> Self { self.common(mask) }
        has_any(self, bits: Self) -> bool { Self::any(self.common(bits)) }
        fold(self) -> u64 {{
            let half = vorrq_u64(self.0, self.1);
            vgetq_lane_u64::<0>(half) | vgetq_lane_u64::<1>(half)
        }}
    }
}
