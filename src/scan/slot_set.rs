//! What a signature says of one 8-byte slot, digit by digit: which digits its value may have.
//!
//! Sets of digits are what vectors can look up: a table of all values of a digit fits a register, and one entry of
//! it holds an answer for many signatures at once. Digits have as many bits as suits the instruction set.

#[cfg(feature = "gpu")]
use super::few::Bits;
use crate::addr::FRAME_SIZE;
use crate::signature::{Field, KERNEL_POINTER_MIN, Structure, Test, USER_POINTER_MAX, USER_POINTER_MIN};

/// Bits of a digit: a table of its values fits what byte shuffles look up.
const DIGIT_BITS: u32 = 4;
/// Bits of a slot.
const SLOT_BITS: u32 = u64::BITS;
/// Bits of a place in a frame.
const PLACE_BITS: u32 = FRAME_SIZE.trailing_zeros();

/// One digit of a slot's value, or of the value less the slot's own place in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digit {
    pub(super) is_relative: bool,
    /// By how many bits the value, or the difference, is shifted for it.
    pub(super) shift: u32,
}

impl Digit {
    /// All digits of a value, and of the difference.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        let of =
            |is_relative, bits| (0..bits).step_by(DIGIT_BITS as usize).map(move |shift| Self { is_relative, shift });
        of(false, SLOT_BITS).chain(of(true, PLACE_BITS))
    }

    /// The digit of a slot that lies at byte `place` of its frame.
    pub(super) fn of(self, value: u64, place: u64) -> usize {
        let from = if self.is_relative { value.wrapping_sub(place) } else { value };
        (from >> self.shift & ((1 << DIGIT_BITS) - 1)) as usize
    }
}

/// What a slot may hold: a set of values that is the product of sets of digits. Too large perhaps, never too small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotSet {
    /// For each digit of [`Digit::all`] a bit for each of its values.
    digits: Vec<u16>,
    /// Whether the value may be zero.
    pub(super) may_be_zero: bool,
}

impl SlotSet {
    /// Any value.
    pub(super) fn any() -> Self {
        Self { digits: Digit::all().map(|_| u16::MAX).collect(), may_be_zero: true }
    }

    /// The values of the 8 bytes at `slot` (counted from the structure's base) in which the structure has fields.
    pub(super) fn of_structure(structure: &Structure, slot: i64) -> Self {
        let mut set = Self::any();
        // A field that is deferred with another one allows any value.
        for field in structure.fields().iter().filter(|field| !field.needs_other()) {
            let start = field.offset.cast_signed() - slot;
            if (0..=8 - i64::from(field.width)).contains(&start) {
                set.restrict(field, start as u32 * 8);
            }
        }
        set
    }

    /// The values of a slot that begins with these bytes; only the first eight count.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        let mut set = Self::any();
        for (start, byte) in (0..SLOT_BITS).step_by(8).zip(bytes) {
            set.restrict_to(start, 8, |shift, bits| range_digits((*byte).into(), (*byte).into(), shift, bits));
            set.may_be_zero &= *byte == 0;
        }
        set
    }

    /// The values of a digit, given as its number in [`Digit::all`], a bit each.
    pub(super) fn allowed(&self, digit: usize) -> u16 {
        self.digits.get(digit).copied().unwrap_or(u16::MAX)
    }

    /// What a byte of the value, or of the difference, may be.
    #[cfg(feature = "gpu")]
    pub(super) fn bytes(&self, is_relative: bool, byte: u32) -> impl Iterator<Item = u8> {
        let digits = Digit::all().zip(&self.digits);
        let of_byte = digits.filter(|(digit, _)| digit.is_relative == is_relative && digit.shift / 8 == byte);
        let of_byte: Vec<(u32, u16)> = of_byte.map(|(digit, set)| (digit.shift % 8, *set)).collect();
        (0..=255u8).filter(move |value| of_byte.iter().all(|(shift, set)| set >> (value >> shift & 0xf) & 1 != 0))
    }

    /// The bits that all values have in common, or all differences.
    #[cfg(feature = "gpu")]
    pub(super) fn fixed_bits(&self, is_relative: bool) -> Bits {
        let digits = Digit::all().zip(&self.digits).filter(|(digit, _)| digit.is_relative == is_relative);
        digits.fold(Bits::default(), |bits, (digit, set)| {
            let allowed = (0..1u64 << DIGIT_BITS).filter(|value| set >> value & 1 != 0);
            let (ones, any) = allowed.fold((0xf, 0), |(ones, any), value| (ones & value, any | value));
            Bits { mask: bits.mask | (ones | !any & 0xf) << digit.shift, value: bits.value | ones << digit.shift }
        })
    }

    /// All tests of a field that begins at bit `start` of the slot.
    fn restrict(&mut self, field: &Field, start: u32) {
        let width = u32::from(field.width) * 8;
        for test in &field.tests {
            match test {
                Test::Equal(value) => self.restrict_to(start, width, |s, n| range_digits(*value, *value, s, n)),
                Test::Range { min, max } => self.restrict_to(start, width, |s, n| range_digits(*min, *max, s, n)),
                Test::OneOf(values) => self.restrict_to(start, width, |shift, bits| {
                    values.iter().fold(0, |any, value| any | range_digits(*value, *value, shift, bits))
                }),
                Test::Masked { mask, value } => {
                    self.restrict_to(start, width, |s, n| masked_digits(*mask, *value, s, n))
                }
                Test::UserPointer { align } => {
                    self.restrict_to(start, width, |s, n| range_digits(USER_POINTER_MIN, USER_POINTER_MAX, s, n));
                    self.restrict_to(start, width, |s, n| masked_digits(align - 1, 0, s, n));
                }
                Test::KernelPointer { align } => {
                    self.restrict_to(start, width, |s, n| range_digits(KERNEL_POINTER_MIN, u64::MAX, s, n));
                    self.restrict_to(start, width, |s, n| masked_digits(align - 1, 0, s, n));
                }
                // In the whole slot the difference to the own place has no borrow from other fields.
                Test::PageOffsetOfSelf(k) if width == SLOT_BITS => {
                    let offset = k.cast_unsigned() & (FRAME_SIZE - 1);
                    for (digit, set) in Digit::all().zip(&mut self.digits).filter(|(digit, _)| digit.is_relative) {
                        *set &= 1 << digit.of(offset, 0);
                    }
                }
                Test::PageOffsetOfSelf(_) | Test::EqualField(_) => {}
            }
            self.may_be_zero &= test.may_be_zero();
        }
    }

    /// Restricts the field of `width` bits at bit `start` to what `allowed` says of its bits, given as how far they
    /// are shifted in the field, and how many there are.
    fn restrict_to(&mut self, start: u32, width: u32, allowed: impl Fn(u32, u32) -> u16) {
        for (digit, set) in Digit::all().zip(&mut self.digits).filter(|(digit, _)| !digit.is_relative) {
            let (first, end) = (digit.shift.max(start), (digit.shift + DIGIT_BITS).min(start + width));
            if first < end {
                let part = allowed(first - start, end - first);
                let part_of = |value: u32| value >> (first - digit.shift) & ((1 << (end - first)) - 1);
                let fits = (0..1u32 << DIGIT_BITS).filter(|value| part >> part_of(*value) & 1 != 0);
                *set &= fits.fold(0, |any, value| any | 1 << value);
            }
        }
    }
}

/// The values that the bits at `shift` have in the numbers from `min` to `max`.
fn range_digits(min: u64, max: u64, shift: u32, bits: u32) -> u16 {
    let (low, high, mask) = (min >> shift, max >> shift, (1 << bits) - 1);
    if high - low >= mask { u16::MAX } else { (low..=high).fold(0, |any, n| any | 1 << (n & mask)) }
}

/// The values that the bits at `shift` have in the numbers that are `value` under the mask.
fn masked_digits(mask: u64, value: u64, shift: u32, bits: u32) -> u16 {
    let (mask, value) = (mask >> shift & ((1 << bits) - 1), value >> shift & ((1 << bits) - 1));
    (0..1 << bits).filter(|digit| digit & mask == value).fold(0, |any, digit| any | 1 << digit)
}
