//! SHA-256 of the dump file, computed in a separate thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tensorcarve::progress::Observer;

use super::progress::Progress;

const BUFFER: usize = 1 << 20;
/// How often progress is looked at.
const TICK: Duration = Duration::from_millis(5);

/// A hash that is being computed.
pub(super) struct InputHash {
    thread: JoinHandle<io::Result<Hashed>>,
    done: Arc<AtomicU64>,
}

/// A hash that has been computed.
pub(super) struct Hashed {
    /// In lower-case hex.
    pub(super) sha256: String,
    /// Bytes of the file.
    pub(super) bytes: u64,
    /// How long that took, beside the other work.
    pub(super) time: Duration,
}

impl InputHash {
    /// Hashes the open file, because its path may name another file by now. A thread that nobody waits for ends with
    /// the process.
    pub(super) fn start(file: &File) -> Self {
        let (file, done) = (file.try_clone(), Arc::default());
        let counter = Arc::clone(&done);
        Self { thread: thread::spawn(move || hash(&file?, &counter)), done }
    }

    /// Waits for the hash; a phase of its own, with what is left to do, if it is not there yet.
    pub(super) fn finish(self, size: u64, progress: &Progress) -> io::Result<Hashed> {
        if !self.thread.is_finished() {
            let mut shown = self.done.load(Ordering::Relaxed);
            progress.begin_named("hash", size.saturating_sub(shown));
            while !self.thread.is_finished() {
                let done = self.done.load(Ordering::Relaxed);
                progress.advance(done - shown);
                shown = done;
                thread::sleep(TICK);
            }
        }
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the hashing thread failed")))
    }
}

fn hash(file: &File, done: &AtomicU64) -> io::Result<Hashed> {
    let start = Instant::now();
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        // At a place of its own: the cursor is shared with whoever else reads the file.
        let bytes = done.load(Ordering::Relaxed);
        match file.read_at(&mut buffer, bytes) {
            Ok(0) => {
                return Ok(Hashed { sha256: hex::encode(hasher.finalize()), bytes, time: start.elapsed() });
            }
            Ok(count) => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                done.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_everybody_does() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let done = AtomicU64::new(0);
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hashed = hash(&File::open(file.path()).unwrap(), &done).unwrap();
        assert_eq!((hashed.sha256.as_str(), hashed.bytes), (expected, 3));
        assert_eq!(done.into_inner(), 3);
        assert!(hash(&File::open("/").unwrap(), &AtomicU64::new(0)).is_err());
    }
}
