//! Memory whose pages are translated once: for readers that come back to the same pages again and again.

use std::sync::{Mutex, PoisonError};

use super::space::{Fault, VirtualMemory};
use crate::addr::{FRAME_SIZE, VirtAddr};

/// Pages that are kept: a power of two.
const PAGES: usize = 1 << 13;

/// A page's address and the bytes from its start on.
type Page<'m> = Option<(u64, &'m [u8])>;

/// Other memory, with a table of the pages that were read last.
pub struct Cached<'m> {
    memory: &'m dyn VirtualMemory,
    pages: Mutex<Vec<Page<'m>>>,
}

impl<'m> Cached<'m> {
    /// The same memory, nothing of it read yet.
    pub fn new(memory: &'m dyn VirtualMemory) -> Self {
        Self { memory, pages: Mutex::new(vec![None; PAGES]) }
    }
}

impl VirtualMemory for Cached<'_> {
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        let (number, offset) = (va.0 / FRAME_SIZE, (va.0 % FRAME_SIZE) as usize);
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(place) = pages.get_mut(number as usize % PAGES) else { return self.memory.bytes_at(va) };
        if let Some((known, bytes)) = *place
            && known == number
            && let Some(bytes) = bytes.get(offset..).filter(|bytes| !bytes.is_empty())
        {
            return Ok(bytes);
        }
        if let Ok(bytes) = self.memory.bytes_at(VirtAddr(va.0 - offset as u64)) {
            *place = Some((number, bytes));
            if let Some(bytes) = bytes.get(offset..).filter(|bytes| !bytes.is_empty()) {
                return Ok(bytes);
            }
        }
        self.memory.bytes_at(va)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Two pages, the second without its first half.
    struct Pieces(Vec<u8>, AtomicUsize);

    impl VirtualMemory for Pieces {
        fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let at = va.0 as usize;
            let end = if at < 0x1000 { 0x1000 } else { 0x2000 };
            let is_there = at < 0x1000 || (0x1800..0x2000).contains(&at);
            self.0.get(at..end).filter(|_| is_there).ok_or(Fault::NonCanonical { va })
        }
    }

    #[test]
    fn reads_what_the_memory_reads_and_asks_once_per_page() {
        let pieces = Pieces((0..0x2000u32).map(|at| (at % 251) as u8).collect(), AtomicUsize::new(0));
        let cached = Cached::new(&pieces);
        for _ in 0..100 {
            for at in [0, 8, 0xfff, 0x17ff, 0x1800, 0x1fff, 0x2000] {
                assert_eq!(cached.bytes_at(VirtAddr(at)).ok(), pieces.bytes_at(VirtAddr(at)).ok(), "{at:#x}");
            }
        }
        pieces.1.store(0, Ordering::Relaxed);
        for at in 0..0x1000 {
            cached.bytes_at(VirtAddr(at)).unwrap();
        }
        assert!(pieces.1.load(Ordering::Relaxed) <= 1);
    }
}
