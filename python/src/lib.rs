//! The Python package of tensorcarve: its classes, on the library's [`tensorcarve::Case`], and its command.
//!
//! Long work runs on a thread of its own without Python's lock (`work`), so that Ctrl-C and progress work meanwhile. Names are
//! documented in `tensorcarve/_tensorcarve.pyi`, which editors read.

mod array;
mod case;
#[path = "../../src/cli/mod.rs"]
mod cli;
mod error;
mod html;
mod model;
mod remote;
mod scan;
mod work;

use pyo3::pymodule;

/// The native part of the package.
#[pymodule]
mod _tensorcarve {
    use clap::Parser;
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::case::{Case, Process, open};
    #[pymodule_export]
    use super::error::Error;
    #[pymodule_export]
    use super::model::{Model, Tensor};
    #[pymodule_export]
    use super::remote::{Shard, recover_remote};
    #[pymodule_export]
    use super::scan::{Hit, scan};
    use crate::cli;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }

    /// Runs the command `tensorcarve` with these arguments, the first of which is the program's name; its exit code.
    #[pyfunction]
    fn main(py: Python<'_>, arguments: Vec<String>) -> u8 {
        py.detach(|| {
            let arguments = cli::Arguments::parse_from(arguments);
            cli::run(&arguments).map(u8::from).unwrap_or_else(|failure| {
                cli::print_message(&failure.to_string());
                cli::ERROR
            })
        })
    }
}
