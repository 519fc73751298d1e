//! The scan and the sweep of a dump that lies elsewhere: questions to those who have its parts.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::collector::{Collector, Limits};
use super::{Backend, FrameClasses, Hit, Keep, PointerSet, ScanResult, scan_within, sweep};
use crate::addr::{FRAME_SIZE, PhysAddr, is_in};
use crate::dump::{Question, RemoteMemory, ShardMemory, ShardPart};
use crate::signature::Signatures;

/// What a scan finds in a part of a dump.
#[derive(Serialize, Deserialize)]
pub(crate) struct Scan {
    signatures: Signatures,
    limits: Limits,
    /// Start and end of what is to be scanned: the memory of the question goes on a little.
    ranges: Vec<[u64; 2]>,
}

/// The answer to it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Scanned {
    hits: Vec<Hit>,
    left_out: usize,
    /// Classes of the whole frames of each range, each with how many frames in a row have it.
    classes: Vec<Vec<(u8, u64)>>,
}

impl Question for Scan {
    const NAME: &'static str = "scan";
    type Answer = Scanned;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Scanned {
        let Self { signatures, limits, ranges } = self;
        let ScanResult { mut hits, frames, left_out } =
            scan_within(memory, &signatures, Backend::detect_best(), limits, Keep::Nothing, &|_| ());
        let ranges = from_pairs(&ranges);
        hits.retain(|hit| is_in(&ranges, hit.anchor));
        Scanned { hits, left_out, classes: ranges.iter().map(|range| frames.runs(range.clone())).collect() }
    }
}

/// [`scan_within`] by those who have the memory.
pub(super) fn scan(
    remote: &RemoteMemory<'_>,
    signatures: &Signatures,
    limits: Limits,
    progress: &(dyn Fn(u64) + Sync),
) -> ScanResult {
    let memory = remote.memory();
    let longest = signatures.needles().iter().map(|needle| needle.bytes.len() as u64).max().unwrap_or_default();
    let question = |shard: &ShardPart| {
        let ranges = shard.ranges.iter().map(|range| [range.start.0, range.end.0]).collect();
        Some((shard.with_rest(memory, longest), Scan { signatures: signatures.clone(), limits, ranges }))
    };
    let answers = remote.ask(question, &|shard| progress(shard.size()));
    let (collector, mut frames, mut left_out) = (Collector::new(limits), FrameClasses::unclassified(memory), 0);
    for (shard, Scanned { hits, left_out: more, classes }) in answers {
        left_out += more;
        for (range, runs) in shard.ranges.iter().zip(classes) {
            frames.fill(range.start, &runs);
        }
        // The parts of different shards begin at different addresses.
        collector.add(shard.ranges.first().map_or(PhysAddr(0), |range| range.start), hits);
    }
    let (hits, more) = collector.finish();
    ScanResult { hits, frames, left_out: left_out + more }
}

/// What a sweep finds in a part of a dump.
#[derive(Serialize, Deserialize)]
pub(crate) struct Sweep {
    /// Start and end of each run of frames.
    runs: Vec<[u64; 2]>,
    values: Vec<u64>,
}

impl Question for Sweep {
    const NAME: &'static str = "sweep";
    type Answer = Slots;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Slots {
        let (runs, values) = (from_pairs(&self.runs), PointerSet::new(&self.values));
        Slots::new(&sweep(memory, &runs, &values, Backend::detect_best(), &|_| ()))
    }
}

/// [`sweep`] by those who have the memory.
pub(super) fn sweep_remote(
    remote: &RemoteMemory<'_>,
    runs: &[Range<PhysAddr>],
    values: &PointerSet,
    progress: &(dyn Fn(u64) + Sync),
) -> Vec<(PhysAddr, u64)> {
    ask_about_runs(remote, runs, progress, |runs| Sweep { runs, values: values.values().to_vec() })
}

/// Asks about runs of frames, each shard about its own; what all answers have together, sorted by address.
pub(crate) fn ask_about_runs<Q: Question<Answer = Slots>>(
    remote: &RemoteMemory<'_>,
    runs: &[Range<PhysAddr>],
    progress: &(dyn Fn(u64) + Sync),
    question: impl Fn(Vec<[u64; 2]>) -> Q,
) -> Vec<(PhysAddr, u64)> {
    let ask = |shard: &ShardPart| {
        let runs = shard.clip(runs);
        (!runs.is_empty()).then(|| (shard.ranges.clone(), question(to_pairs(&runs))))
    };
    let bytes = |shard: &ShardPart| shard.clip(runs).iter().map(|run| run.end.0 - run.start.0).sum();
    let answers = remote.ask(ask, &|shard| progress(bytes(shard)));
    let mut found: Vec<(PhysAddr, u64)> = answers.iter().flat_map(|(_, slots)| slots.iter()).collect();
    found.par_sort_unstable();
    found
}

/// Start and end of each run.
pub(crate) fn to_pairs(runs: &[Range<PhysAddr>]) -> Vec<[u64; 2]> {
    runs.iter().map(|run| [run.start.0, run.end.0]).collect()
}

/// The same back.
pub(crate) fn from_pairs(pairs: &[[u64; 2]]) -> Vec<Range<PhysAddr>> {
    pairs.iter().map(|[start, end]| PhysAddr(*start)..PhysAddr(*end)).collect()
}

/// Addresses of slots and their values, on their way from a worker: ascending addresses as distances, and each value once.
#[derive(Serialize, Deserialize)]
pub(crate) struct Slots {
    values: Vec<u64>,
    /// Distance in bytes from the slot before, and position of the value.
    slots: Vec<(u64, u32)>,
}

impl Slots {
    pub(crate) fn new(found: &[(PhysAddr, u64)]) -> Self {
        let mut values: Vec<u64> = found.iter().map(|(_, value)| *value).collect();
        values.sort_unstable();
        values.dedup();
        let mut last = 0u64;
        let slots = found.iter().map(|(at, value)| {
            let distance = at.0.wrapping_sub(std::mem::replace(&mut last, at.0));
            (distance, values.binary_search(value).unwrap_or_default() as u32)
        });
        Self { slots: slots.collect(), values: values.clone() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PhysAddr, u64)> + '_ {
        self.slots.iter().scan(0u64, |last, (distance, value)| {
            *last = last.wrapping_add(*distance);
            Some((PhysAddr(*last), self.values.get(*value as usize).copied().unwrap_or_default()))
        })
    }
}

impl FrameClasses {
    /// The classes of the whole frames in a range of memory, each with how many frames in a row have it.
    fn runs(&self, range: Range<PhysAddr>) -> Vec<(u8, u64)> {
        let first = range.start.0.checked_next_multiple_of(FRAME_SIZE).unwrap_or(range.end.0);
        let frames = (first..range.end.frame().0).step_by(FRAME_SIZE as usize);
        let mut runs: Vec<(u8, u64)> = Vec::new();
        for class in frames.map(|frame| self.get(PhysAddr(frame)).unwrap_or_default()) {
            match runs.last_mut() {
                Some((last, count)) if *last == class => *count += 1,
                _ => runs.push((class, 1)),
            }
        }
        runs
    }
}
