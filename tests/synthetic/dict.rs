//! Dictionaries, sets and the attributes of instances.

use super::python::{Keeping, Python};

/// Base-2 logarithm of the slots of keys that instances share, and the keys that fit.
const SHARED_LOG2: u64 = 6;
const SHARED_KEYS: u64 = 30;

/// A table of keys that is being filled.
struct Keys {
    at: u64,
    entries: u64,
    entry_size: u64,
    key: u64,
    value: u64,
    /// `None` where entries keep no hash.
    hash: Option<u64>,
}

impl Python {
    /// A dictionary with string keys and a table of its own.
    pub fn dict(&self, items: &[(&str, u64)]) -> u64 {
        let items: Vec<(u64, u64)> = items.iter().map(|(key, value)| (self.str(key), *value)).collect();
        self.combined(&items, true)
    }

    /// A dictionary that looks up keys of any type: slower, and of another form from 3.11.
    pub fn general_dict(&self, items: &[(u64, u64)]) -> u64 {
        self.combined(items, false)
    }

    fn combined(&self, items: &[(u64, u64)], only_str: bool) -> u64 {
        // An item that was deleted stays as a gap; a third of the slots is always free.
        let log2 = ((items.len() as u64 + 1) * 3 / 2 + 1).next_power_of_two().trailing_zeros().max(3).into();
        let keys = self.keys(log2, u64::from(only_str));
        for (index, (key, value)) in [(0, 0)].iter().chain(items).enumerate() {
            self.set_entry(&keys, index as u64, *key, *value);
        }
        self.put(keys.at, "dict_keys.dk_nentries", items.len() as u64 + 1);
        self.dict_object(items.len() as u64, keys.at, 0)
    }

    /// A set of these objects, with the traces of a removed one.
    pub fn set(&self, items: &[u64]) -> u64 {
        let slots = (items.len() as u64 * 2 + 2).next_power_of_two().max(8);
        let size = self.at("set_entry.sizeof");
        let table = self.process.alloc(slots * size);
        let removed = [(self.builtin.none, u64::MAX)];
        let entries = removed.into_iter().chain(items.iter().map(|item| (*item, item >> 4)));
        for (entry, (key, hash)) in (table..).step_by(2 * size as usize).zip(entries) {
            self.put(entry, "set_entry.key", key);
            self.put(entry, "set_entry.hash", hash);
        }
        let at = self.object(self.builtin.set, 200);
        self.put(at, "set.used", items.len() as u64);
        self.put(at, "set.mask", slots - 1);
        self.put(at, "set.table", table);
        at
    }

    fn dict_object(&self, used: u64, keys: u64, values: u64) -> u64 {
        let at = self.object(self.builtin.dict, 48);
        self.put(at, "dict.ma_used", used);
        self.put(at, "dict.ma_keys", keys);
        self.put(at, "dict.ma_values", values);
        at
    }

    /// An empty table of keys with `1 << log2` slots, of a kind as 3.11 numbers them: general 0, only strings 1,
    /// shared 2.
    fn keys(&self, log2: u64, kind: u64) -> Keys {
        let slots = 1 << log2;
        let short = kind != 0 && self.find("dict_unicode_entry.sizeof").is_some();
        let entry = if short { "dict_unicode_entry" } else { "dict_key_entry" };
        let entry_size = self.at(&format!("{entry}.sizeof"));
        let indices = self.at("dict_keys.dk_indices");
        let width: u64 = if log2 < 8 {
            1
        } else if log2 < 16 {
            2
        } else {
            4
        };
        let usable = if kind == 2 { SHARED_KEYS } else { slots * 2 / 3 };
        let at = self.process.alloc(indices + slots * width + usable * entry_size);
        self.process.put(at, 1);
        if self.find("dict_keys.dk_log2_size").is_some() {
            let byte = |key: &str, value: u64| self.process.write(at + self.at(key), &[value as u8]);
            byte("dict_keys.dk_log2_size", log2);
            byte("dict_keys.dk_log2_index_bytes", log2 + u64::from(width.trailing_zeros()));
            byte("dict_keys.dk_kind", kind);
        } else {
            self.put(at, "dict_keys.dk_size", slots);
        }
        // The index table holds -1 for what is free; its content is of no use to us.
        self.process.write(at + indices, &vec![0xff; (slots * width) as usize]);
        Keys {
            at,
            entries: at + indices + slots * width,
            entry_size,
            key: self.at(&format!("{entry}.me_key")),
            value: self.at(&format!("{entry}.me_value")),
            hash: (!short).then(|| self.at("dict_key_entry.me_hash")),
        }
    }

    fn set_entry(&self, keys: &Keys, index: u64, key: u64, value: u64) {
        let entry = keys.entries + index * keys.entry_size;
        self.process.put(entry + keys.key, key);
        self.process.put(entry + keys.value, value);
        if let Some(hash) = keys.hash {
            self.process.put(entry + hash, key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
    }

    /// The empty table of keys that the instances of a class will share.
    pub(super) fn shared_keys(&self) -> u64 {
        self.keys(SHARED_LOG2, 2).at
    }

    /// Adds names to the keys that instances of a class share; all those keys.
    fn share(&self, class: u64, names: &[&str]) -> (u64, Vec<String>) {
        let at = self.get(class, "heap_type.ht_cached_keys");
        let mut kept = self.kept.borrow_mut();
        let shared = &mut kept.get_mut(&class).unwrap().1;
        let short = self.find("dict_unicode_entry.sizeof").is_some();
        let entry = if short { "dict_unicode_entry" } else { "dict_key_entry" };
        let entries = at + self.at("dict_keys.dk_indices") + (1 << SHARED_LOG2);
        for name in names {
            if !shared.iter().any(|known| known == name) {
                let place = entries + shared.len() as u64 * self.at(&format!("{entry}.sizeof"));
                self.process.put(place + self.at(&format!("{entry}.me_key")), self.str(name));
                shared.push((*name).to_owned());
            }
        }
        assert!(shared.len() as u64 <= SHARED_KEYS);
        self.put(at, "dict_keys.dk_nentries", shared.len() as u64);
        (at, shared.clone())
    }

    /// An instance of a class of [`Python::class`], its attributes kept as the class says.
    pub fn instance(&self, class: u64, attributes: &[(&str, u64)]) -> u64 {
        let size = self.get(class, "type.tp_basicsize");
        let keeping = self.kept.borrow()[&class].0;
        // From 3.13 the values follow the fields of the instance.
        let inline = self.find("tp_flags.INLINE_VALUES").map(|_| size);
        let room = self.at("dict_values.values") + 8 * SHARED_KEYS;
        let at = self.object(class, size + room);
        let of_values = || {
            let names: Vec<&str> = attributes.iter().map(|(name, _)| *name).collect();
            let (keys, shared) = self.share(class, &names);
            let values = match inline.filter(|_| matches!(keeping, Keeping::Values | Keeping::DictOfValues)) {
                Some(inline) => at + inline,
                None => self.process.alloc(room),
            };
            for (name, value) in attributes {
                let place = shared.iter().position(|known| known == name).unwrap() as u64;
                self.process.put(values + self.at("dict_values.values") + 8 * place, *value);
            }
            if let Some(valid) = self.find("dict_values.valid") {
                self.process.write(values + valid.cast_unsigned(), &[1]);
            }
            (keys, values)
        };
        let split = || {
            let (keys, values) = of_values();
            self.dict_object(attributes.len() as u64, keys, values)
        };
        let dictoffset = self.get(class, "type.tp_dictoffset");
        match keeping {
            Keeping::Dict => self.process.put(at + dictoffset, self.dict(attributes)),
            Keeping::SplitDict => self.process.put(at + dictoffset, split()),
            Keeping::ManagedDict => self.put(at, self.managed("instance.managed_dict"), self.dict(attributes)),
            Keeping::DictOfValues => self.put(at, "instance.managed_dict", split()),
            Keeping::Values => {
                let (_, values) = of_values();
                if self.find("instance.values_pointer").is_some() {
                    self.put(at, "instance.values_pointer", values);
                } else if self.find("instance.dict_or_values").is_some() {
                    self.put(at, "instance.dict_or_values", values - 1);
                }
            }
        }
        at
    }

    /// Where the version keeps the pointer to a managed dictionary.
    fn managed<'a>(&self, key: &'a str) -> &'a str {
        if self.find(key).is_some() { key } else { "instance.dict_or_values" }
    }
}
