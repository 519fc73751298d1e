//! Which file a tensor's bytes go to.

use std::collections::HashSet;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use crate::model::{Model, NamedTensor, Status, TensorKind};
use crate::tensor::ScalarType;

/// The name that a safetensors file keeps for itself.
const RESERVED: &str = "__metadata__";

/// A file of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightFile {
    /// What `state_dict()` lists, as far as every byte is there.
    Model,
    /// Tensors with holes, which are zeros there.
    Partial,
    /// Buffers that `state_dict()` leaves out.
    Buffers,
    /// Gradients under their parameters' names.
    Gradients,
    /// Gradients with holes.
    PartialGradients,
    /// What optimizers keep, as `<parameter>.<key>`.
    Optimizer,
    /// The same with holes.
    PartialOptimizer,
}

impl WeightFile {
    pub(super) const ALL: [Self; 7] = [
        Self::Model,
        Self::Partial,
        Self::Buffers,
        Self::Gradients,
        Self::PartialGradients,
        Self::Optimizer,
        Self::PartialOptimizer,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Model => "model.safetensors",
            Self::Partial => "partial.safetensors",
            Self::Buffers => "buffers.safetensors",
            Self::Gradients => "grads.safetensors",
            Self::PartialGradients => "partial_grads.safetensors",
            Self::Optimizer => "optimizer.safetensors",
            Self::PartialOptimizer => "partial_optimizer.safetensors",
        }
    }
}

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    In(WeightFile),
    /// In no file; why, where its status does not say it.
    Nowhere(Option<&'static str>),
}

/// All tensors of a model, in their order, and where each goes.
pub(super) fn plan(model: &Model) -> Vec<(&NamedTensor, Placed)> {
    let mut names = HashSet::new();
    let mut is_first = |tensor: &NamedTensor| {
        // Parameters and buffers share their names, whatever file they go to.
        let kind = if tensor.kind == TensorKind::Buffer { TensorKind::Parameter } else { tensor.kind };
        names.insert((kind, tensor.name.clone()))
    };
    model.all_tensors().map(|tensor| (tensor, place(tensor, is_first(tensor)))).collect()
}

fn place(tensor: &NamedTensor, is_first: bool) -> Placed {
    let file = match (tensor.status, tensor.kind) {
        (Status::Missing | Status::Device, _) => return Placed::Nowhere(None),
        (Status::Complete, TensorKind::Gradient) => WeightFile::Gradients,
        (Status::Partial, TensorKind::Gradient) => WeightFile::PartialGradients,
        (Status::Complete, TensorKind::Optimizer) => WeightFile::Optimizer,
        (Status::Partial, TensorKind::Optimizer) => WeightFile::PartialOptimizer,
        (Status::Complete, _) if tensor.persistent => WeightFile::Model,
        (Status::Complete, _) => WeightFile::Buffers,
        (Status::Partial, _) => WeightFile::Partial,
    };
    match &tensor.info {
        None => Placed::Nowhere(None),
        _ if !is_first => Placed::Nowhere(Some("another tensor of the model has the same name: not written")),
        _ if tensor.name == RESERVED => Placed::Nowhere(Some("safetensors keeps this name for itself: not written")),
        Some(info) if dtype(&info.dtype).is_none() => {
            Placed::Nowhere(Some("safetensors has no such dtype: not written"))
        }
        Some(_) => Placed::In(file),
    }
}

/// The type in safetensors' own terms, if it has the type and the size agrees.
pub(super) fn dtype(scalar: &ScalarType) -> Option<Dtype> {
    let name: StrDeserializer<'_, Error> = scalar.safetensors.as_deref()?.into_deserializer();
    let dtype = Dtype::deserialize(name).ok()?;
    (dtype.bitsize() as u64 == scalar.size.saturating_mul(8)).then_some(dtype)
}
