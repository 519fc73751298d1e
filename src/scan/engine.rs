//! The seam between what is looked for and the machine that looks: one trait, an implementation per backend.

use std::fmt;

use super::Hit;
use super::chunk::View;
use super::few::Few;
use super::filter::Filter;
use super::frames::ABSENT_FRAME;
use super::pointer_set::PointerSet;
use super::sample::Sample;
use super::sieve::{Entry, Sieve};
use super::structures;
use super::type_slots::{FrameSlots, TypeSlot};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::signature::{Leaf, Mmu, Needle, Signatures, Structure};

/// The signatures in the form that engines use.
pub(super) struct Plan<'a> {
    pub(super) mmu: Option<&'a Mmu>,
    pub(super) rules: Option<FrameRules>,
    pub(super) structures: &'a [Structure],
    /// Needles that stand in slots, each with its index.
    pub(super) slot_needles: Vec<(u16, &'a Needle)>,
    /// Signatures that are looked for in 8-byte slots, by the passes below.
    slots: Vec<SlotSignature<'a>>,
    pub(super) passes: Vec<Pass>,
    /// Structures whose anchors stand at other places than slots: index and structure.
    pub(super) unaligned: Vec<(u16, &'a Structure)>,
}

/// Something to be looked for in the slots of frames; numbers are indices of slot signatures.
pub(super) enum Pass {
    One(Filter, usize),
    Few(Few),
    Many(Sieve),
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(filter, _) => write!(f, "one test of each slot, {filter}"),
            Self::Few(few) => few.fmt(f),
            Self::Many(sieve) => sieve.fmt(f),
        }
    }
}

/// A signature that is given away by one slot.
struct SlotSignature<'a> {
    signature: u16,
    /// Where the anchor begins in the slot.
    start: usize,
    kind: SlotKind<'a>,
}

#[derive(Clone, Copy)]
enum SlotKind<'a> {
    Structure(&'a Structure),
    Needle(&'a Needle),
}

impl<'a> Plan<'a> {
    /// The signatures, with tests in an order that is good for `memory`.
    ///
    /// An engine without vectors looks for one signature after the other; for it nothing is prepared.
    pub(super) fn new(signatures: &'a Signatures, memory: &PhysicalMemory, engine: &dyn Engine) -> Self {
        let slot_needles: Vec<_> = slot_needles(signatures).collect();
        let mut plan = Self {
            mmu: signatures.mmu(),
            rules: signatures.mmu().map(FrameRules::new),
            structures: signatures.structures(),
            slot_needles,
            slots: Vec::new(),
            passes: Vec::new(),
            unaligned: Vec::new(),
        };
        if engine.has_vectors() {
            plan.prepare(memory);
        }
        plan
    }

    fn prepare(&mut self, memory: &PhysicalMemory) {
        let entries = self.enter();
        let filters: Option<Vec<(usize, Filter)>> =
            self.slots.iter().enumerate().map(|(index, slot)| Some((index, slot.filter()?))).collect();
        self.passes = match filters.as_deref() {
            Some([]) => Vec::new(),
            Some(&[(index, filter)]) => vec![Pass::One(filter, index)],
            filters => {
                let sample = Sample::new(memory);
                match filters.and_then(|filters| Few::new(filters, &sample)) {
                    Some(few) => vec![Pass::Few(few)],
                    None => Sieve::split(&entries, &sample).into_iter().map(Pass::Many).collect(),
                }
            }
        };
    }

    /// Lists the signatures that are looked for in slots, and gives the entries of all of them.
    pub(super) fn enter(&mut self) -> Vec<(usize, Entry)> {
        let mut entries = Vec::new();
        for (structure, signature) in self.structures.iter().zip(0..) {
            let Some(starts) = starts_in_slot(structure) else {
                self.unaligned.push((signature, structure));
                continue;
            };
            for start in starts {
                let slot = structure.anchor().offset.cast_signed() - start as i64;
                entries.push((self.slots.len(), Entry::of_structure(structure, slot)));
                self.slots.push(SlotSignature { signature, start, kind: SlotKind::Structure(structure) });
            }
        }
        for &(signature, needle) in &self.slot_needles {
            entries.push((self.slots.len(), Entry::of_bytes(&needle.bytes)));
            self.slots.push(SlotSignature { signature, start: 0, kind: SlotKind::Needle(needle) });
        }
        entries
    }

    /// Adds the hit of a slot signature at byte `at` of `frame`, which lies in `range`, if there is one.
    pub(super) fn check(&self, index: usize, range: View<'_>, frame: View<'_>, at: usize, hits: &mut Vec<Hit>) {
        let Some(SlotSignature { signature, start, kind }) = self.slots.get(index) else { return };
        hits.extend(match kind {
            SlotKind::Structure(structure) => structures::check(structure, *signature, frame, at + start),
            SlotKind::Needle(needle) => needle_at(needle, *signature, range, PhysAddr(frame.start.0 + at as u64)),
        });
    }
}

impl SlotSignature<'_> {
    /// The single test for it, if its anchor is the slot.
    fn filter(&self) -> Option<Filter> {
        match self.kind {
            SlotKind::Structure(structure) if structure.anchor().width == 8 => {
                Some(Filter::of_tests(&structure.anchor().tests))
            }
            SlotKind::Structure(_) => None,
            SlotKind::Needle(needle) => Some(Filter::of_bytes(&needle.bytes)),
        }
    }
}

/// The places in a slot at which an anchor can begin; `None` if it can reach over a slot's end.
pub(super) fn starts_in_slot(structure: &Structure) -> Option<Vec<usize>> {
    let anchor = structure.anchor();
    let starts = (0..8).filter(|start| (start + 8 - anchor.offset % 8).is_multiple_of(structure.align.min(8)));
    let starts: Vec<usize> = starts.map(|start| start as usize).collect();
    starts.iter().all(|start| start + usize::from(anchor.width) <= 8).then_some(starts)
}

/// The needles that stand in 8-byte slots and are found there, each with its index.
pub(super) fn slot_needles(signatures: &Signatures) -> impl Iterator<Item = (u16, &Needle)> {
    indexed_needles(signatures).filter(|(_, needle)| is_slot_needle(needle))
}

/// The other needles, which stand anywhere.
pub(super) fn unaligned_needles(signatures: &Signatures) -> impl Iterator<Item = (u16, &Needle)> {
    indexed_needles(signatures).filter(|(_, needle)| !is_slot_needle(needle))
}

fn indexed_needles(signatures: &Signatures) -> impl Iterator<Item = (u16, &Needle)> {
    let first = u16::try_from(signatures.structures().len()).unwrap_or(u16::MAX);
    (first..).zip(signatures.needles())
}

/// Whether a needle is found by its slots. With fewer bytes too many slots would have to be looked at twice.
fn is_slot_needle(needle: &Needle) -> bool {
    needle.align.is_multiple_of(8) && needle.bytes.len() >= 4
}

/// The hit of a needle at an address of the range.
pub(super) fn needle_at(needle: &Needle, signature: u16, range: View<'_>, address: PhysAddr) -> Option<Hit> {
    let here = range.part(address..range.end()).bytes;
    if here.starts_with(&needle.bytes) { needle_hit(needle, signature, address) } else { None }
}

/// The hit of a needle that stands at an address, if its alignment allows that.
pub(super) fn needle_hit(needle: &Needle, signature: u16, address: PhysAddr) -> Option<Hit> {
    let aligned = address.0.is_multiple_of(needle.align);
    aligned.then_some(Hit { address, anchor: address, value: 0, signature, tested: 0, deferred: 0 })
}

/// The rules of page-table frames, reduced to what can be told from entries or-ed together.
#[derive(Clone, Debug, Default)]
pub(super) struct FrameRules {
    pub(super) present: u64,
    pub(super) leaf_bit: u64,
    pub(super) reserved: u64,
    /// The bit of a level in the class, and the bits that entries with the leaf bit must not have there.
    pub(super) levels: Vec<(u8, u64)>,
}

impl FrameRules {
    pub(super) fn new(mmu: &Mmu) -> Self {
        let levels = mmu.levels.iter().map(|level| {
            let forbidden = match level.leaf {
                Leaf::Always => 0,
                Leaf::ByLeafBit => level.leaf_zero,
                Leaf::Never => u64::MAX,
            };
            (1 << (level.level - 1), forbidden)
        });
        Self { present: mmu.present, leaf_bit: mmu.leaf_bit, reserved: mmu.reserved, levels: levels.collect() }
    }

    /// The class of a frame that is not zero, whose present entries, or-ed, are `present`, and those of them with
    /// the leaf bit `leaves`.
    pub(super) fn class(&self, present: u64, leaves: u64) -> u8 {
        if present == 0 {
            return ABSENT_FRAME;
        }
        if present & self.reserved != 0 {
            return 0;
        }
        self.levels.iter().filter(|(_, forbidden)| leaves & forbidden == 0).fold(0, |class, (bit, _)| class | bit)
    }
}

/// A way to look at memory. All engines find the same, bit for bit; [`super::scalar`] says what.
pub(super) trait Engine: Sync {
    /// Whether it tests many slots, and many signatures, at once.
    fn has_vectors(&self) -> bool;

    /// Classifies whole `frames` of `range`, one byte of `classes` each, and adds the hits of all structures and of
    /// the needles that stand in slots, in any order.
    fn scan_frames(&self, plan: &Plan<'_>, range: View<'_>, frames: View<'_>, classes: &mut [u8], hits: &mut Vec<Hit>);

    /// Adds every 8-byte slot whose value is in the set, in the order of addresses.
    /// `slots` begins at a multiple of eight; its length is one.
    fn sweep(&self, values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>);

    /// Adds the slots of whole frames that look like `slot`, frame by frame; frames without any are left out.
    fn type_slots(&self, slot: &TypeSlot, frames: View<'_>, found: &mut Vec<FrameSlots>);
}
