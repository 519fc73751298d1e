//! Many signatures tested at once: each slot of a frame is looked up, digit by digit, in tables with one bit a signature.
//!
//! A signature with its anchor in one slot is an *entry*. The tables say for each value of a digit which
//! entries allow it; what is left after all digits, and-ed, are the entries that a slot could be. That costs
//! the same for one entry as for 64. A few digits are enough, and which ones depends on what memory holds:
//! they are chosen on a sample of it, which decides speed only, never what is found.

use super::nibbles::{Digit, SlotSet};
use super::sample::Sample;

/// Entries of one sieve: the bits of a table's entry.
pub(super) const ENTRIES: usize = 64;
/// Digits of the value that are looked up, at most, and at most where that is enough.
pub(super) const VALUE_DIGITS: usize = 6;
pub(super) const FEW_VALUE_DIGITS: usize = 3;
/// Digits of the value less its place that are looked up, if any is.
pub(super) const OWN_DIGITS: usize = 3;
/// Tables narrower than [`ENTRIES`] bits have this many, and fold entries into them.
const BUCKETS: usize = 8;
/// A sieve that lets through less than one slot in so many needs no more digits.
const RARE: u64 = 4096;

/// For each value of a digit the entries that allow it.
pub(super) type Table = [u64; 16];

/// Up to 64 entries, and the digits that tell them from most of memory.
#[derive(Clone, Debug)]
pub(super) struct Sieve {
    /// What the bits of a table stand for: indices of the plan's slot signatures.
    members: Vec<(u64, usize)>,
    /// Looked up in the value less its place; none, or [`OWN_DIGITS`].
    pub(super) own: Vec<(u32, Table)>,
    /// Looked up in the value; [`FEW_VALUE_DIGITS`] or [`VALUE_DIGITS`].
    pub(super) value: Vec<(u32, Table)>,
    digits: Vec<(Digit, Table)>,
    /// No entry allows a slot of zeros: it passes over them first, for memory is full of them.
    pub(super) skips_zeros: bool,
}

impl Sieve {
    /// Sieves for all sets; the numbers beside the sets are what [`Sieve::passed`] gives back.
    pub(super) fn split(mut sets: Vec<(usize, SlotSet)>, sample: &Sample) -> Vec<Self> {
        // Sets that are alike come together: where buckets are fewer than entries, they share one.
        sets.sort_by(|(_, a), (_, b)| a.may_be_zero.cmp(&b.may_be_zero).then_with(|| a.cmp(b)));
        let kinds = sets.chunk_by(|(_, a), (_, b)| a.may_be_zero == b.may_be_zero);
        kinds.flat_map(|kind| kind.chunks(ENTRIES)).map(|part| Self::new(part, sample)).collect()
    }

    fn new(sets: &[(usize, SlotSet)], sample: &Sample) -> Self {
        // Entry `8 b + j` falls into bucket `j`: neighbours into the same one.
        let per_bucket = sets.len().div_ceil(BUCKETS).max(1);
        let bits = (0..sets.len()).map(|n| 1u64 << (n / per_bucket + n % per_bucket * BUCKETS));
        let entries: Vec<(u64, &SlotSet)> = bits.zip(sets.iter().map(|(_, set)| set)).collect();
        let members = entries.iter().zip(sets).map(|((bit, _), (member, _))| (*bit, *member)).collect();
        let tables: Vec<(Digit, Table)> = Digit::all().map(|digit| (digit, table(&entries, digit))).collect();
        let skips_zeros = sets.iter().all(|(_, set)| !set.may_be_zero);
        let digits = choose(&tables, sample, skips_zeros);
        let side = |own: bool| digits.iter().filter(move |(digit, _)| digit.is_own() == own);
        let of_side = |own: bool| side(own).map(|(digit, table)| (digit.shift(), *table)).collect::<Vec<_>>();
        let (mut own, mut value) = (of_side(true), of_side(false));
        let filled = |used: usize, steps: [usize; 2]| steps.into_iter().find(|step| used <= *step).unwrap_or(used);
        // A digit in which nothing is told apart fills up what a kernel compiled for more digits looks at.
        own.resize(filled(own.len(), [0, OWN_DIGITS]), (0, [u64::MAX; 16]));
        value.resize(filled(value.len(), [FEW_VALUE_DIGITS, VALUE_DIGITS]), (0, [u64::MAX; 16]));
        Self { members, own, value, digits, skips_zeros }
    }

    /// The entries that a slot could be, which lies at byte `place` of its frame.
    pub(super) fn passed(&self, value: u64, place: usize) -> impl Iterator<Item = usize> {
        let zero = self.skips_zeros && value == 0;
        let start = if zero { 0 } else { u64::MAX };
        let left = self.digits.iter().fold(start, |left, (digit, table)| left & look_up(table, *digit, value, place));
        self.members.iter().filter(move |(bit, _)| left & bit != 0).map(|(_, member)| *member)
    }
}

fn look_up(table: &Table, digit: Digit, value: u64, place: usize) -> u64 {
    table.get(digit.of(value, place as u64)).copied().unwrap_or(u64::MAX)
}

fn table(entries: &[(u64, &SlotSet)], digit: Digit) -> Table {
    let mut table = [0; 16];
    for (bit, set) in entries {
        for value in set.of_digit(digit) {
            table.get_mut(value).into_iter().for_each(|entries| *entries |= bit);
        }
    }
    table
}

/// The digits that reject most of the sample, best first.
fn choose(tables: &[(Digit, Table)], sample: &Sample, skips_zeros: bool) -> Vec<(Digit, Table)> {
    let slots = sample.slots.iter().filter(|(value, _)| !skips_zeros || *value != 0);
    let mut left: Vec<(u64, usize, u64)> = slots.map(|(value, place)| (*value, *place, u64::MAX)).collect();
    let mut chosen: Vec<(Digit, Table)> = Vec::new();
    let count = |left: &[(u64, usize, u64)]| left.iter().map(|(.., bits)| u64::from(bits.count_ones())).sum::<u64>();
    let mut passing = count(&left);
    loop {
        let own = chosen.iter().filter(|(digit, _)| digit.is_own()).count();
        let value = chosen.len() - own;
        let open = tables.iter().filter(|(digit, _)| {
            let is_chosen = chosen.iter().any(|(other, _)| other == digit);
            !is_chosen && if digit.is_own() { own < OWN_DIGITS } else { value < VALUE_DIGITS }
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
