//! The vector operations that scanning needs, once per instruction set.

/// Something to be done with vectors, in a function of its own.
pub(super) trait Work {
    /// # Safety
    ///
    /// The CPU has the instruction set of the vectors that it uses. To be inlined into a function with that
    /// `target_feature`.
    unsafe fn run(self);
}

/// A vector of 64-bit lanes.
///
/// # Safety
///
/// Every method needs a CPU with the instruction set of the implementing type, and is to be inlined
/// into a function with that `target_feature`. `load` reads `BYTES` bytes at any alignment.
pub(super) trait Vector: Copy {
    /// Bytes in a vector.
    const BYTES: usize;
    /// What is added to both sides before `at_most`, where the instruction set compares signed only.
    const BIAS: u64;
    /// One truth value per lane.
    type Mask: Copy;

    /// Does the work in a function that has the instruction set, and all registers for that work alone.
    unsafe fn call_compiled(work: impl Work);
    unsafe fn load(bytes: *const u8) -> Self;
    unsafe fn splat(value: u64) -> Self;
    /// 0, 8, 16, …: where each lane's slot begins.
    unsafe fn slots() -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// Rotates right by `right` bits, where `left` is 64 minus that.
    unsafe fn rotate(self, right: Self, left: Self) -> Self;
    /// Lanes that are equal.
    unsafe fn equal(self, other: Self) -> Self::Mask;
    /// Lanes not above `bound`, both sides with the bias added.
    unsafe fn at_most(self, bound: Self) -> Self::Mask;
    /// Lanes without any of the bits.
    unsafe fn lacks(self, bits: Self) -> Self::Mask;
    /// Lanes that have this value in these bits; it has no others.
    unsafe fn equal_in(self, bits: Self, value: Self) -> Self::Mask;
    /// Lanes with any of the bits.
    unsafe fn has(self, bits: Self) -> Self::Mask;
    /// This where the mask is set, else 0.
    unsafe fn keep(self, mask: Self::Mask) -> Self;
    /// No lane.
    unsafe fn none() -> Self::Mask;
    unsafe fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    unsafe fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    unsafe fn any(mask: Self::Mask) -> bool;
    /// Bit `n` for lane `n`.
    unsafe fn bits(mask: Self::Mask) -> u32;
    /// Whether any lane has any of the bits.
    unsafe fn has_any(self, bits: Self) -> bool;
    /// All lanes, or-ed.
    unsafe fn fold(self) -> u64;
}

/// Functions of a trait of vectors, whose bodies are intrinsics.
macro_rules! methods {
    (@static $($name:ident($($arg:ident: $of:ty),*) -> $result:ty { $body:expr })*) => {
        $(
            #[inline(always)]
            #[allow(unused_unsafe, reason = "masks of AVX-512 are plain integers")]
            unsafe fn $name($($arg: $of),*) -> $result {
                // SAFETY: the caller vouches for the instruction set, and for the bytes of a load.
                unsafe { $body }
            }
        )*
    };
    (@self $($name:ident($me:ident $(, $arg:ident: $of:ty)*) -> $result:ty { $body:expr })*) => {
        $(
            #[inline(always)]
            #[allow(unused_unsafe, reason = "planes are in order with some instruction sets")]
            unsafe fn $name($me $(, $arg: $of)*) -> $result {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $body }
            }
        )*
    };
}

pub(super) use methods;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::Neon;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{Vector, Work};

    impl Vector for __m256i {
        const BYTES: usize = 32;
        const BIAS: u64 = 1 << 63;
        type Mask = __m256i;

        #[inline(always)]
        unsafe fn call_compiled(work: impl Work) {
            #[target_feature(enable = "avx2")]
            #[inline(never)]
            fn compiled(work: impl Work) {
                // SAFETY: this function is only called where the feature is there.
                unsafe { work.run() }
            }
            // SAFETY: the caller vouches for the instruction set.
            unsafe { compiled(work) }
        }

        methods! { @static
            load(bytes: *const u8) -> Self { _mm256_loadu_si256(bytes.cast()) }
            splat(value: u64) -> Self { _mm256_set1_epi64x(value.cast_signed()) }
            slots() -> Self { _mm256_set_epi64x(24, 16, 8, 0) }
            either(a: Self, b: Self) -> Self { _mm256_or_si256(a, b) }
            any(mask: Self) -> bool { _mm256_testz_si256(mask, mask) == 0 }
            bits(mask: Self) -> u32 { _mm256_movemask_pd(_mm256_castsi256_pd(mask)).cast_unsigned() }
            none() -> Self { _mm256_setzero_si256() }
            both(a: Self, b: Self) -> Self { _mm256_and_si256(a, b) }
        }

        methods! { @self
            or(self, b: Self) -> Self { _mm256_or_si256(self, b) }
            add(self, b: Self) -> Self { _mm256_add_epi64(self, b) }
            sub(self, b: Self) -> Self { _mm256_sub_epi64(self, b) }
            has(self, bits: Self) -> Self {{
                let without = _mm256_cmpeq_epi64(_mm256_and_si256(self, bits), _mm256_setzero_si256());
                _mm256_xor_si256(without, _mm256_set1_epi64x(-1))
            }}
            rotate(self, right: Self, left: Self) -> Self {
                _mm256_or_si256(_mm256_srlv_epi64(self, right), _mm256_sllv_epi64(self, left))
            }
            equal(self, b: Self) -> Self { _mm256_cmpeq_epi64(self, b) }
            at_most(self, bound: Self) -> Self {
                _mm256_xor_si256(_mm256_cmpgt_epi64(self, bound), _mm256_set1_epi64x(-1))
            }
            lacks(self, bits: Self) -> Self { _mm256_cmpeq_epi64(_mm256_and_si256(self, bits), _mm256_setzero_si256()) }
            equal_in(self, bits: Self, value: Self) -> Self { _mm256_cmpeq_epi64(_mm256_and_si256(self, bits), value) }
            keep(self, mask: Self) -> Self { _mm256_and_si256(self, mask) }
            has_any(self, bits: Self) -> bool { _mm256_testz_si256(self, bits) == 0 }
            fold(self) -> u64 {{
                let half = _mm_or_si128(_mm256_castsi256_si128(self), _mm256_extracti128_si256::<1>(self));
                (_mm_cvtsi128_si64(half) | _mm_extract_epi64::<1>(half)).cast_unsigned()
            }}
        }
    }

    impl Vector for __m512i {
        const BYTES: usize = 64;
        const BIAS: u64 = 0;
        type Mask = __mmask8;

        #[inline(always)]
        unsafe fn call_compiled(work: impl Work) {
            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline(never)]
            fn compiled(work: impl Work) {
                // SAFETY: this function is only called where the feature is there.
                unsafe { work.run() }
            }
            // SAFETY: the caller vouches for the instruction set.
            unsafe { compiled(work) }
        }

        methods! { @static
            load(bytes: *const u8) -> Self { _mm512_loadu_si512(bytes.cast()) }
            splat(value: u64) -> Self { _mm512_set1_epi64(value.cast_signed()) }
            slots() -> Self { _mm512_set_epi64(56, 48, 40, 32, 24, 16, 8, 0) }
            either(a: __mmask8, b: __mmask8) -> __mmask8 { a | b }
            any(mask: __mmask8) -> bool { mask != 0 }
            bits(mask: __mmask8) -> u32 { u32::from(mask) }
            none() -> __mmask8 { 0 }
            both(a: __mmask8, b: __mmask8) -> __mmask8 { a & b }
        }

        methods! { @self
            or(self, b: Self) -> Self { _mm512_or_si512(self, b) }
            add(self, b: Self) -> Self { _mm512_add_epi64(self, b) }
            sub(self, b: Self) -> Self { _mm512_sub_epi64(self, b) }
            has(self, bits: Self) -> __mmask8 { _mm512_test_epi64_mask(self, bits) }
            rotate(self, right: Self, _left: Self) -> Self { _mm512_rorv_epi64(self, right) }
            equal(self, b: Self) -> __mmask8 { _mm512_cmpeq_epi64_mask(self, b) }
            at_most(self, bound: Self) -> __mmask8 { _mm512_cmple_epu64_mask(self, bound) }
            lacks(self, bits: Self) -> __mmask8 { _mm512_testn_epi64_mask(self, bits) }
            equal_in(self, bits: Self, value: Self) -> __mmask8 {
                _mm512_testn_epi64_mask(_mm512_xor_si512(self, value), bits)
            }
            keep(self, mask: __mmask8) -> Self { _mm512_maskz_mov_epi64(mask, self) }
            has_any(self, bits: Self) -> bool { _mm512_test_epi64_mask(self, bits) != 0 }
            fold(self) -> u64 { _mm512_reduce_or_epi64(self).cast_unsigned() }
        }
    }
}
