//! Many signatures tested at once: each slot of a frame is looked up, digit by digit, in tables with one bit a signature.
//!
//! A signature with its anchor in one slot is an *entry*. The tables say for each value of a digit which
//! entries allow it; what is left after all digits, and-ed, are the entries that a slot could be. That costs
//! the same for one entry as for a lane full of them. A few digits are enough, and which ones depends on what memory
//! holds: they are chosen on a sample of it, which decides speed only, never what is found. The few slots
//! that pass are held against the slots beside them in the same way, before they are checked one by one.

use super::sample::Sample;
use super::slot_set::{Digit, SlotSet};
use crate::signature::Structure;

/// What an engine's vectors can look up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Bits of a digit.
    pub(super) digit_bits: u32,
    /// Entries that have a bit in a lane.
    pub(super) entries: usize,
    /// Digits of the value less its place that are looked up, if any is.
    pub(super) relative: usize,
    /// Digits of the value that are looked up, where few are enough, and at most.
    pub(super) few: usize,
    pub(super) many: usize,
}

/// Digits that are looked up in a neighbour.
pub(super) const NEIGHBOUR_DIGITS: usize = 3;
/// Slots beside an entry's own one that are looked at before the exact check, best first.
const NEIGHBOURS: [isize; 6] = [-1, 1, 2, -2, 3, -3];
/// A sieve that lets through less than one slot in so many needs no more digits.
const RARE: u64 = 4096;

/// For each value of a digit the entries that allow it. With fewer than four bits a digit the first ones are used.
pub(super) type Table = [u64; 16];

/// What a signature says of the slot of its anchor, and of those around it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    slot: SlotSet,
    /// One for each of [`NEIGHBOURS`]; none if nothing is known.
    around: Vec<SlotSet>,
}

impl Entry {
    /// A structure's, for an anchor in the 8 bytes at `slot` (counted from the base).
    pub(super) fn of_structure(structure: &Structure, slot: i64, digit_bits: u32) -> Self {
        let at = |distance: isize| SlotSet::of_structure(structure, slot + 8 * distance as i64, digit_bits);
        Self { slot: at(0), around: NEIGHBOURS.into_iter().map(at).collect() }
    }

    /// That of bytes that begin with a slot.
    pub(super) fn of_bytes(bytes: &[u8], digit_bits: u32) -> Self {
        Self { slot: SlotSet::of_bytes(bytes, digit_bits), around: Vec::new() }
    }
}

/// As many entries as a lane has bits, and the digits that tell them from most of memory.
#[derive(Clone, Debug)]
pub(super) struct Sieve {
    /// What each bit of a table stands for: the numbers that came with the entries.
    members: Vec<usize>,
    /// Looked up in the value less its place; none, or as many as the shape says.
    pub(super) relative: Vec<(u32, Table)>,
    /// Looked up in the value.
    pub(super) value: Vec<(u32, Table)>,
    pub(super) neighbours: Vec<Neighbour>,
    /// No entry allows a slot of zeros: it passes over them first, for memory is full of them.
    pub(super) skips_zeros: bool,
}

/// What the entries say of a slot beside theirs.
#[derive(Clone, Debug)]
pub(super) struct Neighbour {
    /// Bytes from an entry's own slot.
    pub(super) distance: isize,
    pub(super) digits: [(u32, Table); NEIGHBOUR_DIGITS],
    /// The entries that allow zero.
    pub(super) zero: u64,
}

impl Sieve {
    /// Sieves for all entries; the numbers beside them are what [`Sieve::members`] gives back.
    pub(super) fn split(mut entries: Vec<(usize, Entry)>, sample: &Sample, shape: Shape) -> Vec<Self> {
        // Where there is more than one sieve, those that know their place go together: the others need fewer digits.
        entries.sort_by_key(|(_, entry)| (entry.slot.may_be_zero, !entry.slot.knows_place()));
        let kinds = entries.chunk_by(|(_, a), (_, b)| a.slot.may_be_zero == b.slot.may_be_zero);
        kinds.flat_map(|kind| kind.chunks(shape.entries)).map(|part| Self::new(part, sample, shape)).collect()
    }

    fn new(entries: &[(usize, Entry)], sample: &Sample, shape: Shape) -> Self {
        let slot_sets = entries.iter().map(|(_, entry)| Some(&entry.slot));
        let skips_zeros = entries.iter().all(|(_, entry)| !entry.slot.may_be_zero);
        let zero = if skips_zeros { 0 } else { u64::MAX };
        let digits =
            select_digits(&tables(slot_sets, shape), sample, zero, shape.relative, shape.many + NEIGHBOUR_DIGITS);
        let side = |relative: bool| digits.iter().filter(move |(digit, _)| digit.is_relative == relative);
        let of_side = |relative: bool| side(relative).map(|(digit, table)| (digit.shift, *table)).collect::<Vec<_>>();
        let (mut relative, mut value) = (of_side(true), of_side(false));
        let later = value.split_off(value.len().min(shape.many));
        let filled = |used: usize, steps: [usize; 2]| steps.into_iter().find(|step| used <= *step).unwrap_or(used);
        // A digit in which nothing is told apart fills up what a kernel compiled for more digits looks at.
        relative.resize(filled(relative.len(), [0, shape.relative]), (0, [u64::MAX; 16]));
        value.resize(filled(value.len(), [shape.few, shape.many]), (0, [u64::MAX; 16]));
        let neighbours = NEIGHBOURS.into_iter().enumerate().filter_map(|(n, distance)| {
            let sets = entries.iter().map(|(_, entry)| entry.around.get(n));
            Neighbour::new(sets, distance * 8, sample, shape)
        });
        let neighbours = Neighbour::itself(&later).into_iter().chain(neighbours).collect();
        Self { members: entries.iter().map(|(member, _)| *member).collect(), relative, value, neighbours, skips_zeros }
    }

    /// The entries of these bits.
    pub(super) fn members(&self, mut bits: u64) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || {
            let bit = bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            self.members.get(bit).copied()
        })
    }
}

impl Neighbour {
    /// An entry's own slot once more, with the digits for which the first look has no room.
    fn itself(later: &[(u32, Table)]) -> Option<Self> {
        let mut digits = [(0, [u64::MAX; 16]); NEIGHBOUR_DIGITS];
        for (to, digit) in digits.iter_mut().zip(later) {
            *to = *digit;
        }
        (!later.is_empty()).then_some(Self { distance: 0, digits, zero: u64::MAX })
    }

    /// `None` if no entry says anything.
    fn new<'a>(
        sets: impl Iterator<Item = Option<&'a SlotSet>> + Clone,
        distance: isize,
        sample: &Sample,
        shape: Shape,
    ) -> Option<Self> {
        let may_be_zero = |set: Option<&SlotSet>| set.is_none_or(|set| set.may_be_zero);
        let zero = (0..).zip(sets.clone()).filter(|(_, set)| may_be_zero(*set)).fold(0, |zero, (n, _)| zero | 1 << n);
        let tables = tables(sets.clone(), shape);
        let chosen = select_digits(&tables, sample, zero, 0, NEIGHBOUR_DIGITS);
        if chosen.is_empty() && sets.clone().all(may_be_zero) {
            return None;
        }
        let mut digits = [(0, [u64::MAX; 16]); NEIGHBOUR_DIGITS];
        for (to, (digit, table)) in digits.iter_mut().zip(chosen) {
            *to = (digit.shift, table);
        }
        Some(Self { distance, digits, zero })
    }
}

fn look_up(table: &Table, digit: Digit, value: u64, place: usize) -> u64 {
    table.get(digit.of(value, place as u64)).copied().unwrap_or(u64::MAX)
}

/// The table of each digit; entry `n` is the bit `n`, one without a set allows all.
fn tables<'a>(sets: impl Iterator<Item = Option<&'a SlotSet>>, shape: Shape) -> Vec<(Digit, Table)> {
    let mut tables: Vec<(Digit, Table)> = Digit::all(shape.digit_bits).map(|digit| (digit, [0; 16])).collect();
    for (set, n) in sets.zip(0..) {
        let mut digits = set.map(SlotSet::digits);
        for (_, table) in &mut tables {
            let allowed = digits.as_mut().and_then(Iterator::next).map_or(u16::MAX, |(_, allowed)| allowed);
            let values = table.iter_mut().enumerate().filter(|(value, _)| allowed >> value & 1 != 0);
            values.for_each(|(_, entries)| *entries |= 1 << n);
        }
    }
    tables
}

/// The digits that reject most of the sample, best first: up to so many of the value less its place, and of the value itself.
/// `zero` are the entries that a slot of zeros can be.
fn select_digits(
    tables: &[(Digit, Table)],
    sample: &Sample,
    zero: u64,
    most_relative: usize,
    most_value: usize,
) -> Vec<(Digit, Table)> {
    let all = tables.iter().fold(0, |all, (_, table)| table.iter().fold(all, |all, entries| all | entries));
    let start = |value: u64| if value == 0 { all & zero } else { all };
    let mut left: Vec<(u64, usize, u64)> =
        sample.slots.iter().map(|(value, place)| (*value, *place, start(*value))).filter(|slot| slot.2 != 0).collect();
    let mut chosen: Vec<(Digit, Table)> = Vec::new();
    let mut passing = left.iter().map(|(.., bits)| u64::from(bits.count_ones())).sum::<u64>();
    loop {
        let relative = chosen.iter().filter(|(digit, _)| digit.is_relative).count();
        let value = chosen.len() - relative;
        let open = tables.iter().filter(|(digit, _)| {
            let is_chosen = chosen.iter().any(|(other, _)| other == digit);
            !is_chosen && if digit.is_relative { relative < most_relative } else { value < most_value }
        });
        let passing_with = |(digit, table): &(Digit, Table)| {
            let bits = |(value, place, bits): &(u64, usize, u64)| bits & look_up(table, *digit, *value, *place);
            left.iter().map(|slot| u64::from(bits(slot).count_ones())).sum::<u64>()
        };
        let best = open.map(|candidate| (passing_with(candidate), candidate)).min_by_key(|(passing, _)| *passing);
        let Some((fewer, (digit, table))) = best.filter(|(fewer, _)| *fewer < passing - passing / 64) else { break };
        for (value, place, bits) in &mut left {
            *bits &= look_up(table, *digit, *value, *place);
        }
        left.retain(|(.., bits)| *bits != 0);
        chosen.push((*digit, *table));
        passing = fewer;
        if passing * RARE < sample.slots.len() as u64 {
            break;
        }
    }
    chosen
}
