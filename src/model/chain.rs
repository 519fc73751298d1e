//! A chain of layers as a model: tensors are named by the position of their layer.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Model, NamedTensor, TensorKind};
use crate::addr::VirtAddr;
use crate::chain::{Chain, Change, Evidence, Item, LayerKind, Role, Training, TrainingKind};

/// What speaks for a chain. Nothing of it is certain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainFacts {
    /// How well all of it fits, between 0 and 1.
    pub score: f64,
    /// The layers, first to last.
    pub layers: Vec<ChainLayer>,
    /// What speaks for each pair of neighbours.
    pub links: Vec<ChainLink>,
    /// Other readings that score nearly as well, best first.
    pub alternatives: Vec<ChainAlternative>,
}

/// A layer of a chain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainLayer {
    /// `layer0`, `layer1`, …
    pub name: String,
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
    pub around: Option<[String; 2]>,
    /// The name of each tensor by the name that PyTorch's layer has for it.
    pub tensors: BTreeMap<&'static str, String>,
}

/// What speaks for two layers being neighbours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainLink {
    /// The first layer.
    pub from: String,
    /// The one after it.
    pub to: String,
    /// How well they fit, between 0 and 1.
    pub score: f64,
    /// Why.
    pub evidence: Vec<Evidence>,
}

/// Another reading that scores nearly as well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChainAlternative {
    /// The layer that it concerns.
    pub layer: String,
    /// What would be otherwise.
    pub change: ChainChange,
    /// The header of the tensor that would be there.
    pub header: VirtAddr,
    /// The name of that tensor, if it is in the chain.
    pub tensor: Option<String>,
    /// The score of the chain with it.
    pub score: f64,
}

/// What an alternative changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChainChange {
    /// The layer with that weight would follow.
    Next,
    /// The layer with that weight would come before.
    Previous,
    /// That tensor would be the bias.
    Bias,
}

impl Model {
    /// The model of a chain that was put together from `items`. Its tensors have headers, but no bytes yet, and the model
    /// has neither id nor sightings. An index that is not of `items` is passed over.
    pub fn of_chain(chain: &Chain, items: &[Item]) -> Self {
        let mut names: HashMap<usize, String> = HashMap::new();
        let (mut tensors, mut training) = (Vec::new(), Vec::new());
        for (number, layer) in chain.layers.iter().enumerate() {
            for (role, item) in &layer.tensors {
                let name = format!("{}.{}", layer_name(number), role.name());
                tensors.extend(tensor(items, *item, name.clone(), kind(*role)));
                names.insert(*item, name);
            }
            for kept in &layer.training {
                let Some((name, kind)) = training_name(kept, &names) else { continue };
                training.extend(tensor(items, kept.item, name, kind));
            }
        }
        let first = tensors.first().and_then(|tensor| tensor.info.as_ref());
        Self {
            id: String::new(),
            class: None,
            object: first.map_or(VirtAddr(0), |info| info.header),
            chain: Some(facts(chain, items, &names)),
            sightings: Vec::new(),
            modules: Vec::new(),
            tensors,
            training,
            optimizers: Vec::new(),
            problems: Vec::new(),
        }
    }
}

fn layer_name(number: usize) -> String {
    format!("layer{number}")
}

fn kind(role: Role) -> TensorKind {
    if role.is_buffer() { TensorKind::Buffer } else { TensorKind::Parameter }
}

/// The optimizer is unknown, so what it keeps is numbered.
fn training_name(kept: &Training, names: &HashMap<usize, String>) -> Option<(String, TensorKind)> {
    let parameter = names.get(&kept.of)?;
    Some(match kept.kind {
        TrainingKind::Gradient => (parameter.clone(), TensorKind::Gradient),
        TrainingKind::Optimizer(number) => (format!("{parameter}.state{number}"), TensorKind::Optimizer),
    })
}

fn tensor(items: &[Item], item: usize, name: String, kind: TensorKind) -> Option<NamedTensor> {
    let info = items.get(item)?.info.clone();
    let persistent = matches!(kind, TensorKind::Parameter | TensorKind::Buffer);
    Some(NamedTensor { persistent, ..NamedTensor::new(name, kind, info.object, Ok(info)) })
}

fn facts(chain: &Chain, items: &[Item], names: &HashMap<usize, String>) -> ChainFacts {
    let layers = chain.layers.iter().enumerate().map(|(number, layer)| ChainLayer {
        name: layer_name(number),
        kind: layer.kind,
        inputs: layer.inputs,
        outputs: layer.outputs,
        kernel: layer.kernel.clone(),
        groups: layer.groups,
        around: layer.around.map(|(first, last)| [layer_name(first), layer_name(last)]),
        tensors: layer
            .tensors
            .iter()
            .filter_map(|(role, item)| Some((role.name(), names.get(item)?.clone())))
            .collect(),
    });
    let links = chain.links.iter().enumerate().map(|(number, link)| ChainLink {
        from: layer_name(number),
        to: layer_name(number + 1),
        score: link.score,
        evidence: link.evidence.clone(),
    });
    let alternatives = chain.alternatives.iter().filter_map(|alternative| {
        let (change, item) = match alternative.change {
            Change::Next(item) => (ChainChange::Next, item),
            Change::Previous(item) => (ChainChange::Previous, item),
            Change::Bias(item) => (ChainChange::Bias, item),
        };
        Some(ChainAlternative {
            layer: layer_name(alternative.layer),
            change,
            header: items.get(item)?.info.header,
            tensor: names.get(&item).cloned(),
            score: alternative.score,
        })
    });
    ChainFacts {
        score: chain.score,
        layers: layers.collect(),
        links: links.collect(),
        alternatives: alternatives.collect(),
    }
}
