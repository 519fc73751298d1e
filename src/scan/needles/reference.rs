//! The reference: well-kept crates find the next place where some needle begins.

use aho_corasick::{AhoCorasick, MatchKind};
use memchr::memmem::Finder;

use crate::signature::Needle;

/// A search for needles that is linear in what it looks at, whatever that holds.
pub(super) struct Reference<'a> {
    searcher: Searcher<'a>,
    /// Bytes of the longest needle.
    longest: usize,
}

enum Searcher<'a> {
    None,
    One(Box<Finder<'a>>),
    /// Leftmost-first, because only then does the crate use its vectorised prefilters.
    Many(AhoCorasick),
    /// Too much for the automaton: one after the other.
    Each(Vec<Finder<'a>>),
}

impl<'a> Reference<'a> {
    pub(super) fn new(needles: &[(u16, &'a Needle)]) -> Self {
        let searcher = match needles {
            [] => Searcher::None,
            [(_, one)] => Searcher::One(Box::new(Finder::new(&one.bytes))),
            many => AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostFirst)
                .build(many.iter().map(|(_, needle)| &needle.bytes))
                .map_or_else(
                    |_| Searcher::Each(many.iter().map(|(_, needle)| Finder::new(&needle.bytes)).collect()),
                    Searcher::Many,
                ),
        };
        Self { searcher, longest: needles.iter().map(|(_, needle)| needle.bytes.len()).max().unwrap_or_default() }
    }

    /// Calls `found` with every place before `places` where a needle stands in `bytes`, and the needle's number.
    pub(super) fn find(
        &self,
        needles: &[(u16, &Needle)],
        bytes: &[u8],
        places: usize,
        mut found: impl FnMut(usize, usize),
    ) {
        let end = places.saturating_add(self.longest.saturating_sub(1)).min(bytes.len());
        let bytes = bytes.get(..end).unwrap_or_default();
        let mut from = 0;
        while let Some(next) = bytes.get(from..).and_then(|rest| self.searcher.next(rest)) {
            let at = from + next;
            if at >= places {
                break;
            }
            // The automaton reports one of those that begin here; there may be others.
            let here = bytes.get(at..).unwrap_or_default();
            let standing = needles.iter().enumerate().filter(|(_, (_, needle))| here.starts_with(&needle.bytes));
            standing.for_each(|(number, _)| found(at, number));
            from = at + 1;
        }
    }
}

impl Searcher<'_> {
    /// The next place where some needle begins.
    fn next(&self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::None => None,
            Self::One(finder) => finder.find(bytes),
            Self::Many(automaton) => automaton.find(bytes).map(|found| found.start()),
            Self::Each(finders) => finders.iter().filter_map(|finder| finder.find(bytes)).min(),
        }
    }
}
