//! Page-table entries that are not present: which of them still name a frame, and what happened to the page otherwise.
//!
//! The processor ignores such an entry, so the operating system can use its bits. Linux keeps three kinds of them in
//! the user half:
//!
//! - *Protected*: the page is there and user mode may not reach it. NUMA balancing makes pages so to see who uses them,
//!   `mprotect(PROT_NONE)` for good. The frame's number is inverted since the kernel has the fix for L1TF.
//! - *Special swap entries*: a page that is being moved to another frame, or that a device shares, still lies in the frame
//!   that the entry names.
//! - *Swap entries*: device and slot. The page may be in memory as well (`swap_cache.rs`).
//!
//! A frame only counts if it is in the dump, because the number could be anything.

use std::fmt;

use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::PhysicalMemory;
use crate::signature::{AbsentEntries, Leaf, Mmu, MmuLevel, SpecialTypes, SwapSlot};

use super::release::kernel_release;
use super::swap_cache::cached_page;
use super::tables::{is_leaf, table_entries};

/// Highest physical address bits of 5-level and 4-level kernels (MAX_PHYSMEM_BITS in arch/x86/include/asm/sparsemem.h). An
/// entry of a page that is being moved keeps flags above them, since 6.1.
const PHYSICAL_BITS: [u32; 2] = [52, 46];

/// The first megabyte belongs to the firmware.
const LOW_MEMORY: u64 = 1 << 20;

/// What happened to a page whose entry is not present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The entry is zero: no page was ever given to the address, or it was given back.
    Untouched,
    /// The page is on a swap device, and not in the dump's swap cache.
    Swapped {
        /// Number of the swap device.
        device: u64,
        /// Slot on the device, in pages.
        slot: u64,
    },
    /// The page is protected or is being moved, and the dump does not hold its frame.
    FrameNotInDump {
        /// The first address of the page.
        page: PhysAddr,
    },
    /// The frame had, or may have had, a memory error: its contents can't be trusted.
    Broken {
        /// The first address of the page.
        page: PhysAddr,
    },
    /// The page is in device memory.
    OnDevice,
    /// A guard page: no page belongs there.
    Guard,
    /// The entry has no known form.
    Unknown,
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untouched => write!(f, "was never touched, or was given back to the kernel"),
            Self::Swapped { device, slot } => write!(f, "is swapped out: swap device {device}, slot {slot:#x}"),
            Self::FrameNotInDump { page } => {
                write!(f, "is protected or being moved, and its page at physical address {page} is not in the dump")
            }
            Self::Broken { page } => {
                write!(f, "is at physical address {page}, which the kernel may have retired after a memory error")
            }
            Self::OnDevice => write!(f, "was moved to device memory"),
            Self::Guard => write!(f, "is in a guard page, or in another marker entry without a page"),
            Self::Unknown => write!(f, "is not present, for an unknown reason"),
        }
    }
}

/// The first physical address of the page that an entry which is not present still names, if it lies in the dump.
///
/// # Errors
/// What happened to the page.
pub(super) fn hidden_page(memory: &PhysicalMemory, mmu: &Mmu, rules: &MmuLevel, entry: u64) -> Result<u64, Gone> {
    if entry == 0 {
        return Err(Gone::Untouched);
    }
    let Some(absent) = mmu.absent.as_ref().filter(|_| rules.leaf != Leaf::Never) else { return Err(Gone::Unknown) };
    let size = 1u64 << rules.shift;
    let in_dump = |page: u64| page != 0 && holds_part(memory, page, size);
    // A large page that is being split has neither bit, but is still marked as large.
    let is_page = is_leaf(mmu, rules, entry) && (entry & absent.protected != 0 || rules.leaf == Leaf::ByLeafBit);
    if is_page {
        let pages = [!entry, entry].map(|entry| entry & mmu.address & !(size - 1));
        if let Some(page) = pages.into_iter().find(|page| in_dump(*page)) {
            return Ok(page);
        }
        let below_end = pages.into_iter().find(|page| *page != 0 && *page < memory.end().0);
        return Err(below_end.map_or(Gone::Unknown, |page| Gone::FrameNotInDump { page: PhysAddr(page) }));
    }
    if entry & (absent.swap_zero | absent.protected) != 0 {
        return Err(Gone::Unknown);
    }
    // Slots are small numbers; read in the wrong form they are not.
    let form = absent.swap.iter().min_by_key(|form| form.offset_of(entry)).ok_or(Gone::Unknown)?;
    let (kind, offset) = (form.kind_of(entry), form.offset_of(entry));
    if kind < absent.first_special {
        let cached = || cached_page(memory, mmu, SwapSlot { device: kind, number: offset });
        let cached = (rules.leaf == Leaf::Always).then(cached).flatten().filter(|page| in_dump(*page));
        return cached.ok_or(Gone::Swapped { device: kind, slot: offset });
    }
    let release = mmu.kernel.as_ref().and_then(|kernel| *kernel.release.get_or_init(|| kernel_release(memory)));
    special(release, absent, (kind, offset), in_dump)
}

/// The same for a swap entry of a special type.
fn special(
    release: Option<[u64; 2]>,
    absent: &AbsentEntries,
    (kind, offset): (u64, u64),
    in_dump: impl Fn(u64) -> bool,
) -> Result<u64, Gone> {
    let within = |range: [u64; 2]| (range[0]..=range[1]).contains(&kind);
    let any = |holds: &dyn Fn(&SpecialTypes) -> bool| absent.special_of(release).any(holds);
    let pages = PHYSICAL_BITS.map(|bits| (offset & ((1 << (bits - FRAME_SIZE.ilog2())) - 1)) * FRAME_SIZE);
    let page = pages.into_iter().find(|page| in_dump(*page));
    // Marks are small numbers, which as frames are the first of the machine: no process has those.
    if any(&|types| types.marker == Some(kind)) && offset < LOW_MEMORY / FRAME_SIZE {
        return Err(Gone::Guard);
    }
    let [_, likely] = pages;
    if any(&|types| types.broken == kind) {
        return Err(Gone::Broken { page: PhysAddr(page.unwrap_or(likely)) });
    }
    let moved = any(&|types| within(types.migrating));
    let shared = any(&|types| types.device.is_some_and(within));
    match page {
        Some(page) if moved || shared => Ok(page),
        // Where the type could mean either, this much is true.
        None if moved => Err(Gone::FrameNotInDump { page: PhysAddr(likely) }),
        None if shared => Err(Gone::OnDevice),
        _ => Err(Gone::Unknown),
    }
}

/// Whether the dump holds a byte of these.
fn holds_part(memory: &PhysicalMemory, start: u64, len: u64) -> bool {
    let after = memory.ranges().partition_point(|range| range.end.0 <= start);
    memory.ranges().get(after).is_some_and(|range| range.start.0 < start.saturating_add(len))
}

/// The levels of which a frame without present entries could be a table: bit `level - 1` is set where all its entries have a
/// form that is known there, and one names a page.
pub(super) fn hidden_levels(memory: &PhysicalMemory, mmu: &Mmu, frame: &[u8]) -> u8 {
    let could_be = |rules: &&MmuLevel| {
        let mut named = false;
        let known = table_entries(frame).filter(|entry| *entry != 0).all(|entry| {
            let found = hidden_page(memory, mmu, rules, entry);
            named |= found.is_ok();
            !matches!(found, Err(Gone::Unknown))
        });
        known && named
    };
    mmu.levels.iter().filter(could_be).fold(0, |mask, rules| mask | 1 << (rules.level - 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::addr::FileOffset;
    use crate::dump::MemoryRange;
    use crate::signature::{KernelFacts, Signatures};

    /// A mebibyte from 16 MiB on, and 4 MiB that begin in the middle of a large page.
    fn memory() -> PhysicalMemory {
        let range = |start, len, offset| MemoryRange {
            start: PhysAddr(start),
            end: PhysAddr(start + len),
            offset: FileOffset(offset),
        };
        PhysicalMemory::owned(vec![0; 5 << 20], vec![range(16 << 20, 1 << 20, 0), range(33 << 20, 4 << 20, 1 << 20)])
            .unwrap()
    }

    fn rules(release: Option<[u64; 2]>) -> Mmu {
        let mut mmu = Signatures::load(None).unwrap().mmu().unwrap().clone();
        mmu.kernel = Some(KernelFacts { release: release.into(), ..KernelFacts::default() });
        mmu
    }

    fn read(mmu: &Mmu, level: u8, entry: u64) -> Result<u64, Gone> {
        hidden_page(&memory(), mmu, mmu.level(level).unwrap(), entry)
    }

    #[test]
    fn a_frame_is_taken_as_it_is_or_inverted_whichever_lies_in_the_dump() {
        let mmu = rules(None);
        let inverted = |page: u64| !page & 0x000f_ffff_ffff_f000;
        for flags in [0x120, 0x100, 0x160] {
            assert_eq!(read(&mmu, 1, inverted(0x100_3000) | flags), Ok(0x100_3000));
            assert_eq!(read(&mmu, 1, 0x100_3000 | flags), Ok(0x100_3000));
            // The kernel inverts the low bits of a large page's frame as well.
            assert_eq!(read(&mmu, 2, inverted(0x220_0000) | 0x80 | flags), Ok(0x220_0000));
            assert_eq!(read(&mmu, 2, 0x220_0000 | 0x80 | flags), Ok(0x220_0000));
            assert_eq!(read(&mmu, 3, inverted(0) | 0x80 | flags), Err(Gone::Unknown), "frame 0 is no one's");
        }
        // While a large page is split, it has neither bit.
        assert_eq!(read(&mmu, 2, inverted(0x220_0000) | 0x80), Ok(0x220_0000));
        assert_eq!(
            read(&mmu, 1, inverted(0x180_0000) | 0x120),
            Err(Gone::FrameNotInDump { page: PhysAddr(0x180_0000) })
        );
        assert_eq!(read(&mmu, 1, inverted(1 << 40) | 0x120), Err(Gone::Unknown));
        assert_eq!(read(&mmu, 4, inverted(0x100_3000) | 0x120), Err(Gone::Unknown));
    }

    #[test]
    fn special_types_mean_what_they_mean_in_the_kernel_of_the_dump() {
        let entry = |kind: u64, page: u64| kind << 59 | (!(page >> 12) & ((1 << 50) - 1)) << 9;
        let page = 0x100_3000;
        let broken = Err(Gone::Broken { page: PhysAddr(page) });
        for (release, kind, expected) in [
            (Some([6, 1]), 22, broken),
            (Some([6, 1]), 23, Ok(page)),
            (Some([6, 1]), 25, Ok(page)),
            (Some([6, 12]), 23, broken),
            (Some([6, 12]), 26, Ok(page)),
            (Some([7, 2]), 24, broken),
            (Some([5, 10]), 28, Ok(page)),
            (Some([5, 10]), 23, Err(Gone::Unknown)),
            (Some([4, 9]), 30, Ok(page)),
            // It could be either.
            (None, 23, broken),
            (None, 28, Ok(page)),
            (None, 30, Ok(page)),
        ] {
            assert_eq!(read(&rules(release), 1, entry(kind, page)), expected, "{release:?} {kind}");
        }
        let mmu = rules(Some([6, 12]));
        assert_eq!(read(&mmu, 2, entry(25, 0x220_0000)), Ok(0x220_0000));
        assert_eq!(read(&mmu, 1, entry(31, 4 << 12)), Err(Gone::Guard));
        assert_eq!(read(&rules(Some([5, 15])), 1, entry(28, 1 << 45)), Err(Gone::OnDevice));
    }

    proptest! {
        #[test]
        fn no_entry_leads_out_of_the_dump(entry: u64, flags in 0..0x1000u64, near in 0..64u64 << 20, level in 1..=5u8) {
            let mmu = rules(None);
            for entry in [entry, !near & !0xfff | flags, near & !0xfff | flags] {
                if let Ok(page) = read(&mmu, level, entry & !1) {
                    let size = 1 << mmu.level(level).unwrap().shift;
                    prop_assert!(page.is_multiple_of(FRAME_SIZE) && holds_part(&memory(), page, size));
                    prop_assert!(page != 0 && level <= 3);
                }
            }
        }
    }
}
