//! Physical memory as the dump holds it: sorted ranges with holes between them, read without a copy.

use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;
use serde::Serialize;

use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};

/// One run of physical memory that lies in one piece in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryRange {
    /// First byte.
    pub start: PhysAddr,
    /// First byte that is no longer part of the range.
    pub end: PhysAddr,
    /// Where in the (unpacked) file the first byte lies.
    #[serde(skip)]
    pub offset: FileOffset,
}

impl MemoryRange {
    /// Bytes in the range.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u64 {
        self.end.0 - self.start.0
    }
}

/// Where the bytes are kept.
enum Backing {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// The physical memory of a machine: what of it the dump holds.
///
/// Of a process image it holds the virtual memory; addresses are then virtual ones, as on a machine whose page tables map each
/// address to itself.
///
/// Ranges are sorted, do not overlap, are not empty and lie inside the backing bytes; the
/// constructor sees to it, so that reading needs no further checks.
#[derive(Clone)]
pub struct PhysicalMemory {
    backing: Arc<Backing>,
    ranges: Vec<MemoryRange>,
    /// Sorted, without overlap.
    code: Vec<Range<PhysAddr>>,
}

/// Why a set of ranges is no physical memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RangeError {
    /// Two ranges claim the same physical addresses.
    #[error("the ranges {0:?} and {1:?} overlap")]
    Overlap(MemoryRange, MemoryRange),
    /// A range reaches past the end of the bytes.
    #[error("the range {0:?} ends past the end of the file ({1} bytes)")]
    PastEnd(MemoryRange, u64),
}

/// Which memory something was made of. It does not keep the bytes, but no other memory can have the same key.
#[cfg(feature = "gpu")]
pub(crate) struct MemoryKey {
    backing: std::sync::Weak<Backing>,
    ranges: Vec<MemoryRange>,
}

#[cfg(feature = "gpu")]
impl PartialEq for MemoryKey {
    fn eq(&self, other: &Self) -> bool {
        self.backing.ptr_eq(&other.backing) && self.ranges == other.ranges
    }
}

impl PhysicalMemory {
    /// The memory of a mapped file.
    pub fn mapped(map: Mmap, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        Self::new(Arc::new(Backing::Mapped(map)), ranges)
    }

    /// Memory held in a buffer, for synthetic dumps and benchmarks.
    pub fn owned(bytes: Vec<u8>, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        Self::new(Arc::new(Backing::Owned(bytes)), ranges)
    }

    /// The same memory, of which these ranges are known to hold code: a process image says so, of a machine its page tables do.
    pub fn with_code(mut self, mut code: Vec<Range<PhysAddr>>) -> Self {
        code.sort_by_key(|range| range.start);
        self.code = code;
        self
    }

    /// Whether the byte at `pa` lies in a range that is known to hold code.
    pub fn is_code(&self, pa: PhysAddr) -> bool {
        let after = self.code.partition_point(|range| range.start <= pa);
        after.checked_sub(1).and_then(|before| self.code.get(before)).is_some_and(|range| pa < range.end)
    }

    /// The same bytes with other addresses; none of them is known to hold code.
    ///
    /// # Errors
    /// As for the other constructors.
    pub fn with_ranges(&self, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        Self::new(Arc::clone(&self.backing), ranges)
    }

    /// What of this memory lies in one of these ranges of addresses; ranges that touch are one.
    pub fn only(&self, wanted: &[Range<PhysAddr>]) -> Self {
        let mut sorted = wanted.to_vec();
        sorted.sort_by_key(|part| part.start);
        let mut parts: Vec<Range<PhysAddr>> = Vec::new();
        for part in sorted {
            match parts.last_mut() {
                Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
                _ => parts.push(part),
            }
        }
        let cut = |range: &MemoryRange, part: &Range<PhysAddr>| {
            let start = range.start.max(part.start);
            let offset = FileOffset(range.offset.0 + (start.0 - range.start.0));
            let cut = MemoryRange { start, end: range.end.min(part.end), offset };
            (cut.start < cut.end).then_some(cut)
        };
        let ranges = self.ranges.iter().flat_map(|range| parts.iter().filter_map(move |part| cut(range, part)));
        Self { backing: Arc::clone(&self.backing), ranges: ranges.collect(), code: self.code.clone() }
    }

    fn new(backing: Arc<Backing>, mut ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_by_key(|r| r.start);
        for (a, b) in ranges.iter().zip(ranges.iter().skip(1)) {
            if b.start < a.end {
                return Err(RangeError::Overlap(*a, *b));
            }
        }
        let memory = Self { backing, ranges, code: Vec::new() };
        let size = memory.backing_bytes().len() as u64;
        for r in &memory.ranges {
            if r.offset.0.checked_add(r.len()).is_none_or(|end| end > size) {
                return Err(RangeError::PastEnd(*r, size));
            }
        }
        Ok(memory)
    }

    /// What tells this memory from any other, now and later.
    #[cfg(feature = "gpu")]
    pub(crate) fn key(&self) -> MemoryKey {
        MemoryKey { backing: Arc::downgrade(&self.backing), ranges: self.ranges.clone() }
    }

    fn backing_bytes(&self) -> &[u8] {
        match &*self.backing {
            Backing::Mapped(map) => map,
            Backing::Owned(bytes) => bytes,
        }
    }

    /// The ranges, sorted by address.
    pub fn ranges(&self) -> &[MemoryRange] {
        &self.ranges
    }

    /// Bytes of physical memory in the dump.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(MemoryRange::len).sum()
    }

    /// First address above all ranges.
    pub fn end(&self) -> PhysAddr {
        self.ranges.last().map_or(PhysAddr(0), |r| r.end)
    }

    /// The range that holds `pa`.
    pub fn range_of(&self, pa: PhysAddr) -> Option<&MemoryRange> {
        let after = self.ranges.partition_point(|r| r.start <= pa);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (pa < range.end).then_some(range)
    }

    /// Whether the dump holds the byte at `pa`.
    pub fn contains(&self, pa: PhysAddr) -> bool {
        self.range_of(pa).is_some()
    }

    /// The bytes of one range.
    pub fn range_bytes(&self, range: &MemoryRange) -> &[u8] {
        let start = range.offset.0 as usize;
        self.backing_bytes().get(start..start + range.len() as usize).unwrap_or_default()
    }

    /// The `len` bytes at `pa`, without a copy, where one range holds them all.
    pub fn bytes(&self, pa: PhysAddr, len: u64) -> Option<&[u8]> {
        let range = self.range_of(pa)?;
        let skip = pa.0 - range.start.0;
        if range.len() - skip < len {
            return None;
        }
        let start = (range.offset.0 + skip) as usize;
        self.backing_bytes().get(start..start + len as usize)
    }

    /// Where in the (unpacked) file the byte at `pa` lies.
    pub fn file_offset(&self, pa: PhysAddr) -> Option<FileOffset> {
        self.range_of(pa).map(|range| FileOffset(range.offset.0 + (pa.0 - range.start.0)))
    }

    /// The little-endian 64-bit word at `pa`.
    pub fn read_u64(&self, pa: PhysAddr) -> Option<u64> {
        self.bytes(pa, 8).map(bytemuck::pod_read_unaligned).map(u64::from_le)
    }

    /// The whole frames of a range: page-aligned addresses whose 4,096 bytes all lie in it.
    pub fn frames(range: &MemoryRange) -> Range<PhysAddr> {
        let first = range.start.0.checked_next_multiple_of(FRAME_SIZE).unwrap_or(range.end.0);
        let end = range.end.frame().0.max(first);
        PhysAddr(first)..PhysAddr(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64, offset: u64) -> MemoryRange {
        MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset: FileOffset(offset) }
    }

    #[test]
    fn reads_stop_at_holes() {
        let bytes: Vec<u8> = (0..0x30u8).collect();
        let memory = PhysicalMemory::owned(bytes, vec![range(0x2000, 0x2010, 0x20), range(0x1000, 0x1020, 0)]).unwrap();
        assert_eq!(memory.size(), 0x30);
        assert_eq!(memory.bytes(PhysAddr(0x1010), 2), Some(&[0x10, 0x11][..]));
        assert_eq!(memory.bytes(PhysAddr(0x2000), 1), Some(&[0x20][..]));
        assert_eq!(memory.bytes(PhysAddr(0x101f), 2), None);
        assert_eq!(memory.bytes(PhysAddr(0x1800), 1), None);
        assert_eq!(memory.bytes(PhysAddr(0xfff), 1), None);
        assert_eq!(memory.bytes(PhysAddr(0x1000), u64::MAX), None);
        assert_eq!(memory.read_u64(PhysAddr(0x2008)), Some(0x2f2e_2d2c_2b2a_2928));
        assert_eq!(memory.read_u64(PhysAddr(0x2009)), None);
    }

    #[test]
    fn a_part_is_cut_out_once_and_knows_its_offsets() {
        let memory =
            PhysicalMemory::owned(vec![0; 0x50], vec![range(0x1000, 0x1020, 0), range(0x2000, 0x2010, 0x30)]).unwrap();
        let part = |start, end| PhysAddr(start)..PhysAddr(end);
        let cut = memory.only(&[part(0x1018, 0x2004), part(0x1008, 0x1010), part(0x100c, 0x1014), part(0, 0x1000)]);
        let expected = [range(0x1008, 0x1014, 0x8), range(0x1018, 0x1020, 0x18), range(0x2000, 0x2004, 0x30)];
        assert_eq!(cut.ranges(), expected);
        assert_eq!(memory.file_offset(PhysAddr(0x2008)), Some(FileOffset(0x38)));
        assert_eq!(memory.file_offset(PhysAddr(0x2010)), None);
    }

    #[test]
    fn ranges_are_checked() {
        let overlap = PhysicalMemory::owned(vec![0; 64], vec![range(0, 32, 0), range(16, 48, 32)]);
        assert!(matches!(overlap, Err(RangeError::Overlap(..))));
        let past = PhysicalMemory::owned(vec![0; 64], vec![range(0, 65, 0)]);
        assert!(matches!(past, Err(RangeError::PastEnd(..))));
        let wraps = PhysicalMemory::owned(vec![0; 64], vec![range(0, 8, u64::MAX)]);
        assert!(matches!(wraps, Err(RangeError::PastEnd(..))));
    }

    #[test]
    fn only_whole_frames_are_frames() {
        let frames = PhysicalMemory::frames(&range(0x1c00, 0x4bff, 0));
        assert_eq!(frames, PhysAddr(0x2000)..PhysAddr(0x4000));
        assert!(PhysicalMemory::frames(&range(0x1c00, 0x1fff, 0)).is_empty());
        assert!(PhysicalMemory::frames(&range(u64::MAX - 8, u64::MAX, 0)).is_empty());
    }
}
