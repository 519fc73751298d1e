//! PyTorch tensors: their headers, which layout reads them, and their bytes.

mod array;
mod choose;
mod form;
mod gather;
mod headers;
mod holes;
mod infer;
mod keys;
mod layout;
mod read;
mod shape;
mod source;
mod stored;
mod vote;

pub use array::{ArrayField, ArrayInfo, ArrayLayout, ArrayReader, ArrayScore, array_layouts, choose_array_layout};
pub use choose::{Sample, TensorScore, choose};
pub use form::{Form, Nested, Quantizer, Sparse};
pub use gather::{Elements, Flips, Jump, TooLarge, gather};
pub use holes::{Hole, Holes, MissingPages};
pub use keys::{KeyTable, Keys, key_tables};
pub use layout::{DtypeAt, Layout, LayoutError, Offsets, Raw, ScalarType, ShapeAt, layouts};
pub use read::{SizesAndStrides, TensorError, TensorInfo};
pub use source::{Source, sources};
pub use stored::Stored;
