//! REF: a plain sum of all bytes as 64-bit words, which is what reading memory costs.

/// The sum, by AVX2 where there is AVX2.
pub fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        return unsafe { sum_avx2(bytes) };
    }
    sum_words(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{__m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_setzero_si256};
    let (blocks, rest) = bytes.as_chunks::<128>();
    let mut sums = [_mm256_setzero_si256(); 4];
    for block in blocks {
        for (sum, quarter) in sums.iter_mut().zip(block.as_chunks::<32>().0) {
            // SAFETY: the 32 bytes of the quarter are read.
            let quarter = unsafe { _mm256_loadu_si256(quarter.as_ptr().cast::<__m256i>()) };
            *sum = _mm256_add_epi64(*sum, quarter);
        }
    }
    // SAFETY: four vectors of 32 bytes are sixteen words.
    let lanes: [u64; 16] = unsafe { std::mem::transmute(sums) };
    lanes.iter().fold(sum_words(rest), |sum, lane| sum.wrapping_add(*lane))
}

fn sum_words(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<8>().0.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}
