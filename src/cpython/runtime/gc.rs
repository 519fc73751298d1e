//! The garbage collector's lists: the heads of its generations, found from any object in one of them, and walked both ways.
//!
//! An object that the collector looks at has two links before its header (`PyGC_Head`, Include/internal/pycore_gc.h). A list
//! of them is a ring through its head, which lies in the interpreter's state: three heads of generations in a row, and one
//! of objects that are never collected. Free-threaded builds have a bit in each object instead of lists.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::Runtime;
use super::state::pointer;
use crate::addr::VirtAddr;
use crate::cpython::field;

/// Bits of a link that are flags: objects are aligned to 8 bytes at least.
const FLAGS: u64 = 3;
/// Objects in all lists together.
const MAX_OBJECTS: usize = 1 << 26;
/// Broken links that are listed.
const MAX_BROKEN: usize = 1 << 10;
/// Objects from which a head is looked for.
const STARTS: usize = 1 << 12;
/// Generations, and the names of their heads: that of objects that are never collected comes last.
const GENERATIONS: usize = 3;
const NAMES: [&str; 4] = ["0", "1", "2", "permanent"];

/// A list of the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Generation {
    /// `0`, `1`, `2` as in `gc.get_objects(generation=…)`, or `permanent`.
    pub name: &'static str,
    /// Objects in it.
    pub objects: usize,
    /// Its head.
    pub head: VirtAddr,
}

/// A link that leads nowhere, or is not the reverse of the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BrokenLink {
    /// The object, or the head of the list, whose link it is.
    pub address: VirtAddr,
    /// What is wrong.
    pub reason: String,
}

/// What the collector keeps track of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Collector {
    /// Its lists; none in a free-threaded build, or where no head was found.
    pub generations: Vec<Generation>,
    /// Objects that it keeps track of.
    pub objects: usize,
    /// What is wrong with the lists, up to a thousand links.
    pub broken: Vec<BrokenLink>,
    /// Objects by type that say that they are in a list and are in none.
    pub unlisted: Vec<Unlisted>,
    /// The objects, in the order of the lists.
    #[serde(skip)]
    pub tracked: Vec<VirtAddr>,
}

/// Objects of a type that are in no list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unlisted {
    /// Name of the type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// How many there are.
    pub objects: usize,
}

/// What of a list was seen.
#[derive(Default)]
struct Walk {
    tracked: Vec<VirtAddr>,
    seen: HashSet<VirtAddr>,
    broken: Vec<BrokenLink>,
}

impl Walk {
    fn complain(&mut self, address: VirtAddr, reason: String) {
        if self.broken.len() < MAX_BROKEN {
            self.broken.push(BrokenLink { address, reason });
        }
    }
}

impl Runtime<'_> {
    /// The collector's lists. Objects that no list holds are known for the types whose instances were swept.
    pub fn collector(&self) -> Collector {
        if let Some((bits, tracked)) = self.layout.gc_bits.zip(self.layout.gc_tracked) {
            return self.by_bits(bits, tracked);
        }
        let heads = self.heads();
        let mut walk = Walk::default();
        let mut generations = Vec::new();
        for (name, head) in NAMES.into_iter().zip(heads) {
            let before = walk.tracked.len();
            self.walk(head, &mut walk);
            generations.push(Generation { name, objects: walk.tracked.len() - before, head });
        }
        let unlisted = if generations.is_empty() { Vec::new() } else { self.unlisted(&walk.seen) };
        let Walk { tracked, broken, .. } = walk;
        Collector { generations, objects: tracked.len(), broken, unlisted, tracked }
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

    /// Whether the collector looks at objects of this one's type.
    fn is_collected(&self, object: VirtAddr) -> bool {
        let flag = self.layout.flag_collected.unwrap_or_default().cast_unsigned();
        let Ok(type_object) = self.objects.type_of(object) else { return false };
        let flags = match self.interpreter.types.get(&type_object) {
            Some(info) => Ok(info.flags),
            // A type whose bases can't be read is none of those that were found.
            None if self.objects.has_type_flag(type_object, self.objects.layout().flag_type) == Ok(true) => {
                self.objects.type_flags(type_object)
            }
            None => return false,
        };
        flags.is_ok_and(|flags| flags & flag != 0)
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

    /// Whether this could be the head of a list: its neighbours, or itself, lead back to it.
    fn is_head(&self, at: VirtAddr) -> bool {
        let (next, previous) = (self.next(at), self.previous(at));
        let leads_back = next.is_some_and(|next| next.0 != 0 && self.previous(next) == Some(at))
            && previous.is_some_and(|previous| previous.0 != 0 && self.next(previous) == Some(at));
        leads_back && self.object(at).is_none()
    }

    /// The heads of the generations, and that of the permanent one, if it was found.
    fn heads(&self) -> Vec<VirtAddr> {
        let Some(step) = self.layout.gc_generation_size else { return Vec::new() };
        let at = |base: VirtAddr, count: usize| field(base, step.wrapping_mul(count as i64));
        let are_heads = |base: VirtAddr| (0..GENERATIONS).all(|count| self.is_head(at(base, count)));
        // Up to 3.13 a pointer to the youngest generation follows the three; the permanent one is behind it.
        let names_itself = |base: VirtAddr| self.objects.pointer(at(base, GENERATIONS), 0) == Ok(base);
        let mut seen = [HashSet::new(), HashSet::new()];
        let types = self.interpreter.module_types();
        let modules = types.iter().filter_map(|found| self.interpreter.instances.get(found)).flatten();
        // A module that was freed leaves links behind that lead nowhere.
        let is_linked = |node: &VirtAddr| self.next(*node).is_some_and(|next| self.previous(next) == Some(*node));
        for start in modules.filter_map(|module| self.links(*module)).filter(is_linked).take(STARTS) {
            let Some(head) = self.head_of(start, &mut seen) else { continue };
            let before = (0..=GENERATIONS).map(|count| field(head, step.wrapping_mul(-(count as i64))));
            // The list of a module that is never collected is the permanent one.
            let behind_pointer = field(head, -8 - step.wrapping_mul(GENERATIONS as i64));
            let bases: Vec<VirtAddr> = before.chain([behind_pointer]).filter(|base| are_heads(*base)).collect();
            let Some(base) = bases.iter().find(|base| names_itself(**base)).or(bases.last()) else { continue };
            let permanent = at(*base, GENERATIONS);
            let permanent = if names_itself(*base) { field(permanent, 8) } else { permanent };
            let generations = (0..GENERATIONS).map(|count| at(*base, count));
            return generations.chain(Some(permanent).filter(|head| self.is_head(*head))).collect();
        }
        Vec::new()
    }

    /// The head of the list that a node is in, looked for forward and, where that breaks off, backward.
    fn head_of(&self, start: VirtAddr, seen: &mut [HashSet<VirtAddr>; 2]) -> Option<VirtAddr> {
        let [after, before] = seen;
        self.head_by(start, after, |node| self.next(node))
            .or_else(|| self.head_by(start, before, |node| self.previous(node)))
    }

    /// The first head that a walk from a node comes to; `None` where others have been before.
    fn head_by(
        &self,
        start: VirtAddr,
        seen: &mut HashSet<VirtAddr>,
        step: impl Fn(VirtAddr) -> Option<VirtAddr>,
    ) -> Option<VirtAddr> {
        let mut node = start;
        while seen.len() < MAX_OBJECTS && self.object(node).is_some() && seen.insert(node) {
            node = step(node).filter(|next| next.0 != 0)?;
            if self.is_head(node) {
                return Some(node);
            }
        }
        None
    }

    /// Walks a list forward from its head and, where that breaks off, backward as well.
    fn walk(&self, head: VirtAddr, walk: &mut Walk) {
        let mut last = head;
        let is_whole = loop {
            let Some(next) = self.next(last) else {
                walk.complain(last, "its links are not in the dump".to_owned());
                break false;
            };
            if next == head {
                break true;
            }
            let Some(object) = self.object(next) else {
                walk.complain(last, format!("its next link leads to {next}, where no object's links are"));
                break false;
            };
            if self.previous(next) != Some(last) {
                walk.complain(next, format!("its previous link does not lead back to {last}"));
            }
            if walk.tracked.len() >= MAX_OBJECTS || !walk.seen.insert(next) {
                walk.complain(last, format!("its next link leads to {next}, which is in a list already"));
                break false;
            }
            walk.tracked.push(object);
            last = next;
        };
        if is_whole {
            if self.previous(head) != Some(last) {
                walk.complain(head, format!("its previous link does not lead to the last object's links at {last}"));
            }
            return;
        }
        let mut node = self.previous(head);
        while let Some(at) = node.filter(|at| *at != head) {
            let Some(object) = self.object(at) else {
                walk.complain(at, "a previous link leads here, where no object's links are".to_owned());
                break;
            };
            if walk.tracked.len() >= MAX_OBJECTS || !walk.seen.insert(at) {
                break;
            }
            walk.tracked.push(object);
            node = self.previous(at);
        }
    }

    /// Swept objects whose links say that they are in a list, and that are in none of those seen.
    fn unlisted(&self, seen: &HashSet<VirtAddr>) -> Vec<Unlisted> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (type_object, instances) in &self.interpreter.instances {
            let is_unlisted = |object: &&VirtAddr| {
                let Some(node) = self.links(**object).filter(|node| !seen.contains(node)) else { return false };
                let next = self.next(node).filter(|next| next.0 != 0);
                self.is_collected(**object) && next.is_some_and(|next| self.previous(next) == Some(node))
            };
            let count = instances.iter().filter(is_unlisted).count();
            if count > 0 {
                *counts.entry(self.names.name(*type_object)).or_default() += count;
            }
        }
        counts.into_iter().map(|(type_name, objects)| Unlisted { type_name, objects }).collect()
    }
}

fn without_flags(link: VirtAddr) -> VirtAddr {
    VirtAddr(link.0 & !FLAGS)
}
