//! Memory maps of processes as in /proc/PID/maps (fs/proc/task_mmu.c), and how much of each mapping is in the dump.

use std::collections::HashSet;
use std::ops::Range;

use super::kernel::Kernel;
use super::maple;
use super::path::Paths;
use super::process::Memory;
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::{PhysicalMemory, Segment};
use crate::paging::Residency;

/// Bits of `vm_area_struct.vm_flags` (include/linux/mm.h).
const READ: u64 = 0x1;
const WRITE: u64 = 0x2;
const EXECUTE: u64 = 0x4;
const MAY_SHARE: u64 = 0x80;
/// Maximum number of mappings of a process.
const MAX_MAPPINGS: usize = 1 << 20;
/// The kernel's name for the file of shared anonymous memory (`shmem_zero_setup` of mm/shmem.c).
const ANONYMOUS_SHARED: &str = "/dev/zero (deleted)";
/// Maximum size of a name that a program gives to memory, with its NUL (`ANON_VMA_NAME_MAX_LEN` of mm/madvise.c).
const MAX_ANON_NAME: usize = 80;
/// Maximum size of the name of a mapping of the kernel, such as `[vdso]`.
const MAX_SPECIAL_NAME: usize = 32;
/// Maximum number of page tables and mappings of a process per frame of the dump, and the minimum of that bound. More of them are
/// taken for hostile.
const TABLES_PER_FRAME: u64 = 4;
const MIN_TABLES: u64 = 1 << 16;

/// The source of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MappingSource {
    /// The kernel's record (`vm_area_struct`); the segments of a core come from these records as well.
    Vma,
    /// Pages that the page tables map.
    PageTables,
}

/// A run of a process's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: VirtAddr,
    /// The first address after it.
    pub end: VirtAddr,
    /// Read, write, execute, and private or shared, such as `r-xp`; `?` marks what is not known.
    pub permissions: String,
    /// Its offset in the file in bytes; 0 without a file.
    pub offset: Option<u64>,
    /// The file, or the kernel's name for the mapping, such as `[heap]`.
    pub file: Option<String>,
    /// The state of its pages; `None` if the page tables are too many to count.
    pub residency: Option<Residency>,
    /// Its source.
    pub source: MappingSource,
    /// The address of the kernel's record.
    pub record: Option<VirtAddr>,
}

/// The memory map of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    /// The mappings, sorted by address, without overlap.
    pub mappings: Vec<Mapping>,
    /// What could not be read.
    pub problems: Vec<Diagnostic>,
}

/// A mapping in the kernel's records.
#[derive(Clone, Copy)]
struct Record {
    address: VirtAddr,
    start: u64,
    end: u64,
}

impl Memory<'_> {
    /// The memory map: the kernel's records and, where some can't be read, the pages that the page tables map there.
    pub(super) fn map(&self, task: VirtAddr) -> MemoryMap {
        let mut map = MemoryMap::default();
        let records = self.records(&mut map.problems);
        let paths = Paths::new(self.kernel, self.layout, task);
        let space = self.kernel.user_space(self.root);
        let mut budget = budget(self.kernel);
        for record in &records {
            let residency = space.residency(VirtAddr(record.start), VirtAddr(record.end), &mut budget);
            map.mappings.push(self.describe(*record, &paths, residency));
        }
        if !map.problems.is_empty() {
            let mapped = from_page_tables(self.kernel, self.root, &mut budget);
            let is_new = |range: &Mapping| {
                let after = records.partition_point(|record| record.end <= range.start.0);
                records.get(after).is_none_or(|record| record.start >= range.end.0)
            };
            map.mappings.extend(mapped.into_iter().filter(is_new));
            map.mappings.sort_by_key(|mapping| mapping.start);
        }
        map
    }

    /// The records of the mappings, sorted, without overlap.
    fn records(&self, problems: &mut Vec<Diagnostic>) -> Vec<Record> {
        let found = if let Some(offset) = self.layout.mm.root {
            self.in_tree(offset, problems)
        } else if let Some(offset) = self.layout.mm.mmap {
            self.in_list(offset, problems)
        } else {
            problems.push(self.problem("the kernel's records of the mappings can't be found".to_owned()));
            Vec::new()
        };
        let mut records: Vec<Record> = Vec::new();
        let mut wrong = 0usize;
        for record in found {
            if records.last().is_some_and(|last| record.start < last.end) { wrong += 1 } else { records.push(record) }
        }
        if wrong > 0 {
            problems.push(self.problem(format!("{wrong} records of mappings overlap others and are left out")));
        }
        records
    }

    fn in_tree(&self, offset: u64, problems: &mut Vec<Diagnostic>) -> Vec<Record> {
        let root = self.kernel.u64(self.mm, offset);
        let Some(tree) = root.and_then(|root| maple::walk(self.kernel, self.layout, root)) else {
            problems.push(self.problem("the tree of the mappings can't be read".to_owned()));
            return Vec::new();
        };
        let mut unreadable = tree.unreadable;
        let mut records = Vec::new();
        for entry in tree.entries {
            match self.record(entry.value) {
                // If the tree and the record do not agree, one of them was changed.
                Some(record) if record.start == entry.first && record.end - 1 == entry.last => records.push(record),
                _ => unreadable += 1,
            }
        }
        if unreadable > 0 {
            let message =
                format!("{unreadable} parts of the tree of the mappings can't be read, or contradict the tree");
            problems.push(self.problem(message));
        }
        records
    }

    fn in_list(&self, offset: u64, problems: &mut Vec<Diagnostic>) -> Vec<Record> {
        let mut records = Vec::new();
        let mut seen = HashSet::new();
        let Some(next) = self.layout.vma.next else { return records };
        let mut at = self.kernel.u64(self.mm, offset).map(VirtAddr);
        loop {
            match at {
                Some(VirtAddr(0)) => return records,
                Some(address) if seen.len() < MAX_MAPPINGS && seen.insert(address) => {
                    let Some(record) = self.record(address) else { break };
                    records.push(record);
                    at = self.kernel.u64(address, next).map(VirtAddr);
                }
                _ => break,
            }
        }
        let message = format!("the list of the mappings can't be followed beyond number {}", records.len());
        problems.push(self.problem(message));
        records
    }

    /// A problem with the records of the mappings.
    fn problem(&self, message: String) -> Diagnostic {
        Diagnostic::new(Code::BrokenMemoryMap, Some(self.mm.into()), message)
    }

    /// The record at an address, if it can be one of this process.
    fn record(&self, address: VirtAddr) -> Option<Record> {
        let of = &self.layout.vma;
        let (start, end) = (self.kernel.u64(address, of.start?)?, self.kernel.u64(address, of.end?)?);
        let is_own = self.kernel.pointer(address, of.mm?) == Some(self.mm);
        let is_sound = start < end && start.is_multiple_of(FRAME_SIZE) && end.is_multiple_of(FRAME_SIZE);
        (is_own && is_sound).then_some(Record { address, start, end })
    }

    fn describe(&self, record: Record, paths: &Paths<'_>, residency: Option<Residency>) -> Mapping {
        let of = &self.layout.vma;
        let flags = of.flags.and_then(|offset| self.kernel.u64(record.address, offset));
        let letter = |bit: u64, yes: char, no: char| flags.map_or('?', |flags| if flags & bit != 0 { yes } else { no });
        let file = of.file.and_then(|offset| self.kernel.u64(record.address, offset));
        let offset = match file {
            Some(0) => Some(0),
            Some(_) => of.pgoff.and_then(|offset| self.kernel.u64(record.address, offset)?.checked_mul(FRAME_SIZE)),
            None => None,
        };
        Mapping {
            start: VirtAddr(record.start),
            end: VirtAddr(record.end),
            permissions: [
                letter(READ, 'r', '-'),
                letter(WRITE, 'w', '-'),
                letter(EXECUTE, 'x', '-'),
                letter(MAY_SHARE, 's', 'p'),
            ]
            .iter()
            .collect(),
            offset,
            file: self.name(record, file.map(VirtAddr), paths),
            residency,
            source: MappingSource::Vma,
            record: Some(record.address),
        }
    }

    /// The last column of /proc/PID/maps (`get_vma_name`).
    fn name(&self, record: Record, file: Option<VirtAddr>, paths: &Paths<'_>) -> Option<String> {
        let anon_name = || {
            let of = self.kernel.pointer(record.address, self.layout.vma.anon_name?)?;
            let name = self.kernel.text(of.checked_add(self.layout.anon_name.name?)?, MAX_ANON_NAME)?;
            Some(String::from_utf8_lossy(&name).into_owned())
        };
        if let Some(file) = file.filter(|file| file.0 != 0) {
            // Shared memory without a file has one that the kernel made; only there a program can give a name.
            // Until 6.1 the pointer to the name shares its place with links of mappings that have a file.
            let path = paths.of_file(file);
            let is_made = path.as_deref() == Some(ANONYMOUS_SHARED);
            let has_place = self.layout.vma.anon_name != self.layout.vma.shared;
            return (is_made && has_place)
                .then(anon_name)
                .flatten()
                .map(|name| format!("[anon_shmem:{name}]"))
                .or(path);
        }
        if let Some(name) = self.special_name(record.address) {
            return Some(name);
        }
        let of = &self.layout.mm;
        let number = |offset: Option<u64>| self.kernel.u64(self.mm, offset?);
        if number(of.vdso) == Some(record.start) {
            return Some("[vdso]".to_owned());
        }
        if let (Some(start), Some(end)) = (number(of.start_brk), number(of.brk))
            && record.start < end
            && record.end > start
        {
            return Some("[heap]".to_owned());
        }
        if number(of.start_stack).is_some_and(|at| (record.start..=record.end).contains(&at)) {
            return Some("[stack]".to_owned());
        }
        anon_name().map(|name| format!("[anon:{name}]"))
    }

    /// The name of a mapping of the kernel: `vm_ops->name` is there, and `vm_private_data` is a `vm_special_mapping`.
    fn special_name(&self, record: VirtAddr) -> Option<String> {
        let of = &self.layout.vma;
        let ops = self.kernel.pointer(record, of.ops?)?;
        self.kernel.pointer(ops, self.layout.vm_ops.name?)?;
        let special = self.kernel.pointer(record, of.private_data?)?;
        let name = self.kernel.text(self.kernel.pointer(special, self.layout.special.name?)?, MAX_SPECIAL_NAME)?;
        name.starts_with(b"[").then(|| String::from_utf8_lossy(&name).into_owned())
    }
}

/// Maximum number of page tables of a process that are read.
pub(super) fn budget(kernel: &Kernel) -> u64 {
    (kernel.memory().size() / FRAME_SIZE).saturating_mul(TABLES_PER_FRAME).saturating_add(MIN_TABLES)
}

/// The bytes of a process's memory that are in the dump; `None` if its page tables are too many to count.
pub(super) fn resident(kernel: &Kernel, root: PhysAddr) -> Option<u64> {
    let space = kernel.user_space(root);
    Some(space.residency(VirtAddr(0), VirtAddr(u64::MAX), &mut budget(kernel))?.resident)
}

/// The memory map from the page tables: runs of pages that user mode can access.
pub(super) fn page_table_map(kernel: &Kernel, root: PhysAddr) -> MemoryMap {
    MemoryMap { mappings: from_page_tables(kernel, root, &mut budget(kernel)), problems: Vec::new() }
}

/// The memory map of a process image: its segments, and the files that it names.
pub fn map_of_image(memory: &PhysicalMemory) -> MemoryMap {
    let known = memory.mappings();
    let describe = |segment: &Segment| {
        let Range { start, end } = segment.addresses.clone();
        let letter = |has: bool, yes: char| if has { yes } else { '-' };
        let [read, write, execute] = segment.access;
        let after = known.files().partition_point(|file| file.addresses.start <= start);
        let file = after.checked_sub(1).and_then(|index| known.files().get(index));
        let file = file.filter(|file| start < file.addresses.end);
        let private = segment.private.or_else(|| Some(!file?.shared?));
        let resident = memory.held(start..end);
        let name = segment.name.clone();
        Mapping {
            start: VirtAddr(start.0),
            end: VirtAddr(end.0),
            permissions: [
                letter(read, 'r'),
                letter(write, 'w'),
                letter(execute, 'x'),
                private.map_or('?', |private| if private { 'p' } else { 's' }),
            ]
            .iter()
            .collect(),
            offset: Some(file.map_or(0, |file| file.offset_of(start))),
            file: name.or_else(|| Some(file?.path.to_string_lossy().into_owned())),
            residency: Some(Residency { resident, swapped: 0, missing: (end.0 - start.0).saturating_sub(resident) }),
            source: MappingSource::Vma,
            record: None,
        }
    };
    MemoryMap { mappings: known.segments().iter().map(describe).collect(), problems: Vec::new() }
}

fn from_page_tables(kernel: &Kernel, root: PhysAddr, budget: &mut u64) -> Vec<Mapping> {
    let pages = kernel.user_space(root).user_mappings(budget).unwrap_or_default();
    let mut mappings: Vec<Mapping> = Vec::new();
    for page in pages {
        let permissions = if page.executable { "r?x?" } else { "r?-?" };
        let resident = kernel.memory().held(page.pa..PhysAddr(page.pa.0.saturating_add(page.len)));
        let end = VirtAddr(page.va.0.saturating_add(page.len));
        let here = Residency { resident, swapped: 0, missing: page.len.saturating_sub(resident) };
        match mappings.last_mut() {
            Some(last) if last.end == page.va && last.permissions == permissions => {
                last.end = end;
                if let Some(sum) = &mut last.residency {
                    sum.resident += here.resident;
                    sum.missing += here.missing;
                }
            }
            _ => mappings.push(Mapping {
                start: page.va,
                end,
                permissions: permissions.to_owned(),
                offset: None,
                file: None,
                residency: Some(here),
                source: MappingSource::PageTables,
                record: None,
            }),
        }
    }
    mappings
}
