//! Tensors that Python has never seen, found by their `TensorImpl` instead of a Python object.

use super::form::{Form, Quantizer};
use super::keys::Keys;
use super::layout::{Layout, ScalarType};
use super::read::{TensorError, TensorInfo};
use crate::addr::VirtAddr;
use crate::cpython::Objects;

impl Layout {
    /// Reads a tensor by its `TensorImpl`. Where that names a Python object that owns it, the object must name it in turn.
    ///
    /// # Errors
    /// As [`Layout::read`].
    pub fn read_tensor_impl(&self, objects: &Objects<'_>, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let info = self.read_impl(objects, tensor)?;
        // The lowest bit says that C++ owns the Python object, which no longer names the tensor then.
        let is_owned_by_python = objects.word(tensor, self.offsets.pyobj)? & 1 == 0;
        if info.object.0 != 0 && is_owned_by_python {
            let named = objects.pointer(info.object, self.offsets.impl_pointer)?;
            if named != tensor {
                let reason = format!(
                    "the Python object of its TensorImpl at {tensor} belongs to another TensorImpl, at {named}"
                );
                return Err(TensorError::Contradiction { object: info.object, reason });
            }
        }
        Ok(info)
    }

    /// Whether that is the one `TensorImpl` that stands for no tensor: without elements and storage.
    pub fn is_undefined(&self, objects: &Objects<'_>, tensor: VirtAddr) -> bool {
        objects.pointer(tensor, self.offsets.storage_pointer).is_ok_and(|storage| storage.0 == 0)
            && objects.word(tensor, self.offsets.numel) == Ok(0)
    }

    /// The scalar type of that name in PyTorch.
    pub fn scalar_type_named(&self, name: &str) -> Option<&ScalarType> {
        self.scalar_types().iter().find(|scalar| scalar.name == name)
    }
}

impl TensorInfo {
    /// Elements that lie one after another in no `TensorImpl`, but in a structure at `owner`.
    pub fn contiguous(owner: VirtAddr, dtype: &ScalarType, shape: &[u64], data: VirtAddr) -> Self {
        let mut stride = Vec::new();
        let mut step = 1u64;
        for size in shape.iter().rev() {
            stride.push(step);
            step = step.saturating_mul(*size);
        }
        stride.reverse();
        Self {
            object: VirtAddr(0),
            tensor_impl: owner,
            dtype: dtype.clone(),
            shape: shape.to_vec(),
            stride,
            storage_offset: 0,
            storage: owner,
            data,
            storage_bytes: step.saturating_mul(dtype.size),
            device: "cpu".to_owned(),
            requires_grad: false,
            form: Form::Strided,
            inferred: false,
            jumps: Vec::new(),
            keys: Keys::default(),
        }
    }

    /// Whether its elements are integers that stand for real numbers in a way that is known.
    pub fn is_quantized(&self) -> bool {
        matches!(self.form, Form::Quantized(ref quantizer) if *quantizer != Quantizer::Unknown)
    }
}
