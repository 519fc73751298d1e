//! C++ objects that Python holds through `torch.ScriptObject`: packed parameters of quantized modules, script modules.
//!
//! Their weights are in no Python dictionary, so a walk over Python objects alone would silently miss them.

mod fbgemm;
mod layout;
mod module;
mod object;
mod packed;
mod problem;

use std::collections::{BTreeMap, BTreeSet};

use super::held::Held;
use super::module::Graph;
use super::tensor::Layout;
use crate::addr::VirtAddr;
use crate::cpython::{Interpreter, Objects};
use crate::diagnostic::Diagnostic;
use crate::model::{Model, Module, NamedTensor, TensorKind};
use crate::paging::VirtualMemory;

pub use layout::{MatrixNumbers, ObjectNumbers, ScriptLayouts};
use module::Walk;
pub(super) use object::{MAX_SLOTS, OBJECT_WORDS, Reader, SlotValue, is_pointer, text_at, words_at};
use object::{ScriptError, ScriptObject};
use packed::{Context, PackedError, capsule};
use problem::Problem;

/// What PyTorch calls the Python class of its C++ objects; that of script modules derives from it.
const SCRIPT_OBJECT: &str = "ScriptObject";
/// The modules that the class may name as its own.
const CLASS_MODULES: [&str; 2] = ["torch", "torch._C"];
/// What its class of script modules is called.
const SCRIPT_MODULE: &str = "ScriptModule";
/// Script objects of one process that are looked at.
const MAX_OBJECTS: usize = 1 << 16;
/// Headers that choose a layout if Python has seen no tensor.
const MAX_HEADERS: usize = 1 << 10;

/// The types whose instances hold a C++ object of PyTorch: `torch.ScriptObject` and all that derive from it.
pub fn script_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    let bases = CLASS_MODULES.into_iter().flat_map(|module| interpreter.heap_type(module, SCRIPT_OBJECT));
    bases.flat_map(|base| interpreter.subtypes(base)).collect()
}

/// A Python object that holds a C++ object.
#[derive(Clone, Debug)]
struct Wrapper {
    /// Name of its class.
    class: String,
    /// The `ivalue::Object`, where it can be read.
    object: Option<VirtAddr>,
}

impl Wrapper {
    fn is_module(&self) -> bool {
        self.class.rsplit('.').next() == Some(SCRIPT_MODULE)
    }
}

/// The C++ objects that Python holds.
pub struct Scripts<'a> {
    memory: &'a dyn VirtualMemory,
    /// The objects of Python, where that holds some.
    python: Option<Objects<'a>>,
    layouts: &'a ScriptLayouts,
    reader: Option<Reader<'a>>,
    layout: Option<&'a Layout>,
    /// By the address of the Python object.
    wrappers: BTreeMap<VirtAddr, Wrapper>,
    /// The wrapper that a Python module has: `RecursiveScriptModule` and its like.
    modules: BTreeMap<VirtAddr, VirtAddr>,
    /// The Python module of a C++ object.
    python_modules: BTreeMap<VirtAddr, VirtAddr>,
    /// Objects that an attribute of another holds.
    held: BTreeSet<VirtAddr>,
    /// What may be a `TensorImpl`.
    headers: Vec<VirtAddr>,
}

impl<'a> Scripts<'a> {
    /// None that Python holds: what `reader` reads is known by its address alone.
    pub(super) fn of_memory(
        memory: &'a dyn VirtualMemory,
        layouts: &'a ScriptLayouts,
        reader: Option<Reader<'a>>,
        layout: Option<&'a Layout>,
    ) -> Self {
        Self {
            memory,
            python: None,
            layouts,
            reader,
            layout,
            wrappers: BTreeMap::new(),
            modules: BTreeMap::new(),
            python_modules: BTreeMap::new(),
            held: BTreeSet::new(),
            headers: Vec::new(),
        }
    }

    /// Finds those of an interpreter; `types` are those of [`script_types`]. Tensors are not read yet.
    pub fn find(
        interpreter: &'a Interpreter,
        types: &BTreeSet<VirtAddr>,
        layouts: &'a ScriptLayouts,
        graph: &Graph,
    ) -> Self {
        let objects = interpreter.objects();
        let mut scripts = Self { python: Some(objects), ..Self::of_memory(objects.memory(), layouts, None, None) };
        let Some(numbers) = layouts.objects.first() else { return scripts };
        for type_object in types {
            let class = objects.type_name(*type_object).unwrap_or_else(|_| format!("torch.{SCRIPT_OBJECT}"));
            for wrapper in interpreter.instances.get(type_object).into_iter().flatten().take(MAX_OBJECTS) {
                let object = Reader::held_by(objects, numbers, *wrapper);
                scripts.wrappers.insert(*wrapper, Wrapper { class: class.clone(), object });
            }
        }
        let candidates: Vec<VirtAddr> = scripts.wrappers.values().filter_map(|wrapper| wrapper.object).collect();
        scripts.reader = Reader::elect(scripts.memory, &layouts.objects, &candidates);
        let reader = scripts.reader;
        for wrapper in scripts.wrappers.values_mut() {
            wrapper.object = wrapper.object.filter(|at| reader.is_some_and(|reader| reader.read(*at).is_ok()));
        }
        if !scripts.wrappers.is_empty() {
            scripts.find_python_modules(graph);
            scripts.follow();
        }
        scripts
    }

    /// The Python modules that stand for script modules: none of them has the dictionaries of a module.
    fn find_python_modules(&mut self, graph: &Graph) {
        let mut inner: Vec<(VirtAddr, Vec<VirtAddr>)> = Vec::new();
        for module in graph.unreadable.keys() {
            let Some(Ok(attributes)) = self.python.map(|python| python.attributes(*module)) else { continue };
            let values: Vec<VirtAddr> = attributes.into_iter().map(|(_, value)| value).collect();
            let wrapper = values.iter().find(|value| self.wrappers.get(value).is_some_and(Wrapper::is_module));
            match wrapper {
                Some(wrapper) => {
                    self.modules.insert(*module, *wrapper);
                    if let Some(object) = self.wrappers.get(wrapper).and_then(|wrapper| wrapper.object) {
                        self.python_modules.entry(object).or_insert(*module);
                    }
                }
                None => inner.push((*module, values)),
            }
        }
        // A traced module holds such a one.
        for (module, values) in inner {
            if let Some(wrapper) = values.iter().find_map(|value| self.modules.get(value)).copied() {
                self.modules.insert(module, wrapper);
            }
        }
    }

    /// Records what objects hold: each other, and possible tensors.
    fn follow(&mut self) {
        let Some(reader) = self.reader else { return };
        let mut todo: Vec<VirtAddr> = self.wrappers.values().filter_map(|wrapper| wrapper.object).collect();
        let mut seen: BTreeSet<VirtAddr> = BTreeSet::new();
        while let Some(object) = todo.pop() {
            if seen.len() >= MAX_OBJECTS || !seen.insert(object) {
                continue;
            }
            let Ok(read) = reader.read(object) else { continue };
            if let Some(holder) = capsule(&read.slots).filter(|_| self.headers.len() < MAX_HEADERS) {
                let fields = packed::fields(self.memory, holder).into_iter().map(VirtAddr);
                self.headers.extend(fields.filter(is_pointer));
            }
            for slot in &read.slots {
                match slot.value {
                    SlotValue::Object(child) => {
                        self.held.insert(child);
                        todo.push(child);
                    }
                    SlotValue::Tensor(tensor) if self.headers.len() < MAX_HEADERS => self.headers.push(tensor),
                    SlotValue::Tensor(_) | SlotValue::Unset | SlotValue::Other(_) => {}
                }
            }
        }
    }

    /// Possible `TensorImpl`s among what they hold, to choose a layout if Python has seen no tensor.
    pub fn headers(&self) -> &[VirtAddr] {
        &self.headers
    }

    /// The same with the layout that reads the tensors.
    pub fn with_layout(self, layout: Option<&'a Layout>) -> Self {
        Self { layout, ..self }
    }

    fn read(&self, object: VirtAddr) -> Result<ScriptObject, ScriptError> {
        self.reader.ok_or(ScriptError::NoLayout)?.read(object)
    }

    fn python_module(&self, object: VirtAddr) -> Option<VirtAddr> {
        self.python_modules.get(&object).copied()
    }

    /// What the script module that a Python module stands for holds, under names that begin with `name`; `None` if
    /// it stands for none.
    pub(super) fn of_module(&self, module: VirtAddr, name: &str) -> Option<Held> {
        let object = self.wrappers.get(self.modules.get(&module)?)?.object?;
        Some(Walk::run(self, object, name))
    }

    /// Whether a Python object holds a C++ object of PyTorch.
    pub(super) fn holds(&self, value: VirtAddr) -> bool {
        self.wrappers.contains_key(&value)
    }

    /// The tensors that an attribute of that name has packed; none if its value is no C++ object of PyTorch.
    pub(super) fn packed(&self, name: &str, value: VirtAddr) -> Vec<NamedTensor> {
        let Some(wrapper) = self.wrappers.get(&value) else { return Vec::new() };
        match wrapper.object {
            Some(object) => self.packed_at(name, object, value, true),
            None => {
                let class = &wrapper.class;
                let error = PackedError::NotRead { class: class.clone(), object: value };
                let read = Err(error.diagnostic(value));
                let unread = NamedTensor::new(name.to_owned(), TensorKind::Parameter, value, read);
                vec![NamedTensor { persistent: true, class: Some(class.clone()), ..unread }]
            }
        }
    }

    fn packed_at(&self, name: &str, object: VirtAddr, wrapper: VirtAddr, persistent: bool) -> Vec<NamedTensor> {
        let Some(reader) = self.reader else { return Vec::new() };
        let context = Context { memory: self.memory, reader, layouts: self.layouts, layout: self.layout };
        let class = self.wrappers.get(&wrapper).map(|wrapper| wrapper.class.clone());
        let named = |packed: packed::Packed| {
            let name = format!("{name}{}", packed.suffix);
            let python_object = packed.weight.as_ref().map(|info| info.object).unwrap_or(wrapper);
            let read = packed.weight.map_err(|error| error.diagnostic(object));
            let mut tensor = NamedTensor::new(name, TensorKind::Parameter, python_object, read);
            for (part, info) in packed.parts {
                let name = format!("{}.{part}", tensor.name);
                tensor.parts.push(NamedTensor::new(name, TensorKind::Parameter, info.object, Ok(info)));
            }
            NamedTensor { persistent, class: class.clone(), ..tensor }
        };
        context.packed(object).into_iter().map(named).collect()
    }

    /// The script modules that nothing else holds, as models. `graph` has the modules that Python itself has.
    pub fn models(&self, graph: &Graph) -> Vec<Model> {
        let children = graph.modules.values().flat_map(|module| &module.children).filter_map(|(_, child)| *child);
        let in_python: BTreeSet<VirtAddr> =
            children.filter_map(|child| self.wrappers.get(self.modules.get(&child)?)?.object).collect();
        let mut roots: BTreeMap<VirtAddr, VirtAddr> = BTreeMap::new();
        for (at, wrapper) in self.wrappers.iter().filter(|(_, wrapper)| wrapper.is_module()) {
            if let Some(object) = wrapper.object
                && !self.held.contains(&object)
                && !in_python.contains(&object)
            {
                roots.entry(object).or_insert(*at);
            }
        }
        let mut models: Vec<Model> = roots.iter().filter_map(|(object, at)| self.model(*object, *at)).collect();
        models.extend(self.unread_modules());
        models.sort_by_key(|model| model.object);
        models
    }

    /// The script module at `object` as a model; `wrapper` is what it is known by if no Python module stands for it. `None` if it
    /// holds no tensor.
    pub(super) fn model(&self, object: VirtAddr, wrapper: VirtAddr) -> Option<Model> {
        let Held { modules, tensors, training, mut problems } = Walk::run(self, object, "");
        let root: &Module = modules.first()?;
        if tensors.is_empty() && problems.is_empty() {
            // What is frozen has lost the attributes that all modules have, and its weights are constants of its code.
            if root.training.is_some() {
                return None;
            }
            problems.push(Problem::Frozen { object }.into());
        }
        let class = root.class.clone();
        let object = self.python_module(object).unwrap_or(wrapper);
        Some(unread_model(class, object, problems)).map(|model| Model { modules, tensors, training, ..model })
    }

    /// The script modules that can't be read as one model without tensors; `None` if there are none.
    fn unread_modules(&self) -> Option<Model> {
        // Any pointer to the class looks like an instance: what a Python module holds is one.
        let of_python: BTreeSet<VirtAddr> = self.modules.values().copied().collect();
        let is_unread = |(at, wrapper): &(&VirtAddr, &Wrapper)| wrapper.object.is_none() && of_python.contains(at);
        let mut unread = self.wrappers.iter().filter(is_unread);
        let (object, wrapper) = unread.next()?;
        let count = 1 + unread.count();
        Some(unread_model(Some(wrapper.class.clone()), *object, vec![Problem::TensorsNotRead(count).into()]))
    }
}

/// A model of which nothing but its problems is known.
pub(super) fn unread_model(class: Option<String>, object: VirtAddr, problems: Vec<Diagnostic>) -> Model {
    Model {
        id: String::new(),
        class,
        object,
        chain: None,
        sightings: Vec::new(),
        modules: Vec::new(),
        tensors: Vec::new(),
        training: Vec::new(),
        optimizers: Vec::new(),
        problems,
    }
}
