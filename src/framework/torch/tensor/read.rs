//! Reading a tensor: from the Python object to the C++ `TensorImpl` and its storage.

use super::error::{Contradiction, TensorError};
use super::keys::Keys;
use super::layout::{DtypeAt, Layout, ShapeAt};
use crate::addr::{VirtAddr, field};
use crate::cpython::ObjectError;
use crate::paging::VirtualMemory;
use crate::tensor::{Form, TensorInfo};

/// The most dimensions that a tensor may have; PyTorch's own limit is 64.
pub(super) const MAX_DIMS: u64 = 64;
/// The method of quantized tensors that gives their integers.
const INT_REPR: &str = "int_repr";
/// Bytes of a size or a stride.
pub(super) const WORD: u64 = 8;

/// Sizes and strides, outermost dimension first.
pub type SizesAndStrides = (Vec<u64>, Vec<u64>);

/// The nodes of the autograd graph that a tensor names.
pub(crate) struct AutogradNodes {
    /// Of the operation that computed it.
    pub(crate) function: Option<VirtAddr>,
    /// That its gradient is accumulated in.
    pub(crate) accumulator: Option<VirtAddr>,
}

impl ShapeAt {
    /// Sizes and strides of a `TensorImpl`; `None` if it has more dimensions than a tensor can have.
    ///
    /// # Errors
    /// They can't be read.
    pub fn read(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<Option<SizesAndStrides>, ObjectError> {
        match *self {
            Self::Counted { dim, sizes, strides, out_of_line, inline_dims } => {
                let dims = memory.word(tensor, dim)?;
                if dims > MAX_DIMS {
                    return Ok(None);
                }
                if dims <= inline_dims {
                    let inline = |offset| memory.words(field(tensor, offset), dims);
                    return Ok(Some((inline(sizes)?, inline(strides)?)));
                }
                let both = memory.words(memory.pointer(tensor, out_of_line)?, 2 * dims)?;
                let (sizes, strides) = both.split_at(dims as usize);
                Ok(Some((sizes.to_vec(), strides.to_vec())))
            }
            Self::Vectors { sizes_begin, sizes_end, strides_begin } => {
                let begin = memory.pointer(tensor, sizes_begin)?;
                let dims = memory.word(tensor, sizes_end)?.wrapping_sub(begin.0) / WORD;
                if dims > MAX_DIMS {
                    return Ok(None);
                }
                let strides = memory.words(memory.pointer(tensor, strides_begin)?, dims)?;
                Ok(Some((memory.words(begin, dims)?, strides)))
            }
        }
    }
}

impl Layout {
    /// Bytes of a `std::string` before the text that it keeps in itself: pointer and length (libstdc++).
    pub(super) const STRING_INLINE_AT: i64 = 16;

    /// Reads the tensor whose Python object lies at `object`.
    ///
    /// # Errors
    /// A header can't be read, or its fields contradict each other: the object must be the one that
    /// the `TensorImpl` names, sizes must multiply to the number of elements, the elements must
    /// lie inside the storage, and tensor and storage on the same device. Or a layout that fits the process equally well reads it
    /// differently.
    pub fn read(&self, memory: &dyn VirtualMemory, object: VirtAddr) -> Result<TensorInfo, TensorError> {
        self.read_impl(memory, self.tensor_impl(memory, object)?)
    }

    /// The same by this layout alone and without the autograd data: the tensor is said to require no gradient.
    pub(super) fn read_headers(&self, memory: &dyn VirtualMemory, object: VirtAddr) -> Result<TensorInfo, TensorError> {
        self.read_form(memory, self.tensor_impl(memory, object)?)
    }

    /// The `TensorImpl` of a Python object, which must point back to it.
    fn tensor_impl(&self, memory: &dyn VirtualMemory, object: VirtAddr) -> Result<VirtAddr, TensorError> {
        let tensor = memory.pointer(object, self.offsets.impl_pointer)?;
        let named = self.python_object(memory, tensor)?;
        if named != object {
            return Err(TensorError::Contradiction { object, contradiction: Contradiction::OtherObject(named) });
        }
        Ok(tensor)
    }

    /// The `TensorImpl`s that those Python objects name.
    pub(in crate::framework::torch) fn impls(&self, memory: &dyn VirtualMemory, tensors: &[VirtAddr]) -> Vec<VirtAddr> {
        tensors.iter().filter_map(|tensor| memory.pointer(*tensor, self.offsets.impl_pointer).ok()).collect()
    }

    /// The same for a tensor that is known to be one: with a storage of too few bytes it has the form [`Form::Short`].
    ///
    /// # Errors
    /// As [`Layout::read`], but for the storage.
    pub fn read_header(&self, memory: &dyn VirtualMemory, object: VirtAddr) -> Result<TensorInfo, TensorError> {
        self.read(memory, object).or_else(header_of_short)
    }

    /// Reads the gradient of a tensor (`.grad`); `None` if it has none.
    ///
    /// # Errors
    /// It has one, or may have, that can't be read.
    pub fn read_grad(&self, memory: &dyn VirtualMemory, of: &TensorInfo) -> Result<Option<TensorInfo>, TensorError> {
        let meta = memory.pointer(of.header, self.offsets.autograd_meta)?;
        if meta.0 == 0 {
            return Ok(None);
        }
        let grad = memory.pointer(meta, self.offsets.grad)?;
        // No tensor is a pointer to the one `UndefinedTensorImpl`, which has neither elements nor a storage.
        let is_undefined = grad.0 == 0
            || (memory.pointer(grad, self.offsets.storage_pointer)?.0 == 0
                && memory.word(grad, self.offsets.numel)? == 0);
        if is_undefined { Ok(None) } else { self.read_impl(memory, grad).or_else(header_of_short).map(Some) }
    }

    /// The nodes of the autograd graph that a tensor names.
    pub(crate) fn autograd_nodes(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> AutogradNodes {
        let meta = memory.pointer(tensor, self.offsets.autograd_meta).ok().filter(|meta| meta.0 != 0);
        let node = |offset: i64| memory.pointer(meta?, offset).ok().filter(|node| node.0 != 0);
        // A `std::shared_ptr` of two words, and then a `std::weak_ptr` (torch/csrc/autograd/variable.h, `AutogradMeta`).
        AutogradNodes { function: node(self.offsets.grad_fn), accumulator: node(self.offsets.grad_fn.wrapping_add(16)) }
    }

    /// The Python object of a `TensorImpl`. The lowest bit of the pointer says which of the two owns the other
    /// (c10/core/impl/PyObjectSlot.h).
    fn python_object(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<VirtAddr, TensorError> {
        Ok(VirtAddr(memory.word(tensor, self.offsets.pyobj)? & !1))
    }

    /// Reads a tensor by its `TensorImpl`, whatever its form.
    pub(super) fn read_impl(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let info = TensorInfo { requires_grad: self.requires_grad(memory, tensor)?, ..self.read_form(memory, tensor)? };
        let differs = |rival: &&Self| !rival.read_form(memory, tensor).is_ok_and(|other| other.is_like(&info));
        if let Some(rival) = self.rivals.iter().find(differs) {
            let layouts = [self, rival].map(|layout| layout.offsets.version.clone());
            let contradiction = Contradiction::Undecided(layouts);
            return Err(TensorError::Contradiction { object: info.object, contradiction });
        }
        let is_known = |table: &Self| {
            let found = match info.object {
                VirtAddr(0) => table.read_form(memory, tensor),
                object => table.read_headers(memory, object),
            };
            found.is_ok_and(|found| found.is_like(&info))
        };
        let inferred = self.table.as_ref().is_some_and(|table| !is_known(table));
        Ok(TensorInfo { inferred, ..info })
    }

    /// Reads a tensor by its `TensorImpl` but for its autograd data.
    fn read_form(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let (head, keys) = match self.read_strided(memory, tensor) {
            Err(TensorError::Short(head)) => {
                // The sizes of a nested tensor are not in its header.
                let keys = self.read_keys(memory, tensor);
                if !keys.nested {
                    return Err(TensorError::Short(head));
                }
                (*head, keys)
            }
            read => read?,
        };
        let info = if keys.nested {
            self.nested(memory, head, &keys)
        } else if head.storage.0 == 0 {
            self.without_storage(memory, head)?
        } else if head.dtype.raw.as_ref().is_some_and(|raw| raw.name == INT_REPR) {
            TensorInfo { form: Form::Quantized(self.quantizer(memory, &head)), ..head }
        } else {
            head
        };
        Ok(keys.applied_to(info))
    }

    /// Reads a tensor as one with a storage; one that has none comes back without stride, data and device. Whether it requires a
    /// gradient is left open.
    pub(super) fn read_strided(
        &self,
        memory: &dyn VirtualMemory,
        tensor: VirtAddr,
    ) -> Result<(TensorInfo, Keys), TensorError> {
        let at = &self.offsets;
        let object = self.python_object(memory, tensor)?;
        let contradiction = |contradiction| {
            let object = if object.0 == 0 { tensor } else { object };
            TensorError::Contradiction { object, contradiction }
        };
        let Some((shape, stride)) = self.shape.read(memory, tensor)? else {
            return Err(contradiction(Contradiction::Dimensions));
        };
        let numel = memory.word(tensor, at.numel)?;
        let product = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        if product != Some(numel) {
            return Err(contradiction(Contradiction::Sizes { sizes: shape, numel }));
        }
        let dtype = match self.dtype {
            DtypeAt::Index(offset) => {
                let index = memory.word(tensor, offset)? & 0xffff;
                self.scalar_type(index as u16).ok_or_else(|| contradiction(Contradiction::ScalarType(index)))?
            }
            DtypeAt::Pointer { pointer, item_size, id } => {
                let described = memory.pointer(tensor, pointer)?;
                let (size, id) = (memory.word(described, item_size)?, memory.word(described, id)?.cast_signed());
                let unknown = || contradiction(Contradiction::DescribedScalarType { size, checksum: id });
                self.scalar_type_described(size, id).ok_or_else(unknown)?
            }
        };
        let storage = memory.pointer(tensor, at.storage_pointer)?;
        let keys = self.read_keys(memory, tensor);
        let head = TensorInfo { storage, ..TensorInfo::without_storage(object, tensor, dtype.clone(), shape) };
        if storage.0 == 0 {
            return Ok((head, keys));
        }
        let storage_offset = memory.word(tensor, at.storage_offset)?;
        let base = memory.pointer(storage, at.storage_data)?;
        let storage_bytes = memory.word(storage, at.storage_bytes)?;
        let device = self.device(memory, storage, at.storage_device_type, at.storage_device_index)?;
        if let Some(tensor_impl) = self.own_device_type(memory, tensor)?
            && device.split(':').next() != Some(tensor_impl)
        {
            let tensor_impl = tensor_impl.to_owned();
            return Err(contradiction(Contradiction::Device { tensor_impl, storage: device }));
        }
        let offset = storage_offset.wrapping_mul(dtype.size);
        let data = VirtAddr(if base.0 == 0 { 0 } else { base.0.wrapping_add(offset) });
        let info = TensorInfo { stride, storage_offset, data, storage_bytes, device, ..head };
        let end = last_element(&info.shape, &info.stride, storage_offset)
            .and_then(|last| last.checked_add(1)?.checked_mul(dtype.size));
        if numel > 0 && end.is_none_or(|end| end > storage_bytes) {
            return Err(TensorError::Short(Box::new(keys.applied_to(TensorInfo { form: Form::Short, ..info }))));
        }
        Ok((keys.applied_to(info), keys))
    }

    /// The device that a tensor or a storage names.
    pub(super) fn device(
        &self,
        memory: &dyn VirtualMemory,
        of: VirtAddr,
        device_type: i64,
        device_index: i64,
    ) -> Result<String, TensorError> {
        let number = memory.byte(of, device_type)?;
        let name = self
            .device_type(number)
            .ok_or(TensorError::Contradiction { object: of, contradiction: Contradiction::DeviceType(number) })?;
        let index = memory.byte(of, device_index)?.cast_signed();
        Ok(if index < 0 { name.to_owned() } else { format!("{name}:{index}") })
    }

    /// The type of the device that a `TensorImpl` names itself; `None` where it names none that is known.
    fn own_device_type(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<Option<&str>, ObjectError> {
        let (Some(has_value), Some(device_type)) = (self.offsets.device_has_value, self.offsets.device_type) else {
            return Ok(None);
        };
        let has_value = memory.byte(tensor, has_value)? == 1;
        Ok(if has_value { self.device_type(memory.byte(tensor, device_type)?) } else { None })
    }

    /// Whether gradients are recorded for a tensor.
    pub(super) fn requires_grad(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<bool, ObjectError> {
        let meta = memory.pointer(tensor, self.offsets.autograd_meta)?;
        if meta.0 == 0 {
            return Ok(false);
        }
        let flag = memory.byte(meta, self.offsets.requires_grad)?;
        if flag > 1 {
            return Err(ObjectError::Implausible { address: meta, field: "requires_grad_", value: flag.into() });
        }
        Ok(flag == 1 || memory.word(meta, self.offsets.grad_fn)? != 0)
    }

    /// Whether the string in a tensor's autograd data is of the C++ ABI that the layout is for;
    /// `None` for a tensor without such data.
    ///
    /// The two ABIs differ in the size of `std::string`, and so in all that follows it.
    pub(super) fn string_abi_fits(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Option<bool> {
        let meta = memory.pointer(tensor, self.offsets.autograd_meta).ok()?;
        let text = memory.word(meta, self.offsets.name).ok()?;
        let inline = field(meta, self.offsets.name + Self::STRING_INLINE_AT).0;
        Some(if self.offsets.name_is_inline != 0 { text == inline } else { text != inline && text != 0 })
    }
}

/// The headers of a tensor whose storage is too short.
fn header_of_short(error: TensorError) -> Result<TensorInfo, TensorError> {
    match error {
        TensorError::Short(info) => Ok(*info),
        error => Err(error),
    }
}

/// Index of the last element that is reached, from the start of the storage.
pub(super) fn last_element(shape: &[u64], stride: &[u64], offset: u64) -> Option<u64> {
    shape
        .iter()
        .zip(stride)
        .try_fold(offset, |last, (size, stride)| last.checked_add(size.saturating_sub(1).checked_mul(*stride)?))
}
