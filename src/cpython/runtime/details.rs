//! Single objects: the instances of a type, the attributes and referents of an object, strings that contain a text, imported
//! modules.

use serde::Serialize;

use super::{Census, Runtime};
use crate::addr::VirtAddr;
use crate::cpython::{Holders, Step, bounded};

/// Maximum number of attributes and referents listed for one object.
const MAX_HELD: usize = 1 << 12;
/// The longest name of an attribute, in bytes.
const MAX_NAME: usize = 256;

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectRow {
    /// Its address.
    pub address: VirtAddr,
    /// The name of its type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// A short representation.
    pub repr: String,
    /// The bytes of the object itself; `None` if its size can't be read.
    pub size: Option<u64>,
}

/// An object with its attributes and referents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectDetails {
    /// The object.
    #[serde(flatten)]
    pub object: ObjectRow,
    /// Its attributes by name: those of its `__dict__` and of its `__slots__`.
    pub attributes: Vec<HeldObject>,
    /// Its elements and the other objects that it refers to, each with the path to it.
    pub referents: Vec<HeldObject>,
}

/// An object that another object refers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldObject {
    /// The name of the attribute, or the path to the object in Python notation.
    pub name: String,
    /// The object.
    #[serde(flatten)]
    pub object: ObjectRow,
}

/// A module of `sys.modules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImportedModule {
    /// Its name.
    pub name: String,
    /// `__file__`; `None` for built-in modules.
    pub file: Option<String>,
    /// The dictionary that is its namespace.
    pub dict: VirtAddr,
}

impl Runtime<'_> {
    fn row(&self, address: VirtAddr) -> ObjectRow {
        let type_object = self.objects.type_of(address).ok();
        let type_name = type_object.map_or_else(|| "?".to_owned(), |found| self.names.name(found));
        ObjectRow { address, type_name, repr: self.repr(address), size: self.size(address) }
    }

    /// The objects of the types with this name: the full name, or its last part.
    pub fn instances(&self, census: &Census, name: &str, limit: usize) -> Vec<ObjectRow> {
        let is_named = |known: &str| known == name || known.rsplit_once('.').is_some_and(|(_, last)| last == name);
        let types = census.types.iter().filter(|found| is_named(&found.name));
        let objects = types.filter_map(|found| census.objects.get(&found.address)).flatten();
        objects.take(limit).map(|object| self.row(*object)).collect()
    }

    /// The strings that contain a text.
    pub fn strings(&self, census: &Census, text: &str, limit: usize) -> Vec<ObjectRow> {
        let flag = self.objects.layout().flag_str;
        let are_strings = |type_object: &VirtAddr| {
            let info = self.interpreter.types.get(type_object);
            info.is_some_and(|info| info.flags & flag.cast_unsigned() != 0)
        };
        let strings = census.objects.iter().filter(|(type_object, _)| are_strings(type_object));
        let holds = |object: &&VirtAddr| self.objects.str(**object).is_ok_and(|found| found.contains(text));
        let found = strings.flat_map(|(_, objects)| objects).filter(holds);
        found.take(limit).map(|object| self.row(*object)).collect()
    }

    /// An object with its attributes and referents; `None` if no object is at the address.
    pub fn details(&self, address: VirtAddr) -> Option<ObjectDetails> {
        let type_object = self.objects.type_of(address).ok()?;
        self.interpreter.types.get(&type_object)?;
        let mut details = ObjectDetails { object: self.row(address), attributes: Vec::new(), referents: Vec::new() };
        let mut holders = Holders::new(self.objects, &self.modules, []);
        let Some(kind) = holders.kind(address) else { return Some(details) };
        for (step, object) in holders.held(address, &kind, MAX_HELD).into_iter().take(MAX_HELD) {
            let object = self.row(object);
            match step {
                Step::Attribute(at) | Step::Slot(at) => {
                    let name = holders.name(step).unwrap_or_else(|| format!("?{at}"));
                    details.attributes.push(HeldObject { name: bounded(name, MAX_NAME), object });
                }
                _ => details.referents.push(HeldObject { name: holders.written(step), object }),
            }
        }
        Some(details)
    }

    /// The imported modules, by name.
    pub fn imported_modules(&self) -> Vec<ImportedModule> {
        let file = |dict| self.objects.str(self.objects.dict_item(dict, "__file__").ok()??).ok();
        let modules = self.modules.iter();
        modules.map(|(name, dict)| ImportedModule { name: name.clone(), file: file(*dict), dict: *dict }).collect()
    }
}
