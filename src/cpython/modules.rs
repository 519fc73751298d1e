//! Imported modules, the built-in names, and the interpreter's own version.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::object::Objects;
use super::process::Interpreter;
use crate::addr::VirtAddr;

/// Imported modules: `__name__` and the dictionary that holds their names.
pub type Modules = BTreeMap<String, VirtAddr>;

impl Interpreter {
    /// The types that could be `module`: static, with a dictionary where a module has it.
    ///
    /// Its name would tell, but that lies in read-only data that a dump often lacks.
    pub fn module_types(&self) -> BTreeSet<VirtAddr> {
        let objects = self.objects();
        let is_module_type = |(address, flags): &(VirtAddr, u64)| {
            flags & self.layout.flag_heap_type as u64 == 0
                && objects.word(*address, self.layout.tp_dictoffset) == Ok(self.layout.module_dict as u64)
        };
        let types = self.types.iter().map(|(address, info)| (*address, info.flags));
        types.filter(is_module_type).map(|(address, _)| address).collect()
    }

    /// The modules among the instances of `types`, which are those of [`Interpreter::module_types`].
    pub fn modules(&self, types: &BTreeSet<VirtAddr>) -> Modules {
        let objects = self.objects();
        let candidates = types.iter().filter_map(|address| self.instances.get(address)).flatten();
        let dicts = candidates.filter_map(|object| objects.pointer(*object, self.layout.module_dict).ok());
        // Many modules may have one dictionary: it is read once, in the place of the first.
        let mut read = HashSet::new();
        let module = |dict: VirtAddr| {
            let name = objects.dict_item(dict, "__name__").ok()??;
            Some((objects.str(name).ok()?, dict))
        };
        let mut modules = Modules::new();
        for (name, dict) in dicts.filter(|dict| read.insert(*dict)).filter_map(module) {
            // Of two modules of one name (one was reloaded), the one with the most in it.
            let size = |dict: VirtAddr| objects.word(dict, self.layout.dict_used).unwrap_or_default();
            modules
                .entry(name)
                .and_modify(|known| {
                    if size(*known) < size(dict) {
                        *known = dict
                    }
                })
                .or_insert(dict);
        }
        modules
    }
}

/// What an interpreter is, told by its own `sys` module.
///
/// `None` where `sys` was not found or has no readable version: it is never guessed from a layout.
pub fn python_version(objects: &Objects<'_>, modules: &Modules) -> Option<String> {
    let text = attribute_str(objects, *modules.get("sys")?, "version")?;
    // "3.11.2 (main, …) [GCC …]"
    text.split_whitespace().next().map(str::to_owned)
}

/// A string of a module's dictionary.
pub fn attribute_str(objects: &Objects<'_>, dict: VirtAddr, name: &str) -> Option<String> {
    objects.str(objects.dict_item(dict, name).ok()??).ok()
}

/// Objects that have a name in every interpreter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Builtins {
    /// `None`.
    pub none: Option<VirtAddr>,
    /// The type `float`.
    pub float_type: Option<VirtAddr>,
}

impl Builtins {
    /// Reads them from the module `builtins`; where that is lost, `None` is what most modules have for `__doc__`.
    pub fn new(objects: &Objects<'_>, modules: &Modules) -> Self {
        let dict = modules.get("builtins");
        let item = |name| objects.dict_item(*dict?, name).ok().flatten();
        Self { none: item("None").or_else(|| most_frequent(objects, modules, "__doc__")), float_type: item("float") }
    }
}

/// The object that several modules have under a name, if there is one.
fn most_frequent(objects: &Objects<'_>, modules: &Modules, name: &str) -> Option<VirtAddr> {
    let mut counts: BTreeMap<VirtAddr, usize> = BTreeMap::new();
    for value in modules.values().filter_map(|dict| objects.dict_item(*dict, name).ok().flatten()) {
        *counts.entry(value).or_default() += 1;
    }
    let (value, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (count > 1).then_some(value)
}
