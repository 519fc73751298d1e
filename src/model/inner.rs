//! Tensors whose elements are not in their own storage: a wrapper (`DTensor`, torchao, bitsandbytes) has a shape, and its
//! elements are in tensors in its attributes, or in attributes of those. A placeholder is empty, and an attribute holds its elements.

use serde::Serialize;

use super::{NamedTensor, Reading, Status};
use crate::diagnostic::Code;
use crate::tensor::{ArrayInfo, Elements, Form, Holes, TensorInfo};

/// The device that has no memory.
pub(super) const META: &str = "meta";
/// Maximum number of tensors that a sentence names.
const MAX_SHOWN: usize = 3;

/// A tensor or an array inside a tensor.
#[derive(Clone, Debug)]
pub struct Inner {
    /// The path to it: `_local_tensor`, `quant_state.absmax`.
    pub path: String,
    /// Its bytes, and for a tensor its headers; its name is that of the tensor that it is inside, and the path.
    pub tensor: NamedTensor,
    /// The headers of an array.
    pub array: Option<ArrayInfo>,
}

/// A tensor that is listed under a name of its own and has the elements of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// Its name in `tensors.json`, or in a model.
    pub name: String,
    /// The path to it, from the tensor itself or from a module.
    pub path: String,
    /// Elements along each dimension.
    pub shape: Vec<u64>,
}

/// Why the elements of a tensor are not in its own storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    /// It has a shape but a null data pointer.
    Wrapper,
    /// It has no elements; another object has them.
    Placeholder,
}

impl Inner {
    /// Where its elements lie.
    pub(crate) fn elements(&self) -> Option<Elements> {
        match (&self.array, &self.tensor.reading) {
            (Some(array), Reading::Elements) => array.elements(),
            _ => self.tensor.elements(),
        }
    }

    /// Elements along each dimension, as far as they are known.
    pub(crate) fn shape(&self) -> Option<&[u64]> {
        let of_tensor = self.tensor.info.as_ref().map(|info| info.shape.as_slice());
        self.array.as_ref().map(|array| array.shape.as_slice()).or(of_tensor)
    }
}

impl NamedTensor {
    fn shell(&self) -> Option<Shell> {
        let info = self.info.as_ref()?;
        if is_wrapper(info) {
            return Some(Shell::Wrapper);
        }
        let has_elements = |shape: &[u64]| !shape.contains(&0);
        let is_elsewhere = self.inner.iter().filter_map(Inner::shape).any(has_elements)
            || self.elsewhere.iter().any(|other| has_elements(&other.shape));
        // Freed ones, and nested ones whose values are in attributes.
        if is_elsewhere && matches!(info.form, Form::Short | Form::Nested(None)) {
            return Some(Shell::Wrapper);
        }
        (info.numel() == 0 && is_elsewhere).then_some(Shell::Placeholder)
    }

    /// Whether its elements, if there are any, are not in its own storage.
    pub(crate) fn is_shell(&self) -> bool {
        self.shell().is_some()
    }

    /// For a tensor without elements of its own, says where they are and how many of them are there. Such a tensor is
    /// never complete, because only the class's code says how it uses its tensors.
    pub(crate) fn judge_shell(&mut self) {
        let shell = self.shell();
        let is_moved = self.info.as_ref().is_some_and(|info| info.device == META) && !self.elsewhere.is_empty();
        if shell.is_none() && !is_moved {
            return;
        }
        let mut parts: Vec<String> = self
            .inner
            .iter()
            .filter(|inner| inner.tensor.info.is_some() || inner.array.is_some())
            .map(in_words)
            .collect();
        let listed = |other: &Elsewhere| format!("{} {:?} (listed as {})", other.path, other.shape, other.name);
        parts.extend(self.elsewhere.iter().map(listed));
        let count = parts.len();
        let mut parts = parts.into_iter().take(MAX_SHOWN).collect::<Vec<_>>().join(", ");
        if count > MAX_SHOWN {
            parts.push_str(&format!(" and {} more", count - MAX_SHOWN));
        }
        let class = self.class.as_deref().unwrap_or("it");
        if count == 0 {
            let message = format!(
                "its data pointer is null, and none of its attributes holds a tensor: it is unknown where {class} \
                 keeps its elements"
            );
            if self.problem.is_none() {
                self.problem = Some(self.diagnostic(Code::UnknownElements, message));
            }
            return;
        }
        let message = match shell {
            Some(Shell::Wrapper) => format!("{class} keeps its elements in {parts}"),
            Some(Shell::Placeholder) => format!("it is a placeholder without elements; they are in {parts}"),
            None => format!("it is on the meta device, so it has a shape but no data; the weights are in {parts}"),
        };
        let has_bytes = |inner: &Inner| inner.tensor.status.has_bytes();
        let is_device = |inner: &Inner| inner.tensor.status == Status::Device;
        match shell {
            None => {}
            Some(_) if self.inner.iter().any(has_bytes) => self.status = Status::Partial,
            Some(_) if self.inner.iter().any(is_device) => self.status = Status::Device,
            Some(_) => self.status = Status::Missing,
        }
        self.problem = Some(self.diagnostic(Code::ElementsElsewhere, message));
        self.holes = Holes::default();
        self.sha256 = None;
    }
}

/// Whether a tensor has a shape but no elements, because its storage has no address.
pub(crate) fn is_wrapper(info: &TensorInfo) -> bool {
    let is_dense = matches!(info.form, Form::Strided | Form::Quantized(_));
    is_dense && info.data.0 == 0 && info.numel() > 0 && info.device != META
}

/// Where a part is, in words.
fn in_words(inner: &Inner) -> String {
    let shape = inner.shape().unwrap_or_default();
    match inner.tensor.status {
        Status::Complete | Status::Freed | Status::Partial => {
            format!("{} {shape:?} (written as {})", inner.path, inner.tensor.name)
        }
        Status::Missing => format!("{} {shape:?} (missing)", inner.path),
        Status::Device => format!("{} {shape:?} (on a device)", inner.path),
    }
}
