//! Running interpreters: the layout that reads the types of a candidate best, and all instances of a type.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;

use rayon::iter::Either;
use rayon::prelude::*;

use super::candidate::Candidate;
use super::debug_offsets::DebugOffsets;
use super::infer;
use super::layout::Layout;
use super::object::Objects;
use super::selection::{LayoutScore, select_layout};
use super::sweeper::Sweeper;
use super::types::{Types, read_types, unread_classes};
use crate::addr::{VirtAddr, field};
use crate::layout::{LayoutSource, changes_from_table};
use crate::paging::{AddressSpace, Cached, VirtualMemory};

/// Sweeps for what newly found types are the types of.
const MAX_ROUNDS: usize = 6;
/// Slots that one thread examines at a time.
const SLOTS: usize = 1 << 14;
/// Pointers to `type` that an interpreter has at least: it begins with twice as many classes.
const MIN_CLASSES: usize = 64;

/// Bytes before the slot of an object's type, and from there on, that are fetched at once: a type object has about a thousand.
const HEAD: u64 = 64;
const FETCHED: u64 = 1 << 10;

/// Live objects by their type.
pub type Instances = BTreeMap<VirtAddr, Vec<VirtAddr>>;

/// An interpreter in an address space.
pub struct Interpreter {
    /// Its position among the spaces of the [`Sweeper`].
    pub index: usize,
    memory: Cached,
    /// The address of `type`.
    pub type_object: VirtAddr,
    /// The layout that its objects are read with.
    pub layout: Layout,
    /// Score of that layout, and of the next best.
    pub scores: (LayoutScore, Option<LayoutScore>),
    /// Its types.
    pub types: Types,
    /// Classes whose type objects are damaged: they have the names of a class, but are no live types that can be read.
    pub unread_classes: BTreeSet<VirtAddr>,
    /// The instances of those that were wanted.
    pub instances: Instances,
    /// What it tells of itself.
    pub(super) debug_offsets: Option<DebugOffsets>,
    /// The types whose instances were swept for.
    swept_for: BTreeSet<VirtAddr>,
    /// Types by the hash of `__qualname__`: they are asked for by name again and again.
    by_name: HashMap<u64, Vec<VirtAddr>>,
}

impl Interpreter {
    /// The space that it runs in.
    pub fn space(&self) -> &AddressSpace {
        self.memory.space()
    }

    /// The memory of that space.
    pub(super) fn memory(&self) -> &Cached {
        &self.memory
    }

    /// A reader of its objects.
    pub fn objects(&self) -> Objects<'_> {
        Objects::new(&self.memory, &self.layout)
    }

    /// Whether the instances of all metaclasses are known, so that all types are.
    pub(super) fn knows_all_types(&self) -> bool {
        self.metaclasses().is_subset(&self.swept_for)
    }

    /// The types that derive from `base`, itself included.
    pub fn subtypes(&self, base: VirtAddr) -> BTreeSet<VirtAddr> {
        self.types.iter().filter(|(_, info)| info.mro.contains(&base)).map(|(address, _)| *address).collect()
    }

    /// The type of that module and qualified name, which a class statement made.
    pub fn heap_type(&self, module: &str, qualname: &str) -> Vec<VirtAddr> {
        let objects = self.objects();
        let is_wanted = |address: &VirtAddr| {
            objects
                .heap_type_name(*address)
                .is_ok_and(|names| (names.0.as_str(), names.1.as_str()) == (module, qualname))
        };
        let found = self.by_name.get(&self.by_name.hasher().hash_one(qualname)).into_iter().flatten();
        let mut found: Vec<VirtAddr> = found.copied().filter(is_wanted).collect();
        found.sort_unstable();
        found
    }
}

/// Finds the types of every candidate, chooses its layout, and finds the instances of the types that `wanted` picks.
///
/// The candidates are those whose spaces the sweeper holds, in the same order; those in which no
/// layout reads any class are left out, and returned by their index where enough classes are there to tell that they
/// are interpreters. `wanted` is asked again when more types are known, and only adds to its answer.
pub fn interpreters(
    candidates: &[Candidate],
    tables: &[Layout],
    sweeper: &Sweeper,
    wanted: impl Fn(&Interpreter) -> BTreeSet<VirtAddr> + Sync,
) -> (Vec<Interpreter>, Vec<usize>) {
    let slots = sweeper.classes(candidates);
    let with_slots = candidates.par_iter().zip(slots).enumerate();
    let (mut interpreters, unread): (Vec<Interpreter>, Vec<Option<usize>>) =
        with_slots.partition_map(|(index, (candidate, slots))| {
            let memory = Cached::new(candidate.space.clone());
            fetch_objects(&memory, &slots, &candidate.layouts);
            let Some((layout, scores, types)) = select_layout(candidate, &memory, &slots, tables) else {
                return Either::Right((slots.len() >= MIN_CLASSES).then_some(index));
            };
            let (type_object, debug_offsets) = (candidate.type_object, candidate.debug_offsets.clone());
            let swept_for = BTreeSet::from([type_object]);
            let (known, instances, by_name) = (Types::new(), Instances::new(), HashMap::new());
            let mut interpreter = Interpreter {
                index,
                memory,
                type_object,
                layout,
                scores,
                types: known,
                unread_classes: BTreeSet::new(),
                instances,
                debug_offsets,
                swept_for,
                by_name,
            };
            interpreter.add(types, &slots);
            Either::Left(interpreter)
        });
    // Every sweep is for what the one before has found: metaclasses, of which there may be more types, and types
    // whose instances are wanted.
    for _ in 0..MAX_ROUNDS {
        let mut new = vec![BTreeSet::new(); candidates.len()];
        let requested = interpreters.par_iter_mut().map(|interpreter| {
            let mut types = interpreter.metaclasses();
            types.extend(wanted(interpreter));
            types.retain(|found| interpreter.swept_for.insert(*found));
            (interpreter.index, types)
        });
        for (index, types) in requested.collect::<Vec<(usize, BTreeSet<VirtAddr>)>>() {
            if let Some(new) = new.get_mut(index) {
                *new = types;
            }
        }
        if new.iter().all(BTreeSet::is_empty) {
            break;
        }
        let slots = sweeper.sweep(&new);
        interpreters
            .par_iter_mut()
            .for_each(|interpreter| interpreter.add_objects(slots.get(interpreter.index).map_or(&[], Vec::as_slice)));
    }
    let is_inferred = |interpreter: &&mut Interpreter| interpreter.scores.0.source == LayoutSource::Inferred;
    interpreters.par_iter_mut().filter(is_inferred).for_each(|interpreter| {
        infer::from_values(interpreter, tables);
        interpreter.scores.0.changes = changes_from_table(&interpreter.layout, tables);
    });
    (interpreters, unread.into_iter().flatten().collect())
}

/// Fetches the objects whose types stand in the slots, where the dump lies elsewhere; and if they are types, what layouts read of
/// them behind pointers.
fn fetch_objects<'l>(
    memory: &Cached,
    slots: &[(VirtAddr, VirtAddr)],
    layouts_of_types: impl IntoIterator<Item = &'l Layout>,
) {
    let space = memory.space();
    if space.memory().remote().is_none() {
        return;
    }
    let reach = |start: VirtAddr| start..VirtAddr(start.0.saturating_add(FETCHED));
    space.fetch_all(slots.iter().map(|(slot, _)| reach(VirtAddr(slot.0.saturating_sub(HEAD)))));
    let offset_from_slot = |layout: &Layout, offset: i64| offset.wrapping_sub(layout.ob_type);
    let pointers = |layout: &Layout| {
        [layout.tp_mro, layout.tp_dict, layout.ht_qualname, layout.ht_name]
            .map(|offset| offset_from_slot(layout, offset))
    };
    let offsets: BTreeSet<i64> = layouts_of_types.into_iter().flat_map(pointers).collect();
    for offset in offsets {
        let targets = slots.iter().filter_map(|(slot, _)| memory.pointer(*slot, offset).ok());
        space.fetch_all(targets.map(reach));
    }
}

impl Interpreter {
    /// Types whose instances are types.
    fn metaclasses(&self) -> BTreeSet<VirtAddr> {
        self.subtypes(self.type_object)
    }

    /// Adds the types that were read in the slots, and their names to the index; and what could not be read there.
    fn add(&mut self, types: Types, slots: &[(VirtAddr, VirtAddr)]) {
        let objects = Objects::new(&self.memory, &self.layout);
        for address in types.keys() {
            if let Ok(name) = objects.heap_type_qualname(*address) {
                let hash = self.by_name.hasher().hash_one(name.as_str());
                self.by_name.entry(hash).or_default().push(*address);
            }
        }
        self.unread_classes.extend(unread_classes(&objects, slots, &types));
        self.types.extend(types);
    }

    /// Adds the objects whose types stand in the slots: to the types those of a metaclass, to the instances the others.
    fn add_objects(&mut self, slots: &[(VirtAddr, VirtAddr)]) {
        let metaclasses = self.metaclasses();
        let (of_types, of_others): (Vec<_>, Vec<_>) =
            slots.iter().copied().partition(|(_, found)| metaclasses.contains(found));
        fetch_objects(&self.memory, &of_types, [&self.layout]);
        fetch_objects(&self.memory, &of_others, []);
        let types = read_types(&self.objects(), &of_types);
        self.add(types, &of_types);
        let objects = self.objects();
        let live = |slots: &[(VirtAddr, VirtAddr)]| {
            let mut live: HashMap<VirtAddr, Vec<VirtAddr>> = HashMap::new();
            for (slot, type_object) in slots {
                let object = field(*slot, -objects.layout().ob_type);
                if objects.is_alive(object).unwrap_or(false) {
                    live.entry(*type_object).or_default().push(object);
                }
            }
            live
        };
        // In the order of their addresses.
        let pieces: Vec<HashMap<VirtAddr, Vec<VirtAddr>>> = of_others.par_chunks(SLOTS).map(live).collect();
        for (type_object, found) in pieces.into_iter().flatten() {
            self.instances.entry(type_object).or_default().extend(found);
        }
    }
}
