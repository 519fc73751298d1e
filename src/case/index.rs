//! The index: what was learned of a dump, kept in a folder, so that the next command need not read the dump again.
//!
//! A file of the index belongs to one dump, one set of signatures and one stage: its name is the hash of all that the stage's
//! output depends on. What is in it is only used if its own hash is right.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::dump::Dump;
use crate::signature::Signatures;

/// What a file of the index begins with; the number counts changes of what surrounds the content.
const MAGIC: &[u8; 20] = b"tensorcarve index 1\n";
/// Bytes of a hash.
const HASH: usize = 32;
/// The most bytes that a file of the index may have.
const MAX_SIZE: u64 = 1 << 30;
/// Frames of the dump that its identity is made of, spread over it.
const SAMPLED_FRAMES: u64 = 64;
/// Read and written by its owner alone: the folder holds evidence.
const PRIVATE: u32 = 0o700;

/// A folder that keeps what was learned of dumps.
#[derive(Clone, Debug)]
pub struct Index {
    folder: PathBuf,
}

/// A stage whose output is kept.
pub(super) trait Kept: Serialize + DeserializeOwned {
    /// Its name, a part of file names.
    const NAME: &'static str;
    /// To be raised with each change of what it computes or how that is kept.
    const VERSION: u32;
}

/// What tells a dump and what is looked for in it from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity([u8; HASH]);

impl Identity {
    /// That of a dump: size and time of modification of its file, where its ranges lie, frames spread over it; and of the
    /// signatures.
    pub(super) fn of(dump: &Dump, signatures: &Signatures) -> Self {
        let mut hash = Sha256::new();
        let memory = &dump.memory;
        let facts = (dump.file_size, dump.size, dump.format, &dump.addresses, memory.modified(), memory.ranges());
        hash.update(format!("{} {facts:?} {signatures:?}", build()));
        for file in memory.files() {
            hash.update(&file.sha256);
        }
        let step = (memory.size() / SAMPLED_FRAMES).max(1);
        let mut before = 0u64;
        for range in memory.ranges() {
            // The bytes at the multiples of the step, counted over all ranges.
            let first = before.next_multiple_of(step) - before;
            let bytes = memory.range_bytes(range);
            for at in (first..range.len()).step_by(step as usize) {
                let end = (at + crate::addr::FRAME_SIZE).min(range.len());
                hash.update(bytes.get(at as usize..end as usize).unwrap_or_default());
            }
            before = before.saturating_add(range.len());
        }
        Self(hash.finalize().into())
    }
}

/// Which build of this program it is: another one may learn more.
fn build() -> String {
    let program = std::env::current_exe().and_then(fs::metadata);
    let facts = program.map(|program| (program.len(), program.modified().ok())).ok();
    format!("{} {facts:?}", env!("CARGO_PKG_VERSION"))
}

impl Index {
    /// The index in a folder, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The index in the user's folder for caches: `$XDG_CACHE_HOME/tensorcarve`, or `~/.cache/tensorcarve`; `None` if neither
    /// is known.
    pub fn of_user() -> Option<Self> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(Self::new(caches.join("tensorcarve")))
    }

    fn path<T: Kept>(&self, identity: Identity) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(identity.0);
        hash.update(format!("{} {}", T::NAME, T::VERSION));
        self.folder.join(format!("{}.{}", hex::encode(hash.finalize()), T::NAME))
    }

    /// What a stage gave for a dump; `None` if that is not known.
    ///
    /// # Errors
    /// In words: there is a file, and it can't be used.
    pub(super) fn load<T: Kept>(&self, identity: Identity) -> Result<Option<T>, String> {
        let path = self.path::<T>(identity);
        let unusable =
            |reason: String| format!("the index {} is not used ({reason}); it will be rebuilt", path.display());
        match read_private(&path, &self.folder) {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => content(&bytes, identity).map(Some).map_err(unusable),
            Err(error) => Err(unusable(error.to_string())),
        }
    }

    /// Keeps what a stage gave for a dump.
    ///
    /// # Errors
    /// The folder can't be written to, or others may write to it.
    pub(super) fn store<T: Kept>(&self, identity: Identity, kept: &T) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(PRIVATE).create(&self.folder)?;
        check_owner(&self.folder)?;
        let content = serde_json::to_vec(kept)?;
        // Aside and then renamed: whoever reads meanwhile gets the old file or the new one, whole.
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.folder)?;
        file.write_all(MAGIC)?;
        file.write_all(&identity.0)?;
        file.write_all(&Sha256::digest(&content))?;
        file.write_all(&content)?;
        file.persist(self.path::<T>(identity)).map(drop).map_err(|error| error.error)
    }
}

/// The bytes of a file in a folder of the user's own; `None` if there is none.
fn read_private(path: &Path, folder: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    check_owner(folder)?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Whether nobody else may write to a folder: what others put there is not believed.
fn check_owner(folder: &Path) -> io::Result<()> {
    let mode = fs::metadata(folder)?.permissions().mode();
    if mode & 0o022 == 0 {
        return Ok(());
    }
    let reason = format!("other users can write to {}; run `chmod 700` on it", folder.display());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, reason))
}

/// What is kept in the bytes of a file.
fn content<T: Kept>(bytes: &[u8], identity: Identity) -> Result<T, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it has an unknown format")?;
    let (known, rest) = rest.split_first_chunk::<HASH>().ok_or("it is cut off")?;
    let (hash, content) = rest.split_first_chunk::<HASH>().ok_or("it is cut off")?;
    if *known != identity.0 {
        return Err("it is for another dump".to_owned());
    }
    if Sha256::digest(content).as_slice() != hash {
        return Err("it is damaged".to_owned());
    }
    serde_json::from_slice(content).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Numbers(Vec<u64>);

    impl Kept for Numbers {
        const NAME: &'static str = "numbers";
        const VERSION: u32 = 1;
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::new(folder.path().join("a/b"));
        let (identity, other) = (Identity([1; HASH]), Identity([2; HASH]));
        assert_eq!(index.load::<Numbers>(identity), Ok(None));
        let numbers = Numbers((0..1000).map(|i| i * (u64::MAX / 1000)).collect());
        index.store(identity, &numbers).unwrap();
        assert_eq!(index.load(identity), Ok(Some(numbers)));
        assert_eq!(index.load::<Numbers>(other), Ok(None));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let path = index.path::<Numbers>(identity);
        assert_eq!((mode(&index.folder), mode(&path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&index.folder).unwrap().count(), 1);
        let whole = fs::read(&path).unwrap();
        for at in [0, 19, 20, 51, 52, 83, 84, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(index.load::<Numbers>(identity).unwrap_err().contains("will be rebuilt"), "{at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(index.load::<Numbers>(identity).is_err(), "{at}");
        }
        // Another dump's under this name.
        fs::write(&path, &whole).unwrap();
        fs::rename(&path, index.path::<Numbers>(other)).unwrap();
        assert!(index.load::<Numbers>(other).unwrap_err().contains("another dump"));
        // A folder that others may write to.
        index.store(identity, &Numbers(vec![7])).unwrap();
        fs::set_permissions(&index.folder, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(index.load::<Numbers>(identity).unwrap_err().contains("chmod 700"));
        assert!(index.store(identity, &Numbers(vec![8])).is_err());
    }
}
