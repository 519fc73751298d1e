//! Signatures in a dump.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use tensorcarve::dump::{self, OpenOptions};
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::scan::{self as library, BackendChoice, Keep, Limits};
use tensorcarve::signature::Signatures;

use crate::cli::{Failure, unpacking};
use crate::work::{Meter, run};

/// A place where a signature matches.
#[pyclass(frozen, get_all, module = "tensorcarve")]
pub(crate) struct Hit {
    signature: String,
    address: u64,
    anchor: u64,
    value: u64,
    tested: u16,
    deferred: u16,
    file_offset: Option<u64>,
}

#[pymethods]
impl Hit {
    fn __repr__(&self) -> String {
        format!("<Hit {} at {:#x}>", self.signature, self.address)
    }
}

/// Finds where signatures match, as `tensorcarve scan` does.
#[pyfunction]
#[pyo3(signature = (path, signatures=None, names=Vec::new(), max_hits=5_000_000, progress=None))]
pub(crate) fn scan(
    py: Python<'_>,
    path: PathBuf,
    signatures: Option<PathBuf>,
    names: Vec<String>,
    max_hits: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Hit>> {
    let meter = Arc::new(Meter::new(progress));
    let observer = Arc::clone(&meter);
    run(py, &meter, move || -> Result<_, Failure> {
        let mut signatures = Signatures::load(signatures.as_deref())?;
        if !names.is_empty() {
            signatures = signatures.only(&names)?;
        }
        let memory = dump::open(&path, &OpenOptions::default(), &unpacking(&*observer))?.memory;
        observer.begin(Phase::Scan, memory.size());
        let limits = Limits { per_frame: None, total: Some(max_hits) };
        let backend = BackendChoice::Auto.resolve()?;
        let found = library::scan_within(&memory, &signatures, backend, limits, Keep::Nothing, &|bytes| {
            observer.advance(bytes)
        });
        memory.check()?;
        let hit = |hit: &library::Hit| Hit {
            signature: signatures.name(hit.signature).unwrap_or_default().to_owned(),
            address: hit.address.0,
            anchor: hit.anchor.0,
            value: hit.value,
            tested: hit.tested,
            deferred: hit.deferred,
            file_offset: memory.file_offset(hit.anchor).map(|offset| offset.0),
        };
        Ok(found.hits.iter().map(hit).collect())
    })
}
