//! Reading `c10::ivalue::Object`: the class, its attributes by name and kind, and the slot of each.
//!
//! The offsets of the class pointer, the slots and the list of attributes differ between versions, so the objects vote.
//! An object has as many slots as its class has attributes, and each attribute has one of three kinds and a name.

use std::collections::BTreeMap;

use super::layout::ObjectNumbers;
use crate::addr::{VirtAddr, field};
use crate::cpython::Objects;
use crate::layout::{Structure, Votes, elect};
use crate::paging::{Fault, VirtualMemory};

/// Words of an object, and of a class, in which fields are looked for.
pub(crate) const OBJECT_WORDS: u64 = 24;
const CLASS_WORDS: u64 = 96;
/// The most slots of an object.
pub(crate) const MAX_SLOTS: u64 = 1 << 14;
/// The longest name, in bytes.
const MAX_NAME: u64 = 4096;
/// Objects that vote.
const MAX_VOTERS: usize = 256;
/// Bytes of a word.
const WORD: i64 = 8;

/// What an attribute is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotKind {
    Parameter,
    Buffer,
    Attribute,
}

/// An attribute and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) kind: SlotKind,
    pub(crate) value: SlotValue,
}

/// What a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotValue {
    /// `None`, or not set yet.
    Unset,
    /// A `TensorImpl`.
    Tensor(VirtAddr),
    /// Another `ivalue::Object`.
    Object(VirtAddr),
    /// Any other value; the payload as it is.
    Other(u64),
}

/// A `c10::ivalue::Object`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ScriptObject {
    /// Qualified name of its class: `__torch__.Net`.
    pub(crate) class: String,
    pub(crate) slots: Vec<Slot>,
}

/// Why an object could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScriptError {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("no known layout reads its C++ classes")]
    NoLayout,
    #[error("the script object at {object} is inconsistent: {slots} slots for {attributes} attributes")]
    Slots { object: VirtAddr, slots: u64, attributes: u64 },
    #[error("the script object at {object} is inconsistent: its attribute {index} at {at} is invalid")]
    Attribute { object: VirtAddr, index: u64, at: VirtAddr },
    #[error("the script object at {object} is inconsistent: a vector of {bytes} bytes at {at}")]
    Vector { object: VirtAddr, bytes: u64, at: VirtAddr },
}

/// Where the fields lie that no header fixes for all versions, and which numbers read the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Offsets {
    /// In an object: the pointer to its class.
    class: i64,
    /// In an object: the vector of its slots.
    slots: i64,
    /// In a class: the vector of its attributes.
    attributes: i64,
    /// Index of the numbers.
    numbers: usize,
}

/// A `std::vector`: its begin, and how many elements it has.
struct Vector {
    offset: i64,
    begin: VirtAddr,
    count: u64,
}

/// A reader of the objects of one process.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    memory: &'a dyn VirtualMemory,
    numbers: &'a ObjectNumbers,
    offsets: Offsets,
}

impl<'a> Reader<'a> {
    /// A reader whose offsets are those that most of the candidates agree on; `None` where no candidate is an object.
    pub(crate) fn elect(
        memory: &'a dyn VirtualMemory,
        all: &'a [ObjectNumbers],
        candidates: &[VirtAddr],
    ) -> Option<Self> {
        let mut votes: BTreeMap<Offsets, usize> = BTreeMap::new();
        let mut classes: BTreeMap<VirtAddr, Vec<(usize, i64, u64)>> = BTreeMap::new();
        for object in candidates.iter().take(MAX_VOTERS) {
            for offsets in ways(memory, all, *object, &mut classes) {
                *votes.entry(offsets).or_default() += 1;
            }
        }
        let candidates = votes.into_iter().map(|(offsets, count)| (offsets, 0, Votes::significant(count)));
        let (offsets, _) = elect(candidates)?;
        Some(Self { memory, numbers: all.get(offsets.numbers)?, offsets })
    }

    /// The object whose vector of slots lies at `slots`.
    pub(crate) fn object_of(&self, slots: VirtAddr) -> VirtAddr {
        field(slots, self.offsets.slots.wrapping_neg())
    }

    /// The object that a Python object holds.
    pub(super) fn held_by(objects: Objects<'_>, numbers: &ObjectNumbers, wrapper: VirtAddr) -> Option<VirtAddr> {
        let value = objects.pointer(wrapper, objects.layout().object_size + numbers.wrapper_value).ok()?;
        objects.pointer(value, numbers.script_ivalue).ok().filter(is_pointer)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// It can't be read, or is not such an object.
    pub(crate) fn read(&self, object: VirtAddr) -> Result<ScriptObject, ScriptError> {
        let (memory, numbers) = (self.memory, self.numbers);
        let table = memory.word(object, 0)?;
        let class = memory.pointer(object, self.offsets.class)?;
        let slots = self.vector(object, self.offsets.slots, numbers.ivalue_size)?;
        let attributes = self.vector(class, self.offsets.attributes, numbers.attribute_size)?;
        if slots.count > attributes.count {
            return Err(ScriptError::Slots { object, slots: slots.count, attributes: attributes.count });
        }
        let mut found = Vec::new();
        for index in 0..attributes.count {
            let at = |vector: &Vector, size: i64| field(vector.begin, size.wrapping_mul(index.cast_signed()));
            let attribute = at(&attributes, numbers.attribute_size);
            let (kind, name) = attribute_at(memory, numbers, attribute).ok_or(ScriptError::Attribute {
                object,
                index,
                at: attribute,
            })?;
            let value = match slots.count.checked_sub(index) {
                None | Some(0) => SlotValue::Unset,
                Some(_) => self.value(at(&slots, numbers.ivalue_size), table)?,
            };
            found.push(Slot { name, kind, value });
        }
        let class = self.class_name(class).unwrap_or_else(|| "?".to_owned());
        Ok(ScriptObject { class, slots: found })
    }

    /// What a slot holds; `table` is the virtual table of objects.
    fn value(&self, slot: VirtAddr, table: u64) -> Result<SlotValue, Fault> {
        let numbers = self.numbers;
        let payload = self.memory.word(slot, numbers.ivalue_payload)?;
        let tag = self.memory.word(slot, numbers.ivalue_tag)? & u64::from(u32::MAX);
        let target = VirtAddr(payload);
        Ok(if tag == numbers.tag_none.cast_unsigned() {
            SlotValue::Unset
        } else if tag == numbers.tag_tensor.cast_unsigned() {
            SlotValue::Tensor(target)
        } else if is_pointer(&target) && self.memory.word(target, 0) == Ok(table) {
            SlotValue::Object(target)
        } else {
            SlotValue::Other(payload)
        })
    }

    /// The vector at an offset that is known.
    fn vector(&self, of: VirtAddr, offset: i64, size: i64) -> Result<Vector, ScriptError> {
        let (begin, end) = (self.memory.pointer(of, offset)?, self.memory.pointer(of, offset + WORD)?);
        let bytes = end.0.wrapping_sub(begin.0);
        let size = size.unsigned_abs().max(1);
        let (count, rest) = (bytes / size, bytes % size);
        if rest != 0 || count > MAX_SLOTS {
            return Err(ScriptError::Vector { object: of, bytes, at: field(of, offset) });
        }
        Ok(Vector { offset, begin, count })
    }

    /// The qualified name of a class: the first dotted name in it.
    fn class_name(&self, class: VirtAddr) -> Option<String> {
        let offsets = (0..self.offsets.attributes).step_by(WORD as usize);
        let mut names = offsets.filter_map(|offset| text_at(self.memory, self.numbers, field(class, offset)));
        names.find(|name| {
            let atoms = name.split('.');
            name.contains('.') && atoms.clone().all(|atom| !atom.is_empty() && !atom.contains(char::is_whitespace))
        })
    }
}

/// All ways in which a candidate can be read as an object with at least one slot.
fn ways(
    memory: &dyn VirtualMemory,
    all: &[ObjectNumbers],
    object: VirtAddr,
    classes: &mut BTreeMap<VirtAddr, Vec<(usize, i64, u64)>>,
) -> Vec<Offsets> {
    let words = words_at(memory, object, OBJECT_WORDS);
    let mut found = Vec::new();
    let Some(ivalue_size) = all.first().map(|numbers| numbers.ivalue_size) else { return found };
    for slots in vectors(&words, ivalue_size) {
        let before = words.iter().zip((0i64..).step_by(WORD as usize)).skip(1);
        for (word, class) in before.take_while(|(_, offset)| *offset < slots.offset) {
            let pointer = VirtAddr(*word);
            if !is_pointer(&pointer) {
                continue;
            }
            let lists = classes.entry(pointer).or_insert_with(|| attribute_lists(memory, all, pointer));
            let fitting = lists.iter().filter(|(.., count)| *count == slots.count);
            found.extend(fitting.map(|(numbers, attributes, _)| Offsets {
                class,
                slots: slots.offset,
                attributes: *attributes,
                numbers: *numbers,
            }));
        }
    }
    found
}

/// Where a candidate for a class could keep its attributes: by which numbers, at which offset, how many.
fn attribute_lists(memory: &dyn VirtualMemory, all: &[ObjectNumbers], class: VirtAddr) -> Vec<(usize, i64, u64)> {
    let words = words_at(memory, class, CLASS_WORDS);
    let mut lists = Vec::new();
    for (index, numbers) in all.iter().enumerate() {
        for vector in vectors(&words, numbers.attribute_size) {
            let element = |number: u64| field(vector.begin, numbers.attribute_size.wrapping_mul(number.cast_signed()));
            if (0..vector.count).all(|number| attribute_at(memory, numbers, element(number)).is_some()) {
                lists.push((index, vector.offset, vector.count));
            }
        }
    }
    lists
}

/// What could be a vector with elements of that size in a structure: begin, end, end of the room.
fn vectors(words: &[u64], size: i64) -> impl Iterator<Item = Vector> + '_ {
    let size = size.unsigned_abs().max(1);
    words.windows(3).zip((0i64..).step_by(WORD as usize)).filter_map(move |(window, offset)| {
        let [begin, end, room] = *window else { return None };
        let bytes = end.checked_sub(begin)?;
        let count = bytes / size;
        let begin = VirtAddr(begin);
        let is_sound = is_pointer(&begin) && room >= end && bytes % size == 0 && (1..=MAX_SLOTS).contains(&count);
        is_sound.then_some(Vector { offset, begin, count })
    })
}

/// Kind and name of an attribute; `None` where there is none.
fn attribute_at(memory: &dyn VirtualMemory, numbers: &ObjectNumbers, at: VirtAddr) -> Option<(SlotKind, String)> {
    let kind = memory.word(at, numbers.attribute_kind).ok()? & u64::from(u32::MAX);
    let kind = match kind.cast_signed() {
        kind if kind == numbers.kind_buffer => SlotKind::Buffer,
        kind if kind == numbers.kind_parameter => SlotKind::Parameter,
        kind if kind == numbers.kind_regular => SlotKind::Attribute,
        _ => return None,
    };
    Some((kind, text_at(memory, numbers, field(at, numbers.attribute_name))?))
}

/// The text of a `std::string` that is not empty; `None` where there is none.
pub(crate) fn text_at(memory: &dyn VirtualMemory, numbers: &ObjectNumbers, at: VirtAddr) -> Option<String> {
    let data = memory.pointer(at, numbers.string_data).ok().filter(is_pointer)?;
    let length = match (numbers.string_length, numbers.text_length) {
        (Some(length), _) => memory.word(at, length).ok()?,
        (None, Some(length)) => {
            let length = memory.word(data, length).ok()?;
            (memory.word(data, numbers.text_capacity?).ok()? >= length).then_some(length)?
        }
        (None, None) => return None,
    };
    if !(1..=MAX_NAME).contains(&length) {
        return None;
    }
    let mut bytes = vec![0; length as usize];
    memory.read(data, &mut bytes).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

/// Words from an address on, as far as they can be read.
pub(crate) fn words_at(memory: &dyn VirtualMemory, at: VirtAddr, count: u64) -> Vec<u64> {
    Structure::read(memory, at, count.saturating_mul(WORD.unsigned_abs())).words().collect()
}

/// Whether a word could be the address of a structure.
pub(crate) fn is_pointer(address: &VirtAddr) -> bool {
    (0x1000..1 << 56).contains(&address.0) && address.0.is_multiple_of(8)
}
