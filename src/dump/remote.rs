//! A dump that lies elsewhere: on another host, or in object storage. Nothing of it is mapped.
//!
//! What a caller looks at is fetched first, in blocks, into a sparse file without a name, which is mapped in the place of the dump. So
//! the memory that is read here is limited by the disk, and all that reads memory works as on a file. What looks at all memory, as
//! a scan does, is not done here: [`RemoteMemory::ask`](super::RemoteMemory::ask) sends the question to workers, each of which holds a part of the dump.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use blake3::hazmat::ChainingValue;

use super::question::{Envelope, PARTS, SUBTREE, encode, root_hash, unpack};
use super::source::MappedFile;
use super::{DumpError, DumpErrorKind};
use crate::addr::FRAME_SIZE;

/// Bytes of a block, which is fetched as a whole.
const BLOCK: u64 = 1 << 12;
/// Bytes, at a multiple of their number, of which all that is missing is fetched with the one byte that is needed now: what lies beside
/// it is often needed next.
const AROUND: u64 = 1 << 13;
/// Blocks that one reader fetches at a time wait for each other only if they are of one of these groups.
const GROUPS: usize = 64;
/// Bytes from which on those who have the shards are asked for them: fewer are had sooner where the dump lies.
const MANY: u64 = 1 << 18;
/// The most bytes that one reading fetches: what is larger is fetched in pieces.
const PIECE: u64 = 64 << 20;
/// Bytes before and after a shard that a worker has as well: the rest of a frame, and what a needle at the border needs.
pub const SHARD_MARGIN: u64 = 2 * FRAME_SIZE;

/// Who has the dump.
pub trait Remote: Send + Sync {
    /// Bytes of these parts of the file, in their order.
    ///
    /// # Errors
    /// In words, after all retries.
    fn read(&self, parts: &[Range<u64>]) -> Result<Vec<Vec<u8>>, String>;

    /// Asks questions about parts of the file, each of the worker that has the part; `answered` is called with the index of each
    /// question as soon as it is answered. What a question is, only [`crate::shard::Shard`] knows.
    ///
    /// # Errors
    /// In words, after all retries.
    fn ask(&self, questions: Vec<ShardQuestion>, answered: &(dyn Fn(usize) + Sync)) -> Result<Vec<Vec<u8>>, String>;

    /// Whether the workers give a few bytes sooner than [`Remote::read`] does: they have the dump in memory, and it lies far away.
    fn is_far(&self) -> bool {
        false
    }
}

/// A question about a part of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardQuestion {
    /// What kind of question it is, for those who watch the work.
    pub name: &'static str,
    /// The part of the file that is needed to answer it: always the same for one shard.
    pub part: Range<u64>,
    /// The question, to be handed to [`crate::shard::Shard::answer`].
    pub question: Vec<u8>,
}

/// A dump that lies elsewhere, and what of it has been fetched.
pub(crate) struct RemoteFile {
    remote: Arc<dyn Remote>,
    /// The dump as it was named.
    name: PathBuf,
    /// The sparse file, and the same mapped.
    file: File,
    map: MappedFile,
    /// A bit for each block that is in the file.
    fetched: Vec<AtomicU64>,
    /// One for each group of blocks: held while one of them is fetched.
    groups: [Mutex<()>; GROUPS],
    /// Why something could not be had.
    failure: OnceLock<String>,
    /// Bytes of a shard.
    pub(super) shard: u64,
}

impl RemoteFile {
    /// A dump of `size` bytes, whose parts are kept in a file in `dir`.
    pub(super) fn new(
        remote: Arc<dyn Remote>,
        name: &Path,
        size: u64,
        dir: &Path,
        shard: u64,
    ) -> Result<Self, DumpErrorKind> {
        let spool = |source: io::Error| DumpErrorKind::Spool { dir: dir.to_owned(), source };
        let file = tempfile::tempfile_in(dir).map_err(spool)?;
        file.set_len(size).map_err(spool)?;
        let map = MappedFile::spooled(file.try_clone().map_err(spool)?, dir.to_owned(), None)?;
        let words = size.div_ceil(BLOCK * u64::from(u64::BITS));
        let fetched = (0..words).map(|_| AtomicU64::new(0)).collect();
        let groups = std::array::from_fn(|_| Mutex::new(()));
        // A power of two, so that hashes of shards make the hash of all.
        let shard = shard.clamp(SHARD_MARGIN, 1 << 62).next_power_of_two();
        let (name, failure) = (name.to_owned(), OnceLock::new());
        Ok(Self { remote, name, file, map, fetched, groups, failure, shard })
    }

    /// Bytes of the dump.
    pub(super) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// The file in which only what was fetched is right.
    pub(super) fn sparse(&self) -> &[u8] {
        &self.map
    }

    /// Bytes of the dump, fetched if they have not been yet; `None` past its end, or if they can't be had.
    #[inline]
    pub(super) fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        if !self.has(offset..end) {
            let around = end.checked_next_multiple_of(AROUND).unwrap_or(end).min(self.len());
            self.fetch(std::iter::once(offset - offset % AROUND..around));
            if !self.has(offset..end) {
                return None;
            }
        }
        self.map.get(offset as usize..end as usize)
    }

    /// How many of `most` bytes at an offset are worth to be fetched when not all of them may be needed: those around it, or of one
    /// frame.
    #[inline]
    pub(super) fn worthwhile(offset: u64, most: u64) -> u64 {
        most.min((AROUND - offset % AROUND).max(FRAME_SIZE))
    }

    #[inline]
    fn has(&self, part: Range<u64>) -> bool {
        (part.start / BLOCK..part.end.div_ceil(BLOCK)).all(|block| self.has_block(block))
    }

    #[inline]
    fn has_block(&self, block: u64) -> bool {
        let word = self.fetched.get((block / u64::from(u64::BITS)) as usize);
        // Acquire: who sees the bit sees the bytes.
        word.is_some_and(|word| word.load(Ordering::Acquire) & 1 << (block % u64::from(u64::BITS)) != 0)
    }

    /// Fetches what is missing of parts of the file, in as few readings as possible.
    #[cold]
    pub(super) fn fetch(&self, parts: impl Iterator<Item = Range<u64>>) {
        if self.is_lost() {
            return;
        }
        let mut blocks: Vec<u64> = parts
            .flat_map(|part| part.start / BLOCK..part.end.min(self.len()).div_ceil(BLOCK))
            .filter(|block| !self.has_block(*block))
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        let Some(first) = blocks.first() else { return };
        let group = self.groups.get(*first as usize % GROUPS);
        let _held = group.map(|group| group.lock().unwrap_or_else(PoisonError::into_inner));
        // Another thread may have fetched them while this one waited.
        blocks.retain(|block| !self.has_block(*block));
        let mut wanted: Vec<Range<u64>> = Vec::new();
        for block in blocks {
            let (start, end) = (block * BLOCK, ((block + 1) * BLOCK).min(self.len()));
            match wanted.last_mut() {
                Some(last) if start == last.end && start % self.shard != 0 && end - last.start <= PIECE => {
                    last.end = end
                }
                _ => wanted.push(start..end),
            }
        }
        let mut rest = wanted.as_slice();
        while !rest.is_empty() {
            let mut sum = 0u64;
            let count = rest.iter().take_while(|part| {
                sum += part.end - part.start;
                sum <= PIECE
            });
            let (now, later) = rest.split_at(count.count().max(1));
            rest = later;
            if let Err(reason) = self.read(now) {
                self.fail(reason);
                return;
            }
        }
    }

    fn read(&self, parts: &[Range<u64>]) -> Result<(), String> {
        let bytes: u64 = parts.iter().map(|part| part.end - part.start).sum();
        let read =
            if bytes < MANY && !self.remote.is_far() { self.remote.read(parts)? } else { self.read_by_workers(parts)? };
        if read.len() != parts.len() {
            return Err(format!("{} parts were asked for and {} came", parts.len(), read.len()));
        }
        for (part, bytes) in parts.iter().zip(read) {
            let len = part.end - part.start;
            if bytes.len() as u64 != len {
                return Err(format!(
                    "at offset {:#x}, {len} bytes were asked for and {} came",
                    part.start,
                    bytes.len()
                ));
            }
            self.file.write_all_at(&bytes, part.start).map_err(|error| format!("they can't be kept: {error}"))?;
            for block in part.start / BLOCK..part.end.div_ceil(BLOCK) {
                let word = self.fetched.get((block / u64::from(u64::BITS)) as usize);
                // Release: the bytes were written before.
                word.map(|word| word.fetch_or(1 << (block % u64::from(u64::BITS)), Ordering::Release));
            }
        }
        Ok(())
    }

    /// The answers to questions, one each.
    pub(super) fn ask(
        &self,
        questions: Vec<ShardQuestion>,
        answered: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Vec<u8>>, String> {
        let asked = questions.len();
        let answers = self.remote.ask(questions, answered)?;
        if answers.len() == asked {
            Ok(answers)
        } else {
            Err(format!("{asked} shards were asked and {} answered", answers.len()))
        }
    }

    /// The bytes of these parts of the file, sorted, from those who have the shards: they send them compressed.
    fn read_by_workers(&self, parts: &[Range<u64>]) -> Result<Vec<Vec<u8>>, String> {
        let shard = |part: &Range<u64>| part.start / self.shard;
        // No part crosses the border of a shard.
        let groups: Vec<&[Range<u64>]> = parts.chunk_by(|one, next| shard(one) == shard(next)).collect();
        let questions = groups.iter().map(|parts| {
            let part = self.part(parts.first().map_or(0, shard) * self.shard);
            let body: Vec<[u64; 2]> = parts.iter().map(|wanted| [wanted.start, wanted.end]).collect();
            let question = encode(&Envelope { name: PARTS.to_owned(), ranges: Vec::new(), body })?;
            Ok(ShardQuestion { name: PARTS, part, question })
        });
        let answers = self.ask(questions.collect::<Result<Vec<_>, String>>()?, &|_| ())?;
        let mut read = Vec::with_capacity(parts.len());
        for (parts, answer) in groups.iter().zip(answers) {
            let len = parts.iter().map(|part| part.end - part.start).sum();
            let bytes = unpack(&answer, len)?;
            let mut rest = bytes.as_slice();
            for part in *parts {
                let Some((bytes, after)) = rest.split_at_checked((part.end - part.start) as usize) else {
                    return Err(format!("{len} bytes were asked for and {} came", bytes.len()));
                };
                read.push(bytes.to_vec());
                rest = after;
            }
        }
        Ok(read)
    }

    /// The BLAKE3 hash of the file; `answered` is called with the bytes of each shard that has hashed its part.
    pub(super) fn blake3(&self, answered: &(dyn Fn(u64) + Sync)) -> Result<blake3::Hash, String> {
        let parts =
            || (0..self.len()).step_by(self.shard as usize).map(|start| start..(start + self.shard).min(self.len()));
        if parts().count() == 1 {
            let bytes = self.bytes(0, self.len()).ok_or("a part of it can't be had")?;
            return Ok(blake3::hash(bytes));
        }
        let questions = parts().map(|part| {
            let body = [part.start, part.end];
            let question = encode(&Envelope { name: SUBTREE.to_owned(), ranges: Vec::new(), body })?;
            Ok(ShardQuestion { name: SUBTREE, part: self.part(part.start), question })
        });
        let questions = questions.collect::<Result<Vec<_>, String>>()?;
        let answers = self.ask(questions, &|index| {
            parts().nth(index).into_iter().for_each(|part| answered(part.end - part.start));
        })?;
        let subtrees: Option<Vec<ChainingValue>> =
            answers.into_iter().map(|answer| ChainingValue::try_from(answer).ok()).collect();
        subtrees.and_then(|subtrees| root_hash(&subtrees)).ok_or_else(|| "an answer is no hash".to_owned())
    }

    /// The part of the file that the worker with the shard at an offset has.
    pub(super) fn part(&self, start: u64) -> Range<u64> {
        let end = start.saturating_add(self.shard).saturating_add(SHARD_MARGIN).min(self.len());
        start.saturating_sub(SHARD_MARGIN)..end
    }

    pub(super) fn fail(&self, reason: String) {
        self.failure.get_or_init(|| reason);
    }

    /// Whether something could not be had.
    pub(super) fn is_lost(&self) -> bool {
        self.failure.get().is_some() || self.map.is_lost()
    }

    /// Fails if something could not be had.
    pub(super) fn check(&self) -> Result<(), DumpError> {
        match self.failure.get() {
            Some(reason) => {
                Err(DumpError { path: self.name.clone(), reason: DumpErrorKind::Remote { reason: reason.clone() } })
            }
            None => self.map.check(),
        }
    }
}
