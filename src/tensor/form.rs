//! Tensors that are more, or other, than elements at strides: quantized, sparse, without a storage.

use super::layout::Layout;
use super::read::{TensorError, TensorInfo};
use crate::addr::VirtAddr;
use crate::cpython::{Objects, field};

/// Words after the type of a `TensorImpl` in which fields of a derived class are looked for. Nothing that was
/// published has them further away than six.
const DERIVED_WORDS: u64 = 16;

/// How a tensor keeps its elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// In a storage, at strides.
    Strided,
    /// The same, and the elements are integers that stand for real numbers.
    Quantized(Quantizer),
    /// Positions and values of the elements that are not zero.
    Sparse(Sparse),
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
            Self::Strided | Self::Quantized(_) | Self::Opaque => Vec::new(),
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
            Self::Opaque => "opaque",
        }
    }
}

impl Layout {
    /// The quantizer of a quantized tensor; [`Quantizer::Unknown`] where it is not where it should be.
    pub(super) fn quantizer(&self, objects: &Objects<'_>, of: &TensorInfo) -> Quantizer {
        let numbers = self.offsets.quantizer_scalar_type.zip(self.offsets.quantizer_scale);
        let Some(((scalar_type, scale), zero_point)) = numbers.zip(self.offsets.quantizer_zero_point) else {
            return Quantizer::Unknown;
        };
        let read = |quantizer: VirtAddr| {
            // The quantizer repeats the type of the elements.
            if u16::from(objects.byte(quantizer, scalar_type).ok()?) != of.dtype.index {
                return None;
            }
            let value = f64::from_bits(objects.word(quantizer, scale).ok()?);
            if value.is_normal() && value > 0.0 {
                let zero_point = objects.word(quantizer, zero_point).ok()?.cast_signed();
                return Some(Quantizer::PerTensor { scale: value, zero_point });
            }
            // Per channel there are two tensors and a dimension in the same place.
            let scales = self.read_impl(objects, objects.pointer(quantizer, scale).ok()?).ok()?;
            let zero_points = self.read_impl(objects, objects.pointer(quantizer, zero_point).ok()?).ok()?;
            let axis = objects.word(quantizer, zero_point + (zero_point - scale)).ok()?;
            let is_sound = of.shape.get(usize::try_from(axis).ok()?) == Some(&scales.numel())
                && scales.numel() == zero_points.numel();
            let (scales, zero_points) = (Box::new(scales), Box::new(zero_points));
            is_sound.then_some(Quantizer::PerChannel { axis, scales, zero_points })
        };
        self.derived_pointers(objects, of.tensor_impl).into_iter().find_map(read).unwrap_or(Quantizer::Unknown)
    }

    /// Completes the headers of a tensor that has no storage: a sparse one by the tensors in it, any other by
    /// its device. `head` has its shape and type.
    ///
    /// # Errors
    /// It is neither, as far as this layout tells.
    pub(super) fn without_storage(&self, objects: &Objects<'_>, head: TensorInfo) -> Result<TensorInfo, TensorError> {
        let parts: Vec<TensorInfo> = self
            .derived_pointers(objects, head.tensor_impl)
            .into_iter()
            // Tensors in tensors end here: one without a storage is no part of another.
            .filter_map(|tensor| self.read_strided(objects, tensor).ok().filter(|part| part.storage.0 != 0))
            .collect();
        if let Some((sparse, device)) = sparse(&head, &parts) {
            return Ok(TensorInfo { form: Form::Sparse(sparse), device, ..head });
        }
        let contradiction = |reason: String| TensorError::Contradiction { object: head.tensor_impl, reason };
        let (Some(device_type), Some(device_index)) = (self.offsets.device_type, self.offsets.device_index) else {
            return Err(contradiction("it has no storage: sparse, or of another device".to_owned()));
        };
        let device = self.device(objects, head.tensor_impl, device_type, device_index)?;
        Ok(TensorInfo { form: Form::Opaque, device, ..head })
    }

    /// What could be pointers among the fields that a class derived from `TensorImpl` adds.
    fn derived_pointers(&self, objects: &Objects<'_>, tensor_impl: VirtAddr) -> Vec<VirtAddr> {
        let start = field(tensor_impl, self.dtype.offset());
        let words = (0..DERIVED_WORDS as i64).map(|word| objects.word(VirtAddr(start.0 & !7), 8 * word));
        words.map_while(Result::ok).filter(|word| *word != 0 && word.is_multiple_of(8)).map(VirtAddr).collect()
    }
}

/// The parts of a sparse tensor among the tensors that it points to, and their device.
fn sparse(head: &TensorInfo, tensors: &[TensorInfo]) -> Option<(Sparse, String)> {
    let boxed = |tensor: &TensorInfo| Box::new(tensor.clone());
    let is_integer = |tensor: &TensorInfo| ["I32", "I64"].contains(&tensor.dtype.label());
    let holds_values = |tensor: &TensorInfo| tensor.dtype == head.dtype;
    if let [indices, values, ..] = tensors
        && let [sparse_dims, count] = *indices.shape.as_slice()
        && let [of_values, dense @ ..] = values.shape.as_slice()
        && is_integer(indices)
        && holds_values(values)
        && count == *of_values
        && head.shape.get(usize::try_from(sparse_dims).ok()?..) == Some(dense)
    {
        return Some((Sparse::Coo { indices: boxed(indices), values: boxed(values) }, values.device.clone()));
    }
    if let [compressed, plain, values, ..] = tensors
        && [compressed, plain].into_iter().all(is_integer)
        && holds_values(values)
        && compressed.shape.len() == plain.shape.len()
        && let ([batch @ .., rows], [batch_of_plain @ .., count]) =
            (compressed.shape.as_slice(), plain.shape.as_slice())
        && batch == batch_of_plain
        && *rows > 0
        && values.shape.get(batch.len()) == Some(count)
    {
        let [compressed, plain, values] = [compressed, plain, values].map(boxed);
        let device = values.device.clone();
        return Some((Sparse::Compressed { compressed, plain, values }, device));
    }
    None
}
