//! What vectors test of a structure: its anchor, in one or two operations per slot.
//!
//! A filter may let through too much, never too little: what it lets through is checked exactly.

use crate::addr::FRAME_SIZE;
use crate::signature::{KERNEL_POINTER_MIN, Structure, Test, USER_POINTER_MAX, USER_POINTER_MIN};

/// The test of an anchor's value `v` at byte `slot` of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// `(v ^ (value + slot_step * slot)) & mask == 0`; the step is 0 or 1.
    Masked { mask: u64, value: u64, slot_step: u64 },
    /// `(v rotated right) - low <= span`: one comparison for a range and an alignment.
    Span(Span),
    /// The anchor does not stand in 8-byte slots: nothing for vectors.
    None,
}

/// A range of multiples of a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// By how many bits a value is rotated to the right first, so that misaligned ones become huge.
    pub(super) rotate: u32,
    pub(super) low: u64,
    pub(super) span: u64,
}

impl Span {
    /// The multiples of `1 << rotate` between `min` and `max`; `min` is one of them.
    pub(super) fn new(min: u64, max: u64, rotate: u32) -> Self {
        let low = min.rotate_right(rotate);
        Self { rotate, low, span: (max >> rotate).saturating_sub(low) }
    }
}

/// A structure's anchor, compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    pub(super) filter: Filter,
    /// Whether a slot of a frame of zeros could be the anchor.
    pub(super) may_be_zero: bool,
}

/// With fewer bits than this a masked test lets more through than a range of pointers would.
const SELECTIVE_BITS: u32 = 8;

impl Anchor {
    pub(super) fn new(structure: &Structure) -> Self {
        let anchor = structure.anchor();
        let in_slots = anchor.width == 8 && anchor.offset.is_multiple_of(8) && structure.align.is_multiple_of(8);
        let filter = if in_slots { filter(&anchor.tests) } else { Filter::None };
        Self { filter, may_be_zero: anchor.tests.iter().all(may_be_zero) }
    }
}

fn filter(tests: &[Test]) -> Filter {
    let masked = tests.iter().filter_map(masked).max_by_key(|(mask, ..)| mask.count_ones());
    let span = span(tests);
    match (masked, span) {
        (Some((mask, value, slot_step)), span) if mask.count_ones() >= SELECTIVE_BITS || span.is_none() => {
            Filter::Masked { mask, value, slot_step }
        }
        (_, Some(span)) => Filter::Span(span),
        // Every field has a test, and an anchor one that needs no other field.
        (_, None) => Filter::Span(Span::new(0, u64::MAX, 0)),
    }
}

/// Mask, value and slot step of a test on bits.
fn masked(test: &Test) -> Option<(u64, u64, u64)> {
    match test {
        Test::Equal(value) => Some((u64::MAX, *value, 0)),
        Test::Masked { mask, value } => Some((*mask, *value, 0)),
        Test::PageOffsetOfSelf(k) => Some((FRAME_SIZE - 1, k.cast_unsigned(), 1)),
        _ => None,
    }
}

/// What all tests on ranges allow together.
fn span(tests: &[Test]) -> Option<Span> {
    let bounds = tests.iter().filter_map(|test| match test {
        Test::Range { min, max } => Some((*min, *max, 1)),
        Test::OneOf(values) => Some((*values.first()?, *values.last()?, 1)),
        Test::UserPointer { align } => Some((USER_POINTER_MIN, USER_POINTER_MAX, *align)),
        Test::KernelPointer { align } => Some((KERNEL_POINTER_MIN, u64::MAX, *align)),
        _ => None,
    });
    let (min, max, align) = bounds.reduce(|a, b| (a.0.max(b.0), a.1.min(b.1), a.2.max(b.2)))?;
    // Where nothing satisfies all tests, the exact check rejects what this lets through.
    let min = min.checked_next_multiple_of(align).unwrap_or(min & !(align - 1));
    Some(Span::new(min, max.max(min), align.trailing_zeros()))
}

fn may_be_zero(test: &Test) -> bool {
    match test {
        Test::Equal(value) | Test::Masked { value, .. } => *value == 0,
        Test::Range { min, .. } => *min == 0,
        Test::OneOf(values) => values.contains(&0),
        Test::UserPointer { .. } | Test::KernelPointer { .. } => false,
        Test::PageOffsetOfSelf(_) | Test::EqualField(_) => true,
    }
}
