//! CPython objects, written by the numbers of a layout file.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tensorcarve::signature::Layout;

use super::SIGNATURES;
use super::heap::Process;

/// Reference counts: of an object that is used, and of one that lives as long as the process (from 3.12).
const REFERENCES: u64 = 3;
const IMMORTAL: u64 = 0xffff_ffff;
/// What is added for an object that only the collector frees, as classes are (free-threaded builds from 3.14).
const DEFERRED: u64 = i64::MAX as u64 / 8;
/// Py_TPFLAGS_DEFAULT, BASETYPE, READY, HAVE_GC: in every type, of no meaning here.
const USUAL_FLAGS: u64 = 1 << 18 | 1 << 14 | 1 << 12 | 1 << 10;

/// Where an instance keeps its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// A dictionary with a table of its own, behind `tp_dictoffset`.
    Dict,
    /// A dictionary that shares its keys, behind `tp_dictoffset`.
    SplitDict,
    /// A dictionary where the interpreter manages it (from 3.11).
    ManagedDict,
    /// Values without a dictionary (from 3.11; in the object itself from 3.13).
    Values,
    /// From 3.13: a dictionary whose values are those in the object.
    DictOfValues,
}

impl Keeping {
    /// What a version has.
    pub fn of(cpython: &str) -> &'static [Self] {
        match minor(cpython) {
            ..11 => &[Self::Dict, Self::SplitDict],
            11 | 12 => &[Self::Dict, Self::SplitDict, Self::ManagedDict, Self::Values],
            _ => &[Self::Dict, Self::SplitDict, Self::ManagedDict, Self::Values, Self::DictOfValues],
        }
    }

    fn is_managed(self) -> bool {
        !matches!(self, Self::Dict | Self::SplitDict)
    }
}

/// The `11` of `3.11-trace-refs`.
pub fn minor(cpython: &str) -> u32 {
    release(cpython).strip_prefix("3.").unwrap().parse().unwrap()
}

/// The `3.11` of `3.11-trace-refs`.
pub fn release(cpython: &str) -> &str {
    cpython.split('-').next().unwrap()
}

/// The types that are made in C, and the objects that exist once.
#[derive(Clone, Copy, Default)]
pub struct Builtin {
    pub type_: u64,
    pub object: u64,
    pub str_: u64,
    pub int: u64,
    pub bool_: u64,
    pub float: u64,
    pub tuple: u64,
    pub list: u64,
    pub dict: u64,
    pub set: u64,
    pub module: u64,
    pub none_type: u64,
    pub none: u64,
    pub true_: u64,
    pub false_: u64,
}

/// The layout of a version.
pub fn layout(version: &str) -> Layout {
    SIGNATURES.layouts("cpython").find(|layout| layout.version == version).unwrap().clone()
}

pub struct Python {
    pub process: Process,
    pub layout: Layout,
    pub builtin: Builtin,
    /// The resolution order of every type.
    orders: RefCell<BTreeMap<u64, Vec<u64>>>,
    /// How instances of a heap type keep attributes, and the names that they share.
    pub(super) kept: RefCell<BTreeMap<u64, (Keeping, Vec<String>)>>,
}

impl Python {
    pub fn new(process: Process, version: &str) -> Self {
        Self::with_type_cut(process, version, None)
    }

    /// An interpreter whose `type` crosses a page border after so many bytes.
    pub fn with_type_cut(process: Process, version: &str, cut: Option<u64>) -> Self {
        Self::of_layout(process, layout(version), cut)
    }

    /// An interpreter that keeps its objects as a layout says.
    pub fn of_layout(process: Process, layout: Layout, cut: Option<u64>) -> Self {
        let orders = RefCell::new(BTreeMap::new());
        let mut python =
            Self { process, layout, builtin: Builtin::default(), orders, kept: RefCell::new(BTreeMap::new()) };
        python.bootstrap(cut);
        python
    }

    /// A number of the layout.
    pub fn at(&self, key: &str) -> u64 {
        self.find(key).unwrap_or_else(|| panic!("the layout has no {key}")).cast_unsigned()
    }

    pub fn find(&self, key: &str) -> Option<i64> {
        self.layout.get(key)
    }

    fn bootstrap(&mut self, cut: Option<u64>) {
        if let Some(cut) = cut {
            self.process.cut_next(cut);
        }
        let next = || self.process.alloc(self.at("heap_type.sizeof"));
        // The fields are filled in the order in which they stand here.
        self.builtin = Builtin {
            type_: next(),
            object: next(),
            str_: next(),
            int: next(),
            bool_: next(),
            float: next(),
            tuple: next(),
            list: next(),
            dict: next(),
            set: next(),
            module: next(),
            none_type: next(),
            ..Builtin::default()
        };
        let b = self.builtin;
        let flag = |name: &str| self.at(&format!("tp_flags.{name}"));
        let member = self.at("member_def.sizeof");
        let heap = self.at("heap_type.sizeof");
        let text = self.at("str.sizeof_compact");
        let header = self.at("object.sizeof");
        self.static_type(b.object, "object", &[], 0, [header, 0, 0]);
        self.static_type(b.type_, "type", &[b.object], flag("TYPE_SUBCLASS"), [heap, member, self.at("type.tp_dict")]);
        self.static_type(b.str_, "str", &[b.object], flag("UNICODE_SUBCLASS"), [text, 0, 0]);
        self.static_type(b.int, "int", &[b.object], flag("LONG_SUBCLASS"), [header + 8, 4, 0]);
        self.static_type(b.bool_, "bool", &[b.int, b.object], flag("LONG_SUBCLASS"), [header + 8, 4, 0]);
        self.static_type(b.float, "float", &[b.object], 0, [header + 8, 0, 0]);
        self.static_type(b.tuple, "tuple", &[b.object], flag("TUPLE_SUBCLASS"), [header + 8, 8, 0]);
        self.static_type(b.list, "list", &[b.object], flag("LIST_SUBCLASS"), [header + 24, 0, 0]);
        self.static_type(b.dict, "dict", &[b.object], flag("DICT_SUBCLASS"), [header + 32, 0, 0]);
        self.static_type(b.set, "set", &[b.object], 0, [header + 184, 0, 0]);
        self.static_type(b.module, "module", &[b.object], 0, [header + 56, 0, self.at("module.md_dict")]);
        self.static_type(b.none_type, "NoneType", &[b.object], 0, [header, 0, 0]);
        self.builtin.none = self.object(b.none_type, 16);
        self.builtin.true_ = self.long(b.bool_, 1);
        self.builtin.false_ = self.long(b.bool_, 0);
        let names = [
            ("None", self.builtin.none),
            ("True", self.builtin.true_),
            ("False", self.builtin.false_),
            ("int", b.int),
            ("float", b.float),
            ("type", b.type_),
        ];
        self.module("builtins", &names);
        let version = format!("{}.7 (main, Jan  1 2026, 00:00:00) [GCC 12.2.0]", release(&self.layout.version));
        let lists = [self.list(&[self.str("/usr/lib/python3")]), self.list(&[b.object])];
        let names = [
            ("version", self.str(&version)),
            ("maxsize", self.int(i64::MAX.into())),
            ("maxunicode", self.int(0x10_ffff)),
            ("path", lists[0]),
            ("meta_path", lists[1]),
        ];
        self.module("sys", &names);
    }

    /// Head of an object: reference count and type, what lies before it as the collector leaves it.
    ///
    /// `size` is that of a release build.
    pub fn object(&self, type_object: u64, size: u64) -> u64 {
        let at = self.process.alloc(size.max(16) + self.at("object.sizeof") - 16);
        self.head(at, type_object);
        at
    }

    fn head(&self, at: u64, type_object: u64) {
        let lives_forever = minor(&self.layout.version) >= 12;
        let is_builtin = [self.builtin.type_, self.builtin.none_type, self.builtin.bool_].contains(&type_object);
        let count = if lives_forever && is_builtin { IMMORTAL } else { REFERENCES };
        self.set_references(at, count);
        self.put(at, "object.ob_type", type_object);
    }

    /// Writes how many references there are to an object, all of them of its owner.
    pub fn set_references(&self, at: u64, count: u64) {
        match self.find("object.ob_ref_local") {
            // A thread's own count, as wide as half a word.
            Some(local) => self.process.write(at + local.cast_unsigned(), &(count as u32).to_le_bytes()),
            None => self.put(at, "object.ob_refcnt", count),
        }
    }

    pub fn put(&self, object: u64, key: &str, word: u64) {
        self.process.put(object.wrapping_add(self.at(key)), word);
    }

    pub fn get(&self, object: u64, key: &str) -> u64 {
        self.process.get(object.wrapping_add(self.at(key)))
    }

    pub fn c_string(&self, text: &str) -> u64 {
        let at = self.process.alloc(text.len() as u64 + 1);
        self.process.write(at, text.as_bytes());
        at
    }

    /// Fills in a type at `at`; `sizes` are `tp_basicsize`, `tp_itemsize` and `tp_dictoffset`.
    fn type_object(&self, at: u64, metatype: u64, name: &str, bases: &[u64], flags: u64, sizes: [u64; 3]) {
        self.head(at, metatype);
        if flags & self.at("tp_flags.HEAPTYPE") != 0 {
            self.set_references(at, REFERENCES);
            if self.find("object.ob_ref_shared").is_some() && minor(&self.layout.version) >= 14 {
                self.put(at, "object.ob_ref_shared", DEFERRED << 2);
            }
        }
        let name = self.c_string(name);
        self.put(at, "type.tp_name", name);
        self.put(at, "type.tp_basicsize", sizes[0]);
        self.put(at, "type.tp_itemsize", sizes[1]);
        self.put(at, "type.tp_dictoffset", sizes[2]);
        self.put(at, "type.tp_flags", flags | USUAL_FLAGS);
        self.put(at, "type.tp_base", bases.first().copied().unwrap_or_default());
        let order = [&[at], bases].concat();
        self.orders.borrow_mut().insert(at, order.clone());
        self.put(at, "type.tp_mro", self.tuple(&order));
    }

    fn static_type(&self, at: u64, name: &str, order: &[u64], flags: u64, sizes: [u64; 3]) {
        self.type_object(at, self.builtin.type_, name, order, flags, sizes);
    }

    /// A type made in C whose name lies in a page that is gone.
    pub fn nameless_type(&self) -> u64 {
        let at = self.process.alloc(self.at("heap_type.sizeof"));
        self.static_type(at, "lost", &[self.builtin.object], 0, [80, 0, 0]);
        self.put(at, "type.tp_name", 0x7f66_0000_0000);
        at
    }

    /// A type made in C, whose instances have so many bytes and no attributes.
    pub fn c_type(&self, name: &str, size: u64) -> u64 {
        let at = self.process.alloc(self.at("heap_type.sizeof"));
        self.static_type(at, name, &[self.builtin.object], 0, [size, 0, 0]);
        at
    }

    /// A class that derives from `base`, made by a class statement.
    pub fn class(&self, metatype: u64, module: &str, qualname: &str, base: u64, keeping: Keeping) -> u64 {
        self.class_with_slots(metatype, (module, qualname), base, keeping, &[])
    }

    /// The same with `__slots__`.
    pub fn class_with_slots(
        &self,
        metatype: u64,
        (module, qualname): (&str, &str),
        base: u64,
        keeping: Keeping,
        slots: &[&str],
    ) -> u64 {
        let heap = self.get(metatype, "type.tp_basicsize");
        let at = self.process.alloc(heap + self.at("member_def.sizeof") * slots.len() as u64);
        let order = self.orders.borrow()[&base].clone();
        let subclass = 0xff00_0000 & self.get(base, "type.tp_flags");
        let mut flags = self.at("tp_flags.HEAPTYPE") | subclass;
        let is_metatype = subclass & self.at("tp_flags.TYPE_SUBCLASS") != 0;
        let (mut size, mut dictoffset) = (self.get(base, "type.tp_basicsize"), self.get(base, "type.tp_dictoffset"));
        if keeping.is_managed() && !is_metatype {
            flags |= self.at("tp_flags.MANAGED_DICT");
            dictoffset = u64::MAX;
            if let Some(inline) = self.find("tp_flags.INLINE_VALUES").filter(|_| keeping != Keeping::ManagedDict) {
                flags |= inline.cast_unsigned();
            }
        } else if dictoffset == 0 || dictoffset == u64::MAX {
            dictoffset = size;
            size += 16;
        }
        for (number, name) in (0..).zip(slots) {
            let member = at + heap + number * self.at("member_def.sizeof");
            self.put(member, "member_def.name", self.c_string(name));
            self.put(member, "member_def.type", self.at("member_def.object_ex"));
            self.put(member, "member_def.offset", size);
            size += 8;
        }
        let itemsize = self.get(base, "type.tp_itemsize");
        let short = qualname.rsplit('.').next().unwrap();
        self.type_object(at, metatype, short, &order, flags, [size, itemsize, dictoffset]);
        if !slots.is_empty() {
            self.put(at, "var.ob_size", slots.len() as u64);
        }
        self.put(at, "heap_type.ht_name", self.str(short));
        self.put(at, "heap_type.ht_qualname", self.str(qualname));
        let names = self.dict(&[("__module__", self.str(module)), ("__doc__", self.builtin.none)]);
        self.put(at, "type.tp_dict", names);
        self.put(at, "heap_type.ht_cached_keys", self.shared_keys());
        self.kept.borrow_mut().insert(at, (keeping, Vec::new()));
        at
    }

    /// A module that was imported.
    pub fn module(&self, name: &str, names: &[(&str, u64)]) -> u64 {
        let at = self.object(self.builtin.module, 72);
        let items = [&[("__name__", self.str(name)), ("__doc__", self.builtin.none)], names].concat();
        self.put(at, "module.md_dict", self.dict(&items));
        at
    }

    pub fn str(&self, text: &str) -> u64 {
        let widest = text.chars().max().map_or(0, u32::from);
        let kind: u64 = if widest < 0x100 {
            1
        } else if widest < 0x1_0000 {
            2
        } else {
            4
        };
        let bytes: Vec<u8> = text.chars().flat_map(|c| u32::from(c).to_le_bytes()[..kind as usize].to_vec()).collect();
        let head = self.at(if widest < 0x80 { "str.sizeof_ascii" } else { "str.sizeof_compact" });
        let at = self.object(self.builtin.str_, head + bytes.len() as u64 + kind);
        self.str_head(at, text.chars().count() as u64, kind, true, widest < 0x80);
        self.process.write(at + head, &bytes);
        at
    }

    /// A string whose text lies elsewhere, as a subclass of `str` has it.
    pub fn legacy_str(&self, text: &str) -> u64 {
        let data = self.c_string(text);
        let at = self.object(self.builtin.str_, self.at("str_legacy.data") + 8);
        self.str_head(at, text.len() as u64, 1, false, true);
        self.put(at, "str_legacy.data", data);
        at
    }

    fn str_head(&self, at: u64, length: u64, kind: u64, compact: bool, ascii: bool) {
        let bit = |key: &str, value: bool| u64::from(value) << self.at(key);
        let state =
            kind << self.at("str_state.kind") | bit("str_state.compact", compact) | bit("str_state.ascii", ascii);
        self.put(at, "str.length", length);
        self.put(at, "str.hash", length.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Interned; what lies above the bit fields is padding.
        self.put(at, "str.state", state | 1 | 0xabcd << 32);
    }

    pub fn int(&self, value: i128) -> u64 {
        self.long(self.builtin.int, value)
    }

    fn long(&self, type_object: u64, value: i128) -> u64 {
        let mut digits: Vec<u32> = Vec::new();
        let mut rest = value.unsigned_abs();
        while rest > 0 {
            digits.push((rest & 0x3fff_ffff) as u32);
            rest >>= 30;
        }
        let count = digits.len() as u64;
        let at = self.object(type_object, self.at("int.ob_digit") + 4 * count.max(1));
        if self.find("int.lv_tag").is_some() {
            let sign = [2, 1, 0][(value.signum() + 1) as usize];
            self.put(at, "int.lv_tag", count << 3 | sign);
        } else {
            self.put(at, "int.ob_size", if value < 0 { count.wrapping_neg() } else { count });
        }
        let bytes: Vec<u8> = digits.iter().flat_map(|digit| digit.to_le_bytes()).collect();
        self.process.write(at + self.at("int.ob_digit"), &bytes);
        at
    }

    pub fn bool(&self, value: bool) -> u64 {
        if value { self.builtin.true_ } else { self.builtin.false_ }
    }

    pub fn float(&self, value: f64) -> u64 {
        let at = self.object(self.builtin.float, 24);
        self.put(at, "float.ob_fval", value.to_bits());
        at
    }

    pub fn tuple(&self, items: &[u64]) -> u64 {
        let at = self.object(self.builtin.tuple, self.at("tuple.ob_item") + 8 * items.len() as u64);
        self.put(at, "tuple.ob_size", items.len() as u64);
        for (place, item) in (at + self.at("tuple.ob_item")..).step_by(8).zip(items) {
            self.process.put(place, *item);
        }
        at
    }

    pub fn list(&self, items: &[u64]) -> u64 {
        let at = self.object(self.builtin.list, 40);
        self.put(at, "list.ob_size", items.len() as u64);
        let place = if items.is_empty() { 0 } else { self.process.words(items) };
        self.put(at, "list.ob_item", place);
        at
    }
}
