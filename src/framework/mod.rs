//! Machine-learning frameworks in an interpreter: one folder each, behind two traits.
//!
//! A `Framework` names the types whose instances it needs. Its `Reader` reads models and tensors from the instances in one
//! interpreter. What all frameworks need is here: attributes of tensors, tensors that belong to no model, and what refers
//! to them. Another framework is a folder, and one line in `Frameworks::new`.

mod attributes;
mod describe;
pub mod numpy;
mod referrers;
pub(crate) mod standalone;
pub mod torch;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::{self, Builtins, Holders, Interpreter, Modules, Objects};
use crate::diagnostic::{Address, Diagnostic};
use crate::layout::LayoutError;
use crate::model::{self, Model, StandaloneTensors};
use crate::paging::AddressSpace;
use crate::signature::Signatures;
use crate::tensor::{ArrayInfo, TensorInfo};

use standalone::{Found, Listed};

/// The modules by which machine-learning frameworks are imported, sorted: those that are read, and others.
const PACKAGES: [&str; 11] = [
    "jax",
    "keras",
    "mxnet",
    "numpy",
    "onnxruntime",
    "paddle",
    "sklearn",
    "tensorflow",
    "torch",
    "transformers",
    "vllm",
];

/// A framework with the layouts of all its versions.
trait Framework: Send + Sync {
    /// The name by which it is imported.
    fn package(&self) -> &'static str;

    /// The types of an interpreter whose instances it reads, as far as they are known by now; `modules` are the imported ones.
    fn wanted_types(&self, interpreter: &Interpreter, modules: &Modules) -> BTreeSet<VirtAddr>;

    /// What the names of the signatures of its tensors' headers begin with; `None` where it has none.
    fn header_signatures(&self) -> Option<&'static str> {
        None
    }

    /// The tensors of an address space that some of those addresses are the headers of; `None` where there are none.
    fn headers<'a>(&'a self, _space: &'a AddressSpace, _addresses: &[VirtAddr]) -> Option<Box<dyn Headers + 'a>> {
        None
    }

    /// A reader of what it has in an interpreter.
    fn reader<'a>(&'a self, context: Context<'a>) -> Box<dyn Reader + 'a>;
}

/// What a framework has in one interpreter. The bytes of tensors are not read.
trait Reader {
    /// Hands over its models.
    fn take_models(&mut self) -> Vec<Model> {
        Vec::new()
    }

    /// The modules of its networks, each behind those that hold it.
    fn network_modules(&self) -> Vec<NetworkModule<'_>> {
        Vec::new()
    }

    /// The types whose instances are its tensors or arrays.
    fn tensor_types(&self) -> &BTreeSet<VirtAddr>;

    /// Reads an instance of such a type that another object refers to, or says why it can't be read; `None` if it has no elements
    /// of its own.
    fn read_part(&self, object: VirtAddr) -> Option<Result<Header, Diagnostic>>;

    /// Its tensors and arrays that are not listed yet.
    fn standalone(&self, listed: &mut Listed) -> Found;

    /// Adds what it says of itself.
    fn describe(&self, facts: &mut Facts);
}

/// The tensors of one address space that were found by their headers, whoever holds them. Their bytes are not read.
pub(crate) trait Headers: Send + Sync {
    /// The tensors, sorted by the address of their headers.
    fn tensors(&self) -> &[HeaderTensor];

    /// Tensors of which header, storage and data were freed, and whose data nothing seems to have used since; sorted in the
    /// same way.
    fn freed(&self) -> &[HeaderTensor];

    /// The models whose modules hold some of the tensors with those headers. `sweep` finds the aligned slots in the pages of data
    /// that hold one of a set of addresses.
    fn models(&self, headers: &BTreeSet<VirtAddr>, sweep: &Sweep<'_>) -> Vec<Model>;

    /// What was left out.
    fn warning(&self) -> Option<Diagnostic>;

    /// Adds how they were read.
    fn describe(&self, facts: &mut Facts);
}

/// Finds the slots of an address space that hold one of a set of addresses, as address of the slot and value.
pub(crate) type Sweep<'a> = dyn Fn(&BTreeSet<VirtAddr>) -> Vec<(VirtAddr, VirtAddr)> + 'a;

/// A tensor that was found by its header.
pub(crate) struct HeaderTensor {
    pub(crate) info: TensorInfo,
    /// The header of its gradient, if it has one.
    pub(crate) gradient: Option<VirtAddr>,
    /// The number of the operation that used it last, where the graph of a forward pass says so.
    pub(crate) last_use: Option<u64>,
}

/// The headers of a tensor or an array.
enum Header {
    Tensor(TensorInfo),
    Array(ArrayInfo),
}

/// A module of a network, with its attributes that may hold tensors: parameters, buffers, other objects.
struct NetworkModule<'a> {
    object: VirtAddr,
    attributes: Vec<(&'a str, VirtAddr)>,
}

/// What a reader needs of an interpreter.
#[derive(Clone, Copy)]
struct Context<'a> {
    interpreter: &'a Interpreter,
    objects: Objects<'a>,
    /// The imported modules.
    modules: &'a Modules,
    builtins: &'a Builtins,
    /// Bytes of the header of an object in an ordinary build of Python.
    plain_header: i64,
}

impl Context<'_> {
    /// The string that an imported module has under a name.
    fn module_str(&self, (module, name): (&str, &str)) -> Option<String> {
        cpython::attribute_str(&self.objects, *self.modules.get(module)?, name)
    }

    /// The root of the interpreter's address space; `None` in the image of a process.
    fn root(&self) -> Option<PhysAddr> {
        self.interpreter.space().root()
    }
}

/// The object that an imported module has under a name.
fn module_item(interpreter: &Interpreter, modules: &Modules, (module, name): (&str, &str)) -> Option<VirtAddr> {
    interpreter.objects().dict_item(*modules.get(module)?, name).ok().flatten()
}

/// What the frameworks in an interpreter say of themselves.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Of PyTorch, if it is imported.
    pub torch: Option<torch::Facts>,
    /// How well the layout of NumPy's arrays reads them, if there are any.
    pub numpy: Option<numpy::ArrayScore>,
}

impl Facts {
    /// Warnings that concern a process, which is called so and known by that address, and whose models have so many tensors.
    pub(crate) fn warnings(&self, process: (&str, Option<Address>), tensors: usize) -> Option<Diagnostic> {
        self.torch.as_ref()?.warning(process, tensors)
    }
}

/// A framework that a process has imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportedFramework {
    /// The name by which it is imported.
    pub name: String,
    /// Its version; `None` where that can't be read.
    pub version: Option<String>,
}

/// What was found in an interpreter.
pub(crate) struct Findings {
    /// The frameworks that it has imported, by name.
    pub(crate) imported: Vec<ImportedFramework>,
    /// What those that are read say of themselves.
    pub(crate) facts: Facts,
    /// Modules of networks that are alive.
    pub(crate) module_count: usize,
    /// Its models.
    pub(crate) models: Vec<Model>,
    /// Its tensors and arrays that belong to no model.
    pub(crate) standalone: StandaloneTensors,
}

/// All frameworks that are read.
pub(crate) struct Frameworks(Vec<Box<dyn Framework>>);

impl Frameworks {
    /// Those of a set of signatures.
    ///
    /// # Errors
    /// A layout lacks a number or a table that the code needs.
    pub(crate) fn new(signatures: &Signatures) -> Result<Self, LayoutError> {
        Ok(Self(vec![Box::new(torch::Torch::new(signatures)?), Box::new(numpy::Numpy::new(signatures)?)]))
    }

    /// What the names of signatures of tensors' headers begin with, one for each framework that has some.
    pub(crate) fn header_signatures(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter_map(|framework| framework.header_signatures())
    }

    /// The tensors of an address space that some of those addresses are the headers of. The addresses are those of hits of the
    /// signatures whose names begin with `signatures`.
    pub(crate) fn headers<'a>(
        &'a self,
        signatures: &str,
        space: &'a AddressSpace,
        addresses: &[VirtAddr],
    ) -> Option<Box<dyn Headers + 'a>> {
        let framework = self.0.iter().find(|framework| framework.header_signatures() == Some(signatures))?;
        framework.headers(space, addresses)
    }

    /// The types whose instances models and tensors are made of, as far as they are known by now.
    pub(crate) fn wanted_types(&self, interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
        let mut types = interpreter.module_types();
        let modules = interpreter.modules(&types);
        types.extend(self.0.iter().flat_map(|framework| framework.wanted_types(interpreter, &modules)));
        types
    }

    /// What an interpreter holds that was found with [`Frameworks::wanted_types`]; `plain_header` are the bytes of the
    /// header of an object in an ordinary build of Python.
    pub(crate) fn read(&self, interpreter: &Interpreter, modules: &Modules, plain_header: i64) -> Findings {
        let objects = interpreter.objects();
        let builtins = &Builtins::new(&objects, modules);
        let context = Context { interpreter, objects, modules, builtins, plain_header };
        let mut readers: Vec<Box<dyn Reader + '_>> = self.0.iter().map(|framework| framework.reader(context)).collect();
        let mut models: Vec<Model> = readers.iter_mut().flat_map(|reader| reader.take_models()).collect();
        let mut holders = Holders::new(objects, modules, interpreter.module_types());
        attributes::attach_to_models(&mut models, objects, builtins, &mut holders, &readers);
        let packages: Vec<&'static str> = self.0.iter().map(|framework| framework.package()).collect();
        let networks: Vec<NetworkModule<'_>> = readers.iter().flat_map(|reader| reader.network_modules()).collect();
        let standalone = standalone::find(context, &models, &readers, (&networks, &packages), holders);
        model::find_moved(&mut models, &standalone.found);
        let mut facts = Facts::default();
        readers.iter().for_each(|reader| reader.describe(&mut facts));
        Findings { imported: imported(&context), facts, module_count: networks.len(), models, standalone }
    }
}

/// The frameworks among the imported modules.
fn imported(context: &Context<'_>) -> Vec<ImportedFramework> {
    let version = |module: &str| context.module_str((module, "__version__"));
    let imported = PACKAGES.iter().filter(|name| context.modules.contains_key(**name));
    // `torch.__version__` is an instance of a class of its own; `torch.version` has the plain string.
    let framework = |name: &&str| ImportedFramework {
        name: (*name).to_owned(),
        version: version(name).or_else(|| version(&format!("{name}.version"))),
    };
    imported.map(framework).collect()
}
