//! Ranges that claim the same memory: the first in the file keeps it, later ones are trimmed.
//!
//! /proc/kcore and /proc/vmcore list the kernel's text twice; a hostile file may list anything.

use std::collections::BTreeMap;

use super::MemoryRange;
use crate::addr::{FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};

/// Addresses that are already spoken for.
#[derive(Default)]
pub(super) struct Coverage {
    /// Start to end of each covered stretch. Stretches that touch are merged, so that a range that
    /// spans a million others costs that only once.
    covered: BTreeMap<u64, u64>,
    /// The first address that was claimed twice, and how many bytes were.
    overlap: Option<(PhysAddr, u64)>,
}

impl Coverage {
    /// Appends to `ranges` the parts of `range` that no earlier one claims.
    pub(super) fn claim(&mut self, range: MemoryRange, ranges: &mut Vec<MemoryRange>) {
        let (start, end) = (range.start.0, range.end.0);
        if start >= end {
            return;
        }
        let mut merged = (start, end);
        let mut free = start;
        // The stretch before may reach into the range; further ones start within or at its end.
        let before = self.covered.range(..start).next_back().filter(|(_, e)| **e >= start).map(|(s, e)| (*s, *e));
        let within = self.covered.range(start..=end).map(|(s, e)| (*s, *e));
        let touched: Vec<(u64, u64)> = before.into_iter().chain(within).collect();
        for (s, e) in touched {
            self.covered.remove(&s);
            merged = (merged.0.min(s), merged.1.max(e));
            push(&range, free, s, ranges);
            let (from, to) = (s.max(start), e.min(end));
            if from < to {
                let (_, bytes) = self.overlap.get_or_insert((PhysAddr(from), 0));
                *bytes = bytes.saturating_add(to - from);
            }
            free = free.max(e);
        }
        push(&range, free, end, ranges);
        self.covered.insert(merged.0, merged.1);
    }

    /// What was trimmed, or `None` where nothing was.
    pub(super) fn warning(&self) -> Option<Diagnostic> {
        let (at, bytes) = self.overlap?;
        let message = format!(
            "ranges overlap by {bytes} bytes in all, first at address {at}: the copy that comes first in the file is \
             used"
        );
        Some(Diagnostic::new(Code::OverlappingRanges, Some(at.into()), message))
    }
}

/// The part of `range` from `from` to `to`, where there is one.
fn push(range: &MemoryRange, from: u64, to: u64, ranges: &mut Vec<MemoryRange>) {
    if from >= to {
        return;
    }
    // Cannot saturate for a range that lies inside a file; a wrong offset would fail the later check.
    let offset = range.offset.0.saturating_add(from - range.start.0);
    ranges.push(MemoryRange { start: PhysAddr(from), end: PhysAddr(to), offset: FileOffset(offset) });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Start, end, and offset in the file.
    type Claim = (u64, u64, u64);

    fn resolve_overlaps(claims: &[Claim]) -> (Vec<Claim>, Option<(PhysAddr, u64)>) {
        let (mut coverage, mut ranges) = (Coverage::default(), Vec::new());
        for &(start, end, offset) in claims {
            let range = MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset: FileOffset(offset) };
            coverage.claim(range, &mut ranges);
        }
        (ranges.iter().map(|r| (r.start.0, r.end.0, r.offset.0)).collect(), coverage.overlap)
    }

    #[test]
    fn the_first_keeps_what_the_later_claims() {
        let (ranges, overlap) = resolve_overlaps(&[(10, 20, 0), (30, 40, 10), (5, 50, 100)]);
        assert_eq!(ranges, [(10, 20, 0), (30, 40, 10), (5, 10, 100), (20, 30, 115), (40, 50, 135)]);
        assert_eq!(overlap, Some((PhysAddr(10), 20)));
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert_eq!(resolve_overlaps(&[(10, 20, 0), (20, 30, 10), (0, 10, 20)]).1, None);
    }

    #[test]
    fn many_ranges_under_many_more_end_soon() {
        let small = (0..100_000u64).map(|i| (2 * i, 2 * i + 1, 0));
        let large = (0..100_000u64).map(|_| (0, 200_000, 0));
        let (ranges, _) = resolve_overlaps(&small.chain(large).collect::<Vec<_>>());
        assert_eq!(ranges.len(), 200_000);
    }

    proptest! {
        #[test]
        fn each_byte_comes_from_its_first_claim(
            claims in prop::collection::vec((0u64..60, 0u64..20, 0u64..1000), 0..12)
        ) {
            let claims: Vec<_> = claims.into_iter().map(|(s, len, o)| (s, s + len, o)).collect();
            let (ranges, _) = resolve_overlaps(&claims);
            for pa in 0..100u64 {
                let at = |list: &[Claim]| {
                    list.iter().filter(|r| (r.0..r.1).contains(&pa)).map(|r| r.2 + pa - r.0).collect::<Vec<_>>()
                };
                let got = at(&ranges);
                prop_assert!(got.len() <= 1);
                prop_assert_eq!(got.first().copied(), at(&claims).first().copied());
            }
        }
    }
}
