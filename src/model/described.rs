//! The attributes of tensor objects as they are described: plain values, tensors and other objects.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::cpython::Value;

/// An attribute, as far as it can be described.
#[derive(Clone, Debug, PartialEq)]
pub enum Described {
    /// A plain value.
    Plain(Value),
    /// A tensor or an array that is listed under this name; without one if it is not listed.
    Tensor {
        /// Its name.
        name: Option<String>,
        /// `__module__.__qualname__` of its class.
        class: String,
        /// Its own attributes.
        attributes: Vec<(String, Described)>,
    },
    /// Another object.
    Object {
        /// `__module__.__qualname__` of its class.
        class: String,
        /// Its attributes and items.
        attributes: Vec<(String, Described)>,
    },
    /// A list or a tuple with items that are not plain values.
    List(Vec<Described>),
    /// Something that is left out, and why.
    LeftOut(Omission),
}

/// Why a value is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Omission {
    /// It is too long.
    #[serde(rename = "too long")]
    TooLong,
    /// There are too many values in one tensor.
    #[serde(rename = "beyond the limit for one tensor")]
    TooMany,
}

impl Serialize for Described {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(value) => value.serialize(serializer),
            Self::LeftOut(why) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("left_out", why)?;
                map.end()
            }
            Self::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| list.serialize_element(item))?;
                list.end()
            }
            Self::Tensor { name, class, attributes } => {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("class", class)?;
                map.serialize_entry("tensor", name)?;
                if !attributes.is_empty() {
                    map.serialize_entry("attributes", &Named(attributes))?;
                }
                map.end()
            }
            Self::Object { class, attributes } => {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("class", class)?;
                if !attributes.is_empty() {
                    map.serialize_entry("attributes", &Named(attributes))?;
                }
                map.end()
            }
        }
    }
}

/// Names and their values, as a JSON object.
pub struct Named<'a>(pub &'a [(String, Described)]);

impl Serialize for Named<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
