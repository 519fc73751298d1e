//! PyTorch's tensors: where the headers of each version have their fields, which layout reads those of a process, and
//! what they say.

mod error;
mod form;
mod headers;
mod infer;
mod keys;
mod layout;
mod read;
mod select;
mod shape;

pub use error::{Contradiction, TensorError};
pub(super) use headers::is_virtual_table;
pub use keys::{KeyTable, key_tables};
pub use layout::{DtypeAt, Layout, Offsets, ShapeAt, layouts};
pub use read::SizesAndStrides;
pub(super) use select::fills_its_storage;
pub use select::{Sample, TensorScore, select_layout};
