//! PyTorch tensors: their headers, which layout reads them, and their bytes.

mod choose;
mod gather;
mod infer;
mod layout;
mod read;
mod shape;
mod vote;

pub use choose::{Moved, TensorScore, choose};
pub use gather::{Hole, TooLarge, gather};
pub use layout::{DtypeAt, Layout, LayoutError, Offsets, ScalarType, ShapeAt, layouts};
pub use read::{SizesAndStrides, TensorError, TensorInfo};
