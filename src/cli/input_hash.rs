//! SHA-256 of the dump file as it was named, on a thread of its own beside the work.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::thread::{self, JoinHandle};

use sha2::{Digest, Sha256};
use tensorcarve::report::hex;

const BUFFER: usize = 1 << 20;

/// A hash that is being computed.
pub(super) struct InputHash(JoinHandle<io::Result<String>>);

impl InputHash {
    /// Starts on the file, which is known to be one that can be opened. A thread that nobody waits
    /// for any more ends with the process.
    pub(super) fn start(path: &Path) -> Self {
        let path = path.to_owned();
        Self(thread::spawn(move || hash(&path)))
    }

    /// Waits for the hash in lower-case hex.
    pub(super) fn finish(self) -> io::Result<String> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the thread that hashes failed")))
    }
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hasher.finalize())),
            Ok(count) => hasher.update(buffer.get(..count).unwrap_or_default()),
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
        let hash = InputHash::start(file.path()).finish().unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(InputHash::start(Path::new("/nonexistent")).finish().is_err());
    }
}
