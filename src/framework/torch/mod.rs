//! PyTorch: its tensors.

mod tensor;

pub use tensor::{
    DtypeAt, KeyTable, Layout, Offsets, Sample, ShapeAt, SizesAndStrides, TensorError, TensorScore, choose, key_tables,
    layouts,
};
