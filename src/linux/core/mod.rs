//! A process as an ELF core: what the kernel would have written of it (fs/binfmt_elf.c), from the dump of a machine.
//!
//! ```text
//!  memory map ──> segments ─────┐
//!  page tables ──> what is held ┘──> program headers, bytes
//!  tasks, registers ──> notes
//! ```
//!
//! A byte of the core is a byte of the dump. What the dump does not hold is absent: the segment is larger in memory than in the
//! file (`p_filesz` < `p_memsz`), and a debugger says that it can't be read. That holds for memory that was never touched as
//! well: the process would read zeros there, but the page tables do not tell whether it was ever given to the process.

mod file;
mod notes;
mod segments;

use std::io::{self, Seek, Write};

use super::process::Process;
use super::registers::Registers;
use super::task::Task;
use super::vma::{MemoryMap, budget};
use super::{Kernel, Machine};
use crate::addr::PhysAddr;
use crate::diagnostic::{Code, Diagnostic, Level};
use crate::paging::AddressSpace;
use crate::words::counted;

use notes::Notes;
use segments::{Segment, Segments};

/// A process that is to be written as an ELF core.
pub struct Core {
    space: AddressSpace,
    segments: Vec<Segment>,
    notes: Vec<u8>,
    /// Bytes of memory that the core has addresses for.
    pub mapped: u64,
    /// Bytes of it that are in the core.
    pub held: u64,
    /// Bytes that are not in the core because they are on a swap device.
    pub swapped: u64,
    /// Bytes that are not in the core because the dump lacks the page, or the page table.
    pub missing: u64,
    /// Threads whose registers are in the core.
    pub threads: usize,
    /// What is not as the process had it, and what to know about the core.
    pub warnings: Vec<Diagnostic>,
}

impl Machine {
    /// A process as a core; `None` for what has no memory, as threads of the kernel.
    pub fn core(&self, process: &Process) -> Option<Core> {
        let (root, map) = (process.root?, self.map(process)?);
        let mut core = Core::new(&self.kernel, root, &map);
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for task in process.tasks().filter(|task| task.exited != Some(true)) {
            match self.registers(task) {
                Some(registers) => known.push((task, registers)),
                None => unknown.push(task),
            }
        }
        core.describe_threads(process, &known, &unknown);
        let arguments = self.command_line(process);
        let vector = self.auxiliary_vector(process);
        if vector.is_none() {
            core.warn("its auxiliary vector can't be read, so the core has none (NT_AUXV)");
        }
        let mut notes = Notes::default();
        // Readers take the first thread for the one that the core was written for.
        let mut threads = known.iter().map(|(task, registers)| (*task, registers));
        if let Some((task, registers)) = threads.next() {
            notes.thread(process, task, registers);
        }
        notes.process(process, arguments.as_deref());
        if let Some(vector) = vector {
            notes.auxiliary_vector(&vector);
        }
        core.list_files(&mut notes, &map);
        threads.for_each(|(task, registers)| notes.thread(process, task, registers));
        core.notes = notes.into_bytes();
        Some(core)
    }

    /// An address space without a task, by its page tables alone: a core without threads.
    pub fn core_of_root(&self, root: PhysAddr) -> Core {
        let mut core = Core::new(&self.kernel, root, &self.map_of_root(root));
        core.warn("no task has these page tables, so the core has memory alone: no threads, no files");
        core
    }
}

impl Core {
    fn new(kernel: &Kernel, root: PhysAddr, map: &MemoryMap) -> Self {
        let space = kernel.user_space(root);
        let mut segments = Segments::new(budget(kernel), kernel.memory().size());
        map.mappings.iter().for_each(|mapping| segments.add(&space, mapping));
        let mut warnings = map.problems.clone();
        warnings.extend(segments.warning());
        let known = || map.mappings.iter().filter_map(|mapping| mapping.residency);
        let sum = |bytes: u64, more: u64| bytes.saturating_add(more);
        let (swapped, missing) = (
            known().map(|residency| residency.swapped).fold(0, sum),
            known().map(|residency| residency.missing).fold(0, sum),
        );
        if map.mappings.iter().any(|mapping| mapping.residency.is_none()) {
            let message = "its page tables are too many to count what is swapped out or missing";
            warnings.push(Diagnostic::new(Code::IncompleteCore, None, message.to_owned()));
        }
        let segments = segments.into_all();
        Self {
            mapped: segments.iter().map(|segment| segment.in_memory).fold(0, sum),
            held: segments.iter().map(|segment| segment.in_file).fold(0, sum),
            space,
            segments,
            notes: Vec::new(),
            swapped,
            missing,
            threads: 0,
            warnings,
        }
    }

    fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(Diagnostic::new(Code::IncompleteCore, None, message.into()));
    }

    fn describe_threads(&mut self, process: &Process, known: &[(&Task, Registers)], unknown: &[&Task]) {
        self.threads = known.len();
        if process.threads.is_none() {
            self.warn("its list of threads can't be read, so the core has at most the first");
        }
        if !unknown.is_empty() {
            self.warn(format!("no registers were found of {}, which the core leaves out", threads(unknown)));
        }
        let of = |is: &dyn Fn(&Registers) -> bool| -> Vec<&Task> {
            known.iter().filter(|(_, registers)| is(registers)).map(|(task, _)| *task).collect()
        };
        let running = of(&|registers| registers.may_be_old);
        if !running.is_empty() {
            let message = format!(
                "the registers of {} are those of the last entry into the kernel: a processor may have run on in user mode \
                 since",
                threads(&running)
            );
            self.warnings.push(Diagnostic::new(Code::OldRegisters, None, message));
        }
        let without_base = of(&|registers| registers.fs_base.is_none());
        if !without_base.is_empty() {
            self.warn(format!("the base of FS is not known of {}: it is 0 in the core", threads(&without_base)));
        }
    }

    fn list_files(&mut self, notes: &mut Notes, map: &MemoryMap) {
        let left_out = notes.files(&map.mappings);
        if left_out > 0 {
            self.warn(format!(
                "{} not in the core's list of files (NT_FILE), which would be too long",
                counted(left_out, "mapping is", "mappings are")
            ));
        }
    }

    /// Bytes of the core; where it holds pages of zeros, it takes less of the disk.
    pub fn size(&self) -> u64 {
        file::size(self)
    }

    /// Whether nothing of the process that was there is absent.
    pub fn is_whole(&self) -> bool {
        self.warnings.iter().all(|warning| warning.level() == Level::Note) && self.swapped == 0 && self.missing == 0
    }

    /// Writes the core. `out` is at its beginning, and empty: pages of zeros are skipped. `advance` hears of the bytes that are
    /// done.
    ///
    /// # Errors
    /// `out` can't be written to.
    pub fn write(&self, out: &mut (impl Write + Seek), advance: &dyn Fn(u64)) -> io::Result<()> {
        file::write(self, out, advance)
    }
}

/// Threads by their ids, of which some are named.
fn threads(tasks: &[&Task]) -> String {
    const NAMED: usize = 8;
    let named: Vec<String> = tasks.iter().take(NAMED).map(|task| task.pid.value.to_string()).collect();
    let more = if tasks.len() > NAMED { ", …" } else { "" };
    let word = if tasks.len() == 1 { "thread" } else { "threads" };
    format!("{word} {}{more}", named.join(", "))
}
