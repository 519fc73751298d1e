//! Reading CPython objects: every pointer, count and length is checked before it is used.

use super::layout::Layout;
use super::references::References;
use crate::addr::{VirtAddr, field};
use crate::paging::{Fault, VirtualMemory};

/// The most elements that are read of one container; a model has fewer parameters by far.
const MAX_ITEMS: u64 = 1 << 22;
/// The most types in a resolution order: several times as many as classes of large frameworks have.
const MAX_ORDER: u64 = 256;
/// The longest string that is read, in code points.
const MAX_STR: u64 = 1 << 20;
/// The most digits of an integer: what fits in an `i128`.
const MAX_DIGITS: u64 = 4;
/// Bits of an integer in one digit (`PyLong_SHIFT` on 64-bit builds).
pub(crate) const DIGIT_BITS: u32 = 30;

/// Why an object could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A byte of it is not there.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// It is of another kind.
    #[error("the object at {address} is not the expected {expected}")]
    WrongType {
        /// The object.
        address: VirtAddr,
        /// What it should have been.
        expected: &'static str,
    },
    /// A field holds what no live object has there.
    #[error("the object at {address} has an implausible {field} ({value:#x})")]
    Implausible {
        /// The object, or the structure that belongs to it.
        address: VirtAddr,
        /// The field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

impl ObjectError {
    /// Where the evidence of it is.
    pub fn address(&self) -> VirtAddr {
        match self {
            Self::Fault(fault) => fault.address(),
            Self::WrongType { address, .. } | Self::Implausible { address, .. } => *address,
        }
    }
}

/// Objects of one address space, read with one layout.
#[derive(Clone, Copy)]
pub struct Objects<'a> {
    memory: &'a dyn VirtualMemory,
    layout: &'a Layout,
}

impl<'a> Objects<'a> {
    /// A reader of `memory` with `layout`.
    pub fn new(memory: &'a dyn VirtualMemory, layout: &'a Layout) -> Self {
        Self { memory, layout }
    }

    /// The layout that objects are read with.
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// The memory that objects are read from.
    pub fn memory(&self) -> &'a dyn VirtualMemory {
        self.memory
    }

    /// The 64-bit word at an offset from an address.
    pub(crate) fn word(&self, address: VirtAddr, offset: i64) -> Result<u64, ObjectError> {
        Ok(self.memory.word(address, offset)?)
    }

    /// The pointer at an offset from an address.
    pub(crate) fn pointer(&self, address: VirtAddr, offset: i64) -> Result<VirtAddr, ObjectError> {
        Ok(self.memory.pointer(address, offset)?)
    }

    /// The byte at an offset from an address.
    pub(crate) fn byte(&self, address: VirtAddr, offset: i64) -> Result<u8, ObjectError> {
        Ok(self.memory.byte(address, offset)?)
    }

    /// Consecutive 64-bit words; how many is checked by the caller.
    pub(crate) fn words(&self, address: VirtAddr, count: u64) -> Result<Vec<u64>, ObjectError> {
        Ok(self.memory.words(address, count)?)
    }

    /// The type of an object.
    ///
    /// # Errors
    /// The object can't be read.
    pub fn type_of(&self, object: VirtAddr) -> Result<VirtAddr, ObjectError> {
        self.pointer(object, self.layout.ob_type)
    }

    /// Whether the reference count is one of a live object.
    ///
    /// # Errors
    /// The object can't be read.
    pub fn is_alive(&self, object: VirtAddr) -> Result<bool, ObjectError> {
        let unknown = ObjectError::WrongType { address: object, expected: "object with a known reference count" };
        let references = References::of(self.layout).ok_or(unknown)?;
        let slot = field(object, self.layout.ob_type);
        references.are_live(|distance| self.word(slot, distance))
    }

    /// The flags of a type (`tp_flags`).
    ///
    /// # Errors
    /// The type can't be read.
    pub fn type_flags(&self, type_object: VirtAddr) -> Result<u64, ObjectError> {
        self.word(type_object, self.layout.tp_flags)
    }

    /// Whether the object's type has a flag set.
    pub(crate) fn has_type_flag(&self, object: VirtAddr, flag: i64) -> Result<bool, ObjectError> {
        Ok(self.type_flags(self.type_of(object)?)? & flag as u64 != 0)
    }

    pub(crate) fn expect(&self, address: VirtAddr, flag: i64, expected: &'static str) -> Result<(), ObjectError> {
        if self.has_type_flag(address, flag)? { Ok(()) } else { Err(ObjectError::WrongType { address, expected }) }
    }

    /// The types in the method resolution order of a type, itself first.
    ///
    /// # Errors
    /// The tuple can't be read, is longer than that of any class, or does not begin with the type.
    pub fn mro(&self, type_object: VirtAddr) -> Result<Vec<VirtAddr>, ObjectError> {
        let order = self.pointer(type_object, self.layout.tp_mro)?;
        self.expect(order, self.layout.flag_tuple, "tuple")?;
        let count = self.count(order, self.layout.tuple_size, "ob_size")?;
        // Tuples of different types may share their items: what is read for all types is bounded by this alone.
        if count > MAX_ORDER {
            return Err(ObjectError::Implausible { address: order, field: "ob_size", value: count });
        }
        let mro = self.tuple(order)?;
        match mro.first() {
            Some(first) if *first == type_object => Ok(mro),
            _ => Err(ObjectError::WrongType { address: type_object, expected: "type with a method resolution order" }),
        }
    }

    /// The elements of a tuple.
    ///
    /// # Errors
    /// It is no tuple, or can't be read whole.
    pub fn tuple(&self, object: VirtAddr) -> Result<Vec<VirtAddr>, ObjectError> {
        self.start_of_tuple(object, usize::MAX)
    }

    /// The first elements of a tuple, at most `most`.
    pub(crate) fn start_of_tuple(&self, object: VirtAddr, most: usize) -> Result<Vec<VirtAddr>, ObjectError> {
        self.expect(object, self.layout.flag_tuple, "tuple")?;
        let count = self.count(object, self.layout.tuple_size, "ob_size")?.min(most as u64);
        let items = self.words(field(object, self.layout.tuple_items), count)?;
        Ok(items.into_iter().map(VirtAddr).collect())
    }

    /// The elements of a list.
    ///
    /// # Errors
    /// It is no list, or can't be read whole.
    pub fn list(&self, object: VirtAddr) -> Result<Vec<VirtAddr>, ObjectError> {
        self.start_of_list(object, usize::MAX)
    }

    /// The first elements of a list, at most `most`.
    pub(crate) fn start_of_list(&self, object: VirtAddr, most: usize) -> Result<Vec<VirtAddr>, ObjectError> {
        self.expect(object, self.layout.flag_list, "list")?;
        let count = self.count(object, self.layout.list_size, "ob_size")?.min(most as u64);
        let items = self.words(self.pointer(object, self.layout.list_items)?, count)?;
        Ok(items.into_iter().map(VirtAddr).collect())
    }

    pub(crate) fn count(&self, address: VirtAddr, offset: i64, name: &'static str) -> Result<u64, ObjectError> {
        let value = self.word(address, offset)?;
        if value > MAX_ITEMS {
            return Err(ObjectError::Implausible { address, field: name, value });
        }
        Ok(value)
    }

    /// The text of a `str`; code points that are no characters (lone surrogates) become U+FFFD.
    ///
    /// # Errors
    /// It is no `str`, or can't be read whole.
    pub fn str(&self, object: VirtAddr) -> Result<String, ObjectError> {
        let text = self.text(object)?;
        let mut bytes = vec![0; (text.length * text.kind) as usize];
        self.memory.read(text.data, &mut bytes)?;
        let value = text.state & 0xffff_ffff;
        let decoded = decode(bytes, text.kind, text.is_ascii);
        decoded.ok_or(ObjectError::Implausible { address: object, field: "state", value })
    }

    /// Which of the given ASCII texts a `str` equals, if any. A text of a different length is not read.
    pub(crate) fn str_among<'t>(&self, object: VirtAddr, texts: &[&'t str]) -> Option<&'t str> {
        let found = self.text(object).ok()?;
        let mut of_length = texts.iter().copied().filter(|text| text.len() as u64 == found.length).peekable();
        let length = of_length.peek()?.len();
        match self.memory.bytes_at(found.data).ok()?.get(..length) {
            Some(bytes) if found.is_ascii => of_length.find(|text| text.as_bytes() == bytes),
            _ => self.str(object).ok().and_then(|found| of_length.find(|text| *text == found)),
        }
    }

    /// The head of a `str`.
    fn text(&self, object: VirtAddr) -> Result<Text, ObjectError> {
        self.expect(object, self.layout.flag_str, "str")?;
        let layout = self.layout;
        let length = self.word(object, layout.str_length)?;
        let StrState { word: state, kind, ascii, head } = self.str_state(object)?;
        if length > MAX_STR {
            return Err(ObjectError::Implausible { address: object, field: "length", value: length });
        }
        if !matches!(kind, 1 | 2 | 4) {
            return Err(implausible_state(object, state));
        }
        let data = match head {
            Some(size) => field(object, size),
            None => self.pointer(object, layout.str_data)?,
        };
        Ok(Text { length, state, kind, is_ascii: kind == 1 && ascii, data })
    }

    /// How a `str` keeps its characters.
    pub(super) fn str_state(&self, object: VirtAddr) -> Result<StrState, ObjectError> {
        let layout = self.layout;
        let word = self.word(object, layout.str_state)?;
        // A layout that is being inferred may name a bit that is not there.
        let from_bit = |bit: i64| {
            let shifted = u32::try_from(bit).ok().and_then(|bit| word.checked_shr(bit));
            shifted.ok_or_else(|| implausible_state(object, word))
        };
        let kind = from_bit(layout.str_kind_bit)? & 7;
        let ascii = from_bit(layout.str_ascii_bit)? & 1 == 1;
        let is_compact = from_bit(layout.str_compact_bit)? & 1 == 1;
        let size = if ascii { layout.str_ascii_size } else { layout.str_compact_size };
        Ok(StrState { word, kind, ascii, head: is_compact.then_some(size) })
    }

    /// The value of an `int`, or `None` if it needs more than 127 bits.
    ///
    /// # Errors
    /// It is no `int`, or can't be read whole.
    pub fn int(&self, object: VirtAddr) -> Result<Option<i128>, ObjectError> {
        let (count, negative) = self.int_head(object)?;
        if count > MAX_DIGITS {
            return Ok(None);
        }
        let mut bytes = vec![0; 4 * count as usize];
        self.memory.read(field(object, self.layout.int_digits), &mut bytes)?;
        let (digits, _) = bytes.as_chunks();
        let mut value = 0i128;
        for digit in digits.iter().rev().map(|digit| u32::from_le_bytes(*digit)) {
            if digit >> DIGIT_BITS != 0 {
                let value = u64::from(digit);
                return Err(ObjectError::Implausible { address: object, field: "ob_digit", value });
            }
            value = (value << DIGIT_BITS) | i128::from(digit);
        }
        Ok(Some(if negative { -value } else { value }))
    }

    /// How many digits of 30 bits an `int` has, and whether it is negative.
    ///
    /// # Errors
    /// It is no `int`, or can't be read.
    pub(super) fn int_head(&self, object: VirtAddr) -> Result<(u64, bool), ObjectError> {
        self.expect(object, self.layout.flag_int, "int")?;
        match (self.layout.int_lv_tag, self.layout.int_ob_size) {
            (Some(tag), _) => {
                let tag = self.word(object, tag)?;
                Ok((tag >> 3, tag & 3 == 2))
            }
            (None, Some(size)) => {
                let size = self.word(object, size)?.cast_signed();
                Ok((size.unsigned_abs(), size < 0))
            }
            (None, None) => Err(ObjectError::WrongType { address: object, expected: "int of a known layout" }),
        }
    }

    /// The value of an object that is known to be a `float`.
    ///
    /// # Errors
    /// It can't be read.
    pub fn float(&self, object: VirtAddr) -> Result<f64, ObjectError> {
        self.word(object, self.layout.float_value).map(f64::from_bits)
    }
}

/// The head of a `str`.
struct Text {
    /// Characters.
    length: u64,
    /// The word that holds `state`.
    state: u64,
    /// Bytes of each character.
    kind: u64,
    is_ascii: bool,
    /// The address of the characters.
    data: VirtAddr,
}

/// How a `str` keeps its characters.
pub(super) struct StrState {
    /// The word that holds `state`.
    word: u64,
    /// Bytes of each character, which are 1, 2 or 4 in a sound `str`.
    pub(super) kind: u64,
    ascii: bool,
    /// Bytes before the characters; `None` if these lie elsewhere.
    pub(super) head: Option<i64>,
}

/// The state of a `str` that can't be one.
fn implausible_state(object: VirtAddr, state: u64) -> ObjectError {
    ObjectError::Implausible { address: object, field: "state", value: state & 0xffff_ffff }
}

/// Text of code points that are `kind` bytes wide; `None` where they can't be what CPython keeps.
fn decode(bytes: Vec<u8>, kind: u64, is_ascii: bool) -> Option<String> {
    let character = |code: u32| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    let is_sound = |code: u32| code <= 0x0010_ffff;
    match kind {
        1 if is_ascii => Some(bytes).filter(|bytes| bytes.is_ascii()).and_then(|bytes| String::from_utf8(bytes).ok()),
        1 => Some(bytes.iter().map(|byte| char::from(*byte)).collect()),
        2 => Some(bytes.as_chunks().0.iter().map(|unit| character(u16::from_le_bytes(*unit).into())).collect()),
        _ => {
            let codes = || bytes.as_chunks().0.iter().map(|code| u32::from_le_bytes(*code));
            codes().all(is_sound).then(|| codes().map(character).collect())
        }
    }
}
