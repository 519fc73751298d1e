//! Running interpreters: `type` objects confirmed through page tables, the layout that reads their
//! types best, and the sweep that finds all instances of a type.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::layout::Layout;
use super::object::{ObjectError, Objects, field};
use super::types::Types;
use crate::addr::{PhysAddr, VirtAddr};
use crate::dump::PhysicalMemory;
use crate::paging::{AddressSpace, ReverseMap};
use crate::scan::{Backend, PointerSet, sweep};

/// Heap types that are read to score a layout.
const SAMPLE: usize = 256;
/// Rounds of looking for types of newly found metaclasses.
const METACLASS_ROUNDS: usize = 4;
/// Spaces that may use up what is granted to each; real ones need a small part of it.
const SPACES_AT_LIMIT: u64 = 16;
/// Addresses of one space under which a slot is looked at: a hostile space maps a frame a million times.
const MAX_ALIASES: usize = 16;

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

/// The pages of several interpreters, ready to be swept for pointers.
pub struct Sweeper<'a> {
    memory: &'a PhysicalMemory,
    backend: Backend,
    reverse: ReverseMap,
    frames: Vec<Range<PhysAddr>>,
}

impl<'a> Sweeper<'a> {
    /// Collects the pages of the spaces; their positions are the indices of [`Sweeper::sweep`].
    ///
    /// `limit` bounds the page tables that are read and the mappings that are kept of each space, so that
    /// a hostile one hides no other; spaces that exceed it are left out and named in the second value.
    pub fn new(
        memory: &'a PhysicalMemory,
        backend: Backend,
        spaces: &[AddressSpace<'_>],
        limit: u64,
    ) -> (Self, Vec<usize>) {
        let mut left = limit.saturating_mul(SPACES_AT_LIMIT);
        let mut mapped = Vec::new();
        let mut left_out = Vec::new();
        for (index, space) in spaces.iter().enumerate() {
            let granted = limit.min(left);
            let mut budget = granted;
            let mappings = space.user_mappings(&mut budget);
            left -= granted - budget;
            match mappings {
                // Objects are data; code is most of what a process maps.
                Some(mappings) => mapped.push((index, mappings.into_iter().filter(|m| !m.executable).collect())),
                None => left_out.push(index),
            }
        }
        let reverse = ReverseMap::new(mapped);
        let frames = reverse.frames();
        (Self { memory, backend, reverse, frames }, left_out)
    }

    /// Every aligned slot that holds one of `wanted` of its space, as address of the slot and value,
    /// for each space. Every frame is looked at once, however many spaces share it.
    pub fn sweep(&self, wanted: &[BTreeSet<VirtAddr>]) -> Vec<Vec<(VirtAddr, VirtAddr)>> {
        let values: Vec<u64> = wanted.iter().flatten().map(|address| address.0).collect();
        let mut found = vec![Vec::new(); wanted.len()];
        // The slot that a space was last asked about, and under how many addresses.
        let mut aliases = vec![(PhysAddr(0), 0); wanted.len()];
        for (pa, value) in sweep(self.memory, &self.frames, &PointerSet::new(&values), self.backend, &|_| ()) {
            for (space, va) in self.reverse.lookup(pa).take(MAX_ALIASES * MAX_ALIASES.max(wanted.len())) {
                let here = wanted.get(space).zip(found.get_mut(space)).zip(aliases.get_mut(space));
                if let Some(((wanted, found), (slot, aliases))) = here
                    && (*slot != pa || *aliases < MAX_ALIASES)
                    && wanted.contains(&VirtAddr(value))
                {
                    *aliases = if *slot == pa { *aliases + 1 } else { 1 };
                    *slot = pa;
                    found.push((va, VirtAddr(value)));
                }
            }
        }
        for found in &mut found {
            found.sort_unstable();
        }
        found
    }
}

/// Finds the types of every candidate and chooses its layout.
///
/// The candidates are those whose spaces the sweeper holds, in the same order; those in which no
/// layout reads any type are dropped.
pub fn interpreters<'a>(
    candidates: &[Candidate<'a>],
    layouts: &'a [Layout],
    sweeper: &Sweeper<'_>,
) -> Vec<Interpreter<'a>> {
    let mut metaclasses: Vec<BTreeSet<VirtAddr>> =
        candidates.iter().map(|candidate| BTreeSet::from([candidate.type_object])).collect();
    let slots = sweeper.sweep(&metaclasses);
    let with_slots = candidates.iter().zip(slots).enumerate();
    let mut interpreters: Vec<Interpreter<'a>> =
        with_slots.filter_map(|(index, (candidate, slots))| choose_layout(index, candidate, &slots, layouts)).collect();
    for _ in 0..METACLASS_ROUNDS {
        let mut new = vec![BTreeSet::new(); metaclasses.len()];
        for interpreter in &interpreters {
            let slot = new.get_mut(interpreter.index).zip(metaclasses.get_mut(interpreter.index));
            if let Some((new, known)) = slot {
                *new = interpreter.metaclasses().difference(known).copied().collect();
                known.extend(new.iter());
            }
        }
        if new.iter().all(BTreeSet::is_empty) {
            break;
        }
        let slots = sweeper.sweep(&new);
        for interpreter in &mut interpreters {
            let types = slots.get(interpreter.index).map(|slots| read_types(&interpreter.objects(), slots));
            interpreter.types.extend(types.unwrap_or_default());
        }
    }
    interpreters
}

impl Interpreter<'_> {
    /// Types whose instances are types.
    fn metaclasses(&self) -> BTreeSet<VirtAddr> {
        self.subtypes(self.type_object)
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
    let mut scored: Vec<(LayoutScore, &'a Layout, Types)> = layouts
        .iter()
        .filter_map(|layout| {
            let objects = Objects::new(&candidate.space, layout);
            let types = read_types(&objects, slots);
            score(&objects, candidate.type_object, &types).map(|score| (score, layout, types))
        })
        .collect();
    scored.sort_by_key(|(score, ..)| (score.readable, score.size_matches));
    let (best, layout, types) = scored.pop()?;
    let next = scored.pop().map(|(score, ..)| score);
    Some(Interpreter {
        index,
        space: candidate.space,
        type_object: candidate.type_object,
        layout,
        scores: (best, next),
        types,
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

/// Live objects by their type.
pub type Instances = BTreeMap<VirtAddr, Vec<VirtAddr>>;

/// The live instances of the types in `wanted`, a set for each interpreter, in the order of the interpreters.
pub fn instances(
    interpreters: &[Interpreter<'_>],
    sweeper: &Sweeper<'_>,
    wanted: impl IntoIterator<Item = BTreeSet<VirtAddr>>,
) -> Vec<Instances> {
    let mut types = vec![BTreeSet::new(); interpreters.iter().map(|i| i.index + 1).max().unwrap_or_default()];
    for (interpreter, wanted) in interpreters.iter().zip(wanted) {
        if let Some(types) = types.get_mut(interpreter.index) {
            *types = wanted;
        }
    }
    let slots = sweeper.sweep(&types);
    let by_type = |interpreter: &Interpreter<'_>| {
        let objects = interpreter.objects();
        let mut by_type = Instances::new();
        for (slot, type_object) in slots.get(interpreter.index).into_iter().flatten() {
            let object = field(*slot, -interpreter.layout.ob_type);
            if objects.is_alive(object).unwrap_or(false) {
                by_type.entry(*type_object).or_default().push(object);
            }
        }
        by_type
    };
    interpreters.iter().map(by_type).collect()
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
