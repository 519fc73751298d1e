//! The type objects of an interpreter: what each is, and what it derives from.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::Layout;
use super::object::{ObjectError, Objects};
use super::references::References;
use super::text::bounded;
use crate::addr::{VirtAddr, field};
use crate::paging::VirtualMemory;

/// The longest `tp_name` that is read, in bytes.
const MAX_NAME: usize = 256;

/// Maximum length of a full class name that is kept whole, in bytes.
const MAX_FULL_NAME: usize = 512;

/// Classes of one interpreter that are kept although they can't be read.
const MAX_UNREAD: usize = 1 << 12;

/// The longest chain of bases.
const MAX_BASES: usize = 64;

/// A type object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    /// `tp_flags`.
    pub flags: u64,
    /// The method resolution order, or where that is missing or too long the bases; the type itself comes first.
    pub mro: Vec<VirtAddr>,
}

/// The types of an interpreter by address.
pub type Types = BTreeMap<VirtAddr, TypeInfo>;

impl Layout {
    /// Whether [`Objects::type_info`] reads the same with both layouts: they agree in all that it looks at.
    pub(super) fn reads_types_like(&self, other: &Self) -> bool {
        let seen = |layout: &Self| {
            let object = (References::of(layout), layout.ob_type);
            let type_object = [layout.tp_flags, layout.tp_base, layout.tp_mro];
            (object, type_object, [layout.flag_tuple, layout.tuple_size, layout.tuple_items])
        };
        seen(self) == seen(other)
    }
}

impl Objects<'_> {
    /// Reads a candidate for a type object.
    ///
    /// # Errors
    /// It is no live type object: it has no references or no method resolution order of its own.
    pub fn type_info(&self, type_object: VirtAddr) -> Result<TypeInfo, ObjectError> {
        let not_a_type = ObjectError::WrongType { address: type_object, expected: "live type object" };
        if !self.is_alive(type_object)? {
            return Err(not_a_type);
        }
        let mro = match self.mro(type_object) {
            Err(ObjectError::Fault(_) | ObjectError::Implausible { .. }) => self.bases(type_object)?,
            mro => mro?,
        };
        let base = self.pointer(type_object, self.layout().tp_base)?;
        // Only `object` has no base; every base stands in the resolution order.
        if (base.0 == 0) != (mro.len() == 1) || (base.0 != 0 && !mro.contains(&base)) {
            return Err(not_a_type);
        }
        Ok(TypeInfo { flags: self.type_flags(type_object)?, mro })
    }

    /// A type and its bases as `tp_base` chains them: the resolution order, but for multiple inheritance.
    /// The types hold it themselves, so that it is there where the tuple is not, or is longer than what is read.
    fn bases(&self, type_object: VirtAddr) -> Result<Vec<VirtAddr>, ObjectError> {
        let not_a_type = ObjectError::WrongType { address: type_object, expected: "type with bases" };
        let mut bases = vec![type_object];
        let mut last = type_object;
        loop {
            let base = self.pointer(last, self.layout().tp_base)?;
            if base.0 == 0 {
                break;
            }
            if bases.len() >= MAX_BASES || bases.contains(&base) || !self.is_alive(base)? {
                return Err(not_a_type);
            }
            bases.push(base);
            last = base;
        }
        // The last one is `object`: its type is `type`, which is its own.
        let metatype = self.type_of(last)?;
        if bases.len() < 2 || self.type_of(metatype)? != metatype {
            return Err(not_a_type);
        }
        Ok(bases)
    }

    /// `__module__` and `__qualname__` of a type made by a class statement. Its `__name__` may differ, because programs
    /// that create classes can set it.
    ///
    /// # Errors
    /// It is no such type, or they can't be read.
    pub fn heap_type_name(&self, type_object: VirtAddr) -> Result<(String, String), ObjectError> {
        let qualname = self.heap_type_qualname(type_object)?;
        let dict = self.pointer(type_object, self.layout().tp_dict)?;
        let module = self.dict_item(dict, "__module__")?;
        let no_module = ObjectError::WrongType { address: type_object, expected: "type with a __module__" };
        Ok((self.str(module.ok_or(no_module)?)?, qualname))
    }

    /// Whether a type made by a class statement has a full name that ends with its `__name__`, as almost all have: evidence
    /// that the layout reads names.
    ///
    /// # Errors
    /// It is not such a type, or its names can't be read.
    pub(super) fn has_one_name(&self, type_object: VirtAddr) -> Result<bool, ObjectError> {
        let (_, qualname) = self.heap_type_name(type_object)?;
        let name = self.str(self.pointer(type_object, self.layout().ht_name)?)?;
        Ok(!name.is_empty() && qualname.ends_with(&name))
    }

    /// Whether what lies here has the names of a class: `__name__` is the end of `__qualname__`. This needs nothing else
    /// of the type object to be sound.
    fn has_class_names(&self, type_object: VirtAddr) -> bool {
        let text = |offset: i64| {
            let text = self.pointer(type_object, offset)?;
            let length = self.word(text, self.layout().str_length)?;
            let too_long = ObjectError::Implausible { address: text, field: "length", value: length };
            if length > MAX_FULL_NAME as u64 { Err(too_long) } else { self.str(text) }
        };
        let names = (text(self.layout().ht_qualname), text(self.layout().ht_name));
        matches!(names, (Ok(qualname), Ok(name)) if !name.is_empty() && qualname.ends_with(&name))
    }

    /// `__qualname__` of a type made by a class statement.
    ///
    /// # Errors
    /// It is no such type, or the name can't be read.
    pub fn heap_type_qualname(&self, type_object: VirtAddr) -> Result<String, ObjectError> {
        if self.type_flags(type_object)? & self.layout().flag_heap_type as u64 == 0 {
            return Err(ObjectError::WrongType { address: type_object, expected: "heap type" });
        }
        self.str(self.pointer(type_object, self.layout().ht_qualname)?)
    }

    /// The full name of any type, as `type.__module__ + "." + type.__qualname__`.
    ///
    /// # Errors
    /// The name can't be read: that of a static type lies in the executable's read-only data, which
    /// a dump often lacks.
    pub fn type_name(&self, type_object: VirtAddr) -> Result<String, ObjectError> {
        if self.type_flags(type_object)? & self.layout().flag_heap_type as u64 != 0 {
            let (module, qualname) = self.heap_type_name(type_object)?;
            return Ok(bounded(format!("{module}.{qualname}"), MAX_FULL_NAME));
        }
        let address = self.pointer(type_object, self.layout().tp_name)?;
        c_string(self.memory(), address).ok_or(ObjectError::WrongType { address, expected: "C string" })
    }
}

/// The live types among the objects whose `ob_type` lies in one of the slots.
pub(super) fn read_types(objects: &Objects<'_>, slots: &[(VirtAddr, VirtAddr)]) -> Types {
    let candidates = slots.iter().map(|(slot, _)| field(*slot, -objects.layout().ob_type));
    candidates.filter_map(|address| Some((address, objects.type_info(address).ok()?))).collect()
}

/// Classes among the objects whose `ob_type` lies in one of the slots that are not among `types`: they have names, but what
/// else makes a live type object is damaged or missing.
pub(super) fn unread_classes(
    objects: &Objects<'_>,
    slots: &[(VirtAddr, VirtAddr)],
    types: &Types,
) -> BTreeSet<VirtAddr> {
    let candidates = slots.iter().map(|(slot, _)| field(*slot, -objects.layout().ob_type));
    let is_unread = |address: &VirtAddr| !types.contains_key(address) && objects.has_class_names(*address);
    candidates.filter(is_unread).take(MAX_UNREAD).collect()
}

/// The printable ASCII text at `address` up to its zero byte.
pub(super) fn c_string(memory: &dyn VirtualMemory, address: VirtAddr) -> Option<String> {
    let mut text = String::new();
    for offset in 0..MAX_NAME as u64 {
        // A name may be said to lie at the last addresses of all.
        match *memory.bytes_at(address.checked_add(offset)?).ok()?.first()? {
            0 => return Some(text),
            byte if byte.is_ascii_graphic() => text.push(char::from(byte)),
            _ => return None,
        }
    }
    None
}
