//! The assignment of tensors to files of weights: which file the bytes of each go to, and as what.

use std::collections::{HashMap, HashSet};

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use super::keys;
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::model::{self, Model, NamedTensor, Reading, StandaloneTensor, Status, TensorKind};
use crate::tensor::{Elements, ScalarType};

/// The longest header that the safetensors library reads, minus room for the part that every header has.
const MAX_HEADER: u64 = 100_000_000 - 4096;
/// Bytes of an entry in a header beside its key and sizes, at most: names of fields, type, offsets.
const ENTRY_BYTES: u64 = 128;
/// Bytes of one size in a header, at most.
const SIZE_BYTES: u64 = 21;
const TOO_MANY_ELEMENTS: &str = "it is not written: it has more elements than a safetensors file can count";
const NO_FIRST: &str = "it is not written: it is another name for a tensor that is not written either";
const HEADER_FULL: &str = "it is not written: the header of its file would be longer than safetensors allows";
/// What a tensor of a type that safetensors has not is called where it is written byte by byte.
const BYTES: &str = "bytes";
/// The memory under elements that share their bytes.
const STORAGE: &str = "storage";
/// The type of bytes.
const BYTE: Dtype = Dtype::U8;

/// A file of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    Standalone,
    /// The same with holes.
    PartialStandalone,
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
    pub(super) const OF_STANDALONE: [Self; 2] = [Self::Standalone, Self::PartialStandalone];

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
            Self::Standalone => "tensors.safetensors",
            Self::PartialStandalone => "partial_tensors.safetensors",
        }
    }

    /// Where a tensor of that status and kind belongs; `in_parts` if it is not what `state_dict()` lists.
    fn of(tensor: &NamedTensor, in_parts: bool) -> Option<Self> {
        Some(match (tensor.status, tensor.kind) {
            (Status::Missing | Status::Device, _) => return None,
            (Status::Complete, TensorKind::Gradient) => Self::Gradients,
            (Status::Partial | Status::Freed, TensorKind::Gradient) => Self::PartialGradients,
            (Status::Complete, TensorKind::Optimizer) => Self::Optimizer,
            (Status::Partial | Status::Freed, TensorKind::Optimizer) => Self::PartialOptimizer,
            (Status::Complete, TensorKind::Other | TensorKind::Array) => Self::Standalone,
            (Status::Partial | Status::Freed, TensorKind::Other | TensorKind::Array) => Self::PartialStandalone,
            (Status::Partial | Status::Freed, TensorKind::Parameter | TensorKind::Buffer) => Self::Partial,
            (Status::Complete, _) if in_parts => Self::Parts,
            (Status::Complete, _) if tensor.persistent => Self::Model,
            (Status::Complete, _) => Self::Buffers,
        })
    }
}

/// An entry of a file of weights.
pub(super) struct Entry<'a> {
    pub(super) file: WeightFile,
    /// The tensor's name, or that of one of its parts.
    pub(super) name: String,
    /// Its key in the file: the name, unless that is reserved or another tensor has it.
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// Where its bytes are.
    pub(super) elements: Elements,
    /// What its bytes must be.
    pub(super) tensor: &'a NamedTensor,
    /// Whether it lies in an attribute.
    pub(super) is_inner: bool,
}

/// A tensor, and what is written of it.
pub(super) struct Assignment<'a> {
    pub(super) tensor: &'a NamedTensor,
    /// One entry, several for a tensor in parts, or none.
    pub(super) entries: Vec<Entry<'a>>,
    /// Why nothing is written, where the status does not say it.
    pub(super) unwritten: Option<Diagnostic>,
    /// The file and the key of the tensor that it is another name of, if nothing is written for it.
    pub(super) first: Option<(WeightFile, String)>,
}

impl Entry<'_> {
    /// Whether the format's own check accepts the sizes: their product must not overflow, not even before a zero.
    fn is_countable(&self) -> bool {
        let count = self.shape.iter().try_fold(1u64, |count, size| count.checked_mul(*size));
        let bits = count.and_then(|count| count.checked_mul(self.dtype.bitsize() as u64));
        bits.is_some_and(|bits| bits.is_multiple_of(8) && bits / 8 == self.elements.byte_len())
    }
}

impl Assignment<'_> {
    fn leave_out(&mut self, why: Diagnostic) {
        self.entries.clear();
        self.unwritten = Some(why);
    }

    /// Why it is not complete, or not in the files, where holes do not say it.
    pub(super) fn problem(&self) -> Option<&Diagnostic> {
        self.unwritten.as_ref().or(self.tensor.problem.as_ref())
    }

    /// Whether it is written as something else than a tensor of its name, type and shape.
    pub(super) fn is_in_parts(&self) -> bool {
        self.entries_of_itself().any(|entry| entry.name != self.tensor.name)
    }

    /// The entries but those of tensors in attributes.
    pub(super) fn entries_of_itself(&self) -> impl Iterator<Item = &Entry<'_>> {
        self.entries.iter().filter(|entry| !entry.is_inner)
    }

    /// The file that holds its bytes.
    pub(super) fn file(&self) -> Option<WeightFile> {
        self.entries_of_itself().next().map(|entry| entry.file).or(self.first.as_ref().map(|(file, _)| *file))
    }

    /// How much of it is in the files.
    pub(super) fn status(&self) -> Status {
        if self.unwritten.is_some() { Status::Missing } else { self.tensor.status }
    }
}

/// All tensors of a model, in their order, and what is written of each.
pub(super) fn assign_model(model: &Model) -> Vec<Assignment<'_>> {
    finish(model.all_tensors().map(|tensor| assign(tensor, None, tensor.elements())).collect())
}

/// All tensors and arrays of no model, likewise.
pub(super) fn assign_standalone<'a>(tensors: impl Iterator<Item = &'a StandaloneTensor>) -> Vec<Assignment<'a>> {
    let assignments = tensors.map(|found| {
        let dtype = found.array.as_ref().map(|array| &array.dtype);
        assign(&found.tensor, dtype, found.elements())
    });
    finish(assignments.collect())
}

/// Gives every entry its key, and leaves out entries that do not fit in the headers.
fn finish(mut assignments: Vec<Assignment<'_>>) -> Vec<Assignment<'_>> {
    keys::assign(&mut assignments);
    let mut headers: HashMap<WeightFile, u64> = HashMap::new();
    for tensor in &mut assignments {
        let is_full = tensor.entries.iter().any(|entry| {
            let header = headers.entry(entry.file).or_default();
            let sizes = SIZE_BYTES.saturating_mul(entry.shape.len() as u64);
            *header = header.saturating_add(keys::json_len(&entry.key)).saturating_add(ENTRY_BYTES + sizes);
            *header > MAX_HEADER
        });
        if is_full {
            tensor.leave_out(tensor.tensor.diagnostic(Code::NotWritten, HEADER_FULL));
        }
    }
    refer_to_firsts(&mut assignments);
    assignments
}

/// Names for which nothing is written get the file and key of the tensor that they are another name for.
fn refer_to_firsts(assignments: &mut [Assignment<'_>]) {
    let refers = |assignment: &Assignment<'_>| assignment.tensor.reading == Reading::SameAsFirst;
    let wanted: HashSet<VirtAddr> = assignments.iter().filter(|of| refers(of)).map(|of| of.tensor.object).collect();
    let mut firsts: HashMap<VirtAddr, (WeightFile, String)> = HashMap::new();
    for of in assignments.iter().filter(|of| wanted.contains(&of.tensor.object)) {
        if let Some(entry) = of.entries.first().filter(|_| !of.is_in_parts()) {
            firsts.entry(of.tensor.object).or_insert_with(|| (entry.file, entry.key.clone()));
        }
    }
    for of in assignments.iter_mut().filter(|of| refers(of)) {
        of.first = firsts.get(&of.tensor.object).cloned();
        of.unwritten = of.first.is_none().then(|| of.tensor.diagnostic(Code::NotWritten, NO_FIRST));
    }
}

fn assign<'a>(tensor: &'a NamedTensor, dtype: Option<&ScalarType>, elements: Option<Elements>) -> Assignment<'a> {
    let mut entries = Vec::new();
    let elements = elements.filter(|_| tensor.reading != Reading::SameAsFirst);
    let dtype = dtype.or(tensor.info.as_ref().map(|info| &info.dtype));
    entries.extend(dtype.zip(elements).and_then(|(dtype, elements)| entry(tensor, tensor, dtype, elements)));
    for part in &tensor.parts {
        let dtype = part.info.as_ref().map(|info| &info.dtype);
        entries.extend(dtype.zip(part.elements()).and_then(|(dtype, elements)| entry(part, tensor, dtype, elements)));
    }
    let mut assignment = Assignment { tensor, entries, unwritten: None, first: None };
    if !assignment.entries.iter().all(Entry::is_countable) {
        assignment.leave_out(tensor.diagnostic(Code::NotWritten, TOO_MANY_ELEMENTS));
    }
    if tensor.reading == Reading::LeftOut {
        assignment.leave_out(model::left_out(tensor));
    }
    for inner in &tensor.inner {
        let dtype = inner.array.as_ref().map(|array| &array.dtype);
        let dtype = dtype.or(inner.tensor.info.as_ref().map(|info| &info.dtype));
        let of_inner =
            dtype.zip(inner.elements()).and_then(|(dtype, elements)| entry(&inner.tensor, tensor, dtype, elements));
        let of_inner = of_inner.filter(Entry::is_countable);
        assignment.entries.extend(of_inner.map(|entry| Entry { is_inner: true, ..entry }));
    }
    assignment
}

/// What is written of a tensor, which is a part of `whole` or that itself.
fn entry<'a>(
    tensor: &'a NamedTensor,
    whole: &NamedTensor,
    scalar: &ScalarType,
    elements: Elements,
) -> Option<Entry<'a>> {
    let stored_name = match tensor.reading {
        Reading::Storage(_) => format!("{}.{STORAGE}", tensor.name),
        _ => tensor.name.clone(),
    };
    let mut shape = elements.shape.clone();
    let (name, dtype) = match dtype(scalar) {
        Some(dtype) => (stored_name, dtype),
        None => {
            let raw = scalar.raw.as_ref().and_then(|raw| Some((raw.name.as_str(), dtype_named(&raw.safetensors)?)));
            let is_whole = |(_, dtype): &(&str, Dtype)| scalar.size.is_multiple_of((dtype.bitsize() as u64 / 8).max(1));
            let (name, dtype) = raw.filter(is_whole).unwrap_or((BYTES, BYTE));
            let per_element = scalar.size / (dtype.bitsize() as u64 / 8).max(1);
            if per_element != 1 {
                shape.push(per_element);
            }
            (format!("{stored_name}.{name}"), dtype)
        }
    };
    let file = WeightFile::of(tensor, name != whole.name)?;
    Some(Entry { file, key: name.clone(), name, dtype, shape, elements, tensor, is_inner: false })
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
