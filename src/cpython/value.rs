//! Plain values: what a hyper-parameter can be.

use serde::{Serialize, Serializer};

use super::modules::Builtins;
use super::object::Objects;
use super::text::bounded;
use crate::addr::VirtAddr;

/// How deep lists and tuples may be nested, and how many elements there may be on all levels together.
const MAX_DEPTH: u32 = 4;
const MAX_ELEMENTS: usize = 4096;
/// Maximum bytes of text in one value. A string of at most the second size is always kept whole.
const MAX_TEXT: usize = 1 << 16;
const SHORT_TEXT: usize = 256;

/// A value that stands for itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An `int`.
    Int(i128),
    /// A `float`.
    Float(f64),
    /// A `str`.
    Str(String),
    /// A `tuple` of plain values.
    Tuple(Vec<Value>),
    /// A `list` of plain values.
    List(Vec<Value>),
}

// As JSON has it; floats that JSON has not (inf, nan) and integers past 64 bits become strings.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => serializer.serialize_i64(value),
                (_, Ok(value)) => serializer.serialize_u64(value),
                _ => serializer.collect_str(value),
            },
            Self::Float(value) if value.is_finite() => serializer.serialize_f64(*value),
            Self::Float(value) => serializer.collect_str(value),
            Self::Str(value) => serializer.serialize_str(value),
            Self::Tuple(values) | Self::List(values) => serializer.collect_seq(values),
        }
    }
}

/// What may still be read of one value.
struct Left {
    elements: usize,
    text: usize,
}

impl Value {
    /// Reads an object; `None` if it is not plain, or can't be read.
    pub fn read(objects: &Objects<'_>, builtins: &Builtins, object: VirtAddr) -> Option<Self> {
        let mut room = usize::MAX;
        Self::read_within(objects, builtins, object, &mut room)
    }

    /// The same with at most `room` bytes of long strings. Strings beyond that are shortened, and say so.
    pub fn read_within(objects: &Objects<'_>, builtins: &Builtins, object: VirtAddr, room: &mut usize) -> Option<Self> {
        let mut left = Left { elements: MAX_ELEMENTS, text: MAX_TEXT.min(*room) };
        let before = left.text;
        let value = Self::read_nested(objects, builtins, object, MAX_DEPTH, &mut left);
        *room -= before - left.text;
        value
    }

    /// Approximate number of bytes of text in its listing.
    pub(crate) fn text_len(&self) -> usize {
        match self {
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Float(_) => 8,
            Self::Str(text) => text.len(),
            Self::Tuple(values) | Self::List(values) => values.iter().map(Self::text_len).sum(),
        }
    }

    fn read_nested(
        objects: &Objects<'_>,
        builtins: &Builtins,
        object: VirtAddr,
        depth: u32,
        left: &mut Left,
    ) -> Option<Self> {
        if builtins.none == Some(object) {
            return Some(Self::None);
        }
        let depth = depth.checked_sub(1)?;
        let layout = objects.layout();
        let type_object = objects.type_of(object).ok()?;
        let flags = objects.type_flags(type_object).ok()?;
        let is = |flag: i64| flags & flag as u64 != 0;
        // A long list is not read to see that it is too long.
        let room = left.elements as u64;
        let mut elements = |items: Vec<VirtAddr>| -> Option<Vec<Self>> {
            left.elements = left.elements.checked_sub(items.len())?;
            items.into_iter().map(|item| Self::read_nested(objects, builtins, item, depth, left)).collect()
        };
        if is(layout.flag_int) {
            let value = objects.int(object).ok()??;
            // `bool` is the only type made in C that derives from `int`.
            let derives = objects.mro(type_object).ok()?.len() > 2;
            let is_bool = derives && !is(layout.flag_heap_type);
            return Some(if is_bool { Self::Bool(value != 0) } else { Self::Int(value) });
        }
        if is(layout.flag_str) {
            let text = objects.str(object).ok()?;
            let text = bounded(text, left.text.max(SHORT_TEXT));
            if text.len() > SHORT_TEXT {
                left.text = left.text.saturating_sub(text.len());
            }
            return Some(Self::Str(text));
        }
        let has_room = |size: i64| objects.count(object, size, "ob_size").is_ok_and(|count| count <= room);
        if is(layout.flag_tuple) {
            return has_room(layout.tuple_size).then(|| elements(objects.tuple(object).ok()?).map(Self::Tuple))?;
        }
        if is(layout.flag_list) {
            return has_room(layout.list_size).then(|| elements(objects.list(object).ok()?).map(Self::List))?;
        }
        let float_type = builtins.float_type?;
        let is_float = type_object == float_type || objects.mro(type_object).is_ok_and(|mro| mro.contains(&float_type));
        if is_float { objects.float(object).ok().map(Self::Float) } else { None }
    }
}
