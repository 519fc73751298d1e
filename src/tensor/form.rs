//! Tensors that are more, or other, than elements at strides: quantized, sparse, without a storage.

use super::keys::Keys;
use super::layout::{Layout, ScalarType};
use super::read::{TensorError, TensorInfo, WORD};
use crate::addr::VirtAddr;
use crate::cpython::{Objects, field};

/// Words after the type of a `TensorImpl` in which fields of a derived class are looked for. Nothing that was
/// published has them further away than six.
const DERIVED_WORDS: u64 = 16;
/// The most bytes of a vector of offsets: one of as many tensors as fit in it.
const MAX_VECTOR: u64 = 1 << 24;

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

    /// Whether it is what those dispatch keys name, if they name any.
    pub(super) fn is_named_by(&self, keys: &Keys) -> bool {
        match self {
            Self::Strided => !keys.sparse && !keys.nested && !keys.quantized,
            Self::Quantized(_) => !keys.sparse && !keys.nested,
            Self::Sparse(_) => !keys.nested && !keys.quantized,
            Self::Nested(_) => !keys.sparse && !keys.quantized,
            Self::Short | Self::Opaque => true,
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
            let part = |at| self.read_strided(objects, objects.pointer(quantizer, at).ok()?).ok();
            let is_part = |part: &TensorInfo| part.storage.0 != 0;
            let scales = part(scale).filter(is_part)?;
            let zero_points = part(zero_point).filter(is_part)?;
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
        let parts = self.derived_tensors(objects, head.tensor_impl);
        if let Some((sparse, device)) = sparse(&head, &parts) {
            return Ok(TensorInfo { form: Form::Sparse(sparse), device, ..head });
        }
        let contradiction = |reason: String| TensorError::Contradiction { object: head.tensor_impl, reason };
        let (Some(device_type), Some(device_index)) = (self.offsets.device_type, self.offsets.device_index) else {
            return Err(contradiction("it has no storage: it is sparse, or on another device".to_owned()));
        };
        let device = self.device(objects, head.tensor_impl, device_type, device_index)?;
        Ok(TensorInfo { form: Form::Opaque, device, ..head })
    }

    /// Completes the headers of a tensor that a dispatch key calls nested (ATen/NestedTensorImpl.h). Its own sizes mean
    /// nothing; the storage holds the elements of all tensors in it.
    pub(super) fn nested(&self, objects: &Objects<'_>, head: TensorInfo) -> TensorInfo {
        let head = TensorInfo { shape: Vec::new(), stride: Vec::new(), storage_offset: 0, ..head };
        if head.keys.python {
            return TensorInfo { form: Form::Nested(None), ..head };
        }
        let parts = self.derived_tensors(objects, head.tensor_impl);
        let is_table = |part: &TensorInfo| part.dtype.label() == "I64";
        let [sizes, strides, rest @ ..] = parts.as_slice() else { return TensorInfo { form: Form::Opaque, ..head } };
        let &[count, _] = sizes.shape.as_slice() else { return TensorInfo { form: Form::Opaque, ..head } };
        if !is_table(sizes) || !is_table(strides) || strides.shape != sizes.shape || head.dtype.size == 0 {
            return TensorInfo { form: Form::Opaque, ..head };
        }
        let one_dimension = |of: &TensorInfo, dtype: ScalarType, numel: u64, data: VirtAddr| TensorInfo {
            dtype,
            shape: vec![numel],
            stride: vec![1],
            data,
            storage_bytes: numel.saturating_mul(WORD),
            keys: Keys::default(),
            form: Form::Strided,
            ..of.clone()
        };
        let numel = head.storage_bytes / head.dtype.size;
        let base = head.data;
        let values =
            TensorInfo { storage_bytes: head.storage_bytes, ..one_dimension(&head, head.dtype.clone(), numel, base) };
        let is_offsets = |part: &&TensorInfo| is_table(part) && part.shape == [count];
        let offsets = rest.iter().find(is_offsets).cloned().or_else(|| {
            let data = self.derived_vector(objects, head.tensor_impl, count, numel)?;
            Some(one_dimension(sizes, sizes.dtype.clone(), count, data))
        });
        let nested = Nested { values, sizes: sizes.clone(), strides: strides.clone(), offsets };
        TensorInfo { form: Form::Nested(Some(Box::new(nested))), ..head }
    }

    /// A `std::vector` of so many words below `limit` among the fields that a derived class adds.
    fn derived_vector(&self, objects: &Objects<'_>, tensor_impl: VirtAddr, count: u64, limit: u64) -> Option<VirtAddr> {
        let pointers = self.derived_pointers(objects, tensor_impl);
        let bytes = count.checked_mul(WORD).filter(|bytes| *bytes > 0 && *bytes <= MAX_VECTOR)?;
        pointers.iter().zip(pointers.iter().skip(1)).find_map(|(begin, end)| {
            (end.0.checked_sub(begin.0) == Some(bytes)).then_some(())?;
            let words = objects.words(*begin, count).ok()?;
            words.iter().all(|word| *word <= limit).then_some(*begin)
        })
    }

    /// The tensors among the fields that a class derived from `TensorImpl` adds. Tensors in tensors end here: one without a
    /// storage is no part of another.
    fn derived_tensors(&self, objects: &Objects<'_>, tensor_impl: VirtAddr) -> Vec<TensorInfo> {
        let pointers = self.derived_pointers(objects, tensor_impl).into_iter();
        pointers.filter_map(|at| self.read_strided(objects, at).ok().filter(|part| part.storage.0 != 0)).collect()
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
