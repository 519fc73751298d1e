//! Short representations of objects. They are bounded and safe for a terminal; plain values look as in Python.

use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::RuntimeLayout;
use super::names::TypeNames;
use super::text::{decimal, float, printable, quoted_bytes, quoted_str};
use crate::addr::{VirtAddr, field};
use crate::cpython::{Builtins, Interpreter, Modules, ObjectError, Objects};

/// Maximum number of characters of a representation, and of one text in it. An ellipsis marks what is left out.
const MAX_CHARACTERS: usize = 400;
const MAX_TEXT: usize = 200;
/// Maximum number of elements shown of one container.
const MAX_ELEMENTS: usize = 100;
/// Maximum depth of nested containers.
const MAX_DEPTH: usize = 6;
/// The digits of 30 bits of the largest integer that is written in full.
const MAX_DIGITS: u64 = 40;
/// Maximum number of bytes read for all representations of an interpreter: a large container can be a variable of every frame.
const MAX_READ: u64 = 1 << 28;
/// The bytes of an entry of a dictionary or a set.
const ENTRY: u64 = 24;
/// Marks what is left out.
const ELLIPSIS: &str = "…";

/// Types whose values are written in Python notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plain {
    Str,
    Bytes,
    Int,
    Bool,
    Float,
    Tuple,
    List,
    Dict,
    Set,
    FrozenSet,
}

/// Their names in the module `builtins`.
const PLAIN: [(&str, Plain); 10] = [
    ("str", Plain::Str),
    ("bytes", Plain::Bytes),
    ("int", Plain::Int),
    ("bool", Plain::Bool),
    ("float", Plain::Float),
    ("tuple", Plain::Tuple),
    ("list", Plain::List),
    ("dict", Plain::Dict),
    ("set", Plain::Set),
    ("frozenset", Plain::FrozenSet),
];

/// Writes objects of one interpreter.
pub struct Repr<'i> {
    objects: Objects<'i>,
    layout: RuntimeLayout,
    plain: Vec<(VirtAddr, Plain)>,
    /// Singletons: `None`, `Ellipsis`, `NotImplemented`.
    singletons: Vec<(VirtAddr, &'static str)>,
    /// The bytes that may still be read.
    left: AtomicU64,
}

/// A representation that is being written.
struct Writing<'n> {
    names: &'n TypeNames<'n>,
    text: String,
    /// The characters that may still be written.
    left: usize,
    /// The enclosing containers.
    around: Vec<VirtAddr>,
}

impl Writing<'_> {
    fn push(&mut self, text: &str) {
        for character in text.chars() {
            match self.left {
                0 => return,
                1 => self.text.push_str(ELLIPSIS),
                _ => self.text.push(character),
            }
            self.left -= 1;
        }
    }
}

impl<'i> Repr<'i> {
    /// A writer for the objects of an interpreter with these imported modules.
    pub fn new(interpreter: &'i Interpreter, modules: &Modules, layout: &RuntimeLayout) -> Self {
        let objects = interpreter.objects();
        let builtins = modules.get("builtins").and_then(|dict| objects.str_dict(*dict).ok()).unwrap_or_default();
        let item = |name: &str| builtins.iter().find(|(known, _)| known == name).map(|(_, object)| *object);
        let plain = PLAIN.into_iter().filter_map(|(name, plain)| Some((item(name)?, plain))).collect();
        let named = ["Ellipsis", "NotImplemented"].into_iter().filter_map(|name| Some((item(name)?, name)));
        let none = Builtins::new(&objects, modules).none.map(|none| (none, "None"));
        let singletons = named.chain(none).collect();
        Self { objects, layout: layout.clone(), plain, singletons, left: AtomicU64::new(MAX_READ) }
    }

    /// The representation of an object. An object whose type can't be read is `<? at 0x…>`.
    pub fn of(&self, object: VirtAddr, names: &TypeNames<'_>) -> String {
        let mut writing = Writing { names, text: String::new(), left: MAX_CHARACTERS, around: Vec::new() };
        self.write(object, &mut writing);
        writing.text
    }

    fn write(&self, object: VirtAddr, out: &mut Writing<'_>) {
        if let Some((_, name)) = self.singletons.iter().find(|(known, _)| *known == object) {
            return out.push(name);
        }
        let type_object = self.objects.type_of(object).ok();
        let plain = self.plain.iter().find(|(known, _)| Some(*known) == type_object).map(|(_, plain)| *plain);
        let is_written = plain.is_some_and(|plain| self.write_plain(object, plain, out).is_some());
        if !is_written {
            let name = type_object.map_or_else(|| "?".to_owned(), |found| out.names.name(found));
            out.push(&format!("<{} at {object}>", printable(&name)));
        }
    }

    /// Writes a plain value. `None` if it can't be read or is too large; nothing is written then.
    fn write_plain(&self, object: VirtAddr, plain: Plain, out: &mut Writing<'_>) -> Option<()> {
        let (objects, layout) = (&self.objects, self.objects.layout());
        match plain {
            Plain::Str => {
                self.take(objects.word(object, layout.str_length).ok()?)?;
                out.push(&quoted_str(&objects.str(object).ok()?, MAX_TEXT));
            }
            Plain::Bytes => {
                let length = objects.word(object, self.layout.bytes_size?).ok()?;
                let mut shown = vec![0; length.min(MAX_TEXT as u64) as usize];
                objects.memory().read(field(object, self.layout.bytes_data?), &mut shown).ok()?;
                out.push(&quoted_bytes(&shown, shown.len() as u64 == length));
            }
            Plain::Int => out.push(&self.int(object)?),
            Plain::Bool => out.push(if objects.int(object).ok()? == Some(0) { "False" } else { "True" }),
            Plain::Float => out.push(&float(objects.float(object).ok()?)),
            Plain::Tuple => {
                let elements = self.counted(object, layout.tuple_size, || objects.tuple(object))?;
                let close = if elements.len() == 1 { ",)" } else { ")" };
                self.write_elements(object, ("(", close), &elements, out);
            }
            Plain::List => {
                let elements = self.counted(object, layout.list_size, || objects.list(object))?;
                self.write_elements(object, ("[", "]"), &elements, out);
            }
            Plain::Set | Plain::FrozenSet => {
                let elements = self.counted(object, layout.set_mask, || objects.set(object))?;
                match (elements.is_empty(), plain) {
                    (true, Plain::Set) => out.push("set()"),
                    (true, _) => out.push("frozenset()"),
                    (false, Plain::Set) => self.write_elements(object, ("{", "}"), &elements, out),
                    (false, _) => self.write_elements(object, ("frozenset({", "})"), &elements, out),
                }
            }
            Plain::Dict => {
                let items = self.counted(object, layout.dict_used, || objects.dict(object))?;
                self.write_nested(object, ("{", "}"), &items, out, |(key, value), out| {
                    self.write(*key, out);
                    out.push(": ");
                    self.write(*value, out);
                });
            }
        }
        Some(())
    }

    /// Reads a container whose number of elements is at an offset, if the bytes may still be read.
    fn counted<T>(&self, object: VirtAddr, count: i64, read: impl Fn() -> Result<T, ObjectError>) -> Option<T> {
        self.take(self.objects.word(object, count).ok()?.saturating_mul(ENTRY))?;
        read().ok()
    }

    /// Subtracts from the bytes that may still be read; `None` if they are too few.
    fn take(&self, bytes: u64) -> Option<()> {
        let take = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| ())
    }

    fn write_elements(&self, object: VirtAddr, brackets: (&str, &str), elements: &[VirtAddr], out: &mut Writing<'_>) {
        self.write_nested(object, brackets, elements, out, |element, out| self.write(*element, out));
    }

    /// Writes the elements of a container. A container within itself is written as three dots, as in Python.
    fn write_nested<T>(
        &self,
        object: VirtAddr,
        (open, close): (&str, &str),
        elements: &[T],
        out: &mut Writing<'_>,
        write: impl Fn(&T, &mut Writing<'_>),
    ) {
        out.push(open);
        if out.around.contains(&object) {
            out.push("...");
            return out.push(close.trim_start_matches(','));
        }
        if out.around.len() >= MAX_DEPTH && !elements.is_empty() {
            out.push(ELLIPSIS);
            return out.push(close);
        }
        out.around.push(object);
        for (at, element) in elements.iter().enumerate() {
            if out.left == 0 {
                break;
            }
            if at > 0 {
                out.push(", ");
            }
            if at >= MAX_ELEMENTS {
                out.push(ELLIPSIS);
                break;
            }
            write(element, out);
        }
        out.around.pop();
        out.push(close);
    }

    /// An `int` in decimal digits; `None` if it is too large.
    fn int(&self, object: VirtAddr) -> Option<String> {
        if let Some(value) = self.objects.int(object).ok()? {
            return Some(value.to_string());
        }
        let layout = self.objects.layout();
        let (count, is_negative) = self.objects.int_head(object).ok()?;
        if count > MAX_DIGITS {
            return None;
        }
        let mut bytes = vec![0; 4 * count as usize];
        self.objects.memory().read(field(object, layout.int_digits), &mut bytes).ok()?;
        let digits = bytes.as_chunks().0.iter().map(|digit| u32::from_le_bytes(*digit)).collect();
        Some(format!("{}{}", if is_negative { "-" } else { "" }, decimal(digits)))
    }
}
