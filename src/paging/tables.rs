//! Page tables: virtual addresses translated by walking them, with the rules of an MMU.

use std::collections::HashMap;

use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::signature::{Leaf, Mmu, MmuLevel};

use super::absent::{Gone, hidden_page};
use super::space::{Fault, Mapping, Translation};

/// Entries in a page table, on every level.
pub(super) const ENTRIES: u64 = 512;

/// Whether tables, by address and level, lead to a page that user mode may reach.
pub(super) type UserTables = HashMap<(PhysAddr, u8), bool>;

/// Present entries of a table, or of a half of one: index and target address, sorted.
pub(super) type PresentEntries = Vec<(u64, u64)>;

/// The page tables under one root.
#[derive(Clone, Copy)]
pub(super) struct PageTables<'a> {
    memory: &'a PhysicalMemory,
    mmu: &'a Mmu,
    root: PhysAddr,
    levels: u8,
}

impl<'a> PageTables<'a> {
    /// Those whose top table, of level `levels`, lies at `root`.
    pub(super) fn new(memory: &'a PhysicalMemory, mmu: &'a Mmu, root: PhysAddr, levels: u8) -> Self {
        Self { memory, mmu, root, levels }
    }

    /// The physical address of the top table.
    pub(super) fn root(&self) -> PhysAddr {
        self.root
    }

    /// Levels of page tables: 4 or 5 on x86-64.
    pub(super) fn levels(&self) -> u8 {
        self.levels
    }

    pub(super) fn memory(&self) -> &'a PhysicalMemory {
        self.memory
    }

    pub(super) fn mmu(&self) -> &'a Mmu {
        self.mmu
    }

    /// The rules of tables of a level.
    pub(super) fn rules(&self, level: u8) -> Option<&'a MmuLevel> {
        self.mmu.level(level)
    }

    /// The first virtual address above the user half.
    pub(super) fn user_end(&self) -> u64 {
        match self.mmu.level(self.levels) {
            Some(top) => (ENTRIES / 2) << top.shift,
            None => 0,
        }
    }

    fn is_canonical(&self, va: VirtAddr) -> bool {
        let user_end = self.user_end();
        va.0 < user_end || va.0 >= user_end.wrapping_neg()
    }

    /// Walks the page tables.
    ///
    /// # Errors
    /// Where and why the walk ended; that the page itself is in the dump is not checked.
    pub(super) fn translate(&self, va: VirtAddr) -> Result<Translation, Fault> {
        if !self.is_canonical(va) {
            return Err(Fault::NonCanonical { va });
        }
        let mut table = self.root;
        let mut level = self.levels;
        while let Some(rules) = self.mmu.level(level) {
            let slot = PhysAddr(table.0 + ((va.0 >> rules.shift) % ENTRIES) * 8);
            let entry = self.memory.read_u64(slot).ok_or(Fault::NotInDump { va, pa: slot })?;
            let page = if entry & self.mmu.present == 0 {
                Some(self.hidden_page(va, rules, entry)?)
            } else {
                is_leaf(self.mmu, rules, entry).then(|| page_address(self.mmu, rules, entry))
            };
            if let Some(page) = page {
                let page_size = 1 << rules.shift;
                return Ok(Translation { pa: PhysAddr(page | (va.0 & (page_size - 1))), page_size });
            }
            table = PhysAddr(entry & self.mmu.address);
            level -= 1;
        }
        Err(Fault::NonCanonical { va })
    }

    /// The page that an entry which is not present still names.
    #[cold]
    fn hidden_page(&self, va: VirtAddr, rules: &MmuLevel, entry: u64) -> Result<u64, Fault> {
        let found = match va.0 < self.user_end() {
            true => hidden_page(self.memory, self.mmu, rules, entry),
            false if entry == 0 => Err(Gone::Untouched),
            // What the kernel keeps in entries of its own half is not known.
            false => Err(Gone::Unknown),
        };
        found.map_err(|cause| Fault::NotPresent { va, level: rules.level, entry, cause })
    }

    /// The mappings of the user half that user mode may reach, sorted by virtual address; pages that it may not reach only
    /// because the kernel watches or moves them are among these.
    ///
    /// `budget` bounds the tables that are looked at and the mappings together, because a hostile dump
    /// can make four tables look like 2^36 pages; what is left of it is kept. `None` when it ran out.
    pub(super) fn user_mappings(&self, budget: &mut u64) -> Option<Vec<Mapping>> {
        let mut mappings = Vec::new();
        self.collect(self.root, self.levels, 0, 0..ENTRIES / 2, true, budget, &mut mappings)?;
        Some(mappings)
    }

    /// The entries of the top table's user half that are not empty, with their index, and without the bits that do not matter
    /// to where they lead: two roots with the same ones have the same user memory.
    pub(super) fn user_half(&self) -> PresentEntries {
        let mmu = self.mmu;
        let matters = mmu.present | mmu.user | mmu.no_execute | mmu.leaf_bit | mmu.address | mmu.encryption;
        let table = self.memory.bytes(self.root, FRAME_SIZE).unwrap_or_default();
        let entries = (0..ENTRIES / 2).zip(table_entries(table)).filter(|(_, entry)| *entry != 0);
        let part = |entry: u64| if entry & mmu.present == 0 { entry } else { entry & matters };
        entries.map(|(index, entry)| (index, part(entry))).collect()
    }

    /// Whether user mode may reach any page of the user half.
    ///
    /// What is learned about tables is kept in `known`, for the spaces that share them.
    pub(super) fn has_user_page(&self, known: &mut UserTables) -> bool {
        let half = (ENTRIES / 2) as usize;
        self.leads_to_user_page(self.root, self.levels, half, known)
    }

    /// The same for the first entries of a table; recursion ends with the levels.
    fn leads_to_user_page(&self, table: PhysAddr, level: u8, entries: usize, known: &mut UserTables) -> bool {
        let (Some(rules), Some(bytes)) = (self.mmu.level(level), self.memory.bytes(table, FRAME_SIZE)) else {
            return false;
        };
        let wanted = self.mmu.present | self.mmu.user;
        let mut used = table_entries(bytes).take(entries).filter(|entry| *entry != 0);
        used.any(|entry| {
            if entry & self.mmu.present == 0 {
                return hidden_page(self.memory, self.mmu, rules, entry).is_ok();
            }
            if entry & wanted != wanted {
                return false;
            }
            if is_leaf(self.mmu, rules, entry) {
                return true;
            }
            let next = (PhysAddr(entry & self.mmu.address), level - 1);
            if let Some(leads) = known.get(&next) {
                return *leads;
            }
            let leads = self.leads_to_user_page(next.0, next.1, ENTRIES as usize, known);
            known.insert(next, leads);
            leads
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the state of a recursive walk")]
    fn collect(
        &self,
        table: PhysAddr,
        level: u8,
        base: u64,
        entries: std::ops::Range<u64>,
        executable: bool,
        budget: &mut u64,
        out: &mut Vec<Mapping>,
    ) -> Option<()> {
        *budget = budget.checked_sub(1)?;
        let (Some(rules), Some(bytes)) = (self.mmu.level(level), self.memory.bytes(table, FRAME_SIZE)) else {
            return Some(());
        };
        let wanted = self.mmu.present | self.mmu.user;
        for (index, entry) in (0..).zip(table_entries(bytes)) {
            if entry == 0 || !entries.contains(&index) {
                continue;
            }
            let va = base + (index << rules.shift);
            if entry & self.mmu.present == 0 {
                // Nothing says whether it may be executed: an object could lie there.
                if let Ok(page) = hidden_page(self.memory, self.mmu, rules, entry) {
                    let page =
                        Mapping { va: VirtAddr(va), pa: PhysAddr(page), len: 1 << rules.shift, executable: false };
                    *budget = budget.checked_sub(u64::from(push(out, page)))?;
                }
                continue;
            }
            if entry & wanted != wanted {
                continue;
            }
            // Isolated kernels (KPTI) forbid themselves the whole user half on the top level.
            let executable = executable && (level == self.levels || entry & self.mmu.no_execute == 0);
            if is_leaf(self.mmu, rules, entry) {
                let pa = PhysAddr(page_address(self.mmu, rules, entry));
                let is_new = push(out, Mapping { va: VirtAddr(va), pa, len: 1 << rules.shift, executable });
                *budget = budget.checked_sub(u64::from(is_new))?;
            } else {
                let next = PhysAddr(entry & self.mmu.address);
                self.collect(next, level - 1, va, 0..ENTRIES, executable, budget, out)?;
            }
        }
        Some(())
    }
}

/// The entries of a page table.
pub(super) fn table_entries(frame: &[u8]) -> impl Iterator<Item = u64> {
    let (words, _) = frame.as_chunks();
    words.iter().map(|word| u64::from_le_bytes(*word))
}

/// Index and target address of the present entries of the table at `table`; none where it is not in the dump.
pub(super) fn present_entries(memory: &PhysicalMemory, mmu: &Mmu, table: PhysAddr) -> PresentEntries {
    let entries = (0..).zip(table_entries(memory.bytes(table, FRAME_SIZE).unwrap_or_default()));
    let present = entries.filter(|(_, entry)| entry & mmu.present != 0);
    present.map(|(index, entry)| (index, entry & mmu.address)).collect()
}

/// Whether a present entry maps a page.
pub(super) fn is_leaf(mmu: &Mmu, rules: &MmuLevel, entry: u64) -> bool {
    match rules.leaf {
        Leaf::Always => true,
        Leaf::ByLeafBit => entry & mmu.leaf_bit != 0,
        Leaf::Never => false,
    }
}

/// The first physical address of the page that a leaf maps.
pub(super) fn page_address(mmu: &Mmu, rules: &MmuLevel, entry: u64) -> u64 {
    // A large page's entry keeps flags (PAT) in the low bits of the address field.
    entry & mmu.address & !((1 << rules.shift) - 1)
}

/// Appends a page, to the last run where it goes on without a break; `true` if it began a new one.
pub(super) fn push(out: &mut Vec<Mapping>, page: Mapping) -> bool {
    if let Some(last) = out.last_mut() {
        let follows = last.va.0 + last.len == page.va.0 && last.pa.0 + last.len == page.pa.0;
        if follows && last.executable == page.executable {
            last.len += page.len;
            return false;
        }
    }
    out.push(page);
    true
}
