//! All objects of an interpreter, by type: those that the collector keeps track of, and the swept ones that it does not
//! look at.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::state::pointer;
use super::{Collector, Runtime};
use crate::addr::VirtAddr;
use crate::cpython::{DIGIT_BITS, Interpreter, field};

/// Objects of a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TypeCount {
    /// Name of the type.
    pub name: String,
    /// Its objects: those that the collector keeps track of or, where it does not look at the type, those that were found.
    pub count: usize,
    /// Bytes of these objects themselves, not of what they refer to.
    pub bytes: u64,
    /// Objects that the collector could look at and keeps no track of: they hold nothing that could form a ring.
    pub untracked: usize,
    /// The type.
    pub address: VirtAddr,
}

/// The objects of an interpreter.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// By type, the most numerous first.
    pub types: Vec<TypeCount>,
    /// The objects by type, sorted by address; untracked ones too.
    pub objects: BTreeMap<VirtAddr, Vec<VirtAddr>>,
}

/// All types of an interpreter: their instances are what a census needs. To be asked for again when more types are known.
pub fn all_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    interpreter.types.keys().copied().collect()
}

impl Runtime<'_> {
    /// Counts the objects; the interpreter's instances must be those of [`all_types`].
    pub fn census(&self, collector: &Collector) -> Census {
        let mut tracked: BTreeMap<VirtAddr, Vec<VirtAddr>> = BTreeMap::new();
        for object in &collector.tracked {
            if let Ok(type_object) = self.objects.type_of(*object) {
                tracked.entry(type_object).or_default().push(*object);
            }
        }
        let members: HashSet<VirtAddr> = collector.tracked.iter().copied().collect();
        let flag = self.layout.flag_collected.unwrap_or_default().cast_unsigned();
        let has_lists = !collector.tracked.is_empty();
        let is_listed = |type_object: &VirtAddr| {
            has_lists && self.interpreter.types.get(type_object).is_some_and(|info| info.flags & flag != 0)
        };
        let mut others: BTreeMap<VirtAddr, Vec<VirtAddr>> = BTreeMap::new();
        for (type_object, instances) in &self.interpreter.instances {
            let is_listed = is_listed(type_object);
            let is_new = |object: &&VirtAddr| match is_listed {
                true => !members.contains(object) && self.is_untracked(**object),
                false => self.is_sound(**object),
            };
            others.insert(*type_object, instances.iter().filter(is_new).copied().collect());
        }
        self.drop_parts(&tracked, &mut others);
        let mut census = Census::default();
        let all: BTreeSet<VirtAddr> = tracked.keys().chain(others.keys()).copied().collect();
        for type_object in all {
            let listed = tracked.remove(&type_object).unwrap_or_default();
            let other = others.remove(&type_object).unwrap_or_default();
            let (counted, untracked) = if is_listed(&type_object) { (&listed, other.len()) } else { (&other, 0) };
            if counted.is_empty() && untracked == 0 {
                continue;
            }
            let bytes = counted.iter().filter_map(|object| self.size(*object)).fold(0u64, u64::saturating_add);
            let name = self.names.name(type_object);
            census.types.push(TypeCount { name, count: counted.len(), bytes, untracked, address: type_object });
            let mut objects = [listed, other].concat();
            objects.sort_unstable();
            objects.dedup();
            census.objects.insert(type_object, objects);
        }
        census.types.sort_by(|a, b| (b.count, &a.name, a.address).cmp(&(a.count, &b.name, b.address)));
        census
    }

    /// Whether the links before an object are those of one that is in no list.
    fn is_untracked(&self, object: VirtAddr) -> bool {
        let Some(links) = self.links(object) else { return true };
        let is_null = |link: Option<VirtAddr>| link == Some(VirtAddr(0));
        is_null(self.next(links)) && is_null(self.previous(links))
    }

    /// Whether what was swept can be an object of its type: the first element of a tuple of types looks like one.
    fn is_sound(&self, object: VirtAddr) -> bool {
        let (objects, layout) = (&self.objects, self.objects.layout());
        let has = |flag: i64| objects.has_type_flag(object, flag) == Ok(true);
        let is_str = |at: Option<VirtAddr>| at.is_some_and(|at| objects.has_type_flag(at, layout.flag_str) == Ok(true));
        if has(layout.flag_str) {
            return objects.str(object).is_ok();
        }
        if has(layout.flag_int) {
            return self.is_sound_int(object).unwrap_or(false);
        }
        if self.types.is_some_and(|types| objects.type_of(object) == Ok(types.code)) {
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

    /// Drops what lies in an object that is known: a pointer to a type in it, with a small number before, is no object.
    fn drop_parts(&self, tracked: &BTreeMap<VirtAddr, Vec<VirtAddr>>, others: &mut BTreeMap<VirtAddr, Vec<VirtAddr>>) {
        let known = tracked.values().flatten().chain(self.interpreter.types.keys()).copied();
        let untracked = others.values().flatten().copied();
        // Where objects end, by where they begin: of two that overlap the one that begins first is an object.
        let mut extents: Vec<(VirtAddr, u64, bool)> = Vec::new();
        extents.extend(known.map(|object| (object, self.size(object).unwrap_or_default(), true)));
        extents.extend(untracked.map(|object| (object, self.size(object).unwrap_or_default(), false)));
        extents.sort_unstable_by_key(|(object, _, is_known)| (*object, !is_known));
        // What only looks like an object must not hide many that are.
        const MAX_HIDDEN: u64 = 1 << 16;
        let mut parts = HashSet::new();
        let mut end = 0;
        for (object, size, is_known) in extents {
            if object.0 < end && !is_known {
                parts.insert(object);
                continue;
            }
            let size = if is_known { size } else { size.min(MAX_HIDDEN) };
            end = end.max(object.0.saturating_add(size));
        }
        others.values_mut().for_each(|objects| objects.retain(|object| !parts.contains(object)));
    }

    /// The bytes of an object itself: what `object.__sizeof__` gives, for a `str` with its characters.
    pub fn size(&self, object: VirtAddr) -> Option<u64> {
        /// No object is larger: what says so is no object.
        const MAX_SIZE: u64 = 1 << 40;
        let (objects, layout) = (&self.objects, self.objects.layout());
        let type_object = objects.type_of(object).ok()?;
        let flags = self.interpreter.types.get(&type_object)?.flags;
        let basic = objects.word(type_object, layout.tp_basicsize).ok()?;
        let item = objects.word(type_object, layout.tp_itemsize).ok()?.cast_signed();
        let has = |flag: i64| flags & flag.cast_unsigned() != 0;
        let count = match (item, layout.int_lv_tag.filter(|_| has(layout.flag_int))) {
            (0, _) => 0,
            (_, Some(tag)) => objects.word(object, tag).ok()? >> 3,
            _ => objects.word(object, layout.var_size?).ok()?.cast_signed().unsigned_abs(),
        };
        let mut size = basic.checked_add(count.checked_mul(item.unsigned_abs())?)?;
        if has(layout.flag_str) && objects.word(object, layout.str_state).ok()? >> layout.str_compact_bit & 1 == 1 {
            let state = objects.word(object, layout.str_state).ok()?;
            let length = objects.word(object, layout.str_length).ok()?;
            let head = match state >> layout.str_ascii_bit & 1 {
                1 => layout.str_ascii_size,
                _ => layout.str_compact_size,
            };
            let width = state >> layout.str_kind_bit & 7;
            size = length.checked_add(1)?.checked_mul(width)?.checked_add(head.cast_unsigned())?;
        }
        (size <= MAX_SIZE).then_some(size)
    }
}
