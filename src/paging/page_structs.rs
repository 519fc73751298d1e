//! The kernel's array with a `struct page` for each frame of memory (`vmemmap`, Documentation/arch/x86/x86_64/mm.rst).
//!
//! Nothing says where the array begins. The anonymous pages of processes decide: the `struct page` of such a page holds the page
//! number of its virtual address (`index`).

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::absent::Gone;
use super::space::Mapping;
use super::tables::PageTables;
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::dump::{PhysicalMemory, Question, ShardMemory, ShardPart};
use crate::signature::{KERNEL_POINTER_MIN, Mmu};

/// Bytes of a `struct page`: one cache line on x86-64 (include/linux/mm_types.h, `_struct_page_alignment`).
pub(crate) const PAGE_STRUCT_SIZE: u64 = 64;
/// With KASLR the array begins at a multiple of this (`PUD_SIZE`, arch/x86/mm/kaslr.c), and without it as well.
const ARRAY_ALIGN: u64 = 1 << 30;
/// Words of a `struct page`.
const WORDS: usize = (PAGE_STRUCT_SIZE / 8) as usize;
/// The words of a `struct page` (include/linux/mm_types.h, include/linux/page-flags.h). `flags`, of which the high bits are about
/// the place of the page (page-flags-layout.h); the pointer from a part of a large page to its first part, with a bit set.
const FLAGS: usize = 0;
pub(super) const PAGE_FLAGS: u64 = (1 << 20) - 1;
const COMPOUND_HEAD: usize = 1;
const IS_PART: u64 = 1;
/// `mapping` is before `index`, and of an anonymous page it has a bit set. `private` is behind it, since 4.18; in a page of the
/// swap cache that is its slot, and of other anonymous pages it is zero.
const BEFORE_INDEX: usize = 1;
const IS_ANONYMOUS: u64 = 1;
const AFTER_INDEX: usize = 1;
/// Behind `private`: in the upper half of the word how many use the page (`_refcount`).
const AFTER_PRIVATE: usize = 2;
const REFERENCES: u32 = 32;
/// The links of the list that a page is in, and what the kernel writes there when it takes one out (`LIST_POISON1` of
/// include/linux/poison.h); addresses in the kernel are greater. A part of a large page has zero there when it is freed.
const LINKS: usize = COMPOUND_HEAD;
const LIST_POISON: u64 = 0xdead_0000_0000_0000;
/// Address spaces whose pages vote, pages of each that are looked at, and of these the ones that vote.
const MAX_SPACES: usize = 32;
const MAX_PAGES: usize = 1 << 12;
const MAX_VOTERS: usize = 1 << 9;
/// Page tables of a space that are read for them.
const MAX_TABLES: u64 = 1 << 10;
/// Addresses that are tried.
const MAX_ARRAYS: usize = 1 << 12;
/// Pages that must agree. A wrong address of the array gives none: a page number has 36 bits.
pub(super) const MIN_VOTES: usize = 4;

/// Where the array of `struct page` may begin, by what the kernel half maps.
pub(crate) fn page_struct_arrays(mappings: &[Mapping]) -> impl Iterator<Item = VirtAddr> {
    let starts = mappings.iter().map(|mapping| mapping.va);
    starts.filter(|va| va.0.is_multiple_of(ARRAY_ALIGN)).take(MAX_ARRAYS)
}

/// The rules by which the array is read: without the swap cache, which is found through the array.
pub(super) fn rules(mmu: &Mmu) -> Mmu {
    Mmu { kernel: None, ..mmu.clone() }
}

/// A page of a process: its virtual address and its frame.
type UserPage = (VirtAddr, PhysAddr);

/// The array with a `struct page` for each frame of memory.
pub(super) struct PageStructs<'a> {
    tables: PageTables<'a>,
    start: VirtAddr,
    /// The word that is the page number of the virtual address.
    index: usize,
}

/// The `struct page` of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PageStruct {
    /// Those of its flags that are not about the place of the page.
    pub(super) flags: u64,
    /// Whether it is a part of a large page, but not the first.
    pub(super) is_part: bool,
    /// Whether nobody uses the page.
    pub(super) is_free: bool,
    /// Whether the page was freed by itself, and not as a part of a large page: the kernel has had it in a list of its own.
    pub(super) has_links: bool,
    /// Whom the page belongs to: zero if nobody.
    pub(super) mapping: u64,
    /// Its place there: of an anonymous page, the page number of its virtual address.
    pub(super) index: u64,
    /// What its owner keeps of it.
    pub(super) private: u64,
}

impl PageStruct {
    /// What the words of a `struct page` say; `index` is the word with the page number, not the first.
    fn new(words: [u64; WORDS], index: usize) -> Self {
        let word = |index: usize| words.get(index).copied().unwrap_or_default();
        let mapping = word(index.wrapping_sub(BEFORE_INDEX));
        Self {
            flags: word(FLAGS) & PAGE_FLAGS,
            is_part: word(COMPOUND_HEAD) & IS_PART != 0,
            is_free: mapping == 0 && word(index.wrapping_add(AFTER_PRIVATE)) >> REFERENCES == 0,
            has_links: word(LINKS) >= LIST_POISON,
            mapping,
            index: word(index),
            private: word(index.wrapping_add(AFTER_INDEX)),
        }
    }

    /// Whether it could be in the swap cache: it is anonymous or of no file, and has a value in `private`.
    fn has_slot(&self) -> bool {
        // The other parts of a large page keep counts where its first part has `mapping`.
        let is_slot = !self.is_part && self.private != 0 && self.private >> (u64::BITS - 1) == 0;
        is_slot && (self.is_anonymous() || self.mapping == 0)
    }

    /// Whether the page is anonymous memory of a process.
    pub(super) fn is_anonymous(&self) -> bool {
        self.mapping & IS_ANONYMOUS != 0 && self.mapping >= KERNEL_POINTER_MIN
    }
}

impl<'a> PageStructs<'a> {
    /// The array that most pages of the processes agree on; `None` where there is none that they do.
    pub(super) fn find(memory: &'a PhysicalMemory, rules: &'a Mmu, roots: &[(PhysAddr, u8)]) -> Option<Self> {
        let tables = |(root, levels): &(PhysAddr, u8)| PageTables::new(memory, rules, *root, *levels);
        let roots = roots.get(..MAX_SPACES).unwrap_or(roots);
        let pages: Vec<UserPage> = roots.iter().flat_map(|root| user_pages(&tables(root))).collect();
        let step = pages.len().div_ceil(MAX_VOTERS).max(1);
        let voters: Vec<UserPage> = pages.into_iter().step_by(step).collect();
        roots.iter().find_map(|root| Self::by_vote(&tables(root), &voters))
    }

    /// The array that most pages agree on, of those that a kernel half may show.
    fn by_vote(tables: &PageTables<'a>, voters: &[UserPage]) -> Option<Self> {
        let mappings = tables.kernel_mappings();
        let votes = |start: VirtAddr| {
            let array = Self { tables: *tables, start, index: 0 };
            let mut counts = [0usize; WORDS];
            for (va, page) in voters {
                let words = array.words_of(*page).unwrap_or_default();
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

    /// The words of the `struct page` of a frame.
    fn words_of(&self, page: PhysAddr) -> Option<[u64; WORDS]> {
        let va = self.address(page)?;
        let pa = self.tables.translate(va).ok()?.pa;
        Some(words(self.tables.memory().bytes(pa, PAGE_STRUCT_SIZE)?))
    }

    /// The frames of the dump whose `struct page`s are picked, in the order of its ranges.
    pub(super) fn pick(&self, which: Pick) -> Vec<(PhysAddr, PageStruct)> {
        let memory = self.tables.memory();
        let parts = memory.ranges().iter().flat_map(|range| self.parts(PhysicalMemory::frames(range)));
        let Some(remote) = memory.remote() else {
            return parts.flat_map(|part| part.pick(memory, self.index, which)).collect();
        };
        let mut parts: Vec<ArrayPart> = parts.collect();
        parts.sort_unstable_by_key(|part| part.structs);
        let question = |shard: &ShardPart| {
            let parts: Vec<ArrayPart> = shard.of(&parts, |part| PhysAddr(part.structs)).copied().collect();
            (!parts.is_empty()).then(|| (shard.ranges.clone(), PickedPages { parts, index: self.index, which }))
        };
        let answers = remote.ask(question, &|_| ()).into_iter().flat_map(|(_, answer)| answer);
        let mut found: Vec<(PhysAddr, PageStruct)> = answers.map(|(frame, page)| (PhysAddr(frame), page)).collect();
        found.sort_unstable_by_key(|(frame, _)| *frame);
        found
    }

    /// The array's part for frames, cut where its pages end.
    fn parts(&self, frames: Range<PhysAddr>) -> impl Iterator<Item = ArrayPart> + '_ {
        let mut page = frames.start;
        std::iter::from_fn(move || {
            while page < frames.end {
                let va = self.address(page)?;
                let here = (FRAME_SIZE - va.0 % FRAME_SIZE) / PAGE_STRUCT_SIZE;
                let count = here.min((frames.end.0 - page.0).div_ceil(FRAME_SIZE));
                let first = page.0;
                page = PhysAddr(page.0.saturating_add(here * FRAME_SIZE));
                if let Ok(at) = self.tables.translate(va) {
                    return Some(ArrayPart { first, count, structs: at.pa.0 });
                }
            }
            None
        })
    }

    /// The other frames of the large page that begins at a frame; none if it is no large page.
    pub(super) fn other_parts(&self, first: PhysAddr) -> impl Iterator<Item = PhysAddr> {
        let head = self.address(first).map(|va| va.0 | IS_PART);
        let frames = (1..).map_while(move |part| first.checked_add(part * FRAME_SIZE));
        frames.take_while(move |frame| {
            self.words_of(*frame).is_some_and(|words| words.get(COMPOUND_HEAD).copied() == head)
        })
    }
}

/// Frames that are picked by their `struct page`s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pick {
    /// Those that nobody uses.
    Free,
    /// Those that could be in the swap cache.
    WithSlot,
}

/// A part of the array in one page of it: the first frame, how many frames, and the physical address of the first `struct page`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ArrayPart {
    first: u64,
    count: u64,
    structs: u64,
}

impl ArrayPart {
    /// Those of its frames that are picked.
    fn pick(self, memory: &PhysicalMemory, index: usize, which: Pick) -> impl Iterator<Item = (PhysAddr, PageStruct)> {
        // It is read at once.
        let bytes = memory.bytes_from(PhysAddr(self.structs), FRAME_SIZE).unwrap_or_default();
        let (structs, _) = bytes.as_chunks::<{ PAGE_STRUCT_SIZE as usize }>();
        let frames = (self.first..).step_by(FRAME_SIZE as usize).take(self.count as usize).map(PhysAddr);
        let read = frames.zip(structs).map(move |(frame, bytes)| (frame, PageStruct::new(words(bytes), index)));
        read.filter(move |(_, page)| match which {
            Pick::Free => page.is_free,
            Pick::WithSlot => page.has_slot(),
        })
    }
}

/// The frames that are picked by the `struct page`s in a part of a dump.
#[derive(Serialize, Deserialize)]
pub(crate) struct PickedPages {
    parts: Vec<ArrayPart>,
    /// The word that is the page number of the virtual address.
    index: usize,
    which: Pick,
}

impl Question for PickedPages {
    const NAME: &'static str = "frames by their struct page";
    type Answer = Vec<(u64, PageStruct)>;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Self::Answer {
        // An index that is too small was refused when it was found.
        let picked = self.parts.iter().flat_map(|part| part.pick(memory, self.index.max(BEFORE_INDEX), self.which));
        picked.map(|(frame, page)| (frame.0, page)).collect()
    }
}

/// The words in the bytes of a `struct page`.
fn words(bytes: &[u8]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
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
