//! Swapped pages that are still in memory: the kernel's swap cache.
//!
//! A page that was read back from a swap device, often because its neighbour was needed, and one that is still being written
//! to it, lie in memory while the page-table entry names a slot on the device. Only the frame's `struct page` names that slot.
//!
//! Nothing says where the array of `struct page` begins. The anonymous pages of processes decide: the `struct page` of such a
//! page holds the page number of its virtual address (`index`).

use std::collections::HashMap;
use std::ops::Range;

use super::absent::Gone;
use super::release::kernel_release;
use super::space::Mapping;
use super::tables::{ENTRIES, PageTables};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::signature::{KERNEL_POINTER_MIN, KernelFacts, Mmu, SwapSlot};

/// Bytes of a `struct page`: one cache line on x86-64 (include/linux/mm_types.h, `_struct_page_alignment`).
pub(crate) const PAGE_STRUCT_SIZE: u64 = 64;
/// With KASLR the array begins at a multiple of this (`PUD_SIZE`, arch/x86/mm/kaslr.c), and without it as well.
const ARRAY_ALIGN: u64 = 1 << 30;
/// Words of a `struct page`.
const WORDS: usize = (PAGE_STRUCT_SIZE / 8) as usize;
/// The words of a `struct page` (include/linux/mm_types.h, include/linux/page-flags.h). `flags`, of which the high bits are about
/// the place of the page (page-flags-layout.h); the pointer from a part of a large page to its first part, with a bit set.
const FLAGS: usize = 0;
const PAGE_FLAGS: u64 = (1 << 20) - 1;
const COMPOUND_HEAD: usize = 1;
const IS_PART: u64 = 1;
/// `mapping` is before `index`, and of an anonymous page it has a bit set. `private` is behind it, since 4.18; in a page of the
/// swap cache that is its slot, and of other anonymous pages it is zero.
const BEFORE_INDEX: usize = 1;
const IS_ANONYMOUS: u64 = 1;
const AFTER_INDEX: usize = 1;
/// Bits of a slot's number. A page-table entry has no room for more.
const SLOT_BITS: u32 = 50;
/// The lowest bit of the device's number in `swp_entry_t` (include/linux/swapops.h): since 4.20, and before.
const DEVICE_SHIFT: [u32; 2] = [58, 57];
const SINCE: [u64; 2] = [4, 20];
/// Address spaces whose pages vote, pages of each that are looked at, and of these the ones that vote.
const MAX_SPACES: usize = 32;
const MAX_PAGES: usize = 1 << 12;
const MAX_VOTERS: usize = 1 << 9;
/// Page tables of a space that are read for them.
const MAX_TABLES: u64 = 1 << 10;
/// Addresses that are tried.
const MAX_ARRAYS: usize = 1 << 12;
/// Pages that must agree. A wrong address of the array gives none: a page number has 36 bits.
const MIN_VOTES: usize = 8;
/// Pages of a large page.
const MAX_PARTS: u64 = ENTRIES;

/// The first physical address of the page that the swap cache holds for a slot.
pub(super) fn cached_page(memory: &PhysicalMemory, mmu: &Mmu, slot: SwapSlot) -> Option<u64> {
    let facts = mmu.kernel.as_ref()?;
    facts.swap_cache.get_or_init(|| read(memory, mmu, facts).unwrap_or_default()).get(&slot).copied()
}

/// Where the array of `struct page` may begin, by what the kernel half maps.
pub(crate) fn page_struct_arrays(mappings: &[Mapping]) -> impl Iterator<Item = VirtAddr> {
    let starts = mappings.iter().map(|mapping| mapping.va);
    starts.filter(|va| va.0.is_multiple_of(ARRAY_ALIGN)).take(MAX_ARRAYS)
}

/// A page of a process: its virtual address and its frame.
type UserPage = (VirtAddr, PhysAddr);

/// The frames of the swap cache; `None` where the array of `struct page` can't be found.
fn read(memory: &PhysicalMemory, mmu: &Mmu, facts: &KernelFacts) -> Option<HashMap<SwapSlot, u64>> {
    // What is read here must not ask for the swap cache.
    let rules = Mmu { kernel: None, ..mmu.clone() };
    let tables = |(root, levels): &(PhysAddr, u8)| PageTables::new(memory, &rules, *root, *levels);
    let pages: Vec<UserPage> = facts.roots.iter().take(MAX_SPACES).flat_map(|root| user_pages(&tables(root))).collect();
    let step = pages.len().div_ceil(MAX_VOTERS).max(1);
    let voters: Vec<UserPage> = pages.into_iter().step_by(step).collect();
    let array = facts.roots.iter().take(MAX_SPACES).find_map(|root| PageStructs::find(&tables(root), &voters))?;
    let release = || *facts.release.get_or_init(|| kernel_release(memory));
    Some(array.swap_cache(memory, release))
}

/// The 4 KiB pages of a process, those with the lowest addresses.
fn user_pages(tables: &PageTables<'_>) -> Vec<UserPage> {
    let mut pages = Vec::new();
    let see = |part: Range<u64>, page: Result<u64, Gone>, _: &mut u64| {
        if let Some(page) = page.ok().filter(|_| part.end - part.start == FRAME_SIZE) {
            pages.push((VirtAddr(part.start), PhysAddr(page)));
        }
        (pages.len() < MAX_PAGES).then_some(())
    };
    // That it ends early is meant.
    let _ = tables.walk(VirtAddr(0)..VirtAddr(u64::MAX), &mut MAX_TABLES.clone(), see);
    pages
}

/// The array with a `struct page` for each frame of memory (`vmemmap`, Documentation/arch/x86/x86_64/mm.rst).
struct PageStructs<'a> {
    tables: PageTables<'a>,
    start: VirtAddr,
    /// The word that is the page number of the virtual address.
    index: usize,
}

/// A page that may be in the swap cache.
#[derive(Clone, Copy)]
struct Candidate {
    page: PhysAddr,
    flags: u64,
    private: u64,
    is_anonymous: bool,
}

impl<'a> PageStructs<'a> {
    /// The array that most pages agree on, of those that a kernel half may show.
    fn find(tables: &PageTables<'a>, voters: &[UserPage]) -> Option<Self> {
        let mappings = tables.kernel_mappings();
        let votes = |start: VirtAddr| {
            let array = Self { tables: *tables, start, index: 0 };
            let mut counts = [0usize; WORDS];
            for (va, page) in voters {
                let words = array.of_frame(*page).unwrap_or_default();
                for (count, word) in counts.iter_mut().zip(words) {
                    *count += usize::from(word == va.0 / FRAME_SIZE);
                }
            }
            // The first page of a process is not at address 0: an empty word agrees with no page.
            let best = (0..WORDS).zip(counts).max_by_key(|(_, count)| *count);
            best.map(|(index, count)| (count, Self { index, ..array }))
        };
        let best = page_struct_arrays(&mappings).filter_map(votes).max_by_key(|(count, _)| *count);
        best.filter(|(count, array)| *count >= MIN_VOTES && array.index >= BEFORE_INDEX).map(|(_, array)| array)
    }

    /// The address of the `struct page` of a frame.
    fn address(&self, page: PhysAddr) -> Option<VirtAddr> {
        self.start.checked_add((page.0 / FRAME_SIZE).checked_mul(PAGE_STRUCT_SIZE)?)
    }

    /// The `struct page` of a frame.
    fn of_frame(&self, page: PhysAddr) -> Option<[u64; WORDS]> {
        let va = self.address(page)?;
        let pa = self.tables.translate(va).ok()?.pa;
        let (words, _) = self.tables.memory().bytes(pa, PAGE_STRUCT_SIZE)?.as_chunks();
        let mut found = [0; WORDS];
        for (found, word) in found.iter_mut().zip(words) {
            *found = u64::from_le_bytes(*word);
        }
        Some(found)
    }

    /// The pages of the swap cache, by slot. A slot that two pages claim is left out.
    fn swap_cache(&self, memory: &PhysicalMemory, release: impl Fn() -> Option<[u64; 2]>) -> HashMap<SwapSlot, u64> {
        let frames = memory.ranges().iter().map(PhysicalMemory::frames);
        let candidates: Vec<Candidate> = frames.flat_map(|frames| self.candidates(frames)).collect();
        // A page that was read ahead belongs to no process yet. It counts once it has the flags that all pages of the swap cache
        // have: a page that is still being read lacks one of them.
        let anonymous = || candidates.iter().filter(|candidate| candidate.is_anonymous);
        let flags = anonymous().fold(PAGE_FLAGS, |flags, candidate| flags & candidate.flags);
        let has_examples = anonymous().count() >= MIN_VOTES && flags != 0;
        let is_read = |candidate: &Candidate| has_examples && candidate.flags & flags == flags;
        let mut found: HashMap<SwapSlot, Option<u64>> = HashMap::new();
        let mut add = |slot: SwapSlot, page: PhysAddr| {
            let known = found.entry(slot).or_insert(Some(page.0));
            *known = known.filter(|known| *known == page.0);
        };
        for candidate in candidates.iter().filter(|candidate| candidate.is_anonymous || is_read(candidate)) {
            let Some(first) = slot(candidate.private, &release) else { continue };
            add(first, candidate.page);
            for (part, page) in (1..MAX_PARTS).zip(self.other_parts(candidate.page)) {
                add(SwapSlot { number: first.number + part, ..first }, page);
            }
        }
        found.into_iter().filter_map(|(slot, page)| Some((slot, page?))).collect()
    }

    /// The anonymous pages of a range of frames, and those of no file, that have a value in `private`.
    fn candidates(&self, frames: Range<PhysAddr>) -> Vec<Candidate> {
        let mut found = Vec::new();
        let mut page = frames.start;
        while page < frames.end {
            // The part of the array that one page of it holds is read at once.
            let Some(va) = self.address(page) else { break };
            let here = (FRAME_SIZE - va.0 % FRAME_SIZE) / PAGE_STRUCT_SIZE;
            let bytes =
                self.tables.translate(va).ok().and_then(|at| self.tables.memory().bytes_from(at.pa, FRAME_SIZE));
            let (structs, _) = bytes.unwrap_or_default().as_chunks::<{ PAGE_STRUCT_SIZE as usize }>();
            let pages = (page.0..frames.end.0).step_by(FRAME_SIZE as usize).take(here as usize);
            found.extend(pages.zip(structs).filter_map(|(page, bytes)| {
                let (words, _) = bytes.as_chunks();
                let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
                let (mapping, private) = (word(self.index - BEFORE_INDEX), word(self.index + AFTER_INDEX));
                // The other parts of a large page keep counts where its first part has `mapping`.
                let is_part = word(COMPOUND_HEAD) & IS_PART != 0;
                let is_anonymous = mapping & IS_ANONYMOUS != 0 && mapping >= KERNEL_POINTER_MIN;
                let is_slot = !is_part && private != 0 && private >> (u64::BITS - 1) == 0;
                (is_slot && (is_anonymous || mapping == 0)).then(|| Candidate {
                    page: PhysAddr(page),
                    flags: word(FLAGS) & PAGE_FLAGS,
                    private,
                    is_anonymous,
                })
            }));
            page = PhysAddr(page.0.saturating_add(here * FRAME_SIZE));
        }
        found
    }

    /// The other frames of the large page that begins at a frame; none if it is no large page.
    fn other_parts(&self, first: PhysAddr) -> impl Iterator<Item = PhysAddr> {
        let head = self.address(first).map(|va| va.0 | IS_PART);
        let frames = (1..).map_while(move |part| first.checked_add(part * FRAME_SIZE));
        frames.take_while(move |frame| {
            self.of_frame(*frame).is_some_and(|words| words.get(COMPOUND_HEAD).copied() == head)
        })
    }
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
    use std::sync::Arc;

    use super::*;
    use crate::addr::FileOffset;
    use crate::dump::MemoryRange;
    use crate::paging::{AddressSpace, Discovery, Fault, Gone, Space, SpaceKind};
    use crate::signature::Signatures;

    const FRAMES: u64 = 64;
    const PRESENT: u64 = 0x7;
    const ROOT: u64 = 0x1000;
    /// The frame that holds the array, and where the kernel half shows it.
    const ARRAY: u64 = 0x8000;
    const ARRAY_INDEX: u64 = 300;
    /// Bits of the flags: of a page that can be swapped, whose content is there, of the swap cache, and of one process alone.
    const SWAP_BACKED: u64 = 1 << 19;
    const UP_TO_DATE: u64 = 1 << 2;
    const CACHED: u64 = 1 << 10;
    const EXCLUSIVE: u64 = 1 << 17;
    const READ: u64 = SWAP_BACKED | UP_TO_DATE | CACHED | 1 << 60;
    const ANONYMOUS: u64 = 0xffff_8880_0000_1231;

    struct Machine(Vec<u8>);

    impl Machine {
        /// A process with anonymous pages, and the array of `struct page` as a kernel half shows it.
        fn new() -> Self {
            let mut machine = Self(vec![0; (FRAMES * FRAME_SIZE) as usize]);
            for (table, next) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
                machine.set(table, next | PRESENT);
            }
            machine.set(ROOT + ARRAY_INDEX * 8, 0x5000 | PRESENT);
            for (table, next) in [(0x5000, 0x6000), (0x6000, 0x7000), (0x7000, ARRAY)] {
                machine.set(table, next | PRESENT);
            }
            for index in 0..MIN_VOTES as u64 {
                let frame = 32 + index;
                machine.set(0x4000 + (16 + index) * 8, (frame * FRAME_SIZE) | PRESENT);
                machine.describe(frame, SWAP_BACKED | UP_TO_DATE | EXCLUSIVE, ANONYMOUS, 16 + index, 0);
            }
            machine
        }

        fn set(&mut self, at: u64, word: u64) {
            self.0[at as usize..at as usize + 8].copy_from_slice(&word.to_le_bytes());
        }

        fn describe(&mut self, frame: u64, flags: u64, mapping: u64, index: u64, private: u64) {
            for (word, value) in [(0, flags), (3, mapping), (4, index), (5, private)] {
                self.set(ARRAY + frame * PAGE_STRUCT_SIZE + word * 8, value);
            }
        }

        /// Where the page is whose entry names a slot of a device.
        fn find(mut self, device: u64, slot: u64) -> Result<u64, Gone> {
            let page = 100;
            self.set(0x4000 + page * 8, device << 59 | (!slot & ((1 << 50) - 1)) << 9);
            let end = PhysAddr(self.0.len() as u64);
            let range = MemoryRange { start: PhysAddr(0), end, offset: FileOffset(0) };
            let memory = Arc::new(PhysicalMemory::owned(self.0, vec![range]).unwrap());
            let root = PhysAddr(ROOT);
            let space = Space { root, levels: 4, kind: SpaceKind::Process, kpti_user_root: None };
            let discovery = Discovery { spaces: vec![space], ..Discovery::default() };
            let rules = Arc::new(discovery.rules(Signatures::load(None).unwrap().mmu().unwrap()));
            match AddressSpace::new(&memory, &rules, root, 4).translate(VirtAddr(page * FRAME_SIZE)) {
                Ok(found) => Ok(found.pa.0 / FRAME_SIZE),
                Err(Fault::NotPresent { cause, .. }) => Err(cause),
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_page_that_was_not_yet_freed_is_read() {
        let mut machine = Machine::new();
        machine.describe(50, READ, ANONYMOUS, 100, 5);
        assert_eq!(machine.find(0, 5), Ok(50));
    }

    #[test]
    fn a_page_that_was_read_ahead_is_read_if_its_content_is_there() {
        let swapped = Err(Gone::Swapped { device: 0, slot: 5 });
        for (examples, flags, expected) in [
            (MIN_VOTES as u64, READ, Ok(50)),
            (MIN_VOTES as u64, READ & !UP_TO_DATE, swapped),
            (MIN_VOTES as u64 - 1, READ, swapped),
        ] {
            let mut machine = Machine::new();
            for index in 0..examples {
                let mapped = if index == 0 { 0 } else { EXCLUSIVE };
                machine.describe(16 + index, READ | mapped, ANONYMOUS, 200 + index, 100 + index);
            }
            machine.describe(50, flags, 0, 0, 5);
            assert_eq!(machine.find(0, 5), expected, "{examples} {flags:#x}");
        }
    }

    #[test]
    fn a_slot_that_no_page_or_more_than_one_names_stays_on_the_device() {
        let swapped = |device, slot| Err(Gone::Swapped { device, slot });
        assert_eq!(Machine::new().find(0, 5), swapped(0, 5));
        let mut twice = Machine::new();
        twice.describe(50, READ, ANONYMOUS, 100, 5);
        twice.describe(51, READ, ANONYMOUS, 100, 5);
        assert_eq!(twice.find(0, 5), swapped(0, 5));
        let mut other_device = Machine::new();
        other_device.describe(50, READ, ANONYMOUS, 100, 5);
        assert_eq!(other_device.find(1, 5), swapped(1, 5));
        let mut of_a_file = Machine::new();
        of_a_file.describe(50, READ, ANONYMOUS & !IS_ANONYMOUS, 100, 5);
        assert_eq!(of_a_file.find(0, 5), swapped(0, 5));
    }

    #[test]
    fn what_a_large_page_keeps_in_its_other_parts_is_no_slot() {
        let mut machine = Machine::new();
        machine.describe(50, READ, ANONYMOUS, 100, 5);
        machine.describe(51, READ, ANONYMOUS, 100, 5);
        machine.set(ARRAY + 51 * PAGE_STRUCT_SIZE + 8, 0xffff_8000_0000_0000 | IS_PART);
        // Two counts.
        machine.describe(52, READ, 0x3_0000_0001, 100, 5);
        assert_eq!(machine.find(0, 5), Ok(50));
    }

    #[test]
    fn too_few_pages_find_no_array() {
        let mut machine = Machine::new();
        machine.describe(50, READ, ANONYMOUS, 100, 5);
        machine.describe(32, READ, ANONYMOUS, 1 << 40, 0);
        assert_eq!(machine.find(0, 5), Err(Gone::Swapped { device: 0, slot: 5 }));
    }

    #[test]
    fn the_first_part_of_a_large_page_names_the_slots_of_all() {
        let mut machine = Machine::new();
        machine.describe(50, READ, ANONYMOUS, 100, 64);
        let head = (0xffff << 48) + (ARRAY_INDEX << 39) + 50 * PAGE_STRUCT_SIZE;
        for frame in [51, 52] {
            machine.set(ARRAY + frame * PAGE_STRUCT_SIZE + 8, head | IS_PART);
        }
        assert_eq!(Machine(machine.0.clone()).find(0, 66), Ok(52));
        assert_eq!(machine.find(0, 67), Err(Gone::Swapped { device: 0, slot: 67 }));
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
