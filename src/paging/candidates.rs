//! Page tables of a dump that lies elsewhere: those who have its parts say what is needed to rule most frames out, and the others
//! are fetched together.

use std::collections::HashMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::tables::{is_leaf, table_entries};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::{PhysicalMemory, Question, ShardMemory, ShardPart};
use crate::scan::FrameClasses;
use crate::signature::Mmu;

/// What the entries of a frame say, read as a table of some level, as far as that can rule it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entries {
    /// Entries that are present.
    pub(super) present: u64,
    /// Those of them that point to tables.
    pub(super) pointers: u64,
    /// The first of these: enough that the frame is no table if all of them are wrong.
    first: Vec<u64>,
}

impl Entries {
    fn new(mmu: &Mmu, level: u8, bytes: &[u8], tolerated: u64) -> Option<Self> {
        let rules = mmu.level(level)?;
        let present = || table_entries(bytes).filter(|entry| entry & mmu.present != 0);
        let pointers = || present().filter(|entry| !is_leaf(mmu, rules, *entry));
        let count = present().count() as u64;
        let first = pointers().take((count / tolerated.max(1) + 1) as usize).map(|entry| entry & mmu.address);
        Some(Self { present: count, pointers: pointers().count() as u64, first: first.collect() })
    }

    /// Where the first pointers lead.
    pub(super) fn targets(&self) -> impl Iterator<Item = PhysAddr> + '_ {
        self.first.iter().map(|target| PhysAddr(*target))
    }

    /// Whether there are no pointers but the first.
    pub(super) fn is_all(&self) -> bool {
        self.first.len() as u64 == self.pointers
    }
}

/// The entries of frames that could be tables.
#[derive(Serialize, Deserialize)]
pub(crate) struct CandidateTables {
    mmu: Mmu,
    /// One wrong pointer in so many entries is forgiven.
    tolerated: u64,
    /// Frames, each as the distance in bytes from the one before, with its class.
    frames: Vec<(u64, u8)>,
    /// The levels that are asked about, as bits of classes.
    levels: u8,
}

impl Question for CandidateTables {
    const NAME: &'static str = "candidates for page tables";
    /// Of each frame, for the levels that it could be of: those for which it says the same have one answer.
    type Answer = Vec<OfLevels>;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Self::Answer {
        let mut last = 0u64;
        let add = |(distance, class): &(u64, u8)| {
            last = last.wrapping_add(*distance);
            (PhysAddr(last), class & self.levels)
        };
        let frames: Vec<(PhysAddr, u8)> = self.frames.iter().map(add).collect();
        let of_frame = |(frame, class): (PhysAddr, u8)| {
            let bytes = memory.bytes(frame, FRAME_SIZE).unwrap_or_default();
            let mut found = OfLevels::new();
            for level in (1..=8).filter(|level| class & bit(*level) != 0) {
                let Some(entries) = Entries::new(&self.mmu, level, bytes, self.tolerated) else { continue };
                match found.last_mut() {
                    Some((levels, known)) if *known == entries => *levels |= bit(level),
                    _ => found.push((bit(level), entries)),
                }
            }
            found
        };
        frames.into_par_iter().map(of_frame).collect()
    }
}

/// The entries of a frame for levels, which are bits of classes.
type OfLevels = Vec<(u8, Entries)>;

/// The bit of a level.
fn bit(level: u8) -> u8 {
    1 << (level - 1)
}

/// The entries of the frames of a dump that lies elsewhere that could be tables.
#[derive(Default)]
pub(super) struct KnownEntries(HashMap<PhysAddr, OfLevels>);

impl KnownEntries {
    /// Those of a frame, read as a table of some level.
    pub(super) fn get(&self, frame: PhysAddr, level: u8) -> Option<&Entries> {
        self.0.get(&frame)?.iter().find(|(levels, _)| levels & bit(level) != 0).map(|(_, entries)| entries)
    }
}

/// What rules frames of a dump that lies elsewhere out: the entries of all that could be tables of the levels in `mask`. None of any
/// other dump.
pub(super) fn entries_of_candidates(
    memory: &PhysicalMemory,
    mmu: &Mmu,
    classes: &FrameClasses,
    mask: u8,
    tolerated: u64,
) -> KnownEntries {
    let Some(remote) = memory.remote() else { return KnownEntries::default() };
    let candidates: Vec<(PhysAddr, u8)> = classes.with(mask).collect();
    let question = |shard: &ShardPart| {
        let mut last = 0u64;
        let mut distance = |frame: PhysAddr| frame.0.wrapping_sub(std::mem::replace(&mut last, frame.0));
        let here = shard.of(&candidates, |(frame, _)| *frame);
        let frames: Vec<(u64, u8)> = here.map(|(frame, class)| (distance(*frame), *class)).collect();
        let question = CandidateTables { mmu: mmu.clone(), tolerated, frames, levels: mask };
        (!question.frames.is_empty()).then(|| (shard.ranges.clone(), question))
    };
    let mut found = HashMap::new();
    for (shard, answer) in remote.ask(question, &|_| ()) {
        found.extend(shard.of(&candidates, |(frame, _)| *frame).map(|(frame, _)| *frame).zip(answer));
    }
    KnownEntries(found)
}
