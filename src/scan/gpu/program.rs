//! The signatures and the values to sweep for, in the form that the shaders read.

use bytemuck::{Pod, Zeroable};

use super::super::engine::{FrameRules, slot_needles};
use super::super::pointer_set::PointerSet;
use crate::addr::FRAME_SIZE;
use crate::signature::{Mmu, Needle, Signatures, Structure, Test};

/// A 64-bit number, lower half first: shaders need no 64-bit integers.
type Halves = [u32; 2];

/// `ScanParams` of `scan.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct ScanParams {
    pub(super) frame_count: u32,
    pub(super) slot_structures: u32,
    pub(super) structures: u32,
    pub(super) column_count: u32,
    pub(super) capacity: u32,
    pub(super) level_count: u32,
    pub(super) has_mmu: u32,
    pub(super) zeros_may_match: u32,
    pub(super) present: Halves,
    pub(super) leaf_bit: Halves,
    pub(super) reserved: Halves,
    pub(super) all_bits: u32,
    pub(super) padding: u32,
    /// As many as page tables can have.
    pub(super) levels: [[u32; 4]; 6],
}

/// `Structure` of `scan.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct DeviceStructure {
    pub(super) first_test: u32,
    pub(super) test_count: u32,
    pub(super) phase: u32,
    pub(super) step: u32,
}

/// `Test` of `scan.wgsl`.
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

/// Numbers before the tables of columns: which byte each column looks at.
pub(super) const COLUMNS: usize = 16;
/// What a column can look at: the eight bytes of a slot, and two of its distance to its own place in the frame.
const BYTES: u32 = 8;
const OWN_BYTES: u32 = 2;

/// The signatures, compiled: structures, and the needles that stand in slots.
pub(super) struct Program {
    /// With the numbers that do not change from batch to batch.
    pub(super) params: ScanParams,
    /// Never empty, because a GPU has no empty bindings; `params` knows how many there are.
    pub(super) structures: Vec<DeviceStructure>,
    pub(super) tests: Vec<DeviceTest>,
    /// The numbers of the columns, then 256 sets of structures for each.
    pub(super) tables: Vec<u32>,
    /// Index of each structure's signature.
    pub(super) signatures: Vec<u16>,
}

/// A signature as the device sees it.
struct Pattern {
    signature: u16,
    /// Whether every place of the anchor is an 8-byte slot.
    in_slots: bool,
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

impl Pattern {
    fn of_structure(structure: &Structure, signature: u16) -> Self {
        let anchor = structure.anchor();
        let phase = anchor.offset % structure.align;
        // The anchor first: where the tables let too much through, it rejects. A field that is deferred with another one
        // allows any value.
        let others = structure.fields().iter().filter(|field| *field != anchor && !field.needs_other());
        let fields = std::iter::once(anchor).chain(others).map(|field| PatternField {
            position: field.offset.cast_signed() - anchor.offset.cast_signed(),
            width: field.width,
            tests: field.tests.clone(),
        });
        let in_slots = anchor.width == 8 && phase.is_multiple_of(8) && structure.align.is_multiple_of(8);
        Self { signature, in_slots, phase, step: structure.align, fields: fields.collect() }
    }

    fn of_slot_needle(needle: &Needle, signature: u16) -> Self {
        let fields = needle.bytes.chunks(8).zip((0..).step_by(8)).map(|(bytes, position)| {
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let mask = u64::MAX >> (64 - 8 * bytes.len());
            PatternField { position, width: 8, tests: vec![Test::Masked { mask, value }] }
        });
        Self { signature, in_slots: true, phase: 0, step: needle.align, fields: fields.collect() }
    }

    fn anchor(&self) -> &[Test] {
        self.fields.first().map_or(&[], |anchor| &anchor.tests)
    }
}

impl Program {
    pub(super) fn new(signatures: &Signatures) -> Self {
        let structures = signatures.structures().iter().zip(0..).map(|(s, index)| Pattern::of_structure(s, index));
        let needles = slot_needles(signatures).map(|(index, needle)| Pattern::of_slot_needle(needle, index));
        let (in_slots, unaligned): (Vec<_>, Vec<_>) = structures.chain(needles).partition(|pattern| pattern.in_slots);
        let mut program = Self {
            params: signatures.mmu().map(mmu_params).unwrap_or_default(),
            structures: Vec::new(),
            tests: Vec::new(),
            tables: Vec::new(),
            signatures: Vec::new(),
        };
        program.params.slot_structures = in_slots.len() as u32;
        program.params.structures = (in_slots.len() + unaligned.len()) as u32;
        program.params.all_bits = u32::MAX.checked_shr(32 - in_slots.len().min(32) as u32).unwrap_or(0);
        for pattern in in_slots.iter().chain(&unaligned) {
            program.params.zeros_may_match |= u32::from(pattern.anchor().iter().all(Test::may_be_zero));
            program.add(pattern);
        }
        let anchors: Vec<&[Test]> = in_slots.iter().map(Pattern::anchor).collect();
        let columns = columns(&anchors, program.params.all_bits);
        program.params.column_count = columns.len() as u32;
        program.tables.extend(columns.iter().map(|column| column.looks_at));
        program.tables.resize(COLUMNS, 0);
        program.tables.extend(columns.iter().flat_map(|column| column.sets));
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
            phase: pattern.phase as u32,
            step: pattern.step as u32,
        });
        self.signatures.push(pattern.signature);
    }
}

fn halves(number: u64) -> Halves {
    [number as u32, (number >> 32) as u32]
}

fn mmu_params(mmu: &Mmu) -> ScanParams {
    let rules = FrameRules::new(mmu);
    let mut params = ScanParams {
        has_mmu: 1,
        level_count: rules.levels.len() as u32,
        present: halves(rules.present),
        leaf_bit: halves(rules.leaf_bit),
        reserved: halves(rules.reserved),
        ..ScanParams::default()
    };
    for ((class, forbidden), out) in rules.levels.iter().zip(&mut params.levels) {
        let [low, high] = halves(*forbidden);
        *out = [(*class).into(), 0, low, high];
    }
    params
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

/// One byte of a slot, and for each of its values the structures whose anchor it allows.
struct Column {
    looks_at: u32,
    sets: [u32; 256],
}

/// The columns that tell structures apart, the most telling first. Structure `i` is bit `i % 32`.
fn columns(anchors: &[&[Test]], all_bits: u32) -> Vec<Column> {
    let mut columns: Vec<Column> = (0..BYTES + OWN_BYTES)
        .map(|looks_at| {
            let mut sets = [0; 256];
            for (tests, index) in anchors.iter().zip(0u32..) {
                for (set, byte) in sets.iter_mut().zip(0u8..=255) {
                    let allowed = tests.iter().all(|test| allows(test, looks_at, byte));
                    *set |= u32::from(allowed) << (index % 32);
                }
            }
            Column { looks_at, sets }
        })
        .collect();
    columns.retain(|column| column.sets.iter().any(|set| *set != all_bits));
    // Zeros are what memory has most of.
    let let_through = |column: &Column| {
        let sum: u32 = column.sets.iter().map(|set| set.count_ones()).sum();
        let at_zero = column.sets.first().map_or(0, |set| set.count_ones());
        sum + 256 * if column.looks_at < BYTES { at_zero } else { 0 }
    };
    columns.sort_by_key(let_through);
    columns
}

/// Whether a value that passes the test can have this byte there; yes where the test does not say.
fn allows(test: &Test, looks_at: u32, byte: u8) -> bool {
    if looks_at >= BYTES {
        let Test::PageOffsetOfSelf(k) = test else { return true };
        let shift = 8 * (looks_at - BYTES);
        return u64::from(byte) == (k.cast_unsigned() & (FRAME_SIZE - 1)) >> shift & 0xff;
    }
    let shift = 8 * looks_at;
    if let Test::OneOf(values) = test {
        return values.iter().any(|value| (value >> shift) as u8 == byte);
    }
    let by_bits = bits(test).is_none_or(|(mask, value)| (value >> shift) as u8 == byte & (mask >> shift) as u8);
    let by_range = test.bounds().is_none_or(|(min, max, _)| {
        let (first, last) = (min >> shift, max >> shift);
        let distance = byte.wrapping_sub(first as u8);
        u64::from(distance) <= last - first
    });
    by_bits && by_range
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
