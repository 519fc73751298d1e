//! The hits that a scan keeps: all of them, or at most as many as its limits allow, whatever a hostile dump holds.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Hit;
use crate::addr::PhysAddr;

/// The most hits that a scan keeps. Without a limit it keeps all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Of one signature in one frame. It is halved, down to 1, for as long as the limit of the whole dump is exceeded, so that
    /// frames full of hits don't hide what other frames hold.
    pub per_frame: Option<usize>,
    /// In the whole dump: those whose anchors have the lowest addresses.
    pub total: Option<usize>,
}

/// Hits on their way from the threads to the result, which is the same in whatever order the parts of memory come.
pub(super) struct Collector {
    /// The most hits to keep.
    total: Option<usize>,
    state: Mutex<State>,
}

struct State {
    /// The hits of each part of memory, by the address at which it begins.
    parts: BTreeMap<PhysAddr, Vec<Hit>>,
    /// Hits in the parts.
    kept: usize,
    /// Hits that were added.
    found: usize,
    per_frame: Option<usize>,
}

impl Collector {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State { parts: BTreeMap::new(), kept: 0, found: 0, per_frame: limits.per_frame };
        Self { total: limits.total, state: Mutex::new(state) }
    }

    /// Adds the hits whose anchors are in the part of memory that begins at `start`.
    pub(super) fn add(&self, start: PhysAddr, mut hits: Vec<Hit>) {
        if hits.is_empty() {
            return;
        }
        let found = hits.len();
        hits.shrink_to_fit();
        // Most of it while others can add theirs.
        let most = self.state().per_frame;
        thin(&mut hits, most);
        let mut state = self.state();
        if state.per_frame != most {
            thin(&mut hits, state.per_frame);
        }
        state.found += found;
        state.kept += hits.len();
        state.parts.insert(start, hits);
        if let Some(total) = self.total {
            state.cut(total);
        }
    }

    /// The hits, sorted, and how many were left out.
    pub(super) fn finish(self) -> (Vec<Hit>, usize) {
        let State { parts, kept, found, .. } = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let most = self.total.unwrap_or(usize::MAX).min(kept);
        let mut all = Vec::with_capacity(most);
        for mut hits in parts.into_values() {
            let left = most - all.len();
            if hits.len() > left {
                hits.sort_unstable_by_key(|hit| (hit.anchor, *hit));
                hits.truncate(left);
            }
            all.append(&mut hits);
        }
        rayon::slice::ParallelSliceMut::par_sort_unstable(&mut *all);
        let left_out = found - all.len();
        (all, left_out)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Leaves out hits until no more than `total` are kept beside those of one part.
    ///
    /// What is left out does not depend on the order of the parts: the limit per frame is halved only if some of them exceed
    /// `total`, so that all do; and the last part goes only if those before it have enough.
    fn cut(&mut self, total: usize) {
        while self.kept > total
            && let Some(most) = self.per_frame.filter(|most| *most > 1)
        {
            self.per_frame = Some(most / 2);
            self.parts.values_mut().for_each(|hits| thin(hits, Some(most / 2)));
            self.kept = self.parts.values().map(Vec::len).sum();
        }
        while let Some(last) = self.parts.last_entry().filter(|last| self.kept - last.get().len() >= total) {
            self.kept -= last.remove().len();
        }
    }
}

/// Keeps the first `most` hits of each signature in each frame, if that is set.
fn thin(hits: &mut Vec<Hit>, most: Option<usize>) {
    let Some(most) = most.filter(|most| hits.len() > *most) else { return };
    hits.sort_unstable_by_key(|hit| (hit.signature, hit.anchor, hit.address));
    let (mut last, mut count) = (None, 0);
    hits.retain(|hit| {
        let place = Some((hit.signature, hit.anchor.frame()));
        count = if last == place { count + 1 } else { 1 };
        last = place;
        count <= most
    });
    hits.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = 4096;

    fn hit(anchor: u64, signature: u16) -> Hit {
        let at = PhysAddr(anchor);
        Hit { address: at, anchor: at, value: 0, signature, tested: 0, deferred: 0 }
    }

    /// Parts of four frames; the first eight parts have a hit in every slot, and every part has one of another signature.
    fn parts() -> Vec<(PhysAddr, Vec<Hit>)> {
        let part = |number: u64| {
            let start = number * 4 * FRAME;
            let full = (start..start + 4 * FRAME).step_by(8).filter(|_| number < 8);
            let hits = full.map(|at| hit(at, 0)).chain([hit(start + 0x128, 1)]);
            (PhysAddr(start), hits.collect())
        };
        (0..20).map(part).collect()
    }

    fn keep(parts: impl Iterator<Item = (PhysAddr, Vec<Hit>)>, limits: Limits) -> (Vec<Hit>, usize) {
        let collector = Collector::new(limits);
        parts.for_each(|(start, hits)| collector.add(start, hits));
        collector.finish()
    }

    #[test]
    fn the_limits_are_kept_and_the_order_of_parts_does_not_matter() {
        let full = 8 * 4 * 512;
        let mut all: Vec<Hit> = parts().into_iter().flat_map(|(_, hits)| hits).collect();
        all.sort_unstable();
        for per_frame in [None, Some(64), Some(3)] {
            for total in [None, Some(0), Some(1), Some(51), Some(52), Some(500), Some(5000), Some(full + 20)] {
                let limits = Limits { per_frame, total };
                let (hits, left_out) = keep(parts().into_iter(), limits);
                assert_eq!(hits.len() + left_out, all.len(), "{limits:?}");
                assert!(hits.is_sorted() && hits.len() <= total.unwrap_or(usize::MAX), "{limits:?}");
                // A permutation that neither begins nor ends with what the cut leaves.
                let mixed = || (0..20).map(|number| parts().swap_remove(number * 7 % 20));
                assert_eq!(keep(parts().into_iter().rev(), limits), (hits.clone(), left_out), "{limits:?}");
                assert_eq!(keep(mixed(), limits), (hits.clone(), left_out), "{limits:?}");
                if per_frame.is_none() {
                    assert_eq!(hits, all[..hits.len()], "{limits:?}");
                    assert_eq!(hits.len(), all.len().min(total.unwrap_or(usize::MAX)), "{limits:?}");
                }
            }
        }
    }

    #[test]
    fn frames_full_of_hits_hide_no_others_while_one_hit_per_frame_fits() {
        let lone = |hits: &[Hit]| hits.iter().filter(|hit| hit.signature == 1).count();
        // 32 frames with the most of 64, 32, …: 32 * 8 + 20 is the first sum that fits.
        let (hits, _) = keep(parts().into_iter(), Limits { per_frame: Some(64), total: Some(300) });
        assert_eq!((hits.len(), lone(&hits)), (32 * 8 + 20, 20));
        let (hits, _) = keep(parts().into_iter(), Limits { per_frame: Some(64), total: Some(52) });
        assert_eq!((hits.len(), lone(&hits)), (52, 20));
        let (hits, _) = keep(parts().into_iter(), Limits { per_frame: Some(64), total: Some(51) });
        assert_eq!((hits.len(), lone(&hits)), (51, 19));
    }

    /// However much comes, no more is held than the limit and one part.
    #[test]
    fn memory_is_bounded_on_the_way() {
        let collector = Collector::new(Limits { per_frame: None, total: Some(1000) });
        for (start, hits) in parts().into_iter().rev() {
            collector.add(start, hits);
            assert!(collector.state().parts.values().map(Vec::len).sum::<usize>() < 1000 + 4 * 512 + 1);
        }
    }
}
