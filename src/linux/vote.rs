//! A layout without BTF: the offsets are inferred from the tasks of the dump.
//!
//! The known facts are the places of pointers to top tables (`mm_struct.pgd`). The owner of an `mm_struct` points back to it
//! (`mm_struct.owner`, `task_struct.mm`). These three offsets are the same for every process, and no other offsets are. The
//! owners are in one list (`task_struct.tasks`) with the first task of the machine, `swapper`, and with `kthreadd`. Their names,
//! distinct ids, and parents give the remaining offsets.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use memchr::memmem;

use super::kernel::Kernel;
use super::layout::Layout;
use super::roots::RootPointer;
use super::task::{COMM_LEN, MAX_PID};
use crate::addr::{PhysAddr, VirtAddr};
use crate::layout::{LayoutSource, Ranking, Structure};

/// The bytes of a `task_struct` that are examined; it has up to 10 KiB.
const TASK_LEN: u64 = 12 << 10;
/// Maximum distance in an `mm_struct` from its start to `pgd`, and from `pgd` to `owner`, in bytes.
const MM_BEFORE: u64 = 1 << 10;
const MM_AFTER: u64 = 3 << 10;
/// Maximum number of pointers to top tables that vote, and of pointers to one table.
const MAX_POINTERS: usize = 1 << 10;
const MAX_PER_ROOT: usize = 4;
/// Minimum number of processes that must agree.
const MIN_VOTES: usize = 3;
/// Maximum number of offsets examined, those with the most votes first.
const MAX_CHAINS: usize = 64;
/// Maximum and minimum number of tasks of a list.
const MAX_TASKS: usize = MAX_PID as usize;
const MIN_TASKS: usize = 8;
/// Maximum number of tasks of the list that vote.
const MAX_SAMPLE: usize = 1 << 12;
/// Maximum number of list nodes examined in total, and the number that reading a task counts as.
const MAX_STEPS: usize = 1 << 24;
const STEPS_PER_TASK: usize = 1 << 7;
/// Maximum number of places tried as the name of the first task.
const MAX_PLACES: usize = 64;
/// One task in this many may be damaged.
const TOLERATED: usize = 16;
/// The first task (init/init_task.c, `init_idle` of kernel/sched/core.c adds the processor), and the one that starts kernel threads, whose id is 2 (init/main.c).
const FIRST_TASK: &[u8] = b"swapper";
const KERNEL_THREADS: &[u8] = b"kthreadd";
const KERNEL_THREADS_PID: u32 = 2;

/// The offsets of the three pointers that lead from an `mm_struct` to its owner and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Chain {
    /// From `mm_struct.pgd` to `mm_struct.owner`.
    owner: i64,
    pgd: u64,
    mm: u64,
}

/// The remaining work: a bound, so that false lists end.
struct Budget(Cell<usize>);

impl Budget {
    /// Subtracts work; `None` if too little is left.
    fn spend(&self, steps: usize) -> Option<()> {
        self.0.set(self.0.get().checked_sub(steps)?);
        Some(())
    }
}

/// The name of a command at an offset in a task: printable characters, then a NUL.
fn comm_at(task: &Structure, offset: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let field = task.bytes().get(start..start.checked_add(COMM_LEN)?)?;
    let name = field.get(..memchr::memchr(0, field)?)?;
    (name.len() > 1 && name.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')).then_some(name)
}

/// The layout that the tasks agree on: `tasks`, `mm`, `pid`, `tgid`, `comm` and `real_parent` of `task_struct`, `pgd` and
/// `owner` of `mm_struct`.
pub(super) fn layout(kernel: &Kernel, pointers: &[RootPointer]) -> Option<Layout> {
    let budget = Budget(Cell::new(MAX_STEPS));
    let mut counts: HashMap<PhysAddr, usize> = HashMap::new();
    let few = pointers.iter().filter(|pointer| {
        let count = counts.entry(pointer.root).or_default();
        *count += 1;
        *count <= MAX_PER_ROOT
    });
    let mut votes: BTreeMap<Chain, BTreeMap<PhysAddr, VirtAddr>> = BTreeMap::new();
    for pointer in few.take(MAX_POINTERS) {
        for (chain, task) in chains(kernel, pointer.slot) {
            votes.entry(chain).or_default().insert(pointer.root, task);
        }
    }
    votes.retain(|_, tasks| tasks.len() >= MIN_VOTES);
    // In processes `mm` and `active_mm` are equal, and `mm` comes first: it has the smaller offset.
    let ranking: Ranking<usize, _> = votes.into_iter().map(|(chain, tasks)| (tasks.len(), (chain, tasks))).collect();
    ranking.into_candidates().take(MAX_CHAINS).find_map(|(chain, tasks)| {
        let tasks: Vec<VirtAddr> = tasks.into_values().collect();
        let mut layout = of_tasks(kernel, &tasks, &budget)?;
        layout.task.mm = Some(chain.mm);
        layout.mm.pgd = Some(chain.pgd);
        layout.mm.owner = chain.pgd.checked_add_signed(chain.owner);
        Some(layout)
    })
}

/// The chains that start at a pointer to a top table, each with its task.
fn chains(kernel: &Kernel, slot: VirtAddr) -> BTreeSet<(Chain, VirtAddr)> {
    let mut found = BTreeSet::new();
    let Some(first) = slot.0.checked_sub(MM_BEFORE) else { return found };
    let around = Structure::read(kernel, VirtAddr(first), MM_BEFORE + MM_AFTER);
    let mut seen = HashSet::new();
    for at in (0..MM_BEFORE + MM_AFTER).step_by(8) {
        let Some(task) = around.u64(at).map(VirtAddr).filter(|task| task.0.is_multiple_of(8)) else { continue };
        if kernel.physical(task).is_none() || !seen.insert(task) {
            continue;
        }
        let owner = at.cast_signed() - MM_BEFORE.cast_signed();
        let bytes = Structure::read(kernel, task, TASK_LEN);
        for mm in (0..TASK_LEN).step_by(8) {
            let Some(memory) = bytes.u64(mm) else { break };
            let pgd = slot.0.wrapping_sub(memory);
            // The pointer to the owner is in the `mm_struct` as well.
            if pgd < MM_BEFORE && pgd.checked_add_signed(owner).is_some() {
                found.insert((Chain { owner, pgd, mm }, task));
            }
        }
    }
    found
}

/// The layout of tasks, given some known tasks.
fn of_tasks(kernel: &Kernel, known: &[VirtAddr], budget: &Budget) -> Option<Layout> {
    let first = known.first()?;
    let bytes = Structure::read(kernel, *first, TASK_LEN);
    (0..TASK_LEN).step_by(8).find_map(|tasks| {
        // This check is cheap and rejects most offsets: the next node must point back.
        let node = first.checked_add(tasks)?;
        let next = VirtAddr(bytes.u64(tasks)?);
        if next == node || kernel.pointer(next, 8) != Some(node) {
            return None;
        }
        let all = ring(kernel, node, tasks, budget)?;
        let there: HashSet<VirtAddr> = all.iter().copied().collect();
        let listed = known.iter().filter(|task| there.contains(task)).count();
        (listed * 2 > known.len()).then(|| of_list(kernel, tasks, &all, budget)).flatten()
    })
}

/// The structures that contain the nodes of a list that leads back to its start.
fn ring(kernel: &Kernel, start: VirtAddr, offset: u64, budget: &Budget) -> Option<Vec<VirtAddr>> {
    let mut found = Vec::new();
    let mut at = start;
    while found.len() < MAX_TASKS {
        budget.spend(1)?;
        found.push(VirtAddr(at.0.checked_sub(offset)?));
        let next = kernel.pointer(at, 0)?;
        if kernel.pointer(next, 8) != Some(at) {
            return None;
        }
        if next == start {
            return (found.len() >= MIN_TASKS).then_some(found);
        }
        at = next;
    }
    None
}

/// The rest of the layout, from the tasks of the list of processes; `None` if it is another list.
fn of_list(kernel: &Kernel, tasks: u64, all: &[VirtAddr], budget: &Budget) -> Option<Layout> {
    // The name can occur more than once: a task can be directly before the first one, or another task can have that name.
    let affordable = all.iter().enumerate().take_while(|_| budget.spend(STEPS_PER_TASK).is_some());
    let places = affordable.flat_map(|(index, task)| {
        let bytes = Structure::read(kernel, *task, TASK_LEN);
        let found: Vec<usize> = memmem::find_iter(bytes.bytes(), FIRST_TASK).take(MAX_PLACES).collect();
        found.into_iter().map(move |offset| (index, offset as u64))
    });
    places.take(MAX_PLACES).find_map(|(swapper, comm)| {
        budget.spend(STEPS_PER_TASK.saturating_mul(all.len().min(MAX_SAMPLE)))?;
        of_first_task(kernel, tasks, all, swapper, comm)
    })
}

/// The same, given the first task and the offset of its name.
fn of_first_task(kernel: &Kernel, tasks: u64, all: &[VirtAddr], swapper: usize, comm: u64) -> Option<Layout> {
    // The first task is the first in the list, and the oldest tasks follow.
    let sample: Vec<VirtAddr> = all.iter().cycle().skip(swapper).take(all.len().min(MAX_SAMPLE)).copied().collect();
    let bytes: Vec<Structure> = sample.iter().map(|task| Structure::read(kernel, *task, TASK_LEN)).collect();
    let (first, others) = bytes.split_first()?;
    let tolerated = sample.len() / TOLERATED;
    let most = |holds: &dyn Fn(&Structure) -> bool| {
        let failed = bytes.iter().filter(|task| !holds(task)).take(tolerated + 1).count();
        failed <= tolerated
    };
    let mut threads = others.iter().filter(|task| comm_at(task, comm) == Some(KERNEL_THREADS));
    let kthreadd = threads.next().filter(|_| threads.next().is_none())?;
    if !most(&|task| comm_at(task, comm).is_some()) {
        return None;
    }
    // Every thread group leader has the same thread id and process id, and no two leaders share one.
    let pid = (0..TASK_LEN).step_by(4).find(|offset| {
        let of =
            |task: &Structure| task.u32(*offset).filter(|pid| *pid <= MAX_PID && task.u32(*offset + 4) == Some(*pid));
        let differ = || bytes.iter().filter_map(of).collect::<HashSet<u32>>().len() + tolerated >= bytes.len();
        of(first) == Some(0) && of(kthreadd) == Some(KERNEL_THREADS_PID) && differ()
    })?;
    let there: HashSet<u64> = all.iter().map(|task| task.0).collect();
    let swapper = sample.first()?.0;
    // Pointers to parents lead to the start of a task: without agreement here, the assumed start of a task is wrong.
    let real_parent = (0..TASK_LEN).step_by(8).find(|offset| {
        let is_first = |task: &Structure| task.u64(*offset) == Some(swapper);
        is_first(first)
            && is_first(kthreadd)
            && !most(&is_first)
            && most(&|task| task.u64(*offset).is_some_and(|parent| there.contains(&parent)))
    })?;
    let mut layout = Layout::empty(LayoutSource::Voting);
    layout.task.tasks = Some(tasks);
    layout.task.comm = Some(comm);
    layout.task.pid = Some(pid);
    layout.task.tgid = Some(pid + 4);
    layout.task.real_parent = Some(real_parent);
    Some(layout)
}
