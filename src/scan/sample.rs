//! A few thousand slots of memory, by which the tests of a scan are put in a good order.

use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::PhysicalMemory;

/// Places in memory that are looked at, and slots at each. Few: each place may be a page that has to be read first.
const PLACES: u64 = 128;
const SLOTS: u64 = 8;
/// Slots that are made up, for what memory holds elsewhere.
const MADE_UP: u64 = 512;

/// Values of slots, and at which byte of their frame each lies.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) slots: Vec<(u64, usize)>,
}

impl Sample {
    /// Slots from all over `memory`, the same each time, and some that are made up.
    pub(super) fn new(memory: &PhysicalMemory) -> Self {
        let mut slots = Vec::new();
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let step = memory.size() / PLACES + 1;
        let mut before = 0u64;
        for range in memory.ranges() {
            // Every `step` bytes of what the dump holds, ranges put one after the other.
            let first = before.next_multiple_of(step) - before;
            for at in (first..range.len()).step_by(step as usize) {
                let frame = PhysAddr(range.start.0 + at).frame();
                for _ in 0..SLOTS {
                    let place = (next() % FRAME_SIZE) & !7;
                    slots.extend(memory.read_u64(PhysAddr(frame.0 | place)).map(|value| (value, place as usize)));
                }
            }
            before += range.len();
        }
        for n in 0..MADE_UP {
            let value = match n % 4 {
                0 => next(),
                1 => next() % 256,
                2 => next() % (1 << 20),
                _ => 0x7f00_0000_0000 | ((next() % (1 << 40)) & !7),
            };
            slots.push((value, ((next() % FRAME_SIZE) & !7) as usize));
        }
        Self { slots }
    }
}
