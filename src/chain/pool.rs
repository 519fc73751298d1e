//! What each tensor can be: a parameter, a running average, or something that training keeps for a parameter.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Item, Training, TrainingKind};
use crate::tensor::{Form, TensorInfo};

/// The types of parameters, by their names in safetensors.
const FLOATS: [&str; 4] = ["F16", "BF16", "F32", "F64"];
/// The type of the counter of a batch norm.
const COUNTER: &str = "I64";
/// Dimensions of the weight of a 3d convolution: outputs, inputs, and three of the kernel.
const MAX_DIMS: usize = 5;
/// The most tensors of one shape that an optimizer keeps for a parameter: Adam's two averages and, with AMSGrad, a maximum
/// (`torch/optim/adam.py`).
const MAX_STATE: usize = 3;
/// Tensors that are considered, in the order of their headers. The largest published networks, mixtures of experts, have
/// fewer; and this many take about 100 MB and a few seconds.
const MAX_PIECES: usize = 1 << 16;

/// A tensor that can be a part of a layer.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    /// The index of the item.
    pub(super) item: usize,
    pub(super) info: &'a TensorInfo,
    /// Whether gradients are recorded for it, or it has one.
    pub(super) learned: bool,
    /// How many tensors have their data below its own.
    pub(super) data_rank: usize,
    /// The number of the operation that used it last.
    pub(super) last_use: Option<u64>,
}

/// The tensors that can be parts of layers, in the order of their headers.
pub(super) struct Pool<'a> {
    pub(super) pieces: Vec<Piece<'a>>,
    /// What training keeps, by the index of the parameter's item.
    pub(super) training: HashMap<usize, Vec<Training>>,
}

impl<'a> Pool<'a> {
    pub(super) fn new(items: &'a [Item]) -> Self {
        let mut training: HashMap<usize, Vec<Training>> = HashMap::new();
        let mut gradients = BTreeSet::new();
        for (of, item) in items.iter().enumerate() {
            let Some(gradient) = item.gradient.filter(|gradient| *gradient != of && *gradient < items.len()) else {
                continue;
            };
            if gradients.insert(gradient) {
                let found = Training { item: gradient, of, kind: TrainingKind::Gradient, rivals: 1 };
                training.entry(of).or_default().push(found);
            }
        }
        let usable =
            items.iter().enumerate().filter(|(index, item)| !gradients.contains(index) && is_usable(&item.info));
        let mut pieces: Vec<Piece<'a>> = usable
            .map(|(index, item)| Piece {
                item: index,
                info: &item.info,
                learned: item.info.requires_grad || item.gradient.is_some(),
                data_rank: 0,
                last_use: item.last_use,
            })
            .collect();
        // Not the index, as far as possible: the order of the items says nothing.
        pieces.sort_by(|one, other| key(one.info).cmp(&key(other.info)).then(one.item.cmp(&other.item)));
        keep_one_of_each(&mut pieces);
        pieces.truncate(MAX_PIECES);
        let mut pool = Self { pieces, training };
        pool.take_optimizer_state();
        pool.rank_data();
        pool
    }

    pub(super) fn get(&self, piece: usize) -> Option<&Piece<'a>> {
        self.pieces.get(piece)
    }

    /// The address of the header of a piece.
    pub(super) fn header(&self, piece: usize) -> u64 {
        self.get(piece).map_or(0, |piece| piece.info.header.0)
    }

    /// Tensors that training keeps for a piece.
    pub(super) fn training(&self, piece: usize) -> &[Training] {
        self.get(piece).and_then(|piece| self.training.get(&piece.item)).map_or(&[], Vec::as_slice)
    }

    /// The pieces of each shape and type, those that are learned apart from the others.
    fn by_shape(&self) -> BTreeMap<(Vec<u64>, String), Group> {
        let mut groups: BTreeMap<_, Group> = BTreeMap::new();
        for (index, piece) in self.pieces.iter().enumerate() {
            let group = groups.entry((piece.info.shape.clone(), piece.info.dtype.label().to_owned())).or_default();
            if piece.learned { group.0.push(index) } else { group.1.push(index) }
        }
        groups
    }

    /// Takes out what an optimizer keeps. It keeps the same number of tensors for each parameter, so the weights tell how
    /// many there are. Of more tensors than that, those next to a parameter were allocated with it: they are running
    /// averages.
    fn take_optimizer_state(&mut self) {
        let groups = self.by_shape();
        let mut votes = [0usize; MAX_STATE + 1];
        for ((shape, _), (learned, plain)) in &groups {
            let count = plain.len().checked_div(learned.len()).filter(|_| shape.len() > 1);
            if let Some(vote) = count.and_then(|count| votes.get_mut(count)) {
                *vote += learned.len();
            }
        }
        // Of equal votes, the smaller number.
        let best = votes.iter().enumerate().max_by_key(|(count, vote)| (**vote, std::cmp::Reverse(*count)));
        let state = best.map_or(0, |(count, _)| count);
        let mut taken = BTreeSet::new();
        for (learned, mut plain) in groups.into_values() {
            let wanted = state.saturating_mul(learned.len());
            if wanted == 0 || plain.len() < wanted {
                continue;
            }
            if plain.len() > wanted {
                let headers: Vec<u64> = learned.iter().map(|index| self.header(*index)).collect();
                plain.sort_by_key(|index| (std::cmp::Reverse(nearest(&headers, self.header(*index))), *index));
                plain.truncate(wanted);
                plain.sort_unstable();
            }
            taken.extend(plain.iter().copied());
            for (chunk, of) in plain.chunks(state).zip(&learned) {
                let Some(of) = self.get(*of).map(|piece| piece.item) else { continue };
                let items = chunk.iter().filter_map(|index| self.get(*index)).map(|piece| piece.item);
                let kept = items.enumerate().map(|(number, item)| Training {
                    item,
                    of,
                    kind: TrainingKind::Optimizer(number),
                    rivals: learned.len(),
                });
                let kept: Vec<Training> = kept.collect();
                self.training.entry(of).or_default().extend(kept);
            }
        }
        let mut index = 0..;
        self.pieces.retain(|_| index.next().is_some_and(|index| !taken.contains(&index)));
    }

    fn rank_data(&mut self) {
        let mut order: Vec<usize> = (0..self.pieces.len()).collect();
        order.sort_by_key(|index| (self.get(*index).map(|piece| piece.info.data), *index));
        for (rank, index) in order.into_iter().enumerate() {
            if let Some(piece) = self.pieces.get_mut(index) {
                piece.data_rank = rank;
            }
        }
    }
}

/// Pieces that are learned, and the others.
type Group = (Vec<usize>, Vec<usize>);

/// The distance from an address to the nearest of a sorted list.
fn nearest(sorted: &[u64], address: u64) -> u64 {
    let after = sorted.partition_point(|at| *at < address);
    let before = after.checked_sub(1);
    let near = [Some(after), before].into_iter().flatten().filter_map(|index| sorted.get(index));
    near.map(|at| at.abs_diff(address)).min().unwrap_or(u64::MAX)
}

fn key(info: &TensorInfo) -> (u64, u64, u64, &[u64], &str) {
    (info.header.0, info.data.0, info.storage.0, &info.shape, info.dtype.label())
}

/// Whether it can be a part of a layer.
fn is_usable(info: &TensorInfo) -> bool {
    let count = info.shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
    let is_number = match info.shape.len() {
        0 => info.dtype.label() == COUNTER,
        dims => dims <= MAX_DIMS && FLOATS.contains(&info.dtype.label()),
    };
    is_number && info.form == Form::Strided && count.is_some_and(|count| count > 0 && count < 1 << 60)
}

/// Of tensors with the same first element (views, a detached copy of a parameter), keeps the one that is learned, else
/// the largest, else the first.
fn keep_one_of_each(pieces: &mut Vec<Piece<'_>>) {
    let rank = |piece: &Piece<'_>| (piece.learned, piece.info.shape.iter().product::<u64>());
    let mut best: HashMap<u64, usize> = HashMap::new();
    for (index, piece) in pieces.iter().enumerate() {
        let first = best.entry(piece.info.data.0).or_insert(index);
        if pieces.get(*first).is_some_and(|kept| rank(piece) > rank(kept)) {
            *first = index;
        }
    }
    let mut index = 0..;
    pieces.retain(|piece| {
        let index = index.next();
        piece.info.data.0 == 0 || best.get(&piece.info.data.0).copied() == index
    });
}
