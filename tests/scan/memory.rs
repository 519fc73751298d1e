//! Physical memory made for tests: by construction, and at random.

use std::ops::Range;

use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{MemoryRange, PhysicalMemory};

use super::FRAME;
use super::random::Random;

/// Bytes of the ranges, one after the other, behind an odd number of bytes that belong to none.
pub struct Builder {
    ranges: Vec<MemoryRange>,
    bytes: Vec<u8>,
}

impl Builder {
    pub fn new(ranges: &[Range<u64>]) -> Self {
        let mut builder = Self { ranges: Vec::new(), bytes: vec![0xa5; 0x83b] };
        for range in ranges {
            let offset = FileOffset(builder.bytes.len() as u64);
            builder.ranges.push(MemoryRange { start: PhysAddr(range.start), end: PhysAddr(range.end), offset });
            builder.bytes.resize(builder.bytes.len() + (range.end - range.start) as usize, 0);
        }
        builder
    }

    /// Writes what of `bytes` lies in a range.
    pub fn write(&mut self, pa: u64, bytes: &[u8]) {
        for (at, byte) in (pa..).zip(bytes) {
            if let Some(range) = self.ranges.iter().find(|r| (r.start.0..r.end.0).contains(&at)) {
                self.bytes[(range.offset.0 + at - range.start.0) as usize] = *byte;
            }
        }
    }

    pub fn words(&mut self, pa: u64, words: &[u64]) {
        words.iter().zip((pa..).step_by(8)).for_each(|(word, at)| self.write(at, &word.to_le_bytes()));
    }

    pub fn fill(&mut self, mut byte: impl FnMut() -> u8) {
        self.bytes.iter_mut().for_each(|b| *b = byte());
    }

    pub fn done(self) -> PhysicalMemory {
        PhysicalMemory::owned(self.bytes, self.ranges).unwrap()
    }
}

impl Random {
    /// Memory of the kinds that dumps hold, in a few ranges with ragged ends.
    pub fn memory(&mut self) -> PhysicalMemory {
        let mut ranges = Vec::new();
        let mut start = self.below(0x3000);
        for _ in 0..self.below(4) + 1 {
            let end = start + 1 + self.below(12 * FRAME);
            ranges.push(start..end);
            start = end + self.below(3 * FRAME);
        }
        let mut builder = Builder::new(&ranges);
        for range in ranges {
            for frame in (range.start / FRAME)..range.end.div_ceil(FRAME) {
                let kind = self.below(9);
                let words: Vec<u64> = (0..512).map(|slot| self.word(kind, frame * FRAME + slot * 8)).collect();
                builder.words(frame * FRAME, &words);
            }
        }
        builder.done()
    }

    fn word(&mut self, kind: u64, own: u64) -> u64 {
        match kind {
            0 => 0,
            1 => self.next(),
            2 => self.below(64),
            // Page tables, now and then with a large page or a reserved bit.
            3 => match self.below(600) {
                0 => 1 << 50 | 1,
                1..=3 => self.below(1 << 20) << 13 | 0x81,
                4..=200 => self.below(1 << 36) << 12 | 0x27,
                _ => 0,
            },
            4 => self.below(1 << 20) << 30 | 0xe7,
            // Pointers to their own page offset, or beside it.
            5 => 0x7f00_0000_0000 | self.below(1 << 20) << 12 | (own.wrapping_sub(self.below(3) * 8) & 0xfff),
            6 => [0, 1, 40, 0x4242, 0xffff_8880_0000_1000, u64::MAX, 0x9594a0, 40 << 24][self.below(8) as usize],
            // Objects: counts, some with flags above them, and pointers.
            7 => match self.below(6) {
                0 => self.below(4),
                1 => self.below(2) << 63 | self.below(9) << 30,
                2..=4 => 0x7f00_0000_0000 + (self.below(1 << 14) & !(self.below(2) * 7)),
                _ => self.next(),
            },
            _ => u64::from_le_bytes(*b"xdebugpy").rotate_left(8 * self.below(8) as u32),
        }
    }
}
