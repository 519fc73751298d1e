//! NEON for the search.

use std::arch::aarch64::*;

use super::filter::{Group, Machine, Shape};
use super::vector::{VECTORS, Vector, functions, search_shape};
use crate::scan::Backend;

/// The machine for a backend, where this computer has it.
pub(super) fn machine(backend: Backend) -> Option<&'static Machine> {
    (backend == Backend::Neon && std::arch::is_aarch64_feature_detected!("neon")).then_some(&NEON)
}

static NEON: Machine = Machine {
    field_bits: <uint8x16_t as Vector>::FIELD_BITS,
    step: VECTORS * <uint8x16_t as Vector>::BYTES,
    // As for AVX2, whose tables are as small; not measured, for want of such a computer.
    shape: |needles| match needles {
        0 | 1 => None,
        2..=16 => Some(Shape::One),
        17..=64 => Some(Shape::Two),
        _ => Some(Shape::Four),
    },
    search: neon,
};

/// Tables of 16, looked up by halves of bytes.
impl Vector for uint8x16_t {
    const BYTES: usize = 16;
    const FIELD_BITS: u32 = 4;

    functions! {
        load(bytes: *const u8) -> Self { vld1q_u8(bytes) }
        table(entries: &[u8; 64]) -> Self { vld1q_u8(entries.as_ptr()) }
        at_low_bits(bytes: Self, table: Self) -> Self { vqtbl1q_u8(table, vandq_u8(bytes, vdupq_n_u8(0xf))) }
        at_high_bits(bytes: Self, table: Self) -> Self { vqtbl1q_u8(table, vshrq_n_u8::<4>(bytes)) }
        and(a: Self, b: Self) -> Self { vandq_u8(a, b) }
        or(a: Self, b: Self) -> Self { vorrq_u8(a, b) }
        zero() -> Self { vdupq_n_u8(0) }
        is_zero(bytes: Self) -> bool { vmaxvq_u8(bytes) == 0 }
        not_zero(bytes: Self) -> u64 {{
            let bit_of_byte = vcreate_u8(0x8040_2010_0804_0201);
            let bits = vandq_u8(vtstq_u8(bytes, bytes), vcombine_u8(bit_of_byte, bit_of_byte));
            u64::from(vaddv_u8(vget_low_u8(bits))) | u64::from(vaddv_u8(vget_high_u8(bits))) << 8
        }}
    }
}

#[target_feature(enable = "neon")]
fn neon(shape: Shape, groups: &[Group], bytes: &[u8], candidate: &mut dyn FnMut(usize)) {
    // SAFETY: this function is only called where the feature is there.
    unsafe { search_shape::<uint8x16_t>(shape, groups, bytes, candidate) }
}
