//! What all look at: the bytes of a dump with needles and structures planted in them, in one mapped file.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use tempfile::NamedTempFile;
use tensorcarve::dump;

use crate::job::{FRAME, TYPE_SIZE, needle_list};

/// No peer takes more than 4 GiB at once, and nobody wants to wait for the slowest.
const MAX_SIZE: usize = 1 << 30;
/// How often each needle is planted.
const COPIES: usize = 10;
/// How many `type` objects are planted, and how many that miss by one field.
const TYPES: usize = 200;

pub struct Input {
    pub file: NamedTempFile,
    pub bytes: Mmap,
}

impl Input {
    /// The first gibibyte of the physical memory in the dump at `path`, its ranges end to end, and what is planted.
    pub fn planted(path: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        let dump = dump::open(path, &Default::default(), &|_, _| ())?;
        let mut bytes = Vec::new();
        for range in dump.memory.ranges() {
            let range = dump.memory.range_bytes(range);
            bytes.extend_from_slice(&range[..range.len().min(MAX_SIZE - bytes.len()) / FRAME * FRAME]);
        }
        plant(&mut bytes);
        let mut file = NamedTempFile::new()?;
        file.write_all(&bytes)?;
        Ok(Self { bytes: map(&file)?, file })
    }
}

pub fn map(file: &NamedTempFile) -> std::io::Result<Mmap> {
    // SAFETY: nobody else knows the file, and it is written no more.
    unsafe { Mmap::map(file.as_file()) }
}

fn plant(bytes: &mut [u8]) {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut taken: Vec<Range<usize>> = Vec::new();
    let mut place = |random: &mut Random, size: usize, align: usize| loop {
        let start = random.below(bytes.len() - size) / align * align;
        let crosses = align > 1 && start % FRAME + size > FRAME;
        if !crosses && taken.iter().all(|t| start + size <= t.start || t.end <= start) {
            taken.push(start..start + size);
            return start;
        }
    };
    let mut planted: Vec<(usize, Vec<u8>)> = Vec::new();
    for needle in needle_list() {
        planted.extend((0..COPIES).map(|_| (place(&mut random, needle.len(), 1), needle.clone())));
    }
    for n in 0..2 * TYPES {
        let at = place(&mut random, TYPE_SIZE, 8);
        let own = 0x5555_5595_4000 | (at % FRAME) as u64;
        let mut fields = [1, own, 0, 0x7f12_3456_7001, 928, 40];
        if n >= TYPES {
            fields[n % 6] = [0, own + 8, 5000, 12, 100, 48][n % 6];
        }
        planted.push((at, fields.iter().flat_map(|field: &u64| field.to_le_bytes()).collect()));
    }
    for (at, what) in planted {
        bytes[at..at + what.len()].copy_from_slice(&what);
    }
}

/// Xorshift: the same places every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}
