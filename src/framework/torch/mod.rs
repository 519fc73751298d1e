//! PyTorch: the modules, optimizers and script objects of a process, and its tensors.
//!
//! A module is recognised by what it is: an instance of a type that derives from
//! `torch.nn.modules.module.Module` and has the three dictionaries that such a module has. A model
//! is a module that no other module holds, with at least one tensor somewhere in it.

mod autograd;
mod extra;
mod facts;
mod freed;
mod headers;
mod held;
mod module;
mod optimizer;
mod owners;
mod problem;
mod script;
mod tensor;
mod tree;

use std::collections::BTreeSet;

use super::standalone::{self, Found, Listed, instances};
use super::{Context, Framework, Header, Headers, NetworkModule, Reader, module_item};
use crate::addr::VirtAddr;
use crate::cpython::{Interpreter, Modules};
use crate::diagnostic::{Code, Diagnostic};
use crate::layout::LayoutError;
use crate::model::{Model, NamedTensor, Referrer, StandaloneTensor, TensorKind};
use crate::paging::AddressSpace;
use crate::signature::Signatures;
use crate::tensor::Form;

pub use facts::Facts;
use module::Graph;
use script::Scripts;
pub use script::{MatrixNumbers, ObjectNumbers, ScriptLayouts};
pub use tensor::{
    Contradiction, DtypeAt, KeyTable, Layout, Offsets, Sample, ShapeAt, SizesAndStrides, TensorError, TensorScore,
    key_tables, layouts, select_layout,
};

const PACKAGE: &str = "torch";
/// Where PyTorch says its version.
const VERSION: (&str, &str) = ("torch.version", "__version__");
/// Where the class of all tensors is defined, in every PyTorch: its `__module__` is set by hand.
const TENSOR_CLASS: (&str, &str) = (PACKAGE, "Tensor");
/// Tensors that choose the layout where there is no module.
const SAMPLE: usize = 1 << 10;
/// Optimizers that are listed with one model.
const MAX_OPTIMIZERS: usize = 32;

/// PyTorch.
pub(super) struct Torch {
    layouts: Vec<Layout>,
    key_tables: Vec<KeyTable>,
    script_layouts: ScriptLayouts,
}

impl Torch {
    pub(super) fn new(signatures: &Signatures) -> Result<Self, LayoutError> {
        Ok(Self {
            layouts: layouts(signatures)?,
            key_tables: key_tables(signatures)?,
            script_layouts: ScriptLayouts::new(signatures)?,
        })
    }
}

/// The problem of a tensor where no layout reads any.
fn no_layout(object: Option<VirtAddr>) -> Diagnostic {
    let message = "no known layout reads the tensors of this PyTorch";
    Diagnostic::new(Code::NoTensorLayout, object.map(Into::into), message.to_owned())
}

/// The types of an interpreter whose instances are read.
struct WantedTypes {
    /// `torch.nn.Module` and all that derive from it.
    modules: BTreeSet<VirtAddr>,
    /// `torch.optim.Optimizer` and all that derive from it.
    optimizers: BTreeSet<VirtAddr>,
    /// `torch.Tensor`, the class below it, and all that derive from that.
    tensors: BTreeSet<VirtAddr>,
    /// `torch.ScriptObject` and all that derive from it.
    scripts: BTreeSet<VirtAddr>,
}

impl WantedTypes {
    /// Those that are known by now.
    fn new(interpreter: &Interpreter, modules: &Modules) -> Self {
        Self {
            modules: module::module_types(interpreter),
            optimizers: optimizer::optimizer_types(interpreter),
            tensors: tensor_types(interpreter, modules),
            scripts: script::script_types(interpreter),
        }
    }
}

/// The types whose instances are tensors: the base of `torch.Tensor` that is next to `object`, and all that
/// derive from it. `modules` are the imported ones.
fn tensor_types(interpreter: &Interpreter, modules: &Modules) -> BTreeSet<VirtAddr> {
    // Its type is a metaclass: nothing is known of it before the first sweep.
    if interpreter.instances.is_empty() {
        return BTreeSet::new();
    }
    let base = |address: &VirtAddr| match *interpreter.types.get(address)?.mro.as_slice() {
        [.., base, _] => Some(base),
        _ => None,
    };
    let (module, name) = TENSOR_CLASS;
    let found = module_item(interpreter, modules, TENSOR_CLASS)
        .map_or_else(|| interpreter.heap_type(module, name), |found| vec![found]);
    let bases: BTreeSet<VirtAddr> = found.iter().filter_map(base).collect();
    bases.into_iter().flat_map(|base| interpreter.subtypes(base)).collect()
}

impl Framework for Torch {
    fn package(&self) -> &'static str {
        PACKAGE
    }

    fn wanted_types(&self, interpreter: &Interpreter, modules: &Modules) -> BTreeSet<VirtAddr> {
        let WantedTypes { modules, optimizers, tensors, scripts } = WantedTypes::new(interpreter, modules);
        // Classes that can't be read: any of them could derive from `torch.nn.Module`.
        let unread = interpreter.unread_classes.iter().copied();
        [modules, optimizers, tensors, scripts].into_iter().flatten().chain(unread).collect()
    }

    fn header_signatures(&self) -> Option<&'static str> {
        Some(headers::SIGNATURES)
    }

    fn headers<'a>(&'a self, space: &'a AddressSpace, addresses: &[VirtAddr]) -> Option<Box<dyn Headers + 'a>> {
        Some(Box::new(headers::TorchHeaders::read(self, space, addresses)?))
    }

    fn reader<'a>(&'a self, context: Context<'a>) -> Box<dyn Reader + 'a> {
        let Context { interpreter, objects, builtins, .. } = context;
        let types = WantedTypes::new(interpreter, context.modules);
        let graph = module::graph(interpreter, builtins, &types.modules);
        let version = context.module_str(VERSION);
        let scripts = Scripts::find(interpreter, &types.scripts, &self.script_layouts, &graph);
        let selected = self.select(&context, &types, &graph, scripts.headers(), version.as_deref());
        let (layout, scores) = selected.unzip();
        let scripts = scripts.with_layout(layout.as_ref());
        let mut models = tree::models(&graph, &scripts, &objects, layout.as_ref());
        models.extend(scripts.models(&graph));
        optimizer::attach_optimizers(&mut models, interpreter, builtins, layout.as_ref(), &types.optimizers);
        let is_imported = version.is_some() || !types.modules.is_empty();
        let dispatch_keys = layout.as_ref().and_then(|layout| layout.keys.as_ref()).map(|keys| keys.version.clone());
        let facts = Facts { version, layout: scores, dispatch_keys };
        let facts = (is_imported || facts.layout.is_some()).then_some(facts);
        Box::new(Networks { context, tensor_types: types.tensors, graph, layout, models, facts })
    }
}

/// A layout's score, and that of the next best.
type Scores = (TensorScore, Option<TensorScore>);

impl Torch {
    /// The layout that reads the tensors of an interpreter; `headers` are what script objects seem to hold.
    fn select(
        &self,
        context: &Context<'_>,
        types: &WantedTypes,
        graph: &Graph,
        headers: &[VirtAddr],
        version: Option<&str>,
    ) -> Option<(Layout, Scores)> {
        let Context { interpreter, objects, .. } = *context;
        // PyTorch's objects begin with the header that all objects have; its numbers are for the plain one.
        let mut layouts = self.layouts.clone();
        let grown = interpreter.layout.object_size.wrapping_sub(context.plain_header);
        layouts.iter_mut().for_each(|layout| layout.offsets.impl_pointer += grown);
        let mut tensors: Vec<VirtAddr> = graph.tensors().into_iter().collect();
        let instances = types.tensors.iter().filter_map(|found| interpreter.instances.get(found)).flatten();
        let standalone: Vec<VirtAddr> = instances.copied().take(SAMPLE).collect();
        if tensors.is_empty() {
            // Any pointer to the type looks like an instance; what no layout reads decides nothing.
            let is_tensor = |at: &&VirtAddr| layouts.iter().any(|layout| layout.read(objects.memory(), **at).is_ok());
            tensors.extend(standalone.iter().filter(is_tensor));
        }
        let known: BTreeSet<VirtAddr> = tensors.iter().copied().collect();
        let standalone: Vec<VirtAddr> = standalone.into_iter().filter(|object| !known.contains(object)).collect();
        let sample = Sample { tensors: &tensors, standalone: &standalone, headers, version };
        let (layout, best, next) = select_layout(&layouts, objects.memory(), &sample)?;
        let impls = layout.impls(objects.memory(), &tensors);
        let layout = layout.into_owned().with_keys(&self.key_tables, objects.memory(), &impls, version, best.inferred);
        Some((layout, (best, next)))
    }
}

/// The networks and tensors of one interpreter.
struct Networks<'a> {
    context: Context<'a>,
    tensor_types: BTreeSet<VirtAddr>,
    graph: Graph,
    /// The layout that reads the tensors; `None` if there is none.
    layout: Option<Layout>,
    models: Vec<Model>,
    facts: Option<Facts>,
}

impl Reader for Networks<'_> {
    fn take_models(&mut self) -> Vec<Model> {
        std::mem::take(&mut self.models)
    }

    fn network_modules(&self) -> Vec<NetworkModule<'_>> {
        self.graph
            .in_order()
            .into_iter()
            .map(|(object, module)| NetworkModule { object, attributes: module.holders() })
            .collect()
    }

    fn tensor_types(&self) -> &BTreeSet<VirtAddr> {
        &self.tensor_types
    }

    fn read_part(&self, object: VirtAddr) -> Option<Result<Header, Diagnostic>> {
        match self.layout.as_ref()?.read(self.context.objects.memory(), object) {
            Err(TensorError::Contradiction { .. }) => None,
            read => Some(read.map(Header::Tensor).map_err(Diagnostic::from)),
        }
    }

    fn standalone(&self, listed: &mut Listed) -> Found {
        let Context { interpreter, objects, .. } = self.context;
        let mut all = Found::default();
        let Some(layout) = &self.layout else { return all };
        for (object, class) in instances(interpreter, &self.tensor_types, "tensors", &mut all.warnings) {
            if listed.objects.contains(&object) {
                continue;
            }
            let read = layout.read_header(objects.memory(), object).map_err(Diagnostic::from);
            let sound = read.as_ref().ok().filter(|info| info.form != Form::Short);
            if sound.is_some_and(|info| !listed.add(info)) {
                continue;
            }
            let found = if sound.is_some() { &mut all.readable } else { &mut all.unreadable };
            let tensor =
                NamedTensor::new(standalone::name(self.context.root(), object), TensorKind::Other, object, read);
            found.push(StandaloneTensor::new(NamedTensor { class, ..tensor }));
        }
        let mut gradients = Vec::new();
        for of in all.readable.iter().filter_map(|found| found.tensor.info.as_ref()) {
            if let Ok(Some(grad)) = layout.read_grad(objects.memory(), of)
                && listed.add(&grad)
            {
                let address = if grad.object.0 == 0 { grad.header } else { grad.object };
                let name = standalone::name(self.context.root(), address);
                let tensor = NamedTensor::new(name, TensorKind::Other, grad.object, Ok(grad));
                let referrers = vec![Referrer::GradientOf { object: of.object }];
                gradients.push(StandaloneTensor { referrers, ..StandaloneTensor::new(tensor) });
            }
        }
        all.readable.append(&mut gradients);
        all
    }

    fn describe(&self, facts: &mut super::Facts) {
        facts.torch.clone_from(&self.facts);
    }
}
