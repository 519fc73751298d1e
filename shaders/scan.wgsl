// The scan of whole frames: what page table each could be, and where in it structures could be.
// One workgroup looks at one frame at a time, which it reads once. Its twin: src/scan/gpu/twin/scan.rs.

struct ScanParams {
    frame_count: u32,
    // Structures whose anchors stand in slots come first, then those that may stand anywhere.
    slot_structures: u32,
    structures: u32,
    column_count: u32,
    // Entries that the list of candidates has room for.
    capacity: u32,
    level_count: u32,
    has_mmu: u32,
    // Whether a frame of zeros could hold a structure.
    zeros_may_match: u32,
    present: vec2<u32>,
    leaf_bit: vec2<u32>,
    reserved: vec2<u32>,
    // The bits of the tables that stand for structures.
    all_bits: u32,
    padding: u32,
    // Of each level of page tables: its bit in the class, 0, and the bits that large pages must not have.
    levels: array<vec4<u32>, 6>,
}

struct Structure {
    first_test: u32,
    test_count: u32,
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
@group(0) @binding(1) var<storage, read> structures: array<Structure>;
@group(0) @binding(2) var<storage, read> tests: array<Test>;
// Which byte each column looks at, 16 numbers; then 256 sets of structures for each column.
@group(0) @binding(3) var<storage, read> tables: array<u32>;
@group(0) @binding(4) var<storage, read> memory: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> classes: array<u32>;
@group(0) @binding(6) var<storage, read_write> candidates: Candidates;

const LANES: u32 = 128;
const FRAME_SIZE: u32 = 4096;
const ZERO_FRAME: u32 = 0x80;
const ABSENT_FRAME: u32 = 0x40;
const COLUMNS: u32 = 16;

// The tables of up to ten columns.
var<workgroup> table: array<u32, 2576>;
var<workgroup> words: array<u32, 1024>;
// Entries of the frame, or-ed: all (one word), the present ones (two), those of them with the leaf bit (two).
var<workgroup> seen: array<atomic<u32>, 5>;

fn has_any(bits: vec2<u32>) -> bool {
    return (bits.x | bits.y) != 0;
}

fn at_most(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x <= b.x);
}

fn class_of(entries: u32, present: vec2<u32>, leaves: vec2<u32>) -> u32 {
    if params.has_mmu == 0 {
        return 0;
    }
    if entries == 0 {
        return ZERO_FRAME;
    }
    if !has_any(present) {
        return ABSENT_FRAME;
    }
    if has_any(present & params.reserved) {
        return 0;
    }
    var levels = 0u;
    for (var i = 0u; i < params.level_count; i++) {
        if !has_any(leaves & params.levels[i].zw) {
            levels |= params.levels[i].x;
        }
    }
    return levels;
}

// The structures whose anchor could be the value of this slot, one bit for all whose indices are equal modulo 32.
fn possible(value: vec2<u32>, position: u32) -> u32 {
    var bits = params.all_bits;
    for (var column = 0u; column < params.column_count && bits != 0; column++) {
        let looks_at = table[column];
        var index = 0u;
        if looks_at < 4 {
            index = (value.x >> (8 * looks_at)) & 0xff;
        } else if looks_at < 8 {
            index = (value.y >> (8 * (looks_at - 4))) & 0xff;
        } else {
            index = ((value.x - position) >> (8 * (looks_at - 8))) & select(0xfu, 0xffu, looks_at == 8);
        }
        bits &= table[COLUMNS + column * 256 + index];
    }
    return bits;
}

// The little-endian number of `width` bytes at `start`, which lie in the frame.
fn number_at(start: u32, width: u32) -> vec2<u32> {
    let word = start >> 2;
    let shift = (start & 3) * 8;
    var value = vec2(words[word], words[min(word + 1, 1023)]);
    if shift != 0 {
        let after = words[min(word + 2, 1023)];
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
fn passes(index: u32, position: u32) -> bool {
    let structure = structures[index];
    for (var i = structure.first_test; i < structure.first_test + structure.test_count; i++) {
        let test = tests[i];
        let start = i32(position) + test.position;
        if start < 0 || u32(start) + test.width > FRAME_SIZE {
            continue;
        }
        let value = number_at(u32(start), test.width);
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

fn match_slots(frame: u32, lane: u32) {
    for (var slot = lane; slot < 512; slot += LANES) {
        let position = 8 * slot;
        var bits = possible(vec2(words[2 * slot], words[2 * slot + 1]), position);
        while bits != 0 {
            for (var index = firstTrailingBit(bits); index < params.slot_structures; index += 32) {
                let structure = structures[index];
                if ((position - structure.phase) & (structure.step - 1)) == 0 && passes(index, position) {
                    report(frame, position, index);
                }
            }
            bits &= bits - 1;
        }
    }
}

fn match_anywhere(frame: u32, lane: u32) {
    for (var index = params.slot_structures; index < params.structures; index++) {
        let structure = structures[index];
        for (var at = structure.phase + lane * structure.step; at < FRAME_SIZE; at += LANES * structure.step) {
            if passes(index, at) {
                report(frame, at, index);
            }
        }
    }
}

@compute @workgroup_size(128)
fn scan(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = lane; i < COLUMNS + params.column_count * 256; i += LANES) {
        table[i] = tables[i];
    }
    for (var frame = workgroup.x; frame < params.frame_count; frame += workgroups.x) {
        if lane < 5 {
            atomicStore(&seen[lane], 0u);
        }
        workgroupBarrier();
        var entries = 0u;
        var present = vec2(0u);
        var leaves = vec2(0u);
        for (var i = lane; i < 256; i += LANES) {
            let pair = memory[frame * 256 + i];
            words[4 * i] = pair.x;
            words[4 * i + 1] = pair.y;
            words[4 * i + 2] = pair.z;
            words[4 * i + 3] = pair.w;
            entries |= pair.x | pair.y | pair.z | pair.w;
            for (var half = 0; half < 2; half++) {
                let entry = select(pair.xy, pair.zw, half == 1);
                if has_any(entry & params.present) {
                    present |= entry;
                    if has_any(entry & params.leaf_bit) {
                        leaves |= entry;
                    }
                }
            }
        }
        if entries != 0 {
            atomicOr(&seen[0], entries);
            atomicOr(&seen[1], present.x);
            atomicOr(&seen[2], present.y);
            atomicOr(&seen[3], leaves.x);
            atomicOr(&seen[4], leaves.y);
        }
        workgroupBarrier();
        let all = atomicLoad(&seen[0]);
        if lane == 0 {
            let all_present = vec2(atomicLoad(&seen[1]), atomicLoad(&seen[2]));
            classes[frame] = class_of(all, all_present, vec2(atomicLoad(&seen[3]), atomicLoad(&seen[4])));
        }
        if all != 0 || params.zeros_may_match != 0 {
            match_slots(frame, lane);
            match_anywhere(frame, lane);
        }
        // Nobody may begin the next frame while another still looks at this one.
        workgroupBarrier();
    }
}
