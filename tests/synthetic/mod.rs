//! A machine that is made up, and Python processes with PyTorch models on it: a dump whose truth is
//! known because this code wrote it.
//!
//! [`Machine`] holds frames and page tables, [`Process`] the memory of one process, [`Python`] writes
//! CPython objects by any layout of the signature files, [`Torch`] tensors and modules.
#![allow(dead_code, unused_imports, reason = "every test file uses a part of it")]

mod dict;
mod heap;
mod holders;
mod machine;
mod memory;
pub mod network;
mod numpy;
mod python;
#[path = "../random/mod.rs"]
mod random;
pub mod rewrite;
pub mod script;
mod tensor;
mod torch;

use std::rc::Rc;
use std::sync::LazyLock;

use tensorcarve::dump::Dump;
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::recover::{self, Recovery};
use tensorcarve::scan::Backend;
use tensorcarve::signature::Signatures;

pub use heap::Process;
pub use holders::Makers;
pub use machine::{DirectMap, Machine, Options};
pub use memory::dump_of;
pub use numpy::{Array, Numpy};
pub use python::{Keeping, Python, layout, minor, release};
pub use random::Random;
pub use tensor::{Placed, Tensor, sha256};
pub use torch::{ModuleSpec, Torch};

pub static SIGNATURES: LazyLock<Signatures> = LazyLock::new(|| Signatures::load(None).unwrap());

pub const CPYTHONS: [&str; 18] = [
    "3.6",
    "3.6-trace-refs",
    "3.8",
    "3.8-trace-refs",
    "3.9",
    "3.9-trace-refs",
    "3.10",
    "3.10-trace-refs",
    "3.11",
    "3.11-trace-refs",
    "3.12",
    "3.12-trace-refs",
    "3.13",
    "3.13-free-threaded",
    "3.14",
    "3.14-free-threaded",
    "3.15",
    "3.15-free-threaded",
];
pub const PYTORCHES: [&str; 12] = [
    "1.7",
    "1.7-old-abi",
    "1.8",
    "1.8-old-abi",
    "1.13",
    "1.13-old-abi",
    "2.1",
    "2.1-old-abi",
    "2.6",
    "2.6-old-abi",
    "2.10",
    "2.14",
];

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {
    fn begin(&self, _: Phase, _: u64) {}
    fn advance(&self, _: u64) {}
}

pub fn recover(dump: &Dump) -> Recovery {
    recover_on(dump, Backend::detect_best())
}

pub fn recover_with(dump: &Dump, signatures: &Signatures) -> Recovery {
    recover::recover(dump, signatures, Backend::detect_best(), &Silent).unwrap()
}

pub fn recover_on(dump: &Dump, backend: Backend) -> Recovery {
    recover::recover(dump, &SIGNATURES, backend, &Silent).unwrap()
}

/// A new process with an interpreter and PyTorch, on a machine of its own.
pub fn torch(cpython: &str, pytorch: &str, options: Options) -> Torch {
    let machine = Machine::new(options);
    Torch::new(Python::new(Process::new(&machine), cpython), pytorch)
}

/// The dump of the machine of a process.
pub fn dump(process: &Process) -> Dump {
    Rc::clone(&process.machine).borrow().dump()
}
