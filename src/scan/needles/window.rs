//! The window of a needle: its rarest few bytes, by which it is looked for.

/// Bytes of a window.
pub(super) const WINDOW: usize = 4;

/// Where a needle is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Place of the window in the needle.
    pub(super) offset: usize,
    /// The bytes, with zeros after the end of a shorter needle.
    pub(super) bytes: [u8; WINDOW],
    /// Bytes that count.
    pub(super) len: usize,
}

impl Window {
    /// The window of a needle that is the rarest in memory.
    pub(super) fn of(needle: &[u8]) -> Self {
        let len = needle.len().min(WINDOW);
        let rarity = |window: &[u8]| window.iter().map(|byte| u32::from(rarity(*byte))).sum::<u32>();
        let rarest = needle.windows(len.max(1)).enumerate().rev().max_by_key(|(_, window)| rarity(window));
        let (offset, found) = rarest.unwrap_or_default();
        let mut bytes = [0; WINDOW];
        bytes.iter_mut().zip(found).for_each(|(to, from)| *to = *from);
        Self { offset, bytes, len }
    }

    /// The bytes that count.
    pub(super) fn counting(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// The share of the memory that is this byte.
pub(super) fn share(byte: u8) -> f32 {
    (-f32::from(rarity(byte)) / 4.0).exp2()
}

/// How rare a byte is: four times the negative logarithm, to base 2, of its share of the memory.
fn rarity(byte: u8) -> u8 {
    RARITY.get(usize::from(byte)).copied().unwrap_or_default()
}

/// As in the frames of two dumps that are not all zeros.
#[rustfmt::skip] // sixteen to a line
const RARITY: [u8; 256] = [
     4, 27, 30, 33, 33, 33, 37, 38, 32, 37, 34, 38, 36, 38, 38, 29,
    32, 35, 39, 40, 38, 36, 37, 36, 35, 37, 38, 38, 36, 38, 39, 36,
    25, 39, 40, 42, 32, 39, 43, 42, 35, 36, 38, 39, 35, 35, 32, 35,
    32, 33, 39, 39, 39, 37, 39, 38, 37, 37, 36, 40, 37, 37, 38, 38,
    33, 33, 41, 38, 34, 36, 41, 41, 25, 35, 41, 42, 32, 36, 41, 41,
    35, 42, 38, 36, 36, 36, 42, 42, 39, 42, 43, 38, 38, 39, 42, 31,
    34, 30, 35, 33, 32, 28, 33, 35, 34, 31, 42, 37, 33, 34, 31, 31,
    31, 42, 30, 31, 28, 33, 39, 39, 37, 38, 42, 42, 39, 40, 43, 25,
    31, 34, 39, 35, 35, 34, 44, 42, 38, 29, 45, 31, 43, 31, 43, 40,
    33, 42, 44, 29, 41, 37, 44, 41, 39, 41, 45, 44, 43, 44, 45, 42,
    33, 43, 45, 44, 40, 42, 41, 45, 39, 34, 38, 42, 42, 44, 45, 42,
    34, 45, 45, 44, 43, 42, 39, 43, 39, 42, 41, 39, 39, 40, 40, 42,
    31, 38, 41, 38, 39, 40, 40, 37, 33, 31, 44, 44, 22, 45, 44, 44,
    34, 40, 41, 42, 42, 44, 43, 41, 37, 44, 42, 43, 43, 44, 42, 39,
    34, 44, 42, 44, 41, 42, 43, 42, 32, 36, 42, 41, 42, 43, 43, 40,
    34, 42, 42, 39, 43, 43, 39, 40, 39, 41, 38, 36, 36, 39, 33, 19,
];
