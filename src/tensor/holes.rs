//! The holes of a tensor, which are its bytes that the dump does not hold: a list of limited length, and exact sums.

use std::collections::BTreeMap;
use std::ops::Deref;

use serde::Serialize;

use crate::addr::{FRAME_SIZE, VirtAddr};
use crate::paging::{Fault, VirtualMemory};

/// Maximum number of holes that are listed individually, and of runs of pages. Others are only in the sums.
const MAX_LISTED: usize = 1 << 10;

/// A run of missing bytes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hole {
    /// First missing byte of the contiguous tensor.
    pub start: u64,
    /// First byte after the hole.
    pub end: u64,
    /// Virtual address of the first missing byte.
    pub address: VirtAddr,
    /// Why it could not be read.
    pub reason: String,
}

/// A run of pages, each of which holds some missing bytes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingPages {
    /// The first page.
    pub start: VirtAddr,
    /// The end of the last page.
    pub end: VirtAddr,
    /// Why they could not be read; null for a last run that spans all unlisted pages and may include readable pages.
    pub reason: Option<String>,
}

/// All holes of a tensor. As a slice, the listed holes: the first ones, in the order of the contiguous tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holes {
    listed: Vec<Hole>,
    /// How many there are, the listed ones included.
    pub count: u64,
    /// Missing bytes in all of them.
    pub bytes: u64,
    /// Where the others are, if not all are listed.
    pub pages: Vec<MissingPages>,
}

impl Holes {
    /// The same with no more than `most` holes and runs of pages in the lists, which is at least one.
    #[must_use]
    pub fn shortened(mut self, most: usize) -> Self {
        let most = most.max(1);
        let dropped = self.listed.split_off(self.listed.len().min(most)).into_iter().map(|hole| MissingPages {
            start: hole.address.frame(),
            // The addresses of a hole are consecutive.
            end: page_end(hole.address.0.wrapping_add((hole.end - hole.start).saturating_sub(1))),
            reason: Some(hole.reason),
        });
        let mut pages: Vec<MissingPages> = dropped.chain(self.pages).collect();
        if pages.len() > most {
            let rest = pages.split_off(most - 1);
            let start = rest.iter().map(|run| run.start).min().unwrap_or_default();
            let end = rest.iter().map(|run| run.end).max().unwrap_or_default();
            pages.push(MissingPages { start, end, reason: None });
        }
        self.pages = pages;
        self
    }
}

impl Deref for Holes {
    type Target = [Hole];

    fn deref(&self) -> &[Hole] {
        &self.listed
    }
}

impl<'a> IntoIterator for &'a Holes {
    type Item = &'a Hole;
    type IntoIter = std::slice::Iter<'a, Hole>;

    fn into_iter(self) -> Self::IntoIter {
        self.listed.iter()
    }
}

/// Collects the holes of one tensor, one missing run after another.
pub(super) struct Recorder<'a> {
    /// What explains the faults.
    memory: &'a dyn VirtualMemory,
    holes: Holes,
    /// The fault of the last run, the address and the byte of the tensor after it.
    last: Option<(Fault, u64, u64)>,
    /// Runs of pages with holes that are not listed: start, end, fault of the first.
    pages: BTreeMap<u64, (u64, Fault)>,
    /// What is not even among those: lowest and highest page.
    beyond: Option<(VirtAddr, VirtAddr)>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(memory: &'a dyn VirtualMemory) -> Self {
        Self { memory, holes: Holes::default(), last: None, pages: BTreeMap::new(), beyond: None }
    }

    /// Bytes from `start` on of the contiguous tensor, which lie at `address` in one page, are missing.
    pub(super) fn add(&mut self, start: u64, address: VirtAddr, count: u64, fault: Fault) {
        let end = start + count;
        let goes_on = self
            .last
            .is_some_and(|(fault_before, at, end)| (at, end) == (address.0, start) && same_cause(fault_before, fault));
        self.last = Some((fault, address.0.wrapping_add(count), end));
        self.holes.bytes += count;
        self.holes.count += u64::from(!goes_on);
        let listed = &mut self.holes.listed;
        if goes_on && self.holes.count == listed.len() as u64 {
            listed.last_mut().into_iter().for_each(|last| last.end = end);
        } else if listed.len() < MAX_LISTED {
            listed.push(Hole { start, end, address, reason: self.memory.explain(fault) });
        } else {
            self.add_page(address, fault);
        }
    }

    fn add_page(&mut self, address: VirtAddr, fault: Fault) {
        let (start, end) = (address.frame(), page_end(address.0));
        let before = self.pages.range(..=start.0).next_back().map(|(first, run)| (*first, *run));
        if before.is_some_and(|(_, (run_end, _))| start.0 < run_end) {
            return;
        }
        let before = before.filter(|(_, (run_end, cause))| *run_end == start.0 && same_cause(*cause, fault));
        let after = self.pages.get(&end.0).copied().filter(|(_, cause)| same_cause(*cause, fault));
        if before.is_none() && after.is_none() && self.pages.len() >= MAX_LISTED {
            let (low, high) = self.beyond.unwrap_or((start, end));
            self.beyond = Some((low.min(start), high.max(end)));
            return;
        }
        if after.is_some() {
            self.pages.remove(&end.0);
        }
        let (first, cause) = before.map_or((start.0, fault), |(first, (_, cause))| (first, cause));
        self.pages.insert(first, (after.map_or(end.0, |(run_end, _)| run_end), cause));
    }

    pub(super) fn finish(self) -> Holes {
        let run = |(start, (end, cause)): (u64, (u64, Fault))| MissingPages {
            start: VirtAddr(start),
            end: VirtAddr(end),
            reason: Some(self.memory.explain(cause)),
        };
        let mut pages: Vec<MissingPages> = self.pages.into_iter().map(run).collect();
        pages.extend(self.beyond.map(|(start, end)| MissingPages { start, end, reason: None }));
        Holes { pages, ..self.holes }
    }
}

/// The end of the page of an address; the last page of all ends at the highest address.
fn page_end(address: u64) -> VirtAddr {
    VirtAddr(VirtAddr(address).frame().0.saturating_add(FRAME_SIZE))
}

/// Whether two pages are missing for the same reason, so that one hole can name both.
fn same_cause(a: Fault, b: Fault) -> bool {
    match (a, b) {
        (Fault::NotPresent { level: a, entry: x, .. }, Fault::NotPresent { level: b, entry: y, .. }) => {
            (a, x) == (b, y)
        }
        (Fault::NotInImage { why: a, .. }, Fault::NotInImage { why: b, .. }) => a == b,
        (Fault::NotInDump { .. }, Fault::NotInDump { .. })
        | (Fault::NotInFreed { .. }, Fault::NotInFreed { .. })
        | (Fault::Overwritten { .. }, Fault::Overwritten { .. })
        | (Fault::NonCanonical { .. }, Fault::NonCanonical { .. }) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(at: u64) -> Fault {
        Fault::NonCanonical { va: VirtAddr(at) }
    }

    /// Memory with nothing in it.
    struct Nothing;

    impl VirtualMemory for Nothing {
        fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
            Err(missing(va.0))
        }
    }

    /// One missing byte in each of `pages`, in their order.
    fn bytes_in(pages: impl Iterator<Item = u64>) -> Holes {
        let mut recorder = Recorder::new(&Nothing);
        for (start, page) in pages.enumerate() {
            recorder.add(start as u64, VirtAddr(page * FRAME_SIZE + 8), 1, missing(page * FRAME_SIZE + 8));
        }
        recorder.finish()
    }

    #[test]
    fn many_holes_are_a_bounded_list_and_exact_sums() {
        let holes = bytes_in(0..100_000);
        assert_eq!((holes.len(), holes.count, holes.bytes), (MAX_LISTED, 100_000, 100_000));
        let [run] = &holes.pages[..] else { panic!("{:?}", holes.pages) };
        assert_eq!((run.start.0, run.end.0), ((MAX_LISTED as u64) << 12, 100_000 << 12));
        // A column of a matrix comes back to its pages; it goes backwards as well.
        let columns = bytes_in((0..50_000).chain((0..50_000).rev()).map(|page| page + 7));
        assert_eq!((columns.count, columns.bytes), (100_000, 100_000));
        let [run] = &columns.pages[..] else { panic!("{:?}", columns.pages) };
        assert_eq!((run.start.0, run.end.0), (7 << 12, 50_007 << 12));
        // No two are neighbours.
        let scattered = bytes_in((0..10_000).map(|page| 2 * page));
        assert_eq!((scattered.len(), scattered.pages.len()), (MAX_LISTED, MAX_LISTED + 1));
        let last = scattered.pages.last().unwrap();
        assert_eq!((last.start.0, last.end.0, &last.reason), ((4 * MAX_LISTED as u64) << 12, 19_999 << 12, &None));
    }

    #[test]
    fn a_shorter_list_still_covers_all_of_it() {
        let holes = bytes_in((0..10).map(|page| 2 * page)).shortened(3);
        assert_eq!((holes.len(), holes.count, holes.bytes, holes.pages.len()), (3, 10, 10, 3));
        let runs: Vec<_> = holes.pages.iter().map(|run| (run.start.0 >> 12, run.end.0 >> 12)).collect();
        assert_eq!(runs, [(6, 7), (8, 9), (10, 19)]);
        let few = bytes_in(0..2);
        assert_eq!(few.clone().shortened(2), few);
    }
}
