//! The garbage collector's lists: the heads of its generations are found in the interpreter's state or from any object in a
//! list, and each list is walked in both directions.
//!
//! An object that the collector tracks has two links before its header (`PyGC_Head`, Include/internal/pycore_gc.h). A list is
//! a ring through its head, which is in the interpreter's state (in `_PyRuntime` up to 3.8). The state has three consecutive
//! heads of generations, and the head of the permanent generation. Free-threaded builds have no lists, but a bit in each
//! object.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rayon::prelude::*;
use serde::Serialize;

use super::layout::RuntimeLayout;
use super::state::{State, pointer};
use super::{Runtime, own_layout};
use crate::addr::{VirtAddr, field};
use crate::cpython::{Interpreter, ObjectError};

/// The flag bits of a link. Objects are aligned to at least 8 bytes.
const FLAGS: u64 = 3;
/// The bit of a previous link that the collector sets while it works: the rest of the link then counts references
/// (`_PyGC_PREV_MASK_COLLECTING`, Include/internal/pycore_gc.h, from 3.8 on).
const COLLECTING: u64 = 2;
/// Bytes at the beginning of an interpreter's state in which the heads are looked for first: from 3.9 to 3.14 they lie within
/// the first 8 KiB.
const STATE_BYTES: i64 = 1 << 14;
/// The alignment of the heads in builds that pack the state.
const HEAD_STEP: usize = 4;
/// Maximum number of objects in all lists together.
const MAX_OBJECTS: usize = 1 << 26;
/// Maximum number of broken links listed.
const MAX_BROKEN: usize = 1 << 10;
/// Maximum number of objects from which a head is searched for.
const STARTS: usize = 1 << 12;
/// The number of generations, and the names of their lists. The last is the permanent generation.
const GENERATIONS: usize = 3;
/// Bytes of a pointer.
const POINTER: i64 = 8;
const NAMES: [&str; 4] = ["0", "1", "2", "permanent"];

/// A list of the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// `0`, `1`, `2` as in `gc.get_objects(generation=…)`, or `permanent`: the objects of `gc.freeze()`, which `gc.get_objects()`
    /// leaves out.
    pub name: &'static str,
    /// The number of objects in it.
    pub objects: usize,
    /// The address of its head.
    pub head: VirtAddr,
    /// The state of the interpreter that it belongs to, from 3.9 on: sub-interpreters have their own lists. `None` if the head is
    /// in no known state.
    pub interpreter: Option<VirtAddr>,
}

/// A link that does not lead to an object, or that the opposite link does not reverse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenLink {
    /// The links of an object, or the head of a list.
    pub address: VirtAddr,
    /// The reason in words.
    pub reason: String,
}

/// The objects that the collector tracks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collector {
    /// Its lists. The list is empty for a free-threaded build, and if no head was found.
    pub generations: Vec<Generation>,
    /// The number of objects in its lists, `permanent` included.
    pub objects: usize,
    /// The broken links, up to 1024.
    pub broken: Vec<BrokenLink>,
    /// Objects by type whose links are those of a list, and that no walk from a head reaches.
    pub unlisted: Vec<Unlisted>,
    /// All tracked objects: in the order of the lists, then those that no walk reaches.
    #[serde(skip)]
    pub tracked: Vec<VirtAddr>,
}

/// The objects of a type that no walk reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unlisted {
    /// The name of the type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The number of objects.
    pub objects: usize,
}

/// The types whose objects the collector tracks: their instances are what [`Runtime::collector`] needs. The caller asks again
/// when more types are known.
pub fn collected_types(interpreter: &Interpreter, tables: &[RuntimeLayout]) -> BTreeSet<VirtAddr> {
    if !interpreter.knows_all_types() {
        return BTreeSet::new();
    }
    let layout = own_layout(interpreter, tables);
    let flag = layout.and_then(|layout| layout.flag_collected).unwrap_or_default().cast_unsigned();
    let types = interpreter.types.iter().filter(|(_, info)| info.flags & flag != 0);
    types.map(|(address, _)| *address).collect()
}

/// What of the lists was seen.
#[derive(Default)]
struct Walk {
    heads: Vec<VirtAddr>,
    tracked: Vec<VirtAddr>,
    /// The tracked objects as a set, once a link was broken. Before, no object can come twice: each has one previous link, which
    /// leads to the object before it.
    seen: Option<HashSet<VirtAddr>>,
    broken: Vec<BrokenLink>,
}

impl Walk {
    /// Adds an object; false if it is in a list already, or if there are too many.
    fn add(&mut self, object: VirtAddr) -> bool {
        let is_new = self.seen.as_mut().is_none_or(|seen| seen.insert(object));
        let has_room = self.tracked.len() < MAX_OBJECTS;
        if is_new && has_room {
            self.tracked.push(object);
        }
        is_new && has_room
    }

    /// From now on an object could come twice.
    fn distrust(&mut self) {
        if self.seen.is_none() {
            self.seen = Some(self.tracked.iter().copied().collect());
        }
    }

    fn complain(&mut self, address: VirtAddr, reason: String) {
        if self.broken.len() < MAX_BROKEN {
            self.broken.push(BrokenLink { address, reason });
        }
    }
}

impl Runtime<'_> {
    /// The collector's lists. The interpreter's instances must be those of [`collected_types`]: objects that no walk reaches are
    /// among them.
    pub fn collector(&self) -> Collector {
        if let Some((bits, tracked)) = self.layout.gc_bits.zip(self.layout.gc_tracked) {
            return self.by_bits(bits, tracked);
        }
        let heads = self.heads();
        let all = heads.iter().flat_map(|(_, heads)| heads).copied().collect();
        let mut walk = Walk { heads: all, ..Walk::default() };
        let mut generations = Vec::new();
        for (interpreter, heads) in heads {
            for (name, head) in NAMES.into_iter().zip(heads) {
                let before = walk.tracked.len();
                self.walk(head, &mut walk);
                generations.push(Generation { name, objects: walk.tracked.len() - before, head, interpreter });
            }
        }
        let unlisted = if generations.is_empty() { Vec::new() } else { self.unlisted(&walk.tracked) };
        let Walk { mut tracked, broken, .. } = walk;
        let (objects, by_type) = (tracked.len(), self.by_type(&unlisted));
        tracked.extend(unlisted);
        Collector { generations, objects, broken, unlisted: by_type, tracked }
    }

    /// The objects of a free-threaded build whose bit is set.
    fn by_bits(&self, bits: i64, flag: i64) -> Collector {
        let swept = self.interpreter.instances.values().flatten().chain(self.interpreter.types.keys());
        let is_tracked = |object: &&VirtAddr| {
            let bits = self.objects.byte(**object, bits).unwrap_or_default();
            self.is_collected(**object) && i64::from(bits) & flag != 0
        };
        let tracked: Vec<VirtAddr> = swept.filter(is_tracked).copied().collect();
        Collector { objects: tracked.len(), tracked, ..Collector::default() }
    }

    /// Whether the collector tracks objects of this object's type.
    fn is_collected(&self, object: VirtAddr) -> bool {
        let Ok(type_object) = self.objects.type_of(object) else { return false };
        let kinds = self.kinds();
        if let Some(kind) = kinds.get(type_object) {
            return kind.is_collected;
        }
        // A type whose bases can't be read is not among the interpreter's types.
        let is_type = |found: &super::kind::Kind| found.has(self.objects.layout().flag_type);
        let flag = self.layout.flag_collected.unwrap_or_default().cast_unsigned();
        self.objects.type_of(type_object).is_ok_and(|found| kinds.get(found).is_some_and(is_type))
            && self.objects.type_flags(type_object).is_ok_and(|flags| flags & flag != 0)
    }

    pub(super) fn next(&self, node: VirtAddr) -> Option<VirtAddr> {
        pointer(&self.objects, node, self.layout.gc_next).map(without_flags)
    }

    pub(super) fn previous(&self, node: VirtAddr) -> Option<VirtAddr> {
        pointer(&self.objects, node, self.layout.gc_previous).map(without_flags)
    }

    /// The links before an object.
    pub(super) fn links(&self, object: VirtAddr) -> Option<VirtAddr> {
        self.layout.gc_head_size.map(|size| field(object, -size))
    }

    /// The object behind links.
    fn object(&self, node: VirtAddr) -> Option<VirtAddr> {
        let object = field(node, self.layout.gc_head_size?);
        self.is_collected(object).then_some(object)
    }

    /// The object behind links in a list: its type is known, or both neighbours lead back to it.
    fn listed(&self, node: VirtAddr) -> Option<VirtAddr> {
        let object = field(node, self.layout.gc_head_size?);
        (self.is_collected(object) || self.is_linked(node)).then_some(object)
    }

    /// Whether both neighbours of a node lead back to it, or would if the collector were not at work.
    fn is_linked(&self, node: VirtAddr) -> bool {
        self.next(node).is_some_and(|next| self.leads_back(next, node))
            && self.previous(node).is_some_and(|previous| previous.0 != 0 && self.next(previous) == Some(node))
    }

    /// Whether the previous link of `next` leads to a node, or counts references: then the collector is at work.
    fn leads_back(&self, next: VirtAddr, node: VirtAddr) -> bool {
        let previous = if next.0 == 0 { None } else { pointer(&self.objects, next, self.layout.gc_previous) };
        previous.is_some_and(|link| without_flags(link) == node || link.0 & COLLECTING != 0)
    }

    /// Whether this can be the head of a list: both neighbours lead back to it, and it is no object.
    fn is_head(&self, at: VirtAddr) -> bool {
        self.is_linked(at) && self.object(at).is_none()
    }

    /// The heads of each interpreter state: those of the generations, and that of the permanent one, if it was found.
    fn heads(&self) -> Vec<(Option<VirtAddr>, Vec<VirtAddr>)> {
        let Some(step) = self.layout.gc_generation_size else { return Vec::new() };
        let mut known = HashSet::new();
        let in_state = |state: &State| {
            // What follows a small state can be another one, whose heads are its own.
            let youngest = self.youngest_in_state(state.address, step).filter(|youngest| known.insert(*youngest))?;
            Some((Some(state.address), self.heads_from(youngest, step)))
        };
        let in_states: Vec<(Option<VirtAddr>, Vec<VirtAddr>)> = self.states.iter().filter_map(in_state).collect();
        if !in_states.is_empty() {
            return in_states;
        }
        let youngest = self.youngest_of_modules(step);
        youngest.map(|youngest| (None, self.heads_from(youngest, step))).into_iter().collect()
    }

    /// The head of the youngest generation in an interpreter's state, where it lies from 3.9 on.
    fn youngest_in_state(&self, state: VirtAddr, step: i64) -> Option<VirtAddr> {
        let places = (0..STATE_BYTES).step_by(HEAD_STEP).map(|at| field(state, at));
        places.filter(|place| self.holds_objects(*place)).find_map(|place| self.youngest(place, step))
    }

    /// Whether this is the head of a list that begins with an object of a known type.
    fn holds_objects(&self, at: VirtAddr) -> bool {
        let next = self.next(at).filter(|next| self.leads_back(*next, at));
        next.is_some_and(|next| self.object(next).is_some()) && self.is_head(at)
    }

    /// The head of the youngest generation, from the modules: each is in a list, and the walk comes to the head of that list.
    fn youngest_of_modules(&self, step: i64) -> Option<VirtAddr> {
        let mut seen = [HashSet::new(), HashSet::new()];
        let types = self.interpreter.module_types();
        let modules = types.iter().filter_map(|found| self.interpreter.instances.get(found)).flatten();
        // The links of a freed module are stale.
        let nodes = modules.filter_map(|module| self.links(*module)).filter(|node| self.is_linked(*node));
        nodes.take(STARTS).find_map(|start| {
            let [after, before] = &mut seen;
            let forward = self.youngest_by(start, step, after, |node| self.next(node));
            forward.or_else(|| self.youngest_by(start, step, before, |node| self.previous(node)))
        })
    }

    /// All heads, from that of the youngest generation.
    fn heads_from(&self, youngest: VirtAddr, step: i64) -> Vec<VirtAddr> {
        let at = |count: usize| field(youngest, step.wrapping_mul(count as i64));
        let behind = pointer_behind(youngest, step);
        let permanent = if self.names_itself(youngest, step) { field(behind, POINTER) } else { at(GENERATIONS) };
        let permanent = Some(permanent).filter(|head| self.is_head(*head));
        (0..GENERATIONS).map(at).chain(permanent).collect()
    }

    /// The head of the youngest generation, from an object in any list: the walk reaches the head of that list. `None` if the
    /// walk ends at a broken link, or at a node that an earlier walk visited.
    fn youngest_by(
        &self,
        start: VirtAddr,
        step: i64,
        seen: &mut HashSet<VirtAddr>,
        following: impl Fn(VirtAddr) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let mut node = start;
        while seen.len() < MAX_OBJECTS && self.listed(node).is_some() && seen.insert(node) {
            node = following(node).filter(|next| next.0 != 0)?;
            if self.is_head(node)
                && let Some(youngest) = self.youngest(node, step)
            {
                return Some(youngest);
            }
        }
        None
    }

    /// The head of the youngest generation, from any of the heads.
    fn youngest(&self, head: VirtAddr, step: i64) -> Option<VirtAddr> {
        let are_heads =
            |base: &VirtAddr| (0..GENERATIONS).all(|count| self.is_head(field(*base, step.wrapping_mul(count as i64))));
        let before = (0..=GENERATIONS).map(|count| field(head, step.wrapping_mul(-(count as i64))));
        // A module of the permanent generation leads to its head, which is behind a pointer.
        let span = step.wrapping_mul(GENERATIONS as i64).wrapping_add(POINTER);
        let behind_pointer = [field(head, -span), field(head, 4 - POINTER - span)];
        let bases: Vec<VirtAddr> = before.chain(behind_pointer).filter(are_heads).collect();
        bases.iter().find(|base| self.names_itself(**base, step)).or(bases.last()).copied()
    }

    /// Whether a pointer to the youngest generation follows the three heads, as up to 3.13. The permanent head follows it.
    fn names_itself(&self, youngest: VirtAddr, step: i64) -> bool {
        self.objects.pointer(pointer_behind(youngest, step), 0) == Ok(youngest)
    }

    /// Walks a list forward from its head. If a link is broken, it walks backward from the head as well.
    fn walk(&self, head: VirtAddr, walk: &mut Walk) {
        let mut last = head;
        let mut counting = 0usize;
        let is_whole = loop {
            let Some(next) = self.next(last) else {
                walk.complain(last, "its links are not in the dump".to_owned());
                break false;
            };
            if next == head {
                break true;
            }
            let Some(object) = self.listed(next) else {
                let why = self.why_not(next);
                walk.complain(last, format!("its next link leads to {next}, {why}"));
                break false;
            };
            let previous = pointer(&self.objects, next, self.layout.gc_previous);
            if previous.map(without_flags) != Some(last) {
                walk.distrust();
                match previous.is_some_and(|link| link.0 & COLLECTING != 0) {
                    true => counting += 1,
                    false => walk.complain(next, format!("its previous link does not lead back to {last}")),
                }
            }
            if walk.heads.contains(&next) || !walk.add(object) {
                walk.complain(last, format!("its next link leads to {next}, which is in a list already"));
                break false;
            }
            last = next;
        };
        if counting > 0 {
            let why = "a collection was running: previous links count references";
            walk.complain(head, format!("{why} in {counting} objects of this list"));
        }
        if is_whole {
            if self.previous(head) != Some(last) {
                walk.complain(head, format!("its previous link does not lead to the last object's links at {last}"));
            }
            return;
        }
        walk.distrust();
        let mut node = self.previous(head);
        while let Some(at) = node.filter(|at| *at != head) {
            let Some(object) = self.listed(at) else {
                let why = self.why_not(at);
                walk.complain(at, format!("a previous link leads here, {why}"));
                break;
            };
            if walk.heads.contains(&at) || !walk.add(object) {
                break;
            }
            node = self.previous(at);
        }
    }

    /// Why there is no object in a list at a node.
    fn why_not(&self, node: VirtAddr) -> String {
        match self.objects.pointer(node, self.layout.gc_next.unwrap_or_default()) {
            Err(ObjectError::Fault(fault)) => format!("which can't be read: {}", self.objects.memory().explain(fault)),
            _ => "where no object is: other data overwrote the page, or the page moved while the dump was taken"
                .to_owned(),
        }
    }

    /// Swept objects whose links are those of a list, and that are not among the tracked ones.
    fn unlisted(&self, tracked: &[VirtAddr]) -> Vec<VirtAddr> {
        let mut listed = tracked.to_vec();
        listed.par_sort_unstable();
        let is_unlisted = |object: &VirtAddr| {
            if listed.binary_search(object).is_ok() {
                return false;
            }
            let node = self.links(*object);
            let next = node.and_then(|node| self.next(node)).filter(|next| next.0 != 0);
            next.is_some_and(|next| self.previous(next) == node) && self.is_collected(*object)
        };
        let kinds = self.kinds();
        let swept = self.interpreter.instances.par_iter();
        let swept = swept.filter(|(type_object, _)| kinds.get(**type_object).is_none_or(|kind| kind.is_collected));
        let swept = swept.flat_map(|(_, objects)| objects.par_iter().copied());
        let types = self.interpreter.types.par_iter().map(|(type_object, _)| *type_object);
        let mut unlisted: Vec<VirtAddr> = swept.chain(types).filter(is_unlisted).collect();
        unlisted.par_sort_unstable();
        unlisted.dedup();
        unlisted
    }

    /// The number of objects of each type.
    fn by_type(&self, objects: &[VirtAddr]) -> Vec<Unlisted> {
        let mut by_type: BTreeMap<VirtAddr, usize> = BTreeMap::new();
        for type_object in objects.iter().filter_map(|object| self.objects.type_of(*object).ok()) {
            *by_type.entry(type_object).or_default() += 1;
        }
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (type_object, count) in by_type {
            *counts.entry(self.names.name(type_object)).or_default() += count;
        }
        counts.into_iter().map(|(type_name, objects)| Unlisted { type_name, objects }).collect()
    }
}

/// The address of the pointer behind the generations. Some builds align these to 4 bytes only.
fn pointer_behind(youngest: VirtAddr, step: i64) -> VirtAddr {
    let end = field(youngest, step.wrapping_mul(GENERATIONS as i64));
    VirtAddr(end.0.checked_next_multiple_of(POINTER.cast_unsigned()).unwrap_or(end.0))
}

fn without_flags(link: VirtAddr) -> VirtAddr {
    VirtAddr(link.0 & !FLAGS)
}
