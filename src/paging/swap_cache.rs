//! Swapped pages that are still in memory: the kernel's swap cache.
//!
//! A page that was read back from a swap device, often because its neighbour was needed, and one that is still being written
//! to it, lie in memory while the page-table entry names a slot on the device. Only the frame's `struct page` names that slot.

use std::collections::HashMap;

use super::page_structs::{self, MIN_VOTES, PAGE_FLAGS, PageStruct, PageStructs, Pick};
use super::release::kernel_release;
use super::tables::ENTRIES;
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::signature::{KernelFacts, Mmu, SwapSlot};

/// Bits of a slot's number. A page-table entry has no room for more.
const SLOT_BITS: u32 = 50;
/// The lowest bit of the device's number in `swp_entry_t` (include/linux/swapops.h): since 4.20, and before.
const DEVICE_SHIFT: [u32; 2] = [58, 57];
const SINCE: [u64; 2] = [4, 20];
/// Pages of a large page.
const MAX_PARTS: u64 = ENTRIES;

/// The first physical address of the page that the swap cache holds for a slot.
pub(super) fn cached_page(memory: &PhysicalMemory, mmu: &Mmu, slot: SwapSlot) -> Option<u64> {
    let facts = mmu.kernel.as_ref()?;
    facts.swap_cache.get_or_init(|| read(memory, mmu, facts).unwrap_or_default()).get(&slot).copied()
}

/// The frames of the swap cache; `None` where the array of `struct page` can't be found.
fn read(memory: &PhysicalMemory, mmu: &Mmu, facts: &KernelFacts) -> Option<HashMap<SwapSlot, u64>> {
    let rules = page_structs::rules(mmu);
    let array = PageStructs::find(memory, &rules, &facts.roots)?;
    let release = || *facts.release.get_or_init(|| kernel_release(memory));
    Some(swap_cache(&array, release))
}

/// The pages of the swap cache, by slot. A slot that two pages claim is left out.
fn swap_cache(array: &PageStructs<'_>, release: impl Fn() -> Option<[u64; 2]>) -> HashMap<SwapSlot, u64> {
    let candidates: Vec<(PhysAddr, PageStruct)> = array.pick(Pick::WithSlot);
    // A page that was read ahead belongs to no process yet. It counts once it has the flags that all pages of the swap cache
    // have: a page that is still being read lacks one of them.
    let anonymous = || candidates.iter().filter(|(_, found)| found.is_anonymous());
    let flags = anonymous().fold(PAGE_FLAGS, |flags, (_, found)| flags & found.flags);
    let has_examples = anonymous().count() >= MIN_VOTES && flags != 0;
    let is_read = |found: &PageStruct| has_examples && found.flags & flags == flags;
    let mut slots: HashMap<SwapSlot, Option<u64>> = HashMap::new();
    let mut add = |slot: SwapSlot, page: PhysAddr| {
        let known = slots.entry(slot).or_insert(Some(page.0));
        *known = known.filter(|known| *known == page.0);
    };
    for (page, found) in candidates.iter().filter(|(_, found)| found.is_anonymous() || is_read(found)) {
        let Some(first) = slot(found.private, &release) else { continue };
        add(first, *page);
        for (part, page) in (1..MAX_PARTS).zip(array.other_parts(*page)) {
            add(SwapSlot { number: first.number + part, ..first }, page);
        }
    }
    slots.into_iter().filter_map(|(slot, page)| Some((slot, page?))).collect()
}

/// The slot that a `swp_entry_t` names.
fn slot(value: u64, release: impl Fn() -> Option<[u64; 2]>) -> Option<SwapSlot> {
    let [now, before] = DEVICE_SHIFT;
    // Only the release tells which of the two it is, where they differ.
    let shift = match value >> before {
        0 => now,
        _ if release()? >= SINCE => now,
        _ => before,
    };
    let found = SwapSlot { device: value >> shift, number: value & ((1 << shift) - 1) };
    (found.number >> SLOT_BITS == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::super::test_machine::{ANONYMOUS, Machine, ROOT};
    use super::*;
    use crate::addr::{FRAME_SIZE, VirtAddr};
    use crate::paging::{AddressSpace, Fault, Gone};

    /// Bits of the flags: of a page that can be swapped, whose content is there, of the swap cache, and of one process alone.
    const SWAP_BACKED: u64 = 1 << 19;
    const UP_TO_DATE: u64 = 1 << 2;
    const CACHED: u64 = 1 << 10;
    const EXCLUSIVE: u64 = 1 << 17;
    const READ: u64 = SWAP_BACKED | UP_TO_DATE | CACHED | 1 << 60;

    fn machine() -> Machine {
        Machine::new(64)
    }

    /// Where the page is whose entry names a slot of a device.
    fn find(mut machine: Machine, device: u64, slot: u64) -> Result<u64, Gone> {
        let page = 100;
        machine.set_entry(page, device << 59 | (!slot & ((1 << 50) - 1)) << 9);
        let (memory, rules) = machine.finish();
        match AddressSpace::new(&memory, &rules, ROOT, 4).translate(VirtAddr(page * FRAME_SIZE)) {
            Ok(found) => Ok(found.pa.0 / FRAME_SIZE),
            Err(Fault::NotPresent { cause, .. }) => Err(cause),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_page_that_was_not_yet_freed_is_read() {
        let mut machine = machine();
        machine.describe(50, READ, ANONYMOUS, 100, 5);
        assert_eq!(find(machine, 0, 5), Ok(50));
    }

    #[test]
    fn a_page_that_was_read_ahead_is_read_if_its_content_is_there() {
        let swapped = Err(Gone::Swapped { device: 0, slot: 5 });
        for (examples, flags, expected) in [
            (MIN_VOTES as u64, READ, Ok(50)),
            (MIN_VOTES as u64, READ & !UP_TO_DATE, swapped),
            (MIN_VOTES as u64 - 1, READ, swapped),
        ] {
            let mut machine = machine();
            for index in 0..examples {
                let mapped = if index == 0 { 0 } else { EXCLUSIVE };
                machine.describe(16 + index, READ | mapped, ANONYMOUS, 200 + index, 100 + index);
            }
            machine.describe(50, flags, 0, 0, 5);
            assert_eq!(find(machine, 0, 5), expected, "{examples} {flags:#x}");
        }
    }

    #[test]
    fn a_slot_that_no_page_or_more_than_one_names_stays_on_the_device() {
        let swapped = |device, slot| Err(Gone::Swapped { device, slot });
        assert_eq!(find(machine(), 0, 5), swapped(0, 5));
        let mut twice = machine();
        twice.describe(50, READ, ANONYMOUS, 100, 5);
        twice.describe(51, READ, ANONYMOUS, 100, 5);
        assert_eq!(find(twice, 0, 5), swapped(0, 5));
        let mut other_device = machine();
        other_device.describe(50, READ, ANONYMOUS, 100, 5);
        assert_eq!(find(other_device, 1, 5), swapped(1, 5));
        let mut of_a_file = machine();
        of_a_file.describe(50, READ, ANONYMOUS & !1, 100, 5);
        assert_eq!(find(of_a_file, 0, 5), swapped(0, 5));
    }

    #[test]
    fn what_a_large_page_keeps_in_its_other_parts_is_no_slot() {
        let mut machine = machine();
        machine.describe(50, READ, ANONYMOUS, 100, 5);
        machine.describe(51, READ, ANONYMOUS, 100, 5);
        machine.set_struct(51, 1, 0xffff_8000_0000_0000 | 1);
        // Two counts.
        machine.describe(52, READ, 0x3_0000_0001, 100, 5);
        assert_eq!(find(machine, 0, 5), Ok(50));
    }

    #[test]
    fn too_few_pages_find_no_array() {
        let mut machine = machine();
        machine.describe(50, READ, ANONYMOUS, 100, 5);
        machine.describe(32, READ, ANONYMOUS, 1 << 40, 0);
        assert_eq!(find(machine, 0, 5), Err(Gone::Swapped { device: 0, slot: 5 }));
    }

    #[test]
    fn the_first_part_of_a_large_page_names_the_slots_of_all() {
        let mut machine = machine();
        machine.describe(50, READ, ANONYMOUS, 100, 64);
        for frame in [51, 52] {
            machine.set_struct(frame, 1, Machine::first_part(50));
        }
        assert_eq!(find(machine.clone(), 0, 66), Ok(52));
        assert_eq!(find(machine, 0, 67), Err(Gone::Swapped { device: 0, slot: 67 }));
    }

    #[test]
    fn the_device_is_where_the_release_has_it() {
        let value = |shift: u32| 1 << shift | 9;
        let of = |value, release| slot(value, || release).map(|slot| (slot.device, slot.number));
        assert_eq!(of(9, None), Some((0, 9)));
        assert_eq!(of(value(58), Some([6, 1])), Some((1, 9)));
        assert_eq!(of(value(57), Some([4, 19])), Some((1, 9)));
        assert_eq!(of(value(58), None), None);
        assert_eq!(of(value(57), Some([6, 1])), None, "a slot of 2^57 pages");
    }
}
