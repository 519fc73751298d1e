//! The processes and memory maps of real dumps against what the kernel said of them before the capture.
//!
//! The second dump lies beside the checkout on the project's own machines; where it is not there, its tests say that they skip.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::case::Spaces;
use tensorcarve::dump::{self, MemoryRange, PhysicalMemory};
use tensorcarve::linux::{BTF_SIGNATURE, LayoutSource, Machine, Process};
use tensorcarve::progress::Silent;
use tensorcarve::scan::{Backend, PointerSet, sweep};
use tensorcarve::signature::Signatures;

const DUMPS: [&str; 2] = ["tests/data/cifar10-pdb", "../shared/dumps/residual"];

/// A dump with what was found in it, and the truth.
struct Case {
    view: Spaces,
    btfs: Vec<PhysAddr>,
    truth: Value,
}

impl Case {
    fn open(name: &str) -> Option<Self> {
        let of = |ending: &str| format!("{name}{ending}");
        let packed = [".lime.zst", ".elf.zst"].map(of).into_iter().find(|path| Path::new(path).exists());
        let Some(packed) = packed else {
            println!("skipped: {name} is not here");
            return None;
        };
        let dump = dump::open(packed.as_ref(), &Default::default(), &|_, _| ()).unwrap();
        let signatures = Signatures::load(None).unwrap();
        let view = Spaces::find(&dump, &signatures, Backend::detect_best(), &Silent).unwrap();
        let btfs = view.hits_of(&signatures, |name| name == BTF_SIGNATURE).map(|hit| hit.address).collect();
        let truth = serde_json::from_slice(&fs::read(of(".truth.json")).unwrap()).unwrap();
        Some(Self { view, btfs, truth })
    }

    fn machine(&self, btfs: &[PhysAddr]) -> Machine {
        let Spaces { memory, mmu, discovery, .. } = &self.view;
        Machine::find(memory, mmu, discovery, btfs, Backend::detect_best()).unwrap()
    }

    /// What ps(1) said: parent, name and arguments by id. It cut lines off, and left itself in the list.
    fn ps(&self) -> BTreeMap<u32, (u32, &str, &str)> {
        let lines = self.truth["ps"].as_str().unwrap().lines().skip(1);
        let fields = lines.map(|line| {
            let mut words = line.split_ascii_whitespace();
            let [pid, ppid, _] = [0; 3].map(|_| words.next().unwrap().parse::<u32>().unwrap());
            let comm = words.next().unwrap();
            let at = line.find(comm).unwrap() + comm.len();
            (pid, (ppid, comm, line[at..].trim()))
        });
        fields.filter(|(_, (_, comm, _))| *comm != "ps").collect()
    }
}

/// Checks every process of the truth, and that no other one is said to live but those that began after ps(1) did.
fn check(case: &Case, machine: &Machine, has_arguments: bool) {
    let found: BTreeMap<u32, &Process> = machine
        .processes()
        .iter()
        .filter(|process| process.exited() != Some(true))
        .map(|process| (process.pid(), process))
        .collect();
    let truth = case.ps();
    for (pid, (ppid, comm, arguments)) in &truth {
        let process = found.get(pid).unwrap_or_else(|| panic!("{pid} {comm}"));
        assert_eq!(process.ppid.map(|ppid| ppid.value), Some(*ppid), "{pid}");
        let is_kernel = arguments.starts_with('[');
        assert_eq!(process.leader.is_kernel, is_kernel, "{pid}");
        // The kernel adds to the names of its workers what they work on. The first process of the second guest became
        // another program after ps(1) had run.
        if is_kernel || *pid == 1 && process.comm() == "sleep" {
            continue;
        }
        assert_eq!(process.comm(), *comm, "{pid}");
        assert!(process.root.is_some_and(|root| case.view.discovery.spaces.iter().any(|space| space.root == root)));
        if has_arguments {
            let line = machine.command_line(process).unwrap().join(" ");
            assert!(line.starts_with(arguments), "{pid}: {line} {arguments}");
        }
    }
    let last = truth.keys().last().unwrap();
    let others: Vec<u32> = found.keys().filter(|pid| !truth.contains_key(pid) && *pid <= last).copied().collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(machine.broken_links().is_empty());
    assert!(machine.processes().iter().all(|process| process.is_listed || process.exited() == Some(true)));
}

#[test]
fn processes_are_those_that_ps_listed() {
    for case in DUMPS.iter().filter_map(|name| Case::open(name)) {
        let machine = case.machine(&case.btfs);
        assert_eq!(machine.layout().source, LayoutSource::Btf);
        check(&case, &machine, true);
        for process in machine.processes().iter().filter(|process| process.root.is_some()) {
            for thread in process.tasks().filter(|task| task.is_running == Some(false)) {
                assert!(machine.registers(thread).is_some(), "{} {}", process.pid(), thread.pid.value);
            }
            let vector = machine.auxiliary_vector(process).unwrap();
            // AT_PAGESZ, and AT_ENTRY.
            assert!(vector.contains(&(6, 4096)) && vector.iter().any(|(kind, _)| *kind == 9), "{vector:?}");
            assert!(machine.environment(process).is_some());
        }
    }
}

#[test]
fn what_has_ended_is_found_where_its_task_is_still_there() {
    let case = Case::open(DUMPS[0]).unwrap();
    let machine = case.machine(&case.btfs);
    let ended = machine.processes().iter().filter(|process| process.exited() == Some(true));
    let ended: Vec<(u32, &str)> = ended.map(|process| (process.pid(), process.comm())).collect();
    // What the guest ran on its way from ps(1) to the capture.
    for process in [(292, "mount"), (296, "ls"), (298, "cp")] {
        assert!(ended.contains(&process), "{process:?} {ended:?}");
    }
}

#[test]
fn without_btf_the_tasks_agree_on_a_layout() {
    for case in DUMPS.iter().filter_map(|name| Case::open(name)) {
        let (by_btf, machine) = (case.machine(&case.btfs), case.machine(&[]));
        assert_eq!(machine.layout().source, LayoutSource::Voting);
        check(&case, &machine, false);
        let (voted, known) = (machine.layout(), by_btf.layout());
        let task = |of: &tensorcarve::linux::Layout| {
            let task = &of.task;
            [task.tasks, task.mm, task.pid, task.tgid, task.comm, task.real_parent, of.mm.pgd, of.mm.owner]
        };
        assert_eq!(task(voted), task(known));
        // What is not known is not said.
        let python = machine.processes().iter().find(|process| process.comm() == "python3").unwrap();
        assert_eq!((machine.command_line(python), &python.threads, python.exited()), (None, &None, None));
        let map = machine.map(python).unwrap();
        assert!(!map.mappings.is_empty() && !map.problems.is_empty());
        assert!(map.mappings.iter().all(|mapping| mapping.source == tensorcarve::linux::MappingSource::PageTables));
    }
}

/// Top tables are found by the kernel's array of `struct page`; where that is lost, by a sweep over all memory.
#[test]
fn without_the_array_of_struct_page_memory_is_swept() {
    let mut case = Case::open(DUMPS[0]).unwrap();
    let machine = case.machine(&case.btfs);
    let tables: BTreeMap<u64, u64> =
        machine.processes().iter().filter_map(|it| Some((it.mm?.0, it.root?.0 / 4096 * 64 + 32))).collect();
    let memory = &case.view.memory;
    let all = PhysAddr(0)..memory.end();
    let values: Vec<u64> = tables.keys().copied().collect();
    let slots = sweep(memory, &[all], &PointerSet::new(&values), Backend::detect_best(), &|_| ());
    // The array begins at a multiple of 1 GiB, in pages of 2 MiB.
    let in_array = |(slot, mm): &&(PhysAddr, u64)| slot.0 % (2 << 20) == tables[mm] % (2 << 20);
    let pointers: Vec<u64> = slots.iter().filter(in_array).map(|(slot, _)| slot.0).collect();
    assert_eq!(pointers.len(), tables.len());

    let mut bytes = Vec::new();
    let mut ranges = Vec::new();
    for range in memory.ranges() {
        ranges.push(MemoryRange { offset: FileOffset(bytes.len() as u64), ..*range });
        let start = bytes.len();
        bytes.extend_from_slice(memory.range_bytes(range));
        for pointer in pointers.iter().filter(|at| (range.start.0..range.end.0).contains(at)) {
            let at = start + (pointer - range.start.0) as usize;
            bytes[at..at + 8].fill(0);
        }
    }
    case.view.memory = Arc::new(PhysicalMemory::owned(bytes, ranges).unwrap());
    let swept = case.machine(&case.btfs);
    assert_eq!(swept.processes().len(), machine.processes().len());
    check(&case, &swept, true);
}

#[test]
fn memory_maps_are_those_of_proc() {
    for case in DUMPS.iter().filter_map(|name| Case::open(name)) {
        let machine = case.machine(&case.btfs);
        for (pid, lines) in case.truth["maps"].as_object().unwrap() {
            let process = machine.processes().iter().find(|process| process.pid().to_string() == *pid).unwrap();
            let map = machine.map(process).unwrap();
            assert!(map.problems.is_empty(), "{:?}", map.problems);
            let ours: Vec<String> = map
                .mappings
                .iter()
                .map(|it| {
                    let (offset, file) = (it.offset.unwrap(), it.file.as_deref().unwrap_or_default());
                    format!("{:08x}-{:08x} {} {offset:08x} {file}", it.start.0, it.end.0, it.permissions)
                })
                .collect();
            let theirs: Vec<String> = lines
                .as_str()
                .unwrap()
                .lines()
                .map(|line| {
                    let mut words = line.splitn(6, ' ');
                    let [range, access, offset, _device, _inode, file] =
                        [(); 6].map(|()| words.next().unwrap_or_default());
                    format!("{range} {access} {offset} {}", file.trim_start())
                })
                .collect();
            assert_eq!(ours.join("\n"), theirs.join("\n"), "{pid}");
        }
    }
}

/// Frames of the kernel's memory that are overwritten at random: no panic, no endless walk, and nothing that was not there.
#[test]
fn overwritten_memory_is_survived() {
    let Some(case) = Case::open(DUMPS[0]) else { return };
    let known: Vec<u32> = case.machine(&case.btfs).processes().iter().map(Process::pid).collect();
    let memory = &case.view.memory;
    let mut bytes = Vec::new();
    let mut ranges = Vec::new();
    for range in memory.ranges() {
        ranges.push(MemoryRange { offset: FileOffset(bytes.len() as u64), ..*range });
        bytes.extend(memory.range_bytes(range));
    }
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for copy in 0..6 {
        let mut damaged = bytes.clone();
        // A word in so many is another one from nearby: pointers then lead to wrong but valid places.
        for word in 1..damaged.len() / 8 - 1024 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if (random >> 33).is_multiple_of(4096) {
                let from = (word + (random >> 50) as usize % 1024) * 8;
                damaged.copy_within(from..from + 8, word * 8);
            }
        }
        let damaged = PhysicalMemory::owned(damaged, ranges.clone()).unwrap();
        let btfs = if copy % 2 == 0 { case.btfs.as_slice() } else { &[] };
        let Spaces { mmu, discovery, .. } = &case.view;
        let Ok(machine) = Machine::find(&Arc::new(damaged), mmu, discovery, btfs, Backend::detect_best()) else {
            continue;
        };
        let listed = machine.processes().iter().filter(|process| process.is_listed && process.exited() != Some(true));
        let wrong = listed.filter(|process| !known.contains(&process.pid())).count();
        assert!(wrong <= 2, "{wrong} processes have ids that none had");
        for process in machine.processes() {
            let _ = (machine.command_line(process), machine.executable(process), machine.map(process));
            let _ = (machine.environment(process), machine.resident(process));
        }
    }
}
