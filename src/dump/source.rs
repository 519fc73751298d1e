//! The file on disk: what it is to the system, and its bytes, mapped.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};
use rustix::io::Errno;

use super::{DumpErrorKind, MAX_RANGES};

/// Bytes of a hole that is worth to be known: each cuts memory in two.
const MIN_HOLE: u64 = 1 << 20;
/// What failed, as a verb.
const MAP: &str = "map";

/// Opens the file that the user named. Fails where it is no file, or may not be read.
pub(super) fn open(path: &Path) -> Result<File, DumpErrorKind> {
    // Looked at before it is opened: opening a pipe would wait for somebody to write into it.
    let metadata = fs::metadata(path).map_err(|e| explain("find", e))?;
    if let Some(refusal) = refuse_type(&metadata) {
        return Err(refusal);
    }
    File::open(path).map_err(|e| explain("open", e))
}

/// Whether mapping failed because the file system has no way to do so, though it reads.
pub(super) fn is_unmappable(error: &DumpErrorKind) -> bool {
    let has_no_way = |source: &io::Error| source.raw_os_error() == Some(Errno::NODEV.raw_os_error());
    matches!(error, DumpErrorKind::Io { doing: MAP, source } if has_no_way(source))
}

/// Maps the whole of an open file.
///
/// Private to us, because some file systems cannot share a map; as we only read, it is the same.
pub(super) fn map_file(mut file: &File) -> Result<Mmap, DumpErrorKind> {
    // The end, not the metadata: a block device has a size only here.
    let size = file.seek(SeekFrom::End(0)).map_err(|e| explain("measure", e))?;
    if size == 0 {
        return Err(DumpErrorKind::Empty);
    }
    let len = usize::try_from(size)
        .map_err(|_| explain(MAP, io::Error::new(io::ErrorKind::FileTooLarge, "larger than the address space")))?;
    // SAFETY: a mapping is sound for as long as nobody changes or shortens the file. We do neither:
    // a dump is opened for reading alone, and a spool file has no name by which others could reach
    // it. A dump that another program changes meanwhile is a risk that we take, and document, as
    // all tools that map evidence do: evidence is kept from being written to, and the alternative,
    // a copy, is impossible for dumps larger than the memory of this machine.
    unsafe { MmapOptions::new().len(len).map_copy_read_only(file) }.map_err(|e| explain(MAP, e))
}

/// Long stretches of a file in which it has no bytes, as far as its file system tells them from written zeros: as zeros
/// they are read. Sorted; `size` is that of the file.
pub(super) fn holes(file: &File, size: u64) -> Vec<Range<u64>> {
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
