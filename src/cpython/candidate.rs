//! Candidates for `type`, the one object whose type is itself: confirmed through an address space, each with the
//! layouts that read it.

use rayon::prelude::*;

use super::debug_offsets::DebugOffsets;
use super::infer;
use super::layout::Layout;
use super::object::{ObjectError, Objects};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr, field};
use crate::dump::PhysicalMemory;
use crate::paging::AddressSpace;
use crate::scan::Hit;

/// Candidates of one space that are followed. A real space holds one, or a few where programs embed Python; each
/// costs a look at all its pages.
const MAX_PER_SPACE: usize = 8;
/// Bytes before the anchor of a signature in which the pointer to the structure itself is looked for.
const REACH: u64 = 128;
/// The farthest that the pointer to its type lies in an object: four times as far as in any build that is known.
const MAX_HEADER: u64 = 96;

/// A `type` object, confirmed: its own address translates to where it was found.
#[derive(Clone)]
pub struct Candidate {
    /// The space in which it was confirmed.
    pub space: AddressSpace,
    /// Its virtual address.
    pub type_object: VirtAddr,
    /// The layouts that read it: those of the tables, or else what was made of them.
    pub layouts: Vec<Layout>,
    /// What the interpreter tells of itself.
    pub(super) debug_offsets: Option<DebugOffsets>,
}

/// What a hit of a signature of `type` leads to.
#[derive(Clone)]
struct Place {
    space: AddressSpace,
    type_object: VirtAddr,
    /// Where in the object the pointer to its type lies.
    ob_type: i64,
}

/// The `type` objects among the hits of its signatures: those whose own address leads back to where they were found,
/// and that a layout reads.
pub fn candidates(memory: &PhysicalMemory, hits: &[Hit], spaces: &[AddressSpace], tables: &[Layout]) -> Vec<Candidate> {
    let pointers = |hit: &Hit| self_pointers(memory, hit.anchor);
    let mut pointers: Vec<(PhysAddr, VirtAddr)> = hits.par_iter().flat_map_iter(pointers).collect();
    // Pages are mapped whole: what slots say of one frame and one page is looked up once in every space, however many
    // slots say it.
    let pages = |(slot, value): &(PhysAddr, VirtAddr)| (slot.frame(), page_of(*slot, *value));
    pointers.par_sort_unstable_by_key(|pointer| (pages(pointer), *pointer));
    pointers.dedup();
    let of_pages: Vec<&[(PhysAddr, VirtAddr)]> = pointers.chunk_by(|a, b| pages(a) == pages(b)).collect();
    let mut places: Vec<Place> = of_pages.into_par_iter().flat_map_iter(|pointers| confirm(spaces, pointers)).collect();
    places.sort_by_key(|place| (place.space.root(), place.type_object));
    places.dedup_by_key(|place| (place.space.root(), place.type_object));
    let of_spaces: Vec<&[Place]> = places.chunk_by(|a, b| a.space.root() == b.space.root()).collect();
    of_spaces.into_par_iter().flat_map_iter(|places| of_space(places, tables)).collect()
}

/// The candidates of one space, those that a table reads first.
fn of_space(places: &[Place], tables: &[Layout]) -> Vec<Candidate> {
    let candidate = |place: &Place, layouts: Vec<Layout>| {
        let Place { space, type_object, .. } = place.clone();
        (!layouts.is_empty()).then_some(Candidate { space, type_object, layouts, debug_offsets: None })
    };
    let reads = |place: &Place| {
        let reading = |layout: &&Layout| is_type_type(&Objects::new(&place.space, layout), place.type_object);
        candidate(place, tables.iter().filter(reading).cloned().collect())
    };
    let read: Vec<Option<Candidate>> = places.iter().map(reads).collect();
    let unread = places.iter().zip(&read).filter(|(_, read)| read.is_none()).map(|(place, _)| place);
    let inferred = unread.take(MAX_PER_SPACE).filter_map(|place| {
        let layouts = infer::from_type(&place.space, place.type_object, place.ob_type, tables);
        candidate(place, layouts)
    });
    let inferred: Vec<Candidate> = inferred.collect();
    read.into_iter().flatten().chain(inferred).take(MAX_PER_SPACE).collect()
}

/// Slots at `anchor` or before it in its frame that could point to the structure that they stand in, and their values.
fn self_pointers(memory: &PhysicalMemory, anchor: PhysAddr) -> impl Iterator<Item = (PhysAddr, VirtAddr)> {
    let first = anchor.0.saturating_sub(REACH).max(anchor.frame().0);
    (first..=anchor.0).step_by(8).filter_map(|slot| {
        let value = memory.read_u64(PhysAddr(slot))?;
        // Virtual and physical addresses agree in what lies within a page.
        let offset = slot.wrapping_sub(value) % FRAME_SIZE;
        (offset <= MAX_HEADER && value.is_multiple_of(8)).then_some((PhysAddr(slot), VirtAddr(value)))
    })
}

/// The page that a slot stands in, if its value points to the object around it.
fn page_of(slot: PhysAddr, value: VirtAddr) -> VirtAddr {
    field(value, ob_type_at(slot, value)).frame()
}

/// Where in an object the pointer to its type lies, if the slot is that pointer and its value the object.
fn ob_type_at(slot: PhysAddr, value: VirtAddr) -> i64 {
    (slot.0.wrapping_sub(value.0) % FRAME_SIZE).cast_signed()
}

/// What slots of one frame point to that stands around them in one page, in each of the spaces that have the frame there.
fn confirm(spaces: &[AddressSpace], pointers: &[(PhysAddr, VirtAddr)]) -> impl Iterator<Item = Place> {
    let first = pointers.first().copied();
    let has_frame = move |space: &&AddressSpace| {
        first.is_some_and(|(slot, value)| {
            space.translate(field(value, ob_type_at(slot, value))).is_ok_and(|found| found.pa == slot)
        })
    };
    spaces.iter().filter(has_frame).flat_map(|space| {
        pointers.iter().map(|(slot, value)| Place {
            space: space.clone(),
            type_object: *value,
            ob_type: ob_type_at(*slot, *value),
        })
    })
}

/// Whether this is the `type` object of a running interpreter.
pub(super) fn is_type_type(objects: &Objects<'_>, object: VirtAddr) -> bool {
    let layout = objects.layout();
    let check = || -> Result<bool, ObjectError> {
        let info = objects.type_info(object)?;
        let [_, base] = *info.mro.as_slice() else { return Ok(false) };
        Ok(info.flags & layout.flag_type as u64 != 0
            && objects.type_of(object)? == object
            && objects.word(object, layout.tp_itemsize)? == layout.member_def_size as u64
            && objects.type_of(base)? == object
            && objects.type_info(base)?.mro.len() == 1)
    };
    check().unwrap_or(false)
}
