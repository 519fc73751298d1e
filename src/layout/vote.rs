//! Structures of the dump vote for a number of their layout.

use std::cmp::Reverse;

/// Votes for a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Votes {
    /// Structures that agree.
    pub(crate) agree: usize,
    /// Those whose agreement chance would not give.
    pub(crate) significant: usize,
}

impl Votes {
    /// Of every structure: `None` if it disagrees, or whether its agreement is significant.
    pub(crate) fn count(votes: impl Iterator<Item = Option<bool>>) -> Self {
        votes.flatten().fold(Self::default(), |sum, significant| Self {
            agree: sum.agree + 1,
            significant: sum.significant + usize::from(significant),
        })
    }

    /// Votes of which each is significant.
    pub(crate) fn significant(count: usize) -> Self {
        Self { agree: count, significant: count }
    }
}

/// The candidate with most votes; among equals the one at the least distance, and then the first. `None` without a
/// significant vote.
pub(crate) fn elect<T>(candidates: impl Iterator<Item = (T, u64, Votes)>) -> Option<(T, Votes)> {
    let mut best: Option<(T, u64, Votes)> = None;
    for (candidate, distance, votes) in candidates.filter(|(.., votes)| votes.significant > 0) {
        let key = |distance: u64, votes: Votes| (votes, Reverse(distance));
        if best.as_ref().is_none_or(|(_, d, v)| key(distance, votes) > key(*d, *v)) {
            best = Some((candidate, distance, votes));
        }
    }
    best.map(|(candidate, _, votes)| (candidate, votes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_votes_win_then_the_significant_ones_then_the_least_distance() {
        let votes = |agree, significant| Votes { agree, significant };
        let elected =
            |candidates: &[(&'static str, u64, Votes)]| elect(candidates.iter().copied()).map(|(name, _)| name);
        assert_eq!(
            elected(&[("chance", 0, votes(9, 0)), ("few", 0, votes(1, 1)), ("most", 8, votes(2, 1))]),
            Some("most")
        );
        assert_eq!(elected(&[("a", 0, votes(2, 1)), ("b", 8, votes(2, 2))]), Some("b"));
        assert_eq!(elected(&[("a", 8, votes(2, 2)), ("b", 0, votes(2, 2)), ("c", 0, votes(2, 2))]), Some("b"));
        assert_eq!(elected(&[("chance", 0, votes(9, 0))]), None);
        assert_eq!(Votes::count([Some(true), None, Some(false)].into_iter()), votes(2, 1));
    }
}
