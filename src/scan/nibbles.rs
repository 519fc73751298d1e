//! What a signature says of one 8-byte slot, digit by digit: which hexadecimal digits its value may have.
//!
//! Sets of digits are what vectors can look up: sixteen entries fit a register, and one entry holds an
//! answer for many signatures at once.

use crate::addr::FRAME_SIZE;
use crate::signature::{Field, KERNEL_POINTER_MIN, Structure, Test, USER_POINTER_MAX, USER_POINTER_MIN};

/// Digits of a slot's value.
const VALUE_DIGITS: usize = 16;
/// Digits of the value less the slot's own place in its frame: as many as a page offset has.
const OWN_DIGITS: usize = 3;
/// All digits that can be looked at.
pub(super) const DIGITS: usize = VALUE_DIGITS + OWN_DIGITS;

/// One hexadecimal digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digit(usize);

impl Digit {
    /// All digits.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..DIGITS).map(Self)
    }

    /// Whether it is one of the value less the slot's place in the frame, not of the value.
    pub(super) fn is_own(self) -> bool {
        self.0 >= VALUE_DIGITS
    }

    /// By how many bits the value, or the difference, is shifted for it.
    pub(super) fn shift(self) -> u32 {
        (self.0 % VALUE_DIGITS) as u32 * 4
    }

    /// The digit of a slot that lies at byte `place` of its frame.
    pub(super) fn of(self, value: u64, place: u64) -> usize {
        let from = if self.is_own() { value.wrapping_sub(place) } else { value };
        (from >> self.shift() & 0xf) as usize
    }
}

/// What a slot may hold: a set of values that is the product of sets of digits. Too large perhaps, never too small.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SlotSet {
    /// For each digit a bit for each of its values.
    digits: [u16; DIGITS],
    /// Whether the value may be zero.
    pub(super) may_be_zero: bool,
}

impl SlotSet {
    const ANY: Self = Self { digits: [u16::MAX; DIGITS], may_be_zero: true };

    /// The values of the 8 bytes at `slot` (counted from the structure's base) in which the structure has fields.
    pub(super) fn of_structure(structure: &Structure, slot: i64) -> Self {
        let mut set = Self::ANY;
        for field in structure.fields() {
            let start = field.offset.cast_signed() - slot;
            let end = start + i64::from(field.width);
            if (0..8).contains(&start) && end <= 8 {
                set.restrict(field, start as u32);
            }
        }
        set
    }

    /// The values of a slot that begins with these bytes; only the first eight count.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut set = Self::ANY;
        for (place, byte) in (0..8).zip(bytes) {
            set.restrict_to((*byte).into(), (*byte).into(), place, 1);
            set.may_be_zero &= *byte == 0;
        }
        set
    }

    /// The values of a digit.
    pub(super) fn of_digit(&self, digit: Digit) -> impl Iterator<Item = usize> + use<> {
        let set = self.digits.get(digit.0).copied().unwrap_or(u16::MAX);
        (0..16).filter(move |value| set >> value & 1 != 0)
    }

    /// All tests of a field that begins `start` bytes into the slot.
    fn restrict(&mut self, field: &Field, start: u32) {
        let width = u32::from(field.width);
        for test in &field.tests {
            match test {
                Test::Equal(value) => self.restrict_to(*value, *value, start, width),
                Test::Range { min, max } => self.restrict_to(*min, *max, start, width),
                Test::OneOf(values) => self.restrict_to_any(values, start, width),
                Test::Masked { mask, value } => self.restrict_bits(*mask, *value, start, width),
                Test::UserPointer { align } => {
                    self.restrict_to(USER_POINTER_MIN, USER_POINTER_MAX, start, width);
                    self.restrict_bits(align - 1, 0, start, width);
                }
                Test::KernelPointer { align } => {
                    self.restrict_to(KERNEL_POINTER_MIN, u64::MAX, start, width);
                    self.restrict_bits(align - 1, 0, start, width);
                }
                // In the whole slot the difference to the own place has no borrow from other fields.
                Test::PageOffsetOfSelf(k) if width == 8 => {
                    let offset = k.cast_unsigned() & (FRAME_SIZE - 1);
                    for (set, digit) in self.digits.iter_mut().skip(VALUE_DIGITS).zip(0..) {
                        *set &= 1 << (offset >> (4 * digit) & 0xf);
                    }
                }
                Test::PageOffsetOfSelf(_) | Test::EqualField(_) => {}
            }
            self.may_be_zero &= may_be_zero(test);
        }
    }

    /// The digits of a field of that width, and how far each is shifted in the field.
    fn field_digits(&mut self, start: u32, width: u32) -> impl Iterator<Item = (&mut u16, u32)> {
        let digits = self.digits.iter_mut().take(VALUE_DIGITS);
        digits.skip(start as usize * 2).take(width as usize * 2).zip((0..).step_by(4))
    }

    fn restrict_to(&mut self, min: u64, max: u64, start: u32, width: u32) {
        for (set, shift) in self.field_digits(start, width) {
            *set &= range_digits(min, max, shift);
        }
    }

    fn restrict_to_any(&mut self, values: &[u64], start: u32, width: u32) {
        for (set, shift) in self.field_digits(start, width) {
            *set &= values.iter().fold(0, |any, value| any | range_digits(*value, *value, shift));
        }
    }

    fn restrict_bits(&mut self, mask: u64, value: u64, start: u32, width: u32) {
        for (set, shift) in self.field_digits(start, width) {
            let (mask, value) = (mask >> shift & 0xf, value >> shift & 0xf);
            *set &= (0..16).filter(|digit| digit & mask == value).fold(0, |any, digit| any | 1 << digit);
        }
    }
}

/// The values that the digit at `shift` has in the numbers from `min` to `max`.
fn range_digits(min: u64, max: u64, shift: u32) -> u16 {
    let (low, high) = (min >> shift, max >> shift);
    if high - low >= 15 { u16::MAX } else { (low..=high).fold(0, |any, n| any | 1 << (n & 0xf)) }
}

/// Whether a field that is zero could pass.
pub(super) fn may_be_zero(test: &Test) -> bool {
    match test {
        Test::Equal(value) | Test::Masked { value, .. } => *value == 0,
        Test::Range { min, .. } => *min == 0,
        Test::OneOf(values) => values.contains(&0),
        Test::UserPointer { .. } | Test::KernelPointer { .. } => false,
        Test::PageOffsetOfSelf(_) | Test::EqualField(_) => true,
    }
}
