//! Memory for tests: a process with some anonymous pages, and the kernel's array of `struct page`.

use std::sync::Arc;

use super::page_structs::{MIN_VOTES, PAGE_STRUCT_SIZE};
use super::{Discovery, Space, SpaceKind};
use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};
use crate::dump::{MemoryRange, PhysicalMemory};
use crate::signature::{Mmu, Signatures};

const PRESENT: u64 = 0x7;
pub(super) const ROOT: PhysAddr = PhysAddr(0x1000);
/// The last table of the process.
const TABLE: u64 = 0x4000;
/// The first frame that holds the array, and where the kernel half shows it.
const ARRAY: u64 = 0x8000;
const ARRAY_INDEX: u64 = 300;
/// The flags of an anonymous page of one process.
const MAPPED: u64 = 1 << 19 | 1 << 2 | 1 << 17;
pub(super) const ANONYMOUS: u64 = 0xffff_8880_0000_1231;

#[derive(Clone)]
pub(super) struct Machine(Vec<u8>);

impl Machine {
    /// A machine with so many frames, at most 1,536. Those from 40 on are not used.
    pub(super) fn new(frames: u64) -> Self {
        let mut machine = Self(vec![0; (frames * FRAME_SIZE) as usize]);
        let kernel = [(ROOT.0 + ARRAY_INDEX * 8, 0x5000), (0x5000, 0x6000), (0x6000, 0x7000)];
        for (table, next) in [(ROOT.0, 0x2000), (0x2000, 0x3000), (0x3000, TABLE)].into_iter().chain(kernel) {
            machine.set(table, next | PRESENT);
        }
        for frame in 0..(frames * PAGE_STRUCT_SIZE).div_ceil(FRAME_SIZE) {
            machine.set(0x7000 + frame * 8, (ARRAY + frame * FRAME_SIZE) | PRESENT);
        }
        for index in 0..MIN_VOTES as u64 {
            let frame = 32 + index;
            machine.set_entry(16 + index, (frame * FRAME_SIZE) | PRESENT);
            machine.describe(frame, MAPPED, ANONYMOUS, 16 + index, 0);
            machine.set_struct(frame, 6, 1 << 32);
        }
        machine
    }

    pub(super) fn set(&mut self, at: u64, word: u64) {
        self.0[at as usize..at as usize + 8].copy_from_slice(&word.to_le_bytes());
    }

    /// The entry of a page of the process.
    pub(super) fn set_entry(&mut self, page: u64, entry: u64) {
        self.set(TABLE + page * 8, entry);
    }

    /// A word of the `struct page` of a frame.
    pub(super) fn set_struct(&mut self, frame: u64, word: u64, value: u64) {
        self.set(ARRAY + frame * PAGE_STRUCT_SIZE + word * 8, value);
    }

    pub(super) fn describe(&mut self, frame: u64, flags: u64, mapping: u64, index: u64, private: u64) {
        for (word, value) in [(0, flags), (3, mapping), (4, index), (5, private)] {
            self.set_struct(frame, word, value);
        }
    }

    /// The pointer by which the parts of a large page name its first part.
    pub(super) fn first_part(frame: u64) -> u64 {
        ((0xffff << 48) + (ARRAY_INDEX << 39) + frame * PAGE_STRUCT_SIZE) | 1
    }

    /// The memory, and the rules by which it is read.
    pub(super) fn finish(self) -> (Arc<PhysicalMemory>, Arc<Mmu>) {
        let end = PhysAddr(self.0.len() as u64);
        let range = MemoryRange { start: PhysAddr(0), end, offset: FileOffset(0) };
        let memory = Arc::new(PhysicalMemory::owned(self.0, vec![range]).unwrap());
        let space = Space { root: ROOT, levels: 4, kind: SpaceKind::Process, kpti_user_root: None };
        let discovery = Discovery { spaces: vec![space], ..Discovery::default() };
        (memory, Arc::new(discovery.rules(Signatures::load(None).unwrap().mmu().unwrap())))
    }
}
