//! The twin of `scan/frames.wgsl` with `scan/lane.wgsl`, and of what is written for the signatures.

use super::super::super::engine::FrameRules;
use super::super::program::{BITS, DeviceStructure, DeviceTest, OWN_BITS, Program};
use super::{List, at_most};

const FRAME_SIZE: u32 = 4096;
const ZERO_FRAME: u32 = 0x80;
const ABSENT_FRAME: u32 = 0x40;

fn and(a: [u32; 2], b: [u32; 2]) -> [u32; 2] {
    [a[0] & b[0], a[1] & b[1]]
}

fn number([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// The entries of a frame, or-ed.
#[derive(Default)]
struct Seen {
    all: u32,
    present: u64,
    leaves: u64,
}

/// What stands in a shader's module scope, and the frame that a lane looks at.
struct Frame<'a> {
    program: &'a Program<'a>,
    rules: &'a FrameRules,
    words: &'a [u32],
}

impl Frame<'_> {
    fn with_entry(&self, before: Seen, entry: [u32; 2]) -> Seen {
        let present = if number(entry) & self.rules.present == 0 { 0 } else { number(entry) };
        let leaf = if present & self.rules.leaf_bit == 0 { 0 } else { present };
        Seen { all: before.all | entry[0] | entry[1], present: before.present | present, leaves: before.leaves | leaf }
    }

    fn class_of(&self, seen: &Seen) -> u32 {
        let Some(rules) = &self.program.rules else { return 0 };
        if seen.all == 0 {
            return ZERO_FRAME;
        }
        if seen.present == 0 {
            return ABSENT_FRAME;
        }
        if seen.present & rules.reserved != 0 {
            return 0;
        }
        let levels = rules.levels.iter().map(|(class, bits)| if seen.leaves & bits == 0 { *class } else { 0 });
        levels.fold(0, |levels, class| levels | u32::from(class))
    }

    fn maybe(&self, value: [u32; 2], place: u32) -> bool {
        self.program.question.passes(&self.program.looks, number(value), place.into())
    }

    fn possible(&self, value: [u32; 2], place: u32) -> u32 {
        self.program.looks.set(usize::MAX, number(value), place.into())
    }

    fn number_at(&self, start: u32, width: u32) -> [u32; 2] {
        let first = (start >> 2) as usize;
        let shift = (start & 3) * 8;
        let mut value = [self.words[first], self.words[(first + 1).min(1023)]];
        if shift != 0 {
            let after = self.words[(first + 2).min(1023)];
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

    fn structure(&self, index: u32) -> &DeviceStructure {
        &self.program.structures[index as usize]
    }

    fn passes(&self, index: u32, position: u32) -> bool {
        let structure = self.structure(index);
        for i in structure.first_test..structure.first_test + structure.test_count {
            let test: &DeviceTest = &self.program.tests[i as usize];
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

    fn look_at_slot(&self, value: [u32; 2], place: u32, mut report: impl FnMut(u32, u32)) {
        let mut bits = self.possible(value, place);
        while bits != 0 {
            for index in (bits.trailing_zeros()..self.program.slot_structures).step_by(32) {
                let structure = self.structure(index);
                let position = place + structure.start;
                let is_place = position.wrapping_sub(structure.phase) & (structure.step - 1) == 0;
                if is_place && self.passes(index, position) {
                    report(position, index);
                }
            }
            bits &= bits - 1;
        }
    }

    fn look(&self, mut report: impl FnMut(u32, u32)) -> Seen {
        let mut seen = Seen::default();
        for (slot, place) in self.words.as_chunks::<2>().0.iter().zip((0..).step_by(8)) {
            seen = self.with_entry(seen, *slot);
            if self.maybe(*slot, place) {
                self.look_at_slot(*slot, place, &mut report);
            }
        }
        for index in self.program.slot_structures..self.program.indices.len() as u32 {
            let structure = self.structure(index);
            for at in (structure.phase..FRAME_SIZE).step_by(structure.step as usize) {
                if self.passes(index, at) {
                    report(at, index);
                }
            }
        }
        seen
    }
}

/// Classifies every frame, and appends the places where structures could be.
pub(in super::super) fn scan(
    program: &Program<'_>,
    capacity: u32,
    memory: &[[u32; 4]],
    classes: &mut [u32],
    candidates: &mut List<[u32; 2]>,
) {
    let rules = program.rules.clone().unwrap_or_default();
    for (frame, class) in classes.iter_mut().enumerate() {
        let looked_at = Frame { program, rules: &rules, words: memory[frame * 256..][..256].as_flattened() };
        let report = |position, index| candidates.push([frame as u32 * FRAME_SIZE + position, index], capacity);
        let seen = looked_at.look(report);
        *class = looked_at.class_of(&seen);
    }
}
