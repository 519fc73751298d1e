//! Neural networks as data, whatever framework they are of: modules, parameters and buffers under their names, what
//! training left, and the tensors that belong to no model.

mod chain;
mod described;
mod fair;
mod inner;
mod moved;
mod optimizer;
mod reading;
mod referrer;
mod standalone;

use serde::Serialize;

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::Value;
use crate::diagnostic::{Code, Diagnostic};
use crate::tensor::{Elements, Holes, Source, TensorInfo};

pub use chain::{ChainAlternative, ChainChange, ChainFacts, ChainLayer, ChainLink};
pub use described::{Described, Named, Omission};
pub(crate) use fair::share;
pub(crate) use inner::is_wrapper;
pub use inner::{Elsewhere, Inner};
pub(crate) use moved::find_moved;
pub use optimizer::{Optimizer, ParamGroup};
pub(crate) use reading::left_out;
pub use reading::{Reading, limit, limit_models};
pub use referrer::Referrer;
pub use standalone::{StandaloneTensor, StandaloneTensors};

/// A neural network.
#[derive(Clone, Debug)]
pub struct Model {
    /// `m0`, `m1`, … in the order of the report; also the folder's name.
    pub id: String,
    /// `__module__.__qualname__` of the root module's class; `None` for a module of C++, whose class memory
    /// does not name, and for a chain, which has no module.
    pub class: Option<String>,
    /// The root module, or the header of a chain's first tensor.
    pub object: VirtAddr,
    /// For a chain, what speaks for it.
    pub chain: Option<ChainFacts>,
    /// Every address space in which these very tensors were found: more than one after a fork.
    pub sightings: Vec<Sighting>,
    /// The root (its name is empty) and all modules below, in the order of
    /// `named_modules(remove_duplicate=False)`: a module that stands in several places is listed at each.
    pub modules: Vec<Module>,
    /// What `state_dict()` lists, in its order, and the buffers that it leaves out.
    pub tensors: Vec<NamedTensor>,
    /// What training left: gradients under the parameter's name, and the optimizers' tensors under `<parameter>.<key>`.
    pub training: Vec<NamedTensor>,
    /// The optimizers that hold some of its parameters.
    pub optimizers: Vec<Optimizer>,
    /// Parts of the model that could not be read.
    pub problems: Vec<Diagnostic>,
}

/// What makes a model one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelKind {
    /// A module, which no other module holds.
    Module,
    /// Tensors that fit one after another: a conjecture.
    Chain,
}

impl Model {
    /// What makes it a model.
    pub fn kind(&self) -> ModelKind {
        if self.chain.is_some() { ModelKind::Chain } else { ModelKind::Module }
    }

    /// All tensors: those of the modules, and those that training left.
    pub fn all_tensors(&self) -> impl Iterator<Item = &NamedTensor> {
        self.tensors.iter().chain(&self.training)
    }

    /// Whether this is a frozen script module whose tensors are those of `constants`, a model of the same class.
    pub(crate) fn lacks_constants(&self, constants: &Self) -> bool {
        let is_frozen = |problem: &Diagnostic| problem.code == Code::FrozenModule;
        self.class == constants.class && self.tensors.is_empty() && self.problems.iter().any(is_frozen)
    }

    /// Takes the tensors of `constants`.
    pub(crate) fn take_constants(&mut self, constants: Self) {
        self.problems.retain(|problem| problem.code != Code::FrozenModule);
        self.tensors = constants.tensors;
        let names = constants.modules.into_iter().flat_map(|module| module.parameters);
        if let Some(root) = self.modules.first_mut() {
            root.parameters.extend(names);
        }
    }

    /// The same, to fill in what their bytes tell.
    pub(crate) fn all_tensors_mut(&mut self) -> impl Iterator<Item = &mut NamedTensor> {
        self.tensors.iter_mut().chain(&mut self.training)
    }
}

/// Where a model was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sighting {
    /// Root of the address space; `None` in the image of a process.
    pub root: Option<PhysAddr>,
    /// The root module in it.
    pub object: VirtAddr,
}

/// One module of a model.
#[derive(Clone, Debug)]
pub struct Module {
    /// Dotted name; empty for the root.
    pub name: String,
    /// `__module__.__qualname__` of its class; `None` for a module of C++, whose class memory does not name.
    pub class: Option<String>,
    /// The nearest class above it that is part of the framework itself, if its own is not.
    pub framework_class: Option<String>,
    /// Whether it was in training mode; `None` if it does not say.
    pub training: Option<bool>,
    /// Its plain attributes with public names, `training` among them.
    pub hyperparameters: Vec<(String, Value)>,
    /// Its plain attributes whose names begin with an underscore.
    pub private: Vec<(String, Value)>,
    /// Full names of its own parameters, the unset ones left out.
    pub parameters: Vec<String>,
    /// Full names of its own buffers, the unset ones left out.
    pub buffers: Vec<String>,
    /// Own names of parameters and buffers that are registered but `None`.
    pub unset: Vec<(String, TensorKind)>,
    /// The Python object.
    pub object: VirtAddr,
}

/// What a tensor is to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorKind {
    /// Learned.
    Parameter,
    /// Kept, not learned.
    Buffer,
    /// The gradient of a parameter.
    Gradient,
    /// What an optimizer keeps for a parameter.
    Optimizer,
    /// None of these: it belongs to no model.
    Other,
    /// A NumPy array.
    Array,
}

/// How much of a tensor the dump holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Every byte.
    Complete,
    /// Every byte, but from memory that nobody uses any more: since it was freed, other bytes may have been written there.
    Freed,
    /// Some bytes; the holes are listed.
    Partial,
    /// None: not its data, or not even its headers.
    Missing,
    /// The data lie on another device, whose memory is not part of the dump, or on `meta`, which has none.
    Device,
}

impl Status {
    /// Whether there are bytes of it.
    pub fn has_bytes(self) -> bool {
        matches!(self, Self::Complete | Self::Freed | Self::Partial)
    }
}

/// A tensor under its name.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Dotted name, as in `state_dict()`.
    pub name: String,
    /// What it is.
    pub kind: TensorKind,
    /// Whether `state_dict()` lists it.
    pub persistent: bool,
    /// The Python object; null for a gradient that Python has never seen.
    pub object: VirtAddr,
    /// The name under which the same tensor object came first (tied weights).
    pub same_as: Option<String>,
    /// `__module__.__qualname__` of its own class; `None` if that can't be read, or Python has never seen it.
    pub class: Option<String>,
    /// Its headers; `None` if they could not be read, or it is no tensor but an array.
    pub info: Option<TensorInfo>,
    /// Whether only an inferred layout reads its headers: its bytes may be complete but misinterpreted.
    pub inferred: bool,
    /// Tensors that belong to it, under its name and theirs: indices and values of a sparse one, scales of a
    /// quantized one.
    pub parts: Vec<NamedTensor>,
    /// What is read of it.
    pub reading: Reading,
    /// The attributes of its Python object.
    pub attributes: Vec<(String, Described)>,
    /// The tensors and arrays among them, or in objects among them, that have no other name.
    pub inner: Vec<Inner>,
    /// Tensors with other names that have its elements, if it has none.
    pub elsewhere: Vec<Elsewhere>,
    /// How much of it is there.
    pub status: Status,
    /// What is not.
    pub holes: Holes,
    /// The bytes that are from the user's files, not from the dump.
    pub sources: Vec<Source>,
    /// SHA-256 of the contiguous bytes in lower-case hex, holes as zeros; `None` if there are no bytes.
    pub sha256: Option<String>,
    /// Why it is not complete, where holes do not say it.
    pub problem: Option<Diagnostic>,
}

impl NamedTensor {
    /// A tensor of which the headers at most are known; `read` is what came of reading them.
    pub(crate) fn new(name: String, kind: TensorKind, object: VirtAddr, read: Result<TensorInfo, Diagnostic>) -> Self {
        let (info, problem) = match read {
            Ok(info) => (Some(info), None),
            Err(problem) => (None, Some(problem)),
        };
        Self { problem, ..Self::with_headers(name, kind, object, info) }
    }

    /// An array, whose headers are kept beside it.
    pub(crate) fn array(name: String, object: VirtAddr) -> Self {
        Self::with_headers(name, TensorKind::Array, object, None)
    }

    fn with_headers(name: String, kind: TensorKind, object: VirtAddr, info: Option<TensorInfo>) -> Self {
        let inferred = info.as_ref().is_some_and(|info| info.inferred);
        let parts = info.as_ref().map(|info| info.form.parts()).unwrap_or_default().into_iter();
        let part = |(part, info): (&str, &TensorInfo)| {
            let info = TensorInfo { inferred, ..info.clone() };
            Self::new(format!("{name}.{part}"), kind, info.object, Ok(info))
        };
        let parts = parts.map(part).collect();
        Self {
            name,
            kind,
            persistent: false,
            object,
            same_as: None,
            class: None,
            info,
            inferred,
            parts,
            reading: Reading::default(),
            attributes: Vec::new(),
            inner: Vec::new(),
            elsewhere: Vec::new(),
            status: Status::Missing,
            holes: Holes::default(),
            sources: Vec::new(),
            sha256: None,
            problem: None,
        }
    }

    /// A problem of this tensor.
    pub(crate) fn diagnostic(&self, code: Code, message: impl Into<String>) -> Diagnostic {
        let object = Some(self.object).filter(|object| object.0 != 0);
        Diagnostic::new(code, object.map(Into::into), message.into())
    }

    /// Where what is read of it lies, if it has headers that say so.
    pub(crate) fn elements(&self) -> Option<Elements> {
        if self.is_shell() {
            return None;
        }
        match &self.reading {
            Reading::Elements | Reading::SameAsFirst => self.info.as_ref().and_then(TensorInfo::elements),
            Reading::Storage(stored) => Some(stored.elements.clone()),
            Reading::LeftOut => None,
        }
    }
}
