//! Voting for an offset in a structure of the dump: what the inference of layouts is made of.

use std::cmp::Reverse;

use super::read::WORD;
use crate::addr::VirtAddr;
use crate::cpython::Objects;

/// Words of a structure, as far as they can be read.
#[derive(Clone)]
pub(super) struct Structure {
    pub(super) at: VirtAddr,
    words: Vec<u64>,
}

impl Structure {
    pub(super) fn read(objects: &Objects<'_>, at: VirtAddr, bytes: i64) -> Self {
        let count = bytes.unsigned_abs() / WORD;
        let words = objects.words(at, count).unwrap_or_else(|_| {
            // Only a part of it is there.
            (0..bytes).step_by(WORD as usize).map_while(|offset| objects.word(at, offset).ok()).collect()
        });
        Self { at, words }
    }

    pub(super) fn word(&self, offset: i64) -> Option<u64> {
        self.words.get(index(offset)?).copied()
    }

    pub(super) fn words(&self, offset: i64, count: u64) -> Option<&[u64]> {
        let start = index(offset)?;
        self.words.get(start..start.checked_add(usize::try_from(count).ok()?)?)
    }

    pub(super) fn byte(&self, offset: i64) -> Option<u8> {
        self.word(offset).map(|word| (word >> (8 * (offset % WORD as i64))) as u8)
    }

    pub(super) fn short(&self, offset: i64) -> Option<u16> {
        self.word(offset).map(|word| (word >> (8 * (offset % WORD as i64))) as u16)
    }
}

/// Which word of a structure an offset lies in.
fn index(offset: i64) -> Option<usize> {
    Some(usize::try_from(offset).ok()? / WORD as usize)
}

/// The offset of every word of a structure of that many bytes.
pub(super) fn word_offsets(bytes: i64) -> impl Iterator<Item = i64> + Clone {
    (0..bytes).step_by(WORD as usize)
}

/// Votes for an offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Votes {
    /// Tensors that agree.
    pub(super) agree: usize,
    /// Those whose agreement chance would not give.
    pub(super) significant: usize,
}

impl Votes {
    /// Of every tensor: `None` if it disagrees, or whether it tells something.
    pub(super) fn count(votes: impl Iterator<Item = Option<bool>>) -> Self {
        votes.flatten().fold(Self::default(), |sum, significant| Self {
            agree: sum.agree + 1,
            significant: sum.significant + usize::from(significant),
        })
    }
}

/// The candidate with most votes; among equals the one at the least distance. `None` without a significant vote.
pub(super) fn elect<T>(candidates: impl Iterator<Item = (T, u64, Votes)>) -> Option<(T, Votes)> {
    let mut best: Option<(T, u64, Votes)> = None;
    for (candidate, distance, votes) in candidates.filter(|(.., votes)| votes.significant > 0) {
        let key = |distance: u64, votes: Votes| (votes, Reverse(distance));
        if best.as_ref().is_none_or(|(_, d, v)| key(distance, votes) > key(*d, *v)) {
            best = Some((candidate, distance, votes));
        }
    }
    best.map(|(candidate, _, votes)| (candidate, votes))
}
