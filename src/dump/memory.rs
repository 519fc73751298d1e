//! Physical memory as the dump holds it: sorted ranges with holes between them, read without a copy.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::fill::FilledFile;
use super::mapped::{Absence, Mappings};
use super::remote::RemoteFile;
use super::shards::RemoteMemory;
use super::{DumpError, MappedFile};
use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};

/// One run of physical memory that lies in one piece in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryRange {
    /// First byte.
    pub start: PhysAddr,
    /// First byte that is no longer part of the range.
    pub end: PhysAddr,
    /// Offset of the first byte in the (unpacked) file; past its end for memory that was filled from other files.
    #[serde(skip)]
    pub offset: FileOffset,
}

impl MemoryRange {
    /// Bytes in the range.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub fn len(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// What of the range lies at these addresses, if anything does.
    pub(super) fn part(&self, addresses: Range<PhysAddr>) -> Option<Self> {
        let start = self.start.max(addresses.start);
        let end = self.end.min(addresses.end);
        let offset = FileOffset(self.offset.0 + start.0.saturating_sub(self.start.0));
        (start < end).then_some(Self { start, end, offset })
    }
}

/// The parts of an address range that are in none of the other ranges, which are sorted and do not overlap.
pub(super) fn subtract<T>(
    from: Range<PhysAddr>,
    others: &[T],
    addresses: impl Fn(&T) -> Range<PhysAddr>,
) -> Vec<Range<PhysAddr>> {
    let mut left = Vec::new();
    let mut start = from.start;
    let first = others.partition_point(|other| addresses(other).end <= from.start);
    let others = others.iter().skip(first).map(addresses).take_while(|other| other.start < from.end);
    for other in others {
        left.push(start..other.start);
        start = start.max(other.end);
    }
    left.push(start..from.end);
    left.retain(|part| part.start < part.end);
    left
}

/// Ranges of addresses sorted; those that touch are one.
pub(super) fn joined(ranges: &[Range<PhysAddr>]) -> Vec<Range<PhysAddr>> {
    let mut sorted: Vec<Range<PhysAddr>> = ranges.iter().filter(|range| range.start < range.end).cloned().collect();
    sorted.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<PhysAddr>> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Where the bytes are kept.
pub(crate) enum Backing {
    Mapped(MappedFile),
    Owned(Vec<u8>),
    Remote(Box<RemoteFile>),
}

impl From<Vec<u8>> for Backing {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

impl From<MappedFile> for Backing {
    fn from(map: MappedFile) -> Self {
        Self::Mapped(map)
    }
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
    /// What is known to hold no objects: sorted, without overlap.
    unsearchable: Vec<Range<PhysAddr>>,
    /// What else is known about the mappings of a process.
    mappings: Arc<Mappings>,
    /// Files that some ranges come from. Their offsets continue after the bytes of the dump.
    files: Arc<[FilledFile]>,
}

/// A run of memory that comes from another file than the dump.
#[derive(Clone, Debug)]
pub struct FilledPart<'a> {
    /// Its addresses.
    pub addresses: Range<PhysAddr>,
    /// The file.
    pub file: &'a FilledFile,
    /// Where in that file it begins, in bytes.
    pub offset: u64,
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
    pub fn mapped(map: impl Into<MappedFile>, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        Self::new(Arc::new(Backing::Mapped(map.into())), ranges)
    }

    /// The memory of a dump that lies elsewhere.
    pub(super) fn elsewhere(file: RemoteFile, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        Self::new(Arc::new(Backing::Remote(Box::new(file))), ranges)
    }

    /// This memory as that of a dump that lies elsewhere, if it does: what looks at much of it must ask those who have it.
    pub fn remote(&self) -> Option<RemoteMemory<'_>> {
        match &*self.backing {
            Backing::Remote(file) => Some(RemoteMemory { file, memory: self }),
            Backing::Mapped(_) | Backing::Owned(_) => None,
        }
    }

    /// Fetches what will be read soon, if it lies elsewhere: many parts at once take as long as one.
    pub fn fetch(&self, wanted: impl IntoIterator<Item = Range<PhysAddr>>) {
        if let Backing::Remote(file) = &*self.backing {
            let parts = wanted.into_iter().flat_map(|wanted| self.parts(wanted));
            file.fetch(parts.map(|part| part.offset.0..part.offset.0 + part.len()));
        }
    }

    /// Checks that everything that was read could be read and has not changed. Call this before anything is reported.
    ///
    /// # Errors
    /// A page of the file could not be read, and [`catch_unreadable_pages`](super::catch_unreadable_pages) kept the
    /// process alive; or the size or modification time of the file has changed since it was opened.
    pub fn check(&self) -> Result<(), DumpError> {
        match &*self.backing {
            Backing::Mapped(map) => map.check()?,
            Backing::Remote(file) => file.check()?,
            Backing::Owned(_) => {}
        }
        self.files.iter().try_for_each(FilledFile::check)
    }

    /// Whether a page could not be read. Long work can stop then, because [`PhysicalMemory::check`] will fail.
    pub fn is_lost(&self) -> bool {
        let is_lost = match &*self.backing {
            Backing::Mapped(map) => map.is_lost(),
            Backing::Remote(file) => file.is_lost(),
            Backing::Owned(_) => false,
        };
        is_lost || self.files.iter().any(FilledFile::is_lost)
    }

    /// Memory held in a buffer, for synthetic dumps and benchmarks.
    pub fn owned(bytes: Vec<u8>, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        Self::new(Arc::new(Backing::Owned(bytes)), ranges)
    }

    /// Bytes that have no addresses yet: see [`PhysicalMemory::with_ranges`].
    pub(crate) fn unaddressed(bytes: impl Into<Backing>) -> Self {
        let (mappings, files) = (Arc::default(), Arc::default());
        Self { backing: Arc::new(bytes.into()), ranges: Vec::new(), unsearchable: Vec::new(), mappings, files }
    }

    /// The same memory, of which these ranges are known to hold no objects of a program.
    pub fn with_unsearchable(mut self, unsearchable: &[Range<PhysAddr>]) -> Self {
        self.unsearchable = joined(unsearchable);
        self
    }

    /// What of this memory is worth a search for objects: all but what is known to hold none.
    pub fn searchable(&self) -> Self {
        let searchable = |range: &MemoryRange| subtract(range.start..range.end, &self.unsearchable, Clone::clone);
        let parts =
            self.ranges.iter().flat_map(|range| searchable(range).into_iter().filter_map(|part| range.part(part)));
        let ranges = parts.collect();
        Self { ranges, unsearchable: Vec::new(), ..self.share() }
    }

    /// The same bytes without a range.
    fn share(&self) -> Self {
        let (backing, mappings, files) = (&self.backing, &self.mappings, &self.files);
        Self {
            backing: Arc::clone(backing),
            ranges: Vec::new(),
            unsearchable: Vec::new(),
            mappings: Arc::clone(mappings),
            files: Arc::clone(files),
        }
    }

    /// The same memory as an image of a process with these mappings.
    pub(super) fn with_mappings(self, mappings: Mappings) -> Self {
        Self { mappings: Arc::new(mappings), ..self }
    }

    /// The same memory with additional ranges from these files, which are read but not searched.
    ///
    /// # Errors
    /// As for the constructors.
    pub(super) fn with_files(&self, files: Vec<FilledFile>, filled: Vec<MemoryRange>) -> Result<Self, RangeError> {
        let unsearchable: Vec<_> =
            filled.iter().map(|range| range.start..range.end).chain(self.unsearchable.clone()).collect();
        let ranges = self.ranges.iter().copied().chain(filled).collect();
        let memory = Self { files: files.into(), ..self.share() };
        Ok(memory.checked(ranges)?.with_unsearchable(&unsearchable))
    }

    /// The same bytes with other addresses.
    ///
    /// # Errors
    /// As for the other constructors.
    pub fn with_ranges(&self, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        self.share().checked(ranges)
    }

    /// What of this memory lies in one of these ranges of addresses; ranges that touch are one.
    pub fn only(&self, wanted: &[Range<PhysAddr>]) -> Self {
        let parts = joined(wanted);
        let ranges = self.ranges.iter().flat_map(|range| parts.iter().filter_map(move |part| range.part(part.clone())));
        Self { ranges: ranges.collect(), unsearchable: self.unsearchable.clone(), ..self.share() }
    }

    fn new(backing: Arc<Backing>, ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        let (mappings, files) = (Arc::default(), Arc::default());
        Self { backing, ranges: Vec::new(), unsearchable: Vec::new(), mappings, files }.checked(ranges)
    }

    /// The same bytes with these ranges.
    fn checked(self, mut ranges: Vec<MemoryRange>) -> Result<Self, RangeError> {
        ranges.retain(|r| r.start < r.end);
        ranges.sort_by_key(|r| r.start);
        for (a, b) in ranges.iter().zip(ranges.iter().skip(1)) {
            if b.start < a.end {
                return Err(RangeError::Overlap(*a, *b));
            }
        }
        let size = self.files.last().map_or(self.backing_len(), FilledFile::end);
        for r in &ranges {
            if r.offset.0.checked_add(r.len()).is_none_or(|end| end > size) {
                return Err(RangeError::PastEnd(*r, size));
            }
        }
        Ok(Self { ranges, ..self })
    }

    /// What tells this memory from any other, now and later.
    #[cfg(feature = "gpu")]
    pub(crate) fn key(&self) -> MemoryKey {
        MemoryKey { backing: Arc::downgrade(&self.backing), ranges: self.ranges.clone() }
    }

    /// When the file of the dump was last written to, where that is known.
    pub fn modified(&self) -> Option<SystemTime> {
        match &*self.backing {
            Backing::Mapped(map) => map.modified(),
            Backing::Owned(_) | Backing::Remote(_) => None,
        }
    }

    /// All bytes that the memory is made of, if they are all here.
    pub(crate) fn all_bytes(&self) -> &[u8] {
        match &*self.backing {
            Backing::Mapped(map) => map,
            Backing::Owned(bytes) => bytes,
            Backing::Remote(_) => &[],
        }
    }

    /// Bytes of the dump itself.
    pub(super) fn backing_len(&self) -> u64 {
        match &*self.backing {
            Backing::Mapped(map) => map.len() as u64,
            Backing::Owned(bytes) => bytes.len() as u64,
            Backing::Remote(file) => file.len(),
        }
    }

    /// Bytes at an offset that counts through the dump and the files after it.
    #[inline]
    fn bytes_at_offset(&self, offset: u64, len: u64) -> Option<&[u8]> {
        if let Backing::Remote(file) = &*self.backing {
            // Only a process image has files besides, and none is read from elsewhere.
            return file.bytes(offset, len);
        }
        let backing = self.all_bytes().get(offset as usize..(offset + len) as usize);
        if backing.is_some() || self.files.is_empty() { backing } else { self.filled_bytes(offset, len) }
    }

    #[cold]
    fn filled_bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        self.file_at(offset)?.bytes(offset, len)
    }

    /// The file that the byte at an offset comes from, where it is not the dump.
    fn file_at(&self, offset: u64) -> Option<&FilledFile> {
        let after = self.files.partition_point(|file| file.base() <= offset);
        self.files.get(after.checked_sub(1)?)
    }

    /// What else is known about the mappings of the process, if this is a process image.
    pub fn mappings(&self) -> &Mappings {
        &self.mappings
    }

    /// Why a process image does not hold an address.
    pub fn absence(&self, pa: PhysAddr) -> Absence {
        let size =
            |path: &std::path::Path| self.files.iter().find(|file| *file.recorded == *path).map(|file| file.size);
        self.mappings.absence(pa, |mapping| size(&mapping.path))
    }

    /// The same as text.
    pub fn explain(&self, pa: PhysAddr, absence: Absence) -> String {
        self.mappings.explain(pa, absence)
    }

    /// The files other than the dump that memory comes from.
    pub fn files(&self) -> &[FilledFile] {
        &self.files
    }

    /// The parts of these addresses that come from files other than the dump, by address.
    pub fn filled(&self, addresses: Range<PhysAddr>) -> impl Iterator<Item = FilledPart<'_>> {
        // Without such files there is nothing to look through.
        let addresses = if self.files.is_empty() { PhysAddr(0)..PhysAddr(0) } else { addresses };
        self.parts(addresses).filter_map(|part| {
            let file = self.file_at(part.offset.0)?;
            Some(FilledPart { addresses: part.start..part.end, file, offset: part.offset.0 - file.base() })
        })
    }

    /// The parts of the ranges at these addresses, by address.
    pub fn parts(&self, addresses: Range<PhysAddr>) -> impl Iterator<Item = MemoryRange> {
        let first = self.ranges.partition_point(|range| range.end <= addresses.start);
        let end = addresses.end;
        let here = self.ranges.iter().skip(first).take_while(move |range| range.start < end);
        here.filter_map(move |range| range.part(addresses.clone()))
    }

    /// Bytes of these addresses that are held.
    pub fn held(&self, addresses: Range<PhysAddr>) -> u64 {
        self.parts(addresses).map(|part| part.len()).sum()
    }

    /// The ranges that come from the dump itself.
    pub fn own_ranges(&self) -> impl Iterator<Item = &MemoryRange> {
        self.ranges.iter().filter(|range| self.file_at(range.offset.0).is_none())
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
    #[inline]
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
        self.bytes_at_offset(range.offset.0, range.len()).unwrap_or_default()
    }

    /// The bytes from `pa` on to the end of its range, without a copy, but no more than `most`; and of a dump that lies elsewhere no
    /// more than is worth to be fetched, at least as many of `most` as a frame has.
    #[inline]
    pub fn bytes_from(&self, pa: PhysAddr, most: u64) -> Option<&[u8]> {
        let range = self.range_of(pa)?;
        let offset = range.offset.0 + (pa.0 - range.start.0);
        let most = most.min(range.end.0 - pa.0);
        let is_elsewhere = matches!(&*self.backing, Backing::Remote(_));
        self.bytes_at_offset(offset, if is_elsewhere { RemoteFile::worthwhile(offset, most) } else { most })
    }

    /// The `len` bytes at `pa`, without a copy, where one range holds them all.
    #[inline]
    pub fn bytes(&self, pa: PhysAddr, len: u64) -> Option<&[u8]> {
        let range = self.range_of(pa)?;
        let skip = pa.0 - range.start.0;
        if range.len() - skip < len {
            return None;
        }
        self.bytes_at_offset(range.offset.0 + skip, len)
    }

    /// Offset in the (unpacked) file of the byte at `pa`; `None` if the byte comes from another file.
    pub fn file_offset(&self, pa: PhysAddr) -> Option<FileOffset> {
        let range = self.range_of(pa).filter(|range| self.file_at(range.offset.0).is_none())?;
        Some(FileOffset(range.offset.0 + (pa.0 - range.start.0)))
    }

    /// The little-endian 64-bit word at `pa`.
    #[inline]
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
    fn what_holds_no_objects_is_read_and_not_searched() {
        let part = |start, end| PhysAddr(start)..PhysAddr(end);
        let ranges = vec![range(0x1000, 0x1020, 0), range(0x2000, 0x2010, 0x30)];
        let memory = PhysicalMemory::owned(vec![7; 0x50], ranges.clone()).unwrap();
        assert_eq!(memory.searchable().ranges(), ranges);
        let unsearchable = [part(0x1f00, 0x2004), part(0x1008, 0x1010), part(0x100c, 0x1014), part(0x200c, 0x3000)];
        let memory = memory.with_unsearchable(&unsearchable);
        let expected = [range(0x1000, 0x1008, 0), range(0x1014, 0x1020, 0x14), range(0x2004, 0x200c, 0x34)];
        assert_eq!(memory.searchable().ranges(), expected);
        assert_eq!(memory.bytes(PhysAddr(0x1000), 0x20), Some(&[7; 0x20][..]));
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
