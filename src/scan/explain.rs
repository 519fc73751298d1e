//! Why candidates are no hits: for people who write signatures, or miss a hit.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::chunk::{View, pieces};
use super::scalar;
use super::structures::{self, Rejection};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::signature::Signatures;

/// A place where a structure's anchor passes its tests, and which is no hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RejectedCandidate {
    /// Where the anchor is.
    pub anchor: PhysAddr,
    /// Index of the signature, see [`Signatures::get`].
    pub signature: u16,
    /// What is wrong.
    pub rejection: Rejection,
}

/// Which candidates were rejected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// Those with the lowest addresses, up to the limit; sorted by anchor, then by signature.
    pub candidates: Vec<RejectedCandidate>,
    /// How many there are of each signature (its index) by the field (its index) that failed first;
    /// `None` for too few fields that could be tested.
    pub counts: BTreeMap<(u16, Option<u16>), u64>,
}

impl Explanation {
    fn add(&mut self, candidate: RejectedCandidate) {
        let field = match candidate.rejection {
            Rejection::Field { index, .. } => Some(index),
            Rejection::TooFewTested { .. } => None,
        };
        *self.counts.entry((candidate.signature, field)).or_default() += 1;
        self.candidates.push(candidate);
    }

    /// Both together, where all of `later` is at higher addresses.
    fn merge(mut self, later: Self, limit: usize) -> Self {
        self.candidates.extend(later.candidates);
        self.candidates.truncate(limit);
        for (reason, count) in later.counts {
            *self.counts.entry(reason).or_default() += count;
        }
        self
    }
}

/// Looks at `memory` once more, as the scalar reference does, for the candidates that [`super::scan`] rejected:
/// all are counted, `limit` are listed. Backends differ in how they reject, not in what.
///
/// `progress` is called from the threads that look, with numbers of bytes that add up to the size of the memory.
pub fn explain(
    memory: &PhysicalMemory,
    signatures: &Signatures,
    limit: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Explanation {
    let ranges = memory.ranges().par_iter();
    let views = ranges.flat_map_iter(|range| {
        let whole = View { start: range.start, bytes: memory.range_bytes(range) };
        pieces(range.start..range.end).map(move |piece| whole.part(piece))
    });
    let explained = views.map(|view| {
        let mut explanation = Explanation::default();
        view.frames().for_each(|frame| explain_frame(signatures, frame, &mut explanation));
        explanation.candidates.sort_unstable();
        explanation.candidates.truncate(limit);
        progress(view.bytes.len() as u64);
        explanation
    });
    explained.reduce(Explanation::default, |earlier, later| earlier.merge(later, limit))
}

fn explain_frame(signatures: &Signatures, frame: View<'_>, explanation: &mut Explanation) {
    for (structure, signature) in signatures.structures().iter().zip(0..) {
        for at in scalar::places(structure, frame) {
            if let Some(Err(rejection)) = structures::judge(structure, signature, frame, at) {
                let anchor = PhysAddr(frame.start.0 + at as u64);
                explanation.add(RejectedCandidate { anchor, signature, rejection });
            }
        }
    }
}
