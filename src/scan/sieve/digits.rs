//! Which digits tell the entries of a sieve from most of memory: chosen on a sample of it.

use super::Entry;
use crate::scan::sample::{BESIDE, Sample};
use crate::scan::slot_set::{Digit, SlotSet};

/// Slots of the sample per one that passes, at which no more digits are needed.
const RARE: usize = 4096;
/// Of so many windows of the sample one is looked at to choose, and all to see what that is worth.
const EVERY: usize = 4;

/// For each value of a digit the entries that allow it, a bit each.
pub(super) type Table = [u64; 16];

/// A digit of a slot beside an entry's own one, or of that itself, and what the entries say of it.
#[derive(Clone, Debug)]
pub(super) struct Column {
    /// Slots from an entry's own one.
    pub(super) distance: isize,
    pub(super) digit: Digit,
    pub(super) table: Table,
    /// The digit's value in each window of the sample.
    pub(super) seen: Vec<Option<u8>>,
    /// How many entries it denies, in all windows that are looked at to choose.
    denies: usize,
}

impl Column {
    /// The columns in which the entries say anything. Entry `n` is bit `n`.
    pub(super) fn all(entries: &[(usize, Entry)], sample: &Sample) -> Vec<Self> {
        let mut columns = Vec::new();
        for distance in -BESIDE..=BESIDE {
            let sets: Vec<Option<&SlotSet>> = entries.iter().map(|(_, entry)| entry.at(distance)).collect();
            for (digit, n) in Digit::all().filter(|digit| distance == 0 || !digit.is_relative).zip(0..) {
                let mut table = [0; 16];
                for (set, bit) in sets.iter().zip(0..) {
                    let allowed = set.map_or(u16::MAX, |set| set.allowed(n));
                    let values = table.iter_mut().enumerate().filter(|(value, _)| allowed >> value & 1 != 0);
                    values.for_each(|(_, entries)| *entries |= 1 << bit);
                }
                if table.iter().any(|entries| Some(entries) != table.iter().max()) {
                    let value = |value: u64, place: usize| digit.of(value, place as u64) as u8;
                    let seen = sample.windows.iter();
                    let seen: Vec<Option<u8>> =
                        seen.map(|window| window.at(distance).map(|v| value(v, window.place))).collect();
                    let denied = table.map(|allowed: u64| entries.len() - allowed.count_ones() as usize);
                    let values = seen.iter().step_by(EVERY).flatten();
                    let denies = values.filter_map(|value| denied.get(usize::from(*value))).sum();
                    columns.push(Self { distance, digit, table, seen, denies });
                }
            }
        }
        columns
    }

    /// The bytes of a slot that have to be known for the digit, a bit each.
    pub(super) fn bytes(&self) -> u8 {
        if self.digit.is_relative { 0b11 } else { 1 << (self.digit.shift / 8) }
    }

    /// The entries that a window of the sample could be.
    fn entries_in(&self, window: usize) -> u64 {
        self.look_up(&self.table, window)
    }

    /// What a table says of the digit in a window of the sample.
    pub(super) fn look_up(&self, table: &Table, window: usize) -> u64 {
        let value = self.seen.get(window).copied().flatten();
        value.and_then(|value| table.get(usize::from(value))).copied().unwrap_or(u64::MAX)
    }
}

/// The columns that reject most of the sample, best first: at most so many, which look at no more than so many bytes of a
/// slot. Begins with as many of `first` as fit.
pub(super) fn choose<'a>(
    columns: impl IntoIterator<Item = &'a Column>,
    sample: &Sample,
    first: &[&'a Column],
    most: usize,
    most_bytes: u32,
) -> Vec<&'a Column> {
    let mut open: Vec<Open<'a>> =
        columns.into_iter().map(|column| Open { column, gain: column.denies, chosen: None }).collect();
    let entries = open.iter().flat_map(|open| open.column.table).fold(0, |all, entries| all | entries);
    let windows = (0..sample.windows.len()).step_by(EVERY).map(|window| (window, entries));
    let mut choice = Choice { chosen: Vec::new(), bytes: 0, left: windows.collect() };
    let enough = choice.left.len() / RARE;
    let fits = |choice: &Choice<'a>, column: &Column| (choice.bytes | column.bytes()).count_ones() <= most_bytes;
    for column in first {
        if !fits(&choice, column) {
            break;
        }
        choice.add(column);
    }
    open.retain(|open| !choice.chosen.iter().any(|chosen| std::ptr::eq(*chosen, open.column)));
    while choice.chosen.len() < most {
        open.retain(|open| fits(&choice, open.column));
        let passing = choice.passing(|_, bits| bits);
        // What a column gains only falls with others that are chosen: that which is known of most need not be seen again.
        let best = loop {
            let Some((n, best)) = open.iter_mut().enumerate().max_by_key(|(n, open)| (open.gain, usize::MAX - n))
            else {
                break None;
            };
            if best.chosen == Some(choice.chosen.len()) {
                break Some(n);
            }
            best.gain = passing - choice.passing(|window, bits| bits & best.column.entries_in(window));
            best.chosen = Some(choice.chosen.len());
        };
        let Some(best) = best.map(|n| open.swap_remove(n)).filter(|best| passing > enough && best.gain > passing / 64)
        else {
            break;
        };
        choice.add(best.column);
    }
    choice.chosen
}

/// A column that may be chosen.
struct Open<'a> {
    column: &'a Column,
    /// By how much less would pass with it, when that many columns had been chosen; at most.
    gain: usize,
    chosen: Option<usize>,
}

/// Columns that are chosen, the bytes that they look at, and the windows that pass them with what they could be.
struct Choice<'a> {
    chosen: Vec<&'a Column>,
    bytes: u8,
    left: Vec<(usize, u64)>,
}

impl<'a> Choice<'a> {
    fn add(&mut self, column: &'a Column) {
        self.left.iter_mut().for_each(|(window, bits)| *bits &= column.entries_in(*window));
        self.left.retain(|(_, bits)| *bits != 0);
        self.bytes |= column.bytes();
        self.chosen.push(column);
    }

    /// How much passes, if the entries of a window are reduced to these.
    fn passing(&self, entries: impl Fn(usize, u64) -> u64) -> usize {
        self.left.iter().map(|(window, bits)| entries(*window, *bits).count_ones() as usize).sum()
    }
}
