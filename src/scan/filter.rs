//! A single test of a slot's value, in one or two vector operations: for scans that look for one thing.
//!
//! A filter may let through too much, never too little: what it lets through is checked exactly.

use std::fmt;

use crate::addr::FRAME_SIZE;
use crate::signature::Test;

/// The test of a value `v` at byte `place` of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// `(v ^ value) & mask == 0`.
    Masked { mask: u64, value: u64 },
    /// The same, of `v - place`.
    MaskedRelative { mask: u64, value: u64 },
    /// `(v rotated right) - low <= span`: one comparison for a range and an alignment.
    Span(Span),
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Masked { mask, .. } => write!(f, "of {} bits", mask.count_ones()),
            Self::MaskedRelative { mask, .. } => {
                write!(f, "of {} bits of its distance to its place", mask.count_ones())
            }
            Self::Span(_) => f.write_str("of a range"),
        }
    }
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

    /// Whether a value is one of them.
    pub(super) fn contains(self, value: u64) -> bool {
        value.rotate_right(self.rotate).wrapping_sub(self.low) <= self.span
    }
}

/// With fewer bits than this a masked test lets more through than a range of pointers would.
const SELECTIVE_BITS: u32 = 8;

impl Filter {
    /// The sharpest single test that follows from the tests of an 8-byte field that is the slot.
    pub(super) fn of_tests(tests: &[Test]) -> Self {
        let masked = tests.iter().filter_map(|test| masked(test, tests)).max_by_key(|(bits, _)| *bits);
        let span = span(tests);
        match (masked, span) {
            (Some((bits, filter)), span) if bits >= SELECTIVE_BITS || span.is_none() => filter,
            (_, Some(span)) => Self::Span(span),
            // Every field has a test, and an anchor one that needs no other field.
            (_, None) => Self::Span(Span::new(0, u64::MAX, 0)),
        }
    }

    /// The test of a slot that begins with these bytes; only the first eight count.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let digits = bytes.iter().take(8).zip((0..).step_by(8));
        let (mask, value) = digits
            .fold((0, 0), |(mask, value), (byte, shift)| (mask | 0xff << shift, value | u64::from(*byte) << shift));
        Self::Masked { mask, value }
    }
}

/// Number of bits and filter of a test on bits.
fn masked(test: &Test, all: &[Test]) -> Option<(u32, Filter)> {
    let (mask, value) = match test {
        Test::Equal(value) => (u64::MAX, *value),
        Test::Masked { mask, value } => (*mask, *value),
        Test::PageOffsetOfSelf(k) => {
            let (in_frame, value) = (FRAME_SIZE - 1, k.cast_unsigned() & (FRAME_SIZE - 1));
            // Of numbers that are no smaller than any place, the difference has the highest bits that the numbers have.
            let bounds = all.iter().filter_map(Test::bounds).filter(|(min, ..)| *min >= FRAME_SIZE);
            let above =
                bounds.fold(0, |above, (_, max, _)| above | !u64::MAX.checked_shr(max.leading_zeros()).unwrap_or(0));
            return Some((in_frame.count_ones(), Filter::MaskedRelative { mask: in_frame | above, value }));
        }
        _ => return None,
    };
    Some((mask.count_ones(), Filter::Masked { mask, value }))
}

/// What all tests on ranges allow together.
fn span(tests: &[Test]) -> Option<Span> {
    let bounds = tests.iter().filter_map(Test::bounds);
    let (min, max, align) = bounds.reduce(|a, b| (a.0.max(b.0), a.1.min(b.1), a.2.max(b.2)))?;
    // Where nothing satisfies all tests, the exact check rejects what this lets through.
    let min = min.checked_next_multiple_of(align).unwrap_or(min & !(align - 1));
    Some(Span::new(min, max.max(min), align.trailing_zeros()))
}
