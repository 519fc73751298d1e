//! Modules of `torch::nn` in C++, found from their tensors.
//!
//! A `torch::nn::Module` keeps parameters, buffers and children in three dictionaries: vectors of names with values, and an
//! index with as many elements. Classes derive from it, so it may lie anywhere in an object; what refers to it has its own address.

use std::collections::{BTreeMap, BTreeSet};

use super::Hit;
use crate::addr::{VirtAddr, field};
use crate::cpython::Value;
use crate::diagnostic::{Code, Diagnostic};
use crate::framework::torch::held::Collector;
use crate::framework::torch::script::{ObjectNumbers, is_pointer, text_at, unread_model};
use crate::framework::torch::tensor::Layout;
use crate::model::{Model, Module, TensorKind};
use crate::paging::VirtualMemory;

/// The most items of a dictionary.
const MAX_ITEMS: u64 = 1 << 14;
/// Items that are read to find the modules of one process.
const MAX_READ: u64 = 1 << 22;
/// The deepest nesting of modules.
const MAX_DEPTH: usize = 200;
/// Bytes of a word.
const WORD: i64 = 8;
/// The attribute that says whether a module is trained.
const TRAINING: &str = "training";

/// An item of a dictionary: its name, and the tensor's header or the module.
type Item = (String, VirtAddr);

/// A `torch::nn::Module`.
struct Network {
    parameters: Vec<Item>,
    buffers: Vec<Item>,
    children: Vec<Item>,
    training: bool,
}

/// The modules that hold some tensors, read with the numbers of one string ABI.
pub(super) struct Networks<'a> {
    memory: &'a dyn VirtualMemory,
    numbers: &'a ObjectNumbers,
    tensors: &'a BTreeSet<VirtAddr>,
    /// Where a vector of items may begin.
    begins: BTreeSet<VirtAddr>,
    modules: BTreeMap<VirtAddr, Network>,
    /// Items that may still be read.
    left: u64,
}

impl<'a> Networks<'a> {
    pub(super) fn new(
        memory: &'a dyn VirtualMemory,
        numbers: &'a ObjectNumbers,
        tensors: &'a BTreeSet<VirtAddr>,
    ) -> Self {
        let (begins, modules) = Default::default();
        Self { memory, numbers, tensors, begins, modules, left: MAX_READ }
    }

    /// How many modules there are.
    pub(super) fn len(&self) -> usize {
        self.modules.len()
    }

    /// Takes what a sweep found, and says what is to be looked for next.
    pub(super) fn follow(&mut self, hits: &[Hit]) -> BTreeSet<VirtAddr> {
        let ObjectNumbers { tensor_item_size, tensor_item_value, module_item_size, module_item_value, .. } =
            *self.numbers;
        let mut wanted = BTreeSet::new();
        for (slot, value) in hits {
            if self.tensors.contains(value) {
                self.add_begins(field(*slot, tensor_item_value.wrapping_neg()), tensor_item_size, &mut wanted);
            }
            if self.modules.contains_key(value) {
                self.add_begins(field(*slot, module_item_value.wrapping_neg()), module_item_size, &mut wanted);
            }
            if self.begins.contains(value) {
                self.add_modules(*slot, &mut wanted);
            }
        }
        wanted
    }

    /// Adds where a vector may begin that has an item of that size at `item`: at this one, or at one before it.
    fn add_begins(&mut self, item: VirtAddr, size: i64, wanted: &mut BTreeSet<VirtAddr>) {
        for index in 0..MAX_ITEMS.cast_signed() {
            let item = field(item, size.wrapping_mul(index).wrapping_neg());
            if self.begins.contains(&item) || !self.take(1) || self.name(item).is_none() {
                break;
            }
            self.begins.insert(item);
            wanted.insert(item);
        }
    }

    /// Adds the module with a dictionary whose vector of items lies at `vector`.
    fn add_modules(&mut self, vector: VirtAddr, wanted: &mut BTreeSet<VirtAddr>) {
        let ObjectNumbers { dict_items, module_parameters, module_buffers, module_children, .. } = *self.numbers;
        for offset in [module_parameters, module_buffers, module_children] {
            let module = field(vector, dict_items.wrapping_add(offset).wrapping_neg());
            if self.modules.contains_key(&module) {
                continue;
            }
            if let Some(read) = self.read(module) {
                self.modules.insert(module, read);
                wanted.insert(module);
            }
        }
    }

    /// Counts items that are read; `false` if they are too many.
    fn take(&mut self, count: u64) -> bool {
        let rest = self.left.checked_sub(count);
        self.left = rest.unwrap_or_default();
        rest.is_some()
    }

    /// Reads a module; `None` if its fields are not those of one.
    fn read(&mut self, module: VirtAddr) -> Option<Network> {
        let numbers = self.numbers;
        self.memory.pointer(module, 0).ok().filter(is_pointer)?;
        let training = self.memory.byte(module, numbers.module_training).ok().filter(|flag| *flag <= 1)?;
        let tensor = (numbers.tensor_item_size, numbers.tensor_item_value);
        let child = (numbers.module_item_size, numbers.module_item_value);
        Some(Network {
            parameters: self.items(field(module, numbers.module_parameters), tensor)?,
            buffers: self.items(field(module, numbers.module_buffers), tensor)?,
            children: self.items(field(module, numbers.module_children), child)?,
            training: training == 1,
        })
    }

    /// The items of a dictionary, each of that size and with its value there; `None` if it is none.
    fn items(&mut self, dict: VirtAddr, (size, value): (i64, i64)) -> Option<Vec<Item>> {
        let numbers = self.numbers;
        text_at(self.memory, numbers, field(dict, numbers.dict_description))?;
        let word = |offset: i64| self.memory.word(dict, numbers.dict_items.wrapping_add(offset)).ok();
        let (begin, end, room) = (word(0)?, word(WORD)?, word(2 * WORD)?);
        let (bytes, size) = (end.checked_sub(begin)?, size.unsigned_abs().max(1));
        let count = bytes / size;
        let elements = self.memory.word(dict, numbers.dict_elements).ok()?;
        if bytes % size != 0 || room < end || count > MAX_ITEMS || elements != count || !self.take(count) {
            return None;
        }
        let item = |index: u64| {
            let item = VirtAddr(begin.checked_add(index.checked_mul(size)?)?);
            let value = self.memory.pointer(item, value).ok().filter(is_pointer)?;
            Some((self.name(item)?, value))
        };
        (0..count).map(item).collect()
    }

    /// The name of the item at an address: PyTorch allows none that is empty or has a dot (torch/csrc/api/src/nn/module.cpp).
    fn name(&self, item: VirtAddr) -> Option<String> {
        text_at(self.memory, self.numbers, item).filter(|name| !name.contains('.'))
    }

    /// The models: modules that no other module has as a child.
    pub(super) fn models(&self, layout: &Layout) -> Vec<Model> {
        let children: BTreeSet<VirtAddr> =
            self.modules.values().flat_map(|module| &module.children).map(|(_, child)| *child).collect();
        let roots = self.modules.keys().filter(|module| !children.contains(module));
        roots.map(|root| self.model(*root, layout)).collect()
    }

    fn model(&self, root: VirtAddr, layout: &Layout) -> Model {
        let mut walk =
            Walk { networks: self, collector: Collector::new(self.memory, None, Some(layout)), above: Vec::new() };
        if !walk.visit(root, "") {
            walk.problem(root, "the rest of it is left out: its modules or tensors have too many names");
        }
        let held = walk.collector.held;
        // Nothing in memory says what a class of C++ is called.
        let model = unread_model(None, root, held.problems);
        Model { modules: held.modules, tensors: held.tensors, training: held.training, ..model }
    }
}

/// A walk through a module and those below it.
struct Walk<'a> {
    networks: &'a Networks<'a>,
    collector: Collector<'a>,
    above: Vec<VirtAddr>,
}

impl Walk<'_> {
    /// Lists a module and its descendants; `false` if there are too many.
    fn visit(&mut self, object: VirtAddr, name: &str) -> bool {
        if !self.collector.take_name() {
            return false;
        }
        if self.above.len() > MAX_DEPTH || self.above.contains(&object) {
            self.problem(object, "a module is left out: it is nested too deeply");
            return true;
        }
        // One that holds no tensor, and no module that does, was not found before.
        let unknown;
        let module = match self.networks.modules.get(&object) {
            Some(module) => module,
            None => {
                let Networks { memory, numbers, tensors, .. } = *self.networks;
                unknown = Networks::new(memory, numbers, tensors).read(object);
                let Some(module) = &unknown else {
                    self.problem(object, "a module could not be read: its dictionaries are inconsistent");
                    return true;
                };
                module
            }
        };
        let full_name = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        let mut listed = Module {
            name: name.to_owned(),
            class: None,
            framework_class: None,
            training: Some(module.training),
            hyperparameters: vec![(TRAINING.to_owned(), Value::Bool(module.training))],
            private: Vec::new(),
            parameters: Vec::new(),
            buffers: Vec::new(),
            unset: Vec::new(),
            object,
        };
        let mut tensors: Vec<(String, VirtAddr, TensorKind)> = Vec::new();
        for (items, kind, names) in [
            (&module.parameters, TensorKind::Parameter, &mut listed.parameters),
            (&module.buffers, TensorKind::Buffer, &mut listed.buffers),
        ] {
            for (key, tensor) in items {
                if self.collector.is_undefined(*tensor) {
                    listed.unset.push((key.clone(), kind));
                } else {
                    names.push(full_name(key));
                    tensors.push((full_name(key), *tensor, kind));
                }
            }
        }
        self.collector.held.modules.push(listed);
        for (name, tensor, kind) in tensors {
            if !self.collector.take_name() {
                return false;
            }
            self.collector.add(name, tensor, kind, true);
        }
        self.above.push(object);
        let is_whole = module.children.iter().all(|(key, child)| self.visit(*child, &full_name(key)));
        self.above.pop();
        is_whole
    }

    fn problem(&mut self, object: VirtAddr, message: &str) {
        let problem = Diagnostic::new(Code::PartsLeftOut, Some(object.into()), message.to_owned());
        self.collector.held.problems.push(problem);
    }
}
