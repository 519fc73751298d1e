//! Which file a tensor's bytes go to, and as what.

use std::collections::HashSet;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use crate::model::{Model, NamedTensor, Other, Status, TensorKind};
use crate::tensor::{Elements, ScalarType};

/// The name that a safetensors file keeps for itself.
const RESERVED: &str = "__metadata__";
/// What a tensor of a type that safetensors has not is called where it is written byte by byte.
const BYTES: &str = "bytes";
/// The type of bytes.
const BYTE: Dtype = Dtype::U8;

/// A file of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightFile {
    /// What `state_dict()` lists, as far as every byte is there.
    Model,
    /// Tensors with holes, which are zeros there.
    Partial,
    /// Buffers that `state_dict()` leaves out.
    Buffers,
    /// Parts of tensors that safetensors has no form for.
    Parts,
    /// Gradients under their parameters' names.
    Gradients,
    /// Gradients with holes.
    PartialGradients,
    /// What optimizers keep, as `<parameter>.<key>`.
    Optimizer,
    /// The same with holes.
    PartialOptimizer,
    /// Tensors and arrays of no model.
    Others,
    /// The same with holes.
    PartialOthers,
}

impl WeightFile {
    /// Those in the folder of a model.
    pub(super) const OF_MODEL: [Self; 8] = [
        Self::Model,
        Self::Partial,
        Self::Buffers,
        Self::Parts,
        Self::Gradients,
        Self::PartialGradients,
        Self::Optimizer,
        Self::PartialOptimizer,
    ];
    /// Those beside the models.
    pub(super) const OF_OTHERS: [Self; 2] = [Self::Others, Self::PartialOthers];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Model => "model.safetensors",
            Self::Partial => "partial.safetensors",
            Self::Buffers => "buffers.safetensors",
            Self::Parts => "parts.safetensors",
            Self::Gradients => "grads.safetensors",
            Self::PartialGradients => "partial_grads.safetensors",
            Self::Optimizer => "optimizer.safetensors",
            Self::PartialOptimizer => "partial_optimizer.safetensors",
            Self::Others => "tensors.safetensors",
            Self::PartialOthers => "partial_tensors.safetensors",
        }
    }

    /// Where a tensor of that status and kind belongs; `in_parts` if it is not what `state_dict()` lists.
    fn of(tensor: &NamedTensor, in_parts: bool) -> Option<Self> {
        Some(match (tensor.status, tensor.kind) {
            (Status::Missing | Status::Device, _) => return None,
            (Status::Complete, TensorKind::Gradient) => Self::Gradients,
            (Status::Partial, TensorKind::Gradient) => Self::PartialGradients,
            (Status::Complete, TensorKind::Optimizer) => Self::Optimizer,
            (Status::Partial, TensorKind::Optimizer) => Self::PartialOptimizer,
            (Status::Complete, TensorKind::Other | TensorKind::Array) => Self::Others,
            (Status::Partial, TensorKind::Other | TensorKind::Array) => Self::PartialOthers,
            (Status::Partial, TensorKind::Parameter | TensorKind::Buffer) => Self::Partial,
            (Status::Complete, _) if in_parts => Self::Parts,
            (Status::Complete, _) if tensor.persistent => Self::Model,
            (Status::Complete, _) => Self::Buffers,
        })
    }
}

/// An entry of a file of weights.
pub(super) struct Entry<'a> {
    pub(super) file: WeightFile,
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Where its bytes are.
    pub(super) elements: Elements,
    /// What its bytes must be.
    pub(super) tensor: &'a NamedTensor,
}

/// A tensor, and what is written of it.
pub(super) struct Planned<'a> {
    pub(super) tensor: &'a NamedTensor,
    /// One entry, several for a tensor in parts, or none.
    pub(super) entries: Vec<Entry<'a>>,
    /// Why nothing is written, where the status does not say it.
    pub(super) unwritten: Option<&'static str>,
}

impl Planned<'_> {
    /// Whether it is written as something else than a tensor of its name, type and shape.
    pub(super) fn is_in_parts(&self) -> bool {
        self.entries.iter().any(|entry| entry.name != self.tensor.name)
    }

    /// The file that holds its bytes.
    pub(super) fn file(&self) -> Option<WeightFile> {
        self.entries.first().map(|entry| entry.file)
    }
}

/// All tensors of a model, in their order, and what is written of each.
pub(super) fn plan(model: &Model) -> Vec<Planned<'_>> {
    let mut names = HashSet::new();
    model.all_tensors().map(|tensor| planned(tensor, None, tensor.elements(), &mut names)).collect()
}

/// All tensors and arrays of no model, likewise.
pub(super) fn plan_others<'a>(others: impl Iterator<Item = &'a Other>) -> Vec<Planned<'a>> {
    let mut names = HashSet::new();
    let planned = others.map(|other| {
        let dtype = other.array.as_ref().map(|array| &array.dtype);
        planned(&other.tensor, dtype, other.elements(), &mut names)
    });
    planned.collect()
}

fn planned<'a>(
    tensor: &'a NamedTensor,
    dtype: Option<&ScalarType>,
    elements: Option<Elements>,
    names: &mut HashSet<(TensorKind, String)>,
) -> Planned<'a> {
    let mut entries = Vec::new();
    let dtype = dtype.or(tensor.info.as_ref().map(|info| &info.dtype));
    let own = dtype.zip(elements).and_then(|(dtype, elements)| entry(tensor, tensor, dtype, elements));
    entries.extend(own);
    for part in &tensor.parts {
        let dtype = part.info.as_ref().map(|info| &info.dtype);
        let own = dtype.zip(part.elements()).and_then(|(dtype, elements)| entry(part, tensor, dtype, elements));
        entries.extend(own);
    }
    // Parameters and buffers share their names, whatever file they go to.
    let kind = if tensor.kind == TensorKind::Buffer { TensorKind::Parameter } else { tensor.kind };
    let mut is_taken = !names.insert((kind, tensor.name.clone()));
    for entry in entries.iter().filter(|entry| entry.name != tensor.name) {
        is_taken |= !names.insert((kind, entry.name.clone()));
    }
    let unwritten = if entries.is_empty() {
        None
    } else if is_taken {
        Some("another tensor of the model has the same name: not written")
    } else if tensor.name == RESERVED {
        Some("safetensors keeps this name for itself: not written")
    } else {
        None
    };
    if unwritten.is_some() {
        entries.clear();
    }
    Planned { tensor, entries, unwritten }
}

/// What is written of a tensor, which is a part of `whole` or that itself.
fn entry<'a>(
    tensor: &'a NamedTensor,
    whole: &NamedTensor,
    scalar: &ScalarType,
    elements: Elements,
) -> Option<Entry<'a>> {
    let is_part = tensor.name != whole.name;
    let mut shape = elements.shape.clone();
    let (name, dtype) = match dtype(scalar) {
        Some(dtype) => (tensor.name.clone(), dtype),
        None => {
            let raw = scalar.raw.as_ref().and_then(|raw| Some((raw.name.as_str(), dtype_named(&raw.safetensors)?)));
            let is_whole = |(_, dtype): &(&str, Dtype)| scalar.size.is_multiple_of((dtype.bitsize() as u64 / 8).max(1));
            let (name, dtype) = raw.filter(is_whole).unwrap_or((BYTES, BYTE));
            let per_element = scalar.size / (dtype.bitsize() as u64 / 8).max(1);
            if per_element != 1 {
                shape.push(per_element);
            }
            (format!("{}.{name}", tensor.name), dtype)
        }
    };
    let file = WeightFile::of(tensor, is_part || name != tensor.name)?;
    Some(Entry { file, name, dtype, shape, elements, tensor })
}

/// The type in safetensors' own terms, if it has the type and the size agrees.
fn dtype(scalar: &ScalarType) -> Option<Dtype> {
    let dtype = dtype_named(scalar.safetensors.as_deref()?)?;
    (dtype.bitsize() as u64 == scalar.size.saturating_mul(8)).then_some(dtype)
}

fn dtype_named(name: &str) -> Option<Dtype> {
    let name: StrDeserializer<'_, Error> = name.into_deserializer();
    Dtype::deserialize(name).ok()
}
