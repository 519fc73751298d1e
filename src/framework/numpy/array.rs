//! NumPy arrays: their headers, and the layout that reads them.

use serde::Deserialize;

use crate::addr::{VirtAddr, field};
use crate::cpython::{ObjectError, Objects};
use crate::layout::{LayoutError, Ranking, layout_struct, table};
use crate::signature;
use crate::tensor::{ArrayField, ArrayInfo, Elements, Raw, ScalarType};

/// Family of the layouts.
const FAMILY: &str = "numpy";
/// The most dimensions that an array may have (`NPY_MAXDIMS` of NumPy 2; 32 in NumPy 1).
const MAX_DIMS: u32 = 64;
/// The largest element, in bytes.
const MAX_ITEM: u64 = 1 << 30;
/// The longest name of a field, in bytes.
const MAX_FIELD_NAME: usize = 1024;
/// Fields of a structured type that are listed.
const MAX_FIELDS: usize = 1024;
/// Name of a type that is not known.
const UNKNOWN: &str = "?";

layout_struct! {
    /// Offsets in NumPy's structures, from the end of the `PyObject` that each begins with.
    Offsets {
        data: "array.data" as i64,
        dimension_count: "array.nd" as i64,
        dimensions: "array.dimensions" as i64,
        strides: "array.strides" as i64,
        base: "array.base" as i64,
        descr: "array.descr" as i64,
        flags: "array.flags" as i64,
        flag_c_contiguous: "array_flags.C_CONTIGUOUS" as i64,
        kind: "dtype.kind" as i64,
        byte_order: "dtype.byteorder" as i64,
        item_size: "dtype.elsize" as i64,
        item_size_bits: "dtype.elsize_bits" as i64,
        fields: "dtype.fields" as i64,
        names: "dtype.names" as i64,
    }
}

/// The layout of one range of NumPy versions.
#[derive(Clone, Debug)]
pub struct ArrayLayout {
    offsets: Offsets,
    kinds: Vec<Kind>,
}

/// What a letter of `dtype.kind` means.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kind {
    letter: char,
    /// Bytes per unit of the number in `dtype.str`: 4 for text, whose length is in characters.
    #[serde(default)]
    unit: Option<u64>,
    /// Whether the elements are pointers to objects.
    #[serde(default)]
    is_pointer: bool,
    /// All sizes that an element can have, with their names in safetensors; any size if there are none.
    #[serde(default)]
    sizes: Vec<Size>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    size: u64,
    #[serde(default)]
    safetensors: Option<String>,
    #[serde(default)]
    raw: Option<Raw>,
}

/// All NumPy layouts of a set of signatures.
///
/// # Errors
/// A layout lacks a number or a table that the code needs.
pub fn array_layouts(signatures: &signature::Signatures) -> Result<Vec<ArrayLayout>, LayoutError> {
    let layout =
        |layout: &signature::Layout| Ok(ArrayLayout { offsets: Offsets::new(layout)?, kinds: table(layout, "kinds")? });
    signatures.layouts(FAMILY).map(layout).collect()
}

/// How many arrays a layout reads without contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayScore {
    /// Arrays whose fields agree.
    pub readable: usize,
    /// Objects that were tried.
    pub tried: usize,
    /// The layout's version.
    pub version: String,
    /// Versions of the layouts that read as many, where neither this nor NumPy's own version tells which is right.
    pub rivals: Vec<String>,
}

/// The layout of a process's arrays, as far as it could be decided.
pub struct ArrayReader<'a> {
    layout: &'a ArrayLayout,
    /// Layouts that fit equally well.
    rivals: Vec<&'a ArrayLayout>,
    /// How well it reads the arrays.
    pub score: ArrayScore,
}

/// The layout that reads most of the arrays; `None` if no layout reads any. Among layouts that read equally many it is the one of
/// `version`, NumPy's own (`2.1.3`), if that is known.
pub fn select_layout<'a>(
    layouts: &'a [ArrayLayout],
    objects: &Objects<'_>,
    arrays: &[VirtAddr],
    version: Option<&str>,
) -> Option<ArrayReader<'a>> {
    let score = |layout: &'a ArrayLayout| {
        let readable = arrays.iter().filter(|array| layout.read(objects, **array).is_ok()).count();
        ((readable, layout.is_of(version)), layout)
    };
    // Of layouts that fit equally well the newest is used.
    let ranking: Ranking<(usize, bool), &ArrayLayout> = layouts.iter().rev().map(score).collect();
    let (&(readable, _), &layout) = ranking.best().filter(|((readable, _), _)| *readable > 0)?;
    let rivals: Vec<_> = ranking.rivals().copied().collect();
    let mut reader = ArrayReader {
        layout,
        rivals,
        score: ArrayScore { readable, tried: arrays.len(), version: layout.version().to_owned(), rivals: Vec::new() },
    };
    if arrays.iter().any(|array| reader.read(objects, *array).is_ok_and(|info| info.is_undecided)) {
        reader.score.rivals = reader.rivals.iter().map(|rival| rival.version().to_owned()).collect();
    }
    Some(reader)
}

impl ArrayReader<'_> {
    /// Reads the array at `object`. Where layouts that fit equally well read it differently, its type stays open.
    ///
    /// # Errors
    /// With every layout that fits, a header can't be read or is inconsistent.
    pub fn read(&self, objects: &Objects<'_>, object: VirtAddr) -> Result<ArrayInfo, ObjectError> {
        let read = self.layout.read(objects, object);
        let mut others = self.rivals.iter().map(|rival| rival.read(objects, object).ok());
        match others.find(|other| other.as_ref() != read.as_ref().ok()) {
            None => read,
            Some(other) => other.map_or(read, Ok).map(without_type),
        }
    }
}

impl ArrayLayout {
    /// The range of NumPy versions that it is for, by the first: `1`, `2`.
    fn version(&self) -> &str {
        &self.offsets.version
    }

    /// Whether a version of NumPy is in the layout's range.
    fn is_of(&self, version: Option<&str>) -> bool {
        version.and_then(|version| version.split('.').next()) == Some(self.version())
    }

    /// Reads the array at `object`.
    ///
    /// # Errors
    /// A header can't be read, or its fields contradict each other.
    pub fn read(&self, objects: &Objects<'_>, object: VirtAddr) -> Result<ArrayInfo, ObjectError> {
        let at = &self.offsets;
        let implausible = |field, value| ObjectError::Implausible { address: object, field, value };
        let head = field(object, objects.layout().object_size);
        // An `int`, with padding or nothing behind it.
        let dims = objects.word(head, at.dimension_count)? as u32;
        if dims > MAX_DIMS {
            return Err(implausible("nd", dims.into()));
        }
        let shape = objects.words(objects.pointer(head, at.dimensions)?, dims.into())?;
        let strides = objects.words(objects.pointer(head, at.strides)?, dims.into())?;
        let strides: Vec<i64> = strides.into_iter().map(u64::cast_signed).collect();
        let (kind, byte_order, size, descr) = self.dtype(objects, objects.pointer(head, at.descr)?)?;
        let dtype = kind.scalar_type(byte_order, size);
        let holds_objects = kind.is_pointer;
        let base = Some(objects.pointer(head, at.base)?).filter(|base| base.0 != 0);
        let (data, fields) = (objects.pointer(head, at.data)?, self.fields(objects, descr));
        let info = ArrayInfo { object, dtype, shape, strides, data, base, fields, holds_objects, is_undecided: false };
        let bytes = info.shape.iter().try_fold(size, |bytes, count| bytes.checked_mul(*count));
        let (shape, stride) = (info.shape.clone(), info.strides.clone());
        let elements = Elements { data, shape, stride, size, ..Elements::default() };
        if bytes.is_none_or(|bytes| bytes > i64::MAX as u64) || elements.span().is_none() {
            return Err(implausible("dimensions", info.shape.first().copied().unwrap_or_default()));
        }
        let flags = objects.word(head, at.flags)?;
        if flags & at.flag_c_contiguous as u64 != 0 && !is_contiguous(&elements) {
            return Err(implausible("flags", flags & u64::from(u32::MAX)));
        }
        Ok(info)
    }

    /// Kind, byte order and size of an element, and where the fields of its `PyArray_Descr` begin.
    fn dtype(&self, objects: &Objects<'_>, descr: VirtAddr) -> Result<(&Kind, char, u64, VirtAddr), ObjectError> {
        let at = &self.offsets;
        let implausible = |field, value| ObjectError::Implausible { address: descr, field, value };
        if !objects.is_alive(descr)? {
            return Err(ObjectError::WrongType { address: descr, expected: "live dtype" });
        }
        let head = field(descr, objects.layout().object_size);
        let letter = objects.byte(head, at.kind)?;
        let kind = self.kinds.iter().find(|kind| kind.letter == char::from(letter));
        let kind = kind.ok_or_else(|| implausible("kind", letter.into()))?;
        let byte_order = objects.byte(head, at.byte_order)?;
        if !b"<>=|".contains(&byte_order) {
            return Err(implausible("byteorder", byte_order.into()));
        }
        let unused = u64::BITS.saturating_sub(at.item_size_bits.unsigned_abs() as u32).min(u64::BITS - 1);
        let size = objects.word(head, at.item_size)? << unused >> unused;
        if size > MAX_ITEM || !kind.allows(size) {
            return Err(implausible("elsize", size));
        }
        Ok((kind, char::from(byte_order), size, head))
    }

    /// The fields of a structured type; those that can't be read are left out.
    fn fields(&self, objects: &Objects<'_>, descr: VirtAddr) -> Vec<ArrayField> {
        let all = || {
            let names = objects.tuple(objects.pointer(descr, self.offsets.names).ok()?).ok()?;
            let fields = objects.str_dict(objects.pointer(descr, self.offsets.fields).ok()?).ok()?;
            let field = |name: &VirtAddr| {
                let name = objects.str(*name).ok()?;
                if name.len() > MAX_FIELD_NAME {
                    return None;
                }
                let (_, value) = fields.iter().find(|(key, _)| *key == name)?;
                let [dtype, offset, ..] = *objects.tuple(*value).ok()? else { return None };
                let (kind, byte_order, size, _) = self.dtype(objects, dtype).ok()?;
                let offset = u64::try_from(objects.int(offset).ok()??).ok()?;
                Some(ArrayField { name, dtype: kind.scalar_type(byte_order, size).name, offset })
            };
            Some(names.iter().take(MAX_FIELDS).filter_map(field).collect())
        };
        all().unwrap_or_default()
    }
}

impl Kind {
    /// Whether an element of the kind can have that size. No number has none; text and plain bytes may.
    fn allows(&self, size: u64) -> bool {
        let is_in_units = size.is_multiple_of(self.unit.unwrap_or(1).max(1));
        is_in_units && (self.sizes.is_empty() || self.sizes.iter().any(|known| known.size == size))
    }

    fn scalar_type(&self, byte_order: char, size: u64) -> ScalarType {
        let units = size / self.unit.unwrap_or(1).max(1);
        // The machine's own order is little-endian.
        let byte_order = if byte_order == '=' { '<' } else { byte_order };
        let known = self.sizes.iter().find(|known| known.size == size && byte_order != '>');
        ScalarType {
            name: format!("{byte_order}{}{units}", self.letter),
            size,
            safetensors: known.and_then(|known| known.safetensors.clone()),
            raw: known.and_then(|known| known.raw.clone()),
        }
    }
}

/// Whether the elements lie one after another in row-major order, as NumPy defines it.
fn is_contiguous(elements: &Elements) -> bool {
    let mut expected = elements.size.cast_signed();
    elements.numel() == 0
        || elements.shape.iter().zip(&elements.stride).rev().filter(|(count, _)| **count != 1).all(|(count, stride)| {
            let fits = *stride == expected;
            expected = expected.wrapping_mul(count.cast_signed());
            fits
        })
}

/// An array without what layouts disagree about.
fn without_type(array: ArrayInfo) -> ArrayInfo {
    let dtype = ScalarType { name: UNKNOWN.to_owned(), size: 0, safetensors: None, raw: None };
    ArrayInfo { dtype, fields: Vec::new(), holds_objects: false, is_undecided: true, ..array }
}
