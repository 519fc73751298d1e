//! What a module's `state_dict()` may hold besides its parameters and buffers, according to its classes.

use std::collections::BTreeSet;

use crate::addr::{VirtAddr, field};
use crate::cpython::{Interpreter, Objects};
use crate::words::counted;

/// The methods of `torch.nn.Module` that make up `state_dict()`.
const METHODS: [&str; 3] = [EXTRA_STATE, "_save_to_state_dict", "state_dict"];
/// The method whose result is a separate entry.
const EXTRA_STATE: &str = "get_extra_state";
/// Attributes with functions that may change the result of `state_dict()`.
const HOOKS: [&str; 2] = ["_state_dict_hooks", "_state_dict_pre_hooks"];
/// Where PyTorch's hooks are defined that add a version number to the metadata, and no entry.
const KNOWN_HOOKS: &str = "torch.nn.utils.";
/// Names that a method may use without adding entries: what `Module` itself keeps, and operations on it.
const OF_MODULE: [&str; 18] = [
    "super",
    "_save_to_state_dict",
    "state_dict",
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
    "items",
    "keys",
    "values",
    "detach",
    "clone",
    "data",
    "is_lazy",
    "__class__",
    "self",
    "torch",
    "tensor",
];
/// Words of a function and of its code object that are searched for pointers; more than any version has.
const FUNCTION_WORDS: u64 = 20;
const CODE_WORDS: u64 = 32;
/// Maximum number of constants or names in one function.
const MAX_NAMES: u64 = 256;
/// Maximum number of names in a message.
const MAX_SHOWN: usize = 8;

const MAY_HOLD_MORE: &str = "its state_dict() may hold more than its parameters and buffers";

/// A method of a class, or a hook of one module, by which `state_dict()` may differ from its parameters and buffers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extra {
    /// `get_extra_state()`, with the class that defines it. It adds an entry, which is not recovered.
    GetExtraState(String),
    /// Another method.
    Method {
        /// The class that defines it; `None` if the module itself has it as an attribute.
        class: Option<String>,
        /// The method.
        method: &'static str,
        /// Names in its code: attributes and keys. Empty if they can't be read.
        names: Vec<String>,
    },
    /// The number of hooks.
    Hooks(usize),
    /// A class whose methods can't be read.
    Unreadable(VirtAddr),
}

impl Extra {
    /// The message for the module with that name and the given number of others like it.
    pub(super) fn describe(&self, name: &str, others: usize) -> String {
        let module = if name.is_empty() { "the root module".to_owned() } else { format!("the module {name:?}") };
        let what = match self {
            Self::GetExtraState(class) => {
                let key = if name.is_empty() { "_extra_state".to_owned() } else { format!("{name}._extra_state") };
                format!(
                    "state_dict() of {module} has an entry {key:?} from get_extra_state() of the class {class}, which \
                     is not recovered"
                )
            }
            Self::Method { class, method, names } => {
                let whose = class.as_ref().map_or_else(
                    || format!("{module} has its own {method}()"),
                    |class| format!("the class {class} of {module} overrides {method}()"),
                );
                let shown = names.iter().take(MAX_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
                let names = if shown.is_empty() { String::new() } else { format!(" (its code uses {shown})") };
                format!("{whose}{names}, so {MAY_HOLD_MORE}")
            }
            Self::Hooks(count) => {
                format!(
                    "{module} has {} on state_dict(), which may change its entries",
                    counted(*count, "hook", "hooks")
                )
            }
            Self::Unreadable(class) => {
                format!("the class at {class} of {module} can't be read completely, so {MAY_HOLD_MORE}")
            }
        };
        match others {
            0 => what,
            others => format!("{what} (the same holds for {})", counted(others, "other module", "other modules")),
        }
    }
}

/// What the classes of a module type define, most derived class first; `bases` are the base classes of all modules.
pub(super) fn of_type(interpreter: &Interpreter, type_object: VirtAddr, bases: &BTreeSet<VirtAddr>) -> Vec<Extra> {
    let objects = interpreter.objects();
    let mro = interpreter.types.get(&type_object).map(|info| info.mro.as_slice()).unwrap_or_default();
    // Without the base class the methods of all modules would count as this one's.
    if !mro.iter().any(|class| bases.contains(class)) {
        return Vec::new();
    }
    let called = called_methods(&objects, bases);
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for class in mro.iter().take_while(|class| !bases.contains(class)) {
        // A class that was made in C knows nothing of modules.
        let heap = objects.layout().flag_heap_type as u64;
        if objects.type_flags(*class).is_ok_and(|flags| flags & heap == 0) {
            continue;
        }
        let names = objects.pointer(*class, objects.layout().tp_dict).and_then(|dict| objects.dict(dict));
        let Ok(names) = names else {
            found.push(Extra::Unreadable(*class));
            continue;
        };
        for (name, function) in names {
            let Some(method) = objects.str_among(name, &METHODS) else { continue };
            if !called.contains(method) || !seen.insert(method) {
                continue;
            }
            let class_name = objects.type_name(*class).unwrap_or_else(|_| class.to_string());
            found.push(if method == EXTRA_STATE {
                Extra::GetExtraState(class_name)
            } else {
                let names = names_in(&objects, function, method);
                Extra::Method { class: Some(class_name), method, names }
            });
        }
    }
    found
}

/// The methods that `state_dict()` calls: those that the base class of all modules has. Before PyTorch 1.10 it has no
/// `get_extra_state()`.
fn called_methods(objects: &Objects<'_>, bases: &BTreeSet<VirtAddr>) -> BTreeSet<&'static str> {
    let mut called = BTreeSet::new();
    for base in bases {
        let names = objects.pointer(*base, objects.layout().tp_dict).and_then(|dict| objects.dict(dict));
        // What can't be read could have them all.
        let Ok(names) = names else { return METHODS.into() };
        called.extend(names.into_iter().filter_map(|(name, _)| objects.str_among(name, &METHODS)));
    }
    called
}

/// Those of a type that concern a module which has these attributes, and what it has of itself. `known` are the names
/// of its parameters, buffers, children and plain attributes.
pub(super) fn of_module(
    objects: &Objects<'_>,
    of_type: &[Extra],
    attributes: &[(String, VirtAddr)],
    known: &BTreeSet<&str>,
) -> Vec<Extra> {
    let adds = |extra: &&Extra| match extra {
        Extra::Method { class, names, .. } => {
            let class_name = class.as_deref().and_then(|class| class.rsplit('.').next());
            let is_known = |name: &String| {
                OF_MODULE.contains(&name.as_str()) || known.contains(name.as_str()) || class_name == Some(name)
            };
            names.is_empty() || !names.iter().all(is_known)
        }
        _ => true,
    };
    let mut found: Vec<Extra> = of_type.iter().filter(adds).cloned().collect();
    for (name, value) in attributes {
        if let Some(method) = METHODS.into_iter().find(|method| *method == name) {
            found.push(Extra::Method { class: None, method, names: Vec::new() });
        }
        if HOOKS.contains(&name.as_str()) {
            let hooks = objects.dict(*value).unwrap_or_default();
            let is_known = |hook: VirtAddr| {
                let class = objects.type_of(hook).and_then(|class| objects.type_name(class));
                class.is_ok_and(|class| class.starts_with(KNOWN_HOOKS))
            };
            let count = hooks.into_iter().filter(|(_, hook)| !is_known(*hook)).count();
            found.extend((count > 0).then_some(Extra::Hooks(count)));
        }
    }
    found
}

/// The names in the code of a function, and the strings in it that could be keys. Where a function keeps its code, and the
/// code its names, differs between versions; the code is known by the function's name, which stands in it as well.
fn names_in(objects: &Objects<'_>, function: VirtAddr, name: &str) -> Vec<String> {
    let pointers = |at: VirtAddr, count: u64| {
        let words = (0..count).map_while(move |word| objects.pointer(at, 8 * word as i64).ok());
        words.filter(|word| word.0 != 0 && word.0.is_multiple_of(8))
    };
    let strings = |code: VirtAddr| -> Option<Vec<String>> {
        let parts: Vec<VirtAddr> = pointers(code, CODE_WORDS).collect();
        parts.iter().any(|part| objects.str(*part).is_ok_and(|part| part == name)).then_some(())?;
        // Constants and names are the first two tuples in all versions; those of variables follow.
        let all = parts.iter().filter_map(|part| short_tuple(objects, *part)).take(2).flatten();
        Some(all.filter_map(|item| objects.str(item).ok()).collect())
    };
    let code = pointers(function, FUNCTION_WORDS)
        .filter(|at| *at != field(function, 0))
        .find_map(|at| strings(at).filter(|strings| !strings.is_empty()));
    let mut seen = BTreeSet::new();
    let is_name = |text: &String| !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_.".contains(c));
    code.unwrap_or_default().into_iter().filter(|text| is_name(text) && seen.insert(text.clone())).collect()
}

/// The items of a tuple, if it is short enough to belong to one function.
fn short_tuple(objects: &Objects<'_>, object: VirtAddr) -> Option<Vec<VirtAddr>> {
    let layout = objects.layout();
    objects.expect(object, layout.flag_tuple, "tuple").ok()?;
    objects.count(object, layout.tuple_size, "ob_size").ok().filter(|count| *count <= MAX_NAMES)?;
    objects.tuple(object).ok()
}
