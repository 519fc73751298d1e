//! Structural signatures: fields at offsets, each with tests that its value must pass.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::{Location, SignatureError, Text};
use super::number::Number;
use crate::addr::FRAME_SIZE;

/// Lowest value of a user pointer: nothing is mapped in the first page.
pub const USER_POINTER_MIN: u64 = 0x1000;
/// Highest value of a user pointer: the lower canonical half under 5-level paging.
pub const USER_POINTER_MAX: u64 = (1 << 56) - 1;

/// Whether a word may be a pointer of a process.
#[inline]
pub fn is_user_pointer(word: u64) -> bool {
    (USER_POINTER_MIN..=USER_POINTER_MAX).contains(&word)
}
/// Lowest value of a kernel pointer: the upper canonical half under 5-level paging.
pub const KERNEL_POINTER_MIN: u64 = 0xff00_0000_0000_0000;

/// A structure that is recognised by the values of its fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// Name, unique among structures and needles.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Where the numbers come from.
    pub source: String,
    /// The base address is a multiple of this power of two (at most 4,096, so that it holds
    /// for physical addresses as well as for virtual ones).
    pub align: u64,
    /// Candidates with fewer testable fields in the anchor's frame are not reported.
    pub min_tested: u16,
    anchor: Field,
    fields: Vec<Field>,
}

impl Structure {
    /// All fields, in the order of the file.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// What the value of a field must be, in the words of a signature file.
    pub fn expectation(&self, field: &Field) -> String {
        let words = field.tests.iter().map(|test| match test {
            Test::Equal(value) => format!("equal = {value:#x}"),
            Test::Masked { mask, value } => format!("mask = {mask:#x} with value = {value:#x}"),
            Test::Range { min, max } => format!("range = [{min:#x}, {max:#x}]"),
            Test::OneOf(values) => format!("one_of = {values:#x?}").split_whitespace().collect::<Vec<_>>().join(" "),
            Test::UserPointer { align } => format!("user_pointer, a multiple of {align}"),
            Test::KernelPointer { align } => format!("kernel_pointer, a multiple of {align}"),
            Test::PageOffsetOfSelf(bytes) => format!("page_offset_of_self = {bytes}"),
            Test::EqualField(index) => {
                format!("equal_field = {:?}", self.fields.get(*index).map_or("?", |other| &other.name))
            }
        });
        words.collect::<Vec<_>>().join(", ")
    }

    /// The field whose place gives a candidate.
    pub fn anchor(&self) -> &Field {
        &self.anchor
    }
}

/// One field of a structure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Name, unique in the structure.
    pub name: String,
    /// Bytes from the base of the structure; the field ends at or before 4,096.
    pub offset: u64,
    /// Bytes: 1, 2, 4 or 8, little-endian.
    pub width: u8,
    /// All must hold; never empty.
    pub tests: Vec<Test>,
}

impl Field {
    /// Whether a test of it needs another field: where that one is out of sight, none of its tests is made.
    pub(crate) fn needs_other(&self) -> bool {
        self.tests.iter().any(|test| matches!(test, Test::EqualField(_)))
    }
}

/// What the value of a field must be; compared unsigned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Test {
    /// This value.
    Equal(u64),
    /// `value & mask == wanted`.
    Masked {
        /// The bits that are looked at, never 0.
        mask: u64,
        /// What they must be.
        value: u64,
    },
    /// Between the two, both included.
    Range {
        /// Smallest.
        min: u64,
        /// Largest, not below `min`.
        max: u64,
    },
    /// One of these; sorted, not empty.
    OneOf(Vec<u64>),
    /// Canonical, in the user half, and a multiple of `align`.
    UserPointer {
        /// A power of two.
        align: u64,
    },
    /// Canonical, in the kernel half, and a multiple of `align`.
    KernelPointer {
        /// A power of two.
        align: u64,
    },
    /// The low 12 bits are those of the field's own address plus this.
    PageOffsetOfSelf(i64),
    /// The value of the field at this index in the structure.
    EqualField(usize),
}

impl Test {
    /// Whether a field that is zero could pass.
    pub(crate) fn may_be_zero(&self) -> bool {
        match self {
            Self::Equal(value) | Self::Masked { value, .. } => *value == 0,
            Self::Range { min, .. } => *min == 0,
            Self::OneOf(values) => values.contains(&0),
            Self::UserPointer { .. } | Self::KernelPointer { .. } => false,
            Self::PageOffsetOfSelf(_) | Self::EqualField(_) => true,
        }
    }

    /// The smallest and the largest value, and the alignment, that a test on a range sets; of a list those of its range.
    pub(crate) fn bounds(&self) -> Option<(u64, u64, u64)> {
        match self {
            Self::Range { min, max } => Some((*min, *max, 1)),
            Self::OneOf(values) => Some((*values.first()?, *values.last()?, 1)),
            Self::UserPointer { align } => Some((USER_POINTER_MIN, USER_POINTER_MAX, *align)),
            Self::KernelPointer { align } => Some((KERNEL_POINTER_MIN, u64::MAX, *align)),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStructure {
    name: Spanned<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    source: String,
    align: Option<Spanned<u64>>,
    anchor: Spanned<String>,
    min_tested: Option<Spanned<u16>>,
    #[serde(default)]
    field: Vec<RawField>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    name: Spanned<String>,
    offset: Spanned<u64>,
    width: Spanned<u8>,
    equal: Option<Spanned<Number>>,
    mask: Option<Spanned<Number>>,
    value: Option<Spanned<Number>>,
    range: Option<Spanned<[Number; 2]>>,
    one_of: Option<Spanned<Vec<Number>>>,
    #[serde(default)]
    user_pointer: bool,
    #[serde(default)]
    kernel_pointer: bool,
    pointer_align: Option<Spanned<u64>>,
    page_offset_of_self: Option<i64>,
    equal_field: Option<Spanned<String>>,
}

impl RawStructure {
    pub(super) fn check(self, text: Text<'_>) -> Result<(Structure, Location), SignatureError> {
        let name = self.name.get_ref().clone();
        if name.is_empty() {
            return Err(text.error(self.name.span(), "the name is empty"));
        }
        for (i, field) in self.field.iter().enumerate() {
            if self.field.iter().take(i).any(|earlier| earlier.name.get_ref() == field.name.get_ref()) {
                let reason = format!("structure `{name}` has two fields named `{}`", field.name.get_ref());
                return Err(text.error(field.name.span(), reason));
            }
        }
        let names: Vec<(&str, u8)> =
            self.field.iter().map(|f| (f.name.get_ref().as_str(), *f.width.get_ref())).collect();
        let fields = self.field.iter().map(|f| f.check(&names, text)).collect::<Result<Vec<_>, _>>()?;
        let Some(anchor) = fields.iter().find(|field| field.name == *self.anchor.get_ref()).cloned() else {
            let reason = format!("structure `{name}` has no field named `{}`", self.anchor.get_ref());
            return Err(text.error(self.anchor.span(), reason));
        };
        if anchor.needs_other() {
            let reason = "the anchor is tested alone: put `equal_field` on the other field";
            return Err(text.error(self.anchor.span(), reason));
        }
        let min_tested = self.min_tested.as_ref().map_or(1, |n| *n.get_ref());
        if min_tested == 0 || usize::from(min_tested) > fields.len() {
            let span = self.min_tested.map_or(self.name.span(), |n| n.span());
            return Err(text.error(span, format!("must be between 1 and the number of fields, {}", fields.len())));
        }
        let align = power_of_two(self.align.as_ref(), 8, text)?;
        let location = text.at(self.name.span());
        let Self { description, source, .. } = self;
        Ok((Structure { name, description, source, align, min_tested, anchor, fields }, location))
    }
}

impl RawField {
    fn check(&self, names: &[(&str, u8)], text: Text<'_>) -> Result<Field, SignatureError> {
        let name = self.name.get_ref();
        let width = *self.width.get_ref();
        if ![1, 2, 4, 8].contains(&width) {
            return Err(text.error(self.width.span(), format!("width of `{name}` is {width}, not 1, 2, 4 or 8")));
        }
        let offset = *self.offset.get_ref();
        if offset > FRAME_SIZE - u64::from(width) {
            let reason = format!("`{name}` ends past {FRAME_SIZE} bytes, the maximum size of a structure");
            return Err(text.error(self.offset.span(), reason));
        }
        let tests = self.tests(names, text)?;
        if tests.is_empty() {
            return Err(text.error(self.name.span(), format!("field `{name}` has no test")));
        }
        Ok(Field { name: name.clone(), offset, width, tests })
    }

    fn tests(&self, names: &[(&str, u8)], text: Text<'_>) -> Result<Vec<Test>, SignatureError> {
        let name = self.name.get_ref();
        let width = *self.width.get_ref();
        let fits = |value: Option<u64>, span| {
            value.ok_or_else(|| text.error(span, format!("does not fit the {width} bytes of `{name}`")))
        };
        let mut tests = Vec::new();
        if let Some(value) = &self.equal {
            tests.push(Test::Equal(fits(value.get_ref().in_width(width), value.span())?));
        }
        match (&self.mask, &self.value) {
            (None, None) => {}
            (Some(mask), Some(value)) => {
                let bits = fits(mask.get_ref().unsigned_in_width(width), mask.span())?;
                let wanted = fits(value.get_ref().in_width(width), value.span())?;
                if bits == 0 || wanted & !bits != 0 {
                    let reason = format!("value {wanted:#x} has bits outside the mask {bits:#x}, or the mask is 0");
                    return Err(text.error(value.span(), reason));
                }
                tests.push(Test::Masked { mask: bits, value: wanted });
            }
            (Some(lone), None) | (None, Some(lone)) => {
                return Err(text.error(lone.span(), "`mask` and `value` must be given together"));
            }
        }
        if let Some(range) = &self.range {
            let [min, max] = *range.get_ref();
            let min = fits(min.unsigned_in_width(width), range.span())?;
            let max = fits(max.unsigned_in_width(width), range.span())?;
            if min > max {
                return Err(text.error(range.span(), format!("the range of `{name}` has min {min:#x} > max {max:#x}")));
            }
            tests.push(Test::Range { min, max });
        }
        if let Some(one_of) = &self.one_of {
            let values = one_of.get_ref().iter().map(|v| fits(v.in_width(width), one_of.span()));
            let mut values = values.collect::<Result<Vec<u64>, _>>()?;
            values.sort_unstable();
            values.dedup();
            if values.is_empty() {
                return Err(text.error(one_of.span(), "an empty list matches nothing"));
            }
            tests.push(Test::OneOf(values));
        }
        self.pointer_tests(text, &mut tests)?;
        if let Some(other) = &self.equal_field {
            let Some(index) = names.iter().position(|(field, _)| field == other.get_ref()) else {
                return Err(text.error(other.span(), format!("no field named `{}`", other.get_ref())));
            };
            if other.get_ref() == name || names.get(index).is_none_or(|(_, w)| *w != width) {
                return Err(text.error(other.span(), "must be another field of the same width"));
            }
            tests.push(Test::EqualField(index));
        }
        Ok(tests)
    }

    fn pointer_tests(&self, text: Text<'_>, tests: &mut Vec<Test>) -> Result<(), SignatureError> {
        let name = self.name.get_ref();
        let width = *self.width.get_ref();
        let align = power_of_two(self.pointer_align.as_ref(), 8, text)?;
        let pointer = self.user_pointer || self.kernel_pointer;
        if pointer && width != 8 {
            return Err(text.error(self.width.span(), format!("pointer `{name}` must have width 8")));
        }
        if let Some(stray) = self.pointer_align.as_ref().filter(|_| !pointer) {
            return Err(text.error(stray.span(), "needs `user_pointer` or `kernel_pointer` beside it"));
        }
        if self.user_pointer && self.kernel_pointer {
            let reason = format!("`{name}` cannot be a user pointer and a kernel pointer at once");
            return Err(text.error(self.name.span(), reason));
        }
        if self.user_pointer {
            tests.push(Test::UserPointer { align });
        }
        if self.kernel_pointer {
            tests.push(Test::KernelPointer { align });
        }
        if let Some(k) = self.page_offset_of_self {
            if width < 2 {
                return Err(text.error(self.width.span(), format!("`{name}` is too narrow for a page offset")));
            }
            tests.push(Test::PageOffsetOfSelf(k));
        }
        Ok(())
    }
}

/// An alignment that holds alike for physical and virtual addresses: a power of two up to a page.
pub(super) fn power_of_two(raw: Option<&Spanned<u64>>, default: u64, text: Text<'_>) -> Result<u64, SignatureError> {
    let Some(align) = raw else { return Ok(default) };
    let value = *align.get_ref();
    if value.is_power_of_two() && value <= FRAME_SIZE {
        return Ok(value);
    }
    Err(text.error(align.span(), format!("{value} is not a power of two between 1 and {FRAME_SIZE}")))
}
