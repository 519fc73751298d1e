//! Memory made for measuring: frames as dumps hold them, with hits in known places.

use std::error::Error;

use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{MemoryRange, PhysicalMemory, RangeError};
use tensorcarve::signature::{Field, Signatures, Structure, Test};

/// Bytes that repeat, so that the number of hits is that of one tile times the number of tiles.
pub const TILE: usize = 16 << 20;
const FRAME: usize = 4096;
/// Where the bytes begin in the file of an ELF core: aligned to eight, not to a cache line.
const FILE_OFFSET: usize = 0x838;
/// Where Python's types lie, and its heap.
const TYPES: u64 = 0x5555_5595_4000;
const HEAP: u64 = 0x7f00_0000_0000;
/// Values of which each is planted once: the first of all sweeps.
const PLANTED_VALUES: usize = 16;

/// One tile of memory, and what is in it.
pub struct Tile {
    bytes: Vec<u8>,
    /// Frames in which nothing is planted yet: such that hold noise.
    free: Vec<usize>,
}

impl Tile {
    /// Frames in the shares of a real dump: zeros, machine code or weights, heaps full of pointers, page tables, text.
    pub fn new() -> Self {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut bytes = vec![0; TILE];
        for (n, frame) in bytes.chunks_exact_mut(FRAME).enumerate() {
            for (slot, word) in frame.chunks_exact_mut(8).enumerate() {
                let r = random();
                let value = match n % 16 {
                    0..4 => 0,
                    4..10 => r,
                    10..14 => match slot % 4 {
                        0 => 1,
                        1 => TYPES + (r % (1 << 22)) * 16,
                        2 => HEAP + (r % (1 << 28)) * 16,
                        _ => r % 1000,
                    },
                    14 => (r % (1 << 20)) << 12 | 0x67,
                    _ => u64::from_le_bytes(*b"def forw"),
                };
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
        let free = (0..TILE / FRAME).filter(|n| (4..10).contains(&(n % 16))).rev().collect();
        let mut tile = Self { bytes, free };
        for value in sweep_values(PLANTED_VALUES) {
            let at = tile.place(8, 8);
            tile.write(at, &value.to_le_bytes());
        }
        tile
    }

    /// Plants one of each structure and needle; the addresses of the anchors in the tile, by signature.
    pub fn plant(&mut self, signatures: &Signatures) -> Vec<PhysAddr> {
        let mut places = Vec::new();
        for structure in signatures.structures() {
            let size = structure.fields().iter().map(|field| field.offset + u64::from(field.width)).max().unwrap_or(8);
            let base = self.place(size as usize, structure.align as usize);
            for field in structure.fields() {
                let value = value(structure, field, base as u64);
                let bytes = value.to_le_bytes();
                self.write(base + field.offset as usize, bytes.get(..usize::from(field.width)).unwrap_or(&bytes));
            }
            places.push(PhysAddr(base as u64 + structure.anchor().offset));
        }
        for needle in signatures.needles() {
            let at = self.place(needle.bytes.len(), needle.align as usize);
            self.write(at, &needle.bytes);
            places.push(PhysAddr(at as u64));
        }
        places
    }

    /// Room in a frame of its own, at a place in it that differs from frame to frame.
    fn place(&mut self, size: usize, align: usize) -> usize {
        let frame = self.free.pop().unwrap_or_default();
        frame * FRAME + (frame * 360) % (FRAME - size + 1) / align * align
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many aligned slots hold one of the values.
    pub fn count(&self, values: &[u64]) -> u64 {
        let words = self.bytes().as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        words.filter(|word| values.binary_search(word).is_ok()).count() as u64
    }

    /// Frames of page tables.
    pub fn tables() -> u64 {
        (TILE / FRAME / 16) as u64
    }

    /// Memory of that many tiles.
    pub fn memory(&self, tiles: usize) -> Result<PhysicalMemory, RangeError> {
        let mut bytes = Vec::with_capacity(FILE_OFFSET + tiles * TILE);
        bytes.resize(FILE_OFFSET, 0);
        (0..tiles).for_each(|_| bytes.extend_from_slice(&self.bytes));
        let end = PhysAddr((tiles * TILE) as u64);
        let range = MemoryRange { start: PhysAddr(0), end, offset: FileOffset(FILE_OFFSET as u64) };
        PhysicalMemory::owned(bytes, vec![range])
    }
}

/// A value that passes the tests of a field of a structure at `base`, as far as one of each kind goes.
fn value(structure: &Structure, field: &Field, base: u64) -> u64 {
    let mut value = 0;
    for test in &field.tests {
        value = match test {
            Test::Equal(wanted) => *wanted,
            Test::Masked { value: wanted, .. } => value | wanted,
            Test::Range { min, .. } => *min,
            Test::OneOf(values) => values.first().copied().unwrap_or_default(),
            Test::UserPointer { .. } => HEAP + 0x1_0000,
            Test::KernelPointer { .. } => 0xffff_8880_0001_0000,
            Test::EqualField(index) => {
                structure.fields().get(*index).map_or(0, |other| self::value(structure, other, base))
            }
            Test::PageOffsetOfSelf(_) => value,
        };
    }
    let address = base + field.offset;
    field.tests.iter().fold(value, |value, test| match test {
        Test::PageOffsetOfSelf(bytes) => value & !0xfff | address.wrapping_add_signed(*bytes) & 0xfff,
        _ => value,
    })
}

/// Addresses as a sweep looks for them: types of the executable, and types on the heap.
pub fn sweep_values(count: usize) -> Vec<u64> {
    let value = |n: u64| if n.is_multiple_of(2) { TYPES + n * 0x130 } else { HEAP + n * 0x1_0130 };
    let mut values: Vec<u64> = (0..count as u64).map(value).collect();
    values.sort_unstable();
    values
}

/// The byte needles that all benchmarks look for: the first `count` of `benches/needles.txt`.
pub fn needles(count: usize) -> Result<Signatures, Box<dyn Error>> {
    let lines = include_str!("../../../benches/needles.txt").lines().take(count).enumerate();
    let text: String = lines.map(|(n, hex)| format!("[[needle]]\nname = \"bench.{n}\"\nhex = \"{hex}\"\n")).collect();
    Ok(Signatures::from_texts([("needles.txt", text.as_str())])?)
}

/// The structures that all benchmarks look for: the first `count` of `benches/structures.toml`.
pub fn structures(count: usize) -> Result<Signatures, Box<dyn Error>> {
    let text = include_str!("../../../benches/structures.toml");
    let all = Signatures::from_texts([("structures.toml", text)])?;
    let names: Vec<String> = all.structures().iter().take(count).map(|structure| structure.name.clone()).collect();
    Ok(all.only(&names)?)
}
