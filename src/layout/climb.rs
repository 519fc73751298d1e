//! A layout for a build that no table describes: the nearest table, changed until what it reads makes sense.
//!
//! A later version or a patched build differs from a known one in that something was added to a structure or taken
//! away, so that what follows it moved, or in that a structure is that of another version. Such changes are tried one
//! after the other, and kept where more checks hold (hill climbing).

use std::collections::BTreeSet;

use super::numbers::StructLayout;

/// How far what follows something new may have moved, in units.
const MAX_MOVE: i64 = 4;
/// How often all groups are gone through.
const MAX_ROUNDS: usize = 3;

/// Structures whose numbers change together.
pub(crate) struct Group {
    /// Their names in layout files.
    pub(crate) types: &'static [&'static str],
    /// How many of them, from the first on, are one structure, in which fields may move.
    pub(crate) moving: usize,
    /// What fields move by: the size of a word in bytes, or one bit.
    pub(crate) unit: i64,
}

/// The evidence for a layout: checks of what is read with it.
pub(crate) struct Checks<F> {
    /// How many of the checks hold.
    pub(crate) count: F,
    /// All checks that there are.
    pub(crate) total: usize,
    /// What a change has to bring to be kept: less may be chance.
    pub(crate) margin: usize,
}

impl Group {
    /// Layouts that differ from one in this group: as a table has it, or with a run of its numbers moved.
    fn variants<L: StructLayout>(&self, layout: &L, tables: &[L]) -> Vec<L> {
        let with = |numbers: &mut dyn Iterator<Item = (&'static str, Option<i64>)>| {
            let mut variant = layout.clone();
            numbers.for_each(|(name, value)| variant.set(name, value));
            variant
        };
        let as_table = |table: &L| with(&mut numbers_of(table, self.types));
        let mut variants: Vec<L> = tables.iter().map(as_table).collect();
        let moving = self.types.get(..self.moving).unwrap_or_default();
        let numbers: Vec<(&'static str, i64)> =
            numbers_of(layout, moving).filter_map(|(name, value)| Some((name, value?))).collect();
        let places: BTreeSet<i64> = numbers.iter().map(|(_, value)| *value).collect();
        // What moved is most often all that follows: the longest runs come first.
        let runs = places.iter().rev().flat_map(|last| places.iter().rev().map(move |first| *first..=*last));
        for run in runs.filter(|run| !run.is_empty()) {
            let inside = numbers.iter().filter(|(_, value)| run.contains(value));
            for amount in (1..=MAX_MOVE).flat_map(|units| [units * self.unit, -units * self.unit]) {
                variants.push(with(&mut inside.clone().map(|(name, value)| (*name, Some(value.wrapping_add(amount))))));
            }
        }
        variants
    }
}

/// The numbers of some structures.
fn numbers_of<L: StructLayout>(layout: &L, types: &[&str]) -> impl Iterator<Item = (&'static str, Option<i64>)> {
    let is_of = |name: &str| name.split_once('.').is_some_and(|(of, _)| types.contains(&of));
    layout.numbers().into_iter().filter(move |(name, _)| is_of(name))
}

/// Changes a layout group by group as long as more checks hold; gives how many do.
pub(crate) fn climb<L: StructLayout, F: Fn(&L) -> usize>(
    layout: L,
    groups: &[Group],
    tables: &[L],
    checks: &Checks<F>,
) -> (usize, L) {
    let mut best = ((checks.count)(&layout), layout);
    for _ in 0..MAX_ROUNDS {
        let before = best.0;
        for group in groups {
            if best.0 >= checks.total {
                return best;
            }
            let needed = best.0 + checks.margin;
            for variant in group.variants(&best.1, tables) {
                let found = (checks.count)(&variant);
                if found >= needed && found > best.0 {
                    best = (found, variant);
                }
            }
        }
        if best.0 == before {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::layout::{Numbers, changes};

    /// Numbers of a list and a pair.
    #[derive(Clone)]
    struct Toy(BTreeMap<&'static str, Option<i64>>);

    impl StructLayout for Toy {
        fn version(&self) -> &str {
            "1"
        }

        fn numbers(&self) -> Numbers {
            self.0.iter().map(|(name, value)| (*name, *value)).collect()
        }

        fn set(&mut self, name: &str, value: Option<i64>) {
            *self.0.get_mut(name).unwrap() = value;
        }
    }

    const GROUPS: [Group; 2] =
        [Group { types: &["list"], moving: 1, unit: 8 }, Group { types: &["pair"], moving: 0, unit: 8 }];

    fn toy(length: i64, items: i64, spare: Option<i64>, first: i64) -> Toy {
        let numbers = [("list.length", Some(length)), ("list.items", Some(items)), ("list.spare", spare)];
        Toy(numbers.into_iter().chain([("pair.first", Some(first))]).collect())
    }

    /// What is made of a layout where the truth is another one, as (number, new value).
    fn learned(from: Toy, truth: &Toy, tables: &[Toy], margin: usize) -> Vec<(&'static str, Option<i64>)> {
        let right = |layout: &Toy| 4 - changes(truth.numbers(), layout.numbers()).len();
        let before = from.numbers();
        let (found, layout) = climb(from, &GROUPS, tables, &Checks { count: right, total: 4, margin });
        assert_eq!(found, right(&layout));
        changes(before, layout.numbers()).into_iter().map(|change| (change.number, change.to)).collect()
    }

    #[test]
    fn what_follows_something_new_moves_together() {
        let (table, truth) = (toy(16, 24, None, 8), toy(16, 40, None, 8));
        assert_eq!(learned(table.clone(), &truth, std::slice::from_ref(&table), 1), [("list.items", Some(40))]);
        let truth = toy(24, 32, None, 8);
        assert_eq!(learned(table, &truth, &[], 2), [("list.items", Some(32)), ("list.length", Some(24))]);
    }

    #[test]
    fn a_structure_may_be_that_of_another_table() {
        let (table, other) = (toy(16, 24, None, 8), toy(64, 16, Some(24), 40));
        let changed = learned(table, &other.clone(), &[other], 1);
        let expected = [("list.items", 16), ("list.length", 64), ("list.spare", 24), ("pair.first", 40)];
        assert_eq!(changed, expected.map(|(name, value)| (name, Some(value))));
    }

    #[test]
    fn what_brings_less_than_the_margin_is_chance() {
        assert_eq!(learned(toy(16, 24, None, 8), &toy(16, 32, None, 8), &[], 2), []);
        // What is at the end of the range moves without an overflow that ends the program.
        assert_eq!(learned(toy(i64::MAX, i64::MIN, None, 8), &toy(0, 0, None, 8), &[], 1), []);
    }
}
