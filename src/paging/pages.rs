//! Pages by virtual address: which of a range are in the dump, and where the kernel half maps physical memory.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::absent::{Gone, hidden_page};
use super::space::Mapping;
use super::tables::{ENTRIES, PageTables, is_leaf, page_address, push, table_entries};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};

/// Page tables of a kernel half that are read: the last level of the direct map, and those of all else.
const BYTES_PER_TABLE: u64 = 2 << 20;
const MIN_TABLES: u64 = 1 << 13;

/// What became of the pages of a range of virtual addresses, in bytes. Addresses that no page was ever given to are in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// In the dump.
    pub resident: u64,
    /// On a swap device.
    pub swapped: u64,
    /// In memory that the dump does not hold, or under a page table that it does not hold.
    pub missing: u64,
}

/// A walk of a range under way.
struct Walk<'b, F> {
    range: Range<u64>,
    budget: &'b mut u64,
    /// Called with the part of each entry that lies in the range, by address, and with the physical address that it is at, or what
    /// happened to it, and with the budget; `None` ends the walk.
    see: F,
}

impl PageTables<'_> {
    /// The pages of the user half in a range; `budget` bounds the tables that are read, and is used up as they are.
    /// `None` when it ran out.
    pub(super) fn residency(&self, range: Range<VirtAddr>, budget: &mut u64) -> Option<Residency> {
        let mut found = Residency::default();
        let see = |part: Range<u64>, page: Result<u64, Gone>, _: &mut u64| {
            let bytes = part.end - part.start;
            match page {
                // Large pages lie in the dump as a whole, or they don't.
                Ok(page) if self.memory().contains(PhysAddr(page)) => found.resident += bytes,
                Ok(_) | Err(Gone::FrameNotInDump { .. } | Gone::Broken { .. } | Gone::OnDevice) => {
                    found.missing += bytes
                }
                Err(Gone::Swapped { .. }) => found.swapped += bytes,
                Err(Gone::Untouched | Gone::Guard | Gone::Unknown) => {}
            }
            Some(())
        };
        self.walk(range, budget, see)?;
        Some(found)
    }

    /// The addresses of the user half in a range whose bytes the dump holds, sorted and joined, and whether these are all: at most
    /// `most` runs are found, and `budget` bounds the tables as above.
    pub(super) fn resident(
        &self,
        range: Range<VirtAddr>,
        budget: &mut u64,
        most: usize,
    ) -> (Vec<Range<VirtAddr>>, bool) {
        let mut runs: Vec<Range<VirtAddr>> = Vec::new();
        let see = |part: Range<u64>, page: Result<u64, Gone>, budget: &mut u64| {
            let Ok(page) = page else { return Some(()) };
            let end = PhysAddr(page.saturating_add(part.end - part.start));
            for (index, held) in self.memory().parts(PhysAddr(page)..end).enumerate() {
                // A dump may have a range for each byte of a large page.
                *budget = budget.checked_sub(index.min(1) as u64)?;
                let at = |pa: PhysAddr| VirtAddr(part.start + (pa.0 - page));
                let (start, end) = (at(held.start), at(held.end));
                let has_room = runs.len() < most;
                match runs.last_mut().filter(|last| last.end == start) {
                    Some(last) => last.end = end,
                    None if has_room => runs.push(start..end),
                    None => return None,
                }
            }
            Some(())
        };
        let is_all = self.walk(range, budget, see).is_some();
        (runs, is_all)
    }

    /// Calls `see` with the pages of the user half in a range, as [`Walk`] says; `None` if it ended before.
    pub(super) fn walk<F>(&self, range: Range<VirtAddr>, budget: &mut u64, see: F) -> Option<()>
    where
        F: FnMut(Range<u64>, Result<u64, Gone>, &mut u64) -> Option<()>,
    {
        let range = range.start.0..range.end.0.min(self.user_end());
        self.walk_table(self.root(), self.levels(), 0, &mut Walk { range, budget, see })
    }

    fn walk_table<F>(&self, table: PhysAddr, level: u8, base: u64, walk: &mut Walk<'_, F>) -> Option<()>
    where
        F: FnMut(Range<u64>, Result<u64, Gone>, &mut u64) -> Option<()>,
    {
        let Some(rules) = self.rules(level) else { return Some(()) };
        *walk.budget = walk.budget.checked_sub(1)?;
        let range = walk.range.clone();
        let overlap = |start: u64, size: u64| start.max(range.start)..start.saturating_add(size).min(range.end);
        let size = 1u64 << rules.shift;
        let Some(bytes) = self.memory().bytes(table, FRAME_SIZE) else {
            let part = overlap(base, size.saturating_mul(ENTRIES));
            let gone = Err(Gone::FrameNotInDump { page: table });
            return if part.is_empty() { Some(()) } else { (walk.see)(part, gone, walk.budget) };
        };
        let first = range.start.saturating_sub(base) >> rules.shift;
        for (index, entry) in (0..).zip(table_entries(bytes)).skip(first.min(ENTRIES) as usize) {
            let at = base + (index << rules.shift);
            if at >= range.end {
                break;
            }
            if entry == 0 {
                continue;
            }
            let part = overlap(at, size);
            let page = match entry & self.mmu().present {
                0 => hidden_page(self.memory(), self.mmu(), rules, entry),
                _ if is_leaf(self.mmu(), rules, entry) => Ok(page_address(self.mmu(), rules, entry)),
                _ => {
                    self.walk_table(PhysAddr(entry & self.mmu().address), level - 1, at, walk)?;
                    continue;
                }
            };
            if !part.is_empty() {
                let within = part.start - at;
                (walk.see)(part, page.map(|page| page.saturating_add(within)), walk.budget)?;
            }
        }
        Some(())
    }

    /// The mappings of the kernel half, each table read once, sorted by virtual address. The number of tables is bounded; those
    /// of higher levels come first.
    pub(super) fn kernel_mappings(&self) -> Vec<Mapping> {
        let budget = self.memory().size() / BYTES_PER_TABLE + MIN_TABLES;
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = VecDeque::from([(self.root(), self.levels(), 0u64)]);
        for _ in 0..budget {
            let Some((table, level, base)) = todo.pop_front() else { break };
            let (Some(rules), Some(bytes)) = (self.rules(level), self.memory().bytes(table, FRAME_SIZE)) else {
                continue;
            };
            let is_top = level == self.levels();
            for (index, entry) in (0..).zip(table_entries(bytes)) {
                if entry & self.mmu().present == 0 || is_top && index < ENTRIES / 2 {
                    continue;
                }
                let sign = if is_top { self.user_end().wrapping_mul(2).wrapping_neg() } else { 0 };
                let va = base.wrapping_add(index << rules.shift) | sign;
                if is_leaf(self.mmu(), rules, entry) {
                    let pa = PhysAddr(page_address(self.mmu(), rules, entry));
                    let executable = entry & self.mmu().no_execute == 0;
                    push(&mut found, Mapping { va: VirtAddr(va), pa, len: 1 << rules.shift, executable });
                } else {
                    let next = PhysAddr(entry & self.mmu().address);
                    // Kernels map some tables (the zero shadow of KASAN) at millions of addresses.
                    if seen.insert((next, level)) {
                        todo.push_back((next, level - 1, va));
                    }
                }
            }
        }
        found.sort_unstable_by_key(|mapping| mapping.va);
        found
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use super::*;
    use crate::addr::FileOffset;
    use crate::dump::{MemoryRange, PhysicalMemory};
    use crate::signature::Signatures;

    const FRAMES: u64 = 8;
    const PRESENT: u64 = 0x7;

    /// Memory of a few frames, in which the tables at 0x1000 to 0x4000 are of level 4 to 1; `fill` gives the entries of each level.
    fn resident(
        fill: impl Fn(u8, u64) -> u64,
        range: Range<u64>,
        budget: u64,
        most: usize,
    ) -> (Vec<Range<u64>>, bool, Residency) {
        let mut bytes = vec![0; (FRAMES * FRAME_SIZE) as usize];
        for (level, table) in [(4, 0x1000), (3, 0x2000), (2, 0x3000), (1, 0x4000)] {
            for index in 0..ENTRIES {
                let at = (table + index * 8) as usize;
                bytes[at..at + 8].copy_from_slice(&fill(level, index).to_le_bytes());
            }
        }
        let end = PhysAddr(bytes.len() as u64);
        let range_of_dump = MemoryRange { start: PhysAddr(0), end, offset: FileOffset(0) };
        let memory = PhysicalMemory::owned(bytes, vec![range_of_dump]).unwrap();
        let signatures = Signatures::load(None).unwrap();
        let tables = PageTables::new(&memory, signatures.mmu().unwrap(), PhysAddr(0x1000), 4);
        let range = VirtAddr(range.start)..VirtAddr(range.end);
        let (runs, is_all) = tables.resident(range.clone(), &mut budget.clone(), most);
        let residency = tables.residency(range, &mut budget.clone()).unwrap_or_default();
        (runs.iter().map(|run| run.start.0..run.end.0).collect(), is_all, residency)
    }

    /// One table of each level; the entries of the last one as given.
    fn one_table(last: impl Fn(u64) -> u64) -> impl Fn(u8, u64) -> u64 {
        move |level, index| match level {
            1 => last(index),
            _ if index == 0 => 0x1000 * (6 - u64::from(level)) + PRESENT,
            _ => 0,
        }
    }

    #[test]
    fn runs_are_what_the_dump_holds() {
        // Two pages beside each other that lie apart in the dump; one behind a gap; one that the dump lacks.
        let fill = one_table(|index| match index {
            1 => 0x6000 | PRESENT,
            2 => 0x5000 | PRESENT,
            4 => 0x7000 | PRESENT,
            5 => 0x9000 | PRESENT,
            _ => 0,
        });
        let (runs, is_all, residency) = resident(&fill, 0..1 << 47, 100, 100);
        assert_eq!((runs, is_all), (vec![0x1000..0x3000, 0x4000..0x5000], true));
        assert_eq!(residency, Residency { resident: 0x3000, swapped: 0, missing: 0x1000 });
        let (runs, is_all, residency) = resident(&fill, 0x2000..0x4000, 100, 100);
        assert_eq!((runs, is_all, residency.resident), (vec![0x2000..0x3000], true, 0x1000));
    }

    #[test]
    fn a_hostile_process_ends_at_the_bounds() {
        let alternating = one_table(|index| if index % 2 == 0 { 0x5000 | PRESENT } else { 0 });
        let (runs, is_all, _) = resident(&alternating, 0..1 << 47, 100, 1000);
        assert_eq!((runs.len(), is_all), (256, true));
        let (runs, is_all, _) = resident(&alternating, 0..1 << 47, 100, 10);
        assert_eq!((runs.len(), is_all), (10, false));
        // Four tables whose entries all lead to the next: 2^35 pages in the user half.
        let everywhere = |level: u8, _| 0x1000 * (6 - u64::from(level)) + PRESENT;
        let (runs, is_all, _) = resident(everywhere, 0..u64::MAX, 10_000, 1000);
        assert_eq!((runs.len(), runs[0].start, is_all), (1, 0, false));
        // Large pages of 1 GiB, of which the dump has the first frames.
        let large = |level: u8, _| if level == 4 { 0x2000 | PRESENT } else { 0x80 | PRESENT };
        let (runs, is_all, _) = resident(large, 0..1 << 47, 1000, 1000);
        assert_eq!((runs.len(), is_all, runs[1].clone()), (1000, false, 1 << 30..(1 << 30) + FRAMES * FRAME_SIZE));
    }
}
