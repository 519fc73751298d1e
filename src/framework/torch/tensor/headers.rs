//! Tensors that Python has never seen, found by their `TensorImpl` instead of a Python object.

use super::error::{Contradiction, TensorError};
use super::layout::Layout;
use super::read::WORD;
use crate::addr::VirtAddr;
use crate::layout::Structure;
use crate::paging::VirtualMemory;
use crate::signature::{USER_POINTER_MAX, USER_POINTER_MIN};
use crate::tensor::{ScalarType, TensorInfo};

/// Bytes of a Python object among which its pointer to the tensor lies, in every build.
const OBJECT_BYTES: u64 = 64;

/// Functions at the begin of a virtual table that are looked at: those of the destructor, and one more
/// (`c10::intrusive_ptr_target`, Itanium C++ ABI, 2.5.2).
const FUNCTIONS: u64 = 3;
/// Bytes of the code of one library, at most.
const MAX_CODE: u64 = 1 << 32;

impl Layout {
    /// Reads a tensor by its `TensorImpl`. Where that names a Python object that owns it, the object must name it in turn, if it can
    /// be read: where in the object depends on how Python was built, so any of its first words will do.
    ///
    /// # Errors
    /// As [`Layout::read`].
    pub fn read_tensor_impl(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let info = self.read_impl(memory, tensor)?;
        if is_virtual_table(memory, memory.pointer(tensor, 0)?) == Some(false) {
            // What allocators keep in freed memory lies over the pointer to it.
            return Err(TensorError::Contradiction { object: tensor, contradiction: Contradiction::NoVirtualTable });
        }
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

    /// Reads a tensor by its `TensorImpl` after that was freed: an ordinary one with data in the computer's own memory.
    pub fn read_freed(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Option<TensorInfo> {
        let (info, _) = self.read_strided(memory, tensor).ok()?;
        let is_ordinary = info.storage.0 != 0 && info.doubt.is_none() && info.dtype.raw.is_none();
        (is_ordinary && info.is_on_cpu() && info.numel() > 0).then_some(info)
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

/// Whether what lies there begins with pointers into the code of one library; `None` where it can't be read.
pub(in crate::framework::torch) fn is_virtual_table(memory: &dyn VirtualMemory, table: VirtAddr) -> Option<bool> {
    let functions: Vec<u64> = Structure::read(memory, table, FUNCTIONS * WORD).words().collect();
    let (first, last) = (*functions.iter().min()?, *functions.iter().max()?);
    Some(first >= USER_POINTER_MIN && last <= USER_POINTER_MAX && last - first < MAX_CODE)
}
