//! Tensors that no object names, put together into chains of layers by their shapes and by the order in which their
//! headers and data were allocated.
//!
//! 1. `pool` tells parameters from what training keeps for them: gradients, momenta, running averages.
//! 2. `unit` gives each weight its bias and the norms beside it.
//! 3. `fit` scores one weight after another: do the outputs of the first fit the inputs of the second?
//! 4. `path` joins the best links to chains, and `layers` lists the layers of each.
//!
//! A chain is a conjecture, never a fact: it has a score below 1, the evidence for each link, and the alternatives that
//! score nearly as well. A tensor that fits nowhere belongs to no chain.

mod fit;
mod layers;
mod path;
mod pool;
#[cfg(test)]
mod tests;
mod unit;

use serde::Serialize;

use crate::tensor::TensorInfo;

/// A tensor that was found in an address space.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its headers.
    pub info: TensorInfo,
    /// The index of the item that is its gradient.
    pub gradient: Option<usize>,
    /// The number of the operation that used it last, where the graph of a forward pass says so.
    pub last_use: Option<u64>,
}

/// Layers that fit one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    /// The layers, first to last. At least two of them have a weight that is no norm's.
    pub layers: Vec<Layer>,
    /// What speaks for each pair of neighbours: link `n` is between layers `n` and `n + 1`.
    pub links: Vec<Link>,
    /// How well all of it fits, between 0 and 1.
    pub score: f64,
    /// Other readings that score nearly as well, best first.
    pub alternatives: Vec<Alternative>,
}

/// A layer of a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// What its shapes and its neighbours say that it is.
    pub kind: LayerKind,
    /// Features or channels that it takes; rows of the table of an embedding.
    pub inputs: u64,
    /// Features or channels that it gives.
    pub outputs: u64,
    /// Sizes of the kernel of a convolution, outermost first.
    pub kernel: Vec<u64>,
    /// Groups of a convolution.
    pub groups: u64,
    /// For a layer of a shortcut, the first and the last of the layers that it goes around.
    pub around: Option<(usize, usize)>,
    /// Its tensors: what each is to the layer, and the index of the item.
    pub tensors: Vec<(Role, usize)>,
    /// What training keeps for them.
    pub training: Vec<Training>,
}

/// What a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// A convolution over this number of dimensions.
    Conv1d,
    /// The same.
    Conv2d,
    /// The same.
    Conv3d,
    /// A linear layer.
    Linear,
    /// A table of vectors.
    Embedding,
    /// A norm with running averages.
    #[serde(rename = "batch_norm")]
    BatchNorm,
    /// A norm without: of layers, of groups, or of batches.
    Norm,
    /// Self-attention with one weight for queries, keys and values.
    Attention,
    /// A layer of an LSTM.
    Lstm,
    /// A layer of a GRU.
    Gru,
}

impl LayerKind {
    /// Whether it is a norm.
    pub fn is_norm(self) -> bool {
        matches!(self, Self::BatchNorm | Self::Norm)
    }
}

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The weight, of whatever layer.
    Weight,
    /// The bias.
    Bias,
    /// The running mean of a batch norm.
    RunningMean,
    /// The running variance of a batch norm.
    RunningVar,
    /// How many batches the running averages are of.
    NumBatchesTracked,
    /// The weight of an attention for queries, keys and values.
    InProjWeight,
    /// The bias of it.
    InProjBias,
    /// The weight of an attention for its output.
    OutProjWeight,
    /// The bias of it.
    OutProjBias,
    /// The weight of a recurrent layer for its input.
    WeightIh,
    /// The weight of a recurrent layer for its state.
    WeightHh,
    /// The bias of a recurrent layer for its input.
    BiasIh,
    /// The bias of a recurrent layer for its state.
    BiasHh,
}

impl Role {
    /// The name of such a tensor in PyTorch's module of that kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::RunningMean => "running_mean",
            Self::RunningVar => "running_var",
            Self::NumBatchesTracked => "num_batches_tracked",
            Self::InProjWeight => "in_proj_weight",
            Self::InProjBias => "in_proj_bias",
            Self::OutProjWeight => "out_proj.weight",
            Self::OutProjBias => "out_proj.bias",
            Self::WeightIh => "weight_ih_l0",
            Self::WeightHh => "weight_hh_l0",
            Self::BiasIh => "bias_ih_l0",
            Self::BiasHh => "bias_hh_l0",
        }
    }

    /// Whether it is kept, not learned.
    pub fn is_buffer(self) -> bool {
        matches!(self, Self::RunningMean | Self::RunningVar | Self::NumBatchesTracked)
    }
}

/// A tensor that training keeps for a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Training {
    /// The index of the item.
    pub item: usize,
    /// The index of the item that is the parameter.
    pub of: usize,
    /// What it is.
    pub kind: TrainingKind,
    /// Parameters of the same shape and type, this one included: above 1, the order of addresses alone says whose it is.
    pub rivals: usize,
}

/// What training keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingKind {
    /// The gradient: the parameter's own headers say so.
    Gradient,
    /// What an optimizer keeps, such as a momentum: the number of the tensor among those of one parameter, by address.
    Optimizer(usize),
}

/// What speaks for two layers being neighbours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Link {
    /// How well they fit, between 0 and 1.
    pub score: f64,
    /// Why.
    pub evidence: Vec<Evidence>,
}

/// A reason why a layer may follow another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Evidence {
    /// The first gives as many features as the second takes.
    Sizes {
        /// Features or channels.
        size: u64,
    },
    /// A linear layer takes all positions of all channels of a convolution.
    Flatten {
        /// Channels.
        channels: u64,
        /// Height by width, of whatever dimensions there are.
        positions: u64,
    },
    /// A convolution in groups: each takes a part of the channels.
    Groups {
        /// Channels that the first gives.
        channels: u64,
        /// Groups.
        groups: u64,
    },
    /// Both take the same number of features: branches beside each other.
    SameInputs {
        /// Features or channels.
        size: u64,
    },
    /// A convolution with a kernel of size 1 around a block, from its inputs to its outputs.
    Shortcut {
        /// Channels that the block takes.
        inputs: u64,
        /// Channels that the block gives.
        outputs: u64,
    },
    /// A table of vectors, whose length the second takes.
    Embedding {
        /// Features.
        size: u64,
    },
    /// Parameters of a norm, one for each feature.
    Norm {
        /// Features or channels.
        size: u64,
        /// Whether it has running averages.
        averages: bool,
    },
    /// The header of the second weight comes soon after that of the first.
    HeaderOrder {
        /// Weights whose headers lie between the two.
        between: usize,
    },
    /// The data of the second weight come soon after those of the first.
    DataOrder {
        /// Weights whose data lie between the two.
        between: usize,
    },
    /// The last forward pass used the second weight soon after the first: the graph that it recorded for the backward pass says so.
    OrderOfUse {
        /// Weights that it used between the two.
        between: usize,
    },
    /// The elements have the same type.
    SameType,
    /// Training keeps the same for both.
    SameTraining {
        /// Tensors for each of the two weights.
        tensors: usize,
    },
}

/// Another reading that scores nearly as well.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The number of the layer that it concerns.
    pub layer: usize,
    /// What would be otherwise.
    pub change: Change,
    /// The score of the chain with it.
    pub score: f64,
}

/// What an alternative changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The layer with this item as its weight would follow.
    Next(usize),
    /// The layer with this item as its weight would come before; one of the chain itself would change places with it.
    Previous(usize),
    /// This item would be the bias; the layer that has it would have this one's.
    Bias(usize),
}

impl Chain {
    /// The indices of all items that it has a place for.
    pub fn items(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().flat_map(|layer| {
            let training = layer.training.iter().map(|training| training.item);
            layer.tensors.iter().map(|(_, item)| *item).chain(training)
        })
    }

    /// How many bits the sizes have that neighbours agree on: small ones agree by chance.
    pub fn agreeing_bits(&self) -> u32 {
        let size = |evidence: &Evidence| match evidence {
            Evidence::Sizes { size } | Evidence::Embedding { size } | Evidence::Norm { size, .. } => *size,
            Evidence::Flatten { channels, positions } => channels.saturating_mul(*positions),
            Evidence::Groups { channels, .. } => *channels,
            Evidence::Shortcut { inputs, outputs } => inputs.saturating_mul(*outputs),
            // All others say nothing of which layer follows which.
            _ => 1,
        };
        let evidence = self.links.iter().flat_map(|link| &link.evidence);
        evidence.map(|evidence| size(evidence).checked_ilog2().unwrap_or_default()).fold(0, u32::saturating_add)
    }
}

/// The chains that the tensors of one address space can be put together to, best first. The order of `items` does not
/// matter. No item is in two chains.
pub fn assemble(items: &[Item]) -> Vec<Chain> {
    let pool = pool::Pool::new(items);
    let units = unit::units(&pool);
    let mut chains: Vec<(u64, Chain)> = Vec::new();
    let paths = path::Paths::new(&pool, &units);
    for path in &paths.found {
        if let Some(chain) = layers::chain(&pool, &units, &paths, path) {
            let first = path.first().and_then(|first| units.get(*first));
            chains.push((first.map_or(0, |unit| pool.header(unit.weight)), chain));
        }
    }
    chains.sort_by(|(one_at, one), (other_at, other)| other.score.total_cmp(&one.score).then(one_at.cmp(other_at)));
    chains.into_iter().map(|(_, chain)| chain).collect()
}

/// Three digits: more would only look exact.
fn rounded(score: f64) -> f64 {
    (score.clamp(0.0, MAX_SCORE) * 1000.0).round() / 1000.0
}

/// Nothing here is certain.
const MAX_SCORE: f64 = 0.99;
