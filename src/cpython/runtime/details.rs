//! Single objects: instances of a type, what one of them holds, strings with a text, imported modules.

use serde::Serialize;

use super::{Census, Runtime};
use crate::addr::VirtAddr;
use crate::cpython::{Holders, Step, bounded};

/// Attributes and referents of one object that are listed.
const MAX_HELD: usize = 1 << 12;
/// The longest name of an attribute, in bytes.
const MAX_NAME: usize = 256;

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectRow {
    /// Where it lies.
    pub address: VirtAddr,
    /// Name of its type.
    #[serde(rename = "type")]
    pub type_name: String,
    /// A short representation.
    pub repr: String,
    /// Bytes of the object itself; `None` where that can't be read.
    pub size: Option<u64>,
}

/// An object with what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectDetails {
    /// The object.
    #[serde(flatten)]
    pub object: ObjectRow,
    /// Its attributes by name: what `vars()` gives, and its slots.
    pub attributes: Vec<HeldObject>,
    /// Its elements, and what else it refers to, by the way to them.
    pub referents: Vec<HeldObject>,
}

/// An object that another one holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeldObject {
    /// The name of the attribute, or the way to it as Python writes it.
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
    /// `__file__`; `None` for what is built in.
    pub file: Option<String>,
    /// The dictionary of its names.
    pub dict: VirtAddr,
}

impl Runtime<'_> {
    fn row(&self, address: VirtAddr) -> ObjectRow {
        let type_object = self.objects.type_of(address).ok();
        let type_name = type_object.map_or_else(|| "?".to_owned(), |found| self.names.name(found));
        ObjectRow { address, type_name, repr: self.repr(address), size: self.size(address) }
    }

    /// The objects of the types with a name: the full one, or its last part.
    pub fn instances(&self, census: &Census, name: &str, limit: usize) -> Vec<ObjectRow> {
        let is_named = |known: &str| known == name || known.rsplit_once('.').is_some_and(|(_, last)| last == name);
        let types = census.types.iter().filter(|found| is_named(&found.name));
        let objects = types.filter_map(|found| census.objects.get(&found.address)).flatten();
        objects.take(limit).map(|object| self.row(*object)).collect()
    }

    /// The strings that hold a text.
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

    /// An object and what it holds; `None` if there is none at the address.
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
