//! Tensors that Python has never seen, found by their `TensorImpl` instead of a Python object.

use super::error::{Contradiction, TensorError};
use super::layout::Layout;
use crate::addr::VirtAddr;
use crate::paging::VirtualMemory;
use crate::tensor::{ScalarType, TensorInfo};

impl Layout {
    /// Reads a tensor by its `TensorImpl`. Where that names a Python object that owns it, the object must name it in turn.
    ///
    /// # Errors
    /// As [`Layout::read`].
    pub fn read_tensor_impl(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let info = self.read_impl(memory, tensor)?;
        // The lowest bit says that C++ owns the Python object, which no longer names the tensor then.
        let is_owned_by_python = memory.word(tensor, self.offsets.pyobj)? & 1 == 0;
        if info.object.0 != 0 && is_owned_by_python {
            let named = memory.pointer(info.object, self.offsets.impl_pointer)?;
            if named != tensor {
                let contradiction = Contradiction::OtherTensorImpl { tensor_impl: tensor, other: named };
                return Err(TensorError::Contradiction { object: info.object, contradiction });
            }
        }
        Ok(info)
    }

    /// Whether that is the one `TensorImpl` that stands for no tensor: without elements and storage.
    pub fn is_undefined(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> bool {
        memory.pointer(tensor, self.offsets.storage_pointer).is_ok_and(|storage| storage.0 == 0)
            && memory.word(tensor, self.offsets.numel) == Ok(0)
    }

    /// The scalar type of that name in PyTorch.
    pub fn scalar_type_named(&self, name: &str) -> Option<&ScalarType> {
        self.scalar_types().iter().map(|known| &known.scalar).find(|scalar| scalar.name == name)
    }
}
