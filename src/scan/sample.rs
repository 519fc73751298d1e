//! A few thousand slots of memory, by which the tests of a scan are put in a good order.

use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::PhysicalMemory;

/// Places in memory that are looked at, and slots at each. Few: each place may be a page that has to be read first.
const PLACES: u64 = 128;
const SLOTS: u64 = 16;
/// Slots that are made up, for what memory holds elsewhere.
const MADE_UP: u64 = 256;

/// Slots on either side that a sieve knows of.
pub(super) const BESIDE: isize = 3;
const WINDOW: usize = 2 * BESIDE.unsigned_abs() + 1;

/// A slot, and those beside it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// At which byte of its frame the slot lies.
    pub(super) place: usize,
    /// Values from [`BESIDE`] slots before it on; none where there is another frame.
    values: [Option<u64>; WINDOW],
}

impl Window {
    /// The value so many slots from the middle.
    pub(super) fn at(&self, distance: isize) -> Option<u64> {
        self.values.get(distance.checked_add(BESIDE)?.cast_unsigned()).copied().flatten()
    }

    /// The slots around `place`, in the middle, as `read` gives them for places in the frame.
    fn new(place: usize, mut read: impl FnMut(u64) -> Option<u64>) -> Self {
        let mut values = [None; WINDOW];
        for (value, distance) in values.iter_mut().zip(-BESIDE..) {
            let at = place.checked_add_signed(8 * distance).filter(|at| *at < FRAME_SIZE as usize);
            *value = at.and_then(|at| read(at as u64));
        }
        Self { place, values }
    }
}

/// Slots with what is beside them.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) windows: Vec<Window>,
}

impl Sample {
    /// Slots from all over `memory`, the same each time, and some that are made up.
    pub(super) fn new(memory: &PhysicalMemory) -> Self {
        let mut windows = Vec::new();
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
            // In every `step` bytes of what the dump holds, ranges put one after the other.
            let first = before.next_multiple_of(step) - before;
            for at in (first..range.len()).step_by(step as usize) {
                // Not in equal steps: memory may repeat itself in those.
                let at = at.saturating_add(next() % step).min(range.len() - 1);
                let frame = PhysAddr(range.start.0 + at).frame();
                let whole = memory.bytes(frame, FRAME_SIZE);
                for _ in 0..SLOTS {
                    let place = (next() % FRAME_SIZE) & !7;
                    let window = Window::new(place as usize, |at| match whole {
                        Some(whole) => whole.get(at as usize..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
                        None => memory.read_u64(PhysAddr(frame.0 | at)),
                    });
                    windows.extend(window.at(0).is_some().then_some(window));
                }
            }
            before += range.len();
        }
        for n in 0..MADE_UP {
            let mut value = || match n % 4 {
                0 => next(),
                1 => next() % 256,
                2 => next() % (1 << 20),
                _ => 0x7f00_0000_0000 | ((next() % (1 << 40)) & !7),
            };
            windows.push(Window::new((n as usize * 8) % FRAME_SIZE as usize, |_| Some(value())));
        }
        Self { windows }
    }
}
