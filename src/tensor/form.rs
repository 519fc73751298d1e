//! How a tensor keeps its elements: at strides, quantized, sparse, nested, or in a way that is not known.

use super::header::TensorInfo;

/// How a tensor keeps its elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// In a storage, at strides.
    Strided,
    /// The same, and the elements are integers that stand for real numbers.
    Quantized(Quantizer),
    /// Positions and values of the elements that are not zero.
    Sparse(Sparse),
    /// Several tensors of different shapes, one after another; `None` where they are in tensors that a Python object refers
    /// to (`torch.jagged`).
    Nested(Option<Box<Nested>>),
    /// In a storage with fewer bytes than they take: it was freed, made smaller, or overwritten.
    Short,
    /// Without a storage, in a way that is not known: other devices' and libraries' own tensors.
    Opaque,
}

/// What the integers of a quantized tensor stand for: `(integer - zero point) * scale`.
#[derive(Clone, Debug, PartialEq)]
pub enum Quantizer {
    /// The same for all (`q_scale()`, `q_zero_point()`).
    PerTensor {
        /// The scale.
        scale: f64,
        /// The zero point.
        zero_point: i64,
    },
    /// One of each along a dimension (`q_per_channel_scales()`, `q_per_channel_zero_points()`).
    PerChannel {
        /// The dimension.
        axis: u64,
        /// The scales.
        scales: Box<TensorInfo>,
        /// The zero points.
        zero_points: Box<TensorInfo>,
    },
    /// It could not be read.
    Unknown,
}

/// The tensors that make up a sparse one, under the names of the methods that give them in PyTorch.
#[derive(Clone, Debug, PartialEq)]
pub enum Sparse {
    /// One column of positions per value (`torch.sparse_coo`).
    Coo {
        /// `_indices()`: a row per sparse dimension.
        indices: Box<TensorInfo>,
        /// `_values()`.
        values: Box<TensorInfo>,
    },
    /// One dimension compressed: `torch.sparse_csr`, or `csc`, `bsr` and `bsc`, which keep the same fields.
    Compressed {
        /// `crow_indices()` or `ccol_indices()`.
        compressed: Box<TensorInfo>,
        /// `col_indices()` or `row_indices()`.
        plain: Box<TensorInfo>,
        /// `values()`.
        values: Box<TensorInfo>,
    },
}

/// The tensors that make up a nested one (`torch.nested`), which `_nested_view_from_buffer()` makes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    /// `values()`: the elements of all, without a shape.
    pub values: TensorInfo,
    /// `_nested_tensor_size()`: a row for each tensor.
    pub sizes: TensorInfo,
    /// `_nested_tensor_strides()`: likewise.
    pub strides: TensorInfo,
    /// `_nested_tensor_storage_offsets()`: where in the values each begins; `None` where one begins at the end of
    /// the one before, or that is not known.
    pub offsets: Option<TensorInfo>,
}

impl Form {
    /// The tensors that belong to this one, under names that say what they are.
    pub fn parts(&self) -> Vec<(&'static str, &TensorInfo)> {
        match self {
            Self::Quantized(Quantizer::PerChannel { scales, zero_points, .. }) => {
                vec![("q_per_channel_scales", &**scales), ("q_per_channel_zero_points", &**zero_points)]
            }
            Self::Sparse(Sparse::Coo { indices, values }) => vec![("indices", &**indices), ("values", &**values)],
            Self::Sparse(Sparse::Compressed { compressed, plain, values }) => {
                vec![("compressed_indices", &**compressed), ("plain_indices", &**plain), ("values", &**values)]
            }
            Self::Nested(Some(nested)) => {
                let Nested { values, sizes, strides, offsets } = &**nested;
                let mut parts = vec![("values", values), ("nested_sizes", sizes), ("nested_strides", strides)];
                parts.extend(offsets.as_ref().map(|offsets| ("storage_offsets", offsets)));
                parts
            }
            Self::Strided | Self::Quantized(_) | Self::Nested(None) | Self::Short | Self::Opaque => Vec::new(),
        }
    }

    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Strided => "strided",
            Self::Quantized(Quantizer::PerTensor { .. }) => "quantized_per_tensor",
            Self::Quantized(Quantizer::PerChannel { .. }) => "quantized_per_channel",
            Self::Quantized(Quantizer::Unknown) => "quantized",
            Self::Sparse(Sparse::Coo { .. }) => "sparse_coo",
            Self::Sparse(Sparse::Compressed { .. }) => "sparse_compressed",
            Self::Nested(Some(_)) => "nested",
            Self::Nested(None) => "nested_jagged",
            Self::Short => "short_storage",
            Self::Opaque => "opaque",
        }
    }
}
