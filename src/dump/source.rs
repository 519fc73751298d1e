//! The file on disk: its type, its mapped bytes, and whether it has changed.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::{Mmap, MmapOptions};
use rustix::io::Errno;

use super::fault::Watched;
use super::{DumpError, DumpErrorKind, MAX_RANGES};
use crate::addr::FileOffset;

/// Bytes of a hole that is worth to be known: each cuts memory in two.
const MIN_HOLE: u64 = 1 << 20;
/// What failed, as a verb.
const MAP: &str = "map";

/// An open file, and its metadata at the time of opening.
///
/// The path is not looked up again, so replacing the file does no harm.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    at_open: State,
}

/// The metadata that changes when somebody writes to the file; not available for a block device.
#[derive(Debug, PartialEq, Eq)]
struct State {
    size: Option<u64>,
    modified: Option<SystemTime>,
}

impl State {
    fn of(file: &File) -> Result<Self, DumpErrorKind> {
        let metadata = file.metadata().map_err(|e| explain("examine", e))?;
        let is_file = metadata.is_file();
        let modified = metadata.modified().ok().filter(|_| is_file);
        Ok(Self { size: is_file.then_some(metadata.len()), modified })
    }
}

impl Source {
    /// Opens the file that the user named.
    ///
    /// # Errors
    /// It is not a file, or may not be read.
    pub fn open(path: &Path) -> Result<Self, DumpError> {
        Self::open_inner(path).map_err(|reason| DumpError { path: path.to_owned(), reason })
    }

    pub(super) fn open_inner(path: &Path) -> Result<Self, DumpErrorKind> {
        // Looked at before it is opened: opening a pipe would wait for somebody to write into it.
        let metadata = fs::metadata(path).map_err(|e| explain("find", e))?;
        if let Some(refusal) = refuse_type(&metadata) {
            return Err(refusal);
        }
        let file = File::open(path).map_err(|e| explain("open", e))?;
        let at_open = State::of(&file)?;
        Ok(Self { path: path.to_owned(), file, at_open })
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the size and modification time of the file are the same as when it was opened; `lost` is the offset
    /// of the first unreadable page.
    fn check(&self, lost: Option<u64>) -> Result<(), DumpErrorKind> {
        let now = State::of(&self.file)?;
        if let (Some(was), Some(now)) = (self.at_open.size, now.size)
            && was != now
        {
            return Err(DumpErrorKind::Resized { was, now, offset: FileOffset(was.min(now)) });
        }
        if let Some(offset) = lost {
            return Err(DumpErrorKind::Unreadable { offset: FileOffset(offset) });
        }
        if now == self.at_open { Ok(()) } else { Err(DumpErrorKind::Rewritten) }
    }
}

/// The mapped bytes of a file, registered with the handler for unreadable pages.
#[derive(Debug)]
pub struct MappedFile {
    /// Declared before the map so that it is dropped first: watched bytes must be mapped.
    watched: Watched,
    map: Mmap,
    /// The file that was named.
    source: Option<Source>,
    /// The spool file that is mapped instead, if there is one, and its folder.
    spool: Option<(File, PathBuf)>,
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// A mapping without a known file: changes are not noticed, but unreadable pages are.
impl From<Mmap> for MappedFile {
    fn from(map: Mmap) -> Self {
        Self { watched: Watched::new(&map), map, source: None, spool: None }
    }
}

impl MappedFile {
    /// Maps a whole file. An error returns the file, so that it can be read in another way.
    pub(super) fn new(source: Source) -> Result<Self, (DumpErrorKind, Source)> {
        match map_file(&source.file) {
            Ok(map) => Ok(Self { source: Some(source), ..Self::from(map) }),
            Err(reason) => Err((reason, source)),
        }
    }

    /// Maps a part of the file at a path, which begins at a page.
    pub(crate) fn part(path: &Path, part: Range<u64>) -> Result<Self, DumpError> {
        let source = Source::open(path)?;
        match map_part(&source.file, part) {
            Ok(map) => Ok(Self { source: Some(source), ..Self::from(map) }),
            Err(reason) => Err(DumpError { path: source.path, reason }),
        }
    }

    /// Maps a spool file in `dir` that was made from a source.
    pub(super) fn spooled(file: File, dir: PathBuf, source: Option<Source>) -> Result<Self, DumpErrorKind> {
        let map = map_file(&file)?;
        Ok(Self { source, spool: Some((file, dir)), ..Self::from(map) })
    }

    /// When the file that was named was last written to, as it was when it was opened.
    pub(super) fn modified(&self) -> Option<SystemTime> {
        self.source.as_ref()?.at_open.modified
    }

    /// The file that was named.
    pub(super) fn into_source(self) -> Option<Source> {
        self.source
    }

    /// The holes of the file that is mapped.
    pub(super) fn holes(&self) -> Vec<Range<u64>> {
        let file = self.spool.as_ref().map(|(file, _)| file).or(self.source.as_ref().map(Source::file));
        file.map_or_else(Vec::new, |file| holes(file, self.map.len() as u64))
    }

    /// Whether a part of it could not be read and was replaced by zeros.
    pub(super) fn is_lost(&self) -> bool {
        self.watched.lost().is_some()
    }

    /// Fails if a part of it could not be read, or if its source has changed.
    pub(super) fn check(&self) -> Result<(), DumpError> {
        let lost = self.watched.lost();
        let reason = match (&self.spool, lost.map(FileOffset)) {
            (Some((_, dir)), Some(offset)) => Err(DumpErrorKind::SpoolUnreadable { dir: dir.clone(), offset }),
            (None, Some(offset)) if self.source.is_none() => Err(DumpErrorKind::Unreadable { offset }),
            _ => self.source.as_ref().map_or(Ok(()), |source| source.check(lost)),
        };
        let path = || self.source.as_ref().map_or_else(PathBuf::new, |source| source.path.clone());
        reason.map_err(|reason| DumpError { path: path(), reason })
    }
}

/// Whether mapping failed because the file system has no way to do so, though it reads.
pub(super) fn is_unmappable(error: &DumpErrorKind) -> bool {
    let has_no_way = |source: &io::Error| source.raw_os_error() == Some(Errno::NODEV.raw_os_error());
    matches!(error, DumpErrorKind::Io { doing: MAP, source } if has_no_way(source))
}

/// Maps the whole of an open file.
///
/// Private to us, because some file systems cannot share a map; as we only read, it is the same.
fn map_file(mut file: &File) -> Result<Mmap, DumpErrorKind> {
    // The end, not the metadata: a block device has a size only here.
    let size = file.seek(SeekFrom::End(0)).map_err(|e| explain("measure", e))?;
    map_part(file, 0..size)
}

/// Maps a part of an open file.
fn map_part(file: &File, part: Range<u64>) -> Result<Mmap, DumpErrorKind> {
    if part.is_empty() {
        return Err(DumpErrorKind::Empty);
    }
    let len = usize::try_from(part.end - part.start)
        .map_err(|_| explain(MAP, io::Error::new(io::ErrorKind::FileTooLarge, "larger than the address space")))?;
    // SAFETY: a mapping is sound for as long as nobody changes or shortens the file. We do neither: a dump is opened for
    // reading alone, and a spool file has no name by which others could reach it. Another program can; that is a risk that
    // all tools that map evidence take. Where the file was shortened, `fault` keeps the process alive; that it changed is
    // noticed by `Source::check` before anything is reported.
    unsafe { MmapOptions::new().offset(part.start).len(len).map_copy_read_only(file) }.map_err(|e| explain(MAP, e))
}

/// Long stretches of a file in which it has no bytes, as far as its file system tells them from written zeros: as zeros
/// they are read. Sorted; `size` is that of the file.
fn holes(file: &File, size: u64) -> Vec<Range<u64>> {
    let mut holes = Vec::new();
    let mut at = 0;
    while let Ok(hole) = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(at)) {
        // The end of the file counts as one.
        if hole >= size || holes.len() == MAX_RANGES {
            break;
        }
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(hole)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            Err(_) => break,
        };
        if data - hole.min(data) >= MIN_HOLE {
            holes.push(hole..data);
        }
        at = data.max(hole + 1);
    }
    holes
}

/// What is neither a file nor a block device cannot be mapped.
fn refuse_type(metadata: &fs::Metadata) -> Option<DumpErrorKind> {
    if metadata.is_dir() {
        return Some(DumpErrorKind::Directory);
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = metadata.file_type();
        if kind.is_fifo() {
            return Some(DumpErrorKind::NotAFile("pipe"));
        }
        if kind.is_socket() {
            return Some(DumpErrorKind::NotAFile("socket"));
        }
        if kind.is_char_device() {
            return Some(DumpErrorKind::NotAFile("character device"));
        }
    }
    None
}

/// The system's error, with a kind of its own where we know better advice than its words.
fn explain(doing: &'static str, source: io::Error) -> DumpErrorKind {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => DumpErrorKind::Missing,
        io::ErrorKind::PermissionDenied => DumpErrorKind::Permission,
        _ => DumpErrorKind::Io { doing, source },
    }
}
