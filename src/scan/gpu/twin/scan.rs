//! The twin of `scan.wgsl`.

use super::super::program::{BITS, COLUMNS, DeviceStructure, DeviceTest, OWN_BITS, ScanParams};
use super::{List, at_most};

const FRAME_SIZE: u32 = 4096;
const ZERO_FRAME: u32 = 0x80;
const ABSENT_FRAME: u32 = 0x40;

fn has_any(bits: [u32; 2]) -> bool {
    bits != [0, 0]
}

fn and(a: [u32; 2], b: [u32; 2]) -> [u32; 2] {
    [a[0] & b[0], a[1] & b[1]]
}

fn or(a: [u32; 2], b: [u32; 2]) -> [u32; 2] {
    [a[0] | b[0], a[1] | b[1]]
}

fn class_of(params: &ScanParams, entries: u32, present: [u32; 2], leaves: [u32; 2]) -> u32 {
    if params.has_mmu == 0 {
        return 0;
    }
    if entries == 0 {
        return ZERO_FRAME;
    }
    if !has_any(present) {
        return ABSENT_FRAME;
    }
    if has_any(and(present, params.reserved)) {
        return 0;
    }
    let mut levels = 0;
    for level in &params.levels[..params.level_count as usize] {
        if !has_any(and(leaves, [level[2], level[3]])) {
            levels |= level[0];
        }
    }
    levels
}

/// What stands in a shader's module scope: the bindings, and the frame in workgroup memory.
struct Frame<'a> {
    params: &'a ScanParams,
    structures: &'a [DeviceStructure],
    tests: &'a [DeviceTest],
    table: &'a [u32],
    words: Vec<u32>,
}

impl Frame<'_> {
    fn possible(&self, value: [u32; 2], position: u32) -> u32 {
        let mut bits = self.params.all_bits;
        for column in 0..self.params.column_count as usize {
            if bits == 0 {
                break;
            }
            let looks_at = self.table[column];
            let index = match looks_at {
                0..4 => value[0] >> (8 * looks_at) & 0xff,
                4..8 => value[1] >> (8 * (looks_at - 4)) & 0xff,
                8 => value[0].wrapping_sub(position) & 0xff,
                _ => value[0].wrapping_sub(position) >> (8 * (looks_at - 8)) & 0xf,
            };
            bits &= self.table[COLUMNS + column * 256 + index as usize];
        }
        bits
    }

    fn number_at(&self, start: u32, width: u32) -> [u32; 2] {
        let word = (start >> 2) as usize;
        let shift = (start & 3) * 8;
        let mut value = [self.words[word], self.words[(word + 1).min(1023)]];
        if shift != 0 {
            let after = self.words[(word + 2).min(1023)];
            let low = value[0] >> shift | value[1] << (32 - shift);
            value = [low, value[1] >> shift | after << (32 - shift)];
        }
        if width < 8 {
            value[1] = 0;
        }
        if width < 4 {
            value[0] &= (1 << (8 * width)) - 1;
        }
        value
    }

    fn passes(&self, index: u32, position: u32) -> bool {
        let structure = &self.structures[index as usize];
        for i in structure.first_test..structure.first_test + structure.test_count {
            let test = &self.tests[i as usize];
            let start = position as i32 + test.position;
            if start < 0 || start as u32 + test.width > FRAME_SIZE {
                continue;
            }
            let value = self.number_at(start as u32, test.width);
            let passed = match test.kind {
                BITS => and(value, test.low) == test.high,
                OWN_BITS => value[0].wrapping_sub(start as u32) & test.low[0] == test.high[0],
                _ => at_most(test.low, value) && at_most(value, test.high),
            };
            if !passed {
                return false;
            }
        }
        true
    }

    fn match_slots(&self, frame: u32, candidates: &mut List<[u32; 2]>) {
        for slot in 0..512 {
            let position = 8 * slot;
            let value = [self.words[2 * slot as usize], self.words[2 * slot as usize + 1]];
            let mut bits = self.possible(value, position);
            while bits != 0 {
                for index in (bits.trailing_zeros()..self.params.slot_structures).step_by(32) {
                    let structure = &self.structures[index as usize];
                    let is_place = position.wrapping_sub(structure.phase) & (structure.step - 1) == 0;
                    if is_place && self.passes(index, position) {
                        candidates.push([frame * FRAME_SIZE + position, index], self.params.capacity);
                    }
                }
                bits &= bits - 1;
            }
        }
    }

    fn match_anywhere(&self, frame: u32, candidates: &mut List<[u32; 2]>) {
        for index in self.params.slot_structures..self.params.structures {
            let structure = &self.structures[index as usize];
            for at in (structure.phase..FRAME_SIZE).step_by(structure.step as usize) {
                if self.passes(index, at) {
                    candidates.push([frame * FRAME_SIZE + at, index], self.params.capacity);
                }
            }
        }
    }
}

/// Classifies every frame, and appends the places where structures could be.
pub(in super::super) fn scan(
    params: &ScanParams,
    structures: &[DeviceStructure],
    tests: &[DeviceTest],
    tables: &[u32],
    memory: &[[u32; 4]],
    classes: &mut [u32],
    candidates: &mut List<[u32; 2]>,
) {
    for frame in 0..params.frame_count {
        let mut entries = 0;
        let mut present = [0; 2];
        let mut leaves = [0; 2];
        let pairs = &memory[frame as usize * 256..][..256];
        for pair in pairs {
            entries |= pair[0] | pair[1] | pair[2] | pair[3];
            for entry in [[pair[0], pair[1]], [pair[2], pair[3]]] {
                if has_any(and(entry, params.present)) {
                    present = or(present, entry);
                    if has_any(and(entry, params.leaf_bit)) {
                        leaves = or(leaves, entry);
                    }
                }
            }
        }
        classes[frame as usize] = class_of(params, entries, present, leaves);
        if entries != 0 || params.zeros_may_match != 0 {
            let words = pairs.as_flattened().to_vec();
            let frame_in_workgroup = Frame { params, structures, tests, table: tables, words };
            frame_in_workgroup.match_slots(frame, candidates);
            frame_in_workgroup.match_anywhere(frame, candidates);
        }
    }
}
