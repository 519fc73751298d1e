//! PyTorch tensors: their headers, which layout reads them, and their bytes.

mod gather;
mod layout;
mod read;

pub use gather::{Hole, TooLarge, gather};
pub use layout::{Layout, LayoutError, Offsets, ScalarType, layouts};
pub use read::{TensorError, TensorInfo, TensorScore, choose};
