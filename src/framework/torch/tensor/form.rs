//! Reading tensors that are more, or other, than elements at strides: quantized, sparse, without a storage.

use super::error::{Contradiction, TensorError};
use super::keys::Keys;
use super::layout::Layout;
use super::read::WORD;
use crate::addr::{VirtAddr, field};
use crate::paging::VirtualMemory;
use crate::tensor::{Flips, Form, Nested, Quantizer, ScalarType, Sparse, TensorInfo};

/// Words after the type of a `TensorImpl` in which fields of a derived class are looked for. Nothing that was
/// published has them further away than six.
const DERIVED_WORDS: u64 = 16;
/// The most bytes of a vector of offsets: one of as many tensors as fit in it.
const MAX_VECTOR: u64 = 1 << 24;

impl Layout {
    /// The quantizer of a quantized tensor; [`Quantizer::Unknown`] where it is not where it should be.
    pub(super) fn quantizer(&self, memory: &dyn VirtualMemory, of: &TensorInfo) -> Quantizer {
        let numbers = self.offsets.quantizer_scalar_type.zip(self.offsets.quantizer_scale);
        let Some(((scalar_type, scale), zero_point)) = numbers.zip(self.offsets.quantizer_zero_point) else {
            return Quantizer::Unknown;
        };
        let read = |quantizer: VirtAddr| {
            // The quantizer repeats the type of the elements.
            if self.scalar_type(memory.byte(quantizer, scalar_type).ok()?.into()) != Some(&of.dtype) {
                return None;
            }
            let value = f64::from_bits(memory.word(quantizer, scale).ok()?);
            if value.is_normal() && value > 0.0 {
                let zero_point = memory.word(quantizer, zero_point).ok()?.cast_signed();
                return Some(Quantizer::PerTensor { scale: value, zero_point });
            }
            // Per channel there are two tensors and a dimension in the same place.
            let part = |at| self.read_strided(memory, memory.pointer(quantizer, at).ok()?).ok().map(|(part, _)| part);
            let is_part = |part: &TensorInfo| part.storage.0 != 0;
            let scales = part(scale).filter(is_part)?;
            let zero_points = part(zero_point).filter(is_part)?;
            let axis = memory.word(quantizer, zero_point + (zero_point - scale)).ok()?;
            let is_sound = of.shape.get(usize::try_from(axis).ok()?) == Some(&scales.numel())
                && scales.numel() == zero_points.numel();
            let (scales, zero_points) = (Box::new(scales), Box::new(zero_points));
            is_sound.then_some(Quantizer::PerChannel { axis, scales, zero_points })
        };
        self.derived_pointers(memory, of.header).into_iter().find_map(read).unwrap_or(Quantizer::Unknown)
    }

    /// Completes the headers of a tensor that has no storage: a sparse one by the tensors in it, any other by
    /// its device. `head` has its shape and type.
    ///
    /// # Errors
    /// It is neither, as far as this layout tells.
    pub(super) fn without_storage(
        &self,
        memory: &dyn VirtualMemory,
        head: TensorInfo,
    ) -> Result<TensorInfo, TensorError> {
        let parts = self.derived_tensors(memory, head.header);
        if let Some((sparse, device)) = sparse(&head, &parts) {
            return Ok(TensorInfo { form: Form::Sparse(sparse), device, ..head });
        }
        let (Some(device_type), Some(device_index)) = (self.offsets.device_type, self.offsets.device_index) else {
            let contradiction = Contradiction::NoStorage;
            return Err(TensorError::Contradiction { object: head.header, contradiction });
        };
        let device = self.device(memory, head.header, device_type, device_index)?;
        Ok(TensorInfo { form: Form::Opaque, device, ..head })
    }

    /// Completes the headers of a tensor that a dispatch key calls nested (ATen/NestedTensorImpl.h). Its own sizes mean
    /// nothing; the storage holds the elements of all tensors in it.
    pub(super) fn nested(&self, memory: &dyn VirtualMemory, head: TensorInfo, keys: &Keys) -> TensorInfo {
        let head = TensorInfo { shape: Vec::new(), stride: Vec::new(), storage_offset: 0, ..head };
        if keys.python {
            return TensorInfo { form: Form::Nested(None), ..head };
        }
        let parts = self.derived_tensors(memory, head.header);
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
            flips: Flips::default(),
            dispatch_keys: Vec::new(),
            doubt: None,
            form: Form::Strided,
            ..of.clone()
        };
        let numel = head.storage_bytes / head.dtype.size;
        let base = head.data;
        let values =
            TensorInfo { storage_bytes: head.storage_bytes, ..one_dimension(&head, head.dtype.clone(), numel, base) };
        let is_offsets = |part: &&TensorInfo| is_table(part) && part.shape == [count];
        let offsets = rest.iter().find(is_offsets).cloned().or_else(|| {
            let data = self.derived_vector(memory, head.header, count, numel)?;
            Some(one_dimension(sizes, sizes.dtype.clone(), count, data))
        });
        let nested = Nested { values, sizes: sizes.clone(), strides: strides.clone(), offsets };
        TensorInfo { form: Form::Nested(Some(Box::new(nested))), ..head }
    }

    /// A `std::vector` of so many words below `limit` among the fields that a derived class adds.
    fn derived_vector(
        &self,
        memory: &dyn VirtualMemory,
        tensor_impl: VirtAddr,
        count: u64,
        limit: u64,
    ) -> Option<VirtAddr> {
        let pointers = self.derived_pointers(memory, tensor_impl);
        let bytes = count.checked_mul(WORD).filter(|bytes| *bytes > 0 && *bytes <= MAX_VECTOR)?;
        pointers.iter().zip(pointers.iter().skip(1)).find_map(|(begin, end)| {
            (end.0.checked_sub(begin.0) == Some(bytes)).then_some(())?;
            let words = memory.words(*begin, count).ok()?;
            words.iter().all(|word| *word <= limit).then_some(*begin)
        })
    }

    /// The tensors among the fields that a class derived from `TensorImpl` adds. Tensors in tensors end here: one without a
    /// storage is no part of another.
    fn derived_tensors(&self, memory: &dyn VirtualMemory, tensor_impl: VirtAddr) -> Vec<TensorInfo> {
        let read = |at: VirtAddr| self.read_strided(memory, at).ok().map(|(part, _)| part);
        let parts = self.derived_pointers(memory, tensor_impl).into_iter().filter_map(read);
        parts.filter(|part| part.storage.0 != 0).collect()
    }

    /// What could be pointers among the fields that a class derived from `TensorImpl` adds.
    fn derived_pointers(&self, memory: &dyn VirtualMemory, tensor_impl: VirtAddr) -> Vec<VirtAddr> {
        let start = field(tensor_impl, self.dtype.offset());
        let words = (0..DERIVED_WORDS as i64).map(|word| memory.word(VirtAddr(start.0 & !7), 8 * word));
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
