//! The layers of a path: what each is, its tensors by their roles, the links between neighbours, and the alternatives.

use std::collections::{BTreeMap, BTreeSet};

use super::fit::BLOCK;
use super::path::Paths;
use super::pool::Pool;
use super::unit::{Norm, Unit, UnitKind};
use super::{Alternative, Chain, Change, Evidence, Layer, LayerKind, Link, Role, rounded};

/// The score of a norm after a weight of its size, with running averages beside it and without.
const NORM_WITH_AVERAGES: f64 = 0.95;
const NORM: f64 = 0.85;
/// The score of a bias: what its size alone gives, and what is added where it was made just after its weight.
const BIAS_SIZE: f64 = 0.75;
const BIAS_ORDER: f64 = 0.25;
/// Tensors in between that halve the hint of an order.
const HALF_AT: f64 = 4.0;
/// The hint of a bias that lies before its weight.
const BACKWARDS: f64 = 0.4;
/// Few links are weak evidence: with this many, half of the score is left.
const WEAK: f64 = 0.25;
/// An alternative is listed if it gives at least this share of the score in its place.
const NEARLY: f64 = 0.95;
/// Layers after a layer whose biases are tried in place of its own.
const EXCHANGED: usize = 8;
/// Alternatives of one chain that are listed.
const MAX_ALTERNATIVES: usize = 16;

/// A path as a chain; `None` for a path that is not one.
pub(super) fn chain(pool: &Pool<'_>, units: &[Unit], paths: &Paths, path: &[usize]) -> Option<Chain> {
    let mut builder = Builder { pool, layers: Vec::new(), links: Vec::new(), at: Vec::new(), biases: Vec::new() };
    let mut is_table = true;
    for (place, index) in path.iter().enumerate() {
        let unit = units.get(*index)?;
        let previous = place.checked_sub(1).and_then(|place| path.get(place));
        let next = path.get(place + 1).and_then(|next| paths.link(*index, *next));
        let takes_the_same =
            next.is_some_and(|link| matches!(link.evidence.first(), Some(Evidence::SameInputs { .. })));
        is_table &= takes_the_same && unit.kind == UnitKind::Linear && unit.bias.is_none() && unit.after.is_empty();
        let link = previous.and_then(|previous| paths.link(*previous, *index)).cloned();
        builder.add(unit, link, is_table);
    }
    builder.find_shortcuts(units, path);
    let Builder { layers, mut links, biases, at, .. } = builder;
    let count = links.len() + biases.len();
    let sum: f64 = links.iter().map(|link| link.score).chain(biases.iter().map(|bias| bias.score)).sum();
    let weights = path.len().saturating_sub(1) as f64;
    let score = |sum: f64| rounded(sum / (count.max(1) as f64) * weights / (weights + WEAK));
    let changes = Changes { pool, units, paths, path, biases: &biases };
    let others = changes.other_weights().into_iter().chain(changes.swaps()).chain(changes.exchanges());
    let nearly = others.filter(|other| other.instead >= other.own * NEARLY);
    let alternative = |other: Other| {
        let layer = at.get(other.place).copied()?;
        Some(Alternative { layer, change: other.change, score: score(sum - other.own + other.instead) })
    };
    let mut alternatives: Vec<Alternative> = nearly.filter_map(alternative).collect();
    alternatives.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.layer.cmp(&other.layer)));
    alternatives.truncate(MAX_ALTERNATIVES);
    links.iter_mut().for_each(|link| link.score = rounded(link.score));
    Some(Chain { layers, links, score: score(sum), alternatives })
}

/// What could be otherwise in a path.
struct Changes<'a> {
    pool: &'a Pool<'a>,
    units: &'a [Unit],
    paths: &'a Paths,
    path: &'a [usize],
    biases: &'a [OwnBias],
}

/// A change at a place of the path: the sums of the scores that it removes and adds.
struct Other {
    place: usize,
    change: Change,
    own: f64,
    instead: f64,
}

/// A bias of a layer.
struct OwnBias {
    place: usize,
    weight: usize,
    bias: usize,
    score: f64,
}

impl Changes<'_> {
    fn item(&self, unit: usize) -> Option<usize> {
        Some(self.pool.get(self.units.get(unit)?.weight)?.item)
    }

    fn score(&self, from: usize, to: usize) -> Option<f64> {
        self.paths.link(from, to).map(|link| link.score)
    }

    /// Weights outside the path that would do as well as a neighbour.
    fn other_weights(&self) -> Vec<Other> {
        let inside: BTreeSet<usize> = self.path.iter().copied().collect();
        let best = |found: &mut dyn Iterator<Item = (usize, f64)>| {
            let outside = found.filter(|(other, _)| !inside.contains(other));
            outside.max_by(|(one, score), (other, rival)| score.total_cmp(rival).then(other.cmp(one)))
        };
        let mut others = Vec::new();
        for (place, pair) in self.path.windows(2).enumerate() {
            let &[from, to] = pair else { continue };
            let Some(own) = self.score(from, to) else { continue };
            let next = best(&mut self.paths.from.get(from).into_iter().flatten().map(|(to, link)| (*to, link.score)));
            let previous = best(&mut self.paths.to.get(&to).into_iter().flatten().copied());
            if let Some((item, instead)) = next.and_then(|(other, score)| Some((self.item(other)?, score))) {
                others.push(Other { place, change: Change::Next(item), own, instead });
            }
            if let Some((item, instead)) = previous.and_then(|(other, score)| Some((self.item(other)?, score))) {
                others.push(Other { place: place + 1, change: Change::Previous(item), own, instead });
            }
        }
        others
    }

    /// Neighbours in the other order.
    fn swaps(&self) -> Vec<Other> {
        let unit = |place: usize| self.path.get(place).copied();
        let swap = |place: usize| {
            let (one, other) = (unit(place)?, unit(place + 1)?);
            let (mut own, mut instead) = (self.score(one, other)?, self.score(other, one)?);
            if let Some(before) = place.checked_sub(1).and_then(unit) {
                own += self.score(before, one)?;
                instead += self.score(before, other)?;
            }
            if let Some(after) = unit(place + 2) {
                own += self.score(other, after)?;
                instead += self.score(one, after)?;
            }
            Some(Other { place, change: Change::Previous(self.item(other)?), own, instead })
        };
        (0..self.path.len()).filter_map(swap).collect()
    }

    /// Biases of the same size the other way round.
    fn exchanges(&self) -> Vec<Other> {
        let mut by_size: BTreeMap<&[u64], Vec<&OwnBias>> = BTreeMap::new();
        for bias in self.biases {
            let Some(piece) = self.pool.get(bias.bias) else { continue };
            by_size.entry(&piece.info.shape).or_default().push(bias);
        }
        let mut others = Vec::new();
        for biases in by_size.into_values() {
            for (index, one) in biases.iter().enumerate() {
                for other in biases.iter().skip(index + 1).take(EXCHANGED) {
                    let Some(item) = self.pool.get(other.bias).map(|piece| piece.item) else { continue };
                    let instead = bias_score(one.weight, other.bias) + bias_score(other.weight, one.bias);
                    let own = one.score + other.score;
                    others.push(Other { place: one.place, change: Change::Bias(item), own, instead });
                }
            }
        }
        others
    }
}

/// How well a bias of the right size goes with a weight: both are pieces, in the order of their headers.
fn bias_score(weight: usize, bias: usize) -> f64 {
    let between = weight.abs_diff(bias).saturating_sub(1);
    let near = HALF_AT / (HALF_AT + between as f64);
    BIAS_SIZE + BIAS_ORDER * near * if bias > weight { 1.0 } else { BACKWARDS }
}

/// A chain in the making.
struct Builder<'a> {
    pool: &'a Pool<'a>,
    layers: Vec<Layer>,
    links: Vec<Link>,
    /// The number of the layer that is each unit's weight.
    at: Vec<usize>,
    biases: Vec<OwnBias>,
}

impl Builder<'_> {
    /// Adds the layers of a unit; `link` is what speaks for its following the unit before.
    fn add(&mut self, unit: &Unit, link: Option<Link>, is_table: bool) {
        let groups = match link.as_ref().and_then(|link| link.evidence.first()) {
            Some(Evidence::Groups { groups, .. }) => *groups,
            _ => 1,
        };
        let mut link = link;
        for norm in &unit.before {
            // The link between the weights is that between the norm and what comes before it.
            let of_norm = link.replace(norm_link(norm, unit.inputs));
            self.push(self.norm(norm, unit.inputs), of_norm);
        }
        self.at.push(self.layers.len());
        if let Some(bias) = unit.bias.filter(|_| unit.second.is_none()) {
            let (weight, score) = (unit.weight, bias_score(unit.weight, bias));
            self.biases.push(OwnBias { place: self.at.len() - 1, weight, bias, score });
        }
        self.push(self.weight(unit, groups, is_table), link);
        for norm in &unit.after {
            self.push(self.norm(norm, unit.outputs), Some(norm_link(norm, unit.outputs)));
        }
        if is_table {
            // Its rows are what the next one takes.
            if let Some(last) = self.layers.last_mut() {
                (last.inputs, last.outputs) = (unit.outputs, unit.inputs);
            }
        }
    }

    fn push(&mut self, layer: Layer, link: Option<Link>) {
        if let (Some(last), Some(mut link)) = (self.layers.last(), link) {
            let is_table = last.kind == LayerKind::Embedding;
            match link.evidence.first_mut() {
                Some(first @ Evidence::SameInputs { .. }) if is_table => {
                    *first = Evidence::Embedding { size: last.outputs };
                }
                _ => {}
            }
            self.links.push(link);
        }
        self.layers.push(layer);
    }

    fn weight(&self, unit: &Unit, groups: u64, is_table: bool) -> Layer {
        let (kind, roles) = match unit.kind {
            UnitKind::Conv(1) => (LayerKind::Conv1d, PLAIN),
            UnitKind::Conv(2) => (LayerKind::Conv2d, PLAIN),
            UnitKind::Conv(_) => (LayerKind::Conv3d, PLAIN),
            UnitKind::Linear if is_table => (LayerKind::Embedding, PLAIN),
            UnitKind::Linear => (LayerKind::Linear, PLAIN),
            UnitKind::Attention => (LayerKind::Attention, ATTENTION),
            UnitKind::Lstm => (LayerKind::Lstm, RECURRENT),
            UnitKind::Gru => (LayerKind::Gru, RECURRENT),
        };
        let (second, second_bias) = unit.second.map_or((None, None), |(weight, bias)| (Some(weight), bias));
        let pieces = [Some(unit.weight), unit.bias, second, second_bias];
        let inputs = unit.inputs.saturating_mul(groups);
        let around = None;
        let layer = Layer {
            kind,
            inputs,
            outputs: unit.outputs,
            kernel: unit.kernel.clone(),
            groups,
            around,
            tensors: Vec::new(),
            training: Vec::new(),
        };
        self.with_tensors(layer, &roles, &pieces)
    }

    fn norm(&self, norm: &Norm, size: u64) -> Layer {
        let layer = Layer {
            kind: if norm.averages.is_some() { LayerKind::BatchNorm } else { LayerKind::Norm },
            inputs: size,
            outputs: size,
            kernel: Vec::new(),
            groups: 1,
            around: None,
            tensors: Vec::new(),
            training: Vec::new(),
        };
        let (mean, var) = norm.averages.unzip();
        let roles = [Role::Weight, Role::Bias, Role::RunningMean, Role::RunningVar, Role::NumBatchesTracked];
        self.with_tensors(layer, &roles, &[Some(norm.weight), Some(norm.bias), mean, var, norm.counter])
    }

    fn with_tensors(&self, mut layer: Layer, roles: &[Role], pieces: &[Option<usize>]) -> Layer {
        for (role, piece) in roles.iter().zip(pieces) {
            if let Some((piece, found)) = piece.and_then(|piece| Some((piece, self.pool.get(piece)?))) {
                layer.tensors.push((*role, found.item));
                layer.training.extend_from_slice(self.pool.training(piece));
            }
        }
        layer
    }

    /// Notes which layers are a shortcut, and around what.
    fn find_shortcuts(&mut self, units: &[Unit], path: &[usize]) {
        let unit = |place: usize| path.get(place).and_then(|unit| units.get(*unit));
        let end = |place: usize| {
            self.at
                .get(place + 1)
                .map_or(self.layers.len(), |at| at - unit(place + 1).map_or(0, |unit| unit.before.len()))
        };
        let start = |place: usize| place.checked_sub(1).map_or(0, end);
        let mut found = Vec::new();
        for place in 1..path.len() {
            // The link before the layers of this unit.
            let link = start(place).checked_sub(1).and_then(|link| self.links.get(link));
            let Some(Evidence::Shortcut { inputs, outputs }) = link.and_then(|link| link.evidence.first()) else {
                continue;
            };
            let matches = |place: &usize, is_it: &dyn Fn(&Unit) -> bool| unit(*place).is_some_and(is_it);
            let is_way = |unit: &Unit| {
                (unit.inputs, unit.outputs) == (*inputs, *outputs) && unit.kernel.iter().all(|size| *size == 1)
            };
            if matches(&place, &is_way) {
                let begins = |unit: &Unit| unit.inputs == *inputs;
                let first = (place.saturating_sub(BLOCK)..place).rev().find(|place| matches(place, &begins));
                found.extend(first.map(|first| (place, start(first)..end(place - 1))));
            } else {
                let ends = |unit: &Unit| unit.outputs == *outputs;
                // A block around which a shortcut goes has more than one weight.
                let last = (place + 1..path.len().min(place + BLOCK)).find(|place| matches(place, &ends));
                found.extend(last.map(|last| (place - 1, start(place)..end(last))));
            }
        }
        let found: Vec<_> = found.into_iter().map(|(place, around)| (start(place)..end(place), around)).collect();
        for (layers, around) in found {
            for layer in self.layers.get_mut(layers).unwrap_or_default() {
                layer.around = around.end.checked_sub(1).map(|last| (around.start, last));
            }
        }
    }
}

const PLAIN: [Role; 4] = [Role::Weight, Role::Bias, Role::Weight, Role::Bias];
const ATTENTION: [Role; 4] = [Role::InProjWeight, Role::InProjBias, Role::OutProjWeight, Role::OutProjBias];
const RECURRENT: [Role; 4] = [Role::WeightIh, Role::BiasIh, Role::WeightHh, Role::BiasHh];

fn norm_link(norm: &Norm, size: u64) -> Link {
    let averages = norm.averages.is_some();
    let score = if averages { NORM_WITH_AVERAGES } else { NORM };
    Link { score, evidence: vec![Evidence::Norm { size, averages }] }
}
