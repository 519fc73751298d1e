//! The memory of a process: allocation, and where allocations cross page borders.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::machine::Machine;
use super::memory::FRAME;

/// Where small allocations begin, and large ones.
const HEAP: u64 = 0x5566_7788_9000;
const MAPPED: u64 = 0x7f12_3456_0000;

pub struct Process {
    pub machine: Rc<RefCell<Machine>>,
    pub space: usize,
    next: Cell<u64>,
    next_pages: Cell<u64>,
    /// Bytes of the next allocation that lie before a page border.
    cut: Cell<Option<u64>>,
    /// Whether every allocation that is longer than 16 bytes crosses a page border.
    scattered: Cell<bool>,
}

impl Process {
    pub fn new(machine: &Rc<RefCell<Machine>>) -> Self {
        let space = machine.borrow_mut().new_space();
        Self {
            machine: Rc::clone(machine),
            space,
            next: Cell::new(HEAP),
            next_pages: Cell::new(MAPPED),
            cut: Cell::new(None),
            scattered: Cell::new(false),
        }
    }

    /// Lets the next allocation cross a page border after its first `before` bytes (a multiple of 16).
    pub fn cut_next(&self, before: u64) {
        self.cut.set(Some(before));
    }

    /// Lets every allocation from now on cross a page border, somewhere.
    pub fn scatter(&self, scattered: bool) {
        self.scattered.set(scattered);
    }

    /// Memory of `size` bytes, behind at least 32 bytes of its own (where the collector's head and the
    /// pointers to attributes are); at a multiple of 16.
    pub fn alloc(&self, size: u64) -> u64 {
        let random = self.machine.borrow_mut().random.next();
        let scattered = (self.scattered.get() && size > 16).then(|| 16 + random % (size - 16).div_ceil(16) * 16);
        let mut at = self.next.get() + 32;
        if let Some(before) = self.cut.take().or(scattered) {
            // The head may lie on a page before, too.
            at = (at + before).next_multiple_of(FRAME) - before;
        }
        let end = at + size.max(1);
        self.next.set(end.next_multiple_of(16));
        self.map(at - 32, end);
        at
    }

    /// Whole pages; no two allocations are neighbours.
    pub fn alloc_pages(&self, size: u64) -> u64 {
        let at = self.reserve(size, FRAME);
        self.map(at, at + size);
        at
    }

    /// Addresses that nothing is mapped to.
    pub fn reserve(&self, size: u64, align: u64) -> u64 {
        let at = self.next_pages.get().next_multiple_of(align);
        self.next_pages.set(at + size.next_multiple_of(FRAME) + 2 * FRAME);
        at
    }

    fn map(&self, start: u64, end: u64) {
        for va in (start & !(FRAME - 1)..end).step_by(FRAME as usize) {
            self.machine.borrow_mut().map(self.space, va);
        }
    }

    pub fn write(&self, va: u64, bytes: &[u8]) {
        self.machine.borrow_mut().write(self.space, va, bytes);
    }

    pub fn read(&self, va: u64, len: u64) -> Vec<u8> {
        self.machine.borrow().read(self.space, va, len)
    }

    pub fn put(&self, va: u64, word: u64) {
        self.write(va, &word.to_le_bytes());
    }

    pub fn get(&self, va: u64) -> u64 {
        u64::from_le_bytes(self.read(va, 8).try_into().unwrap())
    }

    pub fn words(&self, words: &[u64]) -> u64 {
        let at = self.alloc(words.len() as u64 * 8);
        for (place, word) in (at..).step_by(8).zip(words) {
            self.put(place, *word);
        }
        at
    }
}
