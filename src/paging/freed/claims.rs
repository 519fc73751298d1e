//! Where in a process each frame was that nobody uses any more.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Range, RangeInclusive};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::clear_winner;
use crate::addr::{FRAME_SIZE, PhysAddr, is_in};
use crate::dump::{PhysicalMemory, Question, RemoteMemory, ShardMemory, ShardPart};
use crate::paging::page_structs::{self, PageStruct, PageStructs, Pick};
use crate::paging::tables::ENTRIES;
use crate::signature::{Mmu, USER_POINTER_MAX, is_user_pointer};

/// Words of a page.
const WORDS: u64 = FRAME_SIZE / WORD;
/// Bytes of a word.
pub(super) const WORD: u64 = 8;
/// Bytes of a large page.
pub(super) const LARGE_PAGE: u64 = ENTRIES * FRAME_SIZE;
/// Words between where a pointer of one object points to and where the pointer back lies or points to: objects have headers.
const NEAR: u64 = 2;
/// Pairs of pointers in a page, at least, that make it the page that they name.
const MIN_PAIRS: usize = 2;
/// The same for a page that votes by itself, where its `struct page` does not tell.
const MIN_PAIRS_ALONE: usize = 5;
/// Parts that agree on where their large page was, at least; and parts that are left of it where they say nothing.
const MIN_PARTS: usize = 6;
const MIN_PARTS_ALONE: usize = 128;
/// Numbers that pages of processes have. The first ones are what kernels before 6.10 keep in place of an index (`enum migratetype`).
pub(super) const PAGES: RangeInclusive<u64> = 16..=USER_POINTER_MAX / FRAME_SIZE;
/// Pages below this one are those of programs without random addresses, and of their heaps. Large files are as long, and an index
/// may be a place in a file instead.
pub(super) const FIRST_AREA: u64 = (1 << 32) / FRAME_SIZE;

/// Where a frame was in a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    /// The page number of the virtual address.
    pub(super) page: u64,
    pub(super) frame: PhysAddr,
    /// The first page of the large page that it was a part of.
    pub(super) large: Option<u64>,
}

/// A frame that nobody uses.
#[derive(Clone, Copy)]
struct Free {
    frame: PhysAddr,
    /// Whether it was freed by itself.
    is_single: bool,
    /// The page number that its `struct page` holds, where that can be one.
    page: Option<u64>,
}

/// All that the frames say which nobody uses, sorted by frame; `mapped` are the frames that some address space maps: sorted, without
/// overlap.
pub(super) fn find(memory: &PhysicalMemory, mmu: &Mmu, mapped: &[Range<PhysAddr>]) -> Vec<Claim> {
    let rules = page_structs::rules(mmu);
    let roots = mmu.kernel.as_ref().map(|kernel| kernel.roots.as_slice()).unwrap_or_default();
    let Some(structs) = PageStructs::find(memory, &rules, roots) else { return Vec::new() };
    let free = free_frames(&structs, mapped);
    let has_index = |has: bool| free.iter().filter(|free| free.is_single && free.page.is_some() == has).count();
    let keeps_index = has_index(true) > has_index(false);
    let runs = free.par_chunk_by(|one, next| one.frame.0 / LARGE_PAGE == next.frame.0 / LARGE_PAGE);
    let elsewhere = memory.remote().map(|remote| pages_elsewhere(&remote, &free));
    let page = |frame: PhysAddr| match &elsewhere {
        Some(known) => known.get(&frame).copied(),
        None => page_by_pointers(memory, frame),
    };
    runs.flat_map_iter(|frames| claims(&page, frames, keeps_index)).collect()
}

/// The frames that nobody uses, sorted.
fn free_frames(structs: &PageStructs<'_>, mapped: &[Range<PhysAddr>]) -> Vec<Free> {
    let free = |(frame, page): (PhysAddr, PageStruct)| {
        let index = Some(page.index).filter(|index| page.has_links && PAGES.contains(index));
        (!is_in(mapped, frame)).then_some(Free { frame, is_single: page.has_links, page: index })
    };
    let mut free: Vec<Free> = structs.pick(Pick::Free).into_iter().filter_map(free).collect();
    free.sort_unstable_by_key(|free| free.frame);
    free.dedup_by_key(|free| free.frame);
    free
}

/// Where the free frames of one 2 MiB of memory were; `page` says what [`page_by_pointers`] does, and `keeps_index` whether the
/// kernel leaves a page its index.
fn claims(page: &impl Fn(PhysAddr) -> Option<(u64, usize)>, frames: &[Free], keeps_index: bool) -> Vec<Claim> {
    let large = large_page(page, frames);
    let claim = |free: &Free| {
        let contents = || page(free.frame);
        let part = large.map(|first| first + free.frame.0 % LARGE_PAGE / FRAME_SIZE);
        let of_large = |page| Some(Claim { page, frame: free.frame, large });
        let alone = |page| Some(Claim { page, frame: free.frame, large: None });
        match (part, free.page) {
            (Some(page), _) if !free.is_single => of_large(page),
            // It was used again since the large page was freed, or was the first of the rest when others were.
            (Some(page), index) => match contents() {
                Some((found, _)) if found == page => of_large(page),
                Some((found, _)) if Some(found) == index => alone(found),
                _ => None,
            },
            (None, Some(index)) => alone(index),
            (None, None) if !free.is_single => None,
            (None, None) => contents().filter(|(_, count)| *count >= MIN_PAIRS_ALONE).and_then(|(page, _)| alone(page)),
        }
    };
    let mut claims: Vec<Option<Claim>> = frames.iter().map(claim).collect();
    if !keeps_index {
        fill_between(frames, &mut claims);
    }
    claims.into_iter().flatten().collect()
}

/// Fills what lies between two frames that are as far apart as their pages are: a process that touches its pages one after another
/// is given frames one after another.
fn fill_between(frames: &[Free], claims: &mut [Option<Claim>]) {
    let mut last: Option<(usize, Claim)> = None;
    for at in 0..claims.len() {
        let Some(claim) = claims.get(at).copied().flatten() else { continue };
        if let Some((from, first)) = last {
            let apart = (claim.frame.0 - first.frame.0) / FRAME_SIZE;
            let is_free = apart == (at - from) as u64;
            let is_alone = first.large.is_none() && claim.large.is_none();
            if is_free && is_alone && claim.page.abs_diff(first.page) == apart {
                let between = frames.iter().zip(claims.iter_mut()).enumerate().skip(from + 1).take(at - from - 1);
                for (index, (free, claim_of_it)) in between.filter(|(_, (free, _))| free.is_single) {
                    let step = (index - from) as u64;
                    let page = if claim.page > first.page { first.page + step } else { first.page - step };
                    *claim_of_it = Some(Claim { page, frame: free.frame, large: None });
                }
            }
        }
        last = Some((at, claim));
    }
}

/// The first page of the large page that those frames were, if they were one: by what its parts say of themselves, or its first
/// `struct page`.
fn large_page(page: &impl Fn(PhysAddr) -> Option<(u64, usize)>, frames: &[Free]) -> Option<u64> {
    let parts = frames.iter().filter(|free| !free.is_single);
    let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
    for Free { frame, .. } in parts.clone() {
        if let Some((page, _)) = page(*frame) {
            *votes.entry(page.wrapping_sub(frame.0 % LARGE_PAGE / FRAME_SIZE)).or_default() += 1;
        }
    }
    let can_be = |first: &u64| first.is_multiple_of(ENTRIES) && PAGES.contains(first);
    let index = frames.first().filter(|free| free.frame.0.is_multiple_of(LARGE_PAGE)).and_then(|free| free.page);
    let index = index.filter(|first| can_be(first) && parts.clone().count() >= MIN_PARTS_ALONE);
    let all: usize = votes.values().sum();
    let Some((count, first)) = votes.into_iter().map(|(first, count)| (count, first)).max() else {
        // A file of that length is not likely: there the index would be a place in a file.
        return index.filter(|first| *first >= FIRST_AREA);
    };
    let is_sure = if index == Some(first) { count >= MIN_PAIRS } else { count >= MIN_PARTS && count * 2 > all };
    (is_sure && can_be(&first)).then_some(first)
}

/// The page that the pointers in a frame make it, and how many do so; `None` where they do not agree.
fn page_by_pointers(memory: &PhysicalMemory, frame: PhysAddr) -> Option<(u64, usize)> {
    memory.bytes(frame, FRAME_SIZE).and_then(pairs)
}

/// The same of free frames in a part of a dump.
#[derive(Serialize, Deserialize)]
pub(crate) struct PagesByPointers {
    /// Runs of frames: first address, and number.
    runs: Vec<(u64, u64)>,
}

impl Question for PagesByPointers {
    const NAME: &'static str = "pages by their pointers";
    /// Frame, page and number of pointers, of the frames whose pointers agree.
    type Answer = Vec<(u64, u64, usize)>;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Self::Answer {
        let frames = |(first, count): (u64, u64)| (first..).step_by(FRAME_SIZE as usize).take(count as usize);
        let found = |frame: u64| {
            let (page, count) = page_by_pointers(memory, PhysAddr(frame))?;
            Some((frame, page, count))
        };
        self.runs.into_par_iter().flat_map_iter(frames).filter_map(found).collect()
    }
}

/// The same of all free frames of a dump that lies elsewhere, which are sorted.
fn pages_elsewhere(remote: &RemoteMemory<'_>, free: &[Free]) -> HashMap<PhysAddr, (u64, usize)> {
    let question = |shard: &ShardPart| {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for free in shard.of(free, |free| free.frame) {
            match runs.last_mut() {
                Some((first, count)) if *first + *count * FRAME_SIZE == free.frame.0 => *count += 1,
                _ => runs.push((free.frame.0, 1)),
            }
        }
        (!runs.is_empty()).then(|| (shard.ranges.clone(), PagesByPointers { runs }))
    };
    let answers = remote.ask(question, &|_| ()).into_iter().flat_map(|(_, answer)| answer);
    answers.map(|(frame, page, count)| (PhysAddr(frame), (page, count))).collect()
}

/// The page that the pointers in a frame make it, and how many do so; `None` where they do not agree.
fn pairs(bytes: &[u8]) -> Option<(u64, usize)> {
    let (words, _) = bytes.as_chunks();
    let word = |index: u64| words.get(usize::try_from(index).ok()?).map(|word| u64::from_le_bytes(*word));
    let mut votes: Vec<u64> = Vec::new();
    for (slot, pointer) in (0..WORDS).filter_map(|slot| Some((slot, word(slot)?))) {
        if !is_user_pointer(pointer) || !pointer.is_multiple_of(WORD) {
            continue;
        }
        let (page, target) = (pointer / FRAME_SIZE, pointer % FRAME_SIZE / WORD);
        // Lists keep flags in the low bits of pointers.
        let points_back = |at: u64| {
            word(at).is_some_and(|back| back / FRAME_SIZE == page && (back % FRAME_SIZE / WORD).abs_diff(slot) <= NEAR)
        };
        if target.abs_diff(slot) <= NEAR || (target.saturating_sub(1)..=target + NEAR).any(points_back) {
            votes.push(page);
        }
    }
    votes.sort_unstable();
    let counts: Vec<(usize, u64)> = votes
        .chunk_by(|one, next| one == next)
        .map(|same| (same.len(), same.first().copied().unwrap_or_default()))
        .collect();
    let most = counts.iter().map(|(count, _)| *count).max()?;
    (most >= MIN_PAIRS).then_some((clear_winner(counts)?, most))
}
