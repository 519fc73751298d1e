//! Where the facts of a process stand in the notes of a core.
//!
//! The layouts are those of x86-64 in include/uapi/linux/elfcore.h and arch/x86/include/asm/user_64.h.

use std::ops::Range;

/// Bytes of `struct elf_prstatus` (NT_PRSTATUS), one for each thread; then its id, its parent's id, and its registers.
pub(crate) const PRSTATUS: usize = 336;
pub(crate) const PRSTATUS_PID: usize = 32;
pub(crate) const PRSTATUS_PPID: usize = 36;
pub(crate) const PRSTATUS_REGISTERS: usize = 112;

/// Bytes of `struct elf_prpsinfo` (NT_PRPSINFO), one for the process, and what stands in it. The texts end with a NUL.
pub(crate) const PRPSINFO: usize = 136;
pub(crate) const PRPSINFO_STATE: usize = 0;
pub(crate) const PRPSINFO_LETTER: usize = 1;
pub(crate) const PRPSINFO_ZOMBIE: usize = 2;
pub(crate) const PRPSINFO_UID: usize = 16;
pub(crate) const PRPSINFO_GID: usize = 20;
pub(crate) const PRPSINFO_PID: usize = 24;
pub(crate) const PRPSINFO_PPID: usize = 28;
pub(crate) const PRPSINFO_NAME: Range<usize> = 40..56;
pub(crate) const PRPSINFO_ARGUMENTS: Range<usize> = 56..136;

/// An id that no user and no group has.
pub(crate) const NO_ID: u32 = u32::MAX;
