//! A part of a dump in the memory of a worker, and the questions that it answers about it.
//!
//! Whoever analyses a dump that lies elsewhere ([`crate::dump::open_remote`]) asks these questions; how they travel is the
//! business of a [`Remote`](crate::dump::Remote).

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::de::IgnoredAny;

use crate::addr::{FileOffset, PhysAddr};
use crate::cpython::LiveSweep;
use crate::dump::{
    DumpError, Envelope, Kept, MappedFile, MemoryRange, PARTS, PhysicalMemory, Question, SUBTREE, ShardMemory,
    answer_parts, answer_subtree, decode, encode,
};
use crate::paging::{Banners, CandidateTables, EncryptionVotes, PagesByPointers, PickedPages};
use crate::scan::{Scan, Sweep};

/// Does work on threads that only answer questions: where the one who asks is in the same process, all its threads may wait for an
/// answer.
fn in_pool<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| ThreadPoolBuilder::new().build().ok());
    Ok(pool.as_ref().ok_or("the system gave no threads")?.install(work))
}

/// A part of a dump.
pub struct Shard {
    /// Its bytes, without ranges: each question comes with its own.
    memory: PhysicalMemory,
    /// Offset in the dump of its first byte.
    first: u64,
    kept: Kept,
}

impl Shard {
    /// The part of a dump with these bytes, which begin at an offset in it: those of a
    /// [`ShardQuestion::part`](crate::dump::ShardQuestion::part).
    pub fn new(bytes: Vec<u8>, first: u64) -> Self {
        Self { memory: PhysicalMemory::unaddressed(bytes), first, kept: Kept::default() }
    }

    /// A part of a dump that is a file here. It is mapped, and only what questions are about is read.
    ///
    /// # Errors
    /// The file can't be opened or mapped.
    pub fn of_file(path: &Path, part: Range<u64>) -> Result<Self, DumpError> {
        let first = part.start;
        Ok(Self { memory: PhysicalMemory::unaddressed(MappedFile::part(path, part)?), first, kept: Kept::default() })
    }

    /// The answer to a [`ShardQuestion::question`](crate::dump::ShardQuestion::question) about this part.
    ///
    /// # Errors
    /// In words: it is no question of this version, or about another part.
    pub fn answer(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        let Envelope { name, .. } = decode::<Envelope<IgnoredAny>>(question)?;
        match name.as_str() {
            PARTS => answer_parts(self.memory.all_bytes(), self.first, question),
            SUBTREE => answer_subtree(self.memory.all_bytes(), self.first, question),
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
        let Envelope { ranges, body, .. } = decode::<Envelope<Q>>(question)?;
        let range = |[start, end, offset]: [u64; 3]| {
            let offset = FileOffset(offset.checked_sub(self.first)?);
            Some(MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset })
        };
        let ranges: Option<Vec<MemoryRange>> = ranges.into_iter().map(range).collect();
        let memory = ranges.and_then(|ranges| self.memory.with_ranges(ranges).ok());
        let memory = memory.ok_or("the question is about another part of the dump")?;
        let shard = ShardMemory { memory, kept: Arc::clone(&self.kept) };
        let answer = in_pool(|| body.answer(&shard))?;
        // What could not be read was replaced by zeros.
        shard.memory.check().map_err(|error| error.to_string())?;
        encode(&answer)
    }
}
