//! Tasks: the kernel's record of each process and thread (`struct task_struct`).

use std::cmp::Reverse;
use std::collections::HashSet;

use super::kernel::Kernel;
use super::layout::Layout;
use super::roots::{RootPointer, slots_with};
use crate::addr::VirtAddr;
use crate::scan::Backend;

/// Bytes of `task_struct.comm` (`TASK_COMM_LEN` of include/linux/sched.h), the NUL included.
pub(super) const COMM_LEN: usize = 16;
/// The largest id of a task (`PID_MAX_LIMIT` of include/linux/threads.h).
pub(super) const MAX_PID: u32 = 1 << 22;
/// The bit of `task_struct.flags` that is set for kernel threads (`PF_KTHREAD` of include/linux/sched.h).
const KERNEL_THREAD: u32 = 0x0020_0000;
/// Maximum number of nodes of all lists together: a task is in the list of all processes and in a list of threads.
const MAX_NODES: usize = 2 * MAX_PID as usize;
/// Maximum number of broken links kept.
const MAX_BROKEN: usize = 64;

/// A value and its address in the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    /// The value.
    pub value: T,
    /// Its virtual address.
    pub address: VirtAddr,
}

/// A process or a thread, as its `task_struct` describes it. A field is `None` if the layout lacks it, or if it can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The address of the `task_struct`.
    pub address: VirtAddr,
    /// Its own id, as `gettid(2)` returns it.
    pub pid: Fact<u32>,
    /// The id of its process.
    pub tgid: Fact<u32>,
    /// The name of its command: up to 15 bytes. Bytes that are not UTF-8 are replaced.
    pub comm: Fact<String>,
    /// The address of its `mm_struct`: null for kernel threads and for ended tasks.
    pub mm: Option<Fact<VirtAddr>>,
    /// The task that created it, or that adopted it since.
    pub parent: Option<Fact<VirtAddr>>,
    /// The real user id.
    pub uid: Option<Fact<u32>>,
    /// Its state, as the letter that ps(1) prints.
    pub state: Option<Fact<char>>,
    /// Its start time, in nanoseconds since the machine was started.
    pub start_time: Option<Fact<u64>>,
    /// Whether it is a kernel thread.
    pub is_kernel: bool,
    /// Whether it has ended; `None` if the layout lacks the field.
    pub exited: Option<bool>,
    /// Whether it was running on a processor when the dump was taken.
    pub is_running: Option<bool>,
}

impl Task {
    /// The task at an address, if it is plausible.
    pub(super) fn read(kernel: &Kernel, layout: &Layout, address: VirtAddr) -> Option<Self> {
        let of = &layout.task;
        let fact = |offset: u64| address.checked_add(offset);
        let id = |offset: Option<u64>| {
            let value = kernel.u32(address, offset?).filter(|id| *id <= MAX_PID)?;
            Some(Fact { value, address: fact(offset?)? })
        };
        let comm_at = fact(of.comm?)?;
        let comm = kernel.text(comm_at, COMM_LEN).filter(|comm| !comm.is_empty())?;
        let mm = of
            .mm
            .and_then(|offset| Some(Fact { value: VirtAddr(kernel.u64(address, offset)?), address: fact(offset)? }));
        let flags = of.flags.and_then(|offset| kernel.u32(address, offset));
        let exit_state = of.exit_state.and_then(|offset| kernel.u32(address, offset));
        let has_memory = mm.is_some_and(|mm| mm.value.0 != 0);
        let parent = of
            .real_parent
            .and_then(|offset| Some(Fact { value: kernel.pointer(address, offset)?, address: fact(offset)? }));
        Some(Self {
            address,
            pid: id(of.pid)?,
            tgid: id(of.tgid)?,
            comm: Fact { value: String::from_utf8_lossy(&comm).into_owned(), address: comm_at },
            parent,
            uid: Self::uid(kernel, layout, address),
            state: Self::state(kernel, layout, address, exit_state),
            start_time: of
                .start_time
                .and_then(|offset| Some(Fact { value: kernel.u64(address, offset)?, address: fact(offset)? })),
            is_kernel: flags.map_or(mm.is_some() && !has_memory, |flags| flags & KERNEL_THREAD != 0),
            exited: exit_state.map(|state| state != 0),
            is_running: of.on_cpu.and_then(|offset| Some(kernel.u32(address, offset)? != 0)),
            mm: mm.filter(|_| has_memory),
        })
    }

    fn uid(kernel: &Kernel, layout: &Layout, task: VirtAddr) -> Option<Fact<u32>> {
        let cred = kernel.pointer(task, layout.task.cred?)?;
        let offset = layout.cred.uid?;
        Some(Fact { value: kernel.u32(cred, offset)?, address: cred.checked_add(offset)? })
    }

    /// The letter of a task's state (`task_state_array` of fs/proc/array.c, numbers of include/linux/sched.h since 4.14).
    fn state(kernel: &Kernel, layout: &Layout, task: VirtAddr, exit_state: Option<u32>) -> Option<Fact<char>> {
        let offset = layout.task.state?;
        let state = kernel.u32(task, offset)?;
        let letter = match (state, exit_state?) {
            (_, ended) if ended & 0x20 != 0 => 'Z',
            (_, ended) if ended & 0x10 != 0 => 'X',
            (0x402, _) => 'I',
            (0, _) => 'R',
            (state, _) => match state & 0x7f {
                state if state & 0x1 != 0 => 'S',
                state if state & 0x2 != 0 => 'D',
                state if state & 0x4 != 0 => 'T',
                state if state & 0x8 != 0 => 't',
                state if state & 0x40 != 0 => 'P',
                _ => return None,
            },
        };
        Some(Fact { value: letter, address: task.checked_add(offset)? })
    }
}

/// A link that could not be followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenLink {
    /// The address of the broken pointer.
    pub address: VirtAddr,
    /// The reason in words.
    pub reason: &'static str,
}

/// Follows lists of tasks. The nodes of all lists together are bounded by the number of possible tasks.
pub(super) struct Lists<'k> {
    pub(super) kernel: &'k Kernel,
    pub(super) layout: &'k Layout,
    /// The first broken links.
    pub(super) broken: Vec<BrokenLink>,
    left: usize,
}

impl<'k> Lists<'k> {
    pub(super) fn new(kernel: &'k Kernel, layout: &'k Layout) -> Self {
        Self { kernel, layout, broken: Vec::new(), left: MAX_NODES }
    }

    /// The nodes of a doubly linked list (`struct list_head`) from `start` on, `start` included, each once.
    ///
    /// The list is followed forward and, if that does not lead back to `start`, backward as well. `is_node` checks whether a link
    /// leads to a plausible node.
    fn nodes(&mut self, start: VirtAddr, is_node: impl Fn(VirtAddr) -> bool) -> Vec<VirtAddr> {
        let mut seen = HashSet::from([start]);
        let mut nodes = vec![start];
        // `next`, then `prev`.
        for link in [0, 8] {
            let mut at = start;
            let reason = loop {
                let Some(next) = self.kernel.pointer(at, link) else {
                    break Some("it can't be read, or is not a pointer");
                };
                if next == start {
                    break None;
                }
                if !seen.insert(next) {
                    break Some("it leads back into the list");
                }
                if !is_node(next) {
                    break Some("it does not lead to a task of the list");
                }
                let Some(left) = self.left.checked_sub(1) else {
                    break Some("the lists have more nodes than there can be tasks");
                };
                self.left = left;
                nodes.push(next);
                at = next;
            };
            let Some(reason) = reason else { break };
            if self.broken.len() < MAX_BROKEN {
                self.broken.push(BrokenLink { address: at.checked_add(link).unwrap_or(at), reason });
            }
        }
        nodes
    }

    /// The thread group leader of each process, and whether it is in the kernel's list of processes; `seeds` are known tasks.
    pub(super) fn leaders(&mut self, seeds: &[VirtAddr]) -> Vec<(Task, bool)> {
        let (kernel, layout) = (self.kernel, self.layout);
        let mut known: HashSet<VirtAddr> = HashSet::new();
        let mut lists: Vec<Vec<VirtAddr>> = Vec::new();
        for seed in seeds {
            let leader = layout.task.group_leader.and_then(|offset| kernel.pointer(*seed, offset)).unwrap_or(*seed);
            if known.contains(&leader) {
                continue;
            }
            let list = self.tasks(leader, &known);
            known.extend(&list);
            lists.push(list);
        }
        // The longest list is the kernel's. A task in no list or in a shorter one was removed from it.
        lists.sort_by_key(|list| Reverse(list.len()));
        let mut found = Vec::new();
        for (index, list) in lists.iter().enumerate() {
            let tasks = list.iter().filter_map(|address| Task::read(kernel, layout, *address));
            // Number 0 is the idle task of a processor.
            let leaders = tasks.filter(|task| task.pid.value == task.tgid.value && task.pid.value != 0);
            found.extend(leaders.map(|task| (task, index == 0 && list.len() > 1)));
        }
        found.sort_by_key(|(task, _)| (task.pid.value, task.address));
        found
    }

    /// The tasks in the same list as this one, except those that are known.
    fn tasks(&mut self, task: VirtAddr, known: &HashSet<VirtAddr>) -> Vec<VirtAddr> {
        let (kernel, layout) = (self.kernel, self.layout);
        let Some(offset) = layout.task.tasks else { return vec![task] };
        let Some(start) = task.checked_add(offset) else { return vec![task] };
        let holder = |node: VirtAddr| node.0.checked_sub(offset).map(VirtAddr);
        let is_task = |node: VirtAddr| {
            holder(node).is_some_and(|task| !known.contains(&task) && Task::read(kernel, layout, task).is_some())
        };
        self.nodes(start, is_task).into_iter().filter_map(holder).collect()
    }

    /// The threads of a process, the first one included; `None` if the layout lacks the list.
    pub(super) fn threads(&mut self, leader: &Task) -> Option<Vec<Task>> {
        let (kernel, layout) = (self.kernel, self.layout);
        let (node, signal) = (layout.task.thread_node?, layout.task.signal?);
        let shared = kernel.pointer(leader.address, signal)?;
        let head = shared.checked_add(layout.signal.thread_head?)?;
        let start = leader.address.checked_add(node)?;
        let thread = |at: VirtAddr| {
            let task = Task::read(kernel, layout, VirtAddr(at.0.checked_sub(node)?))?;
            (task.tgid.value == leader.tgid.value && kernel.pointer(task.address, signal) == Some(shared))
                .then_some(task)
        };
        let nodes = self.nodes(start, |at| at == head || thread(at).is_some());
        let mut found: Vec<Task> = nodes.into_iter().filter(|at| *at != head).filter_map(thread).collect();
        found.sort_by_key(|task| task.pid.value);
        Some(found)
    }
}

/// The tasks whose memory has a top table that is pointed to.
///
/// Memory names its owner (`mm_struct.owner`) in kernels with CONFIG_MEMCG, as those of distributions are. In others all memory is
/// swept for the tasks that name it.
pub(super) fn owners(kernel: &Kernel, layout: &Layout, pointers: &[RootPointer], backend: Backend) -> Vec<VirtAddr> {
    let (Some(pgd), Some(task_mm)) = (layout.mm.pgd, layout.task.mm) else { return Vec::new() };
    let memories = pointers.iter().filter_map(|pointer| pointer.slot.0.checked_sub(pgd).map(VirtAddr));
    let is_owner = |task: VirtAddr, mm: VirtAddr| {
        kernel.pointer(task, task_mm) == Some(mm) && Task::read(kernel, layout, task).is_some()
    };
    if let Some(owner) = layout.mm.owner {
        let owned = memories.filter_map(|mm| Some((kernel.pointer(mm, owner)?, mm)));
        return owned.filter(|(task, mm)| is_owner(*task, *mm)).map(|(task, _)| task).collect();
    }
    let values: Vec<u64> = memories.map(|mm| mm.0).collect();
    let tasks = slots_with(kernel.memory(), &values, backend).into_iter().filter_map(|(slot, mm)| {
        let task = kernel.direct_map().checked_add(slot.0)?.0.checked_sub(task_mm)?;
        Some((VirtAddr(task), VirtAddr(mm)))
    });
    tasks.filter(|(task, mm)| is_owner(*task, *mm)).map(|(task, _)| task).collect()
}
