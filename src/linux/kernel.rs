//! The kernel's own memory: read through the direct map, and through the kernel half of the page tables elsewhere.
//!
//! The direct map shows all physical memory at one virtual base (`page_offset_base`,
//! Documentation/arch/x86/x86_64/mm.rst). With KASLR the base is different at each boot, and a multiple of 1 GiB
//! (arch/x86/mm/kaslr.c).

use std::collections::BTreeMap;

use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::paging::{AddressSpace, Discovery, Fault, Space, SpaceKind, VirtualMemory};
use crate::scan::{Backend, PointerSet, sweep};
use crate::signature::{KERNEL_POINTER_MIN, Mmu};

/// The direct map begins at a multiple of this (`PUD_SIZE`).
const DIRECT_MAP_ALIGN: u64 = 1 << 30;
/// Bases that are looked for in memory, those that map most first.
const MAX_BASES: usize = 3;
/// Roots of page tables that are looked for in memory.
const MAX_ROOTS: usize = 1 << 16;
/// Longest text that is read from the kernel: a name of a file (NAME_MAX) is shorter.
const MAX_TEXT: usize = 256;

/// The kernel's memory.
pub struct Kernel<'a> {
    memory: &'a PhysicalMemory,
    mmu: &'a Mmu,
    /// The space whose kernel half is read.
    space: AddressSpace<'a>,
    direct_map: VirtAddr,
}

/// Where the kernel keeps the virtual address of the top table of an address space, as in `mm_struct.pgd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootPointer {
    /// The address of the pointer, in the direct map.
    pub(super) slot: VirtAddr,
    /// The top table.
    pub(super) root: PhysAddr,
}

impl<'a> Kernel<'a> {
    /// Finds the direct map, and all pointers to top tables in memory.
    ///
    /// The page tables give candidates for the base; the one counts by which most top tables are pointed to.
    pub(super) fn find(
        memory: &'a PhysicalMemory,
        mmu: &'a Mmu,
        discovery: &Discovery,
        backend: Backend,
    ) -> Option<(Self, Vec<RootPointer>)> {
        // The kernel's own root has all that the kernel maps; the halves of others may be older.
        let by_kind = |kind| discovery.spaces.iter().find(|space| space.kind == kind);
        let Space { root, levels, .. } = by_kind(SpaceKind::Kernel).or_else(|| by_kind(SpaceKind::Process))?;
        let space = AddressSpace::new(memory, mmu, *root, *levels);
        let mut mapped: BTreeMap<u64, u64> = BTreeMap::new();
        for mapping in space.kernel_mappings(memory.size() / FRAME_SIZE) {
            let base = mapping.va.0.wrapping_sub(mapping.pa.0);
            if base >= KERNEL_POINTER_MIN && base.is_multiple_of(DIRECT_MAP_ALIGN) {
                let bytes = mapped.entry(base).or_default();
                *bytes = bytes.saturating_add(mapping.len);
            }
        }
        let mut bases: Vec<(u64, u64)> = mapped.into_iter().map(|(base, bytes)| (bytes, base)).collect();
        bases.sort_unstable_by(|a, b| b.cmp(a));
        bases.truncate(MAX_BASES);
        let roots: Vec<PhysAddr> = discovery.spaces.iter().map(|space| space.root).take(MAX_ROOTS).collect();
        let pointer_to = |root: &PhysAddr, base: u64| root.0.checked_add(base);
        let values: Vec<u64> =
            bases.iter().flat_map(|(_, base)| roots.iter().filter_map(|root| pointer_to(root, *base))).collect();
        let all = PhysAddr(0)..memory.end();
        let slots = sweep(memory, &[all], &PointerSet::new(&values), backend, &|_| ());
        let pointers = |base: u64| -> Vec<RootPointer> {
            let of_base = slots.iter().filter_map(|(slot, value)| {
                let root = PhysAddr(value.checked_sub(base)?);
                let slot = VirtAddr(slot.0.checked_add(base)?);
                roots.binary_search(&root).ok().map(|_| RootPointer { slot, root })
            });
            of_base.collect()
        };
        let count = |pointers: &[RootPointer]| {
            roots.iter().filter(|root| pointers.iter().any(|pointer| pointer.root == **root)).count()
        };
        let found = bases.iter().map(|(_, base)| (*base, pointers(*base)));
        // Of two with as many, the one that maps more.
        let (base, pointers) = found.rev().max_by_key(|(_, pointers)| count(pointers))?;
        (!pointers.is_empty()).then_some((Self { memory, mmu, space, direct_map: VirtAddr(base) }, pointers))
    }

    /// The first virtual address of the direct map.
    pub fn direct_map(&self) -> VirtAddr {
        self.direct_map
    }

    /// The dump.
    pub fn memory(&self) -> &'a PhysicalMemory {
        self.memory
    }

    /// The address space of a process.
    pub(super) fn user_space(&self, root: PhysAddr) -> AddressSpace<'a> {
        AddressSpace::new(self.memory, self.mmu, root, self.space.levels().unwrap_or(4))
    }

    /// The physical address that the direct map shows at a virtual one.
    pub(super) fn physical(&self, va: VirtAddr) -> Option<PhysAddr> {
        va.0.checked_sub(self.direct_map.0).map(PhysAddr).filter(|pa| self.memory.contains(*pa))
    }

    /// The 32-bit number in a structure.
    pub(super) fn u32(&self, structure: VirtAddr, offset: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(structure.checked_add(offset)?, &mut bytes).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// The 64-bit number in a structure.
    pub(super) fn u64(&self, structure: VirtAddr, offset: u64) -> Option<u64> {
        self.read_u64(structure.checked_add(offset)?).ok()
    }

    /// The pointer in a structure, if it is one into the kernel's memory.
    pub(super) fn pointer(&self, structure: VirtAddr, offset: u64) -> Option<VirtAddr> {
        self.u64(structure, offset).filter(|value| *value >= KERNEL_POINTER_MIN).map(VirtAddr)
    }

    /// The bytes before the first NUL, of which there are at most `most`; `None` where there is no NUL.
    pub(super) fn text(&self, at: VirtAddr, most: usize) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        while text.len() < most.min(MAX_TEXT) {
            let bytes = self.bytes_at(at.checked_add(text.len() as u64)?).ok()?;
            let bytes = bytes.get(..bytes.len().min(most - text.len()))?;
            if let Some(end) = memchr::memchr(0, bytes) {
                text.extend(bytes.get(..end)?);
                return Some(text);
            }
            text.extend(bytes);
        }
        None
    }
}

impl VirtualMemory for Kernel<'_> {
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        // The direct map needs no page table, so that it can be read where these are damaged.
        match self.physical(va).and_then(|pa| self.memory.bytes_from(pa, u64::MAX)) {
            Some(bytes) => Ok(bytes),
            None => self.space.bytes_at(va),
        }
    }
}
