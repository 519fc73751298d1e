//! Which places in memory may be the window of some needle: a few table look-ups for a whole vector of places.
//!
//! Needles are in buckets, eight to a group, one bit each. For each byte of the window a group has two tables, by
//! the byte's lowest and by its highest bits, that say in which buckets a needle has such a byte there. Where a bit
//! is set in all look-ups, there may be a needle of that bucket. (The algorithm is known as Teddy.)

#[cfg(target_arch = "aarch64")]
use super::aarch64::machine;
use super::buckets::{self, fields};
use super::window::{WINDOW, Window};
#[cfg(target_arch = "x86_64")]
use super::x86_64::machine;
use crate::scan::Backend;

/// Buckets of a group: bits of a byte.
const BUCKETS: usize = 8;

/// The tables of a group for one byte of the window; small fields use the first entries only.
#[derive(Clone, Copy)]
pub(super) struct Tables {
    pub(super) low: [u8; 64],
    pub(super) high: [u8; 64],
}

impl Tables {
    const EMPTY: Self = Self { low: [0; 64], high: [0; 64] };

    /// Lets a byte pass for the buckets in `bits`.
    fn admit(&mut self, byte: u8, bits: u8, field_bits: u32) {
        for (table, field) in [&mut self.low, &mut self.high].into_iter().zip(fields(byte, field_bits)) {
            table.get_mut(field).into_iter().for_each(|entry| *entry |= bits);
        }
    }

    /// Lets all bytes pass for the buckets in `bits`.
    fn admit_all(&mut self, bits: u8) {
        self.low.iter_mut().chain(&mut self.high).for_each(|entry| *entry |= bits);
    }
}

/// The tables of eight buckets.
pub(super) type Group = [Tables; WINDOW];

/// How many groups, and whether both tables of each byte are used or only those of the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "tables of 16 let too much pass for it"))]
    OneLow,
    One,
    Two,
    Four,
}

impl Shape {
    fn groups(self) -> usize {
        match self {
            Self::OneLow | Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }
}

/// An instruction set that can do this.
pub(super) struct Machine {
    /// Bits by which a table is indexed.
    pub(super) field_bits: u32,
    /// Places that are looked at together, at most [`MAX_STEP`].
    pub(super) step: usize,
    /// The shape that is fastest for a number of needles; none where something else is faster.
    pub(super) shape: fn(usize) -> Option<Shape>,
    pub(super) search: Search,
}

/// Calls back with every place that passes. The bytes are a multiple of the step, and the rest of the last window.
///
/// # Safety
///
/// The CPU has the instruction set.
type Search = unsafe fn(Shape, &[Group], &[u8], &mut dyn FnMut(usize));

/// The most places that a machine looks at together.
const MAX_STEP: usize = 256;

/// The tables, and the machine that looks them up.
pub(super) struct Filter {
    machine: &'static Machine,
    shape: Shape,
    groups: Vec<Group>,
}

impl Filter {
    /// A filter for windows, where this computer has a machine for it that is faster than the reference.
    pub(super) fn new(backend: Backend, windows: &[Window]) -> Option<Self> {
        let machine = machine(backend)?;
        let shape = (machine.shape)(windows.len())?;
        let mut filter = Self { machine, shape, groups: vec![[Tables::EMPTY; WINDOW]; shape.groups()] };
        let buckets = buckets::assign(windows, filter.groups.len() * BUCKETS, machine.field_bits);
        for (window, bucket) in windows.iter().zip(buckets) {
            let group = filter.groups.get_mut(bucket / BUCKETS);
            group.into_iter().for_each(|group| admit(group, window, 1 << (bucket % BUCKETS), machine.field_bits));
        }
        Some(filter)
    }

    /// Calls `candidate` with every place before `places` where a window may be; `bytes` begin at place 0.
    /// A window that does not end before `bytes` do is reported as if zeros followed.
    pub(super) fn search(&self, bytes: &[u8], places: usize, candidate: &mut dyn FnMut(usize)) {
        let step = self.machine.step;
        let whole = places.min(bytes.len().saturating_sub(WINDOW - 1)) / step * step;
        self.search_whole(bytes.get(..whole + WINDOW - 1).unwrap_or_default(), candidate);
        // Less than a step is left; at the very end of `bytes` there may be a few places more.
        let left = places - whole;
        let mut padded = [0; 2 * MAX_STEP + WINDOW - 1];
        padded.iter_mut().zip(bytes.get(whole..).unwrap_or_default()).for_each(|(to, from)| *to = *from);
        let padded_len = left.next_multiple_of(step) + WINDOW - 1;
        self.search_whole(padded.get(..padded_len).unwrap_or_default(), &mut |place| {
            if place < left {
                candidate(whole + place);
            }
        });
    }

    fn search_whole(&self, bytes: &[u8], candidate: &mut dyn FnMut(usize)) {
        // SAFETY: `machine` has made sure of the instruction set.
        unsafe { (self.machine.search)(self.shape, &self.groups, bytes, candidate) }
    }
}

fn admit(group: &mut Group, window: &Window, bits: u8, field_bits: u32) {
    let (counting, behind) = group.split_at_mut_checked(window.counting().len()).unwrap_or_default();
    counting.iter_mut().zip(window.counting()).for_each(|(tables, byte)| tables.admit(*byte, bits, field_bits));
    behind.iter_mut().for_each(|tables| tables.admit_all(bits));
}

/// The machine for a backend, where this computer has it.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn machine(_: Backend) -> Option<&'static Machine> {
    None
}
