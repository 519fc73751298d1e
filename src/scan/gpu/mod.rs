//! The scan on a GPU.

mod adapter;

pub use adapter::{ADAPTER_VARIABLE, AdapterInfo, AdapterKind, adapters};
