//! The twin of `sweep.wgsl`.

use super::super::program::{SweepParams, hash};
use super::{List, at_most};

const SLOTS: u32 = 512;

fn contains(params: &SweepParams, table: &[[u32; 2]], value: [u32; 2]) -> bool {
    let mut place = hash(value) & params.last;
    let mut entry = table[place as usize];
    while entry != params.empty {
        if entry == value {
            return true;
        }
        place = (place + 1) & params.last;
        entry = table[place as usize];
    }
    false
}

fn in_bounds(params: &SweepParams, value: [u32; 2]) -> bool {
    let absent = [value[0] & params.absent_bits[0], value[1] & params.absent_bits[1]];
    absent == [0, 0] && at_most(params.low, value) && at_most(value, params.high)
}

/// Appends the slots of the listed `frames` whose value is in the table.
pub(in super::super) fn sweep(
    params: &SweepParams,
    table: &[[u32; 2]],
    frames: &[u32],
    memory: &[[u32; 2]],
    found: &mut List<u32>,
) {
    for index in 0..params.frame_count {
        let first = frames[index as usize] * SLOTS;
        for slot in 0..SLOTS {
            let value = memory[(first + slot) as usize];
            if in_bounds(params, value) && contains(params, table, value) {
                found.push(index * SLOTS + slot, params.capacity);
            }
        }
    }
}
