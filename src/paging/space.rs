//! An address space: memory by virtual address, through page tables or as the image of one process has it.

use std::ops::Range;
use std::sync::Arc;

use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr, field};
use crate::dump::{Absence, FilledPart, MemoryRange, PhysicalMemory};
use crate::signature::Mmu;

use super::absent::Gone;
use super::freed::FreedPages;
use super::pages::Residency;
use super::tables::PageTables;

/// Why a virtual address could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The address is in neither half of the space.
    #[error("{va} is not a canonical address")]
    NonCanonical {
        /// The address.
        va: VirtAddr,
    },
    /// An entry of the page walk is not present, and names no frame that is in the dump.
    #[error("{va} {cause} (entry {entry:#x} at level {level})")]
    NotPresent {
        /// The address.
        va: VirtAddr,
        /// The level of the table that holds the entry, 1 for the last.
        level: u8,
        /// The raw entry.
        entry: u64,
        /// What happened to the page.
        cause: Gone,
    },
    /// A page table or the page itself is not part of the dump.
    #[error("{va} is at physical address {pa}, which is not in the dump")]
    NotInDump {
        /// The address.
        va: VirtAddr,
        /// The physical address of the missing table entry or byte.
        pa: PhysAddr,
    },
    /// No freed frame is known to have been the page.
    #[error("{va} is not in freed memory: its page was used again, or there is more than one that may be it")]
    NotInFreed {
        /// The address.
        va: VirtAddr,
    },
    /// It lies in memory that was freed, and the allocator has written over it.
    #[error("{va} was overwritten by the allocator when its memory was freed")]
    Overwritten {
        /// The address.
        va: VirtAddr,
        /// Up to where.
        end: VirtAddr,
    },
    /// The image of the process does not hold the address.
    #[error("{va} is not in the process image")]
    NotInImage {
        /// The address.
        va: VirtAddr,
        /// Why not, as far as the image says.
        why: Absence,
    },
}

impl Fault {
    /// The address that could not be read.
    pub fn address(&self) -> VirtAddr {
        match *self {
            Self::NonCanonical { va }
            | Self::NotInFreed { va }
            | Self::Overwritten { va, .. }
            | Self::NotPresent { va, .. }
            | Self::NotInDump { va, .. }
            | Self::NotInImage { va, .. } => va,
        }
    }
}

/// Memory that is read by virtual address.
pub trait VirtualMemory: Sync {
    /// The bytes from `va` on, as far as they lie in one piece; never empty.
    ///
    /// # Errors
    /// The first byte could not be read.
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault>;

    /// Fetches what will be read soon, where it lies elsewhere.
    fn fetch(&self, _wanted: Range<VirtAddr>) {}

    /// The reason for a fault as text, with the names of files, which the fault itself does not have.
    fn explain(&self, fault: Fault) -> String {
        fault.to_string()
    }

    /// Fills `out` with the bytes from `va` on.
    ///
    /// # Errors
    /// A byte could not be read; what `out` holds then means nothing.
    fn read(&self, va: VirtAddr, out: &mut [u8]) -> Result<(), Fault> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = va.checked_add(done as u64).ok_or(Fault::NonCanonical { va })?;
            let bytes = self.bytes_at(at)?;
            let count = rest.len().min(bytes.len());
            for (to, from) in rest.iter_mut().zip(bytes) {
                *to = *from;
            }
            done += count;
        }
        Ok(())
    }

    /// The 64-bit word at an offset from an address.
    ///
    /// # Errors
    /// A byte of it could not be read.
    fn word(&self, address: VirtAddr, offset: i64) -> Result<u64, Fault> {
        self.read_u64(field(address, offset))
    }

    /// The pointer at an offset from an address.
    ///
    /// # Errors
    /// A byte of it could not be read.
    fn pointer(&self, address: VirtAddr, offset: i64) -> Result<VirtAddr, Fault> {
        self.word(address, offset).map(VirtAddr)
    }

    /// The byte at an offset from an address.
    ///
    /// # Errors
    /// It could not be read.
    fn byte(&self, address: VirtAddr, offset: i64) -> Result<u8, Fault> {
        let mut byte = [0];
        self.read(field(address, offset), &mut byte)?;
        Ok(u8::from_le_bytes(byte))
    }

    /// Consecutive 64-bit words; how many is checked by the caller.
    ///
    /// # Errors
    /// A byte of them could not be read.
    fn words(&self, address: VirtAddr, count: u64) -> Result<Vec<u64>, Fault> {
        let mut words = Vec::new();
        let mut at = address;
        while (words.len() as u64) < count {
            let bytes = self.bytes_at(at)?;
            let (chunks, _) = bytes.as_chunks();
            let before = words.len();
            let wanted = (count - words.len() as u64) as usize;
            words.extend(chunks.iter().take(wanted).map(|chunk| u64::from_le_bytes(*chunk)));
            if words.len() == before {
                words.push(self.read_u64(at)?);
            }
            at = VirtAddr(at.0.wrapping_add(8 * (words.len() - before) as u64));
        }
        Ok(words)
    }

    /// The little-endian 32-bit word at `va`.
    ///
    /// # Errors
    /// A byte of it could not be read.
    fn read_u32(&self, va: VirtAddr) -> Result<u32, Fault> {
        let mut word = [0; 4];
        self.read(va, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    /// The little-endian 64-bit word at `va`.
    ///
    /// # Errors
    /// A byte of it could not be read.
    fn read_u64(&self, va: VirtAddr) -> Result<u64, Fault> {
        if let Some(word) = self.bytes_at(va)?.first_chunk() {
            return Ok(u64::from_le_bytes(*word));
        }
        let mut word = [0; 8];
        self.read(va, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}

/// Where a translation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub pa: PhysAddr,
    /// Bytes of the page that holds it: 4 KiB, 2 MiB or 1 GiB on x86-64.
    pub page_size: u64,
}

/// A run of pages of the same kind, contiguous in virtual and in physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First virtual address.
    pub va: VirtAddr,
    /// First physical address.
    pub pa: PhysAddr,
    /// Bytes.
    pub len: u64,
    /// Whether all levels allow execution.
    pub executable: bool,
}

/// One address space: of the machine, or the one that a process image holds.
#[derive(Clone)]
pub struct AddressSpace {
    memory: Arc<PhysicalMemory>,
    translator: Translator,
}

/// How virtual addresses become addresses of the dump.
#[derive(Clone)]
enum Translator {
    /// By the page tables under a root, of so many levels.
    Tables(Arc<Mmu>, PhysAddr, u8),
    /// By what freed frames say of themselves: the processes have ended.
    Freed(Arc<FreedPages>),
    /// They are the same: the dump is the image of a process, its ranges are at virtual addresses.
    Image,
}

/// A [`Translator`], ready to be asked.
enum Lookup<'a> {
    Tables(PageTables<'a>),
    Freed(&'a FreedPages),
    Image,
}

impl AddressSpace {
    /// The space whose top table, of level `levels`, lies at `root`.
    pub fn new(memory: &Arc<PhysicalMemory>, mmu: &Arc<Mmu>, root: PhysAddr, levels: u8) -> Self {
        Self { memory: Arc::clone(memory), translator: Translator::Tables(Arc::clone(mmu), root, levels) }
    }

    /// The space of a process whose image the dump is: the addresses of `memory` are virtual.
    pub fn of_image(memory: &Arc<PhysicalMemory>) -> Self {
        Self { memory: Arc::clone(memory), translator: Translator::Image }
    }

    /// The space of all processes that have ended.
    pub fn of_freed(memory: &Arc<PhysicalMemory>, pages: FreedPages) -> Self {
        Self { memory: Arc::clone(memory), translator: Translator::Freed(Arc::new(pages)) }
    }

    /// Whether it is memory of processes that have ended.
    pub fn is_freed(&self) -> bool {
        matches!(self.translator, Translator::Freed(_))
    }

    /// What its addresses are looked up in.
    fn lookup(&self) -> Lookup<'_> {
        match &self.translator {
            Translator::Tables(mmu, root, levels) => Lookup::Tables(PageTables::new(&self.memory, mmu, *root, *levels)),
            Translator::Freed(pages) => Lookup::Freed(pages),
            Translator::Image => Lookup::Image,
        }
    }

    /// The page tables, where there are any.
    fn tables(&self) -> Option<PageTables<'_>> {
        match self.lookup() {
            Lookup::Tables(tables) => Some(tables),
            Lookup::Freed(_) | Lookup::Image => None,
        }
    }

    /// The physical address of the top table, where there are page tables.
    pub fn root(&self) -> Option<PhysAddr> {
        match self.translator {
            Translator::Tables(_, root, _) => Some(root),
            Translator::Freed(_) | Translator::Image => None,
        }
    }

    /// Levels of page tables, where there are any: 4 or 5 on x86-64.
    pub fn levels(&self) -> Option<u8> {
        match self.translator {
            Translator::Tables(_, _, levels) => Some(levels),
            Translator::Freed(_) | Translator::Image => None,
        }
    }

    /// What its top table has in the user half: spaces that have the same are one. Empty where nothing is there, or where
    /// there are no page tables.
    pub(crate) fn user_half(&self) -> Vec<(u64, u64)> {
        self.tables().map(|tables| tables.user_half()).unwrap_or_default()
    }

    /// Where in the dump a virtual address lies.
    ///
    /// # Errors
    /// Where and why a walk of page tables ended, though that the page itself is in the dump is not checked; or the image
    /// of a process lacks the address.
    pub fn translate(&self, va: VirtAddr) -> Result<Translation, Fault> {
        let page = |pa| Translation { pa, page_size: FRAME_SIZE };
        match self.lookup() {
            Lookup::Tables(tables) => tables.translate(va),
            Lookup::Freed(pages) => {
                let frame = pages.frame(va).ok_or(Fault::NotInFreed { va })?;
                Ok(page(PhysAddr(frame.0 | va.in_frame())))
            }
            Lookup::Image if self.memory.contains(PhysAddr(va.0)) => Ok(page(PhysAddr(va.0))),
            Lookup::Image => Err(self.not_in_image(va)),
        }
    }

    fn not_in_image(&self, va: VirtAddr) -> Fault {
        Fault::NotInImage { va, why: self.memory.absence(PhysAddr(va.0)) }
    }

    /// Fetches what will be read soon of a dump that lies elsewhere; addresses that lead nowhere are passed over.
    pub fn fetch_all(&self, wanted: impl IntoIterator<Item = Range<VirtAddr>>) {
        if self.memory.remote().is_none() {
            return;
        }
        let pages = wanted.into_iter().flat_map(|part| {
            let first = part.start.frame().0;
            (first..part.end.0).step_by(FRAME_SIZE as usize).map(VirtAddr)
        });
        let mut last = None;
        let pages = pages.filter(|page| last.replace(*page) != Some(*page));
        let frames = pages.filter_map(|page| Some(self.translate(page).ok()?.pa));
        self.memory.fetch(frames.map(|frame| frame..PhysAddr(frame.0.saturating_add(FRAME_SIZE))));
    }

    /// The memory that it is a view of.
    pub(crate) fn memory(&self) -> &PhysicalMemory {
        &self.memory
    }

    /// The memory that the dump holds, where page tables lead into it.
    pub(super) fn translated(&self) -> Option<&PhysicalMemory> {
        match self.translator {
            Translator::Tables(..) | Translator::Freed(_) => Some(&self.memory),
            Translator::Image => None,
        }
    }

    /// The parts of these addresses that come from files other than the dump.
    pub fn filled(&self, start: VirtAddr, end: VirtAddr) -> impl Iterator<Item = FilledPart<'_>> {
        let addresses = match self.translator {
            Translator::Tables(..) | Translator::Freed(_) => PhysAddr(0)..PhysAddr(0),
            Translator::Image => PhysAddr(start.0)..PhysAddr(end.0),
        };
        self.memory.filled(addresses)
    }

    /// What became of the pages of a range of user addresses; of an image, those that it holds are resident and the others
    /// missing. `budget` bounds the page tables that are read; `None` when it ran out.
    pub fn residency(&self, start: VirtAddr, end: VirtAddr, budget: &mut u64) -> Option<Residency> {
        let resident = match self.lookup() {
            Lookup::Tables(tables) => {
                return tables.residency(start..end, budget);
            }
            Lookup::Freed(pages) => pages.runs(start..end).map(|run| run.end.0 - run.start.0).sum(),
            Lookup::Image => self.memory.held(PhysAddr(start.0)..PhysAddr(end.0)),
        };
        let missing = end.0.saturating_sub(start.0).saturating_sub(resident);
        Some(Residency { resident, swapped: 0, missing })
    }

    /// The parts of a range of user addresses whose bytes the dump holds, sorted and joined, and whether these are all: at most
    /// `most` parts are found, and `budget` bounds the page tables that are read.
    pub fn resident(&self, range: Range<VirtAddr>, budget: &mut u64, most: usize) -> (Vec<Range<VirtAddr>>, bool) {
        let mut runs: Box<dyn Iterator<Item = Range<VirtAddr>>> = match self.lookup() {
            Lookup::Tables(tables) => {
                return tables.resident(range, budget, most);
            }
            Lookup::Freed(pages) => Box::new(pages.runs(range)),
            Lookup::Image => {
                let parts = self.memory.parts(PhysAddr(range.start.0)..PhysAddr(range.end.0));
                Box::new(parts.map(|held: MemoryRange| VirtAddr(held.start.0)..VirtAddr(held.end.0)))
            }
        };
        (runs.by_ref().take(most).collect(), runs.next().is_none())
    }

    /// The mappings of the kernel half, each table read once, sorted by virtual address; an image has none. The number of
    /// tables that are read is bounded.
    pub fn kernel_mappings(&self) -> Vec<Mapping> {
        match self.tables() {
            Some(tables) => tables.kernel_mappings(),
            None => Vec::new(),
        }
    }

    /// The mappings of the user half that user mode may reach, sorted by virtual address.
    ///
    /// `budget` bounds the tables that are looked at and the mappings together, because a hostile dump
    /// can make four tables look like 2^36 pages; what is left of it is kept. `None` when it ran out.
    /// An image needs no bound: its mappings are the ranges of the dump, but for what is known to hold no objects.
    pub fn user_mappings(&self, budget: &mut u64) -> Option<Vec<Mapping>> {
        match self.lookup() {
            Lookup::Tables(tables) => tables.user_mappings(budget),
            Lookup::Freed(pages) => Some(pages.mappings()),
            Lookup::Image => {
                let searchable = self.memory.searchable();
                let ranges = searchable.ranges().iter();
                let mappings = ranges.map(|range| Mapping {
                    va: VirtAddr(range.start.0),
                    pa: range.start,
                    len: range.len(),
                    executable: false,
                });
                Some(mappings.collect())
            }
        }
    }
}

impl VirtualMemory for AddressSpace {
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        let (pa, page_end) = match self.translator {
            Translator::Tables(..) | Translator::Freed(_) => {
                let Translation { pa, page_size } = self.translate(va)?;
                (pa, pa.0 | (page_size - 1))
            }
            // What follows in the dump follows in the process.
            Translator::Image => (PhysAddr(va.0), u64::MAX),
        };
        let missing = || match self.translator {
            Translator::Tables(..) | Translator::Freed(_) => Fault::NotInDump { va, pa },
            Translator::Image => self.not_in_image(va),
        };
        self.memory.bytes_from(pa, (page_end - pa.0).saturating_add(1)).ok_or_else(missing)
    }

    fn fetch(&self, wanted: Range<VirtAddr>) {
        self.fetch_all([wanted]);
    }

    fn explain(&self, fault: Fault) -> String {
        match fault {
            Fault::NotInImage { va, why } => self.memory.explain(PhysAddr(va.0), why),
            other => other.to_string(),
        }
    }
}
