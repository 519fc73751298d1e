//! The dump file: which container it is, what ranges of memory it holds.
//!
//! ```text
//!  file ──> sniff ──> (spool: unpack into a nameless file, sniff again) ──> lime │ elf │ raw │ maps ──> PhysicalMemory
//! ```
//!
//! A dump is of a machine, with physical addresses, or of one process, with virtual ones: [`Addresses`].
//!
//! A dump is recognised by its content, never by its name. Where it is damaged, what is there is
//! used, and [`Dump::warnings`] says what is not; where it is something else, [`DumpErrorKind`] says
//! what, and what to do about it.

pub(crate) mod core_notes;
mod coverage;
mod elf;
mod error;
mod fault;
mod fill;
mod foreign;
mod lime;
mod mapped;
mod maps;
mod memory;
mod parts;
mod process_core;
mod question;
mod remote;
mod shards;
mod sniff;
mod source;
mod spool;
mod sysroot;
mod text;
mod unpacked_size;

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use remote::RemoteFile;
use serde::Serialize;

use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};
pub use error::{DumpError, DumpErrorKind};
pub use fault::catch_unreadable_pages;
pub use fill::{FillError, FilledFile, MappedFiles};
pub use mapped::{Absence, FileKind, FileMapping, ImageKind, Mappings, Segment};
#[cfg(feature = "gpu")]
pub(crate) use memory::MemoryKey;
pub use memory::{FilledPart, MemoryRange, PhysicalMemory, RangeError};
pub(crate) use question::{Envelope, Kept, PARTS, SUBTREE, answer_parts, answer_subtree, decode, encode};
pub use question::{Question, ShardMemory};
pub use remote::{Remote, ShardQuestion};
pub use shards::{RemoteMemory, ShardPart};
use sniff::Kind;
pub use source::{MappedFile, Source};

/// The container of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// No container: the offset in the file is the physical address; or, by a maps file, mappings of a process one after
    /// another.
    Raw,
    /// LiME (also written by AVML 1): ranges back to back, each behind a 32-byte header.
    Lime,
    /// An ELF core: of a machine, whose segments carry physical addresses (QEMU, libvirt, /proc/kcore, /proc/vmcore), or of a
    /// process (gdb's gcore, the kernel's core dumps).
    Elf,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Lime => "LiME",
            Self::Elf => "ELF",
        })
    }
}

/// The compression around a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard frames, with windows of up to 2³¹ bytes.
    Zstd,
    /// Gzip members.
    Gzip,
    /// Xz streams.
    Xz,
    /// A zlib stream, as LiME 1.9 and later writes it with `compress=1`.
    Zlib,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zlib => "zlib",
        })
    }
}

/// What the addresses of a dump's ranges are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Those on the memory bus: the dump is of a machine.
    Physical,
    /// Those of one process, whose image the dump is.
    Virtual(ProcessImage),
}

impl Addresses {
    /// Their name in documents.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Physical => "physical",
            Self::Virtual(_) => "virtual",
        }
    }

    /// The process, where they are those of one.
    pub fn process(&self) -> Option<&ProcessImage> {
        match self {
            Self::Physical => None,
            Self::Virtual(image) => Some(image),
        }
    }
}

/// The process that an image is of, as far as the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessImage {
    /// Its id.
    pub pid: Option<u32>,
    /// Its command's name, as the kernel keeps it: up to 15 bytes; what is no UTF-8 is replaced.
    pub comm: Option<String>,
    /// The process that created it.
    pub ppid: Option<u32>,
    /// The user that it runs as.
    pub uid: Option<u32>,
    /// Its state, as a letter: `R`, `S`, `D`, `T` or `Z`.
    pub state: Option<char>,
    /// The ids of its threads; the first is of the thread that the image was taken for.
    pub threads: Vec<u32>,
    /// Its auxiliary vector (getauxval(3)): pairs of a type and a value.
    pub auxiliary_vector: Vec<(u64, u64)>,
}

/// How to open a dump.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Where a compressed dump is unpacked, into a file without a name; `None` is the system's
    /// folder for temporary files.
    pub spool_dir: Option<PathBuf>,
    /// What the dump is, whatever its content looks like. A compressed file is unpacked all the
    /// same: this is the format of what is in it.
    pub format: Option<Format>,
    /// A copy of /proc/PID/maps: the dump is a copy of /proc/PID/mem, the mappings one after another. It has no other format.
    pub maps: Option<PathBuf>,
}

/// An opened dump.
pub struct Dump {
    /// The memory of the machine, or of the process.
    pub memory: PhysicalMemory,
    /// Which of them.
    pub addresses: Addresses,
    /// The container.
    pub format: Format,
    /// The compression around it, if any.
    pub compression: Option<Compression>,
    /// Bytes in the file as given.
    pub file_size: u64,
    /// Bytes in the container: as `file_size`, or what the file unpacks to.
    pub size: u64,
    /// What the user should know.
    pub warnings: Vec<Diagnostic>,
    /// Whether memory that the container announces is missing from it.
    pub damaged: bool,
}

/// What a container's parser found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    /// In the order of the file, free of overlaps.
    ranges: Vec<MemoryRange>,
    /// The process, where the container holds the image of one.
    image: Option<ProcessImage>,
    /// What is known about its mappings, besides its ranges.
    mappings: Mappings,
    /// Those of an image's ranges that the process could execute and not write.
    code: Vec<Range<PhysAddr>>,
    warnings: Vec<Diagnostic>,
    damaged: bool,
}

/// Most ranges that a container may have. The largest machines have some hundreds; the limit keeps
/// a file made of headers alone from filling our memory.
const MAX_RANGES: usize = 1 << 20;
/// Bytes of a maps file that are looked at: [`MAX_RANGES`] lines are shorter.
const MAX_MAPS: u64 = (MAX_RANGES as u64) << 8;
/// Bytes that no line of it has: a path has at most 4096 (`PATH_MAX`, include/uapi/linux/limits.h, Linux 6.12), each written as
/// up to four characters.
const MAX_MAPS_LINE: u64 = 1 << 16;

/// Opens the dump at `path`, as [`open_source`] does.
///
/// # Errors
/// Like [`open_source`], or the file can't be opened.
pub fn open(path: &Path, options: &OpenOptions, progress: &dyn Fn(u64, u64)) -> Result<Dump, DumpError> {
    open_source(Source::open(path)?, options, progress)
}

/// Opens a dump: maps it, or unpacks it first where it is compressed. Where the file system
/// cannot map, the file is copied first to where it would be unpacked.
///
/// `progress` is called from this thread while a dump is unpacked or copied, with the bytes of the file that
/// are used up and the bytes it has; it is not called for a dump that is mapped as it is.
///
/// A file that is truncated while it is mapped ends the process, unless [`catch_unreadable_pages`] was called before.
/// [`PhysicalMemory::check`] says whether the file was truncated or changed.
///
/// # Errors
///
/// [`DumpErrorKind`] has one for each thing that the file may be instead of a dump, and for each
/// contradiction in its headers. A dump that only misses a part opens, with [`Dump::damaged`] set.
pub fn open_source(source: Source, options: &OpenOptions, progress: &dyn Fn(u64, u64)) -> Result<Dump, DumpError> {
    let path = source.path().to_owned();
    open_inner(source, &path, options, progress).map_err(|reason| DumpError { path, reason })
}

fn open_inner(
    source: Source,
    path: &Path,
    options: &OpenOptions,
    progress: &dyn Fn(u64, u64),
) -> Result<Dump, DumpErrorKind> {
    let maps = options.maps.as_deref().map(read_maps).transpose()?;
    let spool_dir = || options.spool_dir.clone().unwrap_or_else(std::env::temp_dir);
    // What was read is believed only if all of it could be read.
    let check = |map: &MappedFile| map.check().map_err(|error| error.reason);
    let mut copied = None;
    let given = match MappedFile::new(source) {
        Err((error, source)) if source::is_unmappable(&error) => {
            let dir = spool_dir();
            let message =
                format!("the dump's file system cannot map files, so the dump was first copied to {}", dir.display());
            copied = Some(Diagnostic::new(Code::CopiedDump, None, message));
            let copy = spool::copy(source.file(), &dir, progress)?;
            MappedFile::spooled(copy, dir, Some(source))?
        }
        mapped => mapped.map_err(|(error, _)| error)?,
    };
    let file_size = given.len() as u64;
    let kind = sniff::sniff(&given);
    check(&given)?;
    let (map, compression, kind) = match kind {
        Kind::Compressed(compression) => {
            let dir = spool_dir();
            let unpacked = spool::unpack(compression, &given, &dir, progress);
            check(&given)?;
            let map = MappedFile::spooled(unpacked?, dir, given.into_source())?;
            let kind = sniff::sniff(&map);
            (map, Some(compression), kind)
        }
        kind => (given, None, kind),
    };
    let forced = if maps.is_some() { Some(Format::Raw) } else { options.format };
    let format = select_format(forced, compression, kind, map.len() as u64)?;
    let is_placed = maps.is_some();
    let contents = match (format, maps) {
        (_, Some(maps)) => maps::parse(&map, &maps),
        (Format::Raw, None) => Ok(raw(map.len() as u64)),
        (Format::Lime, None) => lime::parse(&map),
        (Format::Elf, None) => elf::parse(&map),
    };
    check(&map)?;
    let size = map.len() as u64;
    let Contents { ranges, image, mappings, code: mut unsearchable, mut warnings, damaged } = contents?;
    if image.is_some() {
        unsearchable.extend(unwritten(&ranges, &map.holes()));
    }
    let memory = PhysicalMemory::mapped(map, ranges)?.with_unsearchable(&unsearchable).with_mappings(mappings);
    let addresses = image.map_or(Addresses::Physical, Addresses::Virtual);
    warnings.extend(copied);
    if damaged || format == Format::Raw && !is_placed {
        warnings.extend(parts::warning(path));
    }
    Ok(Dump { memory, addresses, format, compression, file_size, size, warnings, damaged })
}

/// How a dump that lies elsewhere is divided and read.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// As for a dump that is a file; the parts that are read are kept in [`OpenOptions::spool_dir`]. No maps file.
    pub open: OpenOptions,
    /// Bytes of a shard, the part of the file that a worker has as a whole: rounded up to a power of two.
    pub shard: u64,
}

/// Opens a dump of `size` bytes that lies elsewhere, under the name that messages and documents give it. It is a machine's, in a
/// container whose ranges can be found without reading all of it.
///
/// # Errors
/// As for [`open`]; compressed dumps and process images are refused.
pub fn open_remote(
    remote: Arc<dyn Remote>,
    name: &Path,
    size: u64,
    options: &RemoteOptions,
) -> Result<Dump, DumpError> {
    open_remote_inner(remote, name, size, options).map_err(|reason| DumpError { path: name.to_owned(), reason })
}

fn open_remote_inner(
    remote: Arc<dyn Remote>,
    name: &Path,
    size: u64,
    options: &RemoteOptions,
) -> Result<Dump, DumpErrorKind> {
    let RemoteOptions { open: OpenOptions { spool_dir, format, .. }, shard } = options;
    if size == 0 {
        return Err(DumpErrorKind::Empty);
    }
    let dir = spool_dir.clone().unwrap_or_else(std::env::temp_dir);
    let file = RemoteFile::new(remote, name, size, &dir, *shard)?;
    let fetch = |part: Range<u64>| file.fetch(std::iter::once(part));
    let check = || file.check().map_err(|error| error.reason);
    fetch(0..size.min(sniff::SAMPLE as u64));
    check()?;
    let sample = file.sparse().get(..sniff::SAMPLE).unwrap_or(file.sparse());
    let kind = sniff::sniff(sample);
    if let (None, Kind::Compressed(compression)) = (format, &kind) {
        let (what, remedy) =
            (format!("compressed ({compression})"), "unpack it first, to where the workers can read it");
        return Err(DumpErrorKind::Indivisible { what, remedy });
    }
    let format = select_format(*format, None, kind, size)?;
    let contents = match format {
        Format::Raw => Ok(raw(size)),
        Format::Lime => lime::parse_fetched(file.sparse(), &fetch),
        Format::Elf => elf::parse_fetched(file.sparse(), &fetch),
    };
    check()?;
    let Contents { ranges, image, warnings, damaged, .. } = contents?;
    if image.is_some() {
        let (what, remedy) = ("the image of one process", "copy it here and use `tensorcarve recover`");
        return Err(DumpErrorKind::Indivisible { what: what.to_owned(), remedy });
    }
    let memory = PhysicalMemory::elsewhere(file, ranges)?;
    let (addresses, compression) = (Addresses::Physical, None);
    Ok(Dump { memory, addresses, format, compression, file_size: size, size, warnings, damaged })
}

/// The whole pages of the ranges that lie in these holes of the file: zeros that nobody wrote.
fn unwritten(ranges: &[MemoryRange], holes: &[Range<u64>]) -> Vec<Range<PhysAddr>> {
    let in_range = |range: &MemoryRange| {
        let (offset, start, len) = (range.offset.0, range.start.0, range.len());
        let first = holes.partition_point(|hole| hole.end <= offset);
        let holes = holes.iter().skip(first).take_while(move |hole| hole.start < offset + len);
        holes.map(move |hole| start + hole.start.saturating_sub(offset)..start + (hole.end - offset).min(len))
    };
    // Hostile ranges can all lie in the same holes: what is left out of this list is searched.
    let unwritten = ranges.iter().flat_map(in_range).take(MAX_RANGES);
    let pages = |bytes: Range<u64>| {
        let first = bytes.start.checked_next_multiple_of(FRAME_SIZE).unwrap_or(bytes.end);
        PhysAddr(first)..PhysAddr(bytes.end).frame()
    };
    unwritten.map(pages).filter(|pages| pages.start < pages.end).collect()
}

/// The text of a maps file; what is no UTF-8 in the names of files is replaced.
fn read_maps(path: &Path) -> Result<String, DumpErrorKind> {
    let read = || -> Result<String, DumpErrorKind> {
        let source = Source::open_inner(path)?;
        let mut file = BufReader::new(source.file().take(MAX_MAPS));
        let (mut text, mut bytes) = (String::new(), Vec::new());
        for line in 1.. {
            bytes.clear();
            let mut rest = file.by_ref().take(MAX_MAPS_LINE);
            let read =
                rest.read_until(b'\n', &mut bytes).map_err(|source| DumpErrorKind::Io { doing: "read", source })?;
            text.push_str(&String::from_utf8_lossy(&bytes));
            if read as u64 == MAX_MAPS_LINE {
                return Err(maps::too_long(line, &text));
            }
            if read == 0 {
                break;
            }
        }
        Ok(text)
    };
    read().map_err(|reason| DumpErrorKind::MapsFile { path: path.to_owned(), reason: Box::new(reason) })
}

/// The format of the content: what the user says, or else what it looks like.
fn select_format(
    forced: Option<Format>,
    outer: Option<Compression>,
    kind: Kind,
    size: u64,
) -> Result<Format, DumpErrorKind> {
    match (forced, kind) {
        (Some(format), _) => Ok(format),
        (None, Kind::Dump(format)) => Ok(format),
        (None, Kind::Refused(reason)) => Err(reason),
        (None, Kind::Compressed(inner)) => {
            Err(DumpErrorKind::NestedCompression { outer: outer.unwrap_or(inner), inner })
        }
        (None, Kind::Unknown) if size < FRAME_SIZE => Err(DumpErrorKind::TooSmall(size)),
        (None, Kind::Unknown) => Ok(Format::Raw),
    }
}

/// A dump without a container.
fn raw(size: u64) -> Contents {
    let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(size), offset: FileOffset(0) };
    let odd = size % FRAME_SIZE;
    let warning = (odd != 0).then(|| {
        let message = format!("the raw dump ends {odd} bytes into a 4096-byte page: it may have been cut off");
        Diagnostic::new(Code::PartialPage, Some(FileOffset(size).into()), message)
    });
    Contents { ranges: vec![range], warnings: warning.into_iter().collect(), ..Contents::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_can_be_shared_between_threads() {
        fn check<T: Send + Sync>() {}
        check::<Dump>();
        check::<DumpError>();
    }

    #[test]
    fn the_users_word_counts_more_than_the_content() {
        let picture = || Kind::Refused(DumpErrorKind::OtherFile("a picture"));
        assert!(matches!(select_format(Some(Format::Raw), None, picture(), 1), Ok(Format::Raw)));
        assert!(matches!(select_format(None, None, picture(), 9999), Err(DumpErrorKind::OtherFile(_))));
        assert!(matches!(select_format(None, None, Kind::Unknown, 4096), Ok(Format::Raw)));
        assert!(matches!(select_format(None, None, Kind::Unknown, 4095), Err(DumpErrorKind::TooSmall(4095))));
        let nested = select_format(None, Some(Compression::Xz), Kind::Compressed(Compression::Gzip), 9999);
        assert!(matches!(nested, Err(DumpErrorKind::NestedCompression { .. })));
    }

    #[test]
    fn formats_are_lower_case_in_reports() {
        assert_eq!(serde_json::to_string(&Format::Lime).unwrap(), "\"lime\"");
        assert_eq!(serde_json::to_string(&Compression::Zstd).unwrap(), "\"zstd\"");
    }
}
