//! Physical memory as a dump.

use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{Addresses, Dump, Format, MemoryRange, PhysicalMemory};

pub const FRAME: u64 = 0x1000;

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
    dump_with(bytes, ranges)
}

/// A dump of the whole of some bytes, which holds these ranges.
pub fn dump_with(bytes: Vec<u8>, ranges: Vec<MemoryRange>) -> Dump {
    let size = bytes.len() as u64;
    Dump {
        memory: PhysicalMemory::owned(bytes, ranges).unwrap(),
        addresses: Addresses::Physical,
        format: Format::Raw,
        compression: None,
        file_size: size,
        size,
        warnings: Vec::new(),
        damaged: false,
    }
}
