//! Machine-learning frameworks: one folder each.

pub mod numpy;
mod tables;
pub mod torch;

pub use tables::LayoutError;
