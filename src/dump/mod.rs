//! The dump file: which container it is, what physical ranges it holds.

mod memory;

pub use memory::{MemoryRange, PhysicalMemory, RangeError};
