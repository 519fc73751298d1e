//! A dump that lies elsewhere: where its workers are is Python's business, and what they answer is the library's.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator};
use tensorcarve::case::{Case, Options};
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::dump::{self, Format, OpenOptions, Remote, RemoteOptions, ShardQuestion};
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::report::{self, Division, FileHash, OutputFolder, Run};
use tensorcarve::shard;
use tensorcarve::signature::Signatures;

use crate::cli::Failure;
use crate::error::{raise, refuse};
use crate::work::{Meter, run};

/// A part of a dump in the memory of a worker.
#[pyclass(frozen, module = "tensorcarve")]
pub(crate) struct Shard(shard::Shard);

#[pymethods]
impl Shard {
    /// The part of `size` bytes that begins at the offset `first` in the dump; `pieces` gives the bytes, one piece after another.
    #[new]
    fn new(pieces: &Bound<'_, PyIterator>, first: u64, size: usize) -> PyResult<Self> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(|error| refuse(pieces.py(), error, "use smaller shards"))?;
        for piece in pieces.clone() {
            bytes.extend_from_slice(piece?.cast::<PyBytes>()?.as_bytes());
        }
        if bytes.len() != size {
            let message = format!("at offset {first:#x}, {size} bytes were asked for and {} came", bytes.len());
            return Err(refuse(pieces.py(), message, "check that the dump is complete"));
        }
        Ok(Self(shard::Shard::new(bytes, first)))
    }

    /// The part from `start` to `end` of a dump that is a file here.
    #[staticmethod]
    fn of_file(py: Python<'_>, path: PathBuf, start: u64, end: u64) -> PyResult<Self> {
        dump::catch_unreadable_pages().map_err(|error| raise(py, Failure::new(error)))?;
        shard::Shard::of_file(&path, start..end).map(Self).map_err(|error| raise(py, error))
    }

    /// The answer to a question about the part.
    fn answer<'py>(&self, py: Python<'py>, question: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let question = question.to_vec();
        let answer = py.detach(|| self.0.answer(&question));
        answer.map(|answer| PyBytes::new(py, &answer)).map_err(|reason| raise(py, Failure::new(reason)))
    }
}

/// Who has the dump, as an object of Python. `read(parts)` gives a list of bytes. `ask(questions)` gives tuples, in any order: index
/// of the question, answer, name of the worker, bytes of the dump that it read for it, and how often it was asked before. `is_far` says
/// whether the workers are nearer than the dump.
struct PythonRemote {
    object: Py<PyAny>,
    division: Mutex<Division>,
}

impl PythonRemote {
    fn count(&self, count: impl FnOnce(&mut Division)) {
        count(&mut self.division.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Remote for PythonRemote {
    fn read(&self, parts: &[Range<u64>]) -> Result<Vec<Vec<u8>>, String> {
        Python::attach(|py| {
            let parts: Vec<(u64, u64)> = parts.iter().map(|part| (part.start, part.end)).collect();
            let read: Vec<Bound<'_, PyBytes>> = self.object.call_method1(py, "read", (parts,))?.extract(py)?;
            let read: Vec<Vec<u8>> = read.iter().map(|bytes| bytes.as_bytes().to_vec()).collect();
            self.count(|division| division.bytes_read += read.iter().map(|bytes| bytes.len() as u64).sum::<u64>());
            Ok(read)
        })
        .map_err(in_words)
    }

    fn is_far(&self) -> bool {
        Python::attach(|py| self.object.getattr(py, "is_far")?.is_truthy(py)).unwrap_or(false)
    }

    fn ask(&self, questions: Vec<ShardQuestion>, answered: &(dyn Fn(usize) + Sync)) -> Result<Vec<Vec<u8>>, String> {
        Python::attach(|py| {
            let mut answers: Vec<Option<Vec<u8>>> = vec![None; questions.len()];
            let to_python = |asked: ShardQuestion| {
                (asked.name, asked.part.start, asked.part.end, PyBytes::new(py, &asked.question))
            };
            let questions: Vec<_> = questions.into_iter().map(to_python).collect();
            for item in self.object.bind(py).call_method1("ask", (questions,))?.try_iter()? {
                let (index, answer, worker, read, repeated): (usize, Bound<'_, PyBytes>, String, u64, u64) =
                    item?.extract()?;
                self.count(|division| {
                    let share = division.workers.entry(worker).or_default();
                    share.answers += 1;
                    share.bytes_read += read;
                    division.repeated += repeated;
                    division.bytes_answered += answer.as_bytes().len() as u64;
                });
                if let Some(slot) = answers.get_mut(index) {
                    *slot = Some(answer.as_bytes().to_vec());
                    answered(index);
                }
            }
            Ok(answers.into_iter().flatten().collect())
        })
        .map_err(in_words)
    }
}

/// An exception of Python as a message.
fn in_words(error: PyErr) -> String {
    Python::attach(|py| {
        let kind = error.get_type(py).to_string();
        match error.value(py).to_string() {
            text if text.is_empty() => kind,
            text => text,
        }
    })
}

/// How a dump that lies elsewhere is to be recovered.
struct Request {
    name: PathBuf,
    size: u64,
    out: PathBuf,
    overwrite: bool,
    hashed: bool,
    signatures: Option<PathBuf>,
    options: RemoteOptions,
    arguments: Vec<String>,
}

/// What came of it.
struct Done {
    models: usize,
    is_whole: bool,
    warnings: Vec<String>,
    division: Division,
}

impl Request {
    fn work(self, remote: Arc<PythonRemote>, meter: Arc<Meter>) -> Result<Done, Failure> {
        let started = SystemTime::now();
        let signatures = Signatures::load(self.signatures.as_deref())?;
        let folder = OutputFolder::create(&self.out, self.overwrite)?;
        let elsewhere = Arc::clone(&remote) as Arc<dyn Remote>;
        let dump = dump::open_remote(elsewhere, &self.name, self.size, &self.options)?;
        let options = Options { observer: Arc::clone(&meter) as Arc<dyn Observer + Send + Sync>, ..Options::default() };
        let case = Case::new(dump, signatures, options);
        let (backend, recovery) = (case.backend()?, case.recovery()?);
        let division = || {
            let mut division = Division::default();
            remote.count(|counted| division = counted.clone());
            division.shard_size = case.dump().memory.remote().map_or(0, |memory| memory.shard_size());
            division
        };
        report::write(folder, case.dump(), &recovery, &*meter, || {
            let (hashes, warnings) = self.hashes(&case, &*meter);
            Run {
                arguments: self.arguments.clone(),
                backend: backend.backend.to_string(),
                backend_reason: backend.reason.clone(),
                warnings,
                threads: rayon::current_num_threads(),
                input: self.name.clone(),
                hashes,
                started,
                phases: meter.times(),
                division: Some(division()),
            }
        })?;
        Ok(Done {
            models: recovery.processes.iter().map(|process| process.models.len()).sum(),
            is_whole: report::is_whole(&recovery) && !case.dump().damaged,
            warnings: report::warnings(case.dump(), &recovery).map(Diagnostic::to_string).collect(),
            division: division(),
        })
    }

    /// The hashes of the dump, or why there are none.
    fn hashes(&self, case: &Case, observer: &dyn Observer) -> (Vec<FileHash>, Vec<Diagnostic>) {
        let Some(memory) = case.dump().memory.remote().filter(|_| self.hashed) else { return Default::default() };
        observer.begin(Phase::Hash, self.size);
        match memory.blake3(&|bytes| observer.advance(bytes)) {
            Ok(hash) => {
                let digest = Some(hash.to_hex().to_string());
                (vec![FileHash { algorithm: "blake3", digest, pieces: Vec::new() }], Vec::new())
            }
            Err(reason) => {
                let message = format!("the hash of the dump could not be computed: {reason}");
                (Vec::new(), vec![Diagnostic::new(Code::NoFileHash, None, message)])
            }
        }
    }
}

/// Recovers the models of a dump that lies elsewhere, as `tensorcarve recover` does: how it went, as a dictionary.
#[pyfunction]
#[pyo3(signature = (remote, name, size, out, *, shard, overwrite, hashed, signatures, format, spool_dir, arguments, progress))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn recover_remote<'py>(
    py: Python<'py>,
    remote: Py<PyAny>,
    name: PathBuf,
    size: u64,
    out: PathBuf,
    shard: u64,
    overwrite: bool,
    hashed: bool,
    signatures: Option<PathBuf>,
    format: Option<&str>,
    spool_dir: Option<PathBuf>,
    arguments: Vec<String>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let format = match format {
        None => None,
        Some("raw") => Some(Format::Raw),
        Some("lime") => Some(Format::Lime),
        Some("elf") => Some(Format::Elf),
        Some(other) => return Err(refuse(py, format!("there is no format {other:?}"), "use raw, lime or elf")),
    };
    let options = RemoteOptions { open: OpenOptions { spool_dir, format, maps: None }, shard };
    let request = Request { name, size, out, overwrite, hashed, signatures, options, arguments };
    let remote = Arc::new(PythonRemote { object: remote, division: Mutex::default() });
    let meter = Arc::new(Meter::new(progress));
    let observer = Arc::clone(&meter);
    let Done { models, is_whole, warnings, division } = run(py, &meter, move || request.work(remote, observer))?;
    let status = match (models, is_whole) {
        (0, _) => "nothing",
        (_, true) => "found",
        (_, false) => "partial",
    };
    let summary = PyDict::new(py);
    summary.set_item("status", status)?;
    summary.set_item("models", models)?;
    summary.set_item("warnings", warnings)?;
    summary.set_item("division", pythonize::pythonize(py, &division)?)?;
    Ok(summary)
}
