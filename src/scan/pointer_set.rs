//! The set of values that a sweep looks for, with quick tests that reject nearly every other value.

use super::filter::Span;
use crate::addr::VirtAddr;

/// Values to sweep for.
#[derive(Clone, Debug)]
pub struct PointerSet {
    sorted: Vec<u64>,
    search: Search,
    /// One bit per hash; the number of words is a power of two.
    bitmap: Vec<u64>,
}

/// What vectors compare with. Values and spans are repeated to fill the array.
#[derive(Clone, Debug)]
pub(super) enum Search {
    Few1([u64; 1]),
    Few2([u64; 2]),
    Few4([u64; 4]),
    Few8([u64; 8]),
    Spans1([Span; 1]),
    Spans4([Span; 4]),
}

/// A gap in the values that is worth a span of its own: objects of one mapping lie closer together.
const GAP: u64 = 1 << 24;

impl PointerSet {
    /// The set of these values; order and repetition do not matter.
    pub fn new(values: &[u64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let bits_per_value = 16;
        let words = (sorted.len() * bits_per_value / 64).clamp(1 << 6, 1 << 20).next_power_of_two();
        let mut set = Self { search: search(&sorted), bitmap: vec![0; words], sorted };
        for value in &set.sorted {
            let (word, bit) = set.hash(*value);
            set.bitmap.get_mut(word).into_iter().for_each(|w| *w |= bit);
        }
        set
    }

    /// The set of these addresses.
    pub fn of<'a>(addresses: impl IntoIterator<Item = &'a VirtAddr>) -> Self {
        Self::new(&addresses.into_iter().map(|address| address.0).collect::<Vec<u64>>())
    }

    /// The values, sorted.
    pub fn values(&self) -> &[u64] {
        &self.sorted
    }

    /// Whether a value is in the set.
    pub fn contains(&self, value: u64) -> bool {
        self.sorted.binary_search(&value).is_ok()
    }

    /// The same, quicker where the answer is mostly no.
    #[inline]
    pub(crate) fn contains_quick(&self, value: u64) -> bool {
        let (word, bit) = self.hash(value);
        self.bitmap.get(word).is_some_and(|w| w & bit != 0) && self.contains(value)
    }

    pub(super) fn search(&self) -> &Search {
        &self.search
    }

    /// Word and bit of a value in the bitmap.
    fn hash(&self, value: u64) -> (usize, u64) {
        // Fibonacci hashing: the upper bits of the product are well mixed, pointers' low bits are not.
        let hash = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((hash >> 6) as usize & (self.bitmap.len() - 1), 1 << (hash & 63))
    }
}

impl Default for PointerSet {
    fn default() -> Self {
        Self::new(&[])
    }
}

fn search(sorted: &[u64]) -> Search {
    match sorted.len() {
        0 | 1 => Search::Few1(padded(sorted.iter().copied(), 0)),
        2 => Search::Few2(padded(sorted.iter().copied(), 0)),
        3 | 4 => Search::Few4(padded(sorted.iter().copied(), 0)),
        5..=8 => Search::Few8(padded(sorted.iter().copied(), 0)),
        _ => spans(sorted),
    }
}

/// Up to four spans that hold all values, cut at the widest gaps.
fn spans(sorted: &[u64]) -> Search {
    let align = sorted.iter().map(|value| value.trailing_zeros()).min().unwrap_or_default().min(63);
    let pairs = || sorted.iter().copied().zip(sorted.iter().copied().skip(1));
    let mut gaps: Vec<(u64, u64)> = pairs().filter(|(low, high)| high - low > GAP).collect();
    gaps.sort_unstable_by_key(|(low, high)| std::cmp::Reverse(high - low));
    gaps.truncate(3);
    gaps.sort_unstable();
    let first = sorted.first().copied().unwrap_or_default();
    let last = sorted.last().copied().unwrap_or_default();
    let lows = std::iter::once(first).chain(gaps.iter().map(|(_, high)| *high));
    let highs = gaps.iter().map(|(low, _)| *low).chain(std::iter::once(last));
    let mut spans = lows.zip(highs).map(|(low, high)| Span::new(low, high, align));
    let whole = Span::new(first, last, align);
    if gaps.is_empty() { Search::Spans1([whole]) } else { Search::Spans4(padded(&mut spans, whole)) }
}

/// The items, the last one repeated as often as needed.
fn padded<T: Copy, const N: usize>(mut items: impl Iterator<Item = T>, mut last: T) -> [T; N] {
    std::array::from_fn(|_| {
        last = items.next().unwrap_or(last);
        last
    })
}
