//! PyTorch in a process: its classes, and modules that hold tensors.

use super::SIGNATURES;
use super::python::{Keeping, Python};
use super::tensor::{Numbers, Placed, Tensor};

pub struct Torch {
    pub python: Python,
    pub numbers: Numbers,
    /// `torch.nn.modules.module.Module`.
    pub module_class: u64,
    pub tensor_class: u64,
    pub parameter_class: u64,
}

/// What a module is to hold.
#[derive(Clone, Default)]
pub struct ModuleSpec<'a> {
    pub parameters: Vec<(&'a str, Option<&'a Placed>)>,
    pub buffers: Vec<(&'a str, Option<&'a Placed>)>,
    pub non_persistent: Vec<&'a str>,
    pub children: Vec<(&'a str, u64)>,
    pub attributes: Vec<(&'a str, u64)>,
    pub in_use: bool,
}

impl Torch {
    /// With classes whose instances keep attributes as most do in that version.
    pub fn new(python: Python, pytorch: &str) -> Self {
        let usual = if python.find("tp_flags.MANAGED_DICT").is_some() { Keeping::Values } else { Keeping::SplitDict };
        Self::keeping(python, pytorch, usual)
    }

    /// With modules that keep their attributes in a certain way.
    pub fn keeping(python: Python, pytorch: &str, keeping: Keeping) -> Self {
        let numbers = Numbers(SIGNATURES.layouts("pytorch").find(|layout| layout.version == pytorch).unwrap().clone());
        let b = python.builtin;
        let release = pytorch.split('-').next().unwrap();
        let version = python.str(&format!("{release}.0+cpu"));
        python.module("torch.version", &[("__version__", version), ("debug", b.false_)]);
        let tensor_meta = python.class(b.type_, "torch._C", "_TensorMeta", b.type_, Keeping::Dict);
        let parameter_meta = python.class(b.type_, "torch.nn.parameter", "_ParameterMeta", tensor_meta, Keeping::Dict);
        // Behind the fields of the C type comes the pointer to the attributes.
        let tensor_base = python.c_type("torch._C._TensorBase", 64);
        let tensor_class = python.class(tensor_meta, "torch", "Tensor", tensor_base, Keeping::Dict);
        let parameter_class =
            python.class(parameter_meta, "torch.nn.parameter", "Parameter", tensor_class, Keeping::Dict);
        let module_class = python.class(b.type_, "torch.nn.modules.module", "Module", b.object, keeping);
        Self { python, numbers, module_class, tensor_class, parameter_class }
    }

    /// A class of modules that derives from `torch.nn.Module` itself, kept like that one.
    pub fn module_type(&self, module: &str, qualname: &str) -> u64 {
        self.derived(module, qualname, self.module_class)
    }

    pub fn derived(&self, module: &str, qualname: &str, base: u64) -> u64 {
        let keeping = self.python.kept.borrow()[&base].0;
        self.python.class(self.python.builtin.type_, module, qualname, base, keeping)
    }

    /// A class that PyTorch itself has: `layer("linear", "Linear")`.
    pub fn layer(&self, file: &str, name: &str) -> u64 {
        self.module_type(&format!("torch.nn.modules.{file}"), name)
    }

    pub fn tensor(&self, spec: &Tensor) -> Placed {
        self.numbers.tensor(&self.python, self.tensor_class, spec, None)
    }

    pub fn parameter(&self, shape: &[u64]) -> Placed {
        self.numbers.tensor(&self.python, self.parameter_class, &Tensor::f32(shape).learned(), None)
    }

    /// A tensor whose data lie at `base`, which is mapped.
    pub fn tensor_at(&self, spec: &Tensor, base: u64) -> Placed {
        self.numbers.tensor(&self.python, self.tensor_class, spec, Some(base))
    }

    pub fn view(&self, spec: &Tensor, of: &Placed) -> Placed {
        self.numbers.view(&self.python, self.tensor_class, spec, of)
    }

    /// Gives a tensor attributes.
    pub fn set_attributes(&self, tensor: &Placed, attributes: &[(&str, u64)]) {
        let at = self.python.get(self.python.get(tensor.object, "object.ob_type"), "type.tp_dictoffset");
        self.python.process.put(tensor.object + at, self.python.dict(attributes));
    }

    /// Makes `grad`, a `TensorImpl`, the gradient of a parameter.
    pub fn set_grad(&self, parameter: &Placed, grad: u64) {
        let process = &self.python.process;
        let meta = process.get(parameter.tensor_impl + self.numbers.at("tensor.autograd_meta"));
        process.put(meta + self.numbers.at("autograd.grad"), grad);
    }

    /// The `TensorImpl` that stands for no tensor: without elements and storage.
    pub fn undefined_tensor(&self) -> u64 {
        let tensor_impl = self.python.process.alloc(256);
        self.python.process.put(tensor_impl, 0x7f55_5555_0020);
        tensor_impl
    }

    pub fn module(&self, class: u64, spec: &ModuleSpec<'_>) -> u64 {
        let python = &self.python;
        let none = python.builtin.none;
        let registered = |items: &[(&str, Option<&Placed>)]| {
            let items: Vec<(&str, u64)> =
                items.iter().map(|(name, tensor)| (*name, tensor.map_or(none, |tensor| tensor.object))).collect();
            python.dict(&items)
        };
        let names: Vec<u64> = spec.non_persistent.iter().map(|name| python.str(name)).collect();
        let mut attributes = vec![
            ("training", python.bool(!spec.in_use)),
            ("_parameters", registered(&spec.parameters)),
            ("_buffers", registered(&spec.buffers)),
            ("_non_persistent_buffers_set", python.set(&names)),
            ("_backward_hooks", python.dict(&[])),
            ("_modules", python.dict(&spec.children)),
        ];
        attributes.extend(&spec.attributes);
        python.instance(class, &attributes)
    }

    /// A model of one layer, `class` in `__main__`, with one parameter `weight`.
    pub fn small_model(&self, class: &str, shape: &[u64]) -> (u64, Placed) {
        let weight = self.parameter(shape);
        let parameters = vec![("weight", Some(&weight))];
        let object =
            self.module(self.module_type("__main__", class), &ModuleSpec { parameters, ..ModuleSpec::default() });
        (object, weight)
    }
}
