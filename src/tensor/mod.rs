//! PyTorch tensors: their headers, which layout reads them, and their bytes.

mod array;
mod form;
mod gather;
mod layout;
mod read;

pub use array::{ArrayField, ArrayInfo, ArrayLayout, ArrayScore, array_layouts, choose_array_layout};
pub use form::{Form, Quantizer, Sparse};
pub use gather::{Elements, Hole, TooLarge, gather};
pub use layout::{Layout, LayoutError, Offsets, Raw, ScalarType, layouts};
pub use read::{TensorError, TensorInfo, TensorScore, choose};
