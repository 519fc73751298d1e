//! Which layout reads an interpreter: the table that reads most of its types, or what is made of one.

use std::cmp::Reverse;
use std::rc::Rc;

use super::candidate::Candidate;
use super::infer;
use super::layout::Layout;
use super::object::Objects;
use super::types::{Types, read_types};
use crate::addr::VirtAddr;
use crate::layout::{Change, LayoutSource, Ranking, StructLayout, changes_from_table};
use crate::paging::VirtualMemory;

/// Heap types that are read to score a layout, and those that are read to make one.
const SAMPLE: usize = 256;
const SAMPLE_TO_INFER: usize = 24;
/// Tables that are changed to fit, at most.
const MAX_STARTS: usize = 4;

/// How well a layout reads an interpreter's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutScore {
    /// Sampled types whose name, module and dictionary could be read.
    pub readable: usize,
    /// Types that were sampled.
    pub sampled: usize,
    /// Whether the size of a type object, which `type` tells of itself, is that of the layout.
    pub size_matches: bool,
    /// The layout's version, or that of the layout that it was made of.
    pub version: String,
    /// Where its numbers come from.
    pub source: LayoutSource,
    /// What differs from the layout file.
    pub changes: Vec<Change>,
}

/// A layout, with what it reads.
struct Reading {
    score: LayoutScore,
    layout: Layout,
    types: Rc<Types>,
}

/// The best layout for a candidate whose types are in the slots, its score, the score of the next best, and the types.
/// `memory` is that of its address space.
///
/// `None` where no layout reads the name of any class.
pub(super) fn select_layout(
    candidate: &Candidate,
    memory: &dyn VirtualMemory,
    slots: &[(VirtAddr, VirtAddr)],
    tables: &[Layout],
) -> Option<(Layout, (LayoutScore, Option<LayoutScore>), Types)> {
    let mut readings = Ranking::new();
    let add = |readings: &mut Ranking<Key, Reading>, layouts: &[Layout]| {
        for layout in layouts {
            // Most layouts differ elsewhere, and read the same types.
            let known = readings.iter().find(|other| layout.reads_types_like(&other.layout));
            let types = known.map(|known| Rc::clone(&known.types));
            let reading = read((candidate, memory), layout.clone(), types, slots, tables);
            readings.insert(reading.score.key(), reading);
        }
        readings.best().is_some_and(|(_, best)| best.score.fits())
    };
    if !add(&mut readings, &candidate.layouts) {
        // A table may read `type` by chance, with the counts of references in other words of the header.
        let ob_type = candidate.layouts.first().map_or(0, |layout| layout.ob_type);
        let headers = infer::from_type(memory, candidate.type_object, ob_type, tables);
        let is_new = |layout: &Layout| candidate.layouts.iter().all(|known| known.numbers() != layout.numbers());
        let new: Vec<Layout> = headers.into_iter().filter(is_new).collect();
        if !add(&mut readings, &new) {
            let inferred = infer_layout(candidate.type_object, memory, &readings, tables);
            add(&mut readings, inferred.as_slice());
        }
    }
    let mut readings = readings.into_candidates().filter(|reading| reading.score.readable > 0);
    let best = readings.next()?;
    let next = readings.next().map(|reading| reading.score);
    drop(readings);
    Some((best.layout, (best.score, next), Rc::unwrap_or_clone(best.types)))
}

/// What decides between layouts: types that are read, whether the size fits, and how few numbers were changed.
type Key = (usize, bool, Reverse<usize>);

impl LayoutScore {
    fn key(&self) -> Key {
        (self.readable, self.size_matches, Reverse(self.changes.len()))
    }

    /// Whether there is nothing to learn: the size is right, and what can't be read is missing in the dump.
    fn fits(&self) -> bool {
        self.size_matches && self.readable * 4 > self.sampled
    }
}

fn read(
    (candidate, memory): (&Candidate, &dyn VirtualMemory),
    layout: Layout,
    types: Option<Rc<Types>>,
    slots: &[(VirtAddr, VirtAddr)],
    tables: &[Layout],
) -> Reading {
    let objects = Objects::new(memory, &layout);
    let types = types.unwrap_or_else(|| Rc::new(read_types(&objects, slots)));
    let sample = heap_types(&layout, &types, SAMPLE);
    // That its dictionary lives tells whether references are counted where the layout says.
    let is_readable = |address: &&VirtAddr| {
        let dict = objects.pointer(**address, layout.tp_dict);
        objects.has_one_name(**address) == Ok(true) && dict.and_then(|dict| objects.is_alive(dict)) == Ok(true)
    };
    let readable = sample.iter().filter(is_readable).count();
    let size = objects.word(candidate.type_object, layout.tp_basicsize);
    let changes = changes_from_table(&layout, tables);
    let published = candidate.debug_offsets.as_ref();
    let is_published = |change: &Change| published.is_some_and(|offsets| offsets.get(change.number) == change.to);
    let source = match published {
        _ if !changes.iter().all(is_published) => LayoutSource::Inferred,
        Some(_) => LayoutSource::DebugOffsets,
        None => LayoutSource::Table,
    };
    let score = LayoutScore {
        readable,
        sampled: sample.len(),
        size_matches: size == Ok(layout.heap_type_size.cast_unsigned()),
        version: layout.version.clone(),
        source,
        changes,
    };
    Reading { score, layout, types }
}

/// Classes that were made by a class statement, spread over all of them.
fn heap_types(layout: &Layout, types: &Types, count: usize) -> Vec<VirtAddr> {
    let is_heap_type = |flags: u64| flags & layout.flag_heap_type.cast_unsigned() != 0;
    let all: Vec<VirtAddr> =
        types.iter().filter(|(_, info)| is_heap_type(info.flags)).map(|(address, _)| *address).collect();
    let step = all.len().div_ceil(count).max(1);
    all.into_iter().step_by(step).collect()
}

/// The layout that is made of those which read `type`, from the names of some types.
fn infer_layout(
    type_object: VirtAddr,
    memory: &dyn VirtualMemory,
    readings: &Ranking<Key, Reading>,
    tables: &[Layout],
) -> Option<Layout> {
    // What reads most already is nearest, then what has a type object of about that size.
    let nearness = |reading: &Reading| {
        let layout = &reading.layout;
        let types = heap_types(layout, &reading.types, SAMPLE_TO_INFER);
        let size = Objects::new(memory, layout).word(type_object, layout.tp_basicsize);
        let distance = size.map_or(u64::MAX, |size| size.abs_diff(layout.heap_type_size.cast_unsigned()));
        (infer::evidence_of_names(memory, layout, &types), Reverse(distance))
    };
    let starts: Ranking<_, &Reading> = readings.iter().rev().map(|reading| (nearness(reading), reading)).collect();
    let inferred = starts.into_candidates().take(MAX_STARTS).map(|start| {
        let types = heap_types(&start.layout, &start.types, SAMPLE_TO_INFER);
        let (found, layout) = infer::from_names(memory, type_object, &types, start.layout.clone(), tables);
        ((found, Reverse(changes_from_table(&layout, tables).len())), layout)
    });
    // Of equally good ones the one in which least was changed.
    inferred.collect::<Ranking<_, _>>().into_candidates().next()
}
