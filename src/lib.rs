//! tensorcarve takes a dump of a machine's physical memory and gives back the neural networks that
//! ran on it: no kernel symbols, no profile, no process id, no idea which Python or PyTorch it was.
//!
//! # The way of the data
//!
//! ```text
//!  file ──> dump ──> scan ──────────> paging ────────> cpython ──────> tensor ─────> model ─────> report
//!  LiME,    physical one pass over    page-table roots interpreters,   TensorImpl,   module tree, safetensors,
//!  ELF,     ranges   every 8-byte     found in the     types, objects; storage,      names,       JSON,
//!  raw      + holes  slot: hits of    dump itself:     each validated  dtype, shape, tied and     load.py
//!                    all signatures,  address spaces,  through paging  stride, bytes shared
//!                    frame classes    reverse map                      and holes     tensors
//! ```
//!
//! A room knows only the rooms to its left, and two that stand beside all: [`signature`], what to
//! look for, as data, and [`addr`], physical and virtual addresses as types. [`recover`] leads
//! through all rooms. The command line sits outside and calls this library only.
//!
//! [`dump`] tells by content what a file is, unpacks it if need be, and maps it: sorted ranges of
//! physical memory with holes between them, read without a copy. The image of one process (a core) has virtual
//! addresses: it is read as a machine would be whose page tables map each address to itself, and that has one space.
//!
//! [`scan`] looks at every byte once. It finds candidates for the one object that all of Python
//! hangs on: `type`, which is its own type, so that one of its fields holds its own address. And it
//! types every frame by the rules of the MMU: which level of page table could this be?
//!
//! [`paging`] lets the frames decide: a table stays if what it points to are tables; the roots that
//! stay share a kernel half, and map themselves. Now every hit can be asked: is there an address
//! space in which the address that you hold leads to where you were found? That is `type`.
//!
//! [`linux`] reads the kernel's own structures without symbols: which processes ran, and what each had mapped.
//!
//! [`cpython`] sweeps the pages of those spaces for `type`'s address: that finds all types. Of the
//! layouts of all Python versions the one wins that can read them. A second sweep finds all
//! objects of the types that matter.
//!
//! [`tensor`] reads PyTorch's headers, whose layout is chosen in the same way, and gathers the bytes
//! in logical order. A byte is from the dump, or it is a hole that is listed; nothing is made up.
//!
//! [`model`] knows a module by what it is: its type derives from `torch.nn.Module`, it has the three
//! dictionaries that make one. Modules that no other holds are models.
//!
//! [`report`] writes what PyTorch can load, what people can read, and where it all came from.
//!
//! # Example
//!
//! ```
//! use tensorcarve::{dump, recover, scan::Backend, signature::Signatures};
//!
//! let dump = dump::open("tests/data/cifar10-pdb.lime.zst".as_ref(), &Default::default(), &|_, _| ())?;
//! let signatures = Signatures::load(None)?;
//! let found = recover::recover(&dump, &signatures, Backend::detect_best(), &recover::Silent)?;
//! let models: Vec<_> = found.processes.iter().flat_map(|process| &process.models).collect();
//! assert_eq!(models[0].class, "__main__.SimpleCNN");
//! assert_eq!(models[0].tensors[0].name, "conv1.weight");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Evidence is hostile
//!
//! Any byte of a dump may be anything. Counts, lengths and pointers are checked before they are
//! used, arithmetic on them does not overflow, walks end. Panics, unchecked indexing and
//! undocumented `unsafe` are denied by lints; `unsafe` is in the map of the input (`dump/source.rs`), in the handler for
//! pages of it that can't be read (`dump/fault.rs`), and in the
//! vectors of the scan with their loads (`scan/simd.rs`, `scan/vector*`, `scan/needles/`).

#[cfg(test)]
extern crate self as tensorcarve; // what tests/ and the tests here share names the crate

pub mod addr;
pub mod cpython;
mod digest;
pub mod dump;
pub mod linux;
mod mapped;
pub mod model;
pub mod other_pythons;
pub mod paging;
pub mod recover;
pub mod report;
pub mod scan;
pub mod signature;
pub mod tensor;
