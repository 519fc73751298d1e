//! A case: a dump, what to search for in it, and the results. Each stage is computed once, on first use.
//!
//! ```text
//!  Dump ──> Spaces ──┬─> Machine ──┬─> Recovery
//!                    └─> Pythons ──┘
//! ```

mod facts;
mod handles;
mod headers;
mod index;
mod python;
mod pythons;
pub mod recover;
mod spaces;
mod stage;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::{self, Interpreter, RunningInterpreters, RuntimeLayout};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::{self, Dump, DumpError};
use crate::framework::Frameworks;
use crate::layout::{LayoutError, MissingField};
use crate::linux::{self, Machine, NoMachine};
use crate::progress::{Observer, Phase, Silent};
use crate::scan::{self, BackendChoice, BackendError, SelectedBackend};
use crate::signature::{SignatureError, Signatures};

pub use facts::{InterpreterFacts, PythonFacts};
pub use handles::{BytesError, Model, Process, Tensor};
pub use headers::HeaderComparison;
pub use index::Index;
use index::{Identity, Kept};
pub use python::{Object, Python};
pub use pythons::Pythons;
use recover::Recovery;
pub use spaces::Spaces;
use stage::Stage;

/// A dump and the results of its analysis. Clones share the results.
#[derive(Clone)]
pub struct Case(Arc<Inner>);

struct Inner {
    dump: Dump,
    signatures: Signatures,
    options: Options,
    /// By what the index knows the dump.
    identity: OnceLock<Identity>,
    /// What the index could not do.
    notes: Mutex<Vec<Diagnostic>>,
    backend: Stage<SelectedBackend>,
    spaces: Stage<Spaces>,
    linux: Stage<Result<Machine, NoMachine>>,
    frameworks: Stage<Frameworks>,
    pythons: Stage<Pythons>,
    all_objects: Stage<RunningInterpreters>,
    python_facts: Stage<PythonFacts>,
    recovery: Stage<Recovery>,
}

/// How a case is worked on.
#[derive(Clone)]
pub struct Options {
    /// What searches memory.
    pub backend: BackendChoice,
    /// Is told how long work goes.
    pub observer: Arc<dyn Observer + Send + Sync>,
    /// Where what is learned is kept for the next time, if it is.
    pub index: Option<Index>,
    /// Whether models are looked for by the headers of tensors alone, as if no Python could be read.
    pub without_python: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { backend: BackendChoice::Auto, observer: Arc::new(Silent), index: None, without_python: false }
    }
}

impl Case {
    /// Opens a dump, whose format is detected by content, with the built-in signatures and the fastest backend.
    ///
    /// # Errors
    /// The file can't be read, or is not a dump.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CaseError> {
        let dump = dump::open(path.as_ref(), &dump::OpenOptions::default(), &|_, _| ())?;
        Ok(Self::new(dump, Signatures::load(None)?, Options::default()))
    }

    /// A case of an opened dump.
    pub fn new(dump: Dump, signatures: Signatures, options: Options) -> Self {
        let (identity, notes, backend, spaces, linux, frameworks, pythons, all_objects, python_facts, recovery) =
            Default::default();
        Self(Arc::new(Inner {
            dump,
            signatures,
            options,
            identity,
            notes,
            backend,
            spaces,
            linux,
            frameworks,
            pythons,
            all_objects,
            python_facts,
            recovery,
        }))
    }

    /// What a user should know of the index: results do not depend on it.
    pub fn notes(&self) -> Vec<Diagnostic> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, message: String, hint: Option<String>) {
        let note = Diagnostic { hint, ..Diagnostic::new(Code::IndexUnusable, None, message) };
        let mut notes = self.0.notes.lock().unwrap_or_else(PoisonError::into_inner);
        // Several parts of the index can fail for one reason.
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// The dump.
    pub fn dump(&self) -> &Dump {
        &self.0.dump
    }

    /// The signatures that are searched for.
    pub fn signatures(&self) -> &Signatures {
        &self.0.signatures
    }

    /// The backend that searches it.
    ///
    /// # Errors
    /// This computer lacks what was asked for.
    pub fn backend(&self) -> Result<Arc<SelectedBackend>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.backend.get(|| Ok(scan::select_backend(&dump.memory, signatures, options.backend)?))
    }

    /// The address spaces, found in one pass over the dump.
    ///
    /// # Errors
    /// The signatures lack required entries, or the dump can no longer be read.
    pub fn spaces(&self) -> Result<Arc<Spaces>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.spaces.get(|| {
            if let Some(spaces) = self.load().and_then(|kept| Spaces::from_kept(kept, dump, signatures)) {
                spaces.memory.check()?;
                return Ok(spaces);
            }
            let spaces = Spaces::find(dump, signatures, self.backend()?.backend, &*options.observer)?;
            if options.index.is_some()
                && let Some(kept) = spaces.to_kept()
            {
                self.store(&kept);
            }
            Ok(spaces)
        })
    }

    /// What the index has of a stage; what it can't use is noted.
    fn load<T: Kept>(&self) -> Option<T> {
        let (index, identity) = self.index()?;
        index.load(identity).unwrap_or_else(|note| {
            self.note(note, None);
            None
        })
    }

    /// Keeps the output of a stage in the index, if there is one.
    fn store<T: Kept>(&self, output: &T) {
        if let Some((index, identity)) = self.index()
            && let Err(error) = index.store(identity, output)
        {
            self.note(format!("the index could not be written ({error})"), Some("see --index".to_owned()));
        }
    }

    fn index(&self) -> Option<(&Index, Identity)> {
        let Inner { dump, signatures, options, identity, .. } = &*self.0;
        let identity = || *identity.get_or_init(|| Identity::of(dump, signatures));
        options.index.as_ref().map(|index| (index, identity()))
    }

    /// The Linux machine, or why the dump is not read as that of one.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn linux(&self) -> Result<Arc<Result<Machine, NoMachine>>, CaseError> {
        self.find_linux(&*self.0.options.observer)
    }

    fn find_linux(&self, observer: &dyn Observer) -> Result<Arc<Result<Machine, NoMachine>>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.linux.get(|| {
            if dump.addresses.process().is_some() {
                return Ok(Err(NoMachine::ProcessImage));
            }
            // Memory is swept at most once here, and seldom at all: measuring which backend is the fastest would take longer.
            let (spaces, backend) = (self.spaces()?, options.backend.resolve()?);
            observer.begin(Phase::Linux, 0);
            let btfs: Vec<PhysAddr> =
                spaces.hits_of(signatures, |name| name == linux::BTF_SIGNATURE).map(|hit| hit.address).collect();
            let machine = Machine::find(&spaces.memory, &spaces.mmu, &spaces.discovery, &btfs, backend);
            spaces.memory.check()?;
            Ok(machine)
        })
    }

    /// The Python interpreters.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn pythons(&self) -> Result<Arc<Pythons>, CaseError> {
        let Inner { signatures, options, .. } = &*self.0;
        self.0.pythons.get(|| {
            let (backend, frameworks) = (self.backend()?.backend, self.frameworks()?);
            let wanted = |interpreter: &Interpreter| frameworks.wanted_types(interpreter);
            Pythons::find(&*self.spaces()?, signatures, backend, wanted, &*options.observer)
        })
    }

    /// The frameworks that are read, with the layouts of all their versions.
    fn frameworks(&self) -> Result<Arc<Frameworks>, CaseError> {
        self.0.frameworks.get(|| Ok(Frameworks::new(&self.0.signatures)?))
    }

    /// The interpreters with their running states and the instances of the types that `wanted` picks, and warnings for the
    /// analyst. They are not kept. `wanted` is also given the layouts of running states.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn running_interpreters(
        &self,
        wanted: impl Fn(&Interpreter, &[RuntimeLayout]) -> BTreeSet<VirtAddr> + Sync,
    ) -> Result<(RunningInterpreters, Vec<Diagnostic>), CaseError> {
        let Inner { signatures, options, .. } = &*self.0;
        let (spaces, backend) = (self.spaces()?, self.backend()?.backend);
        let tables = cpython::runtime_layouts(signatures)?;
        let wanted = |interpreter: &Interpreter| wanted(interpreter, &tables);
        let Pythons { interpreters, sweeper, warnings, .. } =
            Pythons::find(&spaces, signatures, backend, wanted, &*options.observer)?;
        let running = RunningInterpreters::find(interpreters, &sweeper, tables);
        spaces.memory.check()?;
        Ok((running, warnings))
    }

    /// The interpreters with their running states and the instances of all types.
    pub(crate) fn all_objects(&self) -> Result<Arc<RunningInterpreters>, CaseError> {
        let running = || self.running_interpreters(|interpreter, _| cpython::all_types(interpreter));
        self.0.all_objects.get(|| Ok(running()?.0))
    }

    /// Which Python runs in each process, with which frameworks and how many models. The bytes of tensors are not read.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn python_facts(&self) -> Result<Arc<PythonFacts>, CaseError> {
        self.0.python_facts.get(|| {
            if let Some(kept) = self.load() {
                return Ok(kept);
            }
            let (spaces, pythons) = (self.spaces()?, self.pythons()?);
            let processes = recover::processes(&*self.frameworks()?, &pythons);
            spaces.memory.check()?;
            Ok(self.keep_facts(&spaces, &processes, &pythons))
        })
    }

    fn keep_facts(&self, spaces: &Spaces, processes: &[recover::Process], pythons: &Pythons) -> PythonFacts {
        let facts = PythonFacts::new(spaces, processes, &pythons.others, &pythons.warnings);
        self.store(&facts);
        facts
    }

    /// The processes with Python, and their models.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn recovery(&self) -> Result<Arc<Recovery>, CaseError> {
        let Inner { dump, signatures, options, python_facts, .. } = &*self.0;
        self.0.recovery.get(|| {
            // What both need comes first, so that neither waits for the other.
            let (spaces, backend, frameworks) = (self.spaces()?, self.backend()?.backend, self.frameworks()?);
            let pythons = || (!options.without_python).then(|| self.pythons()).transpose();
            let (linux, pythons) = rayon::join(|| self.find_linux(&Silent), pythons);
            let (linux, pythons) = (linux?, pythons?);
            let stages = (&*spaces, linux.as_ref().as_ref().ok(), pythons.as_deref());
            let recovery = recover::models(dump, signatures, &frameworks, stages, backend, &*options.observer)?;
            if let Some(pythons) = &pythons {
                python_facts.get(|| Ok::<_, CaseError>(self.keep_facts(&spaces, &recovery.processes, pythons)))?;
            }
            Ok(recovery)
        })
    }
}

/// Why a dump could not be opened or searched.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// No rules of page tables.
    #[error("the signatures have no [mmu] section, which is needed to read page tables")]
    NoMmu,
    /// No signature of the interpreter.
    #[error("the signatures have no structure {}, which is needed to find interpreters", pythons::TYPE_SIGNATURE)]
    NoTypeSignature,
    /// The signatures can't be read.
    #[error(transparent)]
    Signatures(#[from] SignatureError),
    /// This computer lacks the backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A CPython layout lacks a number.
    #[error(transparent)]
    PythonLayout(#[from] MissingField),
    /// The layout of a framework lacks a number or a table.
    #[error(transparent)]
    FrameworkLayout(#[from] LayoutError),
    /// The file of the dump changed, or a part of it could not be read.
    #[error(transparent)]
    Input(#[from] DumpError),
}
