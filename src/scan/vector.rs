//! The vector operations that scanning needs, once per instruction set.

use super::sieve::Table;

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
    /// Vectors that a sieve looks at together, at most eight: as many as measurement found best.
    const SIEVE_GROUP: usize;
    /// What is added to both sides before `at_most`, where the instruction set compares signed only.
    const BIAS: u64;
    /// One truth value per lane.
    type Mask: Copy;
    /// A [`Table`] in registers.
    type Lookup: Copy;
    /// The bits of a lane that a lookup fills; others may hold anything.
    const LOOKED_UP: u64;

    /// Does the work in a function that has the instruction set, and all registers for that work alone.
    unsafe fn call_compiled(work: impl Work);
    unsafe fn load(bytes: *const u8) -> Self;
    /// The lanes, in the first places.
    unsafe fn store(self_: Self, lanes: &mut [u64; 8]);
    unsafe fn splat(value: u64) -> Self;
    /// 0, 8, 16, …: where each lane's slot begins.
    unsafe fn slots() -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    unsafe fn xor(self, other: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// Brings the digit at that bit of each lane down to the lowest bits; what comes above it may be anything.
    unsafe fn digit(self, bit: Self) -> Self;
    /// The table; only entries of the bits of [`Vector::LOOKED_UP`] count.
    unsafe fn lookup_table(table: &Table) -> Self::Lookup;
    /// The table's entries for the digit in the lowest bits of each lane.
    unsafe fn look_up(self, table: Self::Lookup) -> Self;
    /// Rotates right by `right` bits, where `left` is 64 minus that.
    unsafe fn rotate(self, right: Self, left: Self) -> Self;
    /// Lanes that are equal.
    unsafe fn equal(self, other: Self) -> Self::Mask;
    /// Lanes not above `bound`, both sides with the bias added.
    unsafe fn at_most(self, bound: Self) -> Self::Mask;
    /// Lanes without any of the bits.
    unsafe fn lacks(self, bits: Self) -> Self::Mask;
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

/// Functions of [`Vector`] whose bodies are intrinsics.
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
            unsafe fn $name($me $(, $arg: $of)*) -> $result {
                // SAFETY: the caller vouches for the instruction set.
                unsafe { $body }
            }
        )*
    };
}

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::Neon;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::{Table, Vector, Work};

    impl Vector for __m256i {
        const BYTES: usize = 32;
        const SIEVE_GROUP: usize = 4;
        const BIAS: u64 = 1 << 63;
        type Mask = __m256i;
        // Eight entries of half a lane: the instruction looks up those.
        type Lookup = __m256i;
        const LOOKED_UP: u64 = 0xffff_ffff;

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
            lookup_table(table: &Table) -> Self {{
                let [a, b, c, d, e, f, g, h, ..] = table.map(|entries| (entries as u32).cast_signed());
                _mm256_set_epi32(h, g, f, e, d, c, b, a)
            }}
            store(self_: Self, lanes: &mut [u64; 8]) -> () { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), self_) }
        }

        methods! { @self
            and(self, b: Self) -> Self { _mm256_and_si256(self, b) }
            or(self, b: Self) -> Self { _mm256_or_si256(self, b) }
            xor(self, b: Self) -> Self { _mm256_xor_si256(self, b) }
            add(self, b: Self) -> Self { _mm256_add_epi64(self, b) }
            sub(self, b: Self) -> Self { _mm256_sub_epi64(self, b) }
            digit(self, bit: Self) -> Self { _mm256_srlv_epi64(self, bit) }
            look_up(self, table: Self) -> Self { _mm256_permutevar8x32_epi32(table, self) }
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
        const SIEVE_GROUP: usize = 8;
        const BIAS: u64 = 0;
        type Mask = __mmask8;
        type Lookup = (__m512i, __m512i);
        const LOOKED_UP: u64 = u64::MAX;

        #[inline(always)]
        unsafe fn call_compiled(work: impl Work) {
            #[target_feature(enable = "avx512f")]
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
            store(self_: Self, lanes: &mut [u64; 8]) -> () { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), self_) }
            lookup_table(table: &Table) -> (__m512i, __m512i) {{
                let entries = table.as_ptr();
                (_mm512_loadu_si512(entries.cast()), _mm512_loadu_si512(entries.add(8).cast()))
            }}
        }

        methods! { @self
            and(self, b: Self) -> Self { _mm512_and_si512(self, b) }
            or(self, b: Self) -> Self { _mm512_or_si512(self, b) }
            xor(self, b: Self) -> Self { _mm512_xor_si512(self, b) }
            add(self, b: Self) -> Self { _mm512_add_epi64(self, b) }
            sub(self, b: Self) -> Self { _mm512_sub_epi64(self, b) }
            digit(self, bit: Self) -> Self { _mm512_rorv_epi64(self, bit) }
            look_up(self, table: (__m512i, __m512i)) -> Self { _mm512_permutex2var_epi64(table.0, self, table.1) }
            has(self, bits: Self) -> __mmask8 { _mm512_test_epi64_mask(self, bits) }
            rotate(self, right: Self, _left: Self) -> Self { _mm512_rorv_epi64(self, right) }
            equal(self, b: Self) -> __mmask8 { _mm512_cmpeq_epi64_mask(self, b) }
            at_most(self, bound: Self) -> __mmask8 { _mm512_cmple_epu64_mask(self, bound) }
            lacks(self, bits: Self) -> __mmask8 { _mm512_testn_epi64_mask(self, bits) }
            keep(self, mask: __mmask8) -> Self { _mm512_maskz_mov_epi64(mask, self) }
            has_any(self, bits: Self) -> bool { _mm512_test_epi64_mask(self, bits) != 0 }
            fold(self) -> u64 { _mm512_reduce_or_epi64(self).cast_unsigned() }
        }
    }
}
