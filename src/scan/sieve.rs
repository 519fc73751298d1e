//! Many signatures tested at once: slots are looked up, digit by digit, in tables with one bit a bucket of them.
//!
//! A signature with its anchor in one slot is an *entry*. Vectors take the bytes of many slots apart into planes, one for each
//! byte of a slot, so that one byte shuffle looks up a digit of all of them at once. A table says for each value of a digit which
//! of eight buckets of entries deny it; a slot can be in those that no digit denies. Digits of the slots around it are looked up
//! in the same way, at another place. One that lies in another frame is none that a table knows, and denies nothing.
//!
//! A few digits are enough, and which ones depends on what memory holds: they are chosen on a sample of it, which decides
//! speed only, never what is found. So are the buckets, and how many bytes of a slot are looked at. The few slots that pass are
//! held against tables with a bit for each entry, before what is left is checked exactly.

mod buckets;
mod digits;
mod looks;
mod way;

use std::fmt;

use super::sample::{BESIDE, Sample};
use super::slot_set::{Digit, SlotSet};
use crate::addr::FRAME_SIZE;
use crate::signature::Structure;
use digits::Column;
use looks::Looks;
use way::Way;

/// Entries of a sieve: those that have a bit in its tables.
const ENTRIES: usize = 64;
/// Bytes of slots that are taken apart together.
pub(super) const QUAD: usize = 4;
/// Quads of bytes in a slot.
pub(super) const QUADS: usize = 2;
/// Buckets of a group: they have a bit each in a byte.
const GROUP: usize = 8;
/// Where the digits of a value less its place are among [`PlaneDigit::source`]s: behind those of all bytes.
pub(super) const RELATIVE: usize = 2 * QUAD * QUADS;
/// Digits of a slot that can be looked up: two of each byte, three of the value less its place.
pub(super) const SOURCES: usize = RELATIVE + 3;

/// What a signature says of the slot of its anchor, and of those around it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// From [`BESIDE`] slots before it on.
    around: Vec<SlotSet>,
}

impl Entry {
    /// A structure's, for an anchor in the 8 bytes at `slot` (counted from the base).
    pub(super) fn of_structure(structure: &Structure, slot: i64) -> Self {
        let at = |distance: isize| SlotSet::of_structure(structure, slot + 8 * distance as i64);
        Self { around: (-BESIDE..=BESIDE).map(at).collect() }
    }

    /// That of bytes that begin with a slot.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let at = |distance: isize| {
            let from = usize::try_from(8 * distance).ok();
            from.and_then(|from| bytes.get(from..)).map_or_else(SlotSet::any, SlotSet::of_bytes)
        };
        Self { around: (-BESIDE..=BESIDE).map(at).collect() }
    }

    /// What it says of the slot so many from its own.
    fn at(&self, distance: isize) -> Option<&SlotSet> {
        self.around.get((distance + BESIDE).cast_unsigned())
    }

    fn may_be_zero(&self, distance: isize) -> bool {
        self.at(distance).is_none_or(|set| set.may_be_zero)
    }
}

/// A digit of all slots, and what the buckets of a group say of it.
#[derive(Clone, Debug)]
pub(super) struct PlaneDigit {
    /// Slots from an entry's own one, at most [`BESIDE`].
    pub(super) distance: isize,
    /// Which digit: below [`RELATIVE`] twice the place of its byte among [`Sieve::quads`], and one more for the high half.
    pub(super) source: usize,
    /// For each value the buckets that deny it.
    pub(super) table: [u8; 16],
}

/// Up to eight buckets, which are looked up together.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) digits: Vec<PlaneDigit>,
    /// For each set of buckets the entries in them.
    entries: [u64; 1 << GROUP],
}

/// At most [`ENTRIES`] entries, and the digits that tell them from most of memory.
#[derive(Clone, Debug)]
pub(super) struct Sieve {
    /// What each entry stands for: the numbers that came with them.
    members: Vec<usize>,
    /// The bytes of a slot that are looked at, four at a time; 0 and 1 are first if there are digits of the value less its place.
    pub(super) quads: Vec<[u8; QUAD]>,
    /// Whether there are.
    pub(super) is_relative: bool,
    pub(super) groups: Vec<Group>,
    looks: Looks,
}

impl Sieve {
    /// Sieves for all entries; the numbers beside them are what [`Sieve::members`] gives back.
    pub(super) fn split(entries: &[(usize, Entry)], sample: &Sample) -> Vec<Self> {
        let best = |part: &[(usize, Entry)]| {
            let columns = Column::all(part, sample);
            let best = Way::all(&columns, part.len(), sample).into_iter().min_by(|a, b| a.cost.total_cmp(&b.cost))?;
            Some(Self::new(part, &columns, best, sample))
        };
        entries.chunks(ENTRIES).filter_map(best).collect()
    }

    fn new<'a>(entries: &[(usize, Entry)], columns: &'a [Column], way: Way<'a>, sample: &Sample) -> Self {
        let quads = way.quads();
        let places: Vec<u8> = quads.iter().flatten().copied().collect();
        let groups = way.groups().map(|(columns, buckets)| Group {
            digits: columns.iter().map(|column| PlaneDigit::new(column, buckets, &places)).collect(),
            entries: sets(buckets),
        });
        Self {
            members: entries.iter().map(|(member, _)| *member).collect(),
            is_relative: way.columns.iter().any(|column| column.digit.is_relative),
            groups: groups.collect(),
            looks: Looks::new(entries, &way.looks(columns, sample)),
            quads,
        }
    }

    /// The members that a slot of a frame could be, which may be in these buckets of a group.
    #[inline]
    pub(super) fn members(
        &self,
        frame: &[u8; FRAME_SIZE as usize],
        place: usize,
        group: &Group,
        buckets: u8,
    ) -> impl Iterator<Item = usize> {
        let entries = group.entries.get(usize::from(buckets)).copied().unwrap_or_default();
        let mut left = self.looks.reduce(frame, place, entries);
        std::iter::from_fn(move || {
            let entry = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            self.members.get(entry).copied()
        })
    }
}

impl fmt::Display for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits: usize = self.groups.iter().map(|group| group.digits.len()).sum();
        let (entries, groups, bytes) = (self.members.len(), self.groups.len(), self.quads.len() * QUAD);
        write!(
            f,
            "sieve of {entries} entries, 8 x {groups} buckets, {digits} look-ups of digits of {bytes} bytes of each slot"
        )
    }
}

impl PlaneDigit {
    /// The digit of a column, where slots have their bytes in these places.
    fn new(column: &Column, buckets: &[u64], places: &[u8]) -> Self {
        let table = column.table.map(|allowed| !buckets_of(buckets, allowed) as u8);
        let Digit { is_relative, shift } = column.digit;
        let (half, byte) = (shift as usize / 4, (shift / 8) as u8);
        let place = places.iter().position(|other| *other == byte).unwrap_or_default();
        let source = if is_relative { RELATIVE + half } else { 2 * place + half % 2 };
        Self { distance: column.distance, source, table }
    }
}

/// The buckets in which any of the entries are, a bit each.
fn buckets_of(buckets: &[u64], entries: u64) -> u64 {
    let with = buckets.iter().zip(0..).filter(|(bucket, _)| *bucket & entries != 0);
    with.fold(0, |all, (_, bit)| all | 1 << bit)
}

/// The entries in each set of buckets.
fn sets(buckets: &[u64]) -> [u64; 1 << GROUP] {
    std::array::from_fn(|set| {
        let in_set = buckets.iter().enumerate().filter(|(bucket, _)| set >> bucket & 1 != 0);
        in_set.fold(0, |entries, (_, bucket)| entries | bucket)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may simply fail")]
#[allow(clippy::single_range_in_vec_init, reason = "one physical range is meant")]
mod tests;
