//! Questions about the shards of a dump, and their answers, as they travel: compressed JSON.

use std::any::Any;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{MemoryRange, PhysicalMemory};

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
    pub(super) fn new(ranges: &[MemoryRange], body: Q) -> Self {
        let ranges = ranges.iter().map(|range| [range.start.0, range.end.0, range.offset.0]).collect();
        Self { name: Q::NAME.to_owned(), ranges, body }
    }
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
pub(super) fn unpack(bytes: &[u8], most: u64) -> Result<Vec<u8>, String> {
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

/// The same back.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(&unpack(bytes, MAX_MESSAGE)?)
        .map_err(|error| format!("what came is no message of this version: {error}"))
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
pub(super) fn root_hash(subtrees: &[ChainingValue]) -> Option<blake3::Hash> {
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
