//! A Linux machine, read without symbols: its processes, their threads and their memory.
//!
//! ```text
//!  page tables ──> direct map ──> struct page of a top table ──> mm_struct ──> owner ──> task list ──> processes
//!                                             BTF in the dump, or voting: offsets ─┘
//! ```
//!
//! [`Machine::find`] needs only the address spaces of a dump, and no files of its kernel. [`Layout`] holds the offsets in the
//! kernel's structures. They come from the BTF that the kernel keeps of its own types or, if the dump lacks it, from a vote among
//! the tasks.

mod btf;
mod core;
mod ended;
mod image;
mod kernel;
mod layout;
mod maple;
mod path;
mod process;
mod registers;
mod roots;
mod task;
mod vma;
mod vote;

use std::sync::Arc;

use crate::addr::{PhysAddr, VirtAddr};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::PhysicalMemory;
use crate::paging::Discovery;
use crate::scan::Backend;
use crate::signature::Mmu;

pub use crate::layout::LayoutSource;
use btf::Btf;
pub use core::Core;
pub use image::{command_line_of_image, executable_of_image};
use kernel::Candidate;
pub use kernel::Kernel;
pub use layout::Layout;
use path::Paths;
use process::Memory;
pub use process::Process;
pub use registers::Registers;
use roots::RootPointer;
use task::Lists;
pub use task::{BrokenLink, Fact, Task};
pub use vma::{Mapping, MappingSource, MemoryMap, map_of_image};

/// Sweeps for the owners of memory.
const MAX_SWEEPS: usize = 4;
/// The signature of the header of a BTF, whose hits [`Machine::find`] wants.
pub const BTF_SIGNATURE: &str = "linux.btf";
/// Maximum number of top tables whose owners are looked for.
const MAX_TABLES: usize = 1 << 16;
/// Maximum number of BTFs examined.
const MAX_BTFS: usize = 1 << 12;

/// Why no Linux machine was found in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMachine {
    /// The dump is of one process.
    #[error("the dump is a process image: it does not hold the kernel")]
    ProcessImage,
    /// The page tables have no direct map, or no pointer in memory leads to a top table through it.
    #[error("no direct map of Linux was found in the page tables")]
    NoDirectMap,
    /// No BTF reads a process, and the tasks of the dump agree on no layout.
    #[error(
        "no layout of the kernel's structures reads a process: the dump lacks the kernel's BTF and has too few tasks"
    )]
    NoLayout,
}

/// A Linux machine.
pub struct Machine {
    kernel: Kernel,
    layout: Layout,
    processes: Vec<Process>,
    broken: Vec<BrokenLink>,
    registers: Option<registers::Place>,
}

impl Machine {
    /// Finds the processes of a machine in its memory.
    ///
    /// `btfs` are physical addresses at which a BTF may begin: hits of the signature [`BTF_SIGNATURE`].
    ///
    /// # Errors
    /// The machine does not run Linux, or too little of the kernel's memory is in the dump.
    pub fn find(
        memory: &Arc<PhysicalMemory>,
        mmu: &Arc<Mmu>,
        discovery: &Discovery,
        btfs: &[PhysAddr],
        backend: Backend,
    ) -> Result<Self, NoMachine> {
        let tables: Vec<PhysAddr> = discovery.spaces.iter().map(|space| space.root).take(MAX_TABLES).collect();
        let read = |candidate: &Candidate, pointers: &[RootPointer]| {
            let (layout, owners) = read_layout(&candidate.kernel, pointers, btfs, backend)?;
            Some((candidate.kernel.clone(), layout, owners))
        };
        let mut candidates = Vec::new();
        let mut found = None;
        for candidate in Kernel::candidates(memory, mmu, discovery) {
            found = read(&candidate, &roots::by_page_structs(&candidate, &tables));
            if found.is_some() {
                break;
            }
            candidates.push(candidate);
        }
        if found.is_none() {
            // The base of the direct map counts by which most top tables are pointed to.
            let pointers = roots::by_sweep(memory, &candidates, &tables, backend);
            let best = candidates.iter().zip(&pointers).max_by_key(|(_, pointers)| roots::count(pointers));
            let (candidate, pointers) =
                best.filter(|(_, pointers)| !pointers.is_empty()).ok_or(NoMachine::NoDirectMap)?;
            found = read(candidate, pointers);
        }
        let (kernel, layout, seeds) = found.ok_or(NoMachine::NoLayout)?;
        let mut lists = Lists::new(&kernel, &layout);
        let leaders = lists.leaders(&seeds);
        let mut processes: Vec<Process> =
            leaders.into_iter().map(|(leader, is_listed)| Process::new(&mut lists, leader, is_listed)).collect();
        let known = processes.iter().flat_map(Process::tasks).map(|task| task.address).collect();
        let ended = ended::leaders(&kernel, &layout, &known);
        processes.extend(ended.into_iter().map(|task| Process::new(&mut lists, task, false)));
        processes.sort_by_key(|process| (process.pid(), process.leader.address));
        let broken = lists.broken;
        let users = processes.iter().filter(|process| process.mm.is_some()).flat_map(Process::tasks);
        let registers = registers::Place::find(&kernel, &layout, users);
        Ok(Self { kernel, layout, processes, broken, registers })
    }

    /// The kernel's memory.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The offsets that it is read with.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// All processes by id. Each kernel thread is a process of its own.
    pub fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The process whose memory has that top table; the first one if several share it.
    pub fn process_of(&self, root: PhysAddr) -> Option<&Process> {
        self.processes.iter().find(|process| process.root == Some(root))
    }

    /// Broken links of the kernel's lists.
    pub fn broken_links(&self) -> &[BrokenLink] {
        &self.broken
    }

    /// Warnings about the list of processes.
    pub fn warnings(&self) -> Vec<Diagnostic> {
        let broken = self.broken.iter().map(|BrokenLink { address, reason }| {
            let message = format!("the kernel's list of tasks has a broken link at {address}: {reason}");
            Diagnostic::new(Code::BrokenKernelList, Some((*address).into()), message)
        });
        let inferred = (self.layout().source == LayoutSource::Voting).then(|| {
            let message = "the kernel's BTF is not in the dump: the offsets are inferred from the tasks";
            Diagnostic::new(Code::InferredKernelLayout, None, message.to_owned())
        });
        let hidden = self.processes().iter().filter(|process| !process.is_listed && process.exited() != Some(true));
        let hidden = hidden.map(|process| {
            let (pid, task) = (process.pid(), process.leader.address);
            let message = format!(
                "process {pid} (task at {task}) is not in the kernel's list of processes: the process was hidden, or the \
                 list was changing"
            );
            Diagnostic::new(Code::UnlistedProcess, Some(task.into()), message)
        });
        broken.chain(inferred).chain(hidden).collect()
    }

    /// The arguments of a process, from its own memory; empty for a kernel thread, `None` if they can't be read.
    pub fn command_line(&self, process: &Process) -> Option<Vec<String>> {
        if process.leader.is_kernel { Some(Vec::new()) } else { self.memory_of(process)?.command_line() }
    }

    /// The environment that a process was started with, from its own memory.
    pub fn environment(&self, process: &Process) -> Option<Vec<String>> {
        self.memory_of(process)?.environment()
    }

    /// The auxiliary vector of a process: pairs of a type (`AT_*`) and a value.
    pub fn auxiliary_vector(&self, process: &Process) -> Option<Vec<(u64, u64)>> {
        self.memory_of(process)?.auxiliary_vector()
    }

    /// The user-mode registers of a thread; `None` for kernel threads, and if they can't be found.
    pub fn registers(&self, thread: &Task) -> Option<Registers> {
        self.registers?.read(&self.kernel, &self.layout, thread)
    }

    /// The path of the program that a process runs.
    pub fn executable(&self, process: &Process) -> Option<String> {
        let file = self.kernel.pointer(process.mm?, self.layout.mm.exe_file?)?;
        Paths::new(&self.kernel, &self.layout, process.leader.address).of_file(file)
    }

    /// The memory map of a process, from the kernel's records or, where these can't be read, from its page tables.
    pub fn map(&self, process: &Process) -> Option<MemoryMap> {
        let (mm, root) = (process.mm?, process.root?);
        Some(Memory { kernel: &self.kernel, layout: &self.layout, mm, root }.map(process.leader.address))
    }

    /// The memory map of an address space, from its page tables alone.
    pub fn map_of_root(&self, root: PhysAddr) -> MemoryMap {
        vma::page_table_map(&self.kernel, root)
    }

    /// The bytes of a process's memory that are in the dump. Shared memory counts in each process.
    pub fn resident(&self, process: &Process) -> Option<u64> {
        vma::resident(&self.kernel, process.root?)
    }

    fn memory_of(&self, process: &Process) -> Option<Memory<'_>> {
        Some(Memory { kernel: &self.kernel, layout: &self.layout, mm: process.mm?, root: process.root? })
    }
}

/// The layout that reads most owners of memory, and these: by a BTF or, where none reads any, by voting.
fn read_layout(
    kernel: &Kernel,
    pointers: &[RootPointer],
    btfs: &[PhysAddr],
    backend: Backend,
) -> Option<(Layout, Vec<VirtAddr>)> {
    if pointers.is_empty() {
        return None;
    }
    let with_owners = |layout: Layout| {
        let owners = task::owners(kernel, &layout, pointers, backend);
        (!owners.is_empty()).then_some((layout, owners))
    };
    let mut sweeps = 0..MAX_SWEEPS;
    let of_btf = |start: &PhysAddr| {
        let layout = Layout::of_btf(&Btf::at(kernel.memory(), *start)?);
        // Where memory does not name its owner, it is swept.
        if layout.mm.owner.is_some() || sweeps.next().is_some() { with_owners(layout) } else { None }
    };
    let by_btf = btfs.iter().take(MAX_BTFS).filter_map(of_btf).max_by_key(|(_, owners)| owners.len());
    by_btf.or_else(|| with_owners(vote::layout(kernel, pointers)?))
}

#[cfg(test)]
mod tests;
