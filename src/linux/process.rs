//! Processes: a task that leads threads, and the address space that they share.

use std::ops::Range;

use super::kernel::Kernel;
use super::layout::Layout;
use super::task::{Fact, Lists, Task};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::paging::VirtualMemory;

/// Maximum size of a command line or an environment, in bytes (the kernel's own bound is 6 MiB, fs/exec.c).
pub(super) const MAX_STRINGS: u64 = 8 << 20;
/// Maximum number of words of an auxiliary vector (`AT_VECTOR_SIZE` is about 50).
const MAX_AUXV: u64 = 256;

/// A process. A field is `None` if the layout lacks it, or if it can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its thread group leader.
    pub leader: Task,
    /// All its threads, the leader included, by id.
    pub threads: Option<Vec<Task>>,
    /// The process that created it, or that adopted it since; 0 for the kernel itself.
    pub ppid: Option<Fact<u32>>,
    /// The top table of its memory; `None` for kernel threads and ended processes.
    pub root: Option<PhysAddr>,
    /// Its `mm_struct`.
    pub mm: Option<VirtAddr>,
    /// Whether it is in the kernel's list of all processes: malware that hides a process removes it from the list.
    pub is_listed: bool,
}

impl Process {
    pub(super) fn new(lists: &mut Lists<'_>, leader: Task, is_listed: bool) -> Self {
        let (kernel, layout) = (lists.kernel, lists.layout);
        // An ended and freed process has no list of threads any more.
        let threads = if is_listed || leader.exited != Some(true) { lists.threads(&leader) } else { None };
        // A leader can end before its threads.
        let all = std::iter::once(&leader).chain(threads.iter().flatten());
        let mm = all.filter(|task| !task.is_kernel).find_map(|task| Some(task.mm?.value));
        let ppid = leader.parent.and_then(|parent| {
            let offset = layout.task.tgid?;
            let value = kernel.u32(parent.value, offset)?;
            Some(Fact { value, address: parent.value.checked_add(offset)? })
        });
        Self { root: mm.and_then(|mm| root_of(kernel, layout, mm)), leader, threads, ppid, mm, is_listed }
    }

    /// Its thread group leader, then its other threads.
    pub fn tasks(&self) -> impl Iterator<Item = &Task> {
        let others = self.threads.iter().flatten().filter(|task| task.address != self.leader.address);
        std::iter::once(&self.leader).chain(others)
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.leader.tgid.value
    }

    /// The name of its command.
    pub fn comm(&self) -> &str {
        &self.leader.comm.value
    }

    /// Whether all its threads have ended; `None` if the layout lacks the field.
    pub fn exited(&self) -> Option<bool> {
        let mut others = self.threads.iter().flatten();
        Some(self.leader.exited? && others.all(|task| task.exited != Some(false)))
    }
}

/// The top table of an `mm_struct`.
fn root_of(kernel: &Kernel, layout: &Layout, mm: VirtAddr) -> Option<PhysAddr> {
    kernel.physical(kernel.pointer(mm, layout.mm.pgd?)?).filter(|root| root.0.is_multiple_of(FRAME_SIZE))
}

/// The NUL-terminated texts between two addresses of a process; `None` if a byte can't be read.
fn strings(space: &dyn VirtualMemory, start: u64, end: u64) -> Option<Vec<u8>> {
    let len = end.checked_sub(start).filter(|len| *len <= MAX_STRINGS)?;
    let mut text = vec![0; usize::try_from(len).ok()?];
    space.read(VirtAddr(start), &mut text).ok()?;
    Some(text)
}

fn split(text: &[u8]) -> Vec<String> {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// The arguments of a process, as /proc/PID/cmdline gives them (`get_mm_cmdline` of fs/proc/base.c); the environment follows them.
pub(super) fn command_line(
    space: &dyn VirtualMemory,
    arguments: Range<u64>,
    environment_end: Option<u64>,
) -> Option<Vec<String>> {
    let mut text = strings(space, arguments.start, arguments.end)?;
    // A program that sets its title (setproctitle) overwrites the last NUL, and can continue into the environment.
    if text.last().is_some_and(|last| *last != 0) {
        if let Some(rest) = environment_end.and_then(|end| strings(space, arguments.end, end)) {
            text.extend(rest);
        }
        text.truncate(memchr::memchr(0, &text).unwrap_or(text.len()));
    }
    Some(split(&text))
}

/// The arguments, environment and auxiliary vector of a process: the `mm_struct` has their addresses.
pub(super) struct Memory<'k> {
    pub(super) kernel: &'k Kernel,
    pub(super) layout: &'k Layout,
    pub(super) mm: VirtAddr,
    pub(super) root: PhysAddr,
}

impl Memory<'_> {
    fn number(&self, offset: Option<u64>) -> Option<u64> {
        self.kernel.u64(self.mm, offset?)
    }

    /// The arguments.
    pub(super) fn command_line(&self) -> Option<Vec<String>> {
        let of = &self.layout.mm;
        let (start, end) = (self.number(of.arg_start)?, self.number(of.arg_end)?);
        command_line(&self.kernel.user_space(self.root), start..end, self.number(of.env_end))
    }

    /// Its initial environment.
    pub(super) fn environment(&self) -> Option<Vec<String>> {
        let of = &self.layout.mm;
        let (start, end) = (self.number(of.env_start)?, self.number(of.env_end)?);
        Some(split(&strings(&self.kernel.user_space(self.root), start, end)?))
    }

    /// The auxiliary vector (getauxval(3)): pairs of a type and a value, up to the one that ends it.
    pub(super) fn auxiliary_vector(&self) -> Option<Vec<(u64, u64)>> {
        let start = self.layout.mm.saved_auxv?;
        let words = (self.layout.sizes.saved_auxv? / 8).min(MAX_AUXV);
        let mut found = Vec::new();
        for pair in 0..words / 2 {
            let at = start.checked_add(pair * 16)?;
            let (kind, value) = (self.kernel.u64(self.mm, at)?, self.kernel.u64(self.mm, at.checked_add(8)?)?);
            if kind == 0 {
                break;
            }
            found.push((kind, value));
        }
        Some(found)
    }
}
