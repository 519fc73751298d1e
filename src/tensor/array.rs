//! An array as its headers describe it: elements at strides that are counted in bytes, whatever library it is of.

use super::dtype::ScalarType;
use super::gather::Elements;
use crate::addr::VirtAddr;

/// A field of a structured type.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ArrayField {
    /// Its name.
    pub name: String,
    /// Its type, as in [`ArrayInfo::dtype`].
    pub dtype: String,
    /// Bytes before it in an element.
    pub offset: u64,
}

/// A NumPy array, as its own headers describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayInfo {
    /// The Python object.
    pub object: VirtAddr,
    /// Type of the elements; its name is that of `dtype.str`: byte order, kind, size.
    pub dtype: ScalarType,
    /// Elements along each dimension, outermost first.
    pub shape: Vec<u64>,
    /// Bytes between neighbours along each dimension.
    pub strides: Vec<i64>,
    /// The first element.
    pub data: VirtAddr,
    /// The object that owns the data, if it is not the array.
    pub base: Option<VirtAddr>,
    /// Fields of a structured type.
    pub fields: Vec<ArrayField>,
    /// Whether the elements are pointers to Python objects.
    pub holds_objects: bool,
    /// Whether layouts that fit equally well give it different types: its own is not known then.
    pub is_undecided: bool,
}

impl ArrayInfo {
    /// Where the elements lie; `None` if that is undecided, or if they are pointers, which mean nothing outside of the process.
    pub fn elements(&self) -> Option<Elements> {
        let (data, shape, stride) = (self.data, self.shape.clone(), self.strides.clone());
        let is_readable = !self.holds_objects && !self.is_undecided;
        is_readable.then_some(Elements { data, shape, stride, size: self.dtype.size, ..Elements::default() })
    }
}
