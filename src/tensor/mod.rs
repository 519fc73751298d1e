//! Tensors and arrays as data, whatever framework they are of: type, shape, strides, and their bytes, in which what is
//! not in the dump is a hole.

mod array;
mod dtype;
mod form;
mod gather;
mod header;
mod holes;
mod obstacle;
mod source;
mod stored;
mod values;

pub use array::{ArrayField, ArrayInfo};
pub use dtype::{Raw, ScalarType};
pub use form::{Form, Nested, Quantizer, Sparse};
pub use gather::{Elements, Flips, Jump, TooLarge, gather};
pub use header::{CPU, TensorInfo};
pub use holes::{Hole, Holes, MissingPages};
pub use obstacle::{Obstacle, Shortage};
pub use source::{Source, sources};
pub use stored::Stored;
pub(crate) use values::Values;
