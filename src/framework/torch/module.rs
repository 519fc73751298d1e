//! Finding modules: the instances of `torch.nn.Module`, read one by one.

use std::collections::{BTreeMap, BTreeSet};

use super::extra::{self, Extra};
use crate::addr::VirtAddr;
use crate::cpython::{self, Attributes, Builtins, Interpreter, ObjectError, Objects, UNREADABLE, Value};

/// Where the base class of all modules is defined, in every PyTorch.
const MODULE_CLASS: (&str, &str) = ("torch.nn.modules.module", "Module");

/// Maximum length of the name of a class whose module can't be read, in bytes.
const MAX_QUALNAME: usize = 512;

/// The attributes in which a module keeps what it consists of.
const DICTIONARIES: [&str; 3] = ["_parameters", "_buffers", "_modules"];
/// How many of them make a module for certain.
const MOST_DICTIONARIES: usize = 2;

/// Where PyTorch's own layers are defined.
const LAYERS: &str = "torch.nn.modules.";
/// Layers that derive from a class, at least, to take it for their common base; PyTorch has over a hundred.
const MIN_HEIRS: usize = 3;

/// The types whose instances are modules: `torch.nn.Module` and all that derive from it.
pub(super) fn module_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    bases(interpreter).into_iter().flat_map(|base| interpreter.subtypes(base)).collect()
}

/// `torch.nn.Module`; more than one where an old one is left.
fn bases(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    let mut bases: BTreeSet<VirtAddr> = interpreter.heap_type(MODULE_CLASS.0, MODULE_CLASS.1).into_iter().collect();
    if bases.is_empty() {
        let objects = interpreter.objects();
        let is_module = |(module, name): (String, String)| (module.as_str(), name.as_str()) == MODULE_CLASS;
        let unread = interpreter.unread_classes.iter();
        bases.extend(unread.filter(|class| objects.heap_type_name(**class).is_ok_and(is_module)));
    }
    if bases.is_empty() {
        bases.extend(common_base(interpreter));
    }
    bases
}

/// The class from which most of PyTorch's layers derive, next to `object`: the base class of all
/// modules, known by its heirs where its own page is missing.
fn common_base(interpreter: &Interpreter) -> Option<VirtAddr> {
    let objects = interpreter.objects();
    let mut heirs: BTreeMap<VirtAddr, usize> = BTreeMap::new();
    for (address, info) in &interpreter.types {
        let is_layer = || objects.heap_type_name(*address).is_ok_and(|(module, _)| module.starts_with(LAYERS));
        if let [.., _, base, _] = *info.mro
            && is_layer()
        {
            *heirs.entry(base).or_default() += 1;
        }
    }
    let (base, heirs) = heirs.into_iter().max_by_key(|(_, heirs)| *heirs)?;
    (heirs >= MIN_HEIRS).then_some(base)
}

/// What is read of each module in any case, and what of all modules together beyond that: entries of their
/// dictionaries, and bytes of long strings. Many modules can share one dictionary.
const RESERVED_ENTRIES: usize = 1 << 12;
const RESERVED_TEXT: usize = 1 << 13;
const SHARED_ENTRIES: usize = 1 << 22;
const SHARED_TEXT: usize = 1 << 26;

/// What may still be read of all modules together, beyond what each may have.
struct Budget {
    entries: usize,
    text: usize,
}

impl Budget {
    /// Limits the entries of a dictionary to what is reserved for its module and the budget; returns how many are left out.
    fn cut<T>(&mut self, reserved: &mut usize, entries: &mut Vec<T>) -> usize {
        let of_reserved = entries.len().min(*reserved);
        *reserved -= of_reserved;
        let of_shared = (entries.len() - of_reserved).min(self.entries);
        self.entries -= of_shared;
        let left_out = entries.len() - of_reserved - of_shared;
        entries.truncate(of_reserved + of_shared);
        left_out
    }

    /// Reads a plain value with the same limits for its long strings.
    fn value(&mut self, reserved: &mut usize, read: impl FnOnce(&mut usize) -> Option<Value>) -> Option<Value> {
        let before = self.text.saturating_add(*reserved);
        let mut left = before;
        let value = read(&mut left);
        let used = before - left;
        self.text -= used.saturating_sub(*reserved);
        *reserved = reserved.saturating_sub(used);
        value
    }
}

/// A `torch.nn.Module` object.
#[derive(Clone, Debug)]
pub struct ModuleObject {
    /// `__module__.__qualname__` of its class.
    pub class: String,
    /// The nearest class in its resolution order that is part of PyTorch, if its own is not.
    pub torch_class: Option<String>,
    /// `training`.
    pub training: Option<bool>,
    /// Number of entries of its dictionaries that are left out, because all modules together have too many.
    pub left_out: usize,
    /// Plain attributes, in the order of definition.
    pub attributes: Vec<(String, Value)>,
    /// The other attributes: objects, and containers of objects.
    pub objects: Vec<(String, VirtAddr)>,
    /// `_parameters`; `None` for one that is registered but unset.
    pub parameters: Vec<(String, Option<VirtAddr>)>,
    /// `_buffers`, likewise.
    pub buffers: Vec<(String, Option<VirtAddr>)>,
    /// Names of buffers that `state_dict()` leaves out.
    pub non_persistent: BTreeSet<String>,
    /// `_modules`, likewise.
    pub children: Vec<(String, Option<VirtAddr>)>,
    /// Why `state_dict()` may hold more than all these.
    pub extra: Vec<Extra>,
}

impl ModuleObject {
    /// Its attributes that may hold tensors: parameters, buffers, and objects beside the three dictionaries.
    pub(super) fn holders(&self) -> Vec<(&str, VirtAddr)> {
        let registered = self.parameters.iter().chain(&self.buffers);
        let registered = registered.filter_map(|(name, tensor)| Some((name.as_str(), (*tensor)?)));
        let others = self.objects.iter().filter(|(name, _)| !DICTIONARIES.contains(&name.as_str()));
        registered.chain(others.map(|(name, value)| (name.as_str(), *value))).collect()
    }
}

/// The modules of an interpreter.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// By address.
    pub modules: BTreeMap<VirtAddr, ModuleObject>,
    /// Places that look like objects of a module type and can't be read as one, with the reason. Most are
    /// no objects: any pointer to such a type after a small number looks like one.
    pub unreadable: BTreeMap<VirtAddr, ObjectError>,
    /// Those of them that are modules all the same: they have most of the dictionaries that all modules have. With their class.
    pub damaged: BTreeMap<VirtAddr, String>,
    /// Modules that are known by their dictionaries alone, because their class can't be read: class and reason.
    pub of_unread_class: BTreeMap<VirtAddr, (VirtAddr, ObjectError)>,
}

/// Reads all modules among the instances of `types`, which are those of [`module_types`], and of the classes that can't be
/// read, among which there may be more.
pub(super) fn graph(interpreter: &Interpreter, builtins: &Builtins, types: &BTreeSet<VirtAddr>) -> Graph {
    let objects = interpreter.objects();
    let bases = bases(interpreter);
    let mut graph = Graph::default();
    let mut budget = Budget { entries: SHARED_ENTRIES, text: SHARED_TEXT };
    let unread = interpreter.unread_classes.difference(types);
    for (type_object, found) in
        types.iter().chain(unread).filter_map(|address| Some((address, interpreter.instances.get(address)?)))
    {
        let class_error = match interpreter.types.contains_key(type_object) {
            true => None,
            false => objects.type_info(*type_object).err(),
        };
        let (class, torch_class) = class_names(interpreter, *type_object);
        let extra = extra::of_type(interpreter, *type_object, &bases);
        for &object in found {
            match read_module(&objects, builtins, object, (&class, torch_class.as_ref()), &extra, &mut budget) {
                Ok(module) => {
                    graph.modules.insert(object, module);
                    graph.of_unread_class.extend(class_error.map(|error| (object, (*type_object, error))));
                }
                Err(error) => {
                    // Where its own type does not say where it keeps its attributes, the class of all modules does.
                    let mut like = [*type_object].into_iter().chain(bases.iter().copied());
                    if like.any(|like| has_dictionaries(&objects, object, like)) {
                        graph.damaged.insert(object, class.clone());
                    }
                    graph.unreadable.insert(object, error);
                }
            }
        }
    }
    graph
}

impl Graph {
    /// The modules that no other module holds; of modules that only hold each other, the first.
    pub fn roots(&self) -> Vec<VirtAddr> {
        let held: BTreeSet<VirtAddr> =
            self.modules.values().flat_map(|module| &module.children).filter_map(|(_, child)| *child).collect();
        let mut roots: Vec<VirtAddr> = self.modules.keys().copied().filter(|object| !held.contains(object)).collect();
        let mut reached = BTreeSet::new();
        for root in &roots {
            self.reach(*root, &mut reached);
        }
        for object in self.modules.keys() {
            if !reached.contains(object) {
                roots.push(*object);
                self.reach(*object, &mut reached);
            }
        }
        roots.sort_unstable();
        roots
    }

    /// All modules, each behind those that hold it, in the order in which they are registered.
    pub(super) fn in_order(&self) -> Vec<(VirtAddr, &ModuleObject)> {
        let (mut order, mut reached) = (Vec::new(), BTreeSet::new());
        let mut todo = self.roots();
        todo.reverse();
        while let Some(object) = todo.pop() {
            if let Some(module) = self.modules.get(&object).filter(|_| reached.insert(object)) {
                order.push((object, module));
                todo.extend(module.children.iter().rev().filter_map(|(_, child)| *child));
            }
        }
        order
    }

    fn reach(&self, from: VirtAddr, reached: &mut BTreeSet<VirtAddr>) {
        let mut todo = vec![from];
        while let Some(object) = todo.pop() {
            if reached.insert(object) {
                let children = self.modules.get(&object).into_iter().flat_map(|module| &module.children);
                todo.extend(children.filter_map(|(_, child)| *child));
            }
        }
    }

    /// The Python objects of all parameters and buffers.
    pub fn tensors(&self) -> BTreeSet<VirtAddr> {
        let registered = self.modules.values().flat_map(|module| module.parameters.iter().chain(&module.buffers));
        registered.filter_map(|(_, tensor)| *tensor).collect()
    }
}

/// Full name of a class, and of the nearest one in its resolution order that is part of PyTorch.
/// A part of the name that can't be read is a question mark.
fn class_names(interpreter: &Interpreter, type_object: VirtAddr) -> (String, Option<String>) {
    let objects = interpreter.objects();
    let is_torch = |name: &str| name.starts_with("torch.");
    let class = objects.type_name(type_object).unwrap_or_else(|_| {
        let qualname = objects.heap_type_qualname(type_object).unwrap_or_else(|_| UNREADABLE.to_owned());
        format!("{UNREADABLE}.{}", cpython::bounded(qualname, MAX_QUALNAME))
    });
    if is_torch(&class) {
        return (class, None);
    }
    let bases = interpreter.types.get(&type_object).map(|info| info.mro.as_slice()).unwrap_or_default();
    let torch_class = bases.iter().filter_map(|base| objects.type_name(*base).ok()).find(|name| is_torch(name));
    (class, torch_class)
}

/// Whether an object is a module for certain: it has most of the dictionaries that make one. The names of its attributes alone
/// do not tell, because instances of a type share them. Instances of `like` keep them where it does.
fn has_dictionaries(objects: &Objects<'_>, object: VirtAddr, like: VirtAddr) -> bool {
    let attributes = objects.attribute_items_like(object, like).unwrap_or_default();
    let named = |(name, value): &(VirtAddr, VirtAddr)| Some((objects.str_among(*name, &DICTIONARIES)?, *value));
    let readable = attributes.iter().filter_map(named).filter(|(_, value)| objects.dict(*value).is_ok());
    readable.map(|(name, _)| name).collect::<BTreeSet<&str>>().len() >= MOST_DICTIONARIES
}

fn read_module(
    objects: &Objects<'_>,
    builtins: &Builtins,
    object: VirtAddr,
    (class, torch_class): (&str, Option<&String>),
    of_type: &[Extra],
    budget: &mut Budget,
) -> Result<ModuleObject, ObjectError> {
    let mut attributes = objects.attributes(object)?;
    let (mut reserved_entries, mut reserved_text) = (RESERVED_ENTRIES, RESERVED_TEXT);
    let attribute = |name: &str| attributes.iter().find(|(key, _)| key == name).map(|(_, value)| *value);
    let mut left_out = 0;
    let mut registered = |name: &str| -> Result<Vec<(String, Option<VirtAddr>)>, ObjectError> {
        let missing = ObjectError::WrongType { address: object, expected: "module with its dictionaries" };
        let dict = attribute(name).ok_or(missing)?;
        let mut items = objects.dict(dict)?;
        left_out += budget.cut(&mut reserved_entries, &mut items);
        let items: Attributes = objects.with_names(items);
        Ok(items
            .into_iter()
            .map(|(key, value)| (key, Some(value).filter(|value| !is_none(objects, builtins, *value))))
            .collect())
    };
    let (parameters, buffers) = (registered("_parameters")?, registered("_buffers")?);
    let children = registered("_modules")?;
    let non_persistent = attribute("_non_persistent_buffers_set").map(|set| objects.str_set(set)).transpose()?;
    let (mut plain, mut others) = (Vec::new(), Vec::new());
    left_out += budget.cut(&mut reserved_entries, &mut attributes);
    for (name, value) in &attributes {
        let read = |left: &mut usize| Value::read_within(objects, builtins, *value, left);
        match budget.value(&mut reserved_text, read) {
            Some(value) => plain.push((name.clone(), value)),
            None => others.push((name.clone(), *value)),
        }
    }
    let training = plain.iter().find_map(|(name, value)| match value {
        Value::Bool(training) if name == "training" => Some(*training),
        _ => None,
    });
    let registered = [&parameters, &buffers, &children].into_iter().flatten().map(|(name, _)| name.as_str());
    let names = registered.chain(plain.iter().map(|(name, _)| name.as_str())).collect();
    let extra = extra::of_module(objects, of_type, &attributes, &names);
    Ok(ModuleObject {
        class: class.to_owned(),
        torch_class: torch_class.cloned(),
        training,
        left_out,
        attributes: plain,
        objects: others,
        parameters,
        buffers,
        non_persistent: non_persistent.unwrap_or_default(),
        children,
        extra,
    })
}

/// Whether an object is `None`, also where the module `builtins` could not be read.
fn is_none(objects: &Objects<'_>, builtins: &Builtins, object: VirtAddr) -> bool {
    match builtins.none {
        Some(none) => object == none,
        None => objects.type_of(object).and_then(|found| objects.type_name(found)).is_ok_and(|name| name == "NoneType"),
    }
}
