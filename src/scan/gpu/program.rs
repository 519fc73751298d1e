//! The signatures, and the values to sweep for, in the form that the shaders read.

use std::fmt;

use bytemuck::{Pod, Zeroable};

use super::super::engine::{FrameRules, slot_needles, starts_in_slot};
use super::super::few::{Bits, merged};
use super::super::pointer_set::PointerSet;
use super::super::sample::Sample;
use super::super::slot_set::SlotSet;
use crate::addr::FRAME_SIZE;
use crate::signature::{Needle, Signatures, Structure, Test};

/// A 64-bit number, lower half first: shaders need no 64-bit integers.
pub(super) type Halves = [u32; 2];

/// `ScanParams` of `frames.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct ScanParams {
    pub(super) frame_count: u32,
    pub(super) capacity: u32,
}

/// `Structure` of `frames.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct DeviceStructure {
    pub(super) first_test: u32,
    pub(super) test_count: u32,
    pub(super) start: u32,
    pub(super) phase: u32,
    pub(super) step: u32,
}

/// `Test` of `frames.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct DeviceTest {
    pub(super) position: i32,
    pub(super) width: u32,
    pub(super) kind: u32,
    pub(super) padding: u32,
    pub(super) low: Halves,
    pub(super) high: Halves,
}

/// Kinds of [`DeviceTest`]; what they mean stands in the shader.
pub(super) const BITS: u32 = 0;
pub(super) const OWN_BITS: u32 = 1;
pub(super) const RANGE: u32 = 2;

/// Bits of a set in the tables.
const SET_BITS: u32 = 32;
/// With more signatures than this, nobody looks for what they have in common.
const MAX_MERGED: usize = 64;
/// Instructions that a comparison of a slot takes, looking up one of its bytes, and a closer look at one that passes with all that
/// waits for it: counted, not measured, and for weighing one question against another only.
const COMPARISON: f64 = 3.0;
const LOOK_UP: f64 = 8.0;
const CLOSER_LOOK: f64 = 2000.0;

/// The signatures, compiled: structures, and the needles that stand in slots.
pub(in super::super) struct Program<'a> {
    pub(super) signatures: &'a Signatures,
    /// The rules of page tables, if there are any.
    pub(super) rules: Option<FrameRules>,
    /// How many of the structures have their anchors in slots; they come first.
    pub(super) slot_structures: u32,
    /// All structures, and all their tests; neither is empty, because a GPU has no empty bindings.
    pub(super) structures: Vec<DeviceStructure>,
    pub(super) tests: Vec<DeviceTest>,
    /// Index of each structure's signature.
    pub(super) indices: Vec<u16>,
    /// What is asked of each slot.
    pub(super) question: Question,
    /// What is looked up for the few slots that pass.
    pub(super) looks: Looks,
}

/// Tables that say for a slot which structures it allows. Structure `i` is bit `i % 32`.
#[derive(Clone, Debug)]
pub(super) struct Looks {
    /// The structures that allow zero.
    pub(super) zero: u32,
    /// The most telling first.
    pub(super) columns: Vec<Column>,
}

/// What is asked of each slot; it lets through too much, never too little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Whether one of these holds.
    Comparisons(Vec<Comparison>),
    /// Whether a structure is in the sets of all of the first so many columns.
    Columns(usize),
}

/// What the value of a slot must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) value: Bits,
    /// The same of the value less its place in the frame.
    pub(super) own: Bits,
    pub(super) may_be_zero: bool,
}

/// One byte of a slot, or of the slot less its place in the frame; and for each of its values the structures that allow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) is_relative: bool,
    pub(super) byte: u32,
    pub(super) sets: [u32; 256],
}

/// A signature as the device sees it.
struct Pattern {
    signature: u16,
    /// Where in a slot the anchor begins, if it lies in one.
    start: Option<u64>,
    /// What that slot may hold.
    slot: SlotSet,
    /// Where anchors stand in a frame: there, and every so many bytes after it.
    phase: u64,
    step: u64,
    /// The anchor, then the other fields.
    fields: Vec<PatternField>,
}

/// Bytes from the anchor, width, and tests of a field.
struct PatternField {
    position: i64,
    width: u8,
    tests: Vec<Test>,
}

impl Comparison {
    fn new(set: &SlotSet) -> Self {
        Self { value: set.fixed_bits(false), own: set.fixed_bits(true), may_be_zero: set.may_be_zero }
    }

    /// What both ask for: it passes wherever one of them does.
    fn common(self, other: Self) -> Self {
        Self {
            value: self.value.common(other.value),
            own: self.own.common(other.own),
            may_be_zero: self.may_be_zero || other.may_be_zero,
        }
    }

    pub(super) fn passes(self, value: u64, place: u64) -> bool {
        (self.may_be_zero || value != 0) && self.value.passes(value) && self.own.passes(value.wrapping_sub(place))
    }
}

impl Column {
    /// The structures that allow a slot's value, as far as this byte says.
    pub(super) fn set(&self, value: u64, place: u64) -> u32 {
        let from = if self.is_relative { value.wrapping_sub(place) & (FRAME_SIZE - 1) } else { value };
        self.sets.get((from >> (8 * self.byte) & 0xff) as usize).copied().unwrap_or_default()
    }

    /// All columns, the most telling first: each the one that leaves the least of the sample after those before it.
    fn all(slots: &[&SlotSet], sample: &[(u64, u64)]) -> Vec<Self> {
        let bytes = (0..8).map(|byte| (false, byte)).chain((0..2).map(|byte| (true, byte)));
        let mut rest: Vec<Self> = bytes
            .map(|(is_relative, byte)| {
                let mut sets = [0; 256];
                for (slot, index) in slots.iter().zip(0u32..) {
                    for value in slot.bytes(is_relative, byte) {
                        sets.get_mut(usize::from(value)).into_iter().for_each(|set| *set |= 1 << (index % SET_BITS));
                    }
                }
                Self { is_relative, byte, sets }
            })
            .collect();
        // One whose values all allow the same says nothing.
        rest.retain(|column| column.sets.iter().any(|set| Some(set) != column.sets.first()));
        let mut left: Vec<(u64, u64, u32)> = sample.iter().map(|(value, place)| (*value, *place, u32::MAX)).collect();
        let mut columns = Vec::new();
        while !rest.is_empty() {
            let passing =
                |column: &Self| left.iter().filter(|(v, place, set)| column.set(*v, *place) & set != 0).count();
            let best = rest.iter().enumerate().min_by_key(|(_, column)| passing(column)).map_or(0, |(index, _)| index);
            let best = rest.swap_remove(best);
            left.iter_mut().for_each(|(value, place, set)| *set &= best.set(*value, *place));
            columns.push(best);
        }
        columns
    }
}

impl Pattern {
    /// A structure's, one for each place in a slot where its anchor can begin.
    fn of_structure(structure: &Structure, signature: u16) -> Vec<Self> {
        let anchor = structure.anchor();
        let starts = match starts_in_slot(structure) {
            Some(starts) => starts.into_iter().map(|start| Some(start as u64)).collect(),
            None => vec![None],
        };
        let of_start = |start: Option<u64>| {
            // The anchor first: where the tables let too much through, it rejects. A field that is deferred with another one
            // allows any value.
            let others = structure.fields().iter().filter(|field| *field != anchor && !field.needs_other());
            let fields = std::iter::once(anchor).chain(others).map(|field| PatternField {
                position: field.offset.cast_signed() - anchor.offset.cast_signed(),
                width: field.width,
                tests: field.tests.clone(),
            });
            let slot = anchor.offset.cast_signed() - start.unwrap_or_default().cast_signed();
            Self {
                signature,
                start,
                slot: SlotSet::of_structure(structure, slot),
                phase: anchor.offset % structure.align,
                step: structure.align,
                fields: fields.collect(),
            }
        };
        starts.into_iter().map(of_start).collect()
    }

    fn of_slot_needle(needle: &Needle, signature: u16) -> Self {
        let fields = needle.bytes.chunks(8).zip((0..).step_by(8)).map(|(bytes, position)| {
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let mask = u64::MAX >> (64 - 8 * bytes.len());
            PatternField { position, width: 8, tests: vec![Test::Masked { mask, value }] }
        });
        let slot = SlotSet::of_bytes(&needle.bytes);
        Self { signature, start: Some(0), slot, phase: 0, step: needle.align, fields: fields.collect() }
    }
}

impl<'a> Program<'a> {
    /// The signatures, with questions in an order that is good for what the sample is of.
    pub(in super::super) fn new(signatures: &'a Signatures, sample: &Sample) -> Self {
        let structures = signatures.structures().iter().zip(0..).flat_map(|(s, index)| Pattern::of_structure(s, index));
        let needles = slot_needles(signatures).map(|(index, needle)| Pattern::of_slot_needle(needle, index));
        let (in_slots, anywhere): (Vec<_>, Vec<_>) =
            structures.chain(needles).partition(|pattern| pattern.start.is_some());
        let slots: Vec<&SlotSet> = in_slots.iter().map(|pattern| &pattern.slot).collect();
        let sample: Vec<(u64, u64)> =
            sample.windows.iter().filter_map(|window| Some((window.at(0)?, window.place as u64))).collect();
        let looks = Looks::new(&slots, &sample);
        let mut program = Self {
            signatures,
            rules: signatures.mmu().map(FrameRules::new),
            slot_structures: in_slots.len() as u32,
            structures: Vec::new(),
            tests: Vec::new(),
            indices: Vec::new(),
            question: Question::new(&slots, &looks, &sample),
            looks,
        };
        in_slots.iter().chain(&anywhere).for_each(|pattern| program.add(pattern));
        program.structures.resize(program.structures.len().max(1), DeviceStructure::default());
        program.tests.resize(program.tests.len().max(1), DeviceTest::default());
        program
    }

    fn add(&mut self, pattern: &Pattern) {
        let first_test = self.tests.len();
        for PatternField { position, width, tests } in &pattern.fields {
            let place = DeviceTest { position: *position as i32, width: u32::from(*width), ..DeviceTest::default() };
            self.tests.extend(tests.iter().flat_map(|test| device_tests(test, place)));
        }
        self.structures.push(DeviceStructure {
            first_test: first_test as u32,
            test_count: (self.tests.len() - first_test) as u32,
            start: pattern.start.unwrap_or_default() as u32,
            phase: pattern.phase as u32,
            step: pattern.step as u32,
        });
        self.indices.push(pattern.signature);
    }

    /// The tables of all columns, one after the other; not empty, and without columns all may be possible.
    pub(super) fn tables(&self) -> Vec<u32> {
        let mut tables: Vec<u32> = self.looks.columns.iter().flat_map(|column| column.sets).collect();
        tables.resize(tables.len().max(1), u32::MAX);
        tables
    }
}

impl fmt::Display for Program<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.question {
            Question::Comparisons(comparisons) => write!(f, "{} comparisons of each slot", comparisons.len())?,
            Question::Columns(count) => write!(f, "{count} bytes of each slot looked up")?,
        }
        write!(f, ", for {} structures and places in a slot", self.slot_structures)
    }
}

impl Question {
    /// The one that costs the least on the sample.
    fn new(slots: &[&SlotSet], looks: &Looks, sample: &[(u64, u64)]) -> Self {
        let comparisons = (slots.len() <= MAX_MERGED).then(|| {
            let passing =
                |comparison: Comparison| sample.iter().filter(|(v, place)| comparison.passes(*v, *place)).count();
            merged(slots.iter().map(|set| Comparison::new(set)).collect(), Comparison::common, passing)
        });
        let columns = (0..=looks.columns.len()).map(Self::Columns);
        let all = comparisons.map(Self::Comparisons).into_iter().chain(columns);
        let costs = all.map(|question| {
            let passing = sample.iter().filter(|(value, place)| question.passes(looks, *value, *place)).count();
            (question.cost() + CLOSER_LOOK * passing as f64 / sample.len().max(1) as f64, question)
        });
        costs.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(Self::Columns(0), |(_, question)| question)
    }

    fn cost(&self) -> f64 {
        match self {
            Self::Comparisons(comparisons) => COMPARISON * comparisons.len() as f64,
            Self::Columns(count) => LOOK_UP * *count as f64,
        }
    }

    /// The answer.
    pub(super) fn passes(&self, looks: &Looks, value: u64, place: u64) -> bool {
        match self {
            Self::Comparisons(comparisons) => comparisons.iter().any(|one| one.passes(value, place)),
            Self::Columns(count) => looks.set(*count, value, place) != 0,
        }
    }
}

impl Looks {
    fn new(slots: &[&SlotSet], sample: &[(u64, u64)]) -> Self {
        let may_be_zero = slots.iter().zip(0u32..).filter(|(slot, _)| slot.may_be_zero);
        let zero = may_be_zero.fold(0, |set, (_, index)| set | 1 << (index % SET_BITS));
        Self { zero, columns: Column::all(slots, sample) }
    }

    /// The structures that the slot allows, as far as the first so many columns say.
    pub(super) fn set(&self, columns: usize, value: u64, place: u64) -> u32 {
        let first = if value == 0 { self.zero } else { u32::MAX };
        self.columns.iter().take(columns).fold(first, |set, column| set & column.set(value, place))
    }
}

/// The lower and the upper half.
pub(super) fn halves(number: u64) -> Halves {
    [number as u32, (number >> 32) as u32]
}

/// Mask and value of a test on bits.
fn bits(test: &Test) -> Option<(u64, u64)> {
    match test {
        Test::Equal(value) => Some((u64::MAX, *value)),
        Test::Masked { mask, value } => Some((*mask, *value)),
        Test::UserPointer { align } | Test::KernelPointer { align } => Some((*align - 1, 0)),
        _ => None,
    }
}

/// The test on the device: up to two, which may let through too much (of a list its bounds count, and equal
/// fields are not compared), never too little.
fn device_tests(test: &Test, place: DeviceTest) -> impl Iterator<Item = DeviceTest> {
    let of = |kind, (low, high): (u64, u64)| DeviceTest { kind, low: halves(low), high: halves(high), ..place };
    let own = match test {
        Test::PageOffsetOfSelf(k) => Some((FRAME_SIZE - 1, k.cast_unsigned() & (FRAME_SIZE - 1))),
        _ => None,
    };
    let in_range = test.bounds().map(|(min, max, _)| of(RANGE, (min, max)));
    let in_bits = bits(test).filter(|(mask, _)| *mask != 0).map(|pair| of(BITS, pair));
    in_bits.into_iter().chain(in_range).chain(own.map(|pair| of(OWN_BITS, pair)))
}

/// `SweepParams` of `sweep.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct SweepParams {
    pub(super) frame_count: u32,
    pub(super) capacity: u32,
    pub(super) last: u32,
    pub(super) padding: u32,
    pub(super) low: Halves,
    pub(super) high: Halves,
    pub(super) absent_bits: Halves,
    pub(super) empty: Halves,
}

/// The values of a sweep, compiled.
pub(super) struct SweepProgram {
    /// With the numbers that do not change from batch to batch.
    pub(super) params: SweepParams,
    /// A hash table with open addressing, at most half full.
    pub(super) table: Vec<Halves>,
}

impl SweepProgram {
    pub(super) fn new(values: &PointerSet) -> Self {
        let values = values.values();
        let size = (2 * values.len() + 2).next_power_of_two();
        // The values are sorted: the first number that is not one of them.
        let empty = (0u64..).zip(values.iter().copied().map(Some).chain([None])).find(|(n, v)| *v != Some(*n));
        let empty = halves(empty.map_or(u64::MAX, |(number, _)| number));
        let mut table = vec![empty; size];
        let last = size - 1;
        for value in values {
            let mut place = hash(halves(*value)) as usize & last;
            while table.get(place).is_some_and(|entry| *entry != empty) {
                place = (place + 1) & last;
            }
            table.get_mut(place).into_iter().for_each(|entry| *entry = halves(*value));
        }
        let params = SweepParams {
            last: last as u32,
            low: halves(values.first().copied().unwrap_or(u64::MAX)),
            high: halves(values.last().copied().unwrap_or(0)),
            absent_bits: halves(!values.iter().fold(0, |bits, value| bits | value)),
            empty,
            ..SweepParams::default()
        };
        Self { params, table }
    }
}

/// The same as in the shader.
pub(super) fn hash(value: Halves) -> u32 {
    let [low, high] = value;
    let mixed = (low ^ high.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
    mixed ^ (mixed >> 15)
}
