//! A case: a dump, what to search for in it, and the results. Each stage is computed once, on first use.
//!
//! ```text
//!  Dump ──> Spaces ──┬─> Machine ──┬─> Recovery
//!                    └─> Pythons ──┘
//! ```

mod handles;
mod index;
mod pythons;
mod spaces;
mod stage;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::{self, Interpreter};
use crate::dump::{self, Dump, DumpError};
use crate::linux::{self, Machine, NoMachine};
use crate::progress::{Observer, Phase, Silent};
use crate::recover::{self, Recovery};
use crate::scan::{self, BackendChoice, BackendError, Choice};
use crate::signature::{SignatureError, Signatures};
use crate::tensor;

pub use handles::{BytesError, Model, Process, Python, Tensor};
use index::Identity;
pub use index::Index;
pub use pythons::Pythons;
pub use spaces::Spaces;
use stage::Stage;

/// A dump and the results of its analysis. Clones share the results.
#[derive(Clone)]
pub struct Case(Arc<Inner>);

struct Inner {
    dump: Dump,
    signatures: Signatures,
    options: Options,
    /// What the index could not do.
    notes: Mutex<Vec<String>>,
    choice: Stage<Choice>,
    spaces: Stage<Spaces>,
    linux: Stage<Result<Machine, NoMachine>>,
    pythons: Stage<Pythons>,
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
}

impl Default for Options {
    fn default() -> Self {
        Self { backend: BackendChoice::Auto, observer: Arc::new(Silent), index: None }
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
        let (notes, choice, spaces, linux, pythons, recovery) = Default::default();
        Self(Arc::new(Inner { dump, signatures, options, notes, choice, spaces, linux, pythons, recovery }))
    }

    /// What a user should know of the index, in words: results do not depend on it.
    pub fn notes(&self) -> Vec<String> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: String) {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
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
    pub fn backend(&self) -> Result<Arc<Choice>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.choice.get(|| Ok(scan::choose(&dump.memory, signatures, options.backend)?))
    }

    /// The address spaces, found in one pass over the dump.
    ///
    /// # Errors
    /// The signatures lack required entries, or the dump can no longer be read.
    pub fn spaces(&self) -> Result<Arc<Spaces>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.spaces.get(|| {
            let indexed = options.index.as_ref().map(|index| (index, Identity::of(dump, signatures)));
            if let Some((index, identity)) = indexed {
                match index.load(identity) {
                    Ok(kept) => {
                        if let Some(spaces) = kept.and_then(|kept| Spaces::from_kept(kept, dump, signatures)) {
                            spaces.memory.check()?;
                            return Ok(spaces);
                        }
                    }
                    Err(note) => self.note(note),
                }
            }
            let spaces = Spaces::find(dump, signatures, self.backend()?.backend, &*options.observer)?;
            if let Some((index, identity)) = indexed
                && let Some(kept) = spaces.to_kept()
                && let Err(error) = index.store(identity, &kept)
            {
                self.note(format!("the index could not be written ({error}); see --index"));
            }
            Ok(spaces)
        })
    }

    /// The Linux machine, or why the dump is not read as that of one.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn linux(&self) -> Result<Arc<Result<Machine, NoMachine>>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.linux.get(|| {
            if dump.addresses.process().is_some() {
                return Ok(Err(NoMachine::ProcessImage));
            }
            let (spaces, backend) = (self.spaces()?, self.backend()?.backend);
            options.observer.begin(Phase::Linux, 0);
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
            let backend = self.backend()?.backend;
            Pythons::find(&*self.spaces()?, signatures, backend, recover::wanted_types, &*options.observer)
        })
    }

    /// The interpreters with the instances of the types that `wanted` picks, instead of those that models are made of. They
    /// are not kept.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn pythons_with(
        &self,
        wanted: impl Fn(&Interpreter) -> BTreeSet<VirtAddr> + Sync,
    ) -> Result<Pythons, CaseError> {
        let Inner { signatures, options, .. } = &*self.0;
        let (spaces, backend) = (self.spaces()?, self.backend()?.backend);
        Pythons::find(&spaces, signatures, backend, wanted, &*options.observer)
    }

    /// The processes with Python, and their models.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn recovery(&self) -> Result<Arc<Recovery>, CaseError> {
        let Inner { dump, signatures, options, .. } = &*self.0;
        self.0.recovery.get(|| {
            let (spaces, linux, pythons) = (self.spaces()?, self.linux()?, self.pythons()?);
            let machine = linux.as_ref().as_ref().ok();
            recover::models(dump, signatures, (&spaces, machine, &pythons), &*options.observer)
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
    PythonLayout(#[from] cpython::MissingField),
    /// A PyTorch layout lacks a number or a table.
    #[error(transparent)]
    TorchLayout(#[from] tensor::LayoutError),
    /// The file of the dump changed, or a part of it could not be read.
    #[error(transparent)]
    Input(#[from] DumpError),
}
