//! The exact check of one candidate of a structure, which every backend's survivors go through.

use super::Hit;
use super::chunk::View;
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::signature::{Field, KERNEL_POINTER_MIN, Structure, Test, is_user_pointer};

/// Why a candidate, a place whose anchor passes, is no hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// A field has a value that it must not have.
    Field {
        /// Its index in [`Structure::fields`]; the first one that fails.
        index: u16,
        /// The value.
        value: u64,
    },
    /// All fields in the anchor's frame pass, but they are fewer than [`Structure::min_tested`].
    TooFewTested {
        /// How many they are.
        tested: u16,
    },
}

/// The hit of the structure whose anchor begins `at` bytes into `frame`, a frame or part of one.
pub(super) fn check(structure: &Structure, signature: u16, frame: View<'_>, at: usize) -> Option<Hit> {
    judge(structure, signature, frame, at)?.ok()
}

/// The same, with the reason where there is a candidate that is no hit.
#[inline]
pub(super) fn judge(
    structure: &Structure,
    signature: u16,
    frame: View<'_>,
    at: usize,
) -> Option<Result<Hit, Rejection>> {
    let anchor = structure.anchor();
    let anchor_address = PhysAddr(frame.start.0 + at as u64);
    let address = PhysAddr(anchor_address.0.wrapping_sub(anchor.offset));
    if !address.0.is_multiple_of(structure.align) {
        return None;
    }
    let candidate = Candidate { structure, frame, at };
    let value = candidate.value(anchor)?;
    if !candidate.holds(anchor, value) {
        return None;
    }
    let mut tested = 0;
    let mut deferred = 0;
    for (field, index) in structure.fields().iter().zip(0..) {
        match candidate.value(field) {
            Some(value) if candidate.can_test(field) => {
                if !candidate.holds(field, value) {
                    return Some(Err(Rejection::Field { index, value }));
                }
                tested += 1;
            }
            _ => deferred += 1,
        }
    }
    let hit = Hit { address, anchor: anchor_address, value, signature, tested, deferred };
    Some(if tested >= structure.min_tested { Ok(hit) } else { Err(Rejection::TooFewTested { tested }) })
}

/// A place where a structure may be.
struct Candidate<'a> {
    structure: &'a Structure,
    frame: View<'a>,
    /// Where the anchor begins in the frame.
    at: usize,
}

impl Candidate<'_> {
    /// Where a field begins in the frame, if it does not begin before it.
    fn position(&self, field: &Field) -> Option<usize> {
        (self.at + field.offset as usize).checked_sub(self.structure.anchor().offset as usize)
    }

    /// The value of a field that lies in the frame.
    fn value(&self, field: &Field) -> Option<u64> {
        let here = self.frame.bytes.get(self.position(field)?..)?;
        match field.width {
            8 => here.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)),
            4 => here.first_chunk().map(|bytes| u32::from_le_bytes(*bytes).into()),
            2 => here.first_chunk().map(|bytes| u16::from_le_bytes(*bytes).into()),
            _ => here.first().map(|byte| (*byte).into()),
        }
    }

    /// The field that a test refers to.
    fn other(&self, index: usize) -> Option<u64> {
        self.structure.fields().get(index).and_then(|other| self.value(other))
    }

    /// Whether everything that the field's tests refer to is in the frame.
    fn can_test(&self, field: &Field) -> bool {
        field.tests.iter().all(|test| match test {
            Test::EqualField(index) => self.other(*index).is_some(),
            _ => true,
        })
    }

    fn holds(&self, field: &Field, value: u64) -> bool {
        field.tests.iter().all(|test| match test {
            Test::Equal(wanted) => value == *wanted,
            Test::Masked { mask, value: wanted } => value & mask == *wanted,
            Test::Range { min, max } => (*min..=*max).contains(&value),
            Test::OneOf(values) => values.contains(&value),
            Test::UserPointer { align } => is_user_pointer(value) && value.is_multiple_of(*align),
            Test::KernelPointer { align } => value >= KERNEL_POINTER_MIN && value.is_multiple_of(*align),
            Test::PageOffsetOfSelf(k) => {
                let address = self.frame.start.0.wrapping_add(self.position(field).unwrap_or_default() as u64);
                (value ^ address.wrapping_add_signed(*k)) & (FRAME_SIZE - 1) == 0
            }
            Test::EqualField(index) => self.other(*index) == Some(value),
        })
    }
}
