// The scan of whole frames: what page table each could be, and where in it structures could be.
//
// This is the part that is the same for all signatures. src/scan/gpu/source.rs writes the rest for the signatures at hand: the
// constants in capitals below that nothing defines here, and the functions `maybe`, `possible` and `levels_of`. One of lane.wgsl
// and subgroup.wgsl has the entry point. The twin of all this: src/scan/gpu/twin/scan.rs.

struct ScanParams {
    frame_count: u32,
    // Entries that the list of candidates has room for.
    capacity: u32,
}

struct Structure {
    first_test: u32,
    test_count: u32,
    // Where in an 8-byte slot the anchor begins.
    start: u32,
    // An anchor stands at `phase` and every `step` bytes, a power of two, after it.
    phase: u32,
    step: u32,
}

struct Test {
    // Bytes from the anchor to the field.
    position: i32,
    width: u32,
    kind: u32,
    padding: u32,
    low: vec2<u32>,
    high: vec2<u32>,
}

// `value & low == high`.
const BITS: u32 = 0;
// `(value - own position in the frame) & low == high`.
const OWN_BITS: u32 = 1;
// `low <= value <= high`; the last kind.

struct Candidates {
    count: atomic<u32>,
    padding: u32,
    // Byte in `memory`, and index of the structure.
    list: array<vec2<u32>>,
}

@group(0) @binding(0) var<uniform> params: ScanParams;
// Structures whose anchors lie in slots come first, then those that may stand anywhere.
@group(0) @binding(1) var<storage, read> structures: array<Structure>;
@group(0) @binding(2) var<storage, read> tests: array<Test>;
// For each byte that `possible` looks at, and each of its 256 values, a set of structures.
@group(0) @binding(3) var<storage, read> tables: array<u32>;
@group(0) @binding(4) var<storage, read> memory: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> classes: array<u32>;
@group(0) @binding(6) var<storage, read_write> candidates: Candidates;

const FRAME_SIZE: u32 = 4096;
const ZERO_FRAME: u32 = 0x80;
const ABSENT_FRAME: u32 = 0x40;
// A load is a pair of slots.
const PAIRS: u32 = 256;
// Pairs that a lane loads before it looks at the first of them.
const AT_ONCE: u32 = 4;
// Pairs after which survivors are looked at more closely: their slots are the bits of a number.
const TOGETHER: u32 = 16;

// The entries of a frame, or-ed.
struct Seen {
    all: u32,
    present: vec2<u32>,
    // The present ones that have the leaf bit.
    leaves: vec2<u32>,
}

fn has_any(bits: vec2<u32>) -> bool {
    return (bits.x | bits.y) != 0;
}

fn at_most(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x <= b.x);
}

fn with_entry(before: Seen, entry: vec2<u32>) -> Seen {
    let present = select(vec2(0u), entry, has_any(entry & PRESENT));
    let leaf = select(vec2(0u), present, has_any(present & LEAF_BIT));
    return Seen(before.all | entry.x | entry.y, before.present | present, before.leaves | leaf);
}

fn class_of(seen: Seen) -> u32 {
    if !HAS_MMU {
        return 0;
    }
    if seen.all == 0 {
        return ZERO_FRAME;
    }
    if !has_any(seen.present) {
        return ABSENT_FRAME;
    }
    if has_any(seen.present & RESERVED) {
        return 0;
    }
    return levels_of(seen.leaves);
}

fn word(frame: u32, index: u32) -> u32 {
    return memory[frame * PAIRS + index / 4][index % 4];
}

// The little-endian number of `width` bytes at `start`, which lie in the frame.
fn number_at(frame: u32, start: u32, width: u32) -> vec2<u32> {
    let first = start >> 2;
    let shift = (start & 3) * 8;
    var value = vec2(word(frame, first), word(frame, min(first + 1, 1023)));
    if shift != 0 {
        let after = word(frame, min(first + 2, 1023));
        value = vec2((value.x >> shift) | (value.y << (32 - shift)), (value.y >> shift) | (after << (32 - shift)));
    }
    if width < 8 {
        value.y = 0;
    }
    if width < 4 {
        value.x &= (1u << (8 * width)) - 1;
    }
    return value;
}

// Whether all fields that lie in the frame pass, for an anchor at `position`.
fn passes(frame: u32, index: u32, position: u32) -> bool {
    let structure = structures[index];
    for (var i = structure.first_test; i < structure.first_test + structure.test_count; i++) {
        let test = tests[i];
        let start = i32(position) + test.position;
        if start < 0 || u32(start) + test.width > FRAME_SIZE {
            continue;
        }
        let value = number_at(frame, u32(start), test.width);
        var passed = false;
        if test.kind == BITS {
            passed = !has_any((value & test.low) ^ test.high);
        } else if test.kind == OWN_BITS {
            passed = ((value.x - u32(start)) & test.low.x) == test.high.x;
        } else {
            passed = at_most(test.low, value) && at_most(value, test.high);
        }
        if !passed {
            return false;
        }
    }
    return true;
}

fn report(frame: u32, position: u32, index: u32) {
    let place = atomicAdd(&candidates.count, 1u);
    if place < params.capacity {
        candidates.list[place] = vec2(frame * FRAME_SIZE + position, index);
    }
}

// The structures that allow a value, as far as that it is zero or not says: the first of all sets.
fn unless_zero(value: vec2<u32>) -> u32 {
    return select(ZERO_SET, 0xffffffffu, has_any(value));
}

// Reports the structures with an anchor in the slot at `place`. Those whose indices are equal modulo 32 share a bit.
fn look_at_slot(frame: u32, value: vec2<u32>, place: u32) {
    for (var bits = possible(value, place); bits != 0; bits &= bits - 1) {
        for (var index = firstTrailingBit(bits); index < SLOT_STRUCTURES; index += 32) {
            let structure = structures[index];
            let position = place + structure.start;
            if ((position - structure.phase) & (structure.step - 1)) == 0 && passes(frame, index, position) {
                report(frame, position, index);
            }
        }
    }
}

// Two bits: whether the slots of a pair must be looked at more closely.
fn survivors_in(pair: vec4<u32>, index: u32) -> u32 {
    let place = index * 16;
    return u32(maybe(pair.xy, place)) | (u32(maybe(pair.zw, place + 8)) << 1);
}

// The part of one lane in a frame that so many lanes look at together: a power of two, of at most `PAIRS / AT_ONCE`.
fn look(frame: u32, lane: u32, lanes: u32) -> Seen {
    var seen = Seen(0u, vec2(0u), vec2(0u));
    let first = frame * PAIRS;
    for (var base = lane; base < PAIRS; base += TOGETHER * lanes) {
        var survivors = 0u;
        for (var n = 0u; n < TOGETHER && base + n * lanes < PAIRS; n += AT_ONCE) {
            let a = base + n * lanes;
            let b = a + lanes;
            let c = b + lanes;
            let d = c + lanes;
            let pair_a = memory[first + a];
            let pair_b = memory[first + b];
            let pair_c = memory[first + c];
            let pair_d = memory[first + d];
            seen = with_entry(with_entry(seen, pair_a.xy), pair_a.zw);
            seen = with_entry(with_entry(seen, pair_b.xy), pair_b.zw);
            seen = with_entry(with_entry(seen, pair_c.xy), pair_c.zw);
            seen = with_entry(with_entry(seen, pair_d.xy), pair_d.zw);
            let low = survivors_in(pair_a, a) | (survivors_in(pair_b, b) << 2);
            let high = survivors_in(pair_c, c) | (survivors_in(pair_d, d) << 2);
            survivors |= (low | (high << 4)) << (2 * n);
        }
        for (; survivors != 0; survivors &= survivors - 1) {
            let slot = firstTrailingBit(survivors);
            let index = base + (slot >> 1) * lanes;
            let pair = memory[first + index];
            let is_second = (slot & 1) == 1;
            look_at_slot(frame, select(pair.xy, pair.zw, is_second), index * 16 + select(0u, 8u, is_second));
        }
    }
    for (var index = SLOT_STRUCTURES; index < STRUCTURES; index++) {
        let structure = structures[index];
        for (var at = structure.phase + lane * structure.step; at < FRAME_SIZE; at += lanes * structure.step) {
            if passes(frame, index, at) {
                report(frame, at, index);
            }
        }
    }
    return seen;
}
