//! Whether bytes are likely to be the elements of a tensor, where nothing else says that they still are.

use super::dtype::ScalarType;

/// Of the elements, one in this many may have an unusual value: text and random bytes have far more.
const UNUSUAL: u64 = 64;
/// Elements that must be there: chance makes fewer look usual.
const MIN_ELEMENTS: u64 = 8;
/// Usual floating-point values other than zero: 2^-100 to 2^40, and with 16 bits below 2^10.
const SMALLEST: f64 = 7.9e-31;
const LARGEST: f64 = 1.1e12;
const LARGEST_EXPONENT_OF_HALF: u64 = 9;

/// The values of elements, counted as they come.
pub(crate) struct Values {
    kind: Kind,
    size: usize,
    all: u64,
    unusual: u64,
    /// The begin of an element whose end has not come yet.
    rest: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Kind {
    Double,
    Float,
    BFloat,
    Half,
    Integer,
    Boolean,
}

impl Values {
    /// `None` for a type of which any value is usual, such as that of bytes, and for one that is not known.
    pub(crate) fn new(dtype: &ScalarType) -> Option<Self> {
        // A complex number is two of half its size.
        let (kind, size) = match dtype.raw.as_ref().map_or(dtype.label(), |raw| raw.safetensors.as_str()) {
            "F64" => (Kind::Double, 8),
            "F32" => (Kind::Float, 4),
            "BF16" => (Kind::BFloat, 2),
            "F16" => (Kind::Half, 2),
            "I64" => (Kind::Integer, 8),
            "I32" => (Kind::Integer, 4),
            "BOOL" => (Kind::Boolean, 1),
            _ => return None,
        };
        Some(Self { kind, size, all: 0, unusual: 0, rest: Vec::new() })
    }

    /// Adds the next bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let missing = if self.rest.is_empty() { 0 } else { self.size - self.rest.len() };
        let (head, bytes) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        self.rest.extend_from_slice(head);
        if self.rest.len() == self.size {
            let element = std::mem::take(&mut self.rest);
            self.count(&element);
        }
        let elements = bytes.chunks_exact(self.size);
        self.rest.extend_from_slice(elements.remainder());
        elements.for_each(|element| self.count(element));
    }

    fn count(&mut self, element: &[u8]) {
        self.all += 1;
        self.unusual += u64::from(!self.is_usual(element));
    }

    fn is_usual(&self, element: &[u8]) -> bool {
        let mut word = [0; 8];
        word.iter_mut().zip(element).for_each(|(to, from)| *to = *from);
        let bits = u64::from_le_bytes(word);
        let within = |value: f64| value == 0.0 || (SMALLEST..=LARGEST).contains(&value.abs());
        match self.kind {
            Kind::Double => within(f64::from_bits(bits)),
            Kind::Float => within(f32::from_bits(bits as u32).into()),
            Kind::BFloat => within(f32::from_bits((bits as u32) << 16).into()),
            // Five bits of exponent behind the sign: 15 is that of 1, 31 is infinite or no number.
            Kind::Half => (bits >> 10) & 0x1f <= 15 + LARGEST_EXPONENT_OF_HALF,
            Kind::Integer => {
                let sign = 64 - 8 * self.size as u32;
                let value = (bits << sign).cast_signed() >> sign;
                value.unsigned_abs() < 1 << (6 * self.size)
            }
            Kind::Boolean => bits <= 1,
        }
    }

    /// Whether nearly all of them are usual, and enough are left without so many `missing` bytes that were added as zeros.
    pub(crate) fn are_usual(&self, missing: u64) -> bool {
        let there = self.all.saturating_sub(missing.div_ceil(self.size as u64));
        there >= MIN_ELEMENTS && self.unusual.saturating_mul(UNUSUAL) <= there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar(name: &str, size: u64) -> ScalarType {
        ScalarType { name: name.to_owned(), size, safetensors: Some(name.to_owned()), raw: None }
    }

    fn are_usual(dtype: &ScalarType, bytes: &[u8]) -> bool {
        let mut values = Values::new(dtype).unwrap();
        // In pieces that end within elements.
        bytes.chunks(7).for_each(|piece| values.add(piece));
        values.are_usual(0)
    }

    #[test]
    fn weights_are_usual_and_text_and_noise_are_not() {
        let weights: Vec<f32> = (0..64).map(|i| (i as f32 - 31.5) / 1000.0).collect();
        let floats: Vec<u8> = weights.iter().flat_map(|value| value.to_le_bytes()).collect();
        let doubles: Vec<u8> = weights.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect();
        let truncated: Vec<u8> =
            weights.iter().flat_map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
        let labels: Vec<u8> = (0..64i64).flat_map(|label| (label - 3).to_le_bytes()).collect();
        let (float, double) = (scalar("F32", 4), scalar("F64", 8));
        let (half, brain, integer) = (scalar("F16", 2), scalar("BF16", 2), scalar("I64", 8));
        for (dtype, bytes) in [(&float, &floats), (&double, &doubles), (&brain, &truncated), (&integer, &labels)] {
            assert!(are_usual(dtype, bytes), "{}", dtype.name);
        }
        let text = b"the quick brown fox jumps over the lazy dog and goes on, ".repeat(8);
        let mut state = 1u64;
        let noise: Vec<u8> = (0..512)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        for dtype in [&float, &double, &half, &brain, &integer, &scalar("I32", 4), &scalar("BOOL", 1)] {
            assert!(!are_usual(dtype, &text), "text as {}", dtype.name);
            assert!(!are_usual(dtype, &noise), "noise as {}", dtype.name);
        }
        assert!(!are_usual(&float, &floats[..4 * 7]), "too few to tell");
        assert!(Values::new(&scalar("U8", 1)).is_none());
    }

    #[test]
    fn an_element_goes_over_the_end_of_a_piece() {
        let dtype = scalar("I32", 4);
        let mut values = Values::new(&dtype).unwrap();
        let bytes: Vec<u8> = (0..8i32).flat_map(i32::to_le_bytes).collect();
        bytes.iter().for_each(|byte| values.add(&[*byte]));
        assert_eq!((values.all, values.unusual), (8, 0));
        assert!(values.are_usual(0));
        assert!(!values.are_usual(1), "seven are left");
    }
}
