//! What an object of any kind holds: attributes, `__slots__`, elements, and the closure of a function.
//!
//! Types implemented in C are identified by the names under which Python's own modules list them (`types.MethodType`,
//! `collections.deque`), because their own names are in read-only data that a dump often lacks.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::modules::Modules;
use super::object::{ObjectError, Objects};
use super::types::c_string;
use crate::addr::{VirtAddr, field};

/// Slots of one class that are read.
const MAX_SLOTS: u64 = 256;
/// Maximum number of characters of a name or key in a path.
const MAX_NAME: usize = 256;
/// Blocks of one deque that are read, and items in a block.
const MAX_BLOCKS: usize = 1 << 12;
const MAX_BLOCK: i64 = 1 << 10;

/// How an object holds another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// As the attribute with that `str` as its name.
    Attribute(VirtAddr),
    /// In the slot with that C string as its name.
    Slot(VirtAddr),
    /// As an attribute that every object of its type has.
    Fixed(&'static str),
    /// As the element with that index.
    Index(usize),
    /// Under a key.
    Key(VirtAddr),
    /// As an element without an index.
    Element,
    /// In that cell of a function's closure.
    Cell(usize),
}

/// What a type is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Its instances have attributes at most.
    Plain,
    List,
    Tuple,
    Dict,
    Set,
    Deque,
    Function,
    Method,
    Partial,
    /// Classes and imported modules: what they hold belongs to them, not to the objects that refer to them.
    Closed,
}

/// How the instances of a type hold other objects.
pub(crate) struct Kind {
    pub(crate) shape: Shape,
    /// Whether they may have a `__dict__`.
    has_attributes: bool,
    /// Offset of the pointer to it, unless the interpreter manages it.
    dict_offset: Option<i64>,
    /// Names and offsets of `__slots__`.
    slots: Vec<(VirtAddr, i64)>,
}

/// A reader of what objects hold.
pub(crate) struct Holders<'a> {
    objects: Objects<'a>,
    /// Types that are made in C.
    known: HashMap<VirtAddr, Shape>,
    kinds: HashMap<VirtAddr, Rc<Kind>>,
}

impl<'a> Holders<'a> {
    /// For the objects of an interpreter with these imported modules; instances of `closed` types are not looked into.
    pub(crate) fn new(objects: Objects<'a>, modules: &Modules, closed: impl IntoIterator<Item = VirtAddr>) -> Self {
        let names = [
            ("builtins", "set", Shape::Set),
            ("builtins", "frozenset", Shape::Set),
            ("collections", "deque", Shape::Deque),
            ("types", "FunctionType", Shape::Function),
            ("types", "MethodType", Shape::Method),
            ("functools", "partial", Shape::Partial),
        ];
        let find =
            |(module, name, shape)| Some((objects.dict_item(*modules.get(module)?, name).ok().flatten()?, shape));
        let mut known: HashMap<VirtAddr, Shape> = names.into_iter().filter_map(find).collect();
        known.extend(closed.into_iter().map(|type_object| (type_object, Shape::Closed)));
        Self { objects, known, kinds: HashMap::new() }
    }

    /// How the object holds others; `None` if it can't.
    pub(crate) fn kind(&mut self, object: VirtAddr) -> Option<Rc<Kind>> {
        let type_object = self.objects.type_of(object).ok()?;
        let kind = match self.kinds.get(&type_object) {
            Some(kind) => kind,
            None => {
                let kind = Rc::new(self.read_kind(type_object));
                self.kinds.entry(type_object).or_insert(kind)
            }
        };
        let holds = match kind.shape {
            Shape::Plain => kind.has_attributes || !kind.slots.is_empty(),
            Shape::Closed => false,
            // Most functions have closed over nothing and have no attributes.
            Shape::Function => {
                let is_set = |offset: i64| self.objects.word(object, offset).is_ok_and(|word| word != 0);
                self.objects.layout().function_closure.is_some_and(is_set) || kind.dict_offset.is_some_and(is_set)
            }
            _ => true,
        };
        holds.then(|| Rc::clone(kind))
    }

    fn read_kind(&self, type_object: VirtAddr) -> Kind {
        let layout = self.objects.layout();
        let flags = self.objects.type_flags(type_object).unwrap_or_default();
        let has = |flag: i64| flags & flag.cast_unsigned() != 0;
        let bases = self.objects.mro(type_object).unwrap_or_else(|_| vec![type_object]);
        let is_managed = layout.flag_managed_dict.is_some_and(has);
        let dict_offset = self.objects.word(type_object, layout.tp_dictoffset).unwrap_or_default().cast_signed();
        let shape = bases.iter().find_map(|base| self.known.get(base).copied());
        let shape = match shape {
            Some(shape) => shape,
            None if has(layout.flag_type) => Shape::Closed,
            None if has(layout.flag_list) => Shape::List,
            None if has(layout.flag_tuple) => Shape::Tuple,
            None if has(layout.flag_dict) => Shape::Dict,
            None => Shape::Plain,
        };
        let mut names = HashSet::new();
        let slots = bases.iter().flat_map(|base| self.slots(*base).unwrap_or_default());
        let slots = slots.filter(|(_, offset)| names.insert(*offset)).collect();
        let dict_offset = Some(dict_offset).filter(|offset| *offset > 0 && !is_managed);
        Kind { shape, has_attributes: is_managed || dict_offset.is_some(), dict_offset, slots }
    }

    /// Names and offsets of the `__slots__` that a class itself adds; they follow the type object in memory.
    fn slots(&self, type_object: VirtAddr) -> Result<Vec<(VirtAddr, i64)>, ObjectError> {
        let (objects, layout) = (&self.objects, self.objects.layout());
        let at = layout.var_size.zip(layout.member_def_name).zip(layout.member_def_type);
        let at = at.zip(layout.member_def_offset).zip(layout.member_def_object_ex);
        let Some(((((count, name), kind), offset), object_ex)) = at else { return Ok(Vec::new()) };
        if objects.type_flags(type_object)? & layout.flag_heap_type.cast_unsigned() == 0 {
            return Ok(Vec::new());
        }
        let count = objects.word(type_object, count)?;
        if count == 0 || count > MAX_SLOTS {
            return Ok(Vec::new());
        }
        let size = objects.word(objects.type_of(type_object)?, layout.tp_basicsize)?.cast_signed();
        let basic_size = objects.word(type_object, layout.tp_basicsize)?.cast_signed();
        let mut slots = Vec::new();
        for number in 0..count.cast_signed() {
            let member = field(field(type_object, size), number.wrapping_mul(layout.member_def_size));
            let (place, code) = (objects.word(member, offset)?.cast_signed(), objects.word(member, kind)?);
            let is_object = code & u64::from(u32::MAX) == object_ex.cast_unsigned();
            if is_object && place >= layout.object_size && place < basic_size {
                slots.push((objects.pointer(member, name)?, place));
            }
        }
        Ok(slots)
    }

    /// Entries of the table in which an object of that kind holds others, empty ones included: what reading it takes. None for
    /// containers without a table.
    pub(crate) fn entries(&self, object: VirtAddr, kind: &Kind) -> usize {
        let entries = match kind.shape {
            Shape::Dict => self.objects.dict_entries(object),
            Shape::Set => self.objects.count(object, self.objects.layout().set_mask, "mask"),
            _ => Ok(0),
        };
        entries.unwrap_or_default() as usize
    }

    /// What an object of that kind holds, in a fixed order; unreadable parts are left out. Of a list, a tuple or a deque at
    /// most the first `most` elements, of which some may be null.
    pub(crate) fn held(&self, object: VirtAddr, kind: &Kind, most: usize) -> Vec<(Step, VirtAddr)> {
        let (objects, layout) = (&self.objects, self.objects.layout());
        let mut held = Vec::new();
        if kind.has_attributes {
            let items = objects.attribute_items(object).unwrap_or_default().into_iter();
            held.extend(items.map(|(name, value)| (Step::Attribute(name), value)));
        }
        for (name, offset) in &kind.slots {
            if let Ok(value) = objects.pointer(object, *offset) {
                held.push((Step::Slot(*name), value));
            }
        }
        let indexed = |items: Vec<VirtAddr>| items.into_iter().enumerate().map(|(at, item)| (Step::Index(at), item));
        let fixed = |name, offset: Option<i64>| Some((Step::Fixed(name), objects.pointer(object, offset?).ok()?));
        match kind.shape {
            Shape::Plain | Shape::Closed => {}
            Shape::List => held.extend(indexed(objects.start_of_list(object, most).unwrap_or_default())),
            Shape::Tuple => held.extend(indexed(objects.start_of_tuple(object, most).unwrap_or_default())),
            Shape::Deque => held.extend(indexed(self.deque(object, most).unwrap_or_default())),
            Shape::Dict => {
                let items = objects.dict(object).unwrap_or_default().into_iter();
                held.extend(items.map(|(key, item)| (Step::Key(key), item)));
            }
            Shape::Set => {
                let items = objects.set(object).unwrap_or_default().into_iter();
                held.extend(items.map(|item| (Step::Element, item)));
            }
            Shape::Function => held.extend(self.cells(object).unwrap_or_default()),
            Shape::Method => held.extend(fixed("__self__", layout.method_self)),
            Shape::Partial => held.extend(
                [
                    fixed("func", layout.partial_function),
                    fixed("args", layout.partial_args),
                    fixed("keywords", layout.partial_keywords),
                ]
                .into_iter()
                .flatten(),
            ),
        }
        held
    }

    /// A function's closure without empty cells.
    fn cells(&self, function: VirtAddr) -> Result<Vec<(Step, VirtAddr)>, ObjectError> {
        let (objects, layout) = (&self.objects, self.objects.layout());
        let Some((closure, value)) = layout.function_closure.zip(layout.cell_value) else { return Ok(Vec::new()) };
        let closure = objects.pointer(function, closure)?;
        if closure.0 == 0 {
            return Ok(Vec::new());
        }
        let cells = objects.tuple(closure)?.into_iter().enumerate();
        Ok(cells.filter_map(|(at, cell)| Some((Step::Cell(at), objects.pointer(cell, value).ok()?))).collect())
    }

    /// The elements of a deque.
    fn deque(&self, deque: VirtAddr, most: usize) -> Result<Vec<VirtAddr>, ObjectError> {
        let (objects, layout) = (&self.objects, self.objects.layout());
        let first = layout.var_size.zip(layout.deque_first_block).zip(layout.deque_first_index);
        let block = layout.deque_block_items.zip(layout.deque_block_next).zip(layout.deque_block_length);
        let Some((((count, first), index), ((items, next), length))) = first.zip(block) else { return Ok(Vec::new()) };
        let mut left = objects.count(deque, count, "ob_size")?.min(most as u64);
        let mut index = objects.word(deque, index)?.cast_signed();
        let mut block = objects.pointer(deque, first)?;
        let mut elements = Vec::new();
        for _ in 0..MAX_BLOCKS {
            if left == 0 || !(1..=MAX_BLOCK).contains(&length) || !(0..length).contains(&index) {
                break;
            }
            let here = left.min((length - index).cast_unsigned());
            let words = objects.words(field(block, items.wrapping_add(8 * index)), here)?;
            elements.extend(words.into_iter().map(VirtAddr));
            (left, index, block) = (left - here, 0, objects.pointer(block, next)?);
        }
        Ok(elements)
    }

    /// The name of an attribute, an index or a key, as used in dotted names; `None` if it can't be read.
    pub(crate) fn name(&self, step: Step) -> Option<String> {
        let number = |key| self.objects.int(key).ok().flatten().map(|number| number.to_string());
        match step {
            Step::Attribute(name) => self.objects.str(name).ok(),
            Step::Slot(name) => c_string(self.objects.memory(), name),
            Step::Fixed(name) => Some(name.to_owned()),
            Step::Index(index) => Some(index.to_string()),
            Step::Key(key) => self.objects.str(key).ok().or_else(|| number(key)),
            Step::Element | Step::Cell(_) => None,
        }
    }

    /// A step in Python's notation; a key that is neither text nor a number is shown as an address.
    pub(crate) fn written(&self, step: Step) -> String {
        match step {
            Step::Attribute(at) | Step::Slot(at) => {
                self.name(step).map_or_else(|| format!(".?{at}"), |name| format!(".{}", cut(name)))
            }
            Step::Fixed(name) => format!(".{name}"),
            Step::Index(index) => format!("[{index}]"),
            Step::Element => "{…}".to_owned(),
            Step::Cell(index) => format!(".__closure__[{index}].cell_contents"),
            Step::Key(key) => match (self.objects.str(key), self.name(step)) {
                (Ok(text), _) => format!("[{:?}]", cut(text)),
                (_, Some(number)) => format!("[{number}]"),
                _ => format!("[at {key}]"),
            },
        }
    }
}

/// A name of limited length.
fn cut(mut name: String) -> String {
    if let Some((end, _)) = name.char_indices().nth(MAX_NAME) {
        name.truncate(end);
        name.push('…');
    }
    name
}
