//! Kernel memory that lies.

use super::*;
use crate::addr::{FRAME_SIZE, FileOffset, VirtAddr};
use crate::dump::MemoryRange;
use crate::signature::Signatures;

const BASE: u64 = 0xffff_8880_0000_0000;
const TASKS: u64 = 0x10;
const PID: u64 = 0x20;
const COMM: u64 = 0x28;
const MM: u64 = 0x40;
const NODE: u64 = 0x50;
const SIGNAL: u64 = 0x60;

/// Kernel memory under construction.
struct Memory(Vec<u8>);

impl Memory {
    fn new() -> Self {
        Self(vec![0; 1 << 20])
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// A pointer into the direct map.
    fn point(&mut self, at: u64, to: u64) {
        self.put(at, &(BASE + to).to_le_bytes());
    }

    fn link(&mut self, from: u64, to: u64) {
        self.point(from, to);
        self.point(to + 8, from);
    }

    fn task(&mut self, at: u64, pid: u32, tgid: u32, comm: &[u8]) {
        self.put(at + PID, &pid.to_le_bytes());
        self.put(at + PID + 4, &tgid.to_le_bytes());
        self.put(at + COMM, comm);
        self.put(at + NODE, &[0; 16]);
    }

    fn physical(self) -> PhysicalMemory {
        let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(self.0.len() as u64), offset: FileOffset(0) };
        PhysicalMemory::owned(self.0, vec![range]).unwrap()
    }
}

fn layout() -> Layout {
    let mut layout = Layout::empty(LayoutSource::Voting);
    layout.task.tasks = Some(TASKS);
    layout.task.pid = Some(PID);
    layout.task.tgid = Some(PID + 4);
    layout.task.comm = Some(COMM);
    layout.task.mm = Some(MM);
    layout.task.thread_node = Some(NODE);
    layout.task.signal = Some(SIGNAL);
    layout.signal.thread_head = Some(0);
    layout
}

/// What a memory has for processes, from the task at 0x1000 on, and the links that are broken.
fn processes(memory: Memory, seeds: &[u64]) -> (Vec<(u32, String, bool)>, Vec<u64>) {
    let memory = memory.physical();
    let mmu = Signatures::load(None).unwrap().mmu().unwrap().clone();
    let kernel = Kernel::of_direct_map(&Arc::new(memory), &Arc::new(mmu), BASE);
    let layout = layout();
    let mut lists = Lists::new(&kernel, &layout);
    let seeds: Vec<VirtAddr> = seeds.iter().map(|seed| VirtAddr(BASE + seed)).collect();
    let leaders = lists.leaders(&seeds);
    let found = leaders.into_iter().map(|(task, listed)| (task.pid.value, task.comm.value, listed)).collect();
    (found, lists.broken.into_iter().map(|link| link.address.0 - BASE).collect())
}

/// Three processes in a list that goes round: ids 0, 1 and 2 at 0x1000, 0x2000 and 0x3000.
fn three() -> Memory {
    let mut memory = Memory::new();
    for (index, name) in (0..).zip([&b"swapper/0"[..], b"init", b"a\x1b[31m\nb"]) {
        memory.task(0x1000 * (index + 1), index as u32, index as u32, name);
    }
    for (from, to) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x1000)] {
        memory.link(from + TASKS, to + TASKS);
    }
    memory
}

fn listed(pid: u32, comm: &str) -> (u32, String, bool) {
    (pid, comm.to_owned(), true)
}

#[test]
fn a_whole_list_has_no_broken_link() {
    let expected = vec![listed(1, "init"), listed(2, "a\u{1b}[31m\nb")];
    assert_eq!(processes(three(), &[0x2000, 0x3000]), (expected, Vec::new()));
}

#[test]
fn a_broken_list_is_followed_from_both_ends() {
    for wrong in [0, 7, 0x50_0000, 0x2000 + TASKS] {
        let mut memory = three();
        memory.point(0x2000 + TASKS, wrong);
        let (found, broken) = processes(memory, &[0x1000]);
        assert_eq!(found, [listed(1, "init"), listed(2, "a\u{1b}[31m\nb")], "{wrong:#x}");
        assert!(broken.contains(&(0x2000 + TASKS)), "{wrong:#x}: {broken:x?}");
    }
}

#[test]
fn a_process_outside_of_the_list_is_found_and_told() {
    let mut memory = three();
    memory.task(0x8000, 9, 9, b"hidden");
    memory.link(0x8000 + TASKS, 0x8000 + TASKS);
    let (found, _) = processes(memory, &[0x8000, 0x1000]);
    assert_eq!(found[2], (9, "hidden".to_owned(), false));
    // One that points into the list does not make it be walked again.
    let mut memory = three();
    memory.task(0x8000, 9, 9, b"hidden");
    memory.point(0x8000 + TASKS, 0x1000 + TASKS);
    let (found, _) = processes(memory, &[0x1000, 0x8000]);
    assert_eq!(found.len(), 3);
    assert_eq!(found[2], (9, "hidden".to_owned(), false));
}

#[test]
fn names_and_ids_that_can_be_none_are_no_task() {
    for spoil in [
        &mut (|memory: &mut Memory| memory.put(0x2000 + COMM, &[b'x'; 16])) as &mut dyn FnMut(&mut Memory),
        &mut |memory: &mut Memory| memory.put(0x2000 + COMM, &[0]),
        &mut |memory: &mut Memory| memory.put(0x2000 + PID, &(task::MAX_PID + 1).to_le_bytes()),
    ] {
        let mut memory = three();
        spoil(&mut memory);
        let (found, broken) = processes(memory, &[0x1000]);
        assert_eq!(found, [listed(2, "a\u{1b}[31m\nb")]);
        assert!(!broken.is_empty());
    }
}

#[test]
fn threads_are_those_of_the_process() {
    let mut memory = three();
    // The head of the list is at 0x4000; another process's task is put among the threads.
    memory.task(0x5000, 7, 1, b"worker");
    for at in [0x2000, 0x5000, 0x3000] {
        memory.point(at + SIGNAL, 0x4000);
    }
    for (from, to) in [(0x4000, 0x2000 + NODE), (0x2000 + NODE, 0x5000 + NODE), (0x5000 + NODE, 0x3000 + NODE)] {
        memory.link(from, to);
    }
    memory.link(0x3000 + NODE, 0x4000);
    let memory = memory.physical();
    let mmu = Signatures::load(None).unwrap().mmu().unwrap().clone();
    let kernel = Kernel::of_direct_map(&Arc::new(memory), &Arc::new(mmu), BASE);
    let layout = layout();
    let mut lists = Lists::new(&kernel, &layout);
    let leader = Task::read(&kernel, &layout, VirtAddr(BASE + 0x2000)).unwrap();
    let threads: Vec<u32> = lists.threads(&leader).unwrap().iter().map(|task| task.pid.value).collect();
    assert_eq!(threads, [1, 7]);
    assert_eq!(lists.broken.len(), 2, "it is met from both ends");
}

/// A layout of maple trees with nodes of 4 slots: pivots from 8 on, slots from 32.
fn maple_layout() -> Layout {
    let mut layout = layout();
    layout.maple = layout::MapleLayout { range64: Some(0), arange64: Some(0) };
    layout.range64 = layout::Range64Layout { pivot: Some(8), slot: Some(32) };
    layout.arange64 = layout::Arange64Layout { pivot: Some(8), slot: Some(32) };
    layout.sizes.maple_slots = [Some(4); 2];
    layout
}

const LEAF: u64 = 1 << 3 | 4;
const ARANGE: u64 = 3 << 3 | 4;

fn walk(memory: Memory, root: u64) -> maple::Tree {
    let memory = memory.physical();
    let mmu = Signatures::load(None).unwrap().mmu().unwrap().clone();
    let kernel = Kernel::of_direct_map(&Arc::new(memory), &Arc::new(mmu), BASE);
    maple::walk(&kernel, &maple_layout(), root).unwrap()
}

fn two_leaves() -> Memory {
    let mut memory = Memory::new();
    let mut node = |at: u64, pivots: &[u64], slots: &[u64]| {
        for (index, pivot) in (0..).zip(pivots) {
            memory.put(at + 8 + 8 * index, &pivot.to_le_bytes());
        }
        for (index, slot) in (0..).zip(slots) {
            memory.put(at + 32 + 8 * index, &slot.to_le_bytes());
        }
    };
    let at = |address: u64| BASE + address;
    node(0x1000, &[0x4fff], &[at(0x2000) | LEAF, at(0x3000) | LEAF]);
    node(0x2000, &[0xfff, 0x1fff, 0x2fff], &[0, at(0x100), 0, at(0x200)]);
    node(0x3000, &[0x6fff, 0xffff], &[at(0x300), 0, 0]);
    memory
}

/// The root's lower bits say that it is a node.
const ROOT: u64 = (BASE + 0x1000) | ARANGE | 2;

#[test]
fn a_tree_gives_its_entries_in_order() {
    let tree = walk(two_leaves(), ROOT);
    let entries: Vec<(u64, u64, u64)> =
        tree.entries.iter().map(|entry| (entry.first, entry.last, entry.value.0 - BASE)).collect();
    assert_eq!(entries, [(0x1000, 0x1fff, 0x100), (0x3000, 0x4fff, 0x200), (0x5000, 0x6fff, 0x300)]);
    assert_eq!(tree.unreadable, 0);
    assert_eq!(walk(two_leaves(), 0), maple::Tree::default());
}

#[test]
fn a_tree_that_goes_round_ends() {
    for child in [0x1000 | ARANGE, 0x2000 | ARANGE, 0x7000_0000 | LEAF, 0x3000 | 9 << 3] {
        let mut memory = two_leaves();
        memory.put(0x1000 + 40, &(BASE + child).to_le_bytes());
        let tree = walk(memory, ROOT);
        assert!(tree.unreadable > 0, "{child:#x}");
        assert!(tree.entries.len() <= 4, "{child:#x}");
    }
    // A pivot that goes back.
    let mut memory = two_leaves();
    memory.put(0x2000 + 16, &0x10u64.to_le_bytes());
    assert!(walk(memory, ROOT).unreadable > 0);
}

#[test]
fn memory_without_an_owner_is_found_by_its_tasks() {
    let mut memory = three();
    let mut layout = layout();
    (layout.mm.pgd, layout.mm.owner) = (Some(0x78), Some(0x90));
    for (task, mm) in [(0x2000, 0x4000), (0x3000, 0x4400)] {
        memory.point(task + MM, mm);
        memory.point(mm + 0x90, task);
    }
    // Something else that points to the memory, and a task that does not have it.
    memory.point(0x5008, 0x4000);
    memory.point(0x4800 + 0x90, 0x3000);
    let pointers: Vec<RootPointer> = [0x4000, 0x4400, 0x4800]
        .map(|mm| RootPointer { slot: VirtAddr(BASE + mm + 0x78), root: PhysAddr(0x6000) })
        .to_vec();
    let mmu = Signatures::load(None).unwrap().mmu().unwrap().clone();
    let kernel = Kernel::of_direct_map(&Arc::new(memory.physical()), &Arc::new(mmu), BASE);
    let expected = [0x2000, 0x3000].map(|task| VirtAddr(BASE + task));
    assert_eq!(task::owners(&kernel, &layout, &pointers, Backend::Scalar), expected);
    layout.mm.owner = None;
    assert_eq!(task::owners(&kernel, &layout, &pointers, Backend::Scalar), expected);
}

#[test]
fn top_tables_lead_to_the_memory_that_has_them() {
    // The array of `struct page` begins where memory does; frames 2, 3 and 5 are top tables.
    let roots = [2, 3, 5].map(|frame| PhysAddr(frame * FRAME_SIZE));
    let mut memory = Memory::new();
    for (root, mm) in roots.iter().zip([0x4000, 0x4400, 0x4800]) {
        memory.point(root.0 / FRAME_SIZE * 64 + 32, mm);
        memory.point(mm + 0x78, root.0);
    }
    // The last one's memory says that it has another top table.
    memory.point(0x4800 + 0x78, 0x6000);
    let memory = Arc::new(memory.physical());
    let mmu = Signatures::load(None).unwrap().mmu().unwrap().clone();
    let kernel = Kernel::of_direct_map(&memory, &Arc::new(mmu), BASE);
    let mapping = |va| crate::paging::Mapping { va: VirtAddr(va), pa: PhysAddr(0), len: FRAME_SIZE, executable: false };
    let mappings = [BASE - (1 << 30), BASE, BASE + 0x1000].map(mapping).to_vec();
    let candidate = Candidate { kernel, mappings };
    let pointers = [0x4078, 0x4478].map(|slot| VirtAddr(BASE + slot));
    let expected: Vec<_> = pointers.into_iter().zip(roots).map(|(slot, root)| RootPointer { slot, root }).collect();
    assert_eq!(roots::by_page_structs(&candidate, &roots), expected);
    assert_eq!(roots::by_sweep(&memory, &[candidate], &roots, Backend::Scalar), [expected]);
}
