//! Chunks of physical memory: what one thread looks at while it is in its cache.

use std::ops::Range;

use super::frames::FrameClasses;
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::{MemoryRange, PhysicalMemory};

/// Bytes of a chunk: needles are searched in a pass of their own, and should find it in the L2 cache.
pub(super) const CHUNK_SIZE: u64 = 256 << 10;

/// Bytes that lie one after the other in physical memory.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// Address of the first byte.
    pub(super) start: PhysAddr,
    pub(super) bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// The bytes of `addresses`, which must lie in this view.
    pub(super) fn part(self, addresses: Range<PhysAddr>) -> Self {
        let from = addresses.start.0.wrapping_sub(self.start.0) as usize;
        let to = addresses.end.0.wrapping_sub(self.start.0) as usize;
        Self { start: addresses.start, bytes: self.bytes.get(from..to).unwrap_or_default() }
    }

    /// First address after the view.
    pub(super) fn end(self) -> PhysAddr {
        PhysAddr(self.start.0 + self.bytes.len() as u64)
    }

    /// The whole frames in it; empty, at its end, if there is none.
    pub(super) fn whole_frames(self) -> View<'a> {
        let first = self.start.0.checked_next_multiple_of(FRAME_SIZE).unwrap_or(u64::MAX).min(self.end().0);
        self.part(PhysAddr(first)..self.end().frame().max(PhysAddr(first)))
    }

    /// The view frame by frame; the first and the last may be parts of a frame.
    pub(super) fn frames(self) -> impl Iterator<Item = View<'a>> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let in_frame = (FRAME_SIZE - rest.start.in_frame()) as usize;
            let (frame, after) = rest.bytes.split_at_checked(in_frame).unwrap_or((rest.bytes, &[]));
            let view = View { start: rest.start, bytes: frame };
            rest = View { start: view.end(), bytes: after };
            (!frame.is_empty()).then_some(view)
        })
    }
}

/// A piece of one range, cut on frame borders.
pub(super) struct Chunk<'a> {
    /// The whole range, for what crosses the borders of chunks.
    pub(super) range: View<'a>,
    /// The chunk.
    pub(super) view: View<'a>,
    /// The whole frames in it, and their classes to fill in.
    pub(super) whole_frames: (View<'a>, &'a mut [u8]),
}

impl<'a> Chunk<'a> {
    /// What lies before and after the whole frames; only at the ends of a range there is something.
    pub(super) fn partial_frames(&self) -> impl Iterator<Item = View<'a>> + use<'a> {
        let whole = self.whole_frames.0;
        let before = self.view.part(self.view.start..whole.start);
        let after = self.view.part(whole.end()..self.view.end());
        before.frames().chain(after.frames())
    }
}

/// All chunks of `memory`, with the classes of their frames.
pub(super) fn split<'a>(memory: &'a PhysicalMemory, classes: &'a mut FrameClasses) -> Vec<Chunk<'a>> {
    let mut chunks = Vec::new();
    for (range, classes) in memory.ranges().iter().zip(classes.ranges_mut()) {
        split_range(memory, range, classes, &mut chunks);
    }
    chunks
}

fn split_range<'a>(
    memory: &'a PhysicalMemory,
    range: &MemoryRange,
    mut classes: &'a mut [u8],
    chunks: &mut Vec<Chunk<'a>>,
) {
    let whole_view = View { start: range.start, bytes: memory.range_bytes(range) };
    let frames = PhysicalMemory::frames(range);
    for addresses in pieces(range.start..range.end) {
        // Where no whole frame is in the chunk, `start..start` at its end keeps `partial_frames` right.
        let first = frames.start.clamp(addresses.start, addresses.end);
        let last = frames.end.clamp(first, addresses.end);
        let count = (last.0 - first.0) / FRAME_SIZE;
        let (of_chunk, rest) = std::mem::take(&mut classes).split_at_mut_checked(count as usize).unwrap_or_default();
        classes = rest;
        let view = whole_view.part(addresses);
        chunks.push(Chunk { range: whole_view, view, whole_frames: (whole_view.part(first..last), of_chunk) });
    }
}

/// `addresses` cut at the multiples of the chunk size.
pub(super) fn pieces(addresses: Range<PhysAddr>) -> impl Iterator<Item = Range<PhysAddr>> {
    let mut start = addresses.start.0;
    std::iter::from_fn(move || {
        let border = (start / CHUNK_SIZE).saturating_add(1).saturating_mul(CHUNK_SIZE);
        let end = border.min(addresses.end.0);
        let piece = (start < end).then_some(PhysAddr(start)..PhysAddr(end));
        start = end;
        piece
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FileOffset;

    fn memory(ranges: &[(u64, u64)]) -> PhysicalMemory {
        let mut offset = 3;
        let ranges = ranges.iter().map(|&(start, end)| {
            let range = MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset: FileOffset(offset) };
            offset += end - start;
            range
        });
        let ranges: Vec<_> = ranges.collect();
        PhysicalMemory::owned(vec![0; offset as usize], ranges).unwrap()
    }

    #[test]
    fn every_byte_is_in_one_chunk_and_every_whole_frame_is_whole() {
        let top = u64::MAX - 0x2345;
        let memory =
            memory(&[(0x234, 0x900), (0x1c01, 3 * CHUNK_SIZE + 0x1234), (1 << 40, (1 << 40) + 1), (top, u64::MAX)]);
        let mut classes = FrameClasses::unclassified(&memory);
        let expected_frames = classes.len();
        let chunks = split(&memory, &mut classes);
        let bytes: usize = chunks.iter().map(|c| c.view.bytes.len()).sum();
        assert_eq!(bytes as u64, memory.size());
        let mut frames = 0;
        for chunk in &chunks {
            let (whole, classes) = &chunk.whole_frames;
            assert_eq!(whole.bytes.len(), classes.len() * 4096);
            assert!(whole.bytes.is_empty() || whole.start.in_frame() == 0);
            let partial: Vec<_> = chunk.partial_frames().collect();
            let parts: usize = partial.iter().map(|v| v.bytes.len()).sum();
            assert_eq!(parts + whole.bytes.len(), chunk.view.bytes.len());
            assert!(partial.iter().all(|v| v.bytes.len() < 4096 && v.start.frame() == PhysAddr(v.end().0 - 1).frame()));
            frames += classes.len();
        }
        assert_eq!(frames, expected_frames);
    }
}
