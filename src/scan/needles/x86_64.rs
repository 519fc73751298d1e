//! AVX2 and AVX-512 VBMI for the search.

use std::arch::x86_64::*;

use super::filter::{Group, Machine, Shape};
use super::vector::{VECTORS, Vector, functions, search_shape};
use crate::scan::Backend;

/// The machine for a backend, where this computer has it.
pub(super) fn machine(backend: Backend) -> Option<&'static Machine> {
    let vbmi = std::is_x86_feature_detected!("avx512bw") && std::is_x86_feature_detected!("avx512vbmi");
    match backend {
        Backend::Avx512 if vbmi => Some(&AVX512),
        // The first CPUs with AVX-512 cannot look bytes up in tables of 64, and none is without AVX2.
        Backend::Avx512 | Backend::Avx2 if std::is_x86_feature_detected!("avx2") => Some(&AVX2),
        _ => None,
    }
}

static AVX2: Machine = Machine {
    field_bits: <__m256i as Vector>::FIELD_BITS,
    step: VECTORS * <__m256i as Vector>::BYTES,
    shape: |needles| match needles {
        // memmem is faster.
        0 | 1 => None,
        2..=16 => Some(Shape::One),
        17..=64 => Some(Shape::Two),
        _ => Some(Shape::Four),
    },
    search: avx2,
};

static AVX512: Machine = Machine {
    field_bits: <__m512i as Vector>::FIELD_BITS,
    step: VECTORS * <__m512i as Vector>::BYTES,
    shape: |needles| match needles {
        0 => None,
        1..=32 => Some(Shape::OneLow),
        33..=100 => Some(Shape::One),
        101..=300 => Some(Shape::Two),
        _ => Some(Shape::Four),
    },
    search: avx512,
};

/// Tables of 16, looked up by halves of bytes.
impl Vector for __m256i {
    const BYTES: usize = 32;
    const FIELD_BITS: u32 = 4;

    functions! {
        load(bytes: *const u8) -> Self { _mm256_loadu_si256(bytes.cast()) }
        table(entries: &[u8; 64]) -> Self { _mm256_broadcastsi128_si256(_mm_loadu_si128(entries.as_ptr().cast())) }
        at_low_bits(bytes: Self, table: Self) -> Self {
            _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, _mm256_set1_epi8(0xf)))
        }
        at_high_bits(bytes: Self, table: Self) -> Self {
            _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), _mm256_set1_epi8(0xf)))
        }
        and(a: Self, b: Self) -> Self { _mm256_and_si256(a, b) }
        or(a: Self, b: Self) -> Self { _mm256_or_si256(a, b) }
        zero() -> Self { _mm256_setzero_si256() }
        is_zero(bytes: Self) -> bool { _mm256_testz_si256(bytes, bytes) != 0 }
        not_zero(bytes: Self) -> u64 {
            u64::from(!_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())).cast_unsigned())
        }
    }
}

/// Tables of 64, looked up by six bits of a byte; the instruction ignores the two above them.
impl Vector for __m512i {
    const BYTES: usize = 64;
    const FIELD_BITS: u32 = 6;

    functions! {
        load(bytes: *const u8) -> Self { _mm512_loadu_si512(bytes.cast()) }
        table(entries: &[u8; 64]) -> Self { _mm512_loadu_si512(entries.as_ptr().cast()) }
        at_low_bits(bytes: Self, table: Self) -> Self { _mm512_permutexvar_epi8(bytes, table) }
        at_high_bits(bytes: Self, table: Self) -> Self {
            _mm512_permutexvar_epi8(_mm512_srli_epi16::<2>(bytes), table)
        }
        and(a: Self, b: Self) -> Self { _mm512_and_si512(a, b) }
        or(a: Self, b: Self) -> Self { _mm512_or_si512(a, b) }
        zero() -> Self { _mm512_setzero_si512() }
        is_zero(bytes: Self) -> bool { _mm512_test_epi64_mask(bytes, bytes) == 0 }
        not_zero(bytes: Self) -> u64 { _mm512_test_epi8_mask(bytes, bytes) }
    }
}

/// The search for one instruction set.
macro_rules! compiled {
    ($name:ident, $vector:ty, $features:tt) => {
        #[target_feature(enable = $features)]
        fn $name(shape: Shape, groups: &[Group], bytes: &[u8], candidate: &mut dyn FnMut(usize)) {
            // SAFETY: this function is only called where the features are there.
            unsafe { search_shape::<$vector>(shape, groups, bytes, candidate) }
        }
    };
}

compiled!(avx2, __m256i, "avx2");
compiled!(avx512, __m512i, "avx512f,avx512bw,avx512vbmi");
