//! Whether one weight can follow another one, and what speaks for it.

use super::pool::Pool;
use super::unit::{Unit, UnitKind};
use super::{Evidence, Link};

/// Shares of a score: what the sizes alone give, and what each hint adds. Sizes decide; hints only tell apart what fits
/// equally well.
const SIZES: f64 = 0.55;
const HEADER_ORDER: f64 = 0.2;
const DATA_ORDER: f64 = 0.1;
const SAME_TYPE: f64 = 0.05;
const SAME_TRAINING: f64 = 0.1;
/// Weights in between that halve the hint of an order.
const HALF_AT: f64 = 2.0;
/// The hint of an order that is the wrong way round.
const BACKWARDS: f64 = 0.4;
/// The factor for a weight that only its shape says is one, where most others have a bias, a norm or a gradient: it is
/// rather an activation.
const BARE: f64 = 0.45;
/// A size of 1 fits by chance.
const SIZE_ONE: f64 = 0.5;
/// The largest kernel along a dimension that is not doubted: patches of vision transformers have 16 or less in most cases.
const LARGE_KERNEL: u64 = 16;
/// The factor beyond that.
const TOO_LARGE_KERNEL: f64 = 0.5;
/// Weights in between two branches, or between the ends of a shortcut.
const BRANCH: usize = 2;
/// Weights in the block around which a shortcut goes, at most.
pub(super) const BLOCK: usize = 4;
/// The most positions that are flattened: 256 by 256.
const MAX_POSITIONS: u64 = 1 << 16;

/// The hints for units of one pool.
pub(super) struct Fitter<'a> {
    pool: &'a Pool<'a>,
    units: &'a [Unit],
    /// Ranks of the units by the data of their weights.
    data_ranks: Vec<usize>,
    /// The order in which the last forward pass used the weights, where it is known.
    use_ranks: Vec<Option<usize>>,
    /// The support that most units have: something that training keeps, or else a bias, a norm or a recorded gradient.
    is_trained: bool,
    bare_is_odd: bool,
}

impl<'a> Fitter<'a> {
    pub(super) fn new(pool: &'a Pool<'a>, units: &'a [Unit]) -> Self {
        let piece = |unit: usize| units.get(unit).and_then(|unit| pool.get(unit.weight));
        let data_ranks = ranks(units.len(), |unit| piece(unit).map(|piece| piece.data_rank));
        let last_use = |unit: usize| piece(unit).and_then(|piece| piece.last_use);
        let by_use = ranks(units.len(), last_use).into_iter().enumerate();
        let use_ranks = by_use.map(|(unit, rank)| last_use(unit).map(|_| rank)).collect();
        let most = |has: &dyn Fn(&Unit) -> bool| units.iter().filter(|unit| has(unit)).count() * 2 > units.len();
        let is_trained = most(&|unit| !pool.training(unit.weight).is_empty());
        let is_learned = |unit: &Unit| pool.get(unit.weight).is_some_and(|piece| piece.learned);
        let bare_is_odd = is_trained || most(&|unit| unit.has_vectors || is_learned(unit));
        Self { pool, units, data_ranks, use_ranks, is_trained, bare_is_odd }
    }

    /// The link from one unit to another; `None` if the second cannot follow the first.
    pub(super) fn link(&self, from: usize, to: usize) -> Option<Link> {
        let (first, second) = (self.units.get(from)?, self.units.get(to)?);
        if from == to {
            return None;
        }
        let (sizes, fit) = self.sizes(from, to)?;
        let mut evidence = vec![sizes];
        let mut score = SIZES;
        let mut order = |share: f64, one: usize, other: usize, hint: fn(usize) -> Evidence| {
            let between = one.abs_diff(other).saturating_sub(1);
            let near = HALF_AT / (HALF_AT + between as f64);
            if one < other {
                evidence.push(hint(between));
                score += share * near;
            } else {
                score += share * near * BACKWARDS;
            }
        };
        let of_both = |ranks: &[Option<usize>]| Some((ranks.get(from).copied()??, ranks.get(to).copied()??));
        match (of_both(&self.use_ranks), self.data_ranks.get(from), self.data_ranks.get(to)) {
            // The order of allocation says nothing beside that.
            (Some((one, other)), ..) => {
                order(HEADER_ORDER + DATA_ORDER, one, other, |between| Evidence::OrderOfUse { between });
            }
            (None, one, other) => {
                order(HEADER_ORDER, from, to, |between| Evidence::HeaderOrder { between });
                if let (Some(one), Some(other)) = (one, other) {
                    order(DATA_ORDER, *one, *other, |between| Evidence::DataOrder { between });
                }
            }
        }
        let (one, other) = (self.pool.get(first.weight)?, self.pool.get(second.weight)?);
        if one.info.dtype == other.info.dtype {
            evidence.push(Evidence::SameType);
            score += SAME_TYPE;
        }
        let kept = |unit: &Unit| self.pool.training(unit.weight).len();
        if one.learned == other.learned && kept(first) == kept(second) {
            if kept(first) > 0 {
                evidence.push(Evidence::SameTraining { tensors: kept(first) });
            }
            score += SAME_TRAINING;
        }
        let score = score * fit * self.plausible(first) * self.plausible(second);
        Some(Link { score, evidence })
    }

    fn plausible(&self, unit: &Unit) -> f64 {
        let is_learned = self.pool.get(unit.weight).is_some_and(|piece| piece.learned);
        let is_trained = !self.pool.training(unit.weight).is_empty();
        let is_bare = !unit.has_vectors && !is_trained && (self.is_trained || !is_learned);
        let bare = if self.bare_is_odd && is_bare { BARE } else { 1.0 };
        let kernel = if unit.kernel.iter().any(|size| *size > LARGE_KERNEL) { TOO_LARGE_KERNEL } else { 1.0 };
        bare * kernel
    }

    /// How the sizes of two units fit, and how much that says.
    fn sizes(&self, from: usize, to: usize) -> Option<(Evidence, f64)> {
        let (first, second) = (self.units.get(from)?, self.units.get(to)?);
        let (given, taken) = (first.outputs, second.inputs);
        let chance = if given == 1 || taken == 1 { SIZE_ONE } else { 1.0 };
        let is_branch = from.abs_diff(to) <= BRANCH;
        match (first.kind, second.kind) {
            (UnitKind::Conv(one), UnitKind::Conv(other)) if one != other => None,
            (UnitKind::Conv(_), UnitKind::Conv(_)) if given == taken => Some((Evidence::Sizes { size: given }, chance)),
            (UnitKind::Conv(_), UnitKind::Conv(_)) => {
                if let Some(shortcut) = self.shortcut(from, to) {
                    return Some(shortcut);
                }
                if first.inputs == taken && is_branch {
                    return Some((Evidence::SameInputs { size: taken }, 0.6 * chance));
                }
                let groups = given.checked_div(taken).filter(|groups| groups.checked_mul(taken) == Some(given))?;
                if groups < 2 || !second.outputs.is_multiple_of(groups) {
                    return None;
                }
                // One group for each channel is common, anything in between is rare.
                let fit = if taken == 1 { 0.85 } else { 0.7 };
                Some((Evidence::Groups { channels: given, groups }, fit))
            }
            (UnitKind::Conv(dims), _) => {
                let positions = taken.checked_div(given).filter(|count| count.checked_mul(given) == Some(taken))?;
                let exponent = u32::try_from(dims).ok()?;
                let fit = match positions {
                    0 => return None,
                    1 => return Some((Evidence::Sizes { size: given }, 0.9 * chance)),
                    positions if positions > MAX_POSITIONS => return None,
                    // Inputs are square as a rule.
                    positions if is_power(positions, exponent) => 0.95,
                    _ => 0.65,
                };
                Some((Evidence::Flatten { channels: given, positions }, fit * chance))
            }
            // A convolution over the positions of a sequence.
            (_, UnitKind::Conv(1)) if given == taken => Some((Evidence::Sizes { size: given }, 0.7 * chance)),
            (_, UnitKind::Conv(_)) => None,
            _ if given == taken => Some((Evidence::Sizes { size: given }, chance)),
            (UnitKind::Linear, _) if first.inputs == taken && is_branch => {
                let is_table = first.bias.is_none() && first.after.is_empty() && from < to;
                let fit = if is_table { 0.8 } else { 0.6 };
                Some((Evidence::SameInputs { size: taken }, fit * chance))
            }
            _ => None,
        }
    }

    /// Whether one of the two is a convolution with a kernel of size 1 around the block that the other one begins or ends.
    fn shortcut(&self, from: usize, to: usize) -> Option<(Evidence, f64)> {
        let (first, second) = (self.units.get(from)?, self.units.get(to)?);
        let is_pointwise = |unit: &Unit| unit.kernel.iter().all(|size| *size == 1);
        let found = |unit: &Unit, fit| Some((Evidence::Shortcut { inputs: unit.inputs, outputs: unit.outputs }, fit));
        let near = |at: usize| self.units.get(at.saturating_sub(BLOCK)..at).unwrap_or_default().iter();
        // Made after the block.
        if is_pointwise(second) && second.outputs == first.outputs && from < to {
            let begins = |unit: &Unit| unit.kind == second.kind && unit.inputs == second.inputs;
            if near(to).any(begins) {
                return found(second, 0.95);
            }
        }
        // Made before it.
        if is_pointwise(first) && first.inputs == second.inputs && from < to {
            let rest = self.units.get(to..self.units.len().min(to + BLOCK)).unwrap_or_default();
            let ends = |unit: &Unit| unit.kind == first.kind && unit.outputs == first.outputs;
            if rest.iter().any(ends) {
                return found(first, 0.95);
            }
        }
        None
    }
}

/// The rank of each unit by a key.
fn ranks<K: Ord>(count: usize, key: impl Fn(usize) -> K) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|unit| key(*unit));
    let mut ranks = vec![0; count];
    for (rank, unit) in order.into_iter().enumerate() {
        if let Some(place) = ranks.get_mut(unit) {
            *place = rank;
        }
    }
    ranks
}

/// Whether a number is a power of a whole number with this exponent.
fn is_power(number: u64, exponent: u32) -> bool {
    let root = (number as f64).powf(1.0 / f64::from(exponent.max(1))).round() as u64;
    root.checked_pow(exponent.max(1)) == Some(number)
}
