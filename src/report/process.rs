//! A process as the documents describe it.

use serde::Serialize;

use super::model::ModelRow;
use crate::addr::{PhysAddr, VirtAddr};
use crate::case::HeaderComparison;
use crate::cpython::{Change, LayoutScore, LayoutSource};
use crate::framework::torch::{self, TensorScore};
use crate::recover::{Process, PythonProcess};

/// A process.
#[derive(Serialize)]
pub(super) struct ProcessRow<'a> {
    root: Option<PhysAddr>,
    /// Whether the process has ended: what is known of it is from memory that nobody uses any more.
    ended: bool,
    levels: Option<u8>,
    // From the image of a process. Of a machine the operating system would tell, which is not read: null, never guessed.
    pid: Option<u32>,
    comm: Option<&'a str>,
    /// Of a process in which no Python was found, or none that can be read: null.
    python: Option<PythonRow<'a>>,
    torch: Option<TorchRow<'a>>,
    modules: usize,
    models: Vec<ModelRow<'a>>,
    shared_models: &'a [String],
    /// Tensors and arrays that belong to no model, which `tensors.json` lists.
    other_tensors: usize,
    arrays: usize,
    headers: Option<&'a HeaderComparison>,
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
    #[serde(rename = "filled")]
    exact_storages: usize,
    same_abi: usize,
    #[serde(rename = "learned")]
    requiring_grad: usize,
    contradicted: usize,
    tried: usize,
    #[serde(rename = "others")]
    standalone: usize,
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

impl<'a> PythonRow<'a> {
    fn new(python: &'a PythonProcess) -> Self {
        let (best, next) = &python.layout;
        let runner_up = next.as_ref().map(PythonLayout::new).map(Box::new);
        Self {
            version: python.version.as_deref(),
            type_object: python.type_object.0,
            type_object_physical: python.type_object.1,
            types: python.type_count,
            layout: PythonLayout { runner_up: Some(runner_up), ..PythonLayout::new(best) },
        }
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
            exact_storages: score.exact_storages,
            same_abi,
            requiring_grad: score.requiring_grad,
            contradicted,
            tried,
            standalone: score.standalone,
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
        let arrays = process.standalone.found.iter().filter(|found| found.array.is_some()).count();
        Self {
            root: process.root(),
            ended: process.space.is_freed(),
            levels: process.space.levels(),
            pid: process.pid,
            comm: process.comm.as_deref(),
            python: process.python.as_ref().map(PythonRow::new),
            torch: process.facts.torch.as_ref().map(TorchRow::new),
            modules: process.module_count,
            models: process.models.iter().map(ModelRow::new).collect(),
            shared_models: &process.shared_models,
            other_tensors: process.standalone.found.len() - arrays,
            arrays,
            headers: process.headers.as_ref(),
        }
    }
}
