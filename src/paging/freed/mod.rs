//! Memory of processes that have ended.
//!
//! When a process ends, Linux clears its page tables and frees its pages, but nobody overwrites them before they are used again.
//! What is lost is where in the process each page was. Two things tell:
//!
//! - The `struct page` of a page that was freed by itself still holds the page number of its virtual address (`index`). Kernels
//!   before 6.10 overwrite it (`set_pcppage_migratetype` of mm/page_alloc.c).
//! - Pages hold pointers to themselves: neighbours in a list or a tree point at each other, and are often in one page. A frame
//!   whose contents point at each other as if it was one page of a process was that page. The parts of a large page (2 MiB) vote
//!   together.
//!
//! Which process a page was of shows where its pointers lead: libraries lie at different addresses in each (ASLR). Where two frames
//! with different contents could be the same page of a process, there is a hole.

mod claims;
mod owners;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use rayon::prelude::*;

use super::space::Mapping;
use super::tables::{ENTRIES, push};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::signature::Mmu;
use claims::Claim;
pub(crate) use claims::PagesByPointers;

/// Of the pages of a large page, so many that are also there as single ones show that they were collected into it.
const MIN_COLLECTED: usize = 32;
/// How many times as much evidence as anything else has decides.
const CLEARLY: usize = 3;

/// The frames that nobody uses and that show where in a process they were.
pub struct FreedFrames {
    /// Sorted by page; several frames can claim one.
    claims: Vec<Claim>,
    /// The same by frame: frame, page.
    by_frame: Vec<(PhysAddr, u64)>,
}

/// The pages of an ended process, by virtual address.
pub struct FreedPages {
    /// Sorted by page, one for each.
    claims: Vec<Claim>,
}

impl FreedFrames {
    /// Those of a machine's memory; `mapped` are the frames that some address space maps: sorted, without overlap.
    pub fn find(memory: &PhysicalMemory, mmu: &Mmu, mapped: &[Range<PhysAddr>]) -> Self {
        let mut claims = claims::find(memory, mmu, mapped);
        let by_frame = claims.iter().map(|claim| (claim.frame, claim.page)).collect();
        claims.par_sort_unstable();
        Self { claims, by_frame }
    }

    /// Where in its process a physical address was.
    pub fn address(&self, pa: PhysAddr) -> Option<VirtAddr> {
        let index = self.by_frame.binary_search_by_key(&pa.frame(), |(frame, _)| *frame).ok()?;
        let (_, page) = self.by_frame.get(index)?;
        Some(VirtAddr(page * FRAME_SIZE + pa.in_frame()))
    }

    /// The pages of each process that has one of those addresses in its libraries.
    pub fn processes(&self, memory: &PhysicalMemory, libraries: &[VirtAddr]) -> Vec<FreedPages> {
        let libraries: Vec<u64> = libraries.iter().map(|at| at.0 / FRAME_SIZE).collect();
        let of_processes = owners::by_process(memory, &self.claims, &libraries);
        of_processes.into_par_iter().map(|claims| FreedPages { claims: resolve(memory, claims) }).collect()
    }
}

impl FreedPages {
    /// The frame of a page; `None` if none is known.
    pub(super) fn frame(&self, va: VirtAddr) -> Option<PhysAddr> {
        let index = self.claims.binary_search_by_key(&(va.0 / FRAME_SIZE), |claim| claim.page).ok()?;
        Some(self.claims.get(index)?.frame)
    }

    /// The parts of a range that are known, joined where they touch.
    pub(super) fn runs(&self, range: Range<VirtAddr>) -> impl Iterator<Item = Range<VirtAddr>> {
        let from = self.claims.partition_point(|claim| claim.page < range.start.0 / FRAME_SIZE);
        let claims = self.claims.get(from..).unwrap_or_default();
        let within = claims.iter().take_while(move |claim| claim.page * FRAME_SIZE < range.end.0);
        let mut pages = within.map(|claim| claim.page).peekable();
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let mut end = first + 1;
            while pages.next_if_eq(&end).is_some() {
                end += 1;
            }
            let (start, end) = (first * FRAME_SIZE, end * FRAME_SIZE);
            Some(VirtAddr(start.max(range.start.0))..VirtAddr(end.min(range.end.0)))
        })
    }

    /// All pages, sorted by virtual address.
    pub fn mappings(&self) -> Vec<Mapping> {
        let mut mappings = Vec::new();
        for Claim { page, frame, .. } in &self.claims {
            let page = Mapping { va: VirtAddr(page * FRAME_SIZE), pa: *frame, len: FRAME_SIZE, executable: false };
            push(&mut mappings, page);
        }
        mappings
    }
}

/// One frame for each page of a process, of those that claim it; `claims` are sorted.
fn resolve(memory: &PhysicalMemory, mut claims: Vec<Claim>) -> Vec<Claim> {
    // Pages that were collected into a large page (khugepaged) were freed by that: their contents are older.
    let mut single: HashMap<u64, usize> = HashMap::new();
    for claim in claims.iter().filter(|claim| claim.large.is_none()) {
        *single.entry(claim.page / ENTRIES).or_default() += 1;
    }
    let large: HashSet<u64> = claims.iter().filter_map(|claim| claim.large).map(|first| first / ENTRIES).collect();
    let is_collected = |page: u64| {
        let block = page / ENTRIES;
        large.contains(&block) && single.get(&block).is_some_and(|count| *count >= MIN_COLLECTED)
    };
    claims.retain(|claim| claim.large.is_some() || !is_collected(claim.page));
    let contents = |claim: &Claim| memory.bytes(claim.frame, FRAME_SIZE);
    let one = |claims: &[Claim]| {
        let first = claims.first()?;
        claims.iter().all(|claim| contents(claim) == contents(first)).then_some(*first)
    };
    claims.chunk_by(|one, next| one.page == next.page).filter_map(one).collect()
}

/// What has the highest count, and one that is clearly higher than the next.
fn clear_winner<T: Ord>(mut counts: Vec<(usize, T)>) -> Option<T> {
    counts.sort_unstable();
    let (count, winner) = counts.pop()?;
    let next = counts.last().map_or(0, |(count, _)| *count);
    (count > 0 && count >= next * CLEARLY).then_some(winner)
}

#[cfg(test)]
mod tests;
