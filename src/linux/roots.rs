//! Where the kernel's memory points to the top tables of address spaces: `mm_struct.pgd`.
//!
//! The kernel has an array with a `struct page` for each frame of memory (`vmemmap`, Documentation/arch/x86/x86_64/mm.rst). The
//! one of a top table points to the `mm_struct` (`pgd_set_mm` of arch/x86/mm/pgtable.c, since 2.6.38). So each top table leads to
//! its `mm_struct`, and memory need not be swept for the pointers.

use std::collections::HashSet;

use super::kernel::Candidate;
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::paging::{PAGE_STRUCT_SIZE, VirtualMemory, page_struct_arrays};
use crate::scan::{Backend, PointerSet, sweep};

/// Top tables that vote on where the array is.
const MAX_VOTERS: usize = 64;
/// Bytes of an `mm_struct` in which `pgd` is looked for: it is one of the first fields.
const MM_LEN: u64 = 1 << 10;

/// Where the kernel keeps the virtual address of the top table of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RootPointer {
    /// The address of the pointer, in the direct map.
    pub(super) slot: VirtAddr,
    /// The top table.
    pub(super) root: PhysAddr,
}

/// The number of top tables that are pointed to.
pub(super) fn count(pointers: &[RootPointer]) -> usize {
    pointers.iter().map(|pointer| pointer.root).collect::<HashSet<_>>().len()
}

/// The pointers in the `mm_struct`s to which the array of `struct page` leads.
///
/// The array can be at any of the addresses from which on the kernel has mapped something, and the pointer can be any word of a
/// `struct page`: the top tables vote.
pub(super) fn by_page_structs(candidate: &Candidate, roots: &[PhysAddr]) -> Vec<RootPointer> {
    let Candidate { kernel, mappings } = candidate;
    let pointer = |array: VirtAddr, word: u64, root: PhysAddr| {
        let page = array.checked_add((root.0 / FRAME_SIZE).checked_mul(PAGE_STRUCT_SIZE)?)?;
        let mm = kernel.pointer(page, word * 8).filter(|mm| kernel.physical(*mm).is_some())?;
        let top = kernel.direct_map().checked_add(root.0)?;
        let mut slots = (0..MM_LEN / 8).filter_map(|index| mm.checked_add(index * 8));
        let slot = slots.find(|slot| kernel.read_u64(*slot) == Ok(top.0))?;
        Some(RootPointer { slot, root })
    };
    let places =
        page_struct_arrays(mappings).flat_map(|array| (0..PAGE_STRUCT_SIZE / 8).map(move |word| (array, word)));
    let voters = roots.iter().take(MAX_VOTERS);
    let votes = |(array, word)| voters.clone().filter(|root| pointer(array, word, **root).is_some()).count();
    let Some((_, array, word)) = places.map(|place| (votes(place), place.0, place.1)).max() else { return Vec::new() };
    roots.iter().filter_map(|root| pointer(array, word, *root)).collect()
}

/// All pointers in memory, for each candidate.
pub(super) fn by_sweep(
    memory: &PhysicalMemory,
    candidates: &[Candidate],
    roots: &[PhysAddr],
    backend: Backend,
) -> Vec<Vec<RootPointer>> {
    let base = |candidate: &Candidate| candidate.kernel.direct_map();
    let values = |base: VirtAddr| roots.iter().filter_map(move |root| base.0.checked_add(root.0));
    let values: Vec<u64> = candidates.iter().map(base).flat_map(values).collect();
    let slots = slots_with(memory, &values, backend);
    let pointers = |base: VirtAddr| {
        let of_base = slots.iter().filter_map(move |(slot, value)| {
            let root = PhysAddr(value.checked_sub(base.0)?);
            let slot = base.checked_add(slot.0)?;
            roots.binary_search(&root).ok().map(|_| RootPointer { slot, root })
        });
        of_base.collect()
    };
    candidates.iter().map(base).map(pointers).collect()
}

/// All slots of memory with one of the values: address and value.
pub(super) fn slots_with(memory: &PhysicalMemory, values: &[u64], backend: Backend) -> Vec<(PhysAddr, u64)> {
    sweep(memory, &[PhysAddr(0)..memory.end()], &PointerSet::new(values), backend, &|_| ())
}
