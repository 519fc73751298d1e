//! Reading and nothing else: the sum of all 64-bit words, the yardstick of every scan's speed.

use rayon::prelude::*;

use super::chunk::{View, pieces};
use crate::dump::PhysicalMemory;

/// Words that are summed side by side, so that no addition waits for the one before it.
const LANES: usize = 32;

/// The sum, modulo 2^64, of the 64-bit little-endian words of each chunk; bytes behind the last word of
/// a chunk are left out. The chunks and the threads are those of [`super::scan`]: that is how fast memory can be
/// looked at.
pub fn read(memory: &PhysicalMemory) -> u64 {
    let ranges = memory.ranges().par_iter();
    let views = ranges.flat_map(|range| {
        let whole = View { start: range.start, bytes: memory.range_bytes(range) };
        let pieces: Vec<_> = pieces(range.start..range.end).collect();
        pieces.into_par_iter().map(move |piece| whole.part(piece))
    });
    views.map(|view| sum_words(view.bytes)).reduce(|| 0, u64::wrapping_add)
}

/// The same of one piece of memory, with AVX2 where the CPU has it.
pub fn sum_words(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn sum_avx2(bytes: &[u8]) -> u64 {
            sum(bytes)
        }
        // SAFETY: the function is not unsafe but for AVX2, which this CPU has.
        return unsafe { sum_avx2(bytes) };
    }
    sum(bytes)
}

/// Compiled for the features of its caller.
#[inline(always)]
fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let (blocks, rest) = words.as_chunks::<LANES>();
    let mut lanes = [0u64; LANES];
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block) {
            *lane = lane.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    let rest = rest.iter().map(|word| u64::from_le_bytes(*word));
    lanes.into_iter().chain(rest).fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{FileOffset, PhysAddr};
    use crate::dump::MemoryRange;

    #[test]
    fn every_word_is_read() {
        let bytes: Vec<u8> = (0..0xa_0013u32).map(|n| ((n * 31) >> 3) as u8).collect();
        let (start, end) = (PhysAddr(0x1000), PhysAddr(0x1000 + 0xa_0010));
        let memory = PhysicalMemory::owned(bytes.clone(), vec![MemoryRange { start, end, offset: FileOffset(3) }]);
        let words = bytes[3..].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        assert_eq!(read(&memory.unwrap()), words.fold(0, u64::wrapping_add));
    }
}
