//! The memory of a dump that lies elsewhere, divided into shards, whose workers can be asked about it.

use std::ops::Range;

use super::question::{Envelope, Question, decode, encode};
use super::remote::{RemoteFile, ShardQuestion};
use super::{MemoryRange, PhysicalMemory};
use crate::addr::{FRAME_SIZE, PhysAddr};

/// The memory of a dump that lies elsewhere, as something that questions can be asked about.
pub struct RemoteMemory<'m> {
    pub(super) file: &'m RemoteFile,
    pub(super) memory: &'m PhysicalMemory,
}

/// What of a memory one shard has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPart {
    /// The part of the file that its worker has.
    part: Range<u64>,
    /// What of the memory is the shard's to search: whole frames, but for the ends of ranges.
    pub ranges: Vec<MemoryRange>,
}

impl<'m> RemoteMemory<'m> {
    /// The BLAKE3 hash of the whole file, each part of it hashed by the worker that has it; `answered` is called with numbers of bytes.
    ///
    /// # Errors
    /// In words: a worker could not be asked.
    pub fn blake3(&self, answered: &(dyn Fn(u64) + Sync)) -> Result<blake3::Hash, String> {
        self.file.blake3(answered)
    }

    /// Bytes of a shard.
    pub fn shard_size(&self) -> u64 {
        self.file.shard
    }

    /// The memory itself.
    pub fn memory(&self) -> &'m PhysicalMemory {
        self.memory
    }

    /// What of this memory each shard has; shards without any are left out.
    fn shards(&self) -> Vec<ShardPart> {
        let (size, shard) = (self.file.len(), self.file.shard);
        let border = |offset: u64| (offset < size).then_some(offset);
        let starts = (0..size).step_by(shard as usize);
        let parts = starts.map(|start| {
            let here = start..border(start.saturating_add(shard)).unwrap_or(size);
            let ranges = self.memory.ranges().iter().filter_map(|range| part_in(range, &here)).collect();
            ShardPart { part: self.file.part(start), ranges }
        });
        parts.filter(|shard| !shard.ranges.is_empty()).collect()
    }

    /// Asks each shard the question that `question` makes for it, about ranges that lie in the shard's part of the file; a shard for
    /// which it makes none is not asked. `answered` is called with each shard that has answered.
    ///
    /// Each answer comes with its shard, in the order of the shards. There are none at all where one could not be had:
    /// [`PhysicalMemory::check`] then fails.
    pub fn ask<Q: Question>(
        &self,
        question: impl Fn(&ShardPart) -> Option<(Vec<MemoryRange>, Q)>,
        answered: &(dyn Fn(&ShardPart) + Sync),
    ) -> Vec<(ShardPart, Q::Answer)> {
        if self.file.is_lost() {
            return Vec::new();
        }
        let (mut asked, mut questions) = (Vec::new(), Vec::new());
        for shard in self.shards() {
            let Some((ranges, body)) = question(&shard) else { continue };
            match encode(&Envelope::new(&ranges, body)) {
                Ok(question) => questions.push(ShardQuestion { name: Q::NAME, part: shard.part.clone(), question }),
                Err(reason) => {
                    self.file.fail(reason);
                    return Vec::new();
                }
            }
            asked.push(shard);
        }
        let answers = self.file.ask(questions, &|index| asked.get(index).into_iter().for_each(answered));
        let decoded: Result<Vec<Q::Answer>, String> =
            answers.and_then(|answers| answers.iter().map(|answer| decode(answer)).collect());
        match decoded {
            Ok(answers) => asked.into_iter().zip(answers).collect(),
            Err(reason) => {
                self.file.fail(reason);
                Vec::new()
            }
        }
    }
}

impl ShardPart {
    /// Bytes of memory that are the shard's.
    pub fn size(&self) -> u64 {
        self.ranges.iter().map(MemoryRange::len).sum()
    }

    /// Those of some things, sorted by their addresses, whose addresses are the shard's.
    pub fn of<'t, T>(&self, sorted: &'t [T], address: impl Fn(&T) -> PhysAddr) -> impl Iterator<Item = &'t T> {
        let position = |limit: PhysAddr| sorted.partition_point(|thing| address(thing) < limit);
        let of_range = |range: &MemoryRange| sorted.get(position(range.start)..position(range.end)).unwrap_or_default();
        self.ranges.iter().map(of_range).collect::<Vec<_>>().into_iter().flatten()
    }

    /// What of these runs of addresses, which are sorted, is the shard's.
    pub fn clip(&self, runs: &[Range<PhysAddr>]) -> Vec<Range<PhysAddr>> {
        let of_range = |range: &MemoryRange| {
            let (start, end) = (range.start, range.end);
            let first = runs.partition_point(|run| run.end <= start);
            let here = runs.iter().skip(first).take_while(move |run| run.start < end);
            here.map(move |run| run.start.max(start)..run.end.min(end))
        };
        self.ranges.iter().flat_map(of_range).collect()
    }

    /// The same with some more of each range at its end: whole frames that hold at least `bytes`, as far as `memory` goes on.
    pub fn with_rest(&self, memory: &PhysicalMemory, bytes: u64) -> Vec<MemoryRange> {
        let bytes = bytes.next_multiple_of(FRAME_SIZE);
        let longer = |part: &MemoryRange| {
            let end = memory.range_of(part.start).map_or(part.end, |range| range.end);
            MemoryRange { end: PhysAddr(part.end.0.saturating_add(bytes).min(end.0)), ..*part }
        };
        self.ranges.iter().map(longer).collect()
    }
}

/// What of a range lies between two offsets in the file, cut at frames.
fn part_in(range: &MemoryRange, offsets: &Range<u64>) -> Option<MemoryRange> {
    let cut = |offset: u64| {
        let end = range.offset.0.saturating_add(range.len());
        match offset {
            offset if offset <= range.offset.0 => range.start,
            offset if offset >= end => range.end,
            offset => PhysAddr(range.start.0 + (offset - range.offset.0)).frame().max(range.start),
        }
    };
    range.part(cut(offsets.start)..cut(offsets.end))
}
