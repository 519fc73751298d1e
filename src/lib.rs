//! tensorcarve recovers neural networks from a dump of a machine's physical memory. It needs no kernel symbols, no
//! profile, no process id, and no knowledge of which Python or PyTorch was running.
//!
//! # Data flow
//!
//! ```text
//!  file ──> dump ──> scan ──────────> paging ────────> cpython ──────> framework ──> model ─────> report
//!  LiME,    physical one pass over    page-table roots interpreters,   PyTorch,      module tree, safetensors,
//!  ELF,     ranges   every 8-byte     found in the     types, objects; NumPy:        names, tied  JSON,
//!  raw      + holes  slot: hits of    dump itself:     each validated  modules, and  and shared   load.py
//!                    all signatures,  address spaces,  through paging  the headers   tensors,
//!                    frame classes    reverse map                      of tensors    their bytes
//! ```
//!
//! A room (module) only uses the rooms to its left, and rooms that hold data: [`signature`], which says what to search
//! for, [`addr`], physical and virtual addresses as types, [`diagnostic`], warnings and problems as data, [`tensor`],
//! and [`model`], which [`framework`] fills. A [`case`] runs all rooms in order, and [`recover`] is its last stage. The
//! command line is a separate crate that only calls this library.
//!
//! [`dump`] detects the format of a file by content, unpacks it if necessary, and maps it: sorted ranges of physical
//! memory with holes between them, read without a copy. A process image (such as a core) has virtual addresses. It is
//! treated as a machine with one address space whose page tables map each address to itself.
//!
//! [`scan`] examines every byte once. It finds candidates for the `type` object, which is its own type, so one of its
//! fields holds its own address. It also classifies every frame by the rules of the MMU: which level of page table
//! could it be?
//!
//! [`paging`] finds the page-table roots. A frame stays a table if its entries point to tables. The remaining roots
//! share a kernel half and map themselves. Each hit is then checked against every address space: if the address that it
//! holds translates to where it was found, it is `type`. The memory of processes that have ended is put together from free
//! frames.
//!
//! [`layout`] is the mechanism by which the following rooms choose the offsets of structures: tables are ranked by the evidence
//! for each, and where none fits, the structures vote, or a table is changed until what it reads makes sense.
//!
//! [`linux`] reads the kernel's own structures without symbols: which processes ran, and what each had mapped.
//!
//! [`cpython`] sweeps the pages of these address spaces for the address of `type`, which finds all types. Of the
//! layouts of all Python versions, the one that reads them best is used. A second sweep finds all objects of the
//! relevant types.
//!
//! [`framework`] has a folder for each framework. PyTorch's recognizes a module by its structure: its type derives from
//! `torch.nn.Module`, and it has the three dictionaries of a module. Modules that no other module holds are models. It reads
//! the headers of tensors, whose layout is selected in the same way as that of Python. NumPy's reads arrays. Headers of
//! tensors that no Python object leads to are found by their signatures.
//!
//! [`model`] is what was found, as data: modules, tensors under their names, optimizers, tensors of no model.
//!
//! [`chain`] puts tensors that no object owns together to layers, by their shapes and the order of their addresses.
//!
//! [`tensor`] has type, shape and strides of a tensor, and gathers its bytes in logical order. Every byte is either
//! from the dump or part of a listed hole; nothing is invented. None of the three knows a framework.
//!
//! [`report`] writes files that PyTorch can load, reports that people can read, and the origin of everything.
//!
//! A dump may also lie elsewhere, in shards: [`dump::open_remote`] reads of it what is looked at, and asks whoever has the shards
//! ([`shard`]) where all of it must be searched.
//!
//! # Example
//!
//! ```
//! use tensorcarve::Case;
//!
//! # let (mut layers, mut is_in_pdb) = (0, false);
//! let case = Case::open("tests/data/cifar10-pdb.lime.zst")?;
//! for process in case.processes()? {
//!     for model in process.models()? {
//!         assert_eq!(model.class(), Some("__main__.SimpleCNN"));
//!         for tensor in model.tensors() {
//!             println!("{} {:?} {} bytes", tensor.name(), tensor.shape(), tensor.bytes()?.len());
//!         }
//!         # let folder = tempfile::tempdir()?;
//!         # let out = folder.path().join("out");
//!         model.save(&out)?;
//!         # assert!(out.join("models/m0/model.safetensors").exists());
//!     }
//!     for python in process.interpreters()? {
//!         for object in python.instances("torch.nn.modules.linear.Linear")? {
//!             let attributes = object.attributes()?;
//!             println!("{attributes:?}");
//!             # assert!(attributes.iter().any(|attribute| attribute.name == "in_features"));
//!             # layers += 1;
//!         }
//!         for thread in python.threads()? {
//!             for frame in thread.frames() {
//!                 println!("{frame}");
//!                 # is_in_pdb |= frame.to_string().ends_with("in Bdb.dispatch_line");
//!             }
//!         }
//!     }
//! }
//! # assert!(layers > 0 && is_in_pdb);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Evidence is hostile
//!
//! Any byte of a dump can have any value. Counts, lengths and pointers are checked before use, arithmetic on them does
//! not overflow, and walks are bounded. Panics, unchecked indexing and undocumented `unsafe` are denied by lints;
//! `unsafe` is in the memory map of the input (`dump/source.rs`), in the handler for unreadable pages
//! (`dump/fault.rs`), in the SIMD code of the scan (`scan/simd/`, `scan/vector*`, `scan/needles/`, `scan/prefetch.rs`,
//! `scan/read.rs`), and in the GPU's staging memory (`scan/gpu/staging.rs`).

#[cfg(test)]
extern crate self as tensorcarve; // what tests/ and the tests here share names the crate

pub mod addr;
pub mod case;
pub mod chain;
pub mod cpython;
pub mod diagnostic;
mod digest;
pub mod dump;
pub mod framework;
mod heap;
pub mod layout;
pub mod linux;
mod mapped;
pub mod model;
pub mod other_pythons;
pub mod paging;
pub mod progress;
pub mod report;
pub mod scan;
pub mod shard;
pub mod signature;
pub mod tensor;
pub mod words;

pub use case::{Case, recover};
