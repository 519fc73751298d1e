//! Which needles may stand where the filter let something pass: a hash table of their windows.

use super::window::{WINDOW, Window};

/// The windows of all needles, by their bytes.
pub(super) struct Windows {
    /// One table for each number of bytes that a window has: only short needles have less than the usual.
    by_length: Vec<Table>,
    largest_offset: usize,
}

/// The windows with one number of bytes.
struct Table {
    /// The bytes that count of what is read as a little-endian number.
    mask: u32,
    /// From the hash to the index in `starts`.
    shift: u32,
    /// Where in `entries` those of each index begin; at the end, where the last ones end.
    starts: Vec<u32>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    window: u32,
    offset: u32,
    needle: u32,
}

impl Windows {
    /// The needles' numbers are the places of their windows.
    pub(super) fn new(windows: Vec<Window>) -> Self {
        let largest_offset = windows.iter().map(|window| window.offset).max().unwrap_or_default();
        let by_length = (1..=WINDOW).filter_map(|len| {
            let entries = windows.iter().zip(0..).filter(|(window, _)| window.len == len).map(|(window, needle)| {
                Entry { window: u32::from_le_bytes(window.bytes), offset: window.offset as u32, needle }
            });
            Table::new(len, entries.collect())
        });
        Self { by_length: by_length.collect(), largest_offset }
    }

    /// The largest distance from the beginning of a needle to its window.
    pub(super) fn largest_offset(&self) -> usize {
        self.largest_offset
    }

    /// Calls `found` with the offset of every window that `bytes` begin with, and the number of its needle.
    #[inline]
    pub(super) fn at(&self, bytes: &[u8], mut found: impl FnMut(usize, usize)) {
        let window = bytes.first_chunk().map_or_else(|| before_the_end(bytes), |whole| u32::from_le_bytes(*whole));
        for table in &self.by_length {
            let window = window & table.mask;
            for entry in table.entries(window).iter().filter(|entry| entry.window == window) {
                found(entry.offset as usize, entry.needle as usize);
            }
        }
    }
}

/// What there is, followed by zeros.
fn before_the_end(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |window, byte| window << 8 | u32::from(*byte))
}

impl Table {
    fn new(len: usize, mut entries: Vec<Entry>) -> Option<Self> {
        // Eight times as many indices as windows, so that most of what is no window has no entry to be compared with.
        let bits = (8 * entries.len()).checked_next_power_of_two().filter(|_| !entries.is_empty())?.ilog2();
        let shift = u32::BITS - bits;
        entries.sort_by_key(|entry| hash(entry.window, shift));
        let first = |index| entries.partition_point(|entry| hash(entry.window, shift) < index) as u32;
        let starts = (0..=1 << bits).map(first).collect();
        Some(Self { mask: u32::MAX >> (8 * (WINDOW - len)), shift, starts, entries })
    }

    /// The entries with the hash of a window.
    #[inline]
    fn entries(&self, window: u32) -> &[Entry] {
        let index = hash(window, self.shift);
        match self.starts.get(index..index + 2) {
            Some([start, end]) => self.entries.get(*start as usize..*end as usize).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// Fibonacci hashing.
fn hash(window: u32, shift: u32) -> usize {
    (window.wrapping_mul(0x9e37_79b1) >> shift) as usize
}

/// Whether a needle stands at the beginning of `bytes`.
///
/// # Errors
/// If not, how many blocks had to be compared to know that.
pub(super) fn compare(needle: &[u8], bytes: &[u8]) -> Result<(), usize> {
    const BLOCK: usize = 64;
    let bytes = bytes.get(..needle.len()).ok_or(1usize)?;
    let blocks = needle.chunks(BLOCK).zip(bytes.chunks(BLOCK));
    blocks.zip(1..).try_for_each(|((a, b), compared)| if a == b { Ok(()) } else { Err(compared) })
}
