//! Weights with what belongs to them: the bias, and norms of the size of their outputs.
//!
//! A module's tensors are made one after another, so their headers lie close together, mostly in order. Vectors go to the
//! weight of their size that is nearest. An odd one among them is the bias; the others are weights and biases of norms.

use std::collections::{BTreeMap, BTreeSet};

use super::pool::Pool;

/// Weights before and after a vector, or vectors around a norm, that are considered. A module's tensors are neighbours, so
/// the right one is among the first two or three.
const NEIGHBOURS: usize = 8;
/// A vector before a weight is less likely its own than one that is as far behind it.
const BEHIND: usize = 2;
/// The type of floating-point numbers of 64 bits.
const DOUBLE: &str = "F64";
/// Gates of recurrent layers: PyTorch stacks four matrices for an LSTM and three for a GRU
/// (`torch/nn/modules/rnn.py`, `RNNBase.__init__`).
const LSTM_GATES: u64 = 4;
const GRU_GATES: u64 = 3;
/// Matrices that the first weight of an attention stacks: queries, keys, values (`torch/nn/modules/activation.py`).
const PROJECTIONS: u64 = 3;

/// What a weight is, as far as it can be told without its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitKind {
    /// A convolution over this number of dimensions.
    Conv(usize),
    Linear,
    Attention,
    Lstm,
    Gru,
}

/// The parameters of a norm, as pieces of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Norm {
    pub(super) weight: usize,
    pub(super) bias: usize,
    /// Running mean and running variance.
    pub(super) averages: Option<(usize, usize)>,
    pub(super) counter: Option<usize>,
}

/// A weight with what belongs to it, as pieces of the pool.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) kind: UnitKind,
    pub(super) weight: usize,
    pub(super) bias: Option<usize>,
    /// The second weight and its bias, of attention and recurrent layers.
    pub(super) second: Option<(usize, Option<usize>)>,
    pub(super) inputs: u64,
    pub(super) outputs: u64,
    /// Sizes of the kernel of a convolution, outermost first.
    pub(super) kernel: Vec<u64>,
    pub(super) before: Vec<Norm>,
    pub(super) after: Vec<Norm>,
    /// Whether it has vectors: a bias or norms.
    pub(super) has_vectors: bool,
}

/// All weights, in the order of their headers.
pub(super) fn units(pool: &Pool<'_>) -> Vec<Unit> {
    // Norms may be kept with more bits than weights, but no layer mixes doubles with others.
    let mut weights: BTreeMap<(u64, bool), Vec<usize>> = BTreeMap::new();
    let mut vectors: BTreeMap<(u64, bool), Vec<usize>> = BTreeMap::new();
    for (index, piece) in pool.pieces.iter().enumerate() {
        let is_double = piece.info.dtype.label() == DOUBLE;
        match piece.info.shape.as_slice() {
            [size] => vectors.entry((*size, is_double)).or_default().push(index),
            [outputs, _, ..] => weights.entry((*outputs, is_double)).or_default().push(index),
            [] => {}
        }
    }
    let all: BTreeSet<usize> = weights.values().flatten().copied().collect();
    let counters = pool.pieces.iter().filter(|piece| piece.info.shape.is_empty()).count();
    let mut owned: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut averages: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (key, found) in vectors {
        let Some(weights) = weights.get(&key) else { continue };
        let (own, plain) = split(pool, found, weights.len(), counters);
        let average_count = plain.len();
        averages.entry(key.0).or_default().extend(plain);
        let (owners, room) = match recurrent(pool, &all, weights, own.len()) {
            Some(second) => (second, 2),
            None => (weights.clone(), capacity(own.len(), weights.len(), average_count)),
        };
        for (vector, weight) in share(&own, &owners, room, |piece| piece) {
            owned.entry(weight).or_default().push(vector);
        }
    }
    let mut units: Vec<Unit> = all
        .into_iter()
        .filter_map(|weight| Unit::new(pool, weight, owned.remove(&weight).unwrap_or_default()))
        .collect();
    give_averages(pool, &mut units, averages);
    join_pairs(pool, units)
}

/// Splits the vectors of one size into those that can be biases or parameters of norms, and those that can be running
/// averages. Where some are learned, the others are averages. Where none is, the order of the data tells, if there are as
/// many as batch norms have: weight, bias, two averages, and the bias of the layer before them or none.
fn split(pool: &Pool<'_>, vectors: Vec<usize>, weights: usize, counters: usize) -> (Vec<usize>, Vec<usize>) {
    let is_learned = |index: &usize| pool.get(*index).is_some_and(|piece| piece.learned);
    if vectors.iter().any(is_learned) {
        return vectors.into_iter().partition(is_learned);
    }
    let each = vectors.len().checked_div(weights).unwrap_or_default();
    if !(4..=5).contains(&each) || each * weights != vectors.len() || counters < weights {
        return (vectors, Vec::new());
    }
    let mut ordered = vectors;
    ordered.sort_by_key(|index| pool.get(*index).map(|piece| piece.data_rank));
    let (mut own, mut averages) = (Vec::new(), Vec::new());
    for (place, index) in ordered.into_iter().enumerate() {
        if place % each < each - 2 { own.push(index) } else { averages.push(index) }
    }
    own.sort_unstable();
    (own, averages)
}

/// How many vectors each weight can have. With as many vectors as weights, or two or three for each where there are
/// averages for one norm each, every weight has the same number.
fn capacity(vectors: usize, weights: usize, averages: usize) -> usize {
    let each = vectors.checked_div(weights).filter(|each| each * weights == vectors);
    match each {
        Some(1) => 1,
        Some(each @ 2..=3) if averages == 2 * weights => each,
        _ => usize::MAX,
    }
}

/// Gives things to the nearest of their possible owners, the nearest pairs first. `rank` is the order of allocation, and
/// both lists are in that order. What finds no owner with room among its neighbours goes to the first that has room.
fn share(things: &[usize], owners: &[usize], capacity: usize, rank: impl Fn(usize) -> usize) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for thing in things {
        let at = rank(*thing);
        let after = owners.partition_point(|owner| rank(*owner) < at);
        let near = owners.get(after.saturating_sub(NEIGHBOURS)..owners.len().min(after + NEIGHBOURS));
        for owner in near.unwrap_or_default() {
            let distance = at.abs_diff(rank(*owner));
            pairs.push((if at < rank(*owner) { distance.saturating_mul(BEHIND) } else { distance }, *thing, *owner));
        }
    }
    pairs.sort_unstable();
    let (mut shared, mut room, mut given) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    for (_, thing, owner) in pairs {
        let left = room.entry(owner).or_insert(capacity);
        if *left > 0 && given.insert(thing) {
            *left -= 1;
            shared.push((thing, owner));
        }
    }
    let mut owners = owners.iter().peekable();
    for thing in things.iter().filter(|thing| !given.contains(thing)) {
        while owners.next_if(|owner| room.get(owner) == Some(&0)).is_some() {}
        let Some(owner) = owners.peek() else { break };
        *room.entry(**owner).or_insert(capacity) -= 1;
        shared.push((*thing, **owner));
    }
    shared
}

/// The second weights of recurrent layers, if all weights of one size are such pairs and have a bias each.
fn recurrent(pool: &Pool<'_>, all: &BTreeSet<usize>, weights: &[usize], vectors: usize) -> Option<Vec<usize>> {
    let shape = |weight: usize| pool.get(weight).map(|piece| piece.info.shape.as_slice());
    let second = |pair: &[usize]| match *pair {
        [first, second] => {
            let (&[outputs, _], &[_, state]) = (shape(first)?, shape(second)?) else { return None };
            let follows = all.range(first + 1..).next() == Some(&second);
            gates(outputs, state).filter(|_| follows).map(|_| second)
        }
        _ => None,
    };
    weights.chunks(2).map(second).collect::<Option<Vec<usize>>>().filter(|_| vectors == weights.len())
}

/// What a recurrent layer is whose weights have this many rows, and whose state has this size.
fn gates(rows: u64, state: u64) -> Option<UnitKind> {
    let kinds = [(LSTM_GATES, UnitKind::Lstm), (GRU_GATES, UnitKind::Gru)];
    kinds.into_iter().find(|(gates, _)| state.checked_mul(*gates) == Some(rows)).map(|(_, kind)| kind)
}

impl Unit {
    fn new(pool: &Pool<'_>, weight: usize, mut vectors: Vec<usize>) -> Option<Self> {
        let piece = pool.get(weight)?;
        let (outputs, inputs, kernel) = match piece.info.shape.as_slice() {
            [outputs, inputs, kernel @ ..] => (*outputs, *inputs, kernel.to_vec()),
            _ => return None,
        };
        let kind = if kernel.is_empty() { UnitKind::Linear } else { UnitKind::Conv(kernel.len()) };
        let has_vectors = !vectors.is_empty();
        vectors.sort_unstable();
        // The bias of a layer is made just after its weight.
        let bias = (vectors.len() % 2 == 1).then(|| {
            let at = vectors.partition_point(|vector| *vector < weight).min(vectors.len() - 1);
            vectors.remove(at)
        });
        let mut unit = Self {
            kind,
            weight,
            bias,
            second: None,
            inputs,
            outputs,
            kernel,
            before: Vec::new(),
            after: Vec::new(),
            has_vectors,
        };
        for pair in vectors.chunks_exact(2) {
            let &[one, other] = pair else { continue };
            let (weight, bias) = in_order_of_data(pool, one, other);
            let norm = Norm { weight, bias, averages: None, counter: None };
            let is_before = inputs == outputs && other < unit.weight;
            if is_before { unit.before.push(norm) } else { unit.after.push(norm) }
        }
        Some(unit)
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.before.iter_mut().chain(&mut self.after)
    }
}

/// Two pieces in the order in which their data were allocated, which a freed header does not disturb.
fn in_order_of_data(pool: &Pool<'_>, one: usize, other: usize) -> (usize, usize) {
    let rank = |piece: usize| pool.get(piece).map(|piece| piece.data_rank);
    if rank(one) <= rank(other) { (one, other) } else { (other, one) }
}

/// Gives each norm two averages of its size and a counter, as far as there are any nearby.
fn give_averages(pool: &Pool<'_>, units: &mut [Unit], averages: BTreeMap<u64, Vec<usize>>) {
    // These are small, so their data lie in the order in which they were made even where headers fill older gaps.
    let rank = |piece: usize| pool.get(piece).map_or(0, |piece| piece.data_rank);
    let mut norms: BTreeMap<usize, &mut Norm> = BTreeMap::new();
    let mut by_size: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for unit in units {
        let size = unit.outputs;
        for norm in unit.norms_mut() {
            // The averages are made just after the bias.
            by_size.entry(size).or_default().push(norm.bias);
            norms.insert(norm.bias, norm);
        }
    }
    let mut with_averages = BTreeMap::new();
    for (size, mut averages) in averages {
        let Some(owners) = by_size.get_mut(&size) else { continue };
        owners.sort_by_key(|owner| rank(*owner));
        averages.sort_by_key(|average| rank(*average));
        let mut pairs: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (average, owner) in share(&averages, owners, 2, rank) {
            pairs.entry(owner).or_default().push(average);
        }
        for (owner, pair) in pairs {
            if let (Some(norm), &[one, other]) = (norms.get_mut(&owner), pair.as_slice()) {
                let (mean, var) = in_order_of_data(pool, one, other);
                norm.averages = Some((mean, var));
                with_averages.insert(var, owner);
            }
        }
    }
    // The counter is made just after the variance.
    let mut variances: Vec<usize> = with_averages.keys().copied().collect();
    variances.sort_by_key(|variance| rank(*variance));
    let is_counter = |index: &usize| pool.get(*index).is_some_and(|piece| piece.info.shape.is_empty());
    let mut counters: Vec<usize> = (0..pool.pieces.len()).filter(is_counter).collect();
    counters.sort_by_key(|counter| rank(*counter));
    // No counter without its norm is given away: there may be other integers.
    if counters.len() >= with_averages.len() {
        for (counter, variance) in share(&counters, &variances, 1, rank) {
            if let Some(norm) = with_averages.get(&variance).and_then(|owner| norms.get_mut(owner)) {
                norm.counter = Some(counter);
            }
        }
    }
}

/// Joins the two weights of an attention or of a recurrent layer that follow each other.
fn join_pairs(pool: &Pool<'_>, units: Vec<Unit>) -> Vec<Unit> {
    let mut joined: Vec<Unit> = Vec::with_capacity(units.len());
    for unit in units {
        match joined.last_mut().and_then(|last| pair_kind(last, &unit).map(|kind| (kind, last))) {
            Some((UnitKind::Attention, last)) => {
                last.kind = UnitKind::Attention;
                last.second = Some((unit.weight, unit.bias));
                last.outputs = unit.outputs;
                last.before.extend(unit.before);
                last.after.extend(unit.after);
            }
            Some((kind, last)) => {
                last.kind = kind;
                last.outputs = unit.inputs;
                // Both have the same size.
                let mut biases: Vec<usize> = [last.bias, unit.bias].into_iter().flatten().collect();
                biases.extend(last.after.drain(..).chain(unit.after).flat_map(|norm| [norm.weight, norm.bias]));
                biases.sort_by_key(|piece| pool.get(*piece).map(|piece| piece.data_rank));
                last.bias = biases.first().copied();
                last.second = Some((unit.weight, biases.get(1).copied()));
            }
            None => joined.push(unit),
        }
    }
    joined
}

/// What two weights are together, if they are the two of one layer.
fn pair_kind(first: &Unit, second: &Unit) -> Option<UnitKind> {
    let is_linear = |unit: &Unit| unit.kind == UnitKind::Linear && unit.second.is_none();
    if !is_linear(first) || !is_linear(second) {
        return None;
    }
    let stacks = |count: u64| second.inputs.checked_mul(count) == Some(first.outputs);
    if stacks(PROJECTIONS) && second.inputs == first.inputs && second.outputs == first.inputs && first.after.is_empty()
    {
        return Some(UnitKind::Attention);
    }
    let vectors = |unit: &Unit| usize::from(unit.bias.is_some()) + 2 * (unit.before.len() + unit.after.len());
    // Two linear layers beside each other have such shapes too, but not four gates and a bias for each of both.
    if first.outputs != second.outputs || vectors(first) + vectors(second) != 2 || first.outputs == second.inputs {
        return None;
    }
    gates(first.outputs, second.inputs)
}
