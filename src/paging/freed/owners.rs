//! Which process each page of ended processes was of.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use rayon::prelude::*;

use super::claims::{Claim, FIRST_AREA, LARGE_PAGE, PAGES, WORD};
use super::clear_winner;
use crate::addr::FRAME_SIZE;
use crate::dump::PhysicalMemory;

/// Pages between two parts of an area of a process, at most.
const GAP: u64 = (1 << 30) / FRAME_SIZE;
/// Areas that are told apart.
const MAX_AREAS: usize = 1 << 12;
/// Pages in which the libraries of all processes lie: their addresses are random in the upper part of the user half (`mmap_base` of
/// arch/x86/mm/mmap.c).
const VICINITY: u64 = (1 << 44) / FRAME_SIZE;
/// The area of what lies in none, and the process of what belongs to none that is left.
const ELSEWHERE: usize = usize::MAX;
/// Pages of one area that point to another of the same process, at least.
const MIN_LINKS: usize = 8;
/// Pages between one and a neighbour that tells its process, at most.
const NEAR_PAGES: u64 = 1 << 12;
/// Pointers to libraries that show a page to be of a file, at least, and of so many pointers all but one.
const MIN_OF_FILE: usize = 16;
const OF_FILE: usize = 64;

/// What a claim's contents say.
struct Told {
    claim: Claim,
    /// The area in which the page lies or, where it lies in none, the one that it points to most.
    area: Option<usize>,
    /// Of a page in an area, another one that it points to most.
    other: Option<usize>,
}

/// The claims of each process that has one of those pages in its libraries; `claims` are sorted, and so are those of each.
pub(super) fn by_process(memory: &PhysicalMemory, claims: &[Claim], libraries: &[u64]) -> Vec<Vec<Claim>> {
    let Some(vicinity) = libraries.first().map(|page| page / VICINITY) else { return Vec::new() };
    let areas = areas(claims, libraries);
    let told = claims.par_iter().filter_map(|claim| Told::of(memory, *claim, &areas, vicinity));
    let told: Vec<Told> = told.collect();
    let processes = join_areas(areas.len(), &told);
    let process = |told: &Told| Some(processes.get(told.area?).copied().unwrap_or(ELSEWHERE));
    let mut owners: Vec<(Claim, Option<usize>)> = told.iter().map(|told| (told.claim, process(told))).collect();
    share_large(&mut owners);
    share_near(&mut owners);
    let of_library = |page: &u64| processes.get(area_of(&areas, *page)?).copied();
    let wanted: BTreeSet<usize> = libraries.iter().filter_map(of_library).collect();
    let of_process = |process: usize| {
        owners.iter().filter(move |(_, owner)| *owner == Some(process)).map(|(claim, _)| *claim).collect()
    };
    wanted.into_iter().map(of_process).collect()
}

/// The areas of memory, without a wide gap, in which the pages of processes lie: libraries, and what is mapped beside them; the heap
/// and the stack, where they lie apart. Sorted.
fn areas(claims: &[Claim], libraries: &[u64]) -> Vec<Range<u64>> {
    let claimed = claims.iter().map(|claim| claim.page).filter(|page| *page >= FIRST_AREA);
    let mut pages: Vec<u64> = claimed.chain(libraries.iter().copied()).collect();
    pages.sort_unstable();
    let mut areas: Vec<&[u64]> = pages.chunk_by(|one, next| next - one <= GAP).collect();
    let has_library = |area: &[u64]| libraries.iter().any(|page| area.binary_search(page).is_ok());
    areas.sort_by_key(|area| Reverse((has_library(area), area.len())));
    areas.truncate(MAX_AREAS);
    areas.sort_unstable_by_key(|area| area.first());
    areas.into_iter().filter_map(|area| Some(*area.first()?..area.last()? + 1)).collect()
}

impl Told {
    /// `None` for a page that is more likely one of a file.
    fn of(memory: &PhysicalMemory, claim: Claim, areas: &[Range<u64>], vicinity: u64) -> Option<Self> {
        let own = area_of(areas, claim.page);
        let (words, _) = memory.bytes(claim.frame, FRAME_SIZE).unwrap_or_default().as_chunks();
        let words = words.iter().map(|word| u64::from_le_bytes(*word)).filter(|word| word.is_multiple_of(WORD));
        let mut counts: Vec<(usize, usize)> = Vec::new();
        let mut low = 0;
        for page in words.map(|word| word / FRAME_SIZE).filter(|page| PAGES.contains(page)) {
            low += usize::from(page < FIRST_AREA && page.abs_diff(claim.page) <= GAP);
            let Some(area) = area_of(areas, page).or((page / VICINITY == vicinity).then_some(ELSEWHERE)) else {
                continue;
            };
            match counts.iter_mut().find(|(_, known)| *known == area) {
                Some((count, _)) => *count += 1,
                None => counts.push((1, area)),
            }
        }
        let high: usize = counts.iter().map(|(count, _)| count).sum();
        // Pages of libraries that the loader has changed point to libraries, and pages of a heap to the heap as well. The index of the
        // former is a place in the file.
        let is_low = claim.page < FIRST_AREA && claim.large.is_none();
        if is_low && high >= MIN_OF_FILE && low * OF_FILE < high {
            return None;
        }
        counts.retain(|(_, area)| Some(*area) != own);
        let other = clear_winner(counts);
        Some(if own.is_some() { Self { claim, area: own, other } } else { Self { claim, area: other, other: None } })
    }
}

/// The area that holds a page.
fn area_of(areas: &[Range<u64>], page: u64) -> Option<usize> {
    let area = areas.partition_point(|area| area.start <= page).checked_sub(1)?;
    areas.get(area)?.contains(&page).then_some(area)
}

/// The process of each area, as the first of its areas: those are of one whose pages point to each other.
fn join_areas(count: usize, told: &[Told]) -> Vec<usize> {
    let mut links: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for link in told.iter().filter_map(|told| told.area.zip(told.other)) {
        *links.entry(link).or_default() += 1;
    }
    let mut processes: Vec<usize> = (0..count).collect();
    for ((one, other), _) in links.into_iter().filter(|(_, count)| *count >= MIN_LINKS) {
        let (Some(one), Some(other)) = (processes.get(one).copied(), processes.get(other).copied()) else { continue };
        let (first, last) = (one.min(other), one.max(other));
        processes.iter_mut().filter(|process| **process == last).for_each(|process| *process = first);
    }
    processes
}

/// The parts of a large page were of one process.
fn share_large(owners: &mut [(Claim, Option<usize>)]) {
    let block = |claim: &Claim| claim.large.map(|_| claim.frame.0 / LARGE_PAGE);
    let mut votes: HashMap<u64, BTreeMap<usize, usize>> = HashMap::new();
    for (claim, owner) in owners.iter() {
        if let Some((block, owner)) = block(claim).zip(*owner) {
            *votes.entry(block).or_default().entry(owner).or_default() += 1;
        }
    }
    for (claim, owner) in owners {
        if let Some(votes) = block(claim).and_then(|block| votes.get(&block)) {
            *owner = clear_winner(votes.iter().map(|(owner, count)| (*count, *owner)).collect());
        }
    }
}

/// A page that does not tell its process was of that of its neighbours, if these agree.
fn share_near(owners: &mut [(Claim, Option<usize>)]) {
    let told = owners.iter().filter_map(|(claim, owner)| Some((claim.page, (*owner)?)));
    let told: Vec<(u64, usize)> = told.collect();
    for (claim, owner) in owners.iter_mut().filter(|(_, owner)| owner.is_none()) {
        let at = told.partition_point(|(page, _)| *page < claim.page);
        let before = at.checked_sub(1).and_then(|at| told.get(at));
        let before = before.filter(|(page, _)| claim.page - page <= NEAR_PAGES);
        let after = told.get(at).filter(|(page, _)| page - claim.page <= NEAR_PAGES);
        *owner = match (before, after) {
            (Some((_, before)), Some((_, after))) => (before == after).then_some(*before),
            (one, other) => one.or(other).map(|(_, owner)| *owner),
        };
    }
}
