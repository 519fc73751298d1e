//! The output folder: refused before the long work, filled aside, put in its place at the end.
//!
//! Everything is written below one subfolder, and moved up when it is complete, `recovery.json`
//! last. A run that fails or is interrupted so leaves the folder as it was, an earlier output
//! included.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::earlier::{Earlier, RECOVERY, entries, sizes};
use super::error::OutputError;
use super::{json, space};

/// The subfolder that a run writes to until all is done.
pub(super) const STAGING: &str = ".tensorcarve-incomplete";
/// The file in it that says so.
const NOTE: &str = "README";
const NOTE_TEXT: &str = "tensorcarve is writing to this folder, or was interrupted: nothing in it is complete.\n\
                         If tensorcarve is no longer running, remove the folder, or run tensorcarve again with --overwrite.\n";
const BUFFER: usize = 1 << 18;

/// A folder that is ours to fill. Dropped without `finish`, it is left as it was found.
pub struct OutputFolder {
    path: PathBuf,
    staging: PathBuf,
    overwrite: bool,
    cleanup: Cleanup,
    /// The folder itself, locked for as long as this run fills it; the system releases the lock of a run that was killed.
    lock: Option<File>,
}

/// Undoes what a run has done to its output folder; for the handler of Ctrl-C, which may be called at any time.
#[derive(Clone)]
pub struct Cleanup(Arc<Mutex<Undo>>);

#[derive(Default)]
struct Undo {
    staging: Option<PathBuf>,
    moved: Vec<PathBuf>,
    /// Folders that were made for this run, inner ones first.
    made: Vec<PathBuf>,
}

impl Cleanup {
    /// Removes what the run has written, and says whether there was anything; there is not once the
    /// output is complete. Waits for a completion that is under way.
    pub fn run(&self) -> bool {
        self.lock().run()
    }

    /// The same for a process that ends now: threads that would create another file wait for its end.
    pub fn run_for_good(&self) -> bool {
        let mut undo = self.lock();
        let is_pending = undo.run();
        std::mem::forget(undo);
        is_pending
    }

    /// For a run that writes one file, which is at `path` until it is complete.
    pub(super) fn of_file(path: &Path) -> Self {
        Self(Arc::new(Mutex::new(Undo { staging: Some(path.to_owned()), ..Undo::default() })))
    }

    /// Completes what the run has written, after which there is nothing to undo.
    pub(super) fn complete<E>(&self, complete: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut undo = self.lock();
        complete()?;
        *undo = Undo::default();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Undo> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Undo {
    // A failure here has no remedy of ours: what is left is named for what it is.
    fn run(&mut self) -> bool {
        let is_pending = self.staging.is_some();
        for path in self.staging.take().into_iter().chain(self.moved.drain(..)) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        for folder in self.made.drain(..) {
            let _ = fs::remove_dir(folder);
        }
        is_pending
    }
}

impl OutputFolder {
    /// Takes the folder at `path`, which is made where it does not exist.
    ///
    /// # Errors
    /// It is not empty (or, with `overwrite`, holds something else than an earlier output), is no
    /// folder, can't be written to, or another run is filling it.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OutputError> {
        let staging = path.join(STAGING);
        let cleanup = Cleanup(Arc::default());
        let mut folder = Self { path: path.to_owned(), staging, overwrite, cleanup, lock: None };
        // From here on, dropping the folder undoes what was done.
        match fs::metadata(path) {
            Ok(metadata) if !metadata.is_dir() => return Err(OutputError::NotAFolder(path.to_owned())),
            Ok(_) => {
                folder.lock()?;
                folder.check_content()?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                folder.make()?;
                folder.lock()?;
            }
            Err(e) => return Err(OutputError::io(path, "use it as a folder", e)),
        }
        if folder.staging.is_dir() {
            let failed = |e| OutputError::io(&folder.staging, "remove the files of an interrupted run", e);
            fs::remove_dir_all(&folder.staging).map_err(failed)?;
        }
        fs::create_dir(&folder.staging).map_err(|e| OutputError::io(path, "write to the folder", e))?;
        folder.cleanup.lock().staging = Some(folder.staging.clone());
        let note = folder.staging.join(NOTE);
        fs::write(&note, NOTE_TEXT).map_err(|e| OutputError::io(&note, "write to the folder", e))?;
        Ok(folder)
    }

    /// Keeps other runs out of the folder: two that fill it at once would remove each other's files.
    fn lock(&mut self) -> Result<(), OutputError> {
        // Some file systems can't lock a folder.
        let Ok(folder) = File::open(&self.path) else { return Ok(()) };
        match folder.try_lock() {
            Err(TryLockError::WouldBlock) => Err(OutputError::Busy(self.path.clone())),
            Err(TryLockError::Error(_)) => Ok(()),
            Ok(()) => {
                self.lock = Some(folder);
                Ok(())
            }
        }
    }

    fn check_content(&self) -> Result<(), OutputError> {
        // The folder itself may be a link; what is in it is looked at through it.
        let path = fs::canonicalize(&self.path).map_err(|e| OutputError::io(&self.path, "resolve the path", e))?;
        match entries(&path) {
            Ok(names) if names.is_empty() => Ok(()),
            Err(error @ OutputError::Io { .. }) => Err(error),
            _ if !self.overwrite => Err(OutputError::NotEmpty(self.path.clone())),
            _ => Earlier::find(&path).map(drop),
        }
    }

    /// Makes the folder, and those above it that are missing.
    fn make(&self) -> Result<(), OutputError> {
        let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let missing: Vec<&Path> = self.path.ancestors().take_while(is_missing).collect();
        // `new/..` is there as soon as `new` is.
        for folder in missing.into_iter().rev().filter(|folder| !folder.is_dir()) {
            fs::create_dir(folder).map_err(|e| OutputError::io(folder, "create the folder", e))?;
            self.cleanup.lock().made.insert(0, folder.to_owned());
        }
        Ok(())
    }

    /// The folder, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What undoes this run; for the handler of Ctrl-C.
    pub fn cleanup(&self) -> Cleanup {
        self.cleanup.clone()
    }

    /// Checks that there is room for that many bytes more.
    pub(super) fn reserve(&self, need: u64) -> Result<(), OutputError> {
        space::reserve(&self.staging, &self.path, need)
    }

    /// The files that are written by now, by their path within the folder, with their sizes in bytes.
    pub(super) fn written(&self) -> Result<BTreeMap<String, u64>, OutputError> {
        let mut written = sizes(&self.staging)?;
        written.remove(NOTE);
        Ok(written)
    }

    /// A new file, by its path within the folder.
    pub(super) fn file(&self, relative: &str) -> Result<OutputFile, OutputError> {
        let (at, path) = (self.staging.join(relative), self.path.join(relative));
        // No file may come into a folder that the handler of Ctrl-C is removing.
        let _undo = self.cleanup.lock();
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent).map_err(|e| OutputError::io(&path, "create the folder of the file", e))?;
        }
        let file = File::create_new(&at).map_err(|e| OutputError::io(&path, "create the file", e))?;
        Ok(OutputFile { path, writer: BufWriter::with_capacity(BUFFER, file) })
    }

    /// A new file that holds one JSON document; containers nested deeper than `depth` are on one line.
    pub(super) fn json(&self, relative: &str, depth: usize, value: &impl Serialize) -> Result<(), OutputError> {
        let mut file = self.file(relative)?;
        json::write(&mut file.writer, depth, value).map_err(|e| OutputError::io(&file.path, "write the file", e))?;
        file.close()
    }

    /// Puts everything in its place, `recovery.json` last.
    ///
    /// # Errors
    /// A file of an earlier run can't be removed, or a new one not be moved.
    pub(super) fn finish(self) -> Result<(), OutputError> {
        let mut undo = self.cleanup.lock();
        let path = fs::canonicalize(&self.path).map_err(|e| OutputError::io(&self.path, "resolve the path", e))?;
        if self.overwrite && entries(&path)?.iter().any(|name| name != STAGING) {
            Earlier::find(&path)?.remove()?;
        }
        let mut names = entries(&path.join(STAGING))?;
        names.retain(|name| name != NOTE);
        names.sort_by_key(|name| name == RECOVERY);
        for name in names {
            let (from, to) = (self.staging.join(&name), self.path.join(&name));
            // A rename would replace a file that came here meanwhile.
            if fs::symlink_metadata(&to).is_ok() {
                return Err(OutputError::Foreign(to));
            }
            fs::rename(&from, &to).map_err(|e| OutputError::io(&to, "move the file into place", e))?;
            undo.moved.push(to);
        }
        let note = self.staging.join(NOTE);
        fs::remove_file(&note).map_err(|e| OutputError::io(&note, "remove the file", e))?;
        fs::remove_dir(&self.staging).map_err(|e| OutputError::io(&self.staging, "remove the folder", e))?;
        *undo = Undo::default();
        Ok(())
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        self.cleanup.run();
    }
}

/// A file that is being written.
pub(super) struct OutputFile {
    path: PathBuf,
    writer: BufWriter<File>,
}

impl OutputFile {
    /// Where the file will be.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        self.writer.write_all(bytes).map_err(|e| OutputError::io(&self.path, "write the file", e))
    }

    /// Writes at a place of its own, counted from the start of the file; from any thread.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), OutputError> {
        let file = self.writer.get_ref();
        file.write_all_at(bytes, offset).map_err(|e| OutputError::io(&self.path, "write the file", e))
    }

    /// Writes what is still in memory; a file that is only dropped may lack its end.
    pub(super) fn close(mut self) -> Result<(), OutputError> {
        self.writer.flush().map_err(|e| OutputError::io(&self.path, "write the file", e))
    }
}
