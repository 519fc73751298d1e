//! What each 4 KiB frame could be: a page table of some level, or one without entries. One byte a frame.

use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::{MemoryRange, PhysicalMemory};

/// The class of a frame of 4,096 zero bytes. In all other classes bit `L - 1` says that the frame
/// could be a page table of level `L`.
pub const ZERO_FRAME: u8 = 0x80;
/// The class of a frame that is not zero, but in which no entry is present: what it holds may be
/// anything, among that a table whose entries are all swapped out.
pub const ABSENT_FRAME: u8 = 0x40;

/// The classes of all frames that lie wholly in one range of the dump.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameClasses {
    /// Sorted by address.
    ranges: Vec<ClassRange>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ClassRange {
    first: PhysAddr,
    /// Frames in the ranges before it.
    before: usize,
    classes: Vec<u8>,
}

impl FrameClasses {
    /// Class 0 for every whole frame of `memory`.
    pub(super) fn unclassified(memory: &PhysicalMemory) -> Self {
        let mut before = 0;
        let class_range = |range: &MemoryRange| {
            let frames = PhysicalMemory::frames(range);
            let count = ((frames.end.0 - frames.start.0) / FRAME_SIZE) as usize;
            before += count;
            ClassRange { first: frames.start, before: before - count, classes: vec![0; count] }
        };
        Self { ranges: memory.ranges().iter().map(class_range).collect() }
    }

    /// The bytes to fill in, range by range.
    pub(super) fn ranges_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.ranges.iter_mut().map(|range| range.classes.as_mut_slice())
    }

    /// Gives the whole frames from an address on their classes, each with how many frames in a row have it; what is more than the
    /// dump has is left out.
    pub(super) fn fill(&mut self, start: PhysAddr, runs: &[(u8, u64)]) {
        let first = PhysAddr(start.0.checked_next_multiple_of(FRAME_SIZE).unwrap_or(u64::MAX));
        let after = self.ranges.partition_point(|range| range.first <= first);
        let Some(range) = after.checked_sub(1).and_then(|index| self.ranges.get_mut(index)) else { return };
        let skip = ((first.0 - range.first.0) / FRAME_SIZE) as usize;
        let mut classes = range.classes.iter_mut().skip(skip);
        for (class, count) in runs {
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            classes.by_ref().take(count).for_each(|frame| *frame = *class);
        }
    }

    /// The class of the frame that holds `pa`, if the dump holds that frame wholly.
    pub fn get(&self, pa: PhysAddr) -> Option<u8> {
        let (range, position) = self.locate(pa)?;
        range.classes.get(position).copied()
    }

    /// Position of the frame that holds `pa` among all frames that have a class, in the order of their addresses.
    pub fn position(&self, pa: PhysAddr) -> Option<usize> {
        let (range, position) = self.locate(pa)?;
        (position < range.classes.len()).then_some(range.before + position)
    }

    /// The range that could hold the frame, and the frame's position in it.
    fn locate(&self, pa: PhysAddr) -> Option<(&ClassRange, usize)> {
        let after = self.ranges.partition_point(|range| range.first <= pa);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        Some((range, ((pa.0 - range.first.0) / FRAME_SIZE) as usize))
    }

    /// All frames that could be a page table of one of the levels in `mask` (bit `L - 1` for level
    /// `L`) or, with [`ZERO_FRAME`] in it, are zero: address and class, sorted by address.
    pub fn with(&self, mask: u8) -> impl Iterator<Item = (PhysAddr, u8)> {
        self.ranges.iter().flat_map(move |range| {
            let addresses = (range.first.0..).step_by(FRAME_SIZE as usize).map(PhysAddr);
            addresses.zip(range.classes.iter().copied()).filter(move |(_, class)| class & mask != 0)
        })
    }

    /// Number of frames that have a class, the unremarkable ones included.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(|range| range.classes.len()).sum()
    }

    /// Whether there is no frame at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FileOffset;

    #[test]
    fn classes_are_found_by_address() {
        let range =
            |start, end, offset| MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset: FileOffset(offset) };
        let ranges = vec![range(0x1c00, 0x4bff, 0), range(0x10000, 0x12000, 0x3000)];
        let memory = PhysicalMemory::owned(vec![0; 0x8000], ranges).unwrap();
        let mut frames = FrameClasses::unclassified(&memory);
        for (range, classes) in frames.ranges_mut().zip([[1, ZERO_FRAME], [8, 0]]) {
            range.copy_from_slice(&classes);
        }
        assert_eq!(frames.len(), 4);
        assert_eq!(frames.get(PhysAddr(0x1fff)), None);
        assert_eq!(frames.get(PhysAddr(0x2fff)), Some(1));
        assert_eq!(frames.get(PhysAddr(0x3000)), Some(ZERO_FRAME));
        assert_eq!(frames.get(PhysAddr(0x4000)), None);
        assert_eq!(frames.get(PhysAddr(0x11000)), Some(0));
        assert_eq!(frames.get(PhysAddr(0x12000)), None);
        let positions =
            [0x1fff, 0x2fff, 0x3000, 0x4000, 0x10fff, 0x11000, 0x12000].map(|pa| frames.position(PhysAddr(pa)));
        assert_eq!(positions, [None, Some(0), Some(1), None, Some(2), Some(3), None]);
        let tables: Vec<_> = frames.with(0x7f).collect();
        assert_eq!(tables, [(PhysAddr(0x2000), 1), (PhysAddr(0x10000), 8)]);
    }
}
