//! The names of types as Python prints them. Types implemented in C are also found by their names in Python's own modules.

use std::collections::{BTreeMap, HashMap};

use crate::addr::VirtAddr;
use crate::cpython::{Interpreter, Modules, Objects};

/// Types implemented in C: the module and the name under which Python lists each, and its `type.__name__`.
///
/// Their own names are in read-only data, which a process image leaves out.
const NAMED: [(&str, &str, &str); 21] = [
    ("types", "FunctionType", "function"),
    ("types", "CodeType", "code"),
    ("types", "FrameType", "frame"),
    ("types", "CellType", "cell"),
    ("types", "GeneratorType", "generator"),
    ("types", "CoroutineType", "coroutine"),
    ("types", "AsyncGeneratorType", "async_generator"),
    ("_collections_abc", "generator", "generator"),
    ("_collections_abc", "coroutine", "coroutine"),
    ("_collections_abc", "async_generator", "async_generator"),
    ("types", "MethodType", "method"),
    ("types", "BuiltinFunctionType", "builtin_function_or_method"),
    ("types", "WrapperDescriptorType", "wrapper_descriptor"),
    ("types", "MethodWrapperType", "method-wrapper"),
    ("types", "MethodDescriptorType", "method_descriptor"),
    ("types", "ClassMethodDescriptorType", "classmethod_descriptor"),
    ("types", "ModuleType", "module"),
    ("types", "TracebackType", "traceback"),
    ("types", "GetSetDescriptorType", "getset_descriptor"),
    ("types", "MemberDescriptorType", "member_descriptor"),
    ("types", "MappingProxyType", "mappingproxy"),
];

/// The name of a type whose name can't be read.
const UNKNOWN: &str = "?";
/// The module that is left out of the full names of its types.
const BUILTINS: &str = "builtins";

/// The names of an interpreter's types.
pub struct TypeNames<'i> {
    objects: Objects<'i>,
    /// Types implemented in C.
    named: HashMap<VirtAddr, String>,
    by_name: BTreeMap<String, VirtAddr>,
}

impl<'i> TypeNames<'i> {
    /// The names of the types of an interpreter with these imported modules.
    pub fn new(interpreter: &'i Interpreter, modules: &Modules) -> Self {
        let objects = interpreter.objects();
        let mut names = Self { objects, named: HashMap::new(), by_name: BTreeMap::new() };
        let is_static = |flags: u64| flags & interpreter.layout.flag_heap_type.cast_unsigned() == 0;
        for (address, _) in interpreter.types.iter().filter(|(_, info)| is_static(info.flags)) {
            if let Ok(name) = objects.type_name(*address) {
                names.add(*address, name);
            }
        }
        for (module, name, type_name) in NAMED {
            let found = modules.get(module).and_then(|dict| objects.dict_item(*dict, name).ok().flatten());
            found.into_iter().for_each(|address| names.add(address, type_name.to_owned()));
        }
        let builtins = modules.get(BUILTINS).and_then(|dict| objects.str_dict(*dict).ok()).unwrap_or_default();
        for (name, address) in builtins {
            if interpreter.types.get(&address).is_some_and(|info| is_static(info.flags)) {
                names.add(address, name);
            }
        }
        names
    }

    /// Adds the name of a type unless it has one: `EnvironmentError` is another name of `OSError`.
    fn add(&mut self, address: VirtAddr, name: String) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.named.entry(address) {
            self.by_name.entry(name.clone()).or_insert(address);
            vacant.insert(name);
        }
    }

    /// The type implemented in C with this name.
    pub(super) fn find(&self, name: &str) -> Option<VirtAddr> {
        self.by_name.get(name).copied()
    }

    /// The full name of a type: `module.qualname`, or `qualname` alone for built-in types. A question mark if the name can't be
    /// read.
    pub fn name(&self, type_object: VirtAddr) -> String {
        if let Some(name) = self.named.get(&type_object) {
            return name.clone();
        }
        match self.objects.heap_type_name(type_object) {
            Ok((module, qualname)) if module == BUILTINS => qualname,
            Ok((module, qualname)) => format!("{module}.{qualname}"),
            Err(_) => self.objects.type_name(type_object).unwrap_or_else(|_| UNKNOWN.to_owned()),
        }
    }
}
