//! All objects of an interpreter by type: those that the garbage collector tracks, and those of other types, which a sweep
//! of memory finds.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::Serialize;

use super::kind::Kind;
use super::state::pointer;
use super::{Collector, Runtime};
use crate::addr::{VirtAddr, field};
use crate::cpython::{DIGIT_BITS, Interpreter};

/// The objects of one type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeCount {
    /// The name of the type.
    pub name: String,
    /// The number of objects: those that the collector tracks. For a type that it does not track, those found in memory.
    pub count: usize,
    /// The bytes of these objects, without those of the objects that they refer to.
    pub bytes: u64,
    /// Objects of a tracked type that the collector does not track, because they cannot be part of a reference cycle.
    pub untracked: usize,
    /// The address of the type object.
    pub address: VirtAddr,
}

/// The objects of an interpreter.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// The types, the most frequent first.
    pub types: Vec<TypeCount>,
    /// The addresses of the objects by type, sorted; they include the untracked objects.
    pub objects: BTreeMap<VirtAddr, Vec<VirtAddr>>,
}

/// All types of an interpreter. A census needs the instances of all of them. The caller asks again when more types are known.
pub fn all_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    // One sweep for all of them costs less than one for most and another for the rest.
    if interpreter.knows_all_types() { interpreter.types.keys().copied().collect() } else { BTreeSet::new() }
}

/// Objects that one thread examines at a time.
const PIECE: usize = 1 << 12;
/// The most bytes that an object found by the sweep covers: what only looks like an object must not hide many that are.
const MAX_HIDDEN: u64 = 1 << 16;

/// How an object was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// The collector tracks it.
    Tracked,
    /// It is one of the interpreter's types.
    Type,
    /// The sweep found it.
    Swept,
}

/// An object that is to be counted.
#[derive(Clone, Copy, Debug)]
struct Found {
    address: VirtAddr,
    origin: Origin,
    type_object: VirtAddr,
    size: Option<u64>,
}

/// What is counted of a type.
#[derive(Default)]
struct Tally {
    tracked: (usize, u64),
    swept: (usize, u64),
    objects: Vec<VirtAddr>,
}

impl Runtime<'_> {
    /// Counts the objects; the interpreter's instances must be those of [`all_types`].
    pub fn census(&self, collector: &Collector) -> Census {
        let kinds = self.kinds();
        let has_lists = !collector.tracked.is_empty();
        let is_listed =
            |type_object: VirtAddr| has_lists && kinds.get(type_object).is_some_and(|kind| kind.is_collected);
        let found = |address: VirtAddr, type_object: VirtAddr, origin: Origin| {
            let size = kinds.get(type_object).and_then(|kind| self.size_of(address, kind));
            Found { address, origin, type_object, size }
        };
        let tracked = collector.tracked.par_iter().with_min_len(PIECE).filter_map(|object| {
            let type_object = self.objects.type_of(*object).ok()?;
            Some(found(*object, type_object, Origin::Tracked))
        });
        let mut all: Vec<Found> = tracked.collect();
        let mut members: Vec<VirtAddr> = all.iter().map(|found| found.address).collect();
        members.par_sort_unstable();
        let members = &members;
        let swept = self.interpreter.instances.par_iter().flat_map(|(type_object, instances)| {
            let (is_listed, kind) = (is_listed(*type_object), kinds.get(*type_object));
            let is_new = move |object: &VirtAddr| match is_listed {
                true => self.is_untracked(*object) && members.binary_search(object).is_err(),
                false => kind.is_some_and(|kind| self.is_sound(*object, *type_object, kind)),
            };
            let instances = instances.par_iter().with_min_len(PIECE).copied().filter(is_new);
            instances.map(|object| found(object, *type_object, Origin::Swept))
        });
        all.par_extend(swept);
        let types = self.interpreter.types.par_iter().map(|(address, _)| *address);
        all.par_extend(
            types.filter_map(|address| Some(found(address, self.objects.type_of(address).ok()?, Origin::Type))),
        );
        let mut tallies: HashMap<VirtAddr, Tally> = HashMap::new();
        for Found { address, origin, type_object, size } in without_parts(all) {
            let tally = tallies.entry(type_object).or_default();
            let (count, bytes) = match origin {
                Origin::Tracked => &mut tally.tracked,
                Origin::Swept => &mut tally.swept,
                Origin::Type => continue,
            };
            *count += 1;
            *bytes = bytes.saturating_add(size.unwrap_or_default());
            tally.objects.push(address);
        }
        let mut types: Vec<TypeCount> = tallies
            .par_iter()
            .filter_map(|(address, tally)| {
                let ((count, bytes), untracked) = match is_listed(*address) {
                    true => (tally.tracked, tally.swept.0),
                    false => (tally.swept, 0),
                };
                let name = || self.names.name(*address);
                let is_there = count > 0 || untracked > 0;
                is_there.then(|| TypeCount { name: name(), count, bytes, untracked, address: *address })
            })
            .collect();
        types.sort_unstable_by(|a, b| (b.count, &a.name, a.address).cmp(&(a.count, &b.name, b.address)));
        let objects = types.iter().filter_map(|found| Some((found.address, tallies.remove(&found.address)?.objects)));
        let objects = objects.collect();
        Census { types, objects }
    }

    /// Whether the links before an object are those of one that is in no list.
    fn is_untracked(&self, object: VirtAddr) -> bool {
        let Some(links) = self.links(object) else { return true };
        let is_null = |link: Option<VirtAddr>| link == Some(VirtAddr(0));
        is_null(self.next(links)) && is_null(self.previous(links))
    }

    /// Whether what the sweep found can be an object of its type: the first element of a tuple of types looks like one.
    fn is_sound(&self, object: VirtAddr, type_object: VirtAddr, kind: &Kind) -> bool {
        let (objects, layout) = (&self.objects, self.objects.layout());
        let is_str = |at: Option<VirtAddr>| at.is_some_and(|at| objects.has_type_flag(at, layout.flag_str) == Ok(true));
        if kind.has(layout.flag_str) {
            return objects.str(object).is_ok();
        }
        if kind.has(layout.flag_int) {
            return self.is_sound_int(object).unwrap_or(false);
        }
        if self.types.is_some_and(|types| type_object == types.code) {
            let names = [self.layout.code_name, self.layout.code_file];
            return names.into_iter().all(|name| is_str(pointer(objects, object, name)));
        }
        true
    }

    /// Whether all digits of an `int` are below their base.
    fn is_sound_int(&self, object: VirtAddr) -> Option<bool> {
        /// Digits of the largest one that is believed.
        const MAX_DIGITS: u64 = 1 << 16;
        let (objects, layout) = (&self.objects, self.objects.layout());
        if objects.int(object).ok()?.is_some() {
            return Some(true);
        }
        let (count, _) = objects.int_head(object).ok()?;
        if count > MAX_DIGITS {
            return None;
        }
        let words = objects.words(field(object, layout.int_digits), count / 2).ok()?;
        let halves = words.iter().flat_map(|word| [word & u64::from(u32::MAX), word >> 32]);
        Some(halves.into_iter().all(|digit| digit >> DIGIT_BITS == 0))
    }

    /// The bytes of an object itself: what `object.__sizeof__` gives, for a `str` with its characters.
    pub fn size(&self, object: VirtAddr) -> Option<u64> {
        self.size_of(object, self.kinds().get(self.objects.type_of(object).ok()?)?)
    }

    /// The same for an object of a known type.
    fn size_of(&self, object: VirtAddr, kind: &Kind) -> Option<u64> {
        /// No object is larger: what says so is no object.
        const MAX_SIZE: u64 = 1 << 40;
        let (objects, layout) = (&self.objects, self.objects.layout());
        let (basic, item) = kind.sizes?;
        let count = match (item, layout.int_lv_tag.filter(|_| kind.has(layout.flag_int))) {
            (0, _) => 0,
            (_, Some(tag)) => objects.word(object, tag).ok()? >> 3,
            _ => objects.word(object, layout.var_size?).ok()?.cast_signed().unsigned_abs(),
        };
        let mut size = basic.checked_add(count.checked_mul(item.unsigned_abs())?)?;
        if kind.has(layout.flag_str) {
            let state = objects.str_state(object).ok()?;
            if let Some(head) = state.head {
                let length = objects.word(object, layout.str_length).ok()?;
                size = length.checked_add(1)?.checked_mul(state.kind)?.checked_add(head.cast_unsigned())?;
            }
        }
        (size <= MAX_SIZE).then_some(size)
    }
}

/// The objects without what the sweep found within another one: a pointer to a type, with a small number before it, is no object.
/// They are sorted by address, each once.
fn without_parts(mut all: Vec<Found>) -> Vec<Found> {
    all.par_sort_unstable_by_key(|found| (found.address, found.origin));
    all.dedup_by_key(|found| (found.address, found.origin));
    // Of two that overlap the one that begins first is an object.
    let mut end = 0;
    all.retain(|found| {
        let size = found.size.unwrap_or_default();
        let size = match found.origin {
            Origin::Swept if found.address.0 < end => return false,
            Origin::Swept => size.min(MAX_HIDDEN),
            Origin::Tracked | Origin::Type => size,
        };
        end = end.max(found.address.0.saturating_add(size));
        true
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_within_another_object_is_dropped() {
        let found = |address, origin, size| Found {
            address: VirtAddr(address),
            origin,
            type_object: VirtAddr(1),
            size: Some(size),
        };
        let all = vec![
            found(0x2008, Origin::Swept, 16),
            found(0x1000, Origin::Tracked, 0x20),
            found(0x1000, Origin::Tracked, 0x20),
            found(0x1010, Origin::Swept, 0x1000),
            found(0x1018, Origin::Tracked, 8),
            found(0x1020, Origin::Swept, 1 << 30),
            found(0x2000, Origin::Type, 16),
            found(0x1_1020, Origin::Swept, 16),
        ];
        let left: Vec<u64> = without_parts(all).iter().map(|found| found.address.0).collect();
        // What claims a GiB hides no more than 64 KiB.
        assert_eq!(left, [0x1000, 0x1018, 0x1020, 0x2000, 0x1_1020]);
    }
}
