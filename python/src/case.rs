//! A dump, and the processes in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyList;
use serde::Serialize;
use serde_json::{Value, json};
use tensorcarve::addr::{PhysAddr, VirtAddr};
use tensorcarve::case::{self as library, CaseError, Index, InterpreterFacts, Options};
use tensorcarve::cpython::{HeldObject, ObjectRow, Suspended, Thread};
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::dump::{self, OpenOptions};
use tensorcarve::linux::{Machine, Mapping, command_line_of_image, map_of_image};
use tensorcarve::paging::AddressSpace;
use tensorcarve::report::{self, NewFile};
use tensorcarve::signature::Signatures;

use crate::cli::{Failure, check_output, unpacking};
use crate::error::refuse;
use crate::html;
use crate::model::Model;
use crate::work::{Meter, run};

/// A dump and what is found in it. Each result is computed when it is first asked for, and kept.
#[pyclass(frozen, module = "tensorcarve")]
pub(crate) struct Case {
    path: Arc<Path>,
    case: library::Case,
    meter: Arc<Meter>,
}

/// A process of a dump.
#[pyclass(frozen, module = "tensorcarve")]
pub(crate) struct Process {
    /// Of the dump.
    path: Arc<Path>,
    case: library::Case,
    meter: Arc<Meter>,
    /// Its place among the kernel's processes.
    number: Option<usize>,
    /// Its address space, where there is one.
    space: Option<library::Process>,
    #[pyo3(get)]
    pid: Option<u32>,
    #[pyo3(get)]
    ppid: Option<u32>,
    #[pyo3(get)]
    comm: Option<String>,
    #[pyo3(get)]
    cmdline: Option<Vec<String>>,
}

/// Opens a dump, whose format is detected by its content.
#[pyfunction]
#[pyo3(signature = (path, *, signatures=None, index=true, without_python=false, spool_dir=None, maps=None, files=Vec::new(), progress=None))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn open(
    py: Python<'_>,
    path: PathBuf,
    signatures: Option<PathBuf>,
    index: bool,
    without_python: bool,
    spool_dir: Option<PathBuf>,
    maps: Option<PathBuf>,
    files: Vec<PathBuf>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Case> {
    let meter = Arc::new(Meter::new(progress));
    let (observer, file) = (Arc::clone(&meter), path.clone());
    let case = run(py, &meter, move || -> Result<_, Failure> {
        let signatures = Signatures::load(signatures.as_deref())?;
        dump::catch_unreadable_pages().map_err(Failure::new)?;
        let mut dump = dump::open(&file, &OpenOptions { spool_dir, format: None, maps }, &unpacking(&*observer))?;
        dump.fill(&dump::MappedFiles { files, ..Default::default() })?;
        let index = if index { Index::of_user() } else { None };
        let options = Options { observer, index, without_python, ..Options::default() };
        Ok(library::Case::new(dump, signatures, options))
    })?;
    Ok(Case { path: path.into(), case, meter })
}

#[pymethods]
impl Case {
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    #[getter]
    fn processes(&self, py: Python<'_>) -> PyResult<Vec<Process>> {
        let (path, case, meter) = (Arc::clone(&self.path), self.case.clone(), Arc::clone(&self.meter));
        run(py, &self.meter, move || processes(&path, &case, &meter))
    }

    #[getter]
    fn models(&self, py: Python<'_>) -> PyResult<Vec<Model>> {
        let (case, meter) = (self.case.clone(), Arc::clone(&self.meter));
        run(py, &self.meter, move || models(case.models()?, &meter))
    }

    #[getter]
    fn warnings(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let case = self.case.clone();
        run(py, &self.meter, move || -> Result<_, CaseError> {
            let recovery = case.recovery()?;
            Ok(report::warnings(case.dump(), &recovery).map(Diagnostic::to_string).collect())
        })
    }

    /// A table of "processes", "models" or "tensors" as a pandas.DataFrame.
    #[pyo3(signature = (what="models"))]
    fn to_dataframe<'py>(&self, py: Python<'py>, what: &str) -> PyResult<Bound<'py, PyAny>> {
        let rows = PyList::empty(py);
        match what {
            "processes" => self.processes(py)?.iter().try_for_each(|process| rows.append(process.row(py)?))?,
            "models" => self.models(py)?.iter().try_for_each(|model| rows.append(model.row(py)?))?,
            "tensors" => self.models(py)?.iter().try_for_each(|model| model.add_tensor_rows(py, &rows))?,
            _ => return Err(refuse(py, format!("there is no table {what:?}"), "use processes, models or tensors")),
        }
        py.import("pandas")?.call_method1("DataFrame", (rows,))
    }

    fn __repr__(&self) -> String {
        let dump = self.case.dump();
        format!("<Case {} ({}, {})>", self.path.display(), dump.format, report::human_bytes(dump.memory.size()))
    }

    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let models = self.models(py)?;
        Ok(html::table(&Model::HEADINGS, models.iter().map(Model::cells)))
    }
}

/// The processes that are no threads of the kernel. Where the kernel's records can't be read, the address spaces of processes.
fn processes(path: &Arc<Path>, case: &library::Case, meter: &Arc<Meter>) -> Result<Vec<Process>, CaseError> {
    let empty = || Process {
        path: Arc::clone(path),
        case: case.clone(),
        meter: Arc::clone(meter),
        number: None,
        space: None,
        pid: None,
        ppid: None,
        comm: None,
        cmdline: None,
    };
    let spaces = case.processes()?;
    let of_space = |space: library::Process| Process { space: Some(space), ..empty() };
    if let Some(image) = case.dump().addresses.process() {
        let cmdline = command_line_of_image(&AddressSpace::of_image(&case.spaces()?.memory), image);
        let of_image = |process| Process {
            pid: image.pid,
            ppid: image.ppid,
            comm: image.comm.clone(),
            cmdline: cmdline.clone(),
            ..process
        };
        return Ok(spaces.into_iter().map(of_space).map(of_image).collect());
    }
    let linux = case.linux()?;
    let Ok(machine) = linux.as_ref() else { return Ok(spaces.into_iter().map(of_space).collect()) };
    let all = case.spaces()?;
    let of_pid = |space: &library::Process| Some(all.process_of(machine, space.root()?)?.pid());
    let of_process = |(number, process): (usize, &tensorcarve::linux::Process)| Process {
        number: Some(number),
        space: spaces.iter().find(|space| of_pid(space) == Some(process.pid())).cloned(),
        pid: Some(process.pid()),
        ppid: process.ppid.as_ref().map(|fact| fact.value),
        comm: Some(process.comm().to_owned()),
        cmdline: machine.command_line(process),
        ..empty()
    };
    let with_task = machine.processes().iter().enumerate().filter(|(_, process)| !process.leader.is_kernel);
    let without_task = spaces.iter().filter(|space| of_pid(space).is_none()).cloned();
    Ok(with_task.map(of_process).chain(without_task.map(of_space)).collect())
}

fn models(models: Vec<library::Model>, meter: &Arc<Meter>) -> Result<Vec<Model>, CaseError> {
    Ok(models.into_iter().map(|model| Model::new(model, Arc::clone(meter))).collect())
}

/// What `stack` gives.
#[derive(Serialize)]
struct Stack {
    threads: Vec<Thread>,
    suspended: Vec<Suspended>,
}

/// What `objects` gives of one.
#[derive(Serialize)]
struct Described {
    #[serde(flatten)]
    object: ObjectRow,
    attributes: Vec<HeldObject>,
}

impl Process {
    /// What the facts say of the Python in it.
    fn facts(&self, py: Python<'_>) -> PyResult<Option<InterpreterFacts>> {
        let Some(space) = self.space.clone() else { return Ok(None) };
        run(py, &self.meter, move || -> Result<_, CaseError> {
            let facts = space.case().python_facts()?;
            let is_here = |facts: &&InterpreterFacts| match space.root() {
                Some(root) => facts.roots.contains(&root),
                None => true,
            };
            Ok(facts.interpreters.iter().find(is_here).cloned())
        })
    }

    fn row<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let facts = self.facts(py)?;
        let row = json!({
            "pid": self.pid,
            "ppid": self.ppid,
            "comm": self.comm,
            "cmdline": self.cmdline,
            "root": self.root(),
            "python": facts.as_ref().and_then(|facts| facts.version.clone()),
            "models": facts.map_or(0, |facts| facts.models),
        });
        Ok(pythonize::pythonize(py, &row)?)
    }

    fn described(&self) -> String {
        match (self.pid, self.root()) {
            (Some(pid), _) => format!("{pid}"),
            (None, Some(root)) => format!("with the root {root:#x}"),
            (None, None) => "of unknown id".to_owned(),
        }
    }

    /// Its interpreters' answers to a question, on a thread of the work.
    fn ask<T: Send + 'static>(
        &self,
        py: Python<'_>,
        ask: impl Fn(&library::Python) -> Result<Vec<T>, CaseError> + Send + 'static,
    ) -> PyResult<Vec<T>> {
        let Some(space) = self.space.clone() else { return Ok(Vec::new()) };
        run(py, &self.meter, move || -> Result<_, CaseError> {
            let answers: Result<Vec<Vec<T>>, CaseError> = space.interpreters()?.iter().map(&ask).collect();
            Ok(answers?.into_iter().flatten().collect())
        })
    }
}

#[pymethods]
impl Process {
    #[getter]
    fn root(&self) -> Option<u64> {
        self.space.as_ref().and_then(library::Process::root).map(|root| root.0)
    }

    #[getter]
    fn python(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.facts(py)?.and_then(|facts| facts.version))
    }

    #[getter]
    fn models(&self, py: Python<'_>) -> PyResult<Vec<Model>> {
        let (Some(space), meter) = (self.space.clone(), Arc::clone(&self.meter)) else { return Ok(Vec::new()) };
        run(py, &self.meter, move || models(space.models()?, &meter))
    }

    /// The Python threads with their frames, and suspended generators and coroutines, as `tensorcarve stack` prints them.
    #[pyo3(signature = (*, locals=false))]
    fn stack<'py>(&self, py: Python<'py>, locals: bool) -> PyResult<Bound<'py, PyAny>> {
        let stacks = self.ask(py, move |python| {
            let stack = python.with_runtime(|runtime| (runtime.threads(locals), runtime.suspended(locals)))?;
            Ok(stack.into_iter().collect())
        })?;
        let (threads, suspended): (Vec<Vec<Thread>>, Vec<Vec<Suspended>>) = stacks.into_iter().unzip();
        let stack = Stack { threads: threads.concat(), suspended: suspended.concat() };
        Ok(pythonize::pythonize(py, &stack)?)
    }

    /// The Python objects of a type, by its full name or the last part of it, with their attributes.
    fn objects<'py>(&self, py: Python<'py>, type_name: String) -> PyResult<Bound<'py, PyAny>> {
        let objects = self.ask(py, move |python| {
            let described = |object: library::Object| {
                Ok(Described { object: object.data().clone(), attributes: object.attributes()? })
            };
            python.instances(&type_name)?.into_iter().map(described).collect()
        })?;
        Ok(pythonize::pythonize(py, &objects)?)
    }

    /// The memory map, as `tensorcarve maps` prints it.
    fn maps<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (case, number, root) = (self.case.clone(), self.number, self.root());
        let rows = run(py, &self.meter, move || -> Result<_, Failure> {
            let linux = case.linux()?;
            let map = match (linux.as_ref(), root) {
                (Ok(machine), _) if number.is_some() => map_of(machine, number),
                (Ok(machine), Some(root)) => machine.map_of_root(PhysAddr(root)),
                _ if case.dump().addresses.process().is_some() => map_of_image(&case.dump().memory),
                (Err(reason), _) => return Err(Failure::new(reason)),
                (Ok(_), None) => Default::default(),
            };
            Ok(map.mappings.iter().map(mapping).collect::<Vec<Value>>())
        })?;
        Ok(pythonize::pythonize(py, &rows)?)
    }

    /// Writes the process as an ELF core, as `tensorcarve core` does.
    #[pyo3(signature = (path, *, overwrite=false))]
    fn core(&self, py: Python<'_>, path: PathBuf, overwrite: bool) -> PyResult<()> {
        let Some(number) = self.number else {
            return Err(refuse(py, "the kernel's record of this process was not found", "case.processes lists others"));
        };
        let (dump, case) = (Arc::clone(&self.path), self.case.clone());
        run(py, &self.meter, move || -> Result<_, Failure> {
            check_output(&dump, &path)?;
            let linux = case.linux()?;
            let machine = linux.as_ref().as_ref().map_err(Failure::new)?;
            let core = machine.processes().get(number).and_then(|process| machine.core(process));
            let core = core.ok_or_else(|| Failure::new("the process has no memory of its own in the dump"))?;
            let mut file = NewFile::create(&path, overwrite)?;
            file.write(core.size(), |out| core.write(out, &|_| ()))?;
            case.dump().memory.check()?;
            Ok(file.finish()?)
        })
    }

    fn __repr__(&self) -> String {
        format!("<Process {} {}>", self.described(), self.comm.as_deref().unwrap_or("?"))
    }
}

fn map_of(machine: &Machine, number: Option<usize>) -> tensorcarve::linux::MemoryMap {
    let process = number.and_then(|number| machine.processes().get(number));
    process.and_then(|process| machine.map(process)).unwrap_or_default()
}

fn mapping(mapping: &Mapping) -> Value {
    json!({
        "start": mapping.start.0,
        "end": mapping.end.0,
        "permissions": mapping.permissions,
        "offset": mapping.offset,
        "file": mapping.file,
        "resident_bytes": mapping.residency.map(|found| found.resident),
        "swapped_bytes": mapping.residency.map(|found| found.swapped),
        "missing_bytes": mapping.residency.map(|found| found.missing),
        "source": mapping.source,
        "record": mapping.record.map(|VirtAddr(at)| at),
    })
}
