//! Where the bytes of a headerless file lay in physical memory, told by the page tables in it.
//!
//! A raw file may hold the ranges of memory one after another without the holes between them
//! (LiME's `format=raw`, a LiME file whose headers were cut out, the memory files of virtual machines). Then an address is not
//! the offset in the file, but offset plus a *displacement*, the size of the holes before it.
//!
//! 1. Roots of page tables show themselves without any address: their upper halves are equal.
//! 2. Every pair of a pointer in a root and a frame that could be a table votes for a displacement.
//! 3. For the right one, nearly all pointers in the roots lead to tables, used or empty. Where none is right for all, two
//!    may be: a PC has a hole for its devices below 4 GiB, and each displacement is right on one side of it.
//! 4. What is left is tried: the roots must map themselves.
//! 5. The kernel maps all memory, and where its map goes on says where exactly the hole ends.
//!
//! What lies before the piece that holds the page tables, or behind a further hole in the memory that the kernel maps, is
//! left out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::roots::{Discovery, discover, kernel_memory};
use super::tables::{ENTRIES, PresentEntries, present_entries};
use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};
use crate::dump::{MemoryRange, PhysicalMemory};
use crate::scan::{ABSENT_FRAME, Backend, FrameClasses, ZERO_FRAME, scan};
use crate::signature::{Mmu, Signatures};

/// Firmware ends ranges on multiples of this (the first one on a PC ends at 0x9fc00, say).
const GRANULE: u64 = 1024;
/// Where the legacy hole of a PC ends: the range that follows begins here.
const LEGACY_HOLE_END: u64 = 0x10_0000;
/// Roots with the same upper half, at least, to be taken for roots; and roots that map themselves, at
/// least, to take a guess for the right one.
const MIN_ROOTS: usize = 3;
/// Groups of roots that are looked at; the largest come first.
const MAX_GROUPS: usize = 16;
/// Displacements of a group that are looked at; those with most votes come first.
const MAX_VOTED: usize = 2048;
/// Gaps up to this many bytes in the memory that a kernel maps are pages that it took out of its map; holes are larger.
const CLOSED_GAP: u64 = 64 << 10;
/// The hole for devices of a PC begins below this.
const HOLE_END: u64 = 1 << 32;
/// Displacements of a group of which two are put together; those with most votes come first.
const MAX_PAIRED: usize = 128;
/// Places in the kernel's map of memory that are tried as the end of the hole.
const MAX_STARTS: usize = 4;
/// Displacements that are tried to the end.
const MAX_TRIED: usize = 8;

/// What the page tables say about the addresses of a file without headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// No better guess than that offsets are addresses.
    AsItIs,
    /// The file holds these ranges.
    Ranges(Vec<MemoryRange>),
    /// More than half of the tables' targets are outside the file, and its addresses are unknown.
    Unknown,
}

/// Finds the addresses of a file that holds memory without headers and without holes.
///
/// `memory` is the file as one range from address 0, `as_it_is` what was found in it with offsets as addresses.
pub fn infer_ranges(
    memory: &PhysicalMemory,
    signatures: &Signatures,
    backend: Backend,
    as_it_is: &Discovery,
) -> Placement {
    let Some(mmu) = signatures.mmu() else { return Placement::AsItIs };
    let trial = Trial { memory, mmu, rules: signatures.mmu_only(), backend };
    let [file] = memory.ranges() else { return Placement::AsItIs };
    let here = as_it_is.pointers;
    let mut leads_out = here.outside > here.inside;
    let mut candidates: Vec<(Fits, Reverse<Guess>)> = Vec::new();
    for phase in (0..FRAME_SIZE).step_by(GRANULE as usize) {
        let Some(view) = moved(file, phase).and_then(|range| memory.with_ranges(vec![range]).ok()) else { continue };
        let classes = trial.classes(&view);
        for targets in root_targets(&view, mmu, &classes) {
            let outside = targets.range(memory.end().0..).count();
            leads_out |= outside * 2 > targets.len();
            let found = guesses(&classes, &targets).into_iter();
            candidates.extend(found.map(|(fits, guess)| (fits, Reverse(guess.shifted(phase)))));
        }
    }
    candidates.sort_unstable();
    candidates.dedup();
    let most_fitting = candidates.into_iter().rev().take(MAX_TRIED);
    let tried = most_fitting.filter_map(|(fits, Reverse(guess))| {
        let (score, ranges) = guess.tried(&trial, file)?;
        Some(((score, fits, Reverse(guess)), ranges))
    });
    // Frames that begin 1 KiB off still map each other, but fit less.
    let best = tried.max_by_key(|(score, _)| *score);
    let found = best.filter(|((score, ..), _)| *score > (as_it_is.self_mapped(), Reverse(here.outside)));
    match found {
        Some(((_, _, Reverse(guess)), ranges)) if guess != Guess::NONE => Placement::Ranges(ranges),
        _ if leads_out => Placement::Unknown,
        _ => Placement::AsItIs,
    }
}

/// What is needed to try a guess.
struct Trial<'a> {
    memory: &'a PhysicalMemory,
    mmu: &'a Mmu,
    rules: Signatures,
    backend: Backend,
}

/// Targets that are tables by a guess: used or empty ones, and used ones.
type Fits = (usize, usize);

/// The quality of a guess: roots that map themselves, and pointers to tables outside the dump.
type Score = (usize, Reverse<usize>);

impl Trial<'_> {
    fn classes(&self, view: &PhysicalMemory) -> FrameClasses {
        scan(view, &self.rules, self.backend, &|_| ()).frames
    }

    /// What is found with these ranges, and the memory that the kernel maps.
    fn score(&self, ranges: Vec<MemoryRange>) -> Option<(Score, Vec<Range<u64>>)> {
        let view = self.memory.with_ranges(ranges).ok()?;
        let found = discover(&view, self.mmu, &self.classes(&view));
        let lost = found.pointers.outside;
        let kernel = kernel_memory(&view, self.mmu, found.spaces.first()?, CLOSED_GAP);
        (found.self_mapped() >= MIN_ROOTS).then(|| ((found.self_mapped(), Reverse(lost)), kernel))
    }
}

/// Where the parts of a file lay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Guess {
    /// The displacement of the file's first part.
    low: u64,
    /// The rest of it.
    high: Option<High>,
}

/// The part of a file behind the hole below 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct High {
    displacement: u64,
    /// The offsets in the file at which the part can begin, by the tables that lie in front of it and in it: after the first,
    /// and not after the second.
    begin: (u64, u64),
}

impl Guess {
    const NONE: Self = Self { low: 0, high: None };

    /// The same for a file whose frames begin at that offset.
    fn shifted(mut self, phase: u64) -> Self {
        self.low += phase;
        if let Some(high) = &mut self.high {
            high.displacement += phase;
            // A frame's address was told with frames at multiples of a frame: its offset lies before that.
            high.begin = (high.begin.0.saturating_sub(phase), high.begin.1.saturating_sub(phase));
        }
        self
    }

    /// How good it is, and the ranges of the file that can be relied on.
    fn tried(self, trial: &Trial<'_>, file: &MemoryRange) -> Option<(Score, Vec<MemoryRange>)> {
        let Some(high) = self.high else {
            let range = moved(file, self.low)?;
            let (score, kernel) = trial.score(vec![range])?;
            return Some((score, vec![clipped(range, &kernel)?]));
        };
        let halves = |begin: u64| {
            let (low, rest) = split(file, begin)?;
            Some((moved(&low, self.low)?, moved(&rest, high.displacement)?))
        };
        let mut best = None;
        let mut begins = vec![high.begin.1, high.begin.0 + FRAME_SIZE];
        for turn in 0.. {
            let Some(&begin) = begins.get(turn) else { break };
            let Some((low, rest)) = halves(begin) else { continue };
            let Some((score, kernel)) = trial.score(vec![low, rest]) else { continue };
            if turn < 2 {
                // Where the kernel's map goes on behind the hole, the file's second part begins.
                let starts = kernel.iter().filter_map(|part| part.start.checked_sub(high.displacement));
                begins.extend(starts.filter(|start| *start > high.begin.0 && *start <= high.begin.1).take(MAX_STARTS));
                continue;
            }
            // What a file keeps of the memory before its first displacement is where it says.
            let low = if self.low == 0 { Some(low) } else { clipped(low, &kernel) };
            let ranges: Vec<MemoryRange> = [low, clipped(rest, &kernel)].into_iter().flatten().collect();
            if best.as_ref().is_none_or(|(other, _)| score > *other) {
                best = Some((score, ranges));
            }
        }
        best
    }
}

/// The file up to an offset, and from it on.
fn split(file: &MemoryRange, begin: u64) -> Option<(MemoryRange, MemoryRange)> {
    let border = PhysAddr(file.start.0.checked_add(begin)?);
    let offset = FileOffset(file.offset.0.checked_add(begin)?);
    let is_inside = file.start < border && border < file.end;
    is_inside.then_some((MemoryRange { end: border, ..*file }, MemoryRange { start: border, end: file.end, offset }))
}

/// The part of a placed range up to the next hole in the memory that the kernel maps, which is all
/// memory: behind a hole the displacement is another one.
fn clipped(range: MemoryRange, kernel_memory: &[Range<u64>]) -> Option<MemoryRange> {
    let parts = kernel_memory.iter().map(|known| known.start.max(range.start.0)..known.end.min(range.end.0));
    let part = parts.filter(|part| part.start < part.end).max_by_key(|part| part.end - part.start)?;
    let offset = FileOffset(range.offset.0 + (part.start - range.start.0));
    Some(MemoryRange { start: PhysAddr(part.start), end: PhysAddr(part.end), offset })
}

/// The part of the file at that displacement, without what would then lie in or before the legacy hole.
fn moved(part: &MemoryRange, displacement: u64) -> Option<MemoryRange> {
    let first = part.start.0.checked_add(displacement)?;
    // Less than a frame is no displacement yet, but a choice of where frames begin.
    let skip = if displacement < FRAME_SIZE { 0 } else { LEGACY_HOLE_END.saturating_sub(first) };
    let start = first.checked_add(skip)?;
    let end = part.end.0.checked_add(displacement)?;
    let offset = FileOffset(part.offset.0.checked_add(skip)?);
    (start < end).then_some(MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset })
}

/// For each group of frames that look like roots, whatever their addresses: the targets of their pointers.
fn root_targets(view: &PhysicalMemory, mmu: &Mmu, classes: &FrameClasses) -> Vec<BTreeSet<u64>> {
    let tops = mmu.levels.iter().filter(|level| level.level >= 4).fold(0, |mask, level| mask | 1 << (level.level - 1));
    let mut groups: BTreeMap<PresentEntries, Vec<PhysAddr>> = BTreeMap::new();
    for (frame, _) in classes.with(tops) {
        let mut upper = present_entries(view, mmu, frame);
        upper.retain(|(index, _)| *index >= ENTRIES / 2);
        if upper.len() > 1 {
            groups.entry(upper).or_default().push(frame);
        }
    }
    let mut groups: Vec<Vec<PhysAddr>> = groups.into_values().filter(|frames| frames.len() >= MIN_ROOTS).collect();
    groups.sort_by_key(|frames| Reverse(frames.len()));
    let targets = |frames: Vec<PhysAddr>| {
        let entries = frames.into_iter().flat_map(|frame| present_entries(view, mmu, frame));
        entries.map(|(_, target)| target).filter(|target| *target != 0).collect()
    };
    groups.into_iter().take(MAX_GROUPS).map(targets).collect()
}

/// Guesses by which at least nine of ten targets are tables, with the number of targets that are.
fn guesses(classes: &FrameClasses, targets: &BTreeSet<u64>) -> Vec<(Fits, Guess)> {
    let mut votes: HashMap<u64, usize> = HashMap::new();
    for (table, _) in classes.with(!(ZERO_FRAME | ABSENT_FRAME)) {
        for target in targets.range(table.frame().0..) {
            *votes.entry(target - table.frame().0).or_default() += 1;
        }
    }
    let mut votes: Vec<(usize, Reverse<u64>)> = votes.into_iter().map(|(d, votes)| (votes, Reverse(d))).collect();
    votes.sort_unstable_by(|a, b| b.cmp(a));
    let fits = |target: u64, displacement: u64| {
        let place = target.checked_sub(displacement);
        place.and_then(|place| classes.get(PhysAddr(place))).is_some_and(|class| class != 0)
    };
    let few_fail = |fits: usize| fits * 10 >= targets.len() * 9;
    let one = votes.iter().take(MAX_VOTED).map(|(used, Reverse(low))| {
        let fits = targets.iter().filter(|target| fits(**target, *low)).count();
        ((fits, *used), Guess { low: *low, high: None })
    });
    let found: Vec<(Fits, Guess)> = one.filter(|((fits, _), _)| few_fail(*fits)).collect();
    if !found.is_empty() {
        return found;
    }
    let sorted: Vec<u64> = targets.iter().copied().collect();
    let most: Vec<Voted> = votes
        .iter()
        .take(MAX_PAIRED)
        .map(|(used, Reverse(displacement))| Voted {
            displacement: *displacement,
            used: *used,
            fits: sorted.iter().map(|target| fits(*target, *displacement)).collect(),
        })
        .collect();
    let pairs = most.iter().flat_map(|low| most.iter().map(move |high| (low, high)));
    let pairs = pairs.filter(|(low, high)| low.displacement < high.displacement);
    pairs.filter_map(|(low, high)| two(&sorted, low, high)).filter(|((fits, _), _)| few_fail(*fits)).collect()
}

/// A displacement that tables voted for.
struct Voted {
    displacement: u64,
    /// Targets that are used tables by it.
    used: usize,
    /// Of every target, whether it is a table by it, used or empty.
    fits: Vec<bool>,
}

/// The guess that two displacements make: targets up to one of them by the first, the others by the second; with the number of
/// targets that fit.
fn two(targets: &[u64], low: &Voted, high: &Voted) -> Option<(Fits, Guess)> {
    let mut fit = high.fits.iter().filter(|fits| **fits).count();
    let (mut best, mut of_low, used) = (None, 0, low.used + high.used);
    for (index, pair) in targets.windows(2).enumerate() {
        let [last, first] = pair else { continue };
        let (by_low, by_high) = (low.fits.get(index) == Some(&true), high.fits.get(index) == Some(&true));
        fit = fit + usize::from(by_low) - usize::from(by_high);
        of_low += usize::from(by_low);
        let until = first.checked_sub(high.displacement);
        let (Some(after), Some(until)) = (last.checked_sub(low.displacement), until) else { continue };
        let of_high = fit - of_low;
        let is_possible = after < until && *last < HOLE_END && of_low > 1 && of_high > 1;
        if is_possible && best.is_none_or(|((most, _), _)| fit > most) {
            let high = High { displacement: high.displacement, begin: (after, until) };
            best = Some(((fit, used), Guess { low: low.displacement, high: Some(high) }));
        }
    }
    best
}
