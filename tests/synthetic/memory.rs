//! Physical memory as a dump, and numbers to fill it with.

use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{Dump, Format, MemoryRange, PhysicalMemory};

pub const FRAME: u64 = 0x1000;

/// Numbers from a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A dump that holds some frames, in rising order, of a memory whose bytes lie at their physical address.
pub fn dump_of(bytes: Vec<u8>, frames: impl Iterator<Item = u64>) -> Dump {
    let mut ranges: Vec<MemoryRange> = Vec::new();
    for start in frames {
        match ranges.last_mut() {
            Some(last) if last.end.0 == start => last.end = PhysAddr(start + FRAME),
            _ => ranges.push(MemoryRange {
                start: PhysAddr(start),
                end: PhysAddr(start + FRAME),
                offset: FileOffset(start),
            }),
        }
    }
    let size = bytes.len() as u64;
    Dump {
        memory: PhysicalMemory::owned(bytes, ranges).unwrap(),
        format: Format::Raw,
        compression: None,
        file_size: size,
        size,
        warnings: Vec::new(),
        damaged: false,
    }
}
