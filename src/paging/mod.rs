//! Address spaces, reconstructed from the page tables that lie in the dump, or the one that a process image is.
//!
//! [`discover`] finds the roots without any knowledge of the operating system, [`AddressSpace`]
//! reads through one of them, [`ReverseMap`] goes the other way. [`infer_ranges`] helps where a file lacks the addresses.

mod absent;
mod cached;
mod candidates;
mod data_pages;
mod encryption;
mod freed;
mod page_structs;
mod pages;
mod placement;
mod release;
mod reverse;
mod roots;
mod space;
mod swap_cache;
mod tables;
#[cfg(test)]
mod test_machine;

pub use absent::Gone;
pub use cached::Cached;
pub(crate) use candidates::CandidateTables;
pub use data_pages::DataPages;
pub(crate) use encryption::EncryptionVotes;
pub use encryption::find_spaces;
pub(crate) use freed::PagesByPointers;
pub use freed::{FreedFrames, FreedPages};
pub(crate) use page_structs::{PAGE_STRUCT_SIZE, PickedPages, page_struct_arrays};
pub use pages::Residency;
pub use placement::{Placement, infer_ranges};
pub(crate) use release::Banners;
pub use reverse::{ReverseMap, data_mappings};
pub use roots::{Attempt, Discovery, Pointers, Space, SpaceKind, discover};
pub use space::{AddressSpace, Fault, Mapping, Translation, VirtualMemory};
