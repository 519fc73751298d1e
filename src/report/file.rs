//! One file as output: refused before the long work, written aside, put in its place when it is complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::error::OutputError;
use super::folder::Cleanup;
use super::space;

/// The name of the file that is written to until all is done: beside the other, so that it can take its place.
const PREFIX: &str = ".tensorcarve-incomplete-";

/// A file that is ours to write. Only its owner can read it, because it holds evidence. Dropped without `finish`, it is gone, and
/// what was at its path is as it was.
pub struct NewFile {
    path: PathBuf,
    staging: PathBuf,
    file: File,
    overwrite: bool,
    cleanup: Cleanup,
}

impl NewFile {
    /// A file that will be at `path`.
    ///
    /// # Errors
    /// There is a file (or, with `overwrite`, something that is no regular file), or the folder can't be written to.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OutputError> {
        check(path, overwrite)?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let failed = |e| OutputError::io(path, "create the file", e);
        let staging = tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder).map_err(failed)?;
        let (file, staging) = staging.keep().map_err(|e| failed(e.error))?;
        let cleanup = Cleanup::of_file(&staging);
        Ok(Self { path: path.to_owned(), staging, file, overwrite, cleanup })
    }

    /// What undoes this run; for the handler of Ctrl-C.
    pub fn cleanup(&self) -> Cleanup {
        self.cleanup.clone()
    }

    /// Lets `write` write that many bytes at most.
    ///
    /// # Errors
    /// There is no room for them, or they can't be written.
    pub fn write(&mut self, most: u64, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), OutputError> {
        space::reserve(&self.staging, &self.path, most)?;
        write(&mut self.file).map_err(|e| OutputError::io(&self.path, "write the file", e))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// Something came there meanwhile, or the file can't be moved.
    pub fn finish(self) -> Result<(), OutputError> {
        self.cleanup.complete(|| {
            check(&self.path, self.overwrite)?;
            fs::rename(&self.staging, &self.path)
                .map_err(|e| OutputError::io(&self.path, "move the file into place", e))
        })
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        self.cleanup.run();
    }
}

/// Checks that nothing is at a path that must not be replaced.
fn check(path: &Path, overwrite: bool) -> Result<(), OutputError> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(OutputError::io(path, "use it as a file", e)),
        Ok(metadata) if !metadata.is_file() => Err(OutputError::NotAFile(path.to_owned())),
        Ok(_) if !overwrite => Err(OutputError::Exists(path.to_owned())),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, overwrite: bool, text: &str) -> Result<(), OutputError> {
        let mut file = NewFile::create(path, overwrite)?;
        file.write(9, |file| file.write_all(text.as_bytes()))?;
        file.finish()
    }

    #[test]
    fn a_file_is_complete_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let count = || fs::read_dir(folder.path()).unwrap().count();
        drop(NewFile::create(&path, false).unwrap());
        let full = NewFile::create(&path, false).unwrap().write(u64::MAX, |_| Ok(()));
        assert!(matches!(full, Err(OutputError::NoSpace { .. })));
        assert_eq!(count(), 0);
        write(&path, false, "first").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(write(&path, false, "second"), Err(OutputError::Exists(_))));
        drop(NewFile::create(&path, true).unwrap());
        assert_eq!((fs::read_to_string(&path).unwrap(), count()), ("first".to_owned(), 1));
        write(&path, true, "second").unwrap();
        assert_eq!((fs::read_to_string(&path).unwrap(), count()), ("second".to_owned(), 1));
    }

    #[test]
    fn only_a_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(write(folder.path(), true, ""), Err(OutputError::NotAFile(_))));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(matches!(write(&link, true, ""), Err(OutputError::NotAFile(_))));
        // A file that came there while the core was written.
        let path = folder.path().join("core");
        let file = NewFile::create(&path, false).unwrap();
        fs::write(&path, "other").unwrap();
        assert!(matches!(file.finish(), Err(OutputError::Exists(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "other");
    }
}
