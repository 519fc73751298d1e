//! User-mode registers, as the kernel saved them when a thread entered it.
//!
//! They are at the top of the thread's kernel stack (`task_pt_regs` of arch/x86/include/asm/processor.h). The size of the stack
//! depends on the kernel's configuration: the threads vote, and most of them must have plausible registers at that place.

use super::kernel::Kernel;
use super::layout::Layout;
use super::task::Task;
use crate::addr::VirtAddr;
use crate::layout::{Votes, elect};
use crate::signature::USER_POINTER_MAX;

/// Sizes of kernel stacks: 16 KiB, and 32 KiB with KASAN (`THREAD_SIZE` of arch/x86/include/asm/page_64_types.h).
const STACK_SIZES: [u64; 2] = [16 << 10, 32 << 10];
/// Bytes above the registers (`TOP_OF_KERNEL_STACK_PADDING` of arch/x86/include/asm/thread_info.h): 16 with FRED, since 6.9.
const PADDINGS: [u64; 2] = [0, 16];
/// Words of `struct pt_regs` (arch/x86/include/asm/ptrace.h), in this order.
const NAMES: [&str; 21] = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
    "rip", "cs", "eflags", "rsp", "ss",
];
const RIP: usize = 16;
const CS: usize = 17;
const EFLAGS: usize = 18;
const RSP: usize = 19;
const SS: usize = 20;
/// Code segments of 64-bit and 32-bit programs, and their data segment (arch/x86/include/asm/segment.h).
const USER_CODE: [u64; 2] = [0x33, 0x23];
const USER_DATA: u64 = 0x2b;
/// The bits of a segment register. FRED uses the bits above them.
const SELECTOR: u64 = 0xffff;
/// The bit of EFLAGS that is always set, and the bits that are never set.
const FLAGS_SET: u64 = 0x2;
const FLAGS_CLEAR: u64 = 0x8028;
/// The state of a thread that runs or may run: only such a thread can be in user mode.
const RUNNING: char = 'R';
/// Maximum number of threads that vote on the size of stacks.
const MAX_VOTES: usize = 1 << 10;

/// The user-mode registers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The values in the order of `struct pt_regs`, see [`Registers::named`].
    pub words: [u64; 21],
    /// The base of the segment FS: the thread's own memory.
    pub fs_base: Option<u64>,
    /// The base of the segment GS.
    pub gs_base: Option<u64>,
    /// Their address in the kernel's memory.
    pub address: VirtAddr,
    /// Whether they may be outdated, because the thread was running on a processor, possibly in user mode, or because it is not known
    /// that it was not.
    pub may_be_old: bool,
}

impl Registers {
    /// The registers with their names.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.words)
    }

    fn is_of_user_mode(&self) -> bool {
        let word = |index: usize| self.words.get(index).copied().unwrap_or_default();
        let is_user = |address: u64| address != 0 && address <= USER_POINTER_MAX;
        USER_CODE.contains(&(word(CS) & SELECTOR))
            && word(SS) & SELECTOR == USER_DATA
            && word(EFLAGS) & FLAGS_SET != 0
            && word(EFLAGS) & FLAGS_CLEAR == 0
            && is_user(word(RIP))
            && is_user(word(RSP))
    }
}

/// The offset of the registers from the start of a kernel stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64);

impl Place {
    /// The offset at which most of these threads have plausible registers.
    pub(super) fn find<'t>(kernel: &Kernel, layout: &Layout, threads: impl Iterator<Item = &'t Task>) -> Option<Self> {
        let threads: Vec<&Task> = threads.take(MAX_VOTES).collect();
        let size = (NAMES.len() * 8) as u64;
        let places = STACK_SIZES.iter().flat_map(|stack| PADDINGS.map(|padding| Self(stack - padding - size)));
        let votes = |place: &Self| threads.iter().filter(|task| place.read(kernel, layout, task).is_some()).count();
        elect(places.map(|place| (place, 0, Votes::significant(votes(&place))))).map(|(place, _)| place)
    }

    /// The registers of a thread, if they are plausible.
    pub(super) fn read(self, kernel: &Kernel, layout: &Layout, task: &Task) -> Option<Registers> {
        let address = kernel.pointer(task.address, layout.task.stack?)?.checked_add(self.0)?;
        let mut words = [0; NAMES.len()];
        for (index, word) in (0..).zip(&mut words) {
            *word = kernel.u64(address, index * 8)?;
        }
        let base = |offset: Option<u64>| kernel.u64(task.address, offset?);
        let registers = Registers {
            words,
            fs_base: base(layout.task.fs_base),
            gs_base: base(layout.task.gs_base),
            address,
            // What waits is in the kernel, whether a processor has left it already or not.
            may_be_old: task.is_running != Some(false) && task.state.is_none_or(|state| state.value == RUNNING),
        };
        registers.is_of_user_mode().then_some(registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_user_mode_are_told_from_others() {
        let mut words = [0; 21];
        words[RIP] = 0x7f00_0000_1000;
        words[RSP] = 0x7ffc_0000_0000;
        words[CS] = 0x33;
        words[SS] = 0x2b;
        words[EFLAGS] = 0x246;
        let of = |words| Registers { words, fs_base: None, gs_base: None, address: VirtAddr(0), may_be_old: false };
        assert!(of(words).is_of_user_mode());
        assert_eq!(of(words).named().last(), Some(("ss", 0x2b)));
        for (index, value) in [(CS, 0x10), (SS, 0x18), (EFLAGS, 0x244), (RIP, 0xffff_ffff_8100_0000), (RSP, 0)] {
            let mut changed = words;
            changed[index] = value;
            assert!(!of(changed).is_of_user_mode(), "{index} {value:#x}");
        }
    }
}
