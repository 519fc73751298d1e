//! Where a `TensorImpl` keeps its sizes and strides, as far as the inference of layouts has to find out.

use super::layout::ShapeAt;
use super::read::{MAX_DIMS, WORD};
use crate::addr::VirtAddr;
use crate::layout::{Structure, word_offsets};
use crate::paging::VirtualMemory;

/// The most dimensions that a structure is taken to hold itself.
const MAX_INLINE_DIMS: u64 = 16;

/// Where a table has sizes and strides, and how they are kept.
pub(super) struct ShapeGuess {
    form: ShapeAt,
    dim: i64,
    pub(super) sizes: i64,
    pub(super) strides: i64,
}

impl ShapeGuess {
    pub(super) fn new(form: ShapeAt) -> Self {
        let (dim, sizes, strides) = match form {
            ShapeAt::Counted { dim, sizes, strides, .. } => (dim, sizes, strides),
            ShapeAt::Vectors { sizes_begin, strides_begin, .. } => (sizes_begin, sizes_begin, strides_begin),
        };
        Self { form, dim, sizes, strides }
    }

    /// Offsets of the count and the sizes in a `TensorImpl` of that many bytes: where most tensors have a number of dimensions, and not all have none.
    pub(super) fn candidates(&self, impls: &[Structure], bytes: i64) -> Vec<(i64, i64)> {
        let counts = word_offsets(bytes).filter(|dim| {
            let dims: Vec<u64> = impls.iter().filter_map(|tensor| self.dims(tensor, *dim)).collect();
            4 * dims.len() >= 3 * impls.len() && dims.iter().any(|dims| *dims > 0)
        });
        match self.form {
            ShapeAt::Counted { .. } => {
                counts.flat_map(|dim| word_offsets(bytes).map(move |sizes| (dim, sizes))).collect()
            }
            ShapeAt::Vectors { .. } => counts.map(|begin| (begin, begin)).collect(),
        }
    }

    fn dims(&self, tensor: &Structure, at: i64) -> Option<u64> {
        let dims = match self.form {
            ShapeAt::Counted { .. } => tensor.u64(at)?,
            ShapeAt::Vectors { sizes_begin, sizes_end, .. } => {
                let (begin, end) = (tensor.u64(at)?, tensor.u64(at + sizes_end - sizes_begin)?);
                let bytes = end.checked_sub(begin).filter(|bytes| begin != 0 && bytes % WORD == 0)?;
                bytes / WORD
            }
        };
        (dims <= MAX_DIMS).then_some(dims)
    }

    pub(super) fn sizes(
        &self,
        memory: &dyn VirtualMemory,
        tensor: &Structure,
        dim: i64,
        sizes: i64,
    ) -> Option<Vec<u64>> {
        self.vector(memory, tensor, sizes, self.dims(tensor, dim)?)
    }

    /// Sizes or strides at an offset; `None` where they are too many to lie there.
    pub(super) fn vector(
        &self,
        memory: &dyn VirtualMemory,
        tensor: &Structure,
        at: i64,
        dims: u64,
    ) -> Option<Vec<u64>> {
        match self.form {
            ShapeAt::Counted { inline_dims, .. } => {
                if dims <= inline_dims {
                    tensor.words_at(at, dims)
                } else {
                    None
                }
            }
            ShapeAt::Vectors { .. } => memory.words(VirtAddr(tensor.u64(at)?), dims).ok(),
        }
    }

    /// Whether a word lies among the sizes.
    pub(super) fn overlaps(&self, sizes: i64, at: i64) -> bool {
        match self.form {
            // Two is what every version has room for, and all that can be said before the strides are found.
            ShapeAt::Counted { .. } => (sizes..sizes + 2 * WORD as i64).contains(&at),
            ShapeAt::Vectors { sizes_begin, sizes_end, .. } => at == sizes || at == sizes + sizes_end - sizes_begin,
        }
    }

    pub(super) fn distance(&self, dim: i64, sizes: i64, shift: i64) -> u64 {
        dim.abs_diff(self.dim + shift) + (sizes - dim).abs_diff(self.sizes - self.dim)
    }

    pub(super) fn found(&self, dim: i64, sizes: i64, strides: i64) -> ShapeAt {
        match self.form {
            ShapeAt::Counted { out_of_line, inline_dims, .. } => {
                let between = u64::try_from((strides - sizes) / WORD as i64).unwrap_or(inline_dims);
                // One array for both: its half is what the structure has room for.
                let inline_dims = if between <= MAX_INLINE_DIMS { between } else { inline_dims };
                ShapeAt::Counted { dim, sizes, strides, out_of_line: sizes + out_of_line - self.sizes, inline_dims }
            }
            ShapeAt::Vectors { sizes_begin, sizes_end, .. } => ShapeAt::Vectors {
                sizes_begin: sizes,
                sizes_end: sizes + sizes_end - sizes_begin,
                strides_begin: strides,
            },
        }
    }
}

pub(super) fn product(sizes: &[u64]) -> Option<u64> {
    sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size))
}

/// Whether elements lie one after another in row-major order.
pub(super) fn is_contiguous(sizes: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1u64;
    sizes.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size <= 1 || *stride == expected;
        expected = expected.saturating_mul((*size).max(1));
        fits
    })
}
