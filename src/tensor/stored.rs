//! The memory under elements that share their bytes: an expanded tensor claims more than its storage has.

use super::gather::Elements;

/// The bytes under the elements of a tensor, as elements of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// They share nothing.
    pub elements: Elements,
    /// Where the tensor's first element is among them, when they lie one after another.
    pub offset: u64,
    /// How many of them apart the tensor's neighbours are, along each dimension.
    pub stride: Vec<i64>,
}

impl Elements {
    /// The memory under these elements; `None` if their strides are not multiples of an element, or leave the 64-bit
    /// space.
    ///
    /// Where elements only repeat along a dimension (stride 0), these are the distinct ones; otherwise all from the
    /// lowest to the highest.
    pub fn stored(&self) -> Option<Stored> {
        // What is kept in blocks shares nothing.
        if !self.jumps.is_empty() {
            return None;
        }
        let once = |(size, stride): (&u64, &i64)| if *stride == 0 { 1 } else { *size };
        let shape: Vec<u64> = self.shape.iter().zip(&self.stride).map(once).collect();
        let distinct = Self { shape, ..self.clone() };
        if !distinct.overlap() {
            let mut next = 1i64;
            let mut stride: Vec<i64> = Vec::with_capacity(self.stride.len());
            for (size, of_self) in distinct.shape.iter().zip(&self.stride).rev() {
                stride.push(if *of_self == 0 { 0 } else { next });
                next = next.checked_mul(i64::try_from(*size).ok()?)?;
            }
            stride.reverse();
            return Some(Stored { elements: distinct, offset: 0, stride });
        }
        let size = i64::try_from(self.size).ok().filter(|size| *size > 0)?;
        let (start, end) = self.span()?;
        let whole = |bytes: u64| bytes.is_multiple_of(self.size).then(|| bytes / self.size);
        let stride = self.stride.iter().map(|stride| (stride % size == 0).then_some(stride / size));
        let (offset, count) = (whole(self.data.0 - start.0)?, whole(end.0 - start.0)?);
        let elements = Self { data: start, shape: vec![count], stride: vec![size], ..self.clone() };
        Some(Stored { elements, offset, stride: stride.collect::<Option<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::VirtAddr;

    fn elements(shape: &[u64], stride: &[i64]) -> Elements {
        Elements {
            data: VirtAddr(0x1000),
            shape: shape.to_vec(),
            stride: stride.to_vec(),
            size: 4,
            ..Elements::default()
        }
    }

    /// The address of an element, by its index.
    fn address(elements: &Elements, index: &[u64]) -> i64 {
        let steps = index.iter().zip(&elements.stride).map(|(i, stride)| *i as i64 * stride);
        elements.data.0 as i64 + steps.sum::<i64>()
    }

    #[test]
    fn each_element_is_among_the_stored_ones() {
        for (shape, stride, count) in [
            (&[7, 5][..], &[0, 4][..], 5),
            (&[7, 5, 3], &[40, 0, 8], 21),
            (&[1 << 40, 1], &[0, 0], 1),
            // Windows that overlap, forwards and backwards.
            (&[6, 4], &[4, 4], 9),
            (&[6, 4], &[-4, 8], 12),
            (&[3, 2, 4], &[0, 4, 4], 5),
        ] {
            let of = elements(shape, stride);
            let stored = of.stored().unwrap();
            assert!(of.overlap() || shape.len() == 3 && shape[1] == 5, "{of:?}");
            assert!(!stored.elements.overlap());
            assert_eq!(stored.elements.numel(), count, "{stored:?}");
            // Contiguous order of the stored ones, by address.
            let sizes = &stored.elements.shape;
            let all: Vec<i64> = (0..count)
                .map(|i| {
                    let mut rest = i;
                    let mut index: Vec<u64> = sizes.iter().rev().map(|size| (rest % size, rest /= size).0).collect();
                    index.reverse();
                    address(&stored.elements, &index)
                })
                .collect();
            for first in 0..shape[0].min(9) {
                for last in 0..shape[shape.len() - 1] {
                    let mut index = vec![0; shape.len()];
                    (index[0], index[shape.len() - 1]) = (first, last);
                    let steps = index.iter().zip(&stored.stride).map(|(i, stride)| *i as i64 * stride);
                    let at = stored.offset as i64 + steps.sum::<i64>();
                    assert_eq!(all[at as usize], address(&of, &index), "{stored:?} {index:?}");
                }
            }
        }
        assert_eq!(elements(&[100, 100], &[2, 4]).stored(), None);
    }
}
