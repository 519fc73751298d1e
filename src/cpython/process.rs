//! Running interpreters: `type` objects confirmed through page tables, the layout that reads their
//! types best, and all instances of a type.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rayon::prelude::*;

use super::layout::Layout;
use super::object::{ObjectError, Objects, field};
use super::sweeper::Sweeper;
use super::types::Types;
use crate::addr::{PhysAddr, VirtAddr};
use crate::paging::AddressSpace;

/// Heap types that are read to score a layout.
const SAMPLE: usize = 256;
/// Sweeps for what newly found types are the types of.
const MAX_ROUNDS: usize = 5;

/// Live objects by their type.
pub type Instances = BTreeMap<VirtAddr, Vec<VirtAddr>>;

/// How well a layout reads an interpreter's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutScore {
    /// Sampled types whose name, module and dictionary could be read.
    pub readable: usize,
    /// Types that were sampled.
    pub sampled: usize,
    /// Whether the size of a type object, which `type` tells of itself, is that of the layout.
    pub size_matches: bool,
    /// The layout's version.
    pub version: String,
}

/// An interpreter in an address space.
pub struct Interpreter<'a> {
    /// Its position among the spaces of the [`Sweeper`].
    pub index: usize,
    /// The space that it runs in.
    pub space: AddressSpace<'a>,
    /// The address of `type`.
    pub type_object: VirtAddr,
    /// The layout that its objects are read with.
    pub layout: &'a Layout,
    /// Score of that layout, and of the next best.
    pub scores: (LayoutScore, Option<LayoutScore>),
    /// Its types.
    pub types: Types,
    /// The instances of those that were wanted.
    pub instances: Instances,
}

impl Interpreter<'_> {
    /// A reader of its objects.
    pub fn objects(&self) -> Objects<'_> {
        Objects::new(&self.space, self.layout)
    }

    /// The types that derive from `base`, itself included.
    pub fn subtypes(&self, base: VirtAddr) -> BTreeSet<VirtAddr> {
        self.types.iter().filter(|(_, info)| info.mro.contains(&base)).map(|(address, _)| *address).collect()
    }

    /// The type of that module and qualified name, which a class statement made.
    pub fn heap_type(&self, module: &str, qualname: &str) -> Vec<VirtAddr> {
        let objects = self.objects();
        let is_wanted = |address: &VirtAddr| {
            objects.heap_type_qualname(*address).is_ok_and(|name| name == qualname)
                && objects.heap_type_name(*address).is_ok_and(|(name, _)| name == module)
        };
        self.types.keys().copied().filter(is_wanted).collect()
    }
}

/// A `type` object, confirmed: its own address translates to where it was found.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// The space in which it was confirmed.
    pub space: AddressSpace<'a>,
    /// Its virtual address.
    pub type_object: VirtAddr,
}

/// Whether this is the `type` object of a running interpreter, by any of the layouts.
pub fn is_type_type(candidate: &Candidate<'_>, layouts: &[Layout]) -> bool {
    layouts.iter().any(|layout| {
        let objects = Objects::new(&candidate.space, layout);
        let check = || -> Result<bool, ObjectError> {
            let object = candidate.type_object;
            let info = objects.type_info(object)?;
            let [_, base] = *info.mro.as_slice() else { return Ok(false) };
            Ok(info.flags & layout.flag_type as u64 != 0
                && objects.type_of(object)? == object
                && objects.word(object, layout.tp_itemsize)? == layout.member_def_size as u64
                && objects.type_of(base)? == object
                && objects.type_info(base)?.mro.len() == 1)
        };
        check().unwrap_or(false)
    })
}

/// Finds the types of every candidate, chooses its layout, and finds the instances of the types that `wanted` picks.
///
/// The candidates are those whose spaces the sweeper holds, in the same order; those in which no
/// layout reads any type are dropped. `wanted` is asked again when more types are known, and only adds to its answer.
pub fn interpreters<'a>(
    candidates: &[Candidate<'a>],
    layouts: &'a [Layout],
    sweeper: &Sweeper<'_>,
    wanted: impl Fn(&Interpreter<'a>) -> BTreeSet<VirtAddr> + Sync,
) -> Vec<Interpreter<'a>> {
    let types: Vec<BTreeSet<VirtAddr>> =
        candidates.iter().map(|candidate| BTreeSet::from([candidate.type_object])).collect();
    let slots = sweeper.sweep(&types);
    let with_slots = candidates.par_iter().zip(slots).enumerate();
    let mut interpreters: Vec<Interpreter<'a>> =
        with_slots.filter_map(|(index, (candidate, slots))| choose_layout(index, candidate, &slots, layouts)).collect();
    // Every sweep is for what the one before has found: metaclasses, of which there may be more types, and types
    // whose instances are wanted.
    let mut swept_for = types;
    for _ in 0..MAX_ROUNDS {
        let mut new = vec![BTreeSet::new(); candidates.len()];
        let asked = interpreters.par_iter().map(|interpreter| {
            (interpreter.index, interpreter.metaclasses().union(&wanted(interpreter)).copied().collect())
        });
        for (index, types) in asked.collect::<Vec<(usize, BTreeSet<VirtAddr>)>>() {
            if let Some((new, known)) = new.get_mut(index).zip(swept_for.get_mut(index)) {
                *new = types.difference(known).copied().collect();
                known.extend(new.iter());
            }
        }
        if new.iter().all(BTreeSet::is_empty) {
            break;
        }
        let slots = sweeper.sweep(&new);
        interpreters
            .par_iter_mut()
            .for_each(|interpreter| interpreter.learn(slots.get(interpreter.index).map_or(&[], Vec::as_slice)));
    }
    interpreters
}

impl Interpreter<'_> {
    /// Types whose instances are types.
    fn metaclasses(&self) -> BTreeSet<VirtAddr> {
        self.subtypes(self.type_object)
    }

    /// Adds the objects whose types stand in the slots: to the types those of a metaclass, to the instances the others.
    fn learn(&mut self, slots: &[(VirtAddr, VirtAddr)]) {
        let metaclasses = self.metaclasses();
        let (of_types, of_others): (Vec<_>, Vec<_>) = slots.iter().partition(|(_, found)| metaclasses.contains(found));
        let types = read_types(&self.objects(), &of_types);
        self.types.extend(types);
        for (slot, type_object) in of_others {
            let object = field(slot, -self.layout.ob_type);
            if self.objects().is_alive(object).unwrap_or(false) {
                self.instances.entry(type_object).or_default().push(object);
            }
        }
    }
}

/// The live types among the objects whose `ob_type` lies in one of the slots.
fn read_types(objects: &Objects<'_>, slots: &[(VirtAddr, VirtAddr)]) -> Types {
    let candidates = slots.iter().map(|(slot, _)| field(*slot, -objects.layout().ob_type));
    candidates.filter_map(|address| Some((address, objects.type_info(address).ok()?))).collect()
}

fn choose_layout<'a>(
    index: usize,
    candidate: &Candidate<'a>,
    slots: &[(VirtAddr, VirtAddr)],
    layouts: &'a [Layout],
) -> Option<Interpreter<'a>> {
    // Most layouts differ elsewhere, and read the same types.
    let mut readings: Vec<(&Layout, Rc<Types>)> = Vec::new();
    let mut scored: Vec<(LayoutScore, &'a Layout, Rc<Types>)> = Vec::new();
    for layout in layouts {
        let objects = Objects::new(&candidate.space, layout);
        let known = readings.iter().find(|(other, _)| layout.reads_types_like(other));
        let types = known.map_or_else(|| Rc::new(read_types(&objects, slots)), |(_, types)| Rc::clone(types));
        readings.push((layout, Rc::clone(&types)));
        scored.extend(score(&objects, candidate.type_object, &types).map(|score| (score, layout, types)));
    }
    scored.sort_by_key(|(score, ..)| (score.readable, score.size_matches));
    let (best, layout, types) = scored.pop()?;
    let next = scored.pop().map(|(score, ..)| score);
    Some(Interpreter {
        index,
        space: candidate.space,
        type_object: candidate.type_object,
        layout,
        scores: (best, next),
        types: Rc::unwrap_or_clone(types),
        instances: Instances::new(),
    })
}

/// How well the names and dictionaries of heap types can be read.
fn score(objects: &Objects<'_>, type_object: VirtAddr, types: &Types) -> Option<LayoutScore> {
    let layout = objects.layout();
    let is_heap_type = |flags: u64| flags & layout.flag_heap_type as u64 != 0;
    let heap_types: Vec<VirtAddr> =
        types.iter().filter(|(_, info)| is_heap_type(info.flags)).map(|(address, _)| *address).collect();
    let step = heap_types.len().div_ceil(SAMPLE).max(1);
    let sample: Vec<VirtAddr> = heap_types.into_iter().step_by(step).collect();
    let readable = sample.iter().filter(|address| objects.heap_type_name(**address).is_ok()).count();
    let size = objects.word(type_object, layout.tp_basicsize).ok()?;
    (readable > 0).then(|| LayoutScore {
        readable,
        sampled: sample.len(),
        size_matches: size == layout.heap_type_size as u64,
        version: layout.version.clone(),
    })
}

/// Confirms a hit of the signature of `type` in a space.
pub fn confirm<'a>(
    space: AddressSpace<'a>,
    anchor: PhysAddr,
    type_object: VirtAddr,
    ob_type: i64,
) -> Option<Candidate<'a>> {
    let found = space.translate(field(type_object, ob_type)).ok()?;
    (found.pa == anchor).then_some(Candidate { space, type_object })
}
