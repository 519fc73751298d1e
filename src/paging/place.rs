//! Where the bytes of a headerless file lay in physical memory, told by the page tables in it.
//!
//! A raw file may hold the ranges of memory one after another without the holes between them
//! (LiME's `format=raw`, or a LiME file whose headers were cut out). Then an address is not the
//! offset in the file, but offset plus a *displacement*, the size of the holes before it.
//!
//! 1. Roots of page tables show themselves without any address: their upper halves are equal.
//! 2. Every pair of a pointer in a root and a frame that could be a table votes for a displacement.
//! 3. For the right one, nearly all pointers in the roots lead to tables, used or empty.
//! 4. What is left is tried: the roots must map themselves.
//!
//! One displacement is found, that of the piece that holds the page tables: enough for a PC with one
//! range of memory above the legacy hole. What lies before that piece, or behind the next hole in the
//! memory that the kernel maps, is left out.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use super::roots::{discover, kernel_memory};
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
/// least, to take a displacement for the right one.
const MIN_ROOTS: usize = 3;
/// Groups of roots that are looked at; the largest come first.
const MAX_GROUPS: usize = 16;
/// Displacements of a group that are looked at; those with most votes come first.
const MAX_VOTED: usize = 2048;
/// Gaps up to this many bytes in the memory that a kernel maps are pages that it took out of its map; holes are larger.
const CLOSED_GAP: u64 = 64 << 10;
/// Displacements that are tried to the end.
const MAX_TRIED: usize = 8;

/// Finds the addresses of a file that holds memory without headers and without holes: the one range
/// of it whose addresses the page tables tell.
///
/// `memory` is the file as one range from address 0. `None` if there are no page tables that tell,
/// or if they tell that addresses are offsets after all.
pub fn place(memory: &PhysicalMemory, signatures: &Signatures, backend: Backend) -> Option<MemoryRange> {
    let mmu = signatures.mmu()?;
    let rules = signatures.mmu_only();
    let [file] = memory.ranges() else { return None };
    let mut candidates: Vec<(usize, Reverse<u64>)> = Vec::new();
    for phase in (0..FRAME_SIZE).step_by(GRANULE as usize) {
        let view = memory.with_ranges(vec![moved(file, phase)?]).ok()?;
        let classes = scan(&view, &rules, backend, &|_| ()).frames;
        for targets in root_targets(&view, mmu, &classes) {
            let fitting = fitting_displacements(&classes, &targets);
            candidates.extend(fitting.into_iter().map(|(fits, displacement)| (fits, Reverse(displacement + phase))));
        }
    }
    candidates.sort_unstable();
    candidates.dedup();
    let most_fitting = candidates.into_iter().rev().take(MAX_TRIED);
    let tried = most_fitting.filter_map(|(fits, Reverse(displacement))| {
        let range = moved(file, displacement)?;
        let view = memory.with_ranges(vec![range]).ok()?;
        let classes = scan(&view, &rules, backend, &|_| ()).frames;
        let found = discover(&view, mmu, &classes);
        let self_mapped = found.tried.iter().map(|tried| tried.self_mapped).max()?;
        let range = clipped(range, &kernel_memory(&view, mmu, found.spaces.first()?, CLOSED_GAP))?;
        (self_mapped >= MIN_ROOTS).then_some(((self_mapped, fits, Reverse(displacement)), range))
    });
    // Frames that begin 1 KiB off still map each other, but fit less.
    let ((.., Reverse(displacement)), range) = tried.max_by_key(|(score, _)| *score)?;
    (displacement != 0).then_some(range)
}

/// The part of a placed range up to the next hole in the memory that the kernel maps, which is all
/// memory: behind a hole the displacement is another one.
fn clipped(range: MemoryRange, kernel_memory: &[Range<u64>]) -> Option<MemoryRange> {
    let parts = kernel_memory.iter().map(|known| known.start.max(range.start.0)..known.end.min(range.end.0));
    let part = parts.filter(|part| part.start < part.end).max_by_key(|part| part.end - part.start)?;
    let offset = FileOffset(range.offset.0 + (part.start - range.start.0));
    Some(MemoryRange { start: PhysAddr(part.start), end: PhysAddr(part.end), offset })
}

/// The file at that displacement, without what would then lie in or before the legacy hole.
fn moved(file: &MemoryRange, displacement: u64) -> Option<MemoryRange> {
    // Less than a frame is no displacement yet, but a choice of where frames begin.
    let skip = if displacement < FRAME_SIZE { 0 } else { LEGACY_HOLE_END.saturating_sub(displacement) };
    let start = displacement.checked_add(skip)?;
    let end = displacement.checked_add(file.len())?;
    let offset = FileOffset(file.offset.0.checked_add(skip)?);
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

/// Displacements for which at least nine of ten targets are tables, with the number of targets that are.
fn fitting_displacements(classes: &FrameClasses, targets: &BTreeSet<u64>) -> Vec<(usize, u64)> {
    let mut votes: HashMap<u64, usize> = HashMap::new();
    for (table, _) in classes.with(!(ZERO_FRAME | ABSENT_FRAME)) {
        for target in targets.range(table.frame().0..) {
            *votes.entry(target - table.frame().0).or_default() += 1;
        }
    }
    let mut votes: Vec<(usize, Reverse<u64>)> = votes.into_iter().map(|(d, votes)| (votes, Reverse(d))).collect();
    votes.sort_unstable_by(|a, b| b.cmp(a));
    let fits = |displacement: u64| {
        let places = targets.iter().filter_map(|target| target.checked_sub(displacement));
        places.filter(|place| classes.get(PhysAddr(*place)).is_some_and(|class| class != 0)).count()
    };
    let voted = votes.into_iter().take(MAX_VOTED).map(|(_, Reverse(displacement))| (fits(displacement), displacement));
    voted.filter(|(fits, _)| fits * 10 >= targets.len() * 9).collect()
}
