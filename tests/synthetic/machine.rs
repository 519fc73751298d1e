//! Physical memory with page tables: x86-64, 4 or 5 levels, frames in random order.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tensorcarve::addr::PhysAddr;
use tensorcarve::dump::Dump;

use super::memory::{FRAME, dump_of};
use super::random::Random;
use super::rewrite::{Entry, rewrite};

pub const HUGE: u64 = 0x20_0000;
const NX: u64 = 1 << 63;
/// Present, writable, user, accessed, dirty.
const USER_TABLE: u64 = 0x67;
const KERNEL_TABLE: u64 = 0x63;
/// The same with the page-size bit, global.
const KERNEL_LARGE: u64 = 0x1e3 | NX;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Below 1 MB a PC has a hole; the rest of the memory follows it.
const LOW: std::ops::Range<u64> = 0x1000..0x9f000;
const HIGH: u64 = 0x10_0000;

/// Where the array of `struct page` is, and the words of one: links of lists, owner, place there, counts (Linux 6.12).
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
const PAGE_STRUCT: u64 = 64;
const LINKS: u64 = 1;
const MAPPING: u64 = 3;
const INDEX: u64 = 4;
const COUNTS: u64 = 6;
/// The owner of an anonymous page, and what is written over links.
const ANONYMOUS: u64 = 0xffff_8880_0000_1231;
const POISON: u64 = 0xdead_0000_0000_0100;

/// How the kernel maps all memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum DirectMap {
    Pages2M,
    Pages1G,
}

#[derive(Clone, Copy)]
pub struct Options {
    pub levels: u8,
    pub kpti: bool,
    pub direct_map: DirectMap,
    /// Frames above 1 MB.
    pub frames: u64,
    /// 2 MB pages that are kept apart for user mappings.
    pub huge_pages: u64,
    /// Whether the kernel shows its array of `struct page`, as [`Machine::own`] and [`Machine::end`] need it.
    pub page_structs: bool,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            levels: 4,
            kpti: false,
            direct_map: DirectMap::Pages2M,
            frames: 1024,
            huge_pages: 0,
            page_structs: false,
            seed: 1,
        }
    }
}

/// A user page: where it lies, and the entry that maps it.
#[derive(Clone, Copy)]
struct Page {
    pa: u64,
    size: u64,
    slot: u64,
}

#[derive(Clone, Default)]
struct Space {
    root: u64,
    pages: BTreeMap<u64, Page>,
}

pub struct Machine {
    options: Options,
    bytes: Vec<u8>,
    free: Vec<u64>,
    free_huge: Vec<u64>,
    missing: BTreeSet<u64>,
    pub kernel_root: u64,
    spaces: Vec<Space>,
    /// The frames of the array of `struct page`.
    page_structs: Vec<u64>,
    pub random: Random,
}

impl Machine {
    pub fn new(options: Options) -> Rc<RefCell<Self>> {
        let mut random = Random(options.seed);
        let small_end = HIGH + options.frames * FRAME;
        let huge_start = small_end.next_multiple_of(HUGE);
        let end = if options.huge_pages == 0 { small_end } else { huge_start + options.huge_pages * HUGE };
        // What was never used is no zeros: it is what was there before.
        let bytes: Vec<u8> = (0..end / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut free: Vec<u64> = ram(small_end).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, random.below(i as u64 + 1) as usize);
        }
        let free_huge = (huge_start..end).step_by(HUGE as usize).collect();
        let mut machine = Self {
            options,
            bytes,
            free,
            free_huge,
            missing: BTreeSet::new(),
            kernel_root: 0,
            spaces: Vec::new(),
            page_structs: Vec::new(),
            random,
        };
        machine.build_kernel(end);
        Rc::new(RefCell::new(machine))
    }

    fn build_kernel(&mut self, end: u64) {
        self.kernel_root = self.new_root();
        let levels = self.options.levels;
        let direct: u64 = if levels == 4 { 0xffff_8880_0000_0000 } else { 0xff11_0000_0000_0000 };
        let (size, level) = if self.options.direct_map == DirectMap::Pages1G { (1 << 30, 3) } else { (HUGE, 2) };
        for pa in (0..end).step_by(size as usize) {
            let slot = self.slot(self.kernel_root, direct + pa, level, KERNEL_TABLE);
            self.set(slot, pa | KERNEL_LARGE);
        }
        // The kernel's image holds its own root, so that this one is mapped twice.
        let slot = self.slot(self.kernel_root, 0xffff_ffff_8220_0000, 1, KERNEL_TABLE);
        self.set(slot, self.kernel_root | KERNEL_TABLE);
        if self.options.page_structs {
            self.build_page_structs(end);
        }
        // Something else in the kernel half: vmalloc space.
        for i in 0..8 {
            let frame = self.frame();
            let slot = self.slot(self.kernel_root, 0xffff_ffff_c000_0000 + i * 0x3000, 1, KERNEL_TABLE);
            self.set(slot, frame | KERNEL_TABLE | NX);
        }
    }

    /// The array of `struct page`, in which the kernel uses all frames itself.
    fn build_page_structs(&mut self, end: u64) {
        for page in 0..(end / FRAME * PAGE_STRUCT).div_ceil(FRAME) {
            let frame = self.table();
            let slot = self.slot(self.kernel_root, VMEMMAP + page * FRAME, 1, KERNEL_TABLE);
            self.set(slot, frame | KERNEL_TABLE | NX);
            self.page_structs.push(frame);
        }
        (0..end).step_by(FRAME as usize).for_each(|pa| self.describe(pa, &[(COUNTS, 1 << 32)]));
    }

    /// Words of the `struct page` of a frame.
    fn describe(&mut self, pa: u64, words: &[(u64, u64)]) {
        let at = pa / FRAME * PAGE_STRUCT;
        let place = self.page_structs[(at / FRAME) as usize] + at % FRAME;
        words.iter().for_each(|(word, value)| self.set(place + word * 8, *value));
    }

    /// Tells the kernel's array of the pages of a process, which are of 4 KiB.
    pub fn own(&mut self, space: usize) {
        for (va, page) in self.spaces[space].pages.clone() {
            self.describe(page.pa, &[(MAPPING, ANONYMOUS), (INDEX, va / FRAME), (COUNTS, 1 << 32)]);
        }
    }

    /// Ends a process: its tables are cleared, its pages are freed one by one.
    pub fn end(&mut self, space: usize) {
        for (va, page) in self.spaces[space].pages.clone() {
            self.describe(page.pa, &[(LINKS, POISON), (MAPPING, 0), (INDEX, va / FRAME), (COUNTS, 0)]);
            self.set(page.slot, 0);
        }
        let root = self.spaces[space].root;
        (0..256).for_each(|index| self.set(root + index * 8, 0));
    }

    /// The kernel uses the frame that holds a freed page for itself.
    pub fn reuse(&mut self, pa: u64) {
        let noise = self.random.next().to_le_bytes();
        self.write_physical(pa & !(FRAME - 1), &noise.repeat(FRAME as usize / 8));
        self.describe(pa, &[(INDEX, 0), (COUNTS, 1 << 32)]);
    }

    /// A free frame; its content stays as it is.
    pub fn frame(&mut self) -> u64 {
        self.free.pop().expect("the machine has too few frames")
    }

    fn table(&mut self) -> u64 {
        let frame = self.frame();
        self.write_physical(frame, &[0; FRAME as usize]);
        frame
    }

    /// An empty top table; with KPTI the first of an aligned pair.
    fn new_root(&mut self) -> u64 {
        if !self.options.kpti {
            return self.table();
        }
        let pair = (0..self.free.len()).rev().find_map(|at| {
            let first = self.free[at];
            let is_pair = first.is_multiple_of(2 * FRAME) && self.free.contains(&(first + FRAME));
            is_pair.then_some(first)
        });
        let root = pair.expect("no free pair of frames");
        self.free.retain(|frame| *frame != root && *frame != root + FRAME);
        self.write_physical(root, &[0; 2 * FRAME as usize]);
        root
    }

    pub fn write_physical(&mut self, pa: u64, bytes: &[u8]) {
        self.bytes[pa as usize..pa as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub fn word(&self, pa: u64) -> u64 {
        u64::from_le_bytes(self.bytes[pa as usize..pa as usize + 8].try_into().unwrap())
    }

    pub fn set(&mut self, pa: u64, word: u64) {
        self.write_physical(pa, &word.to_le_bytes());
    }

    /// The entry of a level that translates a user address, for tests that build tables of their own.
    pub fn user_slot(&mut self, space: usize, va: u64, level: u8) -> u64 {
        self.slot(self.spaces[space].root, va, level, USER_TABLE)
    }

    /// The entry of `level` that translates `va`; tables on the way are made as needed.
    fn slot(&mut self, root: u64, va: u64, level: u8, flags: u64) -> u64 {
        let mut table = root;
        for above in (level + 1..=self.options.levels).rev() {
            let slot = table + (va >> (3 + 9 * u64::from(above))) % 512 * 8;
            if self.word(slot) & 1 == 0 {
                let new = self.table();
                self.set(slot, new | flags);
                if self.options.kpti && above == self.options.levels && flags == USER_TABLE {
                    // The user copy; the kernel itself may not execute what it sees there.
                    self.set(slot + FRAME, new | flags);
                    self.set(slot, new | flags | NX);
                }
            }
            table = self.word(slot) & ADDRESS;
        }
        table + (va >> (3 + 9 * u64::from(level))) % 512 * 8
    }

    /// A space without user pages: what a process has before it begins and after it ended.
    pub fn new_space(&mut self) -> usize {
        let root = self.new_root();
        for index in 256..512 {
            let entry = self.word(self.kernel_root + index * 8);
            self.set(root + index * 8, entry);
        }
        if self.options.kpti {
            // What the kernel needs to come back: the entry code, in the image.
            let entry = self.word(self.kernel_root + 511 * 8);
            self.set(root + FRAME + 511 * 8, entry);
        }
        self.spaces.push(Space { root, pages: BTreeMap::new() });
        self.spaces.len() - 1
    }

    pub fn root(&self, space: usize) -> PhysAddr {
        PhysAddr(self.spaces[space].root)
    }

    /// Maps a page of 4 KiB to a frame, which may be in use already.
    pub fn map_to(&mut self, space: usize, va: u64, pa: u64) {
        let slot = self.slot(self.spaces[space].root, va, 1, USER_TABLE);
        self.set(slot, pa | USER_TABLE | NX);
        self.spaces[space].pages.insert(va, Page { pa, size: FRAME, slot });
    }

    /// Maps a zeroed page of 4 KiB, unless it is mapped.
    pub fn map(&mut self, space: usize, va: u64) {
        if self.page(space, va).is_none() {
            let frame = self.table();
            self.map_to(space, va & !(FRAME - 1), frame);
        }
    }

    /// Maps a zeroed page of 2 MiB.
    pub fn map_huge(&mut self, space: usize, va: u64) {
        let pa = self.free_huge.pop().expect("the machine has too few huge pages");
        self.write_physical(pa, &vec![0; HUGE as usize]);
        let slot = self.slot(self.spaces[space].root, va, 2, USER_TABLE);
        self.set(slot, pa | 0x80 | USER_TABLE | NX);
        self.spaces[space].pages.insert(va, Page { pa, size: HUGE, slot });
    }

    fn page(&self, space: usize, va: u64) -> Option<(u64, Page)> {
        let (start, page) = self.spaces[space].pages.range(..=va).next_back()?;
        (va - start < page.size).then_some((*start, *page))
    }

    /// The physical address of a mapped user address.
    pub fn physical(&self, space: usize, va: u64) -> u64 {
        let (start, page) = self.page(space, va).unwrap_or_else(|| panic!("{va:#x} is not mapped"));
        page.pa + (va - start)
    }

    /// Physical addresses and lengths of the pieces of a virtual range.
    fn pieces(&self, space: usize, va: u64, len: u64) -> Vec<(usize, usize)> {
        let mut pieces = Vec::new();
        let mut at = va;
        while at < va + len {
            let piece = (va + len - at).min(FRAME - at % FRAME);
            pieces.push((self.physical(space, at) as usize, piece as usize));
            at += piece;
        }
        pieces
    }

    pub fn write(&mut self, space: usize, va: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (pa, len) in self.pieces(space, va, bytes.len() as u64) {
            let (now, later) = rest.split_at(len);
            self.bytes[pa..pa + len].copy_from_slice(now);
            rest = later;
        }
    }

    pub fn read(&self, space: usize, va: u64, len: u64) -> Vec<u8> {
        self.pieces(space, va, len).iter().flat_map(|(pa, len)| &self.bytes[*pa..pa + len]).copied().collect()
    }

    /// What is mapped in a process and not left out: address and bytes of each run without a gap.
    pub fn image(&self, space: usize) -> Vec<(u64, Vec<u8>)> {
        let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
        for (va, page) in &self.spaces[space].pages {
            for at in (0..page.size).step_by(FRAME as usize).filter(|at| !self.missing.contains(&(page.pa + at))) {
                let bytes = &self.bytes[(page.pa + at) as usize..(page.pa + at + FRAME) as usize];
                match runs.last_mut() {
                    Some((start, run)) if *start + run.len() as u64 == va + at => run.extend_from_slice(bytes),
                    _ => runs.push((va + at, bytes.to_vec())),
                }
            }
        }
        runs
    }

    /// Leaves the 4 KiB frame at `va` out of the dump.
    pub fn lose(&mut self, space: usize, va: u64) {
        self.missing.insert(self.physical(space, va) & !(FRAME - 1));
    }

    /// Replaces the entry that maps `va`: by 0, or by one that says where in swap the page is.
    pub fn swap_out(&mut self, space: usize, va: u64, entry: u64) {
        let (_, page) = self.page(space, va).unwrap();
        let noise = self.random.next().to_le_bytes();
        self.set(page.slot, entry);
        // The frame has gone to someone else.
        self.write_physical(page.pa, &noise.repeat(page.size as usize / 8));
    }

    /// A child of the process: tables of its own to the same frames.
    pub fn fork(&mut self, parent: usize) -> usize {
        let child = self.new_space();
        for (va, page) in self.spaces[parent].pages.clone() {
            match page.size {
                FRAME => self.map_to(child, va, page.pa),
                _ => unimplemented!("forking large pages"),
            }
        }
        child
    }

    /// Gives the process a copy of its own of the page at `va`, as the first write after a fork does.
    pub fn copy_on_write(&mut self, space: usize, va: u64) {
        let (start, page) = self.page(space, va).unwrap();
        let content = self.read(space, start, page.size);
        let frame = self.frame();
        self.write_physical(frame, &content);
        self.map_to(space, start, frame);
    }

    /// The dump with all entries of page tables written anew.
    pub fn dump_with(&self, mut change: impl FnMut(Entry) -> u64) -> Dump {
        dump_of(self.rewritten(&mut change), self.frames())
    }

    /// The machine as it would be if all from `start` on lay `len` bytes higher, as a file that leaves this hole out.
    pub fn file_with_hole(&self, start: u64, len: u64) -> Dump {
        let moved = |entry: Entry| entry.value + if entry.address() >= start { len } else { 0 };
        let bytes = self.rewritten(&mut { moved });
        let end = bytes.len() as u64;
        dump_of(bytes, (0..end).step_by(FRAME as usize))
    }

    fn rewritten(&self, change: &mut dyn FnMut(Entry) -> u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let mut roots = vec![self.kernel_root];
        for space in &self.spaces {
            roots.push(space.root);
            if self.options.kpti {
                roots.push(space.root + FRAME);
            }
        }
        let len = bytes.len() as u64;
        let place = |frame: u64| (frame < len).then_some(frame as usize);
        rewrite(&mut bytes, &place, &roots, self.options.levels, change);
        bytes
    }

    fn frames(&self) -> impl Iterator<Item = u64> {
        ram(self.bytes.len() as u64).filter(|pa| !self.missing.contains(pa))
    }

    pub fn dump(&self) -> Dump {
        dump_of(self.bytes.clone(), self.frames())
    }
}

/// The frames of memory, the hole left out.
fn ram(end: u64) -> impl Iterator<Item = u64> {
    LOW.step_by(FRAME as usize).chain((HIGH..end).step_by(FRAME as usize))
}
