//! A dump that lies elsewhere: on another host, or in object storage. Nothing of it is mapped.
//!
//! What a caller looks at is fetched first, in blocks, into a sparse file without a name, which is mapped in the place of the dump. So
//! the memory that is read here is limited by the disk, and all that reads memory works as on a file. What looks at all memory, as
//! a scan does, is not done here: [`RemoteMemory::ask`] sends the question to workers, each of which holds a part of the dump.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::source::MappedFile;
use super::{DumpError, DumpErrorKind, MemoryRange, PhysicalMemory};
use crate::addr::{FRAME_SIZE, PhysAddr};

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
    shard: u64,
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
    fn ask(&self, questions: Vec<ShardQuestion>, answered: &(dyn Fn(usize) + Sync)) -> Result<Vec<Vec<u8>>, String> {
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
    fn blake3(&self, answered: &(dyn Fn(u64) + Sync)) -> Result<blake3::Hash, String> {
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
    fn part(&self, start: u64) -> Range<u64> {
        let end = start.saturating_add(self.shard).saturating_add(SHARD_MARGIN).min(self.len());
        start.saturating_sub(SHARD_MARGIN)..end
    }

    fn fail(&self, reason: String) {
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

/// Something that is asked about a part of a dump: what would be done here if the dump were.
pub trait Question: Serialize + DeserializeOwned + Send {
    /// Its name, by which a worker knows it.
    const NAME: &'static str;
    /// What is answered.
    type Answer: Serialize + DeserializeOwned + Send;

    /// The answer of the worker that has this memory.
    fn answer(self, memory: &ShardMemory) -> Self::Answer;
}

/// What a worker keeps from one question to the next: a key, and what was made for it.
pub(crate) type Kept = Arc<Mutex<Option<(Vec<u8>, Arc<dyn Any + Send + Sync>)>>>;

/// A part of a dump in the memory of a worker.
pub struct ShardMemory {
    /// What the question is about.
    pub memory: PhysicalMemory,
    pub(crate) kept: Kept,
}

impl ShardMemory {
    /// What `make` gives, kept for the next question about it with the same key. Only what was asked for last is kept.
    pub fn keep<T: Send + Sync + 'static>(&self, key: &impl Serialize, make: impl FnOnce() -> T) -> Arc<T> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let key = serde_json::to_vec(key).unwrap_or_default();
        let known = kept().as_ref().filter(|(known, _)| *known == key).map(|(_, value)| Arc::clone(value));
        if let Some(value) = known.and_then(|known| Arc::downcast(known).ok()) {
            return value;
        }
        // Not under the lock: a thread that waits for a part of this work may take up another question meanwhile.
        let value = Arc::new(make());
        *kept() = Some((key, Arc::clone(&value) as Arc<dyn Any + Send + Sync>));
        value
    }
}

/// A question with what it is about.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope<Q> {
    /// The kind of question.
    pub(crate) name: String,
    /// Start, end, offset in the file.
    pub(crate) ranges: Vec<[u64; 3]>,
    pub(crate) body: Q,
}

impl<Q: Question> Envelope<Q> {
    fn new(ranges: &[MemoryRange], body: Q) -> Self {
        let ranges = ranges.iter().map(|range| [range.start.0, range.end.0, range.offset.0]).collect();
        Self { name: Q::NAME.to_owned(), ranges, body }
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

/// Zstandard's level: questions and answers are small beside what they are about.
const LEVEL: i32 = 1;
/// The most bytes that a question or an answer unpacks to.
const MAX_MESSAGE: u64 = 4 << 30;

/// A question or an answer as bytes.
pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>, String> {
    let json = serde_json::to_vec(message).map_err(|error| error.to_string())?;
    zstd::encode_all(json.as_slice(), LEVEL).map_err(|error| error.to_string())
}

/// What `bytes` unpack to, at most `most` of it.
fn unpack(bytes: &[u8], most: u64) -> Result<Vec<u8>, String> {
    let (unpacked, mut all) = (zstd::Decoder::new(bytes).map_err(|error| error.to_string())?, Vec::new());
    unpacked.take(most).read_to_end(&mut all).map_err(|error| error.to_string())?;
    Ok(all)
}

/// The question for the bytes of parts of the file, whose answer is these bytes.
pub(crate) const PARTS: &str = "parts";

/// The answer to it; `None` if a part is not the worker's.
pub(crate) fn answer_parts(bytes: &[u8], first: u64, question: &[u8]) -> Result<Vec<u8>, String> {
    let Envelope::<Vec<[u64; 2]>> { body, .. } = decode(question)?;
    let mut parts = Vec::new();
    for wanted in body {
        parts.extend_from_slice(part_of(bytes, first, wanted)?);
    }
    zstd::encode_all(parts.as_slice(), LEVEL).map_err(|error| error.to_string())
}

/// A part of the dump, whose bytes from an offset on are here.
fn part_of(bytes: &[u8], first: u64, [start, end]: [u64; 2]) -> Result<&[u8], String> {
    let here = |offset: u64| usize::try_from(offset.checked_sub(first)?).ok();
    let part = here(start).zip(here(end)).and_then(|(start, end)| bytes.get(start..end));
    part.ok_or_else(|| "the question is about another part of the dump".to_owned())
}

/// The question for the BLAKE3 hash of a part of the file as a subtree of the hash of all of it.
pub(crate) const SUBTREE: &str = "BLAKE3 of a subtree";

/// The answer to it: its chaining value.
pub(crate) fn answer_subtree(bytes: &[u8], first: u64, question: &[u8]) -> Result<Vec<u8>, String> {
    let Envelope::<[u64; 2]> { body, .. } = decode(question)?;
    let part = part_of(bytes, first, body)?;
    let mut hasher = blake3::Hasher::new();
    let [start, _] = body;
    Ok(hasher.set_input_offset(start).update(part).finalize_non_root().to_vec())
}

/// The hash of a whole of several subtrees, all but the last of which are of the same size, a power of two.
fn root_hash(subtrees: &[ChainingValue]) -> Option<blake3::Hash> {
    let (left, right) = halves(subtrees)?;
    Some(merge_subtrees_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
}

/// The same of a part of the whole.
fn subtree(subtrees: &[ChainingValue]) -> Option<ChainingValue> {
    if let [one] = subtrees {
        return Some(*one);
    }
    let (left, right) = halves(subtrees)?;
    Some(merge_subtrees_non_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
}

/// The left half is the largest power of two that leaves something.
fn halves<T>(all: &[T]) -> Option<(&[T], &[T])> {
    if all.len() < 2 { None } else { all.split_at_checked(all.len().div_ceil(2).next_power_of_two()) }
}

/// The same back.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(&unpack(bytes, MAX_MESSAGE)?)
        .map_err(|error| format!("what came is no message of this version: {error}"))
}
