//! Tensors that Python has never seen, found by their `TensorImpl` instead of a Python object.

use super::error::{Contradiction, TensorError};
use super::layout::Layout;
use crate::addr::VirtAddr;
use crate::layout::Structure;
use crate::paging::VirtualMemory;
use crate::tensor::{ScalarType, TensorInfo};

/// Bytes of a Python object among which its pointer to the tensor lies, in every build.
const OBJECT_BYTES: u64 = 64;

impl Layout {
    /// Reads a tensor by its `TensorImpl`. Where that names a Python object that owns it, the object must name it in turn, if it can
    /// be read: where in the object depends on how Python was built, so any of its first words will do.
    ///
    /// # Errors
    /// As [`Layout::read`].
    pub fn read_tensor_impl(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let info = self.read_impl(memory, tensor)?;
        // The lowest bit says that C++ owns the Python object, which no longer names the tensor then.
        let is_owned_by_python = memory.word(tensor, self.offsets.pyobj)? & 1 == 0;
        if info.object.0 != 0 && is_owned_by_python {
            let words: Vec<u64> = Structure::read(memory, info.object, OBJECT_BYTES).words().collect();
            if !words.is_empty() && !words.contains(&tensor.0) {
                let contradiction = Contradiction::NotInObject { tensor_impl: tensor };
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
