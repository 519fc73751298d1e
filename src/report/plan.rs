//! Which file a tensor's bytes go to.

use std::collections::HashSet;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error, StrDeserializer};

use crate::model::{Model, NamedTensor, Status};
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
}

impl WeightFile {
    pub(super) const ALL: [Self; 3] = [Self::Model, Self::Partial, Self::Buffers];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Model => "model.safetensors",
            Self::Partial => "partial.safetensors",
            Self::Buffers => "buffers.safetensors",
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

/// Where each tensor of a model goes, in their order.
pub(super) fn plan(model: &Model) -> Vec<Placed> {
    let mut names = HashSet::new();
    model.tensors.iter().map(|tensor| place(tensor, names.insert(tensor.name.as_str()))).collect()
}

fn place(tensor: &NamedTensor, is_first: bool) -> Placed {
    let file = match (tensor.status, tensor.persistent) {
        (Status::Complete, true) => WeightFile::Model,
        (Status::Complete, false) => WeightFile::Buffers,
        (Status::Partial, _) => WeightFile::Partial,
        (Status::Missing | Status::Device, _) => return Placed::Nowhere(None),
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
