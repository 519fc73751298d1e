//! The operations for x86. Shuffles stay within 16 bytes, so planes are put together there, from two slots at a time.

use std::arch::x86_64::*;

use super::ByteVector;
use crate::scan::vector::methods;

/// How to bring four bytes of two slots to where those of even vectors, and of odd ones, go: the slots' first bytes side by side,
/// then their second ones, with room for those of another vector behind each pair. 0x80 makes zeros.
fn controls(bytes: [u8; 4]) -> [[u8; 16]; 2] {
    let mut controls = [[0x80; 16]; 2];
    let [even, odd] = &mut controls;
    for (byte, to) in bytes.into_iter().zip((0..).step_by(4)) {
        for (control, first) in [(&mut *even, to), (&mut *odd, to + 2)] {
            control.iter_mut().skip(first).zip([byte, byte + 8]).for_each(|(to, from)| *to = from);
        }
    }
    controls
}

/// Four by four numbers of four bytes, transposed in each 16 bytes.
macro_rules! transposed {
    ($rows:expr, $low32:ident, $high32:ident, $low64:ident, $high64:ident) => {{
        let [a, b, c, d] = $rows;
        let (ab, cd) = ($low32(a, b), $low32(c, d));
        let (later_ab, later_cd) = ($high32(a, b), $high32(c, d));
        [$low64(ab, cd), $high64(ab, cd), $low64(later_ab, later_cd), $high64(later_ab, later_cd)]
    }};
}

impl ByteVector for __m256i {
    const SLOTS: usize = 32;
    type Quad = [Self; 2];

    methods! { @static
        repeat(bytes: &[u8; 16]) -> Self { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
        load(bytes: *const u8) -> Self { _mm256_loadu_si256(bytes.cast()) }
        store(self_: Self, bytes: *mut u8) -> () { _mm256_storeu_si256(bytes.cast(), self_) }
        quad(bytes: [u8; 4]) -> [Self; 2] {{
            let [even, odd] = &controls(bytes);
            [<Self as ByteVector>::repeat(even), <Self as ByteVector>::repeat(odd)]
        }}
        planes(slots: *const u8, quad: [Self; 2]) -> [Self; 4] {{
            // Two slots of the first half, and two of the second: so the planes are in order.
            let pairs = |pair: usize| {
                let from = slots.add(16 * pair);
                _mm256_loadu2_m128i(from.add(128).cast(), from.cast())
            };
            let row = |row: usize| {
                let even = _mm256_shuffle_epi8(pairs(2 * row), quad[0]);
                _mm256_or_si256(even, _mm256_shuffle_epi8(pairs(2 * row + 1), quad[1]))
            };
            transposed!([row(0), row(1), row(2), row(3)],
                _mm256_unpacklo_epi32, _mm256_unpackhi_epi32, _mm256_unpacklo_epi64, _mm256_unpackhi_epi64)
        }}
        look_up(table: Self, digits: Self) -> Self { _mm256_shuffle_epi8(table, digits) }
        less(numbers: [Self; 2], others: [Self; 2]) -> [Self; 2] {{
            let low = _mm256_sub_epi8(numbers[0], others[0]);
            // -1 where nothing is borrowed, so 1 too much is taken away elsewhere.
            let enough = _mm256_cmpeq_epi8(_mm256_max_epu8(numbers[0], others[0]), numbers[0]);
            let high = _mm256_sub_epi8(_mm256_sub_epi8(numbers[1], others[1]), enough);
            [low, _mm256_sub_epi8(high, _mm256_set1_epi8(1))]
        }}
    }

    methods! { @self
        in_order(self) -> Self { self }
        and(self, b: Self) -> Self { _mm256_and_si256(self, b) }
        or(self, b: Self) -> Self { _mm256_or_si256(self, b) }
        low_digits(self) -> Self { _mm256_and_si256(self, _mm256_set1_epi8(15)) }
        high_digits(self) -> Self { _mm256_and_si256(_mm256_srli_epi16::<4>(self), _mm256_set1_epi8(15)) }
        not_full(self) -> u64 {{
            let full = _mm256_cmpeq_epi8(self, _mm256_set1_epi8(-1));
            u64::from(!_mm256_movemask_epi8(full).cast_unsigned())
        }}
    }
}

impl ByteVector for __m512i {
    const SLOTS: usize = 64;
    type Quad = [Self; 2];

    methods! { @static
        repeat(bytes: &[u8; 16]) -> Self { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
        load(bytes: *const u8) -> Self { _mm512_loadu_si512(bytes.cast()) }
        store(self_: Self, bytes: *mut u8) -> () { _mm512_storeu_si512(bytes.cast(), self_) }
        quad(bytes: [u8; 4]) -> [Self; 2] {{
            let [even, odd] = &controls(bytes);
            [<Self as ByteVector>::repeat(even), <Self as ByteVector>::repeat(odd)]
        }}
        planes(slots: *const u8, quad: [Self; 2]) -> [Self; 4] {{
            // Each 16 bytes get two slots of every vector.
            let pairs = |vector: usize| _mm512_loadu_si512(slots.add(64 * vector).cast());
            let row = |row: usize| {
                let even = _mm512_shuffle_epi8(pairs(2 * row), quad[0]);
                _mm512_mask_shuffle_epi8(even, 0xcccc_cccc_cccc_cccc, pairs(2 * row + 1), quad[1])
            };
            transposed!([row(0), row(1), row(2), row(3)],
                _mm512_unpacklo_epi32, _mm512_unpackhi_epi32, _mm512_unpacklo_epi64, _mm512_unpackhi_epi64)
        }}
        look_up(table: Self, digits: Self) -> Self { _mm512_shuffle_epi8(table, digits) }
        less(numbers: [Self; 2], others: [Self; 2]) -> [Self; 2] {{
            let high = _mm512_sub_epi8(numbers[1], others[1]);
            let borrow = _mm512_cmplt_epu8_mask(numbers[0], others[0]);
            let high = _mm512_mask_sub_epi8(high, borrow, high, _mm512_set1_epi8(1));
            [_mm512_sub_epi8(numbers[0], others[0]), high]
        }}
    }

    methods! { @self
        in_order(self) -> Self {{
            // Pair `n` comes from vector `n / 4`, and there from 16 bytes number `n % 4`.
            let from: [u16; 32] = std::array::from_fn(|n| (n % 4 * 8 + n / 4) as u16);
            _mm512_permutexvar_epi16(_mm512_loadu_si512(from.as_ptr().cast()), self)
        }}
        and(self, b: Self) -> Self { _mm512_and_si512(self, b) }
        or(self, b: Self) -> Self { _mm512_or_si512(self, b) }
        low_digits(self) -> Self { _mm512_and_si512(self, _mm512_set1_epi8(15)) }
        high_digits(self) -> Self { _mm512_and_si512(_mm512_srli_epi16::<4>(self), _mm512_set1_epi8(15)) }
        not_full(self) -> u64 { _mm512_cmpneq_epi8_mask(self, _mm512_set1_epi8(-1)) }
    }
}
