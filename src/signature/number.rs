//! Integers in signature files: TOML's own (up to 64 bits unsigned), or a string such as "0xffff_8000_0000_0000".

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// An integer as written, before it is known how many bytes it must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(pub(super) i128);

impl Number {
    /// The value in a field of `width` bytes; negative numbers as two's complement.
    pub(super) fn in_width(self, width: u8) -> Option<u64> {
        let bits = u32::from(width) * 8;
        let span = 1i128 << bits;
        let fits = (-(span / 2)..span).contains(&self.0);
        fits.then(|| u64::try_from(self.0 & (span - 1)).unwrap_or_default())
    }

    /// The value in a field of `width` bytes where a sign has no meaning: bounds and masks.
    pub(super) fn unsigned_in_width(self, width: u8) -> Option<u64> {
        (self.0 >= 0).then(|| self.in_width(width)).flatten()
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberVisitor)
    }
}

struct NumberVisitor;

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an integer, or a string of one in hexadecimal (\"0x…\")")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Number, E> {
        Ok(Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Number, E> {
        Ok(Number(value.into()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Number, E> {
        Ok(Number(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
        let digits: String = text.chars().filter(|c| *c != '_').collect();
        digits
            .strip_prefix("0x")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok())
            .map(|value| Number(value.into()))
            .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_kept() {
        assert_eq!(Number(255).in_width(1), Some(255));
        assert_eq!(Number(256).in_width(1), None);
        assert_eq!(Number(-1).in_width(4), Some(0xffff_ffff));
        assert_eq!(Number(-129).in_width(1), None);
        assert_eq!(Number(u64::MAX.into()).in_width(8), Some(u64::MAX));
        assert_eq!(Number(i128::from(u64::MAX) + 1).in_width(8), None);
        assert_eq!(Number(-1).unsigned_in_width(8), None);
    }
}
