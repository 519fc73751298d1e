//! Hashes of the dump file, computed beside the other work.

mod algorithm;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tensorcarve::progress::Observer;
use tensorcarve::report::FileHash;

use super::Failure;
use super::progress::Progress;

pub(super) use algorithm::{Algorithm, HashChoice};

/// Bytes of a file that is hashed, at most: for a folder, some file systems say a size without end.
const MAX_SIZE: u64 = 1 << 47;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(5);

/// Hashes that are being computed.
pub(super) struct InputHash {
    work: Arc<Work>,
    threads: Vec<Worker>,
}

/// When it ended, counted from the beginning of the work.
type Worker = JoinHandle<io::Result<Duration>>;

/// Hashes that have been computed.
#[derive(Default)]
pub(super) struct Hashed {
    pub(super) hashes: Vec<FileHash>,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// How long that took, beside the other work.
    pub(super) time: Duration,
}

/// The hashes to compute, without any twice.
pub(super) fn algorithms(choices: &[HashChoice]) -> Result<Vec<Algorithm>, Failure> {
    let mut algorithms = Vec::new();
    for choice in choices {
        match *choice {
            HashChoice::Of(algorithm) if !algorithms.contains(&algorithm) => algorithms.push(algorithm),
            HashChoice::Of(_) => {}
            HashChoice::None if choices.iter().all(|choice| *choice == HashChoice::None) => {}
            HashChoice::None => {
                return Err(Failure::new("--hash none can't be combined with a hash").hint("leave out one of them"));
            }
        }
    }
    Ok(algorithms)
}

/// What all threads share.
struct Work {
    file: File,
    size: u64,
    start: Instant,
    hashes: Vec<Parts>,
    /// Bytes that went into the hashes; a file with two hashes counts twice.
    done: AtomicU64,
    /// A part could not be hashed, and the rest need not be.
    failed: AtomicBool,
}

/// A hash with the parts of the file that it is made of. Threads take one after another.
struct Parts {
    algorithm: Algorithm,
    part_size: u64,
    /// The first part that nobody has taken.
    next: AtomicU64,
    digests: Vec<OnceLock<Box<[u8]>>>,
}

impl InputHash {
    /// Hashes the open file, because its path may name another file by now. Threads that nobody waits for end with the
    /// process. Nobody else may read the file at its cursor meanwhile.
    ///
    /// A chain of blocks has a thread of its own. Hashes that are made of parts have `width` threads.
    pub(super) fn start(mut file: &File, algorithms: &[Algorithm], width: usize) -> io::Result<Self> {
        // The end, not the metadata: a block device has a size only here.
        let size = file.seek(SeekFrom::End(0))?;
        file.rewind()?;
        if size > MAX_SIZE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{size} bytes are too many to hash")));
        }
        let work = Arc::new(Work {
            file: file.try_clone()?,
            size,
            start: Instant::now(),
            hashes: algorithms.iter().map(|algorithm| Parts::new(*algorithm, size)).collect(),
            done: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        });
        let mut hash = Self { work, threads: Vec::new() };
        for (index, algorithm) in algorithms.iter().enumerate() {
            if algorithm.part_size().is_none() {
                hash.spawn(move |work| work.hashes.get(index).map_or(Ok(()), |parts| work.take_parts(parts)));
            }
        }
        if algorithms.iter().any(|algorithm| algorithm.part_size().is_some()) {
            for _ in 0..width {
                hash.spawn(Work::take_all_parts);
            }
        }
        Ok(hash)
    }

    fn spawn(&mut self, task: impl FnOnce(&Work) -> io::Result<()> + Send + 'static) {
        let work = Arc::clone(&self.work);
        self.threads.push(thread::spawn(move || {
            let result = task(&work);
            work.failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result.map(|()| work.start.elapsed())
        }));
    }

    /// Waits for the hashes; a phase of its own, with what is left to do, if they are not there yet.
    pub(super) fn finish(self, progress: &Progress) -> io::Result<Hashed> {
        let is_finished = |threads: &[Worker]| threads.iter().all(JoinHandle::is_finished);
        if !is_finished(&self.threads) {
            let work = Arc::clone(&self.work);
            let mut shown = work.done.load(Ordering::Relaxed);
            progress.begin_named("hash", work.total().saturating_sub(shown));
            while !is_finished(&self.threads) {
                let done = work.done.load(Ordering::Relaxed);
                progress.advance(done - shown);
                shown = done;
                thread::sleep(TICK);
            }
        }
        let mut time = Duration::ZERO;
        for thread in self.threads {
            let end = thread.join().unwrap_or_else(|_| Err(io::Error::other("a hashing thread failed")))?;
            time = time.max(end);
        }
        let hashes = self.work.hashes.iter().map(|parts| parts.combine(self.work.size));
        Ok(Hashed { hashes: hashes.collect::<io::Result<_>>()?, bytes: self.work.size, time })
    }
}

impl Work {
    /// Bytes that go into all hashes.
    fn total(&self) -> u64 {
        self.size.saturating_mul(self.hashes.len() as u64)
    }

    /// Hashes parts of all hashes until all are taken.
    fn take_all_parts(&self) -> io::Result<()> {
        self.hashes.iter().try_for_each(|parts| self.take_parts(parts))
    }

    /// Hashes parts of one until all are taken.
    fn take_parts(&self, parts: &Parts) -> io::Result<()> {
        while !self.failed.load(Ordering::Relaxed) {
            let index = parts.next.fetch_add(1, Ordering::Relaxed);
            let Some(digest) = usize::try_from(index).ok().and_then(|index| parts.digests.get(index)) else { break };
            let start = index * parts.part_size;
            let part = start..start.saturating_add(parts.part_size).min(self.size);
            let hashed = parts.algorithm.hash_part(&self.file, self.size, part, &self.done)?;
            // Nobody else has taken this part.
            let _ = digest.set(hashed);
        }
        Ok(())
    }
}

impl Parts {
    fn new(algorithm: Algorithm, size: u64) -> Self {
        let part_size = algorithm.part_size().unwrap_or(size).max(1);
        // An empty file has one part as well.
        let count = size.div_ceil(part_size).max(1);
        Self { algorithm, part_size, next: AtomicU64::new(0), digests: (0..count).map(|_| OnceLock::new()).collect() }
    }

    fn combine(&self, size: u64) -> io::Result<FileHash> {
        let digests: Option<Vec<&[u8]>> = self.digests.iter().map(|digest| digest.get().map(|it| &**it)).collect();
        let digests = digests.ok_or_else(|| io::Error::other("a part was not hashed"))?;
        Ok(self.algorithm.combine(size, &digests))
    }
}

#[cfg(test)]
mod tests;
