//! Why a file could not be opened as a dump, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::{Compression, Format, RangeError};
use crate::addr::{FileOffset, PhysAddr};

/// A file that could not be opened as a dump.
///
/// Offsets count bytes of the file, or of its unpacked content where the file is compressed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct DumpError {
    /// The file as it was given.
    pub path: PathBuf,
    /// What is wrong with it. No source of this error: the message holds all of it already.
    pub reason: DumpErrorKind,
}

/// What is wrong with a file that was to be opened as a dump.
///
/// Each message names what was found and what was expected; [`DumpErrorKind::hint`] says what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpErrorKind {
    /// There is no such file.
    #[error("there is no such file")]
    Missing,
    /// A folder was given.
    #[error("is a folder")]
    Directory,
    /// Neither a regular file nor a block device: a pipe, a socket, a character device.
    #[error("is a {0}, which does not allow random access")]
    NotAFile(&'static str),
    /// The user may not read the file.
    #[error("may not be read by this user")]
    Permission,
    /// The system failed to open, measure or map the file.
    #[error("cannot {doing} it ({source})")]
    Io {
        /// What failed, as a verb.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another program changed the size of the file while it was read.
    #[error(
        "changed while it was read: it had {was} bytes when it was opened and has {now} now, so its contents from offset {offset} on are unknown"
    )]
    Resized {
        /// Bytes in the file when it was opened.
        was: u64,
        /// Bytes in it now.
        now: u64,
        /// End of the smaller size.
        offset: FileOffset,
    },
    /// Another program wrote to the file while it was read.
    #[error(
        "changed while it was read: its modification time is no longer the same, so the data that was read may be inconsistent"
    )]
    Rewritten,
    /// The system could not read a part of the file.
    #[error("cannot be read at offset {offset}: the disk or network fails there")]
    Unreadable {
        /// Start of the first unreadable page.
        offset: FileOffset,
    },
    /// A part of a dump that lies elsewhere could not be had.
    #[error("lies elsewhere, and parts of it could not be had: {reason}")]
    Remote {
        /// What whoever has it said.
        reason: String,
    },
    /// A dump that lies elsewhere, and whose memory can't be divided without reading all of it.
    #[error("is {what}, which can't be divided among workers")]
    Indivisible {
        /// What it is, with an article.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The system could not read a part of the spool file.
    #[error(
        "cannot be read at offset {offset} of its unpacked copy in {}: the disk there is full or fails", dir.display()
    )]
    SpoolUnreadable {
        /// The folder of the spool file.
        dir: PathBuf,
        /// Start of the first unreadable page.
        offset: FileOffset,
    },
    /// The file, or what it unpacks to, has no bytes.
    #[error("is empty")]
    Empty,
    /// Taken for raw, but smaller than one page frame.
    #[error("has {0} bytes and no known format, but a single page of memory has 4096 bytes")]
    TooSmall(u64),
    /// A file of another kind.
    #[error("looks like {0}, not a memory dump")]
    OtherFile(&'static str),
    /// A file that holds no memory: text, weights, a program.
    #[error("is {what}, not a memory dump")]
    NoDump {
        /// What it is, with an article.
        what: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// An archive or compression that we do not unpack.
    #[error("is {0}, which tensorcarve does not unpack")]
    Archive(&'static str),
    /// A dump or snapshot in a format that we do not read.
    #[error("is {what}, which tensorcarve does not read")]
    OtherDump {
        /// The format's name, with an article.
        what: &'static str,
        /// How to get a dump that can be read.
        remedy: &'static str,
    },
    /// One part of a split kdump file.
    #[error(
        "is one part of a split, compressed kdump file (page frames {first:#x} to {end:#x}), which tensorcarve does not read"
    )]
    KdumpPart {
        /// Number of the first page frame in it.
        first: u64,
        /// Number of the first page frame that is no longer in it.
        end: u64,
    },
    /// The compressed stream ends before its own end mark.
    #[error("the {compression} stream ends early, after {consumed} bytes ({unpacked} bytes were unpacked)")]
    TruncatedCompression {
        /// The kind of the stream.
        compression: Compression,
        /// Bytes of the file that were used up.
        consumed: u64,
        /// Bytes that came out until then.
        unpacked: u64,
    },
    /// The compressed stream contradicts its own format or checksum.
    #[error("the {compression} stream is damaged around file offset {offset} ({source})")]
    DamagedCompression {
        /// The kind of the stream.
        compression: Compression,
        /// Bytes of the file that were used up.
        offset: FileOffset,
        /// What the decoder said.
        source: io::Error,
    },
    /// Compressed twice.
    #[error("is compressed twice ({inner} inside {outer})")]
    NestedCompression {
        /// The kind of the file.
        outer: Compression,
        /// The kind of its content.
        inner: Compression,
    },
    /// There is no room to unpack the dump.
    #[error(
        "unpacking needs at least {need} bytes in {}, but only {free} are free", dir.display()
    )]
    SpoolSpace {
        /// The folder of the spool file.
        dir: PathBuf,
        /// Bytes needed, as far as the stream tells beforehand: at least this many.
        need: u64,
        /// Bytes free to this user when unpacking began.
        free: u64,
    },
    /// The spool file could not be made or written.
    #[error("cannot unpack into {} ({source})", dir.display())]
    Spool {
        /// The folder of the spool file.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file ends within the first header of its format.
    #[error("the {format} header at file offset {offset} needs {need} bytes, but only {have} are left in the file")]
    CutHeader {
        /// The format that was recognised.
        format: Format,
        /// Where the header starts.
        offset: FileOffset,
        /// Bytes in a header.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// No LiME header where one must be.
    #[error("no LiME header at file offset {offset}: expected the magic 0x4c694d45, found {found:#010x}")]
    LimeMagic {
        /// Where the header should be.
        offset: FileOffset,
        /// The 32-bit word that is there.
        found: u32,
    },
    /// A LiME header of a version that we do not know.
    #[error("the LiME header at file offset {offset} has version {version}, expected 1")]
    LimeVersion {
        /// Where the header starts.
        offset: FileOffset,
        /// The version it claims.
        version: u32,
    },
    /// A LiME header whose range is impossible.
    #[error(
        "the LiME header at file offset {offset} claims memory from {start} to {end}: the end must not be before the start or at the very end of the 64-bit range"
    )]
    LimeRange {
        /// Where the header starts.
        offset: FileOffset,
        /// First byte claimed.
        start: PhysAddr,
        /// Last byte claimed, inclusive.
        end: PhysAddr,
    },
    /// More ranges than any machine has.
    #[error("has more than {limit} {format} ranges (the next one is at file offset {offset})")]
    TooManyRanges {
        /// The format.
        format: Format,
        /// Header of the first range too many.
        offset: FileOffset,
        /// How many are accepted.
        limit: usize,
    },
    /// A sound container that holds no byte of memory.
    #[error("its {format} container holds no memory: {why}")]
    NoMemory {
        /// The format.
        format: Format,
        /// What was looked for in vain.
        why: &'static str,
    },
    /// An ELF file that is no core.
    #[error("is an ELF {0}, not a core (ELF type 4)")]
    ElfNotCore(&'static str),
    /// An ELF core of a machine that we do not read.
    #[error("is an ELF core of {0}, which tensorcarve does not support yet")]
    ElfMachine(String),
    /// A broken ELF header.
    #[error("the ELF header at file offset {offset} is broken ({what})")]
    ElfHeader {
        /// Where the broken header starts.
        offset: FileOffset,
        /// What was expected of it.
        what: &'static str,
    },
    /// An ELF segment that claims addresses past 2⁶⁴.
    #[error("ELF segment {index} claims {len} bytes at address {start}, past the end of the 64-bit range")]
    ElfSegment {
        /// Number of the program header, from 0.
        index: usize,
        /// First byte claimed.
        start: PhysAddr,
        /// Bytes claimed.
        len: u64,
    },
    /// The maps file can't be read.
    #[error("its maps file {}: {reason}", path.display())]
    MapsFile {
        /// The file as it was given.
        path: PathBuf,
        /// Why not, as for a dump.
        reason: Box<DumpErrorKind>,
    },
    /// A line of the maps file is none of /proc/PID/maps.
    #[error("line {line} of its maps file is broken (`{text}`: {what})")]
    MapsLine {
        /// From 1.
        line: usize,
        /// How it begins; control characters are escaped.
        text: String,
        /// What was expected.
        what: &'static str,
    },
    /// No choice of mappings has the size of the copy.
    #[error(
        "has {size} bytes, but by its maps file a copy of /proc/PID/mem has {expected}, where the lower numbers leave out unreadable mappings"
    )]
    MapsSize {
        /// Bytes in the copy.
        size: u64,
        /// The sizes that could fit, in words: the least and the most.
        expected: String,
    },
    /// The sizes fit, but other things are in the copy.
    #[error("does not match its maps file: {path} should begin at file offset {offset} but does not")]
    MapsContent {
        /// Where in the copy.
        offset: FileOffset,
        /// How the path of the file that should begin there begins.
        path: String,
    },
    /// The container's ranges contradict each other or the file.
    #[error("{0}")]
    Ranges(#[from] RangeError),
}

impl DumpErrorKind {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Missing => "check the path",
            Self::Directory => "pass the dump file in it",
            Self::NotAFile(..) => "copy its contents to a file first",
            Self::Permission => "change its mode or owner, or run as a user who may read it",
            Self::Io { .. } => "copy it to a local disk and try again",
            Self::Resized { .. } | Self::Rewritten => "wait until nothing writes to it, or copy it, and run again",
            Self::Unreadable { .. } => {
                "check the system log (`dmesg`), copy the file to another disk, for example with `ddrescue`, and pass \
                 the copy"
            }
            Self::Remote { .. } => "check that it can be read, that its workers run, and run again",
            Self::Indivisible { remedy, .. } => remedy,
            Self::SpoolUnreadable { .. } | Self::Spool { .. } => "choose another folder with --spool-dir",
            Self::Empty => "the capture or the copy failed, so take it again",
            Self::CutHeader { .. } => "the capture or the copy was cut off, so take it again",
            Self::TooSmall(..) => "check that the copy is complete, or use --input-format raw",
            Self::OtherFile(..) => "if it is a raw dump after all, use --input-format raw",
            Self::NoDump { remedy, .. } | Self::OtherDump { remedy, .. } => remedy,
            Self::Archive(..) => "unpack it first and pass the dump inside it",
            Self::KdumpPart { .. } => {
                "take the dump as a single ELF file: `makedumpfile -E` without --split, `virsh dump --memory-only \
                 --format elf`, or `dump-guest-memory` without -z"
            }
            Self::TruncatedCompression { .. } => "copy the file again and compare sizes or hashes",
            Self::DamagedCompression { .. } | Self::ElfHeader { .. } => "copy the file again, or take the dump again",
            Self::NestedCompression { .. } => "unpack the outer layer first",
            Self::SpoolSpace { .. } => "choose a folder on a larger disk with --spool-dir, or unpack the dump yourself",
            Self::LimeMagic { .. } => "if it is a raw dump, use --input-format raw",
            Self::LimeVersion { .. } => "take the dump with LiME's format=lime, or with AVML and `avml-convert`",
            Self::LimeRange { .. } | Self::ElfSegment { .. } | Self::Ranges(..) => {
                "the dump is damaged, so take or copy it again"
            }
            Self::TooManyRanges { .. } => "no machine has so many, so the dump is damaged or malicious",
            Self::NoMemory { .. } => "take the dump again",
            Self::ElfNotCore(..) => {
                "take a dump with LiME, AVML, `virsh dump --memory-only` or `gcore`, or pass the maps file with --maps \
                 if this is a copy of /proc/PID/mem"
            }
            Self::ElfMachine(..) => "only dumps of 64-bit x86 machines can be read",
            Self::MapsFile { reason, .. } => reason.hint(),
            Self::MapsLine { .. } => "copy /proc/PID/maps again",
            Self::MapsSize { .. } => {
                "stop the process, copy maps and mem again as `tensorcarve recover --help` shows, or take a core with \
                 `gcore`, which needs no --maps"
            }
            Self::MapsContent { .. } => "pass the maps file of the same process, from the same time",
        }
    }
}
