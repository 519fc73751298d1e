//! The order of layouts by the evidence for each.

/// Candidates with the evidence for them, the one with most first; equals are in the order in which they were given.
#[derive(Debug)]
pub(crate) struct Ranking<K, T>(Vec<(K, T)>);

impl<K: Ord, T> FromIterator<(K, T)> for Ranking<K, T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(candidates: I) -> Self {
        let mut ranked: Vec<(K, T)> = candidates.into_iter().collect();
        ranked.sort_by(|a, b| b.0.cmp(&a.0));
        Self(ranked)
    }
}

impl<K: Ord, T> Ranking<K, T> {
    /// No candidates.
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a candidate, before those with as much evidence.
    pub(crate) fn insert(&mut self, key: K, candidate: T) {
        let place = self.0.partition_point(|(known, _)| *known > key);
        self.0.insert(place, (key, candidate));
    }

    /// All, the best first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.0.iter().map(|(_, candidate)| candidate)
    }

    /// The best, and the evidence for it.
    pub(crate) fn best(&self) -> Option<(&K, &T)> {
        self.0.first().map(|(key, candidate)| (key, candidate))
    }

    /// Those for which there is as much evidence as for the best.
    pub(crate) fn rivals(&self) -> impl DoubleEndedIterator<Item = &T> {
        let equal = self.0.partition_point(|(key, _)| self.0.first().is_some_and(|best| *key >= best.0));
        self.0.get(1..equal).unwrap_or_default().iter().map(|(_, candidate)| candidate)
    }
}

impl<K, T> Ranking<K, T> {
    /// All, the best first.
    pub(crate) fn into_candidates(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, candidate)| candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rivals_have_the_evidence_of_the_best() {
        let ranking: Ranking<u32, &str> =
            [(1, "least"), (3, "a"), (2, "next"), (3, "b"), (3, "c")].into_iter().collect();
        assert_eq!(ranking.best(), Some((&3, &"a")));
        assert_eq!(ranking.rivals().collect::<Vec<_>>(), [&"b", &"c"]);
        assert_eq!(ranking.into_candidates().collect::<Vec<_>>(), ["a", "b", "c", "next", "least"]);
        let mut empty: Ranking<u32, &str> = Ranking::new();
        assert_eq!((empty.best(), empty.rivals().count(), empty.iter().count()), (None, 0, 0));
        for (key, name) in [(2, "a"), (1, "least"), (2, "b"), (3, "best")] {
            empty.insert(key, name);
        }
        assert_eq!(empty.iter().collect::<Vec<_>>(), [&"best", &"b", &"a", &"least"]);
    }
}
