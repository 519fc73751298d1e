//! The pointer sweep: every aligned slot whose value is one of a set.

use std::ops::Range;

use rayon::prelude::*;

use super::backend::Backend;
use super::chunk::{View, pieces};
use super::pointer_set::PointerSet;
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;

/// Every 8-byte slot, at a multiple of eight, whose little-endian value is in `values`: address and
/// value, sorted by address.
///
/// `frames` are runs of physical addresses to look at, sorted, not overlapping, on frame borders
/// (as from a process's pages); what of them the dump does not hold is skipped. `progress` is called
/// from the sweeping threads with numbers of bytes that add up to what is looked at. Ends early where the dump can't be
/// read any more, see [`PhysicalMemory::check`].
pub fn sweep(
    memory: &PhysicalMemory,
    frames: &[Range<PhysAddr>],
    values: &PointerSet,
    backend: Backend,
    progress: &(dyn Fn(u64) + Sync),
) -> Vec<(PhysAddr, u64)> {
    if values.values().is_empty() {
        return Vec::new();
    }
    if let Some(remote) = memory.remote() {
        return super::elsewhere::sweep_remote(&remote, frames, values, progress);
    }
    let engine = backend.engine();
    let views = views(memory, frames);
    #[cfg(feature = "gpu")]
    if backend == Backend::Gpu
        && let Ok(gpu) = super::gpu::device()
    {
        let on_cpu = |slots: View<'_>, found: &mut Vec<_>| engine.sweep(values, slots, found);
        let mut found = gpu.sweep(memory, &views, values, &on_cpu, progress);
        found.par_sort_unstable();
        return found;
    }
    let found: Vec<Vec<(PhysAddr, u64)>> = views
        .into_par_iter()
        .map(|slots| {
            let mut found = Vec::new();
            if memory.is_lost() {
                return found;
            }
            engine.sweep(values, slots, &mut found);
            progress(slots.bytes.len() as u64);
            found
        })
        .collect();
    found.into_iter().flatten().collect()
}

/// The slots of the runs that the dump holds, in chunks, sorted by address.
pub(super) fn views<'a>(memory: &'a PhysicalMemory, frames: &[Range<PhysAddr>]) -> Vec<View<'a>> {
    let mut views = Vec::new();
    for run in frames {
        let first = memory.ranges().partition_point(|range| range.end <= run.start);
        for range in memory.ranges().iter().skip(first).take_while(|range| range.start < run.end) {
            let whole = View { start: range.start, bytes: memory.range_bytes(range) };
            let start = run.start.max(range.start).0.checked_next_multiple_of(8).unwrap_or(u64::MAX);
            let end = run.end.min(range.end).0 & !7;
            views.extend(pieces(PhysAddr(start)..PhysAddr(end)).map(|piece| whole.part(piece)));
        }
    }
    views
}
