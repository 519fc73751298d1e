//! Why an object is not a tensor, as far as a layout tells.

use crate::addr::VirtAddr;
use crate::cpython::ObjectError;
use crate::diagnostic::{Code, Diagnostic};
use crate::paging::Fault;
use crate::tensor::TensorInfo;

/// Why an object is not a tensor, by a layout.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TensorError {
    /// A part could not be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Two fields contradict each other.
    #[error("the tensor at {object} is inconsistent: {contradiction}")]
    Contradiction {
        /// The Python object, or the `TensorImpl` where there is none.
        object: VirtAddr,
        /// Which fields, and how.
        contradiction: Contradiction,
    },
    /// The storage has fewer bytes than the elements need; everything else is consistent.
    #[error("the tensor at {} is inconsistent: {}", .0.object, .0.shortage())]
    Short(Box<TensorInfo>),
}

/// Which fields of a tensor contradict each other, or hold a value without a meaning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The `TensorImpl` of a Python object names another Python object.
    #[error("its TensorImpl belongs to the object at {0}")]
    OtherObject(VirtAddr),
    /// The Python object of a `TensorImpl` does not name it.
    #[error("the Python object of its TensorImpl at {tensor_impl} does not belong to that")]
    NotInObject {
        /// The tensor's own.
        tensor_impl: VirtAddr,
    },
    /// What its `TensorImpl` begins with is no virtual table.
    #[error("its TensorImpl has no virtual table: it was freed or overwritten")]
    NoVirtualTable,
    /// The number of dimensions is beyond PyTorch's limit.
    #[error("it has more dimensions than a tensor can have")]
    Dimensions,
    /// The product of the sizes is not the number of elements.
    #[error("the sizes {sizes:?} do not make {numel} elements")]
    Sizes {
        /// Elements along each dimension.
        sizes: Vec<u64>,
        /// The number of elements that the tensor states.
        numel: u64,
    },
    /// No scalar type has that number.
    #[error("the scalar type {0} is unknown")]
    ScalarType(u64),
    /// No scalar type has that size and name.
    #[error("the scalar type of {size} bytes with the name checksum {checksum} is unknown")]
    DescribedScalarType {
        /// Bytes of an element.
        size: u64,
        /// The checksum of the type's name.
        checksum: i64,
    },
    /// No device type has that number.
    #[error("the device type {0} is unknown")]
    DeviceType(u8),
    /// Tensor and storage are on different devices.
    #[error("its TensorImpl is on the device {tensor_impl}, but its storage is on {storage}")]
    Device {
        /// The type of the device that the `TensorImpl` names.
        tensor_impl: String,
        /// The device that the storage names.
        storage: String,
    },
    /// It has no storage, and this layout does not tell why.
    #[error("it has no storage: it is sparse, or on another device")]
    NoStorage,
    /// Layouts that fit the process equally well read it differently.
    #[error("the layouts {} and {} fit the process equally well, but read it differently", .0[0], .0[1])]
    Undecided([String; 2]),
}

impl From<Fault> for TensorError {
    fn from(fault: Fault) -> Self {
        Self::Object(fault.into())
    }
}

impl From<TensorError> for Diagnostic {
    fn from(error: TensorError) -> Self {
        let (code, address) = match &error {
            TensorError::Object(error) => (Code::UnreadableTensor, error.address()),
            TensorError::Contradiction { object, contradiction: Contradiction::Undecided(_) } => {
                (Code::UndecidedLayout, *object)
            }
            TensorError::Contradiction { object, .. } => (Code::InconsistentTensor, *object),
            TensorError::Short(info) => (Code::ShortStorage, info.header),
        };
        Self::new(code, Some(address.into()), error.to_string())
    }
}
