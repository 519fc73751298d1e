//! The segments of a core: what each mapping has in the dump, split where it has gaps.

use std::ops::Range;

use crate::addr::{FRAME_SIZE, VirtAddr};
use crate::diagnostic::{Code, Diagnostic};
use crate::linux::vma::Mapping;
use crate::paging::AddressSpace;

/// Segments of a core. A core with more is one that we do not read ourselves.
const MAX_SEGMENTS: usize = (1 << 20) - 1;
/// How often the bytes of a dump may be in a core. Programs map memory more than once, and some garbage collectors map all of it
/// three times; page tables that repeat make petabytes of a few pages.
const TIMES_THE_DUMP: u64 = 8;

/// A segment (`PT_LOAD`): the first bytes of it are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: VirtAddr,
    /// Bytes of the process's memory.
    pub(super) in_memory: u64,
    /// Bytes from the start on that the dump holds.
    pub(super) in_file: u64,
    /// Read, write, execute.
    pub(super) access: [bool; 3],
}

impl Segment {
    /// Where its bytes begin in the file, if those of the last one end at `end`: at the same place in a page as in memory.
    pub(super) fn start_in_file(&self, end: u64) -> u64 {
        end.next_multiple_of(FRAME_SIZE) + self.start.in_frame()
    }

    /// Where its bytes end; `end` again, if it has none.
    pub(super) fn end_in_file(&self, end: u64) -> u64 {
        if self.in_file == 0 { end } else { self.start_in_file(end) + self.in_file }
    }
}

/// The segments of a process, as they are collected.
pub(super) struct Segments {
    all: Vec<Segment>,
    /// Page tables that may still be read.
    budget: u64,
    /// Bytes that may still be in the file.
    left: u64,
    is_cut: bool,
}

impl Segments {
    /// None yet, of a dump with that many bytes of memory.
    pub(super) fn new(budget: u64, dump: u64) -> Self {
        Self { all: Vec::new(), budget, left: dump.saturating_mul(TIMES_THE_DUMP), is_cut: false }
    }

    /// Adds those of a mapping, which lies behind those before.
    pub(super) fn add(&mut self, space: &AddressSpace, mapping: &Mapping) {
        let range = mapping.start..mapping.end;
        let room = MAX_SEGMENTS.saturating_sub(self.all.len());
        // Each run may come with a gap before the first one.
        let (runs, is_all) = space.resident(range.clone(), &mut self.budget, room.saturating_sub(1));
        self.is_cut |= !is_all || room == 0;
        self.split(range, &runs, access(&mapping.permissions));
    }

    /// Adds a mapping of which the dump holds these parts.
    fn split(&mut self, range: Range<VirtAddr>, runs: &[Range<VirtAddr>], access: [bool; 3]) {
        let first = runs.first().map_or(range.end, |run| run.start);
        let gap = (range.start < first).then_some(range.start..range.start);
        let runs: Vec<Range<VirtAddr>> = gap.into_iter().chain(runs.iter().cloned()).collect();
        let ends = runs.iter().skip(1).map(|next| next.start).chain([range.end]);
        for (run, end) in runs.iter().zip(ends) {
            if self.all.len() >= MAX_SEGMENTS {
                self.is_cut = true;
                return;
            }
            let held = run.end.0 - run.start.0;
            let in_file = held.min(self.left);
            self.left -= in_file;
            self.is_cut |= in_file < held;
            self.all.push(Segment { start: run.start, in_memory: end.0 - run.start.0, in_file, access });
        }
    }

    /// The warning about what the bounds left out.
    pub(super) fn warning(&self) -> Option<Diagnostic> {
        let what =
            "its page tables map more than a process can have, or in too many pieces: the core does not have all of it";
        self.is_cut.then(|| Diagnostic::new(Code::IncompleteCore, None, what.to_owned()))
    }

    pub(super) fn into_all(self) -> Vec<Segment> {
        self.all
    }
}

/// Read, write, execute by the letters of /proc/PID/maps; what is not known is not set.
fn access(permissions: &str) -> [bool; 3] {
    ['r', 'w', 'x'].map(|letter| permissions.contains(letter))
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;

    fn split(range: Range<u64>, runs: &[Range<u64>]) -> Vec<(u64, u64, u64)> {
        let mut segments = Segments::new(0, 1 << 20);
        let address = |range: &Range<u64>| VirtAddr(range.start)..VirtAddr(range.end);
        let runs: Vec<_> = runs.iter().map(address).collect();
        segments.split(address(&range), &runs, [true, false, false]);
        assert_eq!(segments.warning(), None);
        segments.into_all().iter().map(|segment| (segment.start.0, segment.in_file, segment.in_memory)).collect()
    }

    #[test]
    fn mappings_are_split_at_gaps_and_nothing_is_filled() {
        assert_eq!(split(0x1000..0x5000, &[]), [(0x1000, 0, 0x4000)]);
        assert_eq!(split(0x1000..0x5000, &[0x1000..0x5000]), [(0x1000, 0x4000, 0x4000)]);
        assert_eq!(split(0x1000..0x5000, &[0x1000..0x2000]), [(0x1000, 0x1000, 0x4000)]);
        assert_eq!(split(0x1000..0x5000, &[0x2000..0x5000]), [(0x1000, 0, 0x1000), (0x2000, 0x3000, 0x3000)]);
        assert_eq!(
            split(0x1000..0x9000, &[0x2000..0x3000, 0x4000..0x6000, 0x8000..0x9000]),
            [(0x1000, 0, 0x1000), (0x2000, 0x1000, 0x2000), (0x4000, 0x2000, 0x4000), (0x8000, 0x1000, 0x1000)]
        );
    }

    #[test]
    fn bytes_lie_in_the_file_as_they_lie_in_a_page() {
        let segment =
            |start, in_file| Segment { start: VirtAddr(start), in_memory: 0x1000, in_file, access: [true; 3] };
        assert_eq!(segment(0x7000, 0x1000).end_in_file(0x10), 0x2000);
        assert_eq!(
            (segment(0x7c00, 0x200).start_in_file(0x2000), segment(0x7c00, 0x200).end_in_file(0x2000)),
            (0x2c00, 0x2e00)
        );
        assert_eq!(segment(0x7c00, 0).end_in_file(0x10), 0x10);
    }

    #[test]
    fn what_a_process_can_have_is_bounded() {
        let mut segments = Segments::new(0, 0x1000);
        let whole = VirtAddr(0)..VirtAddr(1 << 47);
        segments.split(whole.clone(), &[whole], [true; 3]);
        assert!(segments.warning().is_some());
        assert_eq!(segments.into_all()[0].in_file, 0x8000);

        let mut segments = Segments::new(0, 1 << 40);
        let pages: Vec<_> =
            (0..MAX_SEGMENTS as u64).map(|page| VirtAddr(page << 13)..VirtAddr(page << 13 | 1 << 12)).collect();
        segments.split(VirtAddr(0)..VirtAddr(1 << 40), &pages, [true; 3]);
        assert!(segments.warning().is_none());
        segments.split(VirtAddr(1 << 40)..VirtAddr(1 << 41), &[], [true; 3]);
        assert!(segments.warning().is_some());
        assert_eq!(segments.into_all().len(), MAX_SEGMENTS);
    }

    #[test]
    fn unknown_permissions_are_not_set() {
        assert_eq!(access("rw-p"), [true, true, false]);
        assert_eq!(access("r?x?"), [true, false, true]);
        assert_eq!(access("????"), [false; 3]);
    }
}
