//! Reading a tensor: from the Python object to the C++ `TensorImpl` and its storage.

use super::layout::{Layout, ScalarType};
use crate::addr::VirtAddr;
use crate::cpython::{ObjectError, Objects};

/// The most dimensions that a tensor may have; PyTorch's own limit is 64.
const MAX_DIMS: u64 = 64;
/// Bytes of a `std::string` before the text that it keeps in itself: pointer and length (libstdc++).
const STRING_INLINE_AT: u64 = 16;

/// A tensor, as its own headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The Python object; null for a tensor that Python has never seen, as a gradient may be.
    pub object: VirtAddr,
    /// The C++ `TensorImpl`.
    pub tensor_impl: VirtAddr,
    /// Type of the elements.
    pub dtype: ScalarType,
    /// Elements along each dimension, outermost first.
    pub shape: Vec<u64>,
    /// Elements between neighbours along each dimension.
    pub stride: Vec<u64>,
    /// Elements before the first, from the start of the storage.
    pub storage_offset: u64,
    /// The `StorageImpl`, which views of the same data share.
    pub storage: VirtAddr,
    /// The first element: the storage's data plus the offset. Null for a tensor without elements.
    pub data: VirtAddr,
    /// Bytes of the storage.
    pub storage_bytes: u64,
    /// Where the data lies: `cpu`, `cuda:0`, ….
    pub device: String,
    /// Whether gradients are recorded for it.
    pub requires_grad: bool,
}

impl TensorInfo {
    /// Number of elements.
    pub fn numel(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes of the elements when they lie one after another.
    pub fn byte_len(&self) -> u64 {
        self.numel().saturating_mul(self.dtype.size)
    }

    /// Bytes from the first element to the end of the last, where they lie; `None` past 64 bits.
    pub fn extent(&self) -> Option<u64> {
        if self.numel() == 0 {
            return Some(0);
        }
        last_element(&self.shape, &self.stride, 0)?.checked_add(1)?.checked_mul(self.dtype.size)
    }
}

/// Why an object is not a tensor, by a layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// A part could not be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Two fields contradict each other.
    #[error("the tensor at {object} contradicts itself: {reason}")]
    Contradiction {
        /// The Python object, or the `TensorImpl` where there is none.
        object: VirtAddr,
        /// Which fields, and how.
        reason: String,
    },
}

impl Layout {
    /// Reads the tensor whose Python object lies at `object`.
    ///
    /// # Errors
    /// A header can't be read, or its fields contradict each other: the object must be the one that
    /// the `TensorImpl` names, sizes must multiply to the number of elements, and the elements must
    /// lie inside the storage.
    pub fn read(&self, objects: &Objects<'_>, object: VirtAddr) -> Result<TensorInfo, TensorError> {
        let tensor = objects.pointer(object, self.offsets.impl_pointer)?;
        let named = self.python_object(objects, tensor)?;
        if named != object {
            let reason = format!("its TensorImpl belongs to the object at {named}");
            return Err(TensorError::Contradiction { object, reason });
        }
        self.read_impl(objects, tensor)
    }

    /// Reads the gradient of a tensor (`.grad`); `None` if it has none.
    ///
    /// # Errors
    /// It has one, or may have, that can't be read.
    pub fn read_grad(&self, objects: &Objects<'_>, of: &TensorInfo) -> Result<Option<TensorInfo>, TensorError> {
        let meta = objects.pointer(of.tensor_impl, self.offsets.autograd_meta)?;
        if meta.0 == 0 {
            return Ok(None);
        }
        let grad = objects.pointer(meta, self.offsets.grad)?;
        // No tensor is a pointer to the one `UndefinedTensorImpl`, which has neither elements nor a storage.
        let is_undefined = grad.0 == 0
            || (objects.pointer(grad, self.offsets.storage_pointer)?.0 == 0
                && objects.word(grad, self.offsets.numel)? == 0);
        if is_undefined { Ok(None) } else { self.read_impl(objects, grad).map(Some) }
    }

    /// The Python object of a `TensorImpl`. The lowest bit of the pointer says which of the two owns the other
    /// (c10/core/impl/PyObjectSlot.h).
    fn python_object(&self, objects: &Objects<'_>, tensor: VirtAddr) -> Result<VirtAddr, TensorError> {
        Ok(VirtAddr(objects.word(tensor, self.offsets.pyobj)? & !1))
    }

    fn read_impl(&self, objects: &Objects<'_>, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let at = &self.offsets;
        let object = self.python_object(objects, tensor)?;
        let contradiction = |reason: String| {
            let object = if object.0 == 0 { tensor } else { object };
            TensorError::Contradiction { object, reason }
        };
        let dims = objects.word(tensor, at.dim)?;
        if dims > MAX_DIMS {
            return Err(contradiction(format!("it has {dims} dimensions")));
        }
        let (shape, stride) = if dims <= at.inline_dims as u64 {
            let inline = |offset| objects.words(VirtAddr(tensor.0.wrapping_add_signed(offset)), dims);
            (inline(at.sizes_inline)?, inline(at.strides_inline)?)
        } else {
            let both = objects.words(objects.pointer(tensor, at.out_of_line)?, 2 * dims)?;
            let (sizes, strides) = both.split_at(dims as usize);
            (sizes.to_vec(), strides.to_vec())
        };
        let numel = objects.word(tensor, at.numel)?;
        let product = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        if product != Some(numel) {
            return Err(contradiction(format!("sizes {shape:?} for {numel} elements")));
        }
        let index = objects.word(tensor, at.dtype)? & 0xffff;
        let dtype = self.scalar_type(index as u16).ok_or_else(|| contradiction(format!("scalar type {index}")))?;
        let storage_offset = objects.word(tensor, at.storage_offset)?;
        let storage = objects.pointer(tensor, at.storage_pointer)?;
        let base = objects.pointer(storage, at.storage_data)?;
        let storage_bytes = objects.word(storage, at.storage_bytes)?;
        let end = last_element(&shape, &stride, storage_offset).and_then(|last| (last + 1).checked_mul(dtype.size));
        if numel > 0 && end.is_none_or(|end| end > storage_bytes) {
            let reason = format!("sizes {shape:?}, strides {stride:?} from {storage_offset} in {storage_bytes} bytes");
            return Err(contradiction(reason));
        }
        let device = objects.byte(storage, at.device_type)?;
        let device_name = self.device_type(device).ok_or_else(|| contradiction(format!("device type {device}")))?;
        let index = objects.byte(storage, at.device_index)?.cast_signed();
        let device = if index < 0 { device_name.to_owned() } else { format!("{device_name}:{index}") };
        Ok(TensorInfo {
            object,
            tensor_impl: tensor,
            dtype: dtype.clone(),
            data: VirtAddr(if base.0 == 0 { 0 } else { base.0.wrapping_add(storage_offset.wrapping_mul(dtype.size)) }),
            shape,
            stride,
            storage_offset,
            storage,
            storage_bytes,
            device,
            requires_grad: self.requires_grad(objects, tensor)?,
        })
    }

    fn requires_grad(&self, objects: &Objects<'_>, tensor: VirtAddr) -> Result<bool, ObjectError> {
        let meta = objects.pointer(tensor, self.offsets.autograd_meta)?;
        if meta.0 == 0 {
            return Ok(false);
        }
        let flag = objects.byte(meta, self.offsets.requires_grad)?;
        if flag > 1 {
            return Err(ObjectError::Implausible { address: meta, field: "requires_grad_", value: flag.into() });
        }
        Ok(flag == 1 || objects.word(meta, self.offsets.grad_fn)? != 0)
    }

    /// Whether the string in a tensor's autograd data is of the C++ ABI that the layout is for;
    /// `None` for a tensor without such data.
    ///
    /// The two ABIs differ in the size of `std::string`, and so in all that follows it.
    pub(super) fn string_abi_fits(&self, objects: &Objects<'_>, object: VirtAddr) -> Option<bool> {
        let tensor = objects.pointer(object, self.offsets.impl_pointer).ok()?;
        let meta = objects.pointer(tensor, self.offsets.autograd_meta).ok()?;
        let text = objects.word(meta, self.offsets.name).ok()?;
        let own = meta.0.wrapping_add_signed(self.offsets.name).wrapping_add(STRING_INLINE_AT);
        Some((text == own) == (self.offsets.name_is_inline != 0))
    }
}

/// Index of the last element that is reached, from the start of the storage.
fn last_element(shape: &[u64], stride: &[u64], offset: u64) -> Option<u64> {
    shape
        .iter()
        .zip(stride)
        .try_fold(offset, |last, (size, stride)| last.checked_add(size.saturating_sub(1).checked_mul(*stride)?))
}

/// How many tensors a layout reads without contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorScore {
    /// Tensors whose fields agree.
    pub readable: usize,
    /// Tensors whose autograd data are of the layout's C++ ABI.
    pub same_abi: usize,
    /// Tensors that were tried.
    pub tried: usize,
    /// The layout's version.
    pub version: String,
}

/// The layout that reads most of the tensors, its score, and that of the next best.
///
/// `None` if no layout reads any.
pub fn choose<'a>(
    layouts: &'a [Layout],
    objects: &Objects<'_>,
    tensors: &[VirtAddr],
) -> Option<(&'a Layout, TensorScore, Option<TensorScore>)> {
    let score = |layout: &'a Layout| {
        let readable = tensors.iter().filter(|tensor| layout.read(objects, **tensor).is_ok()).count();
        let same_abi = tensors.iter().filter(|tensor| layout.string_abi_fits(objects, **tensor) == Some(true)).count();
        let version = layout.offsets.version.clone();
        (layout, TensorScore { readable, same_abi, tried: tensors.len(), version })
    };
    let mut scored: Vec<_> = layouts.iter().map(score).filter(|(_, score)| score.readable > 0).collect();
    scored.sort_by_key(|(_, score)| (score.readable, score.same_abi));
    let (layout, best) = scored.pop()?;
    Some((layout, best, scored.pop().map(|(_, score)| score)))
}
