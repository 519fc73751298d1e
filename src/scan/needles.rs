//! Byte needles: every place in a range where one of them stands, overlapping ones included.

use aho_corasick::{AhoCorasick, MatchKind};
use memchr::memmem::Finder;

use super::Hit;
use super::chunk::View;
use super::engine::{is_slot_needle, needle_at};
use crate::addr::PhysAddr;
use crate::signature::{Needle, Signatures};

/// The needles, ready to be searched for.
pub(super) struct Needles<'a> {
    /// Each with the index of its signature.
    needles: Vec<(u16, &'a Needle)>,
    searcher: Searcher<'a>,
    /// Bytes that a search must see past the end of a chunk.
    overlap: usize,
}

/// Finds the next place where some needle begins.
enum Searcher<'a> {
    None,
    One(Box<Finder<'a>>),
    /// Leftmost-first, because only then does the crate use its vectorised prefilters.
    Many(AhoCorasick),
    /// Too much for the automaton: one after the other.
    Each(Vec<Finder<'a>>),
}

impl Searcher<'_> {
    fn find(&self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::None => None,
            Self::One(finder) => finder.find(bytes),
            Self::Many(automaton) => automaton.find(bytes).map(|found| found.start()),
            Self::Each(finders) => finders.iter().filter_map(|finder| finder.find(bytes)).min(),
        }
    }
}

impl<'a> Needles<'a> {
    pub(super) fn new(signatures: &'a Signatures) -> Self {
        let first = u16::try_from(signatures.structures().len()).unwrap_or(u16::MAX);
        let needles: Vec<_> = (first..).zip(signatures.needles()).filter(|(_, n)| !is_slot_needle(n)).collect();
        let searcher = match needles.as_slice() {
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
        let longest = needles.iter().map(|(_, needle)| needle.bytes.len()).max();
        Self { needles, searcher, overlap: longest.map_or(0, |n| n - 1) }
    }

    /// Adds the needles that begin in `chunk`; they may end after it, in the same range.
    pub(super) fn find(&self, range: View<'_>, chunk: View<'_>, hits: &mut Vec<Hit>) {
        let end = chunk.end().0.saturating_add(self.overlap as u64).min(range.end().0);
        let seen = range.part(chunk.start..PhysAddr(end)).bytes;
        let mut from = 0;
        while let Some(found) = seen.get(from..).and_then(|rest| self.searcher.find(rest)) {
            let at = from + found;
            if at >= chunk.bytes.len() {
                break;
            }
            // The automaton reports one of those that begin here; there may be others.
            let address = PhysAddr(chunk.start.0 + at as u64);
            hits.extend(self.needles.iter().filter_map(|(signature, needle)| needle_at(needle, *signature, range, address)));
            from = at + 1;
        }
    }
}
