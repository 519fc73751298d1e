//! A part of a dump in the memory of a worker, and the questions that it answers about it.
//!
//! Whoever analyses a dump that lies elsewhere ([`crate::dump::open_remote`]) asks these questions; how they travel is the
//! business of a [`Remote`](crate::dump::Remote).

use std::sync::Arc;

use serde::de::IgnoredAny;

use crate::addr::{FileOffset, PhysAddr};
use crate::cpython::LiveSweep;
use crate::dump::{
    Envelope, Kept, MemoryRange, PARTS, PhysicalMemory, Question, RangeError, ShardMemory, answer_parts, decode, encode,
};
use crate::paging::{Banners, CandidateTables, EncryptionVotes, PagesByPointers, PickedPages};
use crate::scan::{Scan, Sweep};

/// A part of a dump.
pub struct Shard {
    /// Its bytes, without ranges: each question comes with its own.
    memory: PhysicalMemory,
    kept: Kept,
}

impl Shard {
    /// The part of a dump with these bytes: those of a [`ShardQuestion::part`](crate::dump::ShardQuestion::part).
    ///
    /// # Errors
    /// None that is known of.
    pub fn new(bytes: Vec<u8>) -> Result<Self, RangeError> {
        Ok(Self { memory: PhysicalMemory::owned(bytes, Vec::new())?, kept: Kept::default() })
    }

    /// The answer to a [`ShardQuestion::question`](crate::dump::ShardQuestion::question) about this part.
    ///
    /// # Errors
    /// In words: it is no question of this version, or about another part.
    pub fn answer(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        let Envelope { name, .. } = decode::<Envelope<IgnoredAny>>(question)?;
        match name.as_str() {
            PARTS => answer_parts(self.memory.all_bytes(), question),
            Scan::NAME => self.answer_to::<Scan>(question),
            Sweep::NAME => self.answer_to::<Sweep>(question),
            Banners::NAME => self.answer_to::<Banners>(question),
            PickedPages::NAME => self.answer_to::<PickedPages>(question),
            PagesByPointers::NAME => self.answer_to::<PagesByPointers>(question),
            EncryptionVotes::NAME => self.answer_to::<EncryptionVotes>(question),
            CandidateTables::NAME => self.answer_to::<CandidateTables>(question),
            LiveSweep::NAME => self.answer_to::<LiveSweep>(question),
            _ => Err(format!("the worker has another version: it knows no question {name:?}")),
        }
    }

    fn answer_to<Q: Question>(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        let Envelope { first, ranges, body, .. } = decode::<Envelope<Q>>(question)?;
        let range = |[start, end, offset]: [u64; 3]| {
            let offset = FileOffset(offset.checked_sub(first)?);
            Some(MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset })
        };
        let ranges: Option<Vec<MemoryRange>> = ranges.into_iter().map(range).collect();
        let memory = ranges.and_then(|ranges| self.memory.with_ranges(ranges).ok());
        let memory = memory.ok_or("the question is about another part of the dump")?;
        encode(&body.answer(&ShardMemory { memory, kept: Arc::clone(&self.kept) }))
    }
}
