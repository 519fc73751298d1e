//! Address spaces, reconstructed from the page tables that lie in the dump.
//!
//! [`discover`] finds the roots without any knowledge of the operating system, [`AddressSpace`]
//! reads through one of them, [`ReverseMap`] goes the other way.

mod reverse;
mod roots;
mod space;

pub use reverse::ReverseMap;
pub use roots::{Attempt, Discovery, Space, SpaceKind, discover};
pub use space::{AddressSpace, Fault, Mapping, Translation, VirtualMemory};
