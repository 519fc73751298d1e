//! Tensors that are constants in the code of TorchScript: freezing makes such constants of the weights of a module.
//!
//! A `prim::Constant` node of a graph has the tensor as its only attribute. The value that the node returns has a debug name, which
//! is the path to the weight if the module was frozen in this process (`self.conv.weight`; torch/csrc/jit/passes/freeze_module.cpp).
//! A file that such a module is saved to does not keep the names. The graph belongs to a method, whose name says the class.

use std::collections::{BTreeMap, BTreeSet};

use super::Hit;
use crate::addr::{VirtAddr, field};
use crate::framework::torch::held::{Collector, Held};
use crate::framework::torch::script::{ObjectNumbers, is_pointer, text_at, unread_model};
use crate::framework::torch::tensor::Layout;
use crate::model::{Model, Module, TensorKind};
use crate::paging::VirtualMemory;

/// What the debug names of weights begin with: the argument of the method that was frozen.
const SELF: &str = "self.";
/// Numbers of PyTorch's own names, at most: `value` is number 2292 in PyTorch 1.13 (ATen/core/interned_strings.h).
const SYMBOLS: u64 = 1 << 16;
/// Words of a node before its attributes: 36 in PyTorch 1.13 (torch/csrc/jit/ir/ir.h, `Node`).
const NODE_WORDS: i64 = 64;
/// Nodes and methods that are tried, of each a real program has some thousands.
const MAX_TRIED: usize = 1 << 16;
/// Bytes of a word.
const WORD: i64 = 8;

/// A constant of a graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Constant {
    /// The number of the value in its graph: constants are numbered in the order in which the code first uses them.
    unique: u64,
    /// The path to the weight, where the value has such a name.
    name: Option<String>,
    tensor: VirtAddr,
}

/// The constants that are some tensors.
pub(super) struct Constants<'a> {
    memory: &'a dyn VirtualMemory,
    numbers: &'a ObjectNumbers,
    tensors: &'a BTreeSet<VirtAddr>,
    /// What may be the attribute of a node, and its tensor.
    attributes: BTreeMap<VirtAddr, VirtAddr>,
    /// What may be the first element of a node's vector of attributes, and its tensor.
    elements: BTreeMap<VirtAddr, VirtAddr>,
    graphs: BTreeMap<VirtAddr, BTreeSet<Constant>>,
    /// The class of the method that a graph belongs to.
    classes: BTreeMap<VirtAddr, String>,
    /// Nodes and methods that may still be tried.
    left: [usize; 2],
}

impl<'a> Constants<'a> {
    pub(super) fn new(
        memory: &'a dyn VirtualMemory,
        numbers: &'a ObjectNumbers,
        tensors: &'a BTreeSet<VirtAddr>,
    ) -> Self {
        let (attributes, elements, graphs, classes) = Default::default();
        Self { memory, numbers, tensors, attributes, elements, graphs, classes, left: [MAX_TRIED; 2] }
    }

    /// How many tensors are constants with names.
    pub(super) fn len(&self) -> usize {
        self.graphs.values().flatten().filter(|constant| constant.name.is_some()).count()
    }

    /// Takes what a sweep found, and says what is to be looked for next.
    pub(super) fn follow(&mut self, hits: &[Hit]) -> BTreeSet<VirtAddr> {
        let mut wanted = BTreeSet::new();
        for (slot, value) in hits {
            if self.tensors.contains(value) {
                let attribute = field(*slot, self.numbers.constant_value.wrapping_neg());
                if self.is_attribute(attribute) && self.attributes.insert(attribute, *value).is_none() {
                    wanted.insert(attribute);
                }
            }
            if let Some(tensor) = self.attributes.get(value)
                && self.elements.insert(*slot, *tensor).is_none()
            {
                wanted.insert(*slot);
            }
            let [nodes, _] = &mut self.left;
            if let Some(tensor) = self.elements.get(value)
                && self.memory.word(*slot, WORD) == Ok(value.0.wrapping_add(WORD.unsigned_abs()))
                && take(nodes)
                && let Some((graph, constant)) = self.constant(*slot, *tensor)
            {
                self.graphs.entry(graph).or_default().insert(constant);
                wanted.insert(graph);
            }
            let [_, methods] = &mut self.left;
            if self.graphs.contains_key(value)
                && !self.classes.contains_key(value)
                && take(methods)
                && let Some(class) = self.class_of_method(*slot)
            {
                self.classes.insert(*value, class);
            }
        }
        wanted
    }

    /// Whether what begins there can be an attribute of a node: after its virtual table comes the number of its name.
    fn is_attribute(&self, at: VirtAddr) -> bool {
        let name = self.memory.word(at, self.numbers.constant_name).map(|name| name & u64::from(u32::MAX));
        name.is_ok_and(|name| (1..SYMBOLS).contains(&name))
            && self.memory.pointer(at, 0).is_ok_and(|table| is_pointer(&table))
    }

    /// The graph and the constant of the node whose vector of attributes lies at `attributes`: the node before it whose only output
    /// names that node.
    fn constant(&self, attributes: VirtAddr, tensor: VirtAddr) -> Option<(VirtAddr, Constant)> {
        let numbers = self.numbers;
        let value = |node: &VirtAddr| {
            let outputs = self.memory.pointer(*node, numbers.node_outputs).ok().filter(is_pointer)?;
            let end = self.memory.word(*node, numbers.node_outputs.checked_add(WORD)?).ok()?;
            let value = self.memory.pointer(outputs, 0).ok().filter(is_pointer)?;
            let is_only = end == outputs.0.wrapping_add(WORD.unsigned_abs());
            (is_only && self.memory.pointer(value, numbers.value_node).ok()? == *node).then_some((*node, value))
        };
        let mut nodes = (1..NODE_WORDS).map(|words| field(attributes, words.wrapping_mul(-WORD)));
        let (node, value) = nodes.find_map(|node| value(&node))?;
        let graph = self.memory.pointer(node, numbers.node_graph).ok().filter(is_pointer)?;
        let name = text_at(self.memory, numbers, field(value, numbers.value_name));
        let name = name.and_then(|name| Some(name.strip_prefix(SELF)?.to_owned()));
        let unique = self.memory.word(value, numbers.value_unique).ok()?;
        Some((graph, Constant { unique, name, tensor }))
    }

    /// The class of the method whose pointer to its graph lies at `slot`. The method's name lies right before it
    /// (ATen/core/qualified_name.h): as a whole, then what comes before the last dot, then what comes after it.
    fn class_of_method(&self, slot: VirtAddr) -> Option<String> {
        let before = |strings: i64| field(slot, self.numbers.string_size.wrapping_mul(-strings));
        let text = |strings: i64| text_at(self.memory, self.numbers, before(strings));
        let (whole, class) = (text(3)?, text(2)?);
        (whole.strip_prefix(&class)?.strip_prefix('.')? == text(1)?).then_some(class)
    }

    /// The models: the constants of all methods of one class, or of one graph of an unknown class. Graphs without a name are left out.
    pub(super) fn models(&self, layout: &Layout) -> Vec<Model> {
        let mut groups: BTreeMap<Result<&str, VirtAddr>, BTreeSet<&Constant>> = BTreeMap::new();
        for (graph, constants) in &self.graphs {
            let class = self.classes.get(graph).map(String::as_str);
            if constants.iter().any(|constant| constant.name.is_some()) {
                groups.entry(class.ok_or(*graph)).or_default().extend(constants);
            }
        }
        // Copies of a graph that were optimized belong to no method, and come last.
        let mut known: BTreeSet<VirtAddr> = BTreeSet::new();
        let mut models = Vec::new();
        for (class, constants) in groups {
            let tensors: BTreeSet<VirtAddr> = constants.iter().map(|constant| constant.tensor).collect();
            if tensors.is_disjoint(&known) {
                models.push(self.model(layout, class.ok(), &constants));
                known.extend(tensors);
            }
        }
        models
    }

    /// Which of the constants were buffers, memory does not say.
    fn model(&self, layout: &Layout, class: Option<&str>, constants: &BTreeSet<&Constant>) -> Model {
        let mut collector = Collector::new(self.memory, None, Some(layout));
        let mut names: BTreeSet<String> = BTreeSet::new();
        for Constant { unique, name, tensor } in constants {
            let name = name.clone().unwrap_or_else(|| format!("constant{unique}"));
            if names.insert(name.clone()) && collector.take_name() {
                collector.add(name, *tensor, TensorKind::Parameter, true);
            }
        }
        let Held { tensors, training, .. } = collector.held;
        let object = constants.first().map_or(VirtAddr(0), |constant| constant.tensor);
        let root = Module {
            name: String::new(),
            class: class.map(str::to_owned),
            framework_class: None,
            training: None,
            hyperparameters: Vec::new(),
            private: Vec::new(),
            parameters: names.into_iter().collect(),
            buffers: Vec::new(),
            unset: Vec::new(),
            object,
        };
        let model = unread_model(root.class.clone(), object, Vec::new());
        Model { modules: vec![root], tensors, training, ..model }
    }
}

/// Counts one; `false` if none is left.
fn take(left: &mut usize) -> bool {
    let rest = left.checked_sub(1);
    *left = rest.unwrap_or_default();
    rest.is_some()
}
