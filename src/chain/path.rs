//! The best links, joined to paths: no unit has two successors or two predecessors, and no path is a circle.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::Link;
use super::fit::Fitter;
use super::pool::Pool;
use super::unit::Unit;

/// Units before and after a unit, in the order of headers, that are tried as the next one.
const WINDOW: usize = 48;
/// Units further away that are tried as well: those whose inputs are exactly its outputs, nearest first on either side.
const FAR: usize = 8;
/// Links of each unit that are kept; a network that branches to more is not a chain.
const KEPT: usize = 8;
/// The smallest score of a link.
const MIN_SCORE: f64 = 0.5;
/// The score of a link that is no better than none.
const WORTHLESS: f64 = 0.4;
/// The least that a bid adds to a price: scores that differ by less are the same. It bounds the number of bids for a unit.
const STEP: f64 = 0.002;

/// All links that were considered, and the paths of the best ones.
pub(super) struct Paths {
    /// Links from each unit, best first.
    pub(super) from: Vec<Vec<(usize, Link)>>,
    /// Units that could come before each unit, with the score of the link.
    pub(super) to: HashMap<usize, Vec<(usize, f64)>>,
    /// Paths of two or more units, first to last.
    pub(super) found: Vec<Vec<usize>>,
}

impl Paths {
    pub(super) fn new(pool: &Pool<'_>, units: &[Unit]) -> Self {
        let fitter = Fitter::new(pool, units);
        let mut by_inputs: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (index, unit) in units.iter().enumerate() {
            by_inputs.entry(unit.inputs).or_default().push(index);
        }
        let mut from: Vec<Vec<(usize, Link)>> = Vec::with_capacity(units.len());
        let mut order: Vec<(f64, usize, usize)> = Vec::new();
        let mut to: HashMap<usize, Vec<(usize, f64)>> = HashMap::new();
        for (index, unit) in units.iter().enumerate() {
            let window = index.saturating_sub(WINDOW)..units.len().min(index + WINDOW);
            let fits = by_inputs.get(&unit.outputs).map_or(&[][..], Vec::as_slice);
            let at = fits.partition_point(|other| *other < index);
            let far = fits.get(at.saturating_sub(FAR)..fits.len().min(at + FAR)).unwrap_or_default();
            let far = far.iter().copied().filter(|other| !window.contains(other));
            let links = window.clone().chain(far).filter_map(|other| Some((other, fitter.link(index, other)?)));
            let mut links: Vec<(usize, Link)> = links.filter(|(_, link)| link.score >= MIN_SCORE).collect();
            links.sort_by(|(one, link), (other, rival)| rival.score.total_cmp(&link.score).then(one.cmp(other)));
            links.truncate(KEPT);
            for (other, link) in &links {
                order.push((link.score, index, *other));
                to.entry(*other).or_default().push((index, link.score));
            }
            from.push(links);
        }
        order.sort_by(|(one, ..), (other, ..)| other.total_cmp(one));
        let matched = matching(&from);
        let is_matched = |(_, from, to): &&(f64, usize, usize)| matched.get(*from).copied().flatten() == Some(*to);
        // What the others leave over, last.
        let best: Vec<_> = order.iter().filter(is_matched).chain(&order).copied().collect();
        let found = join(units.len(), &best);
        Self { from, to, found }
    }

    pub(super) fn link(&self, from: usize, to: usize) -> Option<&Link> {
        let mut links = self.from.get(from)?.iter();
        links.find(|(other, _)| *other == to).map(|(_, link)| link)
    }
}

/// The successor of each unit such that the sum of all links is near its maximum, by the auction algorithm (D. P. Bertsekas,
/// "The auction algorithm", Annals of Operations Research 14, 1988): units bid for their best successor as much as it is
/// worth more than the second best.
fn matching(links: &[Vec<(usize, Link)>]) -> Vec<Option<usize>> {
    let mut prices: HashMap<usize, f64> = HashMap::new();
    let mut owners: HashMap<usize, usize> = HashMap::new();
    let mut waiting: VecDeque<usize> = (0..links.len()).collect();
    while let Some(unit) = waiting.pop_front() {
        // To have no successor is worth nothing.
        let (mut best, mut second) = ((0.0, None), 0.0);
        for (to, link) in links.get(unit).into_iter().flatten() {
            let value = link.score - WORTHLESS - prices.get(to).copied().unwrap_or_default();
            if value > best.0 {
                second = best.0;
                best = (value, Some(*to));
            } else if value > second {
                second = value;
            }
        }
        let (value, Some(to)) = best else { continue };
        *prices.entry(to).or_default() += value - second + STEP;
        waiting.extend(owners.insert(to, unit));
    }
    let mut matched = vec![None; links.len()];
    for (to, unit) in owners {
        if let Some(place) = matched.get_mut(unit) {
            *place = Some(to);
        }
    }
    matched
}

/// Joins links to paths, the first of the list first.
fn join(count: usize, links: &[(f64, usize, usize)]) -> Vec<Vec<usize>> {
    let (mut next, mut has_previous, mut ends) = (vec![None; count], vec![false; count], Ends::new(count));
    for (_, from, to) in links {
        let (Some(successor), Some(taken)) = (next.get_mut(*from), has_previous.get_mut(*to)) else { continue };
        if successor.is_none() && !*taken && ends.join(*from, *to) {
            *successor = Some(*to);
            *taken = true;
        }
    }
    let mut paths = Vec::new();
    for start in (0..count).filter(|unit| has_previous.get(*unit) == Some(&false)) {
        let path: Vec<usize> = std::iter::successors(Some(start), |unit| next.get(*unit).copied().flatten()).collect();
        if path.len() > 1 {
            paths.push(path);
        }
    }
    paths
}

/// The set of units that each unit is joined with.
struct Ends {
    parent: Vec<usize>,
}

impl Ends {
    fn new(count: usize) -> Self {
        Self { parent: (0..count).collect() }
    }

    fn root(&mut self, mut unit: usize) -> usize {
        while let Some(parent) = self.parent.get(unit).copied().filter(|parent| *parent != unit) {
            let above = self.parent.get(parent).copied().unwrap_or(parent);
            if let Some(place) = self.parent.get_mut(unit) {
                *place = above;
            }
            unit = above;
        }
        unit
    }

    /// Joins the sets of two units; false if they are one already.
    fn join(&mut self, one: usize, other: usize) -> bool {
        let (one, other) = (self.root(one), self.root(other));
        if let Some(place) = self.parent.get_mut(other) {
            *place = one;
        }
        one != other
    }
}
