//! NumPy: its arrays.

mod array;

pub use array::{ArrayLayout, ArrayReader, ArrayScore, array_layouts, choose_array_layout};
