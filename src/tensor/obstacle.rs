//! Why the bytes of a tensor are not its elements, or may not be.

use std::fmt;

use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};

/// Why the bytes of a tensor are not its elements, or may not be, even if all bytes are there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// It is a nested tensor whose elements are in other tensors.
    #[error("it is a nested tensor (torch.jagged): its values and offsets are in other tensors that it refers to")]
    Jagged,
    /// Its storage has no bytes.
    #[error(
        "its storage was freed or resized to 0 bytes: its elements are kept elsewhere (FSDP and similar libraries do \
         this)"
    )]
    FreedStorage,
    /// Its storage has fewer bytes than its elements.
    #[error("its storage is too small for its elements: {0}")]
    ShortStorage(Shortage),
    /// Its dispatch keys can't be read.
    #[error("its dispatch keys are not in the dump, so its bytes may mean something else")]
    UnreadableKeys,
    /// It has dispatch keys that could mean anything.
    #[error("its dispatch keys {} are not understood, so its bytes may mean something else", .0.join(", "))]
    UnknownKeys(Vec<String>),
    /// Its class handles it in Python, and it has no elements of its own.
    #[error(
        "its class handles it in Python (`__torch_dispatch__`): its elements are in other tensors that it refers to"
    )]
    PythonDispatch,
    /// Its dispatch keys are those of another form.
    #[error(
        "its dispatch keys {} do not match the form in which its elements were found ({form})", keys.join(", ")
    )]
    OtherForm {
        /// The keys that an ordinary tensor does not have.
        keys: Vec<String>,
        /// The name of the form in which it was read.
        form: &'static str,
    },
    /// It is a conjugate or a negative of its bytes, and how to negate its type is unknown.
    #[error("it is a lazy conjugate or negative view, which is not supported for the type {0}")]
    LazyView(String),
}

/// The bytes that the elements of a tensor need, and those that its storage has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub(super) shape: Vec<u64>,
    pub(super) stride: Vec<u64>,
    pub(super) storage_offset: u64,
    pub(super) storage_bytes: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, stride, storage_offset, storage_bytes } = self;
        write!(
            f,
            "sizes {shape:?}, strides {stride:?}, storage offset {storage_offset}, {storage_bytes} bytes of storage"
        )
    }
}

impl Obstacle {
    fn code(&self) -> Code {
        match self {
            Self::Jagged | Self::PythonDispatch => Code::ElementsElsewhere,
            Self::FreedStorage | Self::ShortStorage(_) => Code::ShortStorage,
            Self::UnreadableKeys | Self::UnknownKeys(_) | Self::OtherForm { .. } | Self::LazyView(_) => {
                Code::DispatchKeys
            }
        }
    }

    /// The same as a problem of the tensor with that header.
    pub fn diagnostic(&self, header: VirtAddr) -> Diagnostic {
        Diagnostic::new(self.code(), Some(header.into()), self.to_string())
    }
}
