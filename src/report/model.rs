//! A model as the documents describe it: figures, problems, tensors.

use serde::Serialize;

use super::assignment::assign_model;
use super::tensor::{TensorRow, stored};
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::model::{Model, ModelKind, Sighting, Status, TensorKind};

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
        for assignment in assign_model(model).iter().take(model.tensors.len()) {
            let tensor = assignment.tensor;
            totals.complete += usize::from(assignment.status() == Status::Complete);
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

/// Figures of a chain.
#[derive(Serialize)]
struct ChainTotals {
    layers: usize,
    score: f64,
}

/// Whether every tensor of the model and all of its tree could be read.
pub(super) fn is_whole(model: &Model) -> bool {
    model.problems.is_empty()
        && model.optimizers.iter().all(|optimizer| optimizer.problems.is_empty())
        && assign_model(model).iter().all(|assignment| {
            let mut inner = assignment.tensor.inner.iter();
            assignment.status() == Status::Complete && inner.all(|inner| inner.tensor.status == Status::Complete)
        })
}

/// A model.
#[derive(Serialize)]
pub(super) struct ModelRow<'a> {
    id: &'a str,
    kind: ModelKind,
    class: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<ChainTotals>,
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
            kind: model.kind(),
            class: model.class.as_deref(),
            chain: model.chain.as_ref().map(|chain| ChainTotals { layers: chain.layers.len(), score: chain.score }),
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
