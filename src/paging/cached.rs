//! An address space that remembers where its pages lie: objects are read by many small reads of few pages.

use std::sync::atomic::{AtomicU64, Ordering};

use super::space::{AddressSpace, Fault, Translation, VirtualMemory};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};

/// Pages that are remembered, each in the place that its number gives: a power of two.
const PLACES: u64 = 1 << 13;
/// Page numbers below this are remembered: those of the user half, with five levels as well.
const MAX_PAGE: u64 = PLACES << 32;

/// An address space, and where those of its pages lie that were read last.
pub struct Cached<'m> {
    space: AddressSpace<'m>,
    /// The upper half of a page's number, and the number of the frame that holds it in the lower 32 bits. One word, so that
    /// threads can't see halves of two. Zero is empty: no frame 0 is remembered.
    places: Box<[AtomicU64]>,
}

impl<'m> Cached<'m> {
    /// The same memory, nothing of it read yet.
    pub fn new(space: AddressSpace<'m>) -> Self {
        // The image of a process needs no translation.
        let places = if space.translated().is_some() { PLACES } else { 0 };
        Self { space, places: (0..places).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The address space itself.
    pub fn space(&self) -> AddressSpace<'m> {
        self.space
    }

    /// Where the frame of a page is remembered.
    fn place(&self, page: u64) -> Option<&AtomicU64> {
        if page < MAX_PAGE { self.places.get((page % PLACES) as usize) } else { None }
    }
}

impl VirtualMemory for Cached<'_> {
    #[inline]
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        let (page, offset) = (va.0 / FRAME_SIZE, va.0 % FRAME_SIZE);
        let (Some(place), Some(memory)) = (self.place(page), self.space.translated()) else {
            return self.space.bytes_at(va);
        };
        let known = place.load(Ordering::Relaxed);
        let (upper, frame) = (known >> 32, known & u64::from(u32::MAX));
        let pa = if upper == page / PLACES && frame != 0 {
            PhysAddr(frame * FRAME_SIZE + offset)
        } else {
            let Translation { pa, .. } = self.space.translate(va)?;
            let frame = pa.0 / FRAME_SIZE;
            if frame <= u64::from(u32::MAX) {
                place.store((page / PLACES) << 32 | frame, Ordering::Relaxed);
            }
            pa
        };
        memory.bytes_from(pa, FRAME_SIZE - offset).ok_or(Fault::NotInDump { va, pa })
    }

    fn explain(&self, fault: Fault) -> String {
        self.space.explain(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::FileOffset;
    use crate::dump::{MemoryRange, PhysicalMemory};
    use crate::signature::Signatures;

    /// Tables for two pages that share a place, one frame that ends early, and a page whose frame the dump lacks.
    fn memory() -> PhysicalMemory {
        let mut bytes: Vec<u8> = (0..0x8000u32).map(|at| (at / 0x1000 * 16 + at % 13) as u8).collect();
        let mut entry = |slot: usize, target: u64| {
            bytes[slot..slot + 8].copy_from_slice(&(target | 7).to_le_bytes());
        };
        // 4 levels at 0x0, 0x1000, 0x2000 and two last tables: addresses 0 and 32 MiB differ in the third.
        for (slot, target) in [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000), (0x2000 + 8 * 16, 0x4000)] {
            entry(slot, target);
        }
        for (slot, target) in [(0x3000, 0x5000), (0x3008, 0x7000), (0x4000, 0x6000), (0x4008, 0x9000)] {
            entry(slot, target);
        }
        bytes[0x3010..0x4000].fill(0);
        bytes[0x4010..0x5000].fill(0);
        let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(0x7800), offset: FileOffset(0) };
        PhysicalMemory::owned(bytes, vec![range]).unwrap()
    }

    #[test]
    fn reads_what_the_space_reads() {
        let memory = memory();
        let signatures = Signatures::load(None).unwrap();
        let space = AddressSpace::new(&memory, signatures.mmu().unwrap(), PhysAddr(0), 4);
        let cached = Cached::new(space);
        let addresses = [0, 8, 0xfff, 0x1000, 0x17ff, 0x1800, 0x2000, 0x200_0000, 0x200_0ff8, 0x200_1000, !7, 1 << 47];
        for _ in 0..3 {
            for at in addresses.map(VirtAddr) {
                let expected =
                    space.bytes_at(at).map(|bytes| bytes.iter().take((FRAME_SIZE - at.0 % FRAME_SIZE) as usize));
                let found = cached.bytes_at(at).map(|bytes| bytes.iter());
                assert_eq!(found.map(|found| found.collect::<Vec<_>>()), expected.map(|bytes| bytes.collect()), "{at}");
            }
        }
        assert!(cached.bytes_at(VirtAddr(0)).unwrap() != cached.bytes_at(VirtAddr(0x200_0000)).unwrap());
        assert_eq!(cached.read_u64(VirtAddr(0xffc)), space.read_u64(VirtAddr(0xffc)));
    }
}
