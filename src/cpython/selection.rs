//! Which layout reads an interpreter: the table that reads most of its types, or what is made of one.

use std::cmp::Reverse;
use std::fmt;
use std::rc::Rc;

use super::candidate::Candidate;
use super::infer;
use super::layout::Layout;
use super::object::Objects;
use super::types::{Types, read_types};
use crate::addr::VirtAddr;
use crate::paging::VirtualMemory;

/// Heap types that are read to score a layout, and those that are read to make one.
const SAMPLE: usize = 256;
const SAMPLE_TO_INFER: usize = 24;
/// Tables that are changed to fit, at most.
const MAX_STARTS: usize = 4;

/// Where the numbers of a layout come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutSource {
    /// A layout file.
    Table,
    /// A layout file, and for those that it has the interpreter's own `_Py_DebugOffsets`.
    DebugOffsets,
    /// A layout file, changed until what is read with it makes sense.
    Inferred,
}

impl fmt::Display for LayoutSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "table",
            Self::DebugOffsets => "table and debug offsets",
            Self::Inferred => "inferred",
        })
    }
}

/// A number that is not that of the layout file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Its name in layout files.
    pub number: &'static str,
    /// The file's number, if it has one.
    pub from: Option<i64>,
    /// The one that is used, if there is one.
    pub to: Option<i64>,
}

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
    let mut readings: Vec<Reading> = Vec::new();
    let add = |readings: &mut Vec<Reading>, layouts: &[Layout]| {
        for layout in layouts {
            // Most layouts differ elsewhere, and read the same types.
            let known = readings.iter().find(|other| layout.reads_types_like(&other.layout));
            let types = known.map(|known| Rc::clone(&known.types));
            readings.push(read((candidate, memory), layout.clone(), types, slots, tables));
        }
        readings
            .sort_by_key(|Reading { score, .. }| (score.readable, score.size_matches, Reverse(score.changes.len())));
        readings.last().is_some_and(|best| best.score.fits())
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
    let best = readings.pop().filter(|best| best.score.readable > 0)?;
    let next = readings.pop().map(|reading| reading.score).filter(|next| next.readable > 0);
    drop(readings);
    Some((best.layout, (best.score, next), Rc::unwrap_or_clone(best.types)))
}

impl LayoutScore {
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
    let changes = changes(&layout, tables);
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

/// Where a layout differs from the table that it has its version from.
pub(super) fn changes(layout: &Layout, tables: &[Layout]) -> Vec<Change> {
    let Some(table) = tables.iter().find(|table| table.version == layout.version) else { return Vec::new() };
    let pairs = layout.numbers().into_iter().zip(table.numbers());
    let changed = pairs.filter(|((_, to), (_, from))| to != from);
    changed.map(|((number, to), (_, from))| Change { number, from, to }).collect()
}

/// The layout that is made of those which read `type`, from the names of some types.
fn infer_layout(
    type_object: VirtAddr,
    memory: &dyn VirtualMemory,
    readings: &[Reading],
    tables: &[Layout],
) -> Option<Layout> {
    // What reads most already is nearest, then what has a type object of about that size.
    let nearness = |reading: &Reading| {
        let layout = &reading.layout;
        let types = heap_types(layout, &reading.types, SAMPLE_TO_INFER);
        let size = Objects::new(memory, layout).word(type_object, layout.tp_basicsize);
        let distance = size.map_or(u64::MAX, |size| size.abs_diff(layout.heap_type_size.cast_unsigned()));
        (Reverse(infer::evidence_of_names(memory, layout, &types)), distance)
    };
    let mut starts: Vec<&Reading> = readings.iter().collect();
    starts.sort_by_cached_key(|reading| nearness(reading));
    let inferred = starts.into_iter().take(MAX_STARTS).map(|start| {
        let types = heap_types(&start.layout, &start.types, SAMPLE_TO_INFER);
        let (found, layout) = infer::from_names(memory, type_object, &types, start.layout.clone(), tables);
        (found, Reverse(changes(&layout, tables).len()), layout)
    });
    // Of equally good ones the one in which least was changed.
    let better = |a: (usize, Reverse<usize>, Layout), b: (usize, Reverse<usize>, Layout)| {
        if (b.0, b.1) > (a.0, a.1) { b } else { a }
    };
    inferred.reduce(better).map(|(.., layout)| layout)
}
