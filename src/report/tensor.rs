//! A tensor as the documents describe it, the same in every format.

use serde::Serialize;

use super::assignment::{Assignment, Entry, WeightFile, assign_model};
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::model::{Elsewhere, Inner, Model, Named, NamedTensor, Reading, Status, TensorKind};
use crate::tensor::{ArrayInfo, Form, Hole, Holes, MissingPages, Quantizer, Source, Stored};

/// A tensor.
#[derive(Serialize)]
pub(super) struct TensorRow<'a> {
    pub(super) name: &'a str,
    pub(super) dtype: Option<&'a str>,
    pub(super) shape: Option<&'a [u64]>,
    pub(super) stride: Option<&'a [u64]>,
    pub(super) storage_offset: Option<u64>,
    pub(super) data: Option<VirtAddr>,
    pub(super) kind: TensorKind,
    pub(super) requires_grad: Option<bool>,
    pub(super) persistent: bool,
    pub(super) status: Status,
    /// Whether its memory was free when the dump was taken, in a process that goes on: other bytes may have been written there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    freed: bool,
    /// Whether only an inferred layout reads it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    inferred: bool,
    pub(super) device: Option<&'a str>,
    pub(super) holes: &'a [Hole],
    #[serde(skip_serializing_if = "Option::is_none")]
    all_holes: Option<HolesRow<'a>>,
    /// What is not from the dump.
    #[serde(skip_serializing_if = "<[Source]>::is_empty")]
    pub(super) sources: &'a [Source],
    pub(super) sha256: Option<&'a str>,
    pub(super) same_as: Option<&'a str>,
    /// The file that holds its bytes.
    pub(super) file: Option<&'static str>,
    /// Its key in that file, where it is not the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file_name: Option<String>,
    pub(super) problem: Option<String>,
    /// The code of the problem, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem_code: Option<Code>,
    pub(super) object: VirtAddr,
    pub(super) class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    form: Option<FormRow>,
    /// The dispatch keys that an ordinary tensor does not have.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    keys: &'a [String],
    /// What the file has in its place, where safetensors has not its type or form.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartRow<'a>>,
    /// The attributes of its Python object.
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<Named<'a>>,
    /// Tensors with other names that have its elements, if it has none.
    #[serde(skip_serializing_if = "<[Elsewhere]>::is_empty")]
    elsewhere: &'a [Elsewhere],
}

/// All holes of a tensor that has more than are listed.
#[derive(Serialize)]
struct HolesRow<'a> {
    /// The listed ones included.
    count: u64,
    bytes: u64,
    /// Pages with bytes of those that are not listed.
    pages: &'a [MissingPages],
}

impl<'a> HolesRow<'a> {
    fn new(holes: &'a Holes) -> Option<Self> {
        let row = Self { count: holes.count, bytes: holes.bytes, pages: &holes.pages };
        (holes.count > holes.len() as u64).then_some(row)
    }
}

/// The form of a tensor whose elements share their bytes, where its storage is written.
const OVERLAPPING: &str = "overlapping";

/// What is written in place of elements that share their bytes.
pub(super) fn stored(tensor: &NamedTensor) -> Option<&Stored> {
    match &tensor.reading {
        Reading::Storage(stored) => Some(stored),
        Reading::Elements | Reading::SameAsFirst | Reading::LeftOut => None,
    }
}

/// What a tensor is that is not just elements at strides.
#[derive(Serialize)]
struct FormRow {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zero_point: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    axis: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stride: Option<Vec<i64>>,
}

/// An entry of a file that is a part of a tensor.
#[derive(Serialize)]
struct PartRow<'a> {
    name: String,
    dtype: Option<String>,
    shape: Option<Vec<u64>>,
    status: Status,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<Source>,
    sha256: Option<String>,
    file: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_name: Option<String>,
    /// The way to one that lies in an attribute.
    #[serde(skip_serializing_if = "Option::is_none")]
    attribute: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<VirtAddr>,
    #[serde(skip_serializing_if = "<[Hole]>::is_empty")]
    holes: &'a [Hole],
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem_code: Option<Code>,
}

impl FormRow {
    fn new(tensor: &NamedTensor) -> Option<Self> {
        let row = |name| Self { name, scale: None, zero_point: None, axis: None, offset: None, stride: None };
        if let Some(Stored { offset, stride, .. }) = stored(tensor) {
            return Some(Self { offset: Some(*offset), stride: Some(stride.clone()), ..row(OVERLAPPING) });
        }
        let form = &tensor.info.as_ref()?.form;
        let row = row(form.name());
        match *form {
            Form::Strided => None,
            Form::Quantized(Quantizer::PerTensor { scale, zero_point }) => {
                Some(Self { scale: Some(scale), zero_point: Some(zero_point), ..row })
            }
            Form::Quantized(Quantizer::PerChannel { axis, .. }) => Some(Self { axis: Some(axis), ..row }),
            Form::Quantized(Quantizer::Unknown) | Form::Sparse(_) | Form::Nested(_) | Form::Short | Form::Opaque => {
                Some(row)
            }
        }
    }
}

impl<'a> PartRow<'a> {
    fn all(assignment: &Assignment<'a>) -> Vec<Self> {
        let part = |entry: &Entry<'_>| Self {
            name: entry.name.clone(),
            dtype: Some(entry.dtype.to_string()),
            shape: Some(entry.shape.clone()),
            status: entry.tensor.status,
            sources: entry.tensor.sources.clone(),
            sha256: whole_hash(entry.tensor).map(str::to_owned),
            file: Some(entry.file.name()),
            file_name: file_name(entry),
            attribute: None,
            object: None,
            holes: &[],
            problem: None,
            problem_code: None,
        };
        let of_itself = assignment.entries_of_itself().filter(|_| assignment.is_in_parts()).map(part);
        let inner = assignment.tensor.inner.iter().map(|inner| {
            let entry = assignment.entries.iter().find(|entry| std::ptr::eq(entry.tensor, &inner.tensor));
            let row = entry.map_or_else(|| Self::without_entry(inner), part);
            let Inner { path, tensor, .. } = inner;
            let (problem, problem_code) = in_words(tensor.problem.as_ref());
            let (attribute, object) = (Some(path.as_str()), Some(tensor.object));
            Self { attribute, object, holes: &tensor.holes, problem, problem_code, ..row }
        });
        of_itself.chain(inner).collect()
    }

    /// One that is in no file.
    fn without_entry(inner: &Inner) -> Self {
        let Inner { tensor, array, .. } = inner;
        let dtype = array.as_ref().map(|array| &array.dtype).or(tensor.info.as_ref().map(|info| &info.dtype));
        Self {
            name: tensor.name.clone(),
            dtype: dtype.map(|dtype| dtype.label().to_owned()),
            shape: inner.shape().map(<[u64]>::to_vec),
            status: tensor.status,
            sources: tensor.sources.clone(),
            sha256: None,
            file: None,
            file_name: None,
            attribute: None,
            object: None,
            holes: &[],
            problem: None,
            problem_code: None,
        }
    }
}

/// A problem in words, and its code.
fn in_words(problem: Option<&Diagnostic>) -> (Option<String>, Option<Code>) {
    problem.map(|problem| (problem.to_string(), problem.code)).unzip()
}

/// The key of an entry, where it is not its name.
fn file_name(entry: &Entry<'_>) -> Option<String> {
    (entry.key != entry.name).then(|| entry.key.clone())
}

/// The hash of a tensor; that of bytes with made-up zeros among them would pass for one.
fn whole_hash(tensor: &NamedTensor) -> Option<&str> {
    tensor.sha256.as_deref().filter(|_| matches!(tensor.status, Status::Complete | Status::Freed))
}

impl<'a> TensorRow<'a> {
    pub(super) fn new(assignment: &Assignment<'a>) -> Self {
        let tensor = assignment.tensor;
        let info = tensor.info.as_ref();
        let (problem, problem_code) = in_words(assignment.problem());
        // The tensors in a nested one have shapes, it has none.
        let shaped = info.filter(|info| !matches!(info.form, Form::Nested(_)));
        Self {
            name: &tensor.name,
            dtype: info.map(|info| info.dtype.label()),
            shape: shaped.map(|info| info.shape.as_slice()),
            stride: shaped.map(|info| info.stride.as_slice()),
            storage_offset: info.map(|info| info.storage_offset),
            data: info.map(|info| info.data).filter(|data| data.0 != 0),
            kind: tensor.kind,
            requires_grad: info.map(|info| info.requires_grad),
            persistent: tensor.persistent,
            status: assignment.status(),
            freed: info.is_some_and(|info| info.freed.is_some()),
            inferred: tensor.inferred,
            device: info.map(|info| info.device.as_str()),
            holes: &tensor.holes,
            all_holes: HolesRow::new(&tensor.holes),
            sources: &tensor.sources,
            sha256: whole_hash(tensor).filter(|_| assignment.unwritten.is_none() && stored(tensor).is_none()),
            same_as: tensor.same_as.as_deref(),
            file: assignment.file().map(WeightFile::name),
            file_name: match &assignment.first {
                Some((_, key)) => Some(key.clone()).filter(|key| *key != tensor.name),
                None => assignment.entries.first().filter(|_| !assignment.is_in_parts()).and_then(file_name),
            },
            problem,
            problem_code,
            object: tensor.object,
            class: tensor.class.as_deref(),
            form: FormRow::new(tensor),
            keys: info.map_or(&[], |info| info.dispatch_keys.as_slice()),
            parts: PartRow::all(assignment),
            attributes: Some(Named(&tensor.attributes)).filter(|named| !named.0.is_empty()),
            elsewhere: &tensor.elsewhere,
        }
    }

    /// The same with what an array's own headers say; its strides are not in elements.
    pub(super) fn of_array(self, array: &'a ArrayInfo) -> Self {
        let data = Some(array.data).filter(|data| data.0 != 0);
        Self { dtype: Some(array.dtype.label()), shape: Some(&array.shape), data, ..self }
    }

    /// Those of the modules, and those that training left.
    pub(super) fn all(model: &'a Model) -> (Vec<Self>, Vec<Self>) {
        let mut tensors: Vec<Self> = assign_model(model).iter().map(Self::new).collect();
        let training = tensors.split_off(model.tensors.len());
        (tensors, training)
    }
}
