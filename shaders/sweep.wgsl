// The pointer sweep: every slot of the listed frames whose value is in a hash table.
// One workgroup looks at one frame at a time. Its twin: src/scan/gpu/twin/sweep.rs.

struct SweepParams {
    frame_count: u32,
    // Entries that the list of what is found has room for.
    capacity: u32,
    // Places of the hash table, a power of two, less one.
    last: u32,
    padding: u32,
    // The smallest and the largest value.
    low: vec2<u32>,
    high: vec2<u32>,
    // The bits that no value has.
    absent_bits: vec2<u32>,
    // What an empty place of the table holds, which is no value.
    empty: vec2<u32>,
}

struct Found {
    count: atomic<u32>,
    padding: u32,
    // 512 times the index in `frames`, plus the slot.
    list: array<u32>,
}

@group(0) @binding(0) var<uniform> params: SweepParams;
@group(0) @binding(1) var<storage, read> table: array<vec2<u32>>;
// Which frames of `memory` to look at.
@group(0) @binding(2) var<storage, read> frames: array<u32>;
@group(0) @binding(3) var<storage, read> memory: array<vec2<u32>>;
@group(0) @binding(4) var<storage, read_write> found: Found;

const LANES: u32 = 128;
const SLOTS: u32 = 512;

fn at_most(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x <= b.x);
}

fn equal(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.x == b.x && a.y == b.y;
}

fn hash(value: vec2<u32>) -> u32 {
    let mixed = (value.x ^ (value.y * 0x9e3779b1u)) * 0x85ebca6bu;
    return mixed ^ (mixed >> 15);
}

// The table has an empty place, at which every search ends.
fn contains(value: vec2<u32>) -> bool {
    var place = hash(value) & params.last;
    for (var entry = table[place]; !equal(entry, params.empty); entry = table[place]) {
        if equal(entry, value) {
            return true;
        }
        place = (place + 1) & params.last;
    }
    return false;
}

fn in_bounds(value: vec2<u32>) -> bool {
    let absent = value & params.absent_bits;
    return (absent.x | absent.y) == 0 && at_most(params.low, value) && at_most(value, params.high);
}

@compute @workgroup_size(128)
fn sweep(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var index = workgroup.x; index < params.frame_count; index += workgroups.x) {
        let first = frames[index] * SLOTS;
        for (var slot = lane; slot < SLOTS; slot += LANES) {
            let value = memory[first + slot];
            if in_bounds(value) && contains(value) {
                let place = atomicAdd(&found.count, 1u);
                if place < params.capacity {
                    found.list[place] = index * SLOTS + slot;
                }
            }
        }
    }
}
