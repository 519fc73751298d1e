//! The kernel's own memory: read through the direct map, and through the kernel half of the page tables elsewhere.
//!
//! The direct map shows all physical memory at one virtual base (`page_offset_base`,
//! Documentation/arch/x86/x86_64/mm.rst). With KASLR the base is different at each boot, and a multiple of 1 GiB
//! (arch/x86/mm/kaslr.c).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::addr::{PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::paging::{AddressSpace, Discovery, Fault, Mapping, SpaceKind, VirtualMemory};
use crate::signature::{KERNEL_POINTER_MIN, Mmu};

/// The direct map begins at a multiple of this (`PUD_SIZE`).
const DIRECT_MAP_ALIGN: u64 = 1 << 30;
/// Spaces of a kind whose kernel half is looked at.
const MAX_TRIED: usize = 4;
/// Longest text that is read from the kernel: a name of a file (NAME_MAX) is shorter.
const MAX_TEXT: usize = 256;

/// The kernel's memory.
#[derive(Clone)]
pub struct Kernel {
    memory: Arc<PhysicalMemory>,
    mmu: Arc<Mmu>,
    /// The space whose kernel half is read.
    space: AddressSpace,
    direct_map: VirtAddr,
}

/// The kernel's memory, if it is as a kernel half shows it.
pub(super) struct Candidate {
    pub(super) kernel: Kernel,
    /// What the kernel half maps.
    pub(super) mappings: Vec<Mapping>,
}

impl Kernel {
    /// The kernel's memory by each base that the direct map may have, as page tables show it.
    pub(super) fn candidates(
        memory: &Arc<PhysicalMemory>,
        mmu: &Arc<Mmu>,
        discovery: &Discovery,
    ) -> impl Iterator<Item = Candidate> {
        // Roots of processes first: they were in use, while others may have been freed and overwritten.
        let kinds = [SpaceKind::Process, SpaceKind::Kernel];
        let of_kind = |kind| discovery.spaces.iter().filter(move |space| space.kind == kind).take(MAX_TRIED);
        let mut known = BTreeSet::new();
        kinds.into_iter().flat_map(of_kind).filter_map(move |space| {
            let space = AddressSpace::new(memory, mmu, space.root, space.levels);
            let mappings = space.kernel_mappings();
            let direct_map = direct_map(memory, &mappings).filter(|base| known.insert(*base))?;
            let kernel = Self { memory: Arc::clone(memory), mmu: Arc::clone(mmu), space, direct_map };
            Some(Candidate { kernel, mappings })
        })
    }

    /// Memory that is read through a direct map alone.
    #[cfg(test)]
    pub(super) fn of_direct_map(memory: &Arc<PhysicalMemory>, mmu: &Arc<Mmu>, base: u64) -> Self {
        let space = AddressSpace::new(memory, mmu, memory.end(), 4);
        Self { memory: Arc::clone(memory), mmu: Arc::clone(mmu), space, direct_map: VirtAddr(base) }
    }

    /// The first virtual address of the direct map.
    pub fn direct_map(&self) -> VirtAddr {
        self.direct_map
    }

    /// The dump.
    pub fn memory(&self) -> &PhysicalMemory {
        &self.memory
    }

    /// The address space of a process.
    pub(super) fn user_space(&self, root: PhysAddr) -> AddressSpace {
        AddressSpace::new(&self.memory, &self.mmu, root, self.space.levels().unwrap_or(4))
    }

    /// The physical address that the direct map shows at a virtual one.
    pub(super) fn physical(&self, va: VirtAddr) -> Option<PhysAddr> {
        va.0.checked_sub(self.direct_map.0).map(PhysAddr).filter(|pa| self.memory.contains(*pa))
    }

    /// The 32-bit number in a structure.
    pub(super) fn u32(&self, structure: VirtAddr, offset: u64) -> Option<u32> {
        self.read_u32(structure.checked_add(offset)?).ok()
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

/// The base at which a kernel half shows most of the dump.
fn direct_map(memory: &PhysicalMemory, mappings: &[Mapping]) -> Option<VirtAddr> {
    let mut mapped: BTreeMap<u64, u64> = BTreeMap::new();
    for mapping in mappings {
        let base = mapping.va.0.wrapping_sub(mapping.pa.0);
        if base >= KERNEL_POINTER_MIN && base.is_multiple_of(DIRECT_MAP_ALIGN) {
            let end = PhysAddr(mapping.pa.0.saturating_add(mapping.len));
            let bytes = mapped.entry(base).or_default();
            *bytes = bytes.saturating_add(memory.held(mapping.pa..end));
        }
    }
    mapped.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > 0).map(|(base, _)| VirtAddr(base))
}

impl VirtualMemory for Kernel {
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        // The direct map needs no page table, so that it can be read where these are damaged.
        match self.physical(va).and_then(|pa| self.memory.bytes_from(pa, u64::MAX)) {
            Some(bytes) => Ok(bytes),
            None => self.space.bytes_at(va),
        }
    }
}
