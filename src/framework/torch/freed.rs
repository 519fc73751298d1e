//! Tensors whose header, storage and data were freed, and whose data nothing seems to have used since.
//!
//! The destructors of a `TensorImpl` and of a `StorageImpl` leave most fields as they are, and the allocator overwrites the first
//! words. What such headers say is believed if their data lie in memory that is free now.

use std::collections::{BTreeMap, BTreeSet};

use super::headers::is_in_use;
use super::tensor::{Layout, TensorScore, fills_its_storage};
use crate::addr::{VirtAddr, field};
use crate::heap::{self, Block, FreedMemory, Heap};
use crate::paging::{Cached, VirtualMemory};
use crate::tensor::{self, TensorInfo, TooLarge, Values};

/// Offset in a `DataPtr` of the context, which for PyTorch's own allocators is the data again (c10/util/UniqueVoidPtr.h: a
/// `std::unique_ptr` with the pointer to its deleter before it).
const CONTEXT: i64 = 16;

/// The freed tensors whose headers lie at some of the addresses; `live` are those that are in use.
pub(super) fn tensors(
    layout: &Layout,
    memory: &Cached,
    addresses: &[VirtAddr],
    live: &[&TensorInfo],
) -> Vec<TensorInfo> {
    let used: BTreeSet<VirtAddr> = live.iter().map(|info| info.storage).collect();
    let is_freed = |storage: VirtAddr| !used.contains(&storage) && !is_in_use(memory, storage);
    let read = |at: &VirtAddr| {
        let info = layout.read_freed(memory, *at)?;
        let block = block(layout, memory, &info).filter(|_| is_freed(info.storage))?;
        Some((block, info))
    };
    let mut found: BTreeMap<Block, Vec<TensorInfo>> = BTreeMap::new();
    for (block, info) in addresses.iter().filter_map(read) {
        found.entry(block).or_default().push(info);
    }
    let blocks = without_overlaps(&found.keys().copied().collect::<Vec<_>>());
    let of_tensor = |info: &&TensorInfo| [info.header, info.storage, first_byte(info)];
    let known: BTreeSet<VirtAddr> = live.iter().flat_map(of_tensor).collect();
    let known: Vec<VirtAddr> = known.into_iter().collect();
    let heap = if memory.space().is_freed() { Heap::Ended } else { Heap::Used(&known) };
    let freed = heap::freed(memory, &blocks, &heap);
    let mut all = Vec::new();
    for (block, freed) in blocks.iter().zip(freed) {
        let (Some(freed), Some(tensors)) = (freed, found.remove(block)) else { continue };
        // All of them have the same bytes: these are read once for each type, however many headers name them.
        let mut usual: BTreeMap<String, bool> = BTreeMap::new();
        let mut is_usual =
            |info: &TensorInfo| *usual.entry(info.dtype.name.clone()).or_insert_with(|| is_usual(memory, info));
        let tensors = tensors.into_iter().map(|info| of_freed(info, &freed));
        all.extend(tensors.filter(|info| is_usual(info)));
    }
    all.sort_by_key(|info| info.header);
    all
}

/// The layout that reads most of them, and how many; `None` if none reads any.
pub(super) fn select<'l>(
    layouts: &'l [Layout],
    memory: &Cached,
    addresses: &[VirtAddr],
) -> Option<(&'l Layout, TensorScore)> {
    let read = |layout: &Layout| {
        let found = addresses.iter().filter_map(|at| block(layout, memory, &layout.read_freed(memory, *at)?));
        found.count()
    };
    let counted = layouts.iter().map(|layout| (read(layout), layout)).filter(|(count, _)| *count > 0);
    // Of those that read as many, the first.
    let (readable, layout) = counted.rev().max_by_key(|(count, _)| *count)?;
    let (version, tried) = (layout.offsets.version.clone(), addresses.len());
    Some((layout, TensorScore { readable, tried, version, ..TensorScore::default() }))
}

/// The first byte of the storage of a tensor.
fn first_byte(info: &TensorInfo) -> VirtAddr {
    VirtAddr(info.data.0.wrapping_sub(info.storage_offset.wrapping_mul(info.dtype.size)))
}

/// What the allocator had returned for the data of a tensor.
fn block(layout: &Layout, memory: &Cached, info: &TensorInfo) -> Option<Block> {
    let start = first_byte(info);
    let context = memory.pointer(field(info.storage, layout.offsets.storage_data), CONTEXT).ok()?;
    // Of a view it can't be told whether the storage is still the one that it was of.
    let is_plausible = fills_its_storage(info) && info.storage_bytes <= memory.space().memory().size();
    (context == start && is_plausible).then_some(Block { start, bytes: info.storage_bytes })
}

/// Those that do not overlap with others: of two that do, at least one has been used since.
fn without_overlaps(sorted: &[Block]) -> Vec<Block> {
    let mut end = 0;
    let mut all = Vec::new();
    for (index, block) in sorted.iter().enumerate() {
        let Some(own_end) = block.end() else { continue };
        let next = sorted.get(index + 1).map_or(u64::MAX, |next| next.start.0);
        if block.start.0 >= end && next >= own_end {
            all.push(*block);
        }
        end = end.max(own_end);
    }
    all
}

/// Whether the values of a tensor are as those of a tensor are: its memory may have been used for something else, and be free again.
fn is_usual(memory: &Cached, info: &TensorInfo) -> bool {
    let read = || {
        let (mut values, elements) = (Values::new(&info.dtype)?, info.elements()?);
        let limit = memory.space().memory().size();
        let holes = tensor::gather::<TooLarge>(memory, &elements, limit, |bytes| {
            values.add(bytes);
            Ok(())
        });
        Some(values.are_usual(holes.ok()?.bytes))
    };
    read() == Some(true)
}

/// A tensor whose memory was freed.
fn of_freed(info: TensorInfo, freed: &FreedMemory) -> TensorInfo {
    // Its Python object was freed with it, or before.
    TensorInfo { object: VirtAddr(0), freed: Some(freed.clone()), ..info }
}
