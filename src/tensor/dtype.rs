//! The types of elements.

use serde::Deserialize;

/// The type of the elements of a tensor or an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalarType {
    /// The name that its framework gives it.
    pub name: String,
    /// Bytes of one element.
    pub size: u64,
    /// The name in safetensors files, if the format has the type.
    pub safetensors: Option<String>,
    /// What an element consists of, where the format has not the type but that.
    pub raw: Option<Raw>,
}

/// What elements of a type consist of, in terms of safetensors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// The method of the framework that gives it: `view_as_real`, `int_repr`.
    pub name: String,
    /// Type in safetensors files; a tensor of more than one per element has them as a last dimension.
    pub safetensors: String,
}

impl ScalarType {
    /// The name in safetensors files, or the framework's where there is none.
    pub fn label(&self) -> &str {
        self.safetensors.as_deref().unwrap_or(&self.name)
    }
}
