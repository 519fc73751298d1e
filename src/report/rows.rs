//! Rows of the documents: one per tensor, model and process, the same in every format.

use std::borrow::Cow;

use serde::Serialize;

use super::plan::{Planned, plan_model};
use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::{Change, LayoutScore, LayoutSource};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::{FilledFile, MemoryRange, PhysicalMemory};
use crate::framework::torch::{self, TensorScore};
use crate::model::{Elsewhere, Inner, Model, Named, NamedTensor, Reading, Sighting, Status, TensorKind};
use crate::recover::Process;
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
fn stored(tensor: &NamedTensor) -> Option<&Stored> {
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
    fn all(planned: &Planned<'a>) -> Vec<Self> {
        let part = |entry: &super::plan::Entry<'_>| Self {
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
        let own = planned.own_entries().filter(|_| planned.is_in_parts()).map(part);
        let inner = planned.tensor.inner.iter().map(|inner| {
            let entry = planned.entries.iter().find(|entry| std::ptr::eq(entry.tensor, &inner.tensor));
            let row = entry.map_or_else(|| Self::without_entry(inner), part);
            let Inner { path, tensor, .. } = inner;
            let (problem, problem_code) = in_words(tensor.problem.as_ref());
            let (attribute, object) = (Some(path.as_str()), Some(tensor.object));
            Self { attribute, object, holes: &tensor.holes, problem, problem_code, ..row }
        });
        own.chain(inner).collect()
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

/// Problems as a list of sentences, and their codes in the same order.
#[derive(Serialize)]
pub(super) struct ProblemRows {
    problems: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problem_codes: Vec<Code>,
}

impl ProblemRows {
    pub(super) fn new(problems: &[Diagnostic]) -> Self {
        let (problems, problem_codes) = problems.iter().map(|problem| (problem.to_string(), problem.code)).unzip();
        Self { problems, problem_codes }
    }
}

/// The key of an entry, where it is not its name.
fn file_name(entry: &super::plan::Entry<'_>) -> Option<String> {
    (entry.key != entry.name).then(|| entry.key.clone())
}

/// The hash of a tensor; that of bytes with made-up zeros among them would pass for one.
fn whole_hash(tensor: &NamedTensor) -> Option<&str> {
    tensor.sha256.as_deref().filter(|_| tensor.status == Status::Complete)
}

impl<'a> TensorRow<'a> {
    pub(super) fn new(planned: &Planned<'a>) -> Self {
        let tensor = planned.tensor;
        let info = tensor.info.as_ref();
        let (problem, problem_code) = in_words(planned.problem());
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
            status: planned.status(),
            inferred: tensor.inferred,
            device: info.map(|info| info.device.as_str()),
            holes: &tensor.holes,
            all_holes: HolesRow::new(&tensor.holes),
            sources: &tensor.sources,
            sha256: whole_hash(tensor).filter(|_| planned.unwritten.is_none() && stored(tensor).is_none()),
            same_as: tensor.same_as.as_deref(),
            file: planned.file().map(super::plan::WeightFile::name),
            file_name: match &planned.first {
                Some((_, key)) => Some(key.clone()).filter(|key| *key != tensor.name),
                None => planned.entries.first().filter(|_| !planned.is_in_parts()).and_then(file_name),
            },
            problem,
            problem_code,
            object: tensor.object,
            class: tensor.class.as_deref(),
            form: FormRow::new(tensor),
            keys: info.map_or(&[], |info| info.dispatch_keys.as_slice()),
            parts: PartRow::all(planned),
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
        let mut rows: Vec<Self> = plan_model(model).iter().map(Self::new).collect();
        let training = rows.split_off(model.tensors.len());
        (rows, training)
    }
}

/// Figures of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Totals {
    /// Tensors whose every byte is there, and all tensors.
    pub(super) complete: usize,
    pub(super) tensors: usize,
    /// Tensors that only an inferred layout reads.
    pub(super) inferred: usize,
    /// Elements of all parameters, shared ones counted once.
    pub(super) parameters: u64,
    /// Bytes of all tensors, shared ones counted once.
    pub(super) bytes: u64,
    /// Gradients, and tensors of optimizers.
    pub(super) gradients: usize,
    pub(super) optimizer_tensors: usize,
}

impl Totals {
    pub(super) fn new(model: &Model) -> Self {
        let of = |kind| model.training.iter().filter(|tensor| tensor.kind == kind).count();
        let mut totals = Self {
            tensors: model.tensors.len(),
            gradients: of(TensorKind::Gradient),
            optimizer_tensors: of(TensorKind::Optimizer),
            ..Self::default()
        };
        for planned in plan_model(model).iter().take(model.tensors.len()) {
            let tensor = planned.tensor;
            totals.complete += usize::from(planned.status() == Status::Complete);
            totals.inferred += usize::from(tensor.inferred);
            if let (Some(info), None) = (&tensor.info, &tensor.same_as) {
                let bytes = stored(tensor).map_or(info.byte_len(), |stored| stored.elements.byte_len());
                totals.bytes = totals.bytes.saturating_add(bytes);
                if tensor.kind == TensorKind::Parameter {
                    totals.parameters = totals.parameters.saturating_add(info.numel());
                }
            }
        }
        totals
    }
}

/// Whether every tensor of the model and all of its tree could be read.
pub(super) fn is_whole(model: &Model) -> bool {
    model.problems.is_empty()
        && model.optimizers.iter().all(|optimizer| optimizer.problems.is_empty())
        && plan_model(model).iter().all(|planned| {
            let mut inner = planned.tensor.inner.iter();
            planned.status() == Status::Complete && inner.all(|inner| inner.tensor.status == Status::Complete)
        })
}

/// A model.
#[derive(Serialize)]
pub(super) struct ModelRow<'a> {
    id: &'a str,
    class: &'a str,
    object: VirtAddr,
    dir: String,
    sightings: &'a [Sighting],
    totals: Totals,
    #[serde(flatten)]
    problems: ProblemRows,
    tensors: Vec<TensorRow<'a>>,
    training: Vec<TensorRow<'a>>,
}

impl<'a> ModelRow<'a> {
    pub(super) fn new(model: &'a Model) -> Self {
        let (tensors, training) = TensorRow::all(model);
        Self {
            id: &model.id,
            class: &model.class,
            object: model.object,
            dir: super::model_dir(model),
            sightings: &model.sightings,
            totals: Totals::new(model),
            problems: ProblemRows::new(&model.problems),
            tensors,
            training,
        }
    }
}

/// The most ranges of memory that a document lists.
const MAX_RANGES: usize = 1 << 16;

/// Ranges of memory that a document does not list.
#[derive(Serialize)]
pub(super) struct RangesLeftOut {
    count: usize,
    bytes: u64,
}

/// The ranges that come from the dump itself, as a document lists them: what a hostile container has in excess is counted.
pub(super) fn ranges(memory: &PhysicalMemory) -> (Vec<&MemoryRange>, Option<RangesLeftOut>) {
    let mut own = memory.own_ranges();
    let listed = own.by_ref().take(MAX_RANGES).collect();
    let empty = RangesLeftOut { count: 0, bytes: 0 };
    let add = |sum: RangesLeftOut, range: &MemoryRange| RangesLeftOut {
        count: sum.count + 1,
        bytes: sum.bytes.saturating_add(range.len()),
    };
    let left_out = own.fold(empty, add);
    (listed, Some(left_out).filter(|left_out| left_out.count > 0))
}

/// A file that was given for one that a process had mapped.
#[derive(Serialize)]
pub(super) struct FileRow<'a> {
    /// The mapped file, as the kernel named it.
    path: Cow<'a, str>,
    /// The file that was passed for it; its path says nothing about the dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<Cow<'a, str>>,
    size: u64,
    sha256: &'a str,
    /// Bytes of memory that come from it, and bytes of it that the image also holds.
    filled: u64,
    agreed: u64,
}

impl<'a> FileRow<'a> {
    /// All of them; `local` also tells where they lay.
    pub(super) fn all(memory: &'a PhysicalMemory, local: bool) -> Vec<Self> {
        let row = |file: &'a FilledFile| Self {
            path: file.recorded.to_string_lossy(),
            given: local.then(|| file.local.to_string_lossy()),
            size: file.size,
            sha256: &file.sha256,
            filled: file.filled,
            agreed: file.agreed,
        };
        memory.files().iter().map(row).collect()
    }
}

/// A Python process.
#[derive(Serialize)]
pub(super) struct ProcessRow<'a> {
    root: Option<PhysAddr>,
    levels: Option<u8>,
    // From the image of a process. Of a machine the operating system would tell, which is not read: null, never guessed.
    pid: Option<u32>,
    comm: Option<&'a str>,
    python: PythonRow<'a>,
    torch: Option<TorchRow<'a>>,
    modules: usize,
    models: Vec<ModelRow<'a>>,
    shared_models: &'a [String],
    /// Tensors and arrays that belong to no model, which `tensors.json` lists.
    other_tensors: usize,
    arrays: usize,
}

#[derive(Serialize)]
struct PythonRow<'a> {
    version: Option<&'a str>,
    type_object: VirtAddr,
    type_object_physical: Option<PhysAddr>,
    types: usize,
    layout: PythonLayout<'a>,
}

#[derive(Serialize)]
struct PythonLayout<'a> {
    version: &'a str,
    readable: usize,
    sampled: usize,
    size_matches: bool,
    source: LayoutSource,
    changes: &'a [Change],
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_up: Option<Option<Box<PythonLayout<'a>>>>,
}

#[derive(Serialize)]
struct TorchRow<'a> {
    version: Option<&'a str>,
    layout: Option<TorchLayout<'a>>,
    /// The first release whose dispatch keys its tensors have; without one, their meaning is unknown.
    dispatch_keys: Option<&'a str>,
}

#[derive(Serialize)]
struct TorchLayout<'a> {
    version: &'a str,
    readable: usize,
    filled: usize,
    same_abi: usize,
    learned: usize,
    contradicted: usize,
    tried: usize,
    others: usize,
    is_of_version: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    rivals: &'a [String],
    inferred: bool,
    changes: &'a [Change],
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_up: Option<Option<Box<TorchLayout<'a>>>>,
}

impl<'a> PythonLayout<'a> {
    fn new(score: &'a LayoutScore) -> Self {
        let LayoutScore { readable, sampled, size_matches, source, ref version, ref changes } = *score;
        Self { version, readable, sampled, size_matches, source, changes, runner_up: None }
    }
}

impl<'a> TorchRow<'a> {
    fn new(facts: &'a torch::Facts) -> Self {
        let layout = facts.layout.as_ref().map(|(best, next)| {
            let runner_up = next.as_ref().map(TorchLayout::new).map(Box::new);
            TorchLayout { runner_up: Some(runner_up), ..TorchLayout::new(best) }
        });
        Self { version: facts.version.as_deref(), layout, dispatch_keys: facts.dispatch_keys.as_deref() }
    }
}

impl<'a> TorchLayout<'a> {
    fn new(score: &'a TensorScore) -> Self {
        let TensorScore { readable, same_abi, contradicted, tried, inferred, .. } = *score;
        Self {
            version: &score.version,
            readable,
            filled: score.exact_storages,
            same_abi,
            learned: score.requiring_grad,
            contradicted,
            tried,
            others: score.standalone,
            is_of_version: score.is_of_version,
            rivals: &score.rivals,
            inferred,
            changes: &score.changes,
            runner_up: None,
        }
    }
}

impl<'a> ProcessRow<'a> {
    pub(super) fn new(process: &'a Process) -> Self {
        let (best, next) = &process.python_layout;
        let runner_up = next.as_ref().map(PythonLayout::new).map(Box::new);
        let python_layout = PythonLayout { runner_up: Some(runner_up), ..PythonLayout::new(best) };
        let arrays = process.standalone.found.iter().filter(|other| other.array.is_some()).count();
        Self {
            root: process.root,
            levels: process.levels,
            pid: process.pid,
            comm: process.comm.as_deref(),
            python: PythonRow {
                version: process.python_version.as_deref(),
                type_object: process.type_object.0,
                type_object_physical: process.type_object.1,
                types: process.type_count,
                layout: python_layout,
            },
            torch: process.facts.torch.as_ref().map(TorchRow::new),
            modules: process.module_count,
            models: process.models.iter().map(ModelRow::new).collect(),
            shared_models: &process.shared_models,
            other_tensors: process.standalone.found.len() - arrays,
            arrays,
        }
    }
}
