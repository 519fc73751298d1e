//! Processes that have ended and are in no list any more: their freed `task_struct`s beside those of live tasks.
//!
//! The kernel allocates all `task_struct`s from slabs: runs of pages with consecutive objects of one size (mm/slub.c). A freed
//! object keeps most of its content until it is allocated again.

use std::collections::{BTreeMap, BTreeSet};

use super::kernel::Kernel;
use super::layout::Layout;
use super::task::Task;
use crate::addr::{FRAME_SIZE, VirtAddr};

/// The minimum alignment of objects (`L1_CACHE_BYTES`).
const ALIGN: u64 = 64;
/// The structure ends with the registers of vectors, for which it has room of a page; an object has as many as the processor has, up
/// to 11 KiB with AMX (`arch_task_struct_size` of arch/x86/kernel/process.c, `union fpregs_state`).
const MAX_LESS: u64 = FRAME_SIZE;
const MAX_MORE: u64 = 8 << 10;
/// Maximum size of a slab in pages, as a power of two (`slub_max_order`).
const ORDERS: std::ops::RangeInclusive<u32> = 0..=3;
/// All tasks but one in this many must be at multiples of the object size in their slab.
const TOLERATED: usize = 16;
/// The bit of `exit_state` of a task that has ended and was waited for (`EXIT_DEAD` of include/linux/sched.h).
const DEAD: u32 = 0x10;
/// Maximum number of slabs examined.
const MAX_SLABS: usize = 1 << 16;

/// The ended thread group leaders in the slabs that contain known tasks.
pub(super) fn leaders(kernel: &Kernel, layout: &Layout, known: &BTreeSet<VirtAddr>) -> Vec<Task> {
    let Some((size, slab)) = geometry(layout, known) else { return Vec::new() };
    let slabs: BTreeSet<u64> = known.iter().map(|task| task.0 & !(slab - 1)).take(MAX_SLABS).collect();
    let mut ended: BTreeMap<u32, Task> = BTreeMap::new();
    let places =
        slabs.into_iter().flat_map(|start| (0..slab / size).map(move |index| start.wrapping_add(index * size)));
    for address in places.map(VirtAddr).filter(|address| !known.contains(address)) {
        let exit_state = layout.task.exit_state.and_then(|offset| kernel.u32(address, offset));
        let Some(mut task) = Task::read(kernel, layout, address) else { continue };
        let is_leader = task.pid.value != 0 && task.pid.value == task.tgid.value;
        if exit_state == Some(DEAD) && is_leader && task.mm.is_none() {
            // Its credentials were freed with it. Its parent may have ended since, and another task may use that memory.
            task.uid = None;
            task.parent =
                task.parent.filter(|parent| began(kernel, layout, parent.value) <= began(kernel, layout, address));
            ended.entry(task.pid.value).or_insert(task);
        }
    }
    ended.into_values().collect()
}

/// The start time of a task.
fn began(kernel: &Kernel, layout: &Layout, task: VirtAddr) -> Option<u64> {
    kernel.u64(task, layout.task.start_time?)
}

/// The size of an object and of a slab, inferred from the addresses of known tasks.
fn geometry(layout: &Layout, known: &BTreeSet<VirtAddr>) -> Option<(u64, u64)> {
    let size = layout.sizes.task.filter(|size| (2 * MAX_LESS..1 << 20).contains(size))?.next_multiple_of(ALIGN);
    let sizes = (size - MAX_LESS..=size + MAX_MORE).step_by(ALIGN as usize);
    let slabs = ORDERS.rev().map(|order| FRAME_SIZE << order);
    let fits = |size: u64, slab: u64| {
        let misplaced = known.iter().filter(|task| !(task.0 & (slab - 1)).is_multiple_of(size)).count();
        size <= slab && misplaced * TOLERATED <= known.len()
    };
    // The size needs more than one object as evidence.
    let tells = |size: u64, slab: u64| known.iter().any(|task| task.0 & (slab - 1) >= size);
    slabs
        .into_iter()
        .find_map(|slab| sizes.clone().find(|size| fits(*size, slab) && tells(*size, slab)).map(|size| (size, slab)))
}
