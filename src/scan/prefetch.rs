//! Asking for memory ahead of its use.

/// Asks for a cache line that is needed soon. Any address is allowed, mapped or not; does nothing where the CPU has no such
/// instruction.
#[inline(always)]
pub(super) fn prefetch(line: *const u8) {
    // SAFETY: the instruction is a hint, which reads nothing and faults at no address; all CPUs of the architecture have it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(line.cast());
    }
    // SAFETY: as on x86-64: a hint, which reads nothing and faults at no address.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = line;
}
