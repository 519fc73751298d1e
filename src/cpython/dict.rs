//! Dictionaries, sets, and the attributes of instances.
//!
//! A dictionary's keys are in an own table, which the instances of a class share; the values are in
//! that table (combined), or in an array of the dictionary (split), or from 3.13 in the instance itself.

use std::collections::{BTreeSet, HashMap};

use super::object::{ObjectError, Objects};
use super::text::bounded;
use crate::addr::{VirtAddr, field};

/// Base-2 logarithm of the largest key table that is read.
const MAX_LOG2_SIZE: u32 = 26;

/// The longest name that is kept whole, in bytes.
const MAX_NAME: usize = 4096;

/// The table of a dictionary's keys.
struct Keys {
    /// Where the first entry lies.
    entries: VirtAddr,
    /// Entries in use, deleted ones included.
    count: u64,
    /// Words in an entry, and the places of key and value in it.
    entry_words: usize,
    key: usize,
    value: usize,
}

/// What the name of an attribute or item begins with if it can't be read; the address of the string follows.
pub const UNREADABLE: &str = "?";

/// Names and values of attributes, in the order of definition.
pub type Attributes = Vec<(String, VirtAddr)>;

/// The names of keys. Long names are shortened and read once, because one long string can be the key of every entry.
#[derive(Default)]
struct Names {
    long: HashMap<VirtAddr, String>,
}

impl Names {
    /// The name of a key; `None` if it is not a string.
    fn of(&mut self, objects: &Objects<'_>, key: VirtAddr) -> Option<String> {
        if let Some(known) = self.long.get(&key) {
            return Some(known.clone());
        }
        match objects.str(key) {
            Ok(name) if name.len() > MAX_NAME => {
                Some(self.long.entry(key).or_insert_with(|| bounded(name, MAX_NAME)).clone())
            }
            Err(ObjectError::Fault(_)) => Some(format!("{UNREADABLE}{key}")),
            name => name.ok(),
        }
    }
}

impl Objects<'_> {
    /// Keys and values of a dictionary, in the order of insertion.
    ///
    /// # Errors
    /// It is no dictionary, or can't be read whole.
    pub fn dict(&self, object: VirtAddr) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        let layout = self.layout();
        self.expect(object, layout.flag_dict, "dict")?;
        let used = self.count(object, layout.dict_used, "ma_used")?;
        let keys = self.pointer(object, layout.dict_keys)?;
        let values = self.pointer(object, layout.dict_values)?;
        let items = if values.0 == 0 { self.combined(keys)? } else { self.split(keys, values)? };
        if items.len() as u64 != used {
            return Err(ObjectError::Implausible { address: object, field: "ma_used", value: used });
        }
        Ok(items)
    }

    /// Entries of the table of a dictionary, which are all read to find the items.
    pub(super) fn dict_entries(&self, object: VirtAddr) -> Result<u64, ObjectError> {
        Ok(self.keys(self.pointer(object, self.layout().dict_keys)?)?.count)
    }

    /// The items of a dictionary whose keys are strings; others are left out. A key that is not there to be
    /// read gets a name that begins with [`UNREADABLE`].
    ///
    /// # Errors
    /// It is no dictionary, or can't be read whole.
    pub fn str_dict(&self, object: VirtAddr) -> Result<Attributes, ObjectError> {
        Ok(self.named(self.dict(object)?))
    }

    fn named(&self, items: Vec<(VirtAddr, VirtAddr)>) -> Attributes {
        let mut names = Names::default();
        items.into_iter().filter_map(|(key, value)| Some((names.of(self, key)?, value))).collect()
    }

    /// The items with their names. A key that is not a string also gets a name that begins with [`UNREADABLE`], so
    /// nothing is left out.
    pub(crate) fn with_names(&self, items: Vec<(VirtAddr, VirtAddr)>) -> Attributes {
        let mut names = Names::default();
        let mut name = |key: VirtAddr| names.of(self, key).unwrap_or_else(|| format!("{UNREADABLE}{key}"));
        items.into_iter().map(|(key, value)| (name(key), value)).collect()
    }

    /// The elements of a `set` of strings, named like the keys of a dictionary; other elements are left out.
    ///
    /// # Errors
    /// It can't be read completely, or is not a set.
    pub fn str_set(&self, object: VirtAddr) -> Result<BTreeSet<String>, ObjectError> {
        let mut names = Names::default();
        Ok(self.set(object)?.into_iter().filter_map(|element| names.of(self, element)).collect())
    }

    /// The value of a string key of a dictionary.
    ///
    /// # Errors
    /// It is no dictionary, or can't be read whole.
    pub fn dict_item(&self, object: VirtAddr, name: &str) -> Result<Option<VirtAddr>, ObjectError> {
        let items = self.dict(object)?;
        Ok(items.into_iter().find(|(key, _)| self.str_among(*key, &[name]).is_some()).map(|(_, value)| value))
    }

    /// The elements of a `set`, in the order of its table.
    ///
    /// # Errors
    /// It can't be read completely, or is not a set.
    pub fn set(&self, object: VirtAddr) -> Result<Vec<VirtAddr>, ObjectError> {
        let layout = self.layout();
        let used = self.count(object, layout.set_used, "used")?;
        let mask = self.count(object, layout.set_mask, "mask")?;
        if !(mask + 1).is_power_of_two() || used > mask + 1 {
            return Err(ObjectError::Implausible { address: object, field: "mask", value: mask });
        }
        let table = self.pointer(object, layout.set_table)?;
        let mut elements = Vec::new();
        for slot in 0..=mask {
            let entry = field(table, (slot as i64).wrapping_mul(layout.set_entry_size));
            let key = self.pointer(entry, layout.set_entry_key)?;
            let hash = self.word(entry, layout.set_entry_hash)?;
            // A removed element leaves a dummy with the hash -1 behind.
            if key.0 != 0 && hash != u64::MAX {
                elements.push(key);
            }
        }
        if elements.len() as u64 != used {
            return Err(ObjectError::Implausible { address: object, field: "used", value: used });
        }
        Ok(elements)
    }

    /// The attributes that an instance has of itself: what `vars()` gives.
    ///
    /// # Errors
    /// Its type has no attributes, or they can't be read completely.
    pub fn attributes(&self, object: VirtAddr) -> Result<Attributes, ObjectError> {
        Ok(self.named(self.attribute_items(object)?))
    }

    /// The same, with the objects that are the names.
    ///
    /// # Errors
    /// Its type has no attributes, or they can't be read completely.
    pub(crate) fn attribute_items(&self, object: VirtAddr) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        self.attribute_items_like(object, self.type_of(object)?)
    }

    /// The same for an object that keeps its attributes where instances of `like` have them, whatever its own type says of that.
    ///
    /// # Errors
    /// The type has no attributes, or they can't be read completely.
    pub(crate) fn attribute_items_like(
        &self,
        object: VirtAddr,
        like: VirtAddr,
    ) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        let layout = self.layout();
        let type_object = self.type_of(object)?;
        let flags = self.type_flags(like)?;
        let has = |flag: Option<i64>| flag.is_some_and(|flag| flags & flag as u64 != 0);
        if !has(layout.flag_managed_dict) {
            return self.dict_or_none(self.pointer(object, self.dict_offset(object, like)?)?);
        }
        if let Some(offset) = layout.managed_dict_or_values {
            let word = self.word(object, offset)?;
            return if word & 1 == 1 {
                self.shared_attributes(type_object, VirtAddr(word.wrapping_add(1)))
            } else {
                self.dict_or_none(VirtAddr(word))
            };
        }
        if let Some(offset) = layout.managed_values {
            let values = self.pointer(object, offset)?;
            if values.0 != 0 {
                return self.shared_attributes(type_object, values);
            }
        }
        if let Some(offset) = layout.managed_dict {
            let dict = self.pointer(object, offset)?;
            if dict.0 != 0 {
                return self.dict(dict);
            }
        }
        if has(layout.flag_inline_values) {
            let values = field(object, self.word(like, layout.tp_basicsize)?.cast_signed());
            let is_valid = match layout.values_valid {
                Some(valid) => self.byte(values, valid)? != 0,
                None => true,
            };
            if is_valid {
                return self.shared_attributes(type_object, values);
            }
        }
        Ok(Vec::new())
    }

    /// The items of a dictionary that is created when it is first needed.
    fn dict_or_none(&self, dict: VirtAddr) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        if dict.0 == 0 { Ok(Vec::new()) } else { self.dict(dict) }
    }

    /// Where the pointer to an instance's dictionary lies, for a type with `tp_dictoffset`.
    fn dict_offset(&self, object: VirtAddr, type_object: VirtAddr) -> Result<i64, ObjectError> {
        let offset = self.word(type_object, self.layout().tp_dictoffset)? as i64;
        if offset <= 0 {
            // Negative offsets count from the end of variable-sized objects: no module is one.
            return Err(ObjectError::WrongType { address: object, expected: "instance with a __dict__" });
        }
        Ok(offset)
    }

    /// Attributes whose names are the shared keys of the type and whose values are in an array.
    fn shared_attributes(
        &self,
        type_object: VirtAddr,
        values: VirtAddr,
    ) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        let keys = self.pointer(type_object, self.layout().ht_cached_keys)?;
        self.split(keys, values)
    }

    fn combined(&self, keys: VirtAddr) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        let keys = self.keys(keys)?;
        let words = self.words(keys.entries, keys.count * keys.entry_words as u64)?;
        let items = words.chunks_exact(keys.entry_words);
        Ok(items.filter_map(|entry| pair(*entry.get(keys.key)?, *entry.get(keys.value)?)).collect())
    }

    fn split(&self, keys: VirtAddr, values: VirtAddr) -> Result<Vec<(VirtAddr, VirtAddr)>, ObjectError> {
        let keys = self.keys(keys)?;
        let names = self.words(keys.entries, keys.count * keys.entry_words as u64)?;
        let values = self.words(field(values, self.layout().values_items), keys.count)?;
        let entries = names.chunks_exact(keys.entry_words).zip(values);
        Ok(entries.filter_map(|(entry, value)| pair(*entry.get(keys.key)?, value)).collect())
    }

    /// Reads the head of a key table.
    fn keys(&self, keys: VirtAddr) -> Result<Keys, ObjectError> {
        let layout = self.layout();
        let implausible = |field, value| ObjectError::Implausible { address: keys, field, value };
        let count = self.count(keys, layout.keys_entry_count, "dk_nentries")?;
        let general = (layout.entry_size, layout.entry_key, layout.entry_value);
        let (size, index_bytes, (entry_size, key, value)) = match (layout.keys_log2_size, layout.keys_size) {
            (Some(log2_size), _) => {
                let log2 = |offset: Option<i64>, name| {
                    let exponent = u32::from(self.byte(keys, offset.unwrap_or(log2_size))?);
                    let is_sound = exponent <= MAX_LOG2_SIZE + 3;
                    if is_sound { Ok(1u64 << exponent) } else { Err(implausible(name, exponent.into())) }
                };
                let kind = layout.keys_kind.map(|kind| self.byte(keys, kind)).transpose()?;
                let str_entry = layout.str_entry_size.zip(layout.str_entry_key).zip(layout.str_entry_value);
                let entry = match str_entry {
                    Some(((size, key), value)) if kind.map(i64::from) != layout.keys_kind_general => (size, key, value),
                    _ => general,
                };
                let index_bytes = log2(layout.keys_log2_index_bytes, "dk_log2_index_bytes")?;
                (log2(Some(log2_size), "dk_log2_size")?, index_bytes, entry)
            }
            (None, Some(size)) => {
                let size = self.count(keys, size, "dk_size")?;
                // DK_IXSIZE in Objects/dictobject.c
                let width = if size <= 0xff {
                    1
                } else if size <= 0xffff {
                    2
                } else {
                    4
                };
                (size, size * width, general)
            }
            (None, None) => {
                return Err(ObjectError::WrongType { address: keys, expected: "key table of a known layout" });
            }
        };
        if !size.is_power_of_two() {
            return Err(implausible("dk_size", size));
        }
        if count > size {
            return Err(implausible("dk_nentries", count));
        }
        // A layout of the user may hold any number.
        let entry_words = usize::try_from(entry_size / 8).ok().filter(|words| (1..=8).contains(words));
        Ok(Keys {
            entries: field(keys, layout.keys_indices.wrapping_add_unsigned(index_bytes)),
            count,
            entry_words: entry_words.ok_or_else(|| implausible("entry size", entry_size.cast_unsigned()))?,
            key: (key / 8) as usize,
            value: (value / 8) as usize,
        })
    }
}

/// An item of a dictionary; `None` for a deleted or unset one.
fn pair(key: u64, value: u64) -> Option<(VirtAddr, VirtAddr)> {
    (key != 0 && value != 0).then_some((VirtAddr(key), VirtAddr(value)))
}
