//! The ways in which a sieve can test all slots, and the one that is expected to be the fastest.

use super::digits::{Column, Table, choose};
use super::{GROUP, QUAD, QUADS, buckets, buckets_of};
use crate::scan::sample::Sample;

/// Digits that are looked up in all slots, at most.
const MOST_DIGITS: usize = 24;
/// Other digits that are looked up in slots that pass, at most.
const MOST_LOOKS: usize = 6;

/// What 64 slots cost, in cycles of a CPU with 64-byte vectors, as measured: taking four bytes of each apart, looking up a
/// digit for a group, and a slot that passes.
const QUAD_COST: f64 = 40.0;
const DIGIT_COST: f64 = 1.3;
const PASSING_COST: f64 = 64.0 * 100.0;

/// Which digits are looked up in all slots, and which entries share a bucket.
#[derive(Clone, Debug)]
pub(super) struct Way<'a> {
    pub(super) columns: Vec<&'a Column>,
    /// The entries of each bucket; eight in turn are a group.
    pub(super) buckets: Vec<u64>,
    /// What it is expected to cost; less is better.
    pub(super) cost: f64,
}

impl<'a> Way<'a> {
    /// With four bytes of a slot and with eight, and with one, two, four and eight groups, as far as there are entries for them.
    pub(super) fn all(columns: &'a [Column], entries: usize, sample: &Sample) -> Vec<Self> {
        let widest = choose(columns, sample, &[], MOST_DIGITS, u8::BITS);
        let narrow = choose(columns, sample, &widest, MOST_DIGITS, QUAD as u32);
        let groups = [8, 4, 2, 1];
        let first = groups.iter().rposition(|groups| groups * GROUP >= entries).unwrap_or(0);
        let numbers: Vec<usize> = groups.iter().skip(first).map(|groups| groups * GROUP).collect();
        let with = |chosen: Vec<&'a Column>| {
            let shared = buckets::share(&chosen, entries, &numbers).into_iter();
            shared.map(|buckets| Self::new(chosen.clone(), buckets, sample)).collect::<Vec<_>>()
        };
        [narrow, widest].into_iter().flat_map(with).collect()
    }

    fn new(columns: Vec<&'a Column>, buckets: Vec<u64>, sample: &Sample) -> Self {
        let tables: Vec<Table> =
            columns.iter().map(|column| column.table.map(|allowed| buckets_of(&buckets, allowed))).collect();
        let passes = |window: &usize| {
            let left = columns.iter().zip(&tables).try_fold(u64::MAX, |left, (column, table)| {
                let left = left & column.look_up(table, *window);
                (left != 0).then_some(left)
            });
            left.is_some()
        };
        let all = sample.windows.len();
        let passing = (0..all).filter(passes).count() as f64 / all.max(1) as f64;
        let mut way = Self { columns, buckets, cost: 0.0 };
        let digits: usize = way.groups().map(|(columns, _)| columns.len()).sum();
        way.cost = QUAD_COST * way.quads().len() as f64 + DIGIT_COST * digits as f64 + PASSING_COST * passing;
        way
    }

    /// The buckets of each group, and the columns of which they say anything.
    pub(super) fn groups(&self) -> impl Iterator<Item = (Vec<&'a Column>, &[u64])> {
        self.buckets.chunks(GROUP).map(|buckets| {
            let all = buckets_of(buckets, u64::MAX);
            let tells = |column: &&&Column| column.table.iter().any(|allowed| buckets_of(buckets, *allowed) != all);
            (self.columns.iter().filter(tells).copied().collect(), buckets)
        })
    }

    /// The bytes of a slot that have to be known, by fours, in order; bytes that fill up the last four may be any.
    pub(super) fn quads(&self) -> Vec<[u8; QUAD]> {
        let bytes = self.columns.iter().fold(0, |bytes, column| bytes | column.bytes());
        let (used, unused): (Vec<u8>, Vec<u8>) = (0..8).partition(|byte| bytes >> byte & 1 != 0);
        let quads = used.len().div_ceil(QUAD).clamp(1, QUADS);
        let all: Vec<u8> = used.into_iter().chain(unused).take(quads * QUAD).collect();
        all.as_chunks().0.to_vec()
    }

    /// The columns for a closer look: first those that are not looked up in all slots.
    pub(super) fn looks(&self, columns: &'a [Column], sample: &Sample) -> Vec<&'a Column> {
        let others = columns.iter().filter(|column| !self.columns.iter().any(|chosen| std::ptr::eq(*chosen, *column)));
        let mut looks = choose(others, sample, &[], MOST_LOOKS, u8::BITS);
        looks.extend(&self.columns);
        looks
    }
}
