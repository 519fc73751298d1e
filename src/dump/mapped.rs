//! What a process image lacks: mapped files, which cores leave out, and other memory.
//!
//! Unless `coredump_filter` says otherwise (core(5)), a core holds neither memory that can be read again from a file
//! nor named shared memory. Weights in a mapped checkpoint are then missing. The core's NT_FILE note names the files,
//! and so does the maps file of a copy of /proc/PID/mem.

use std::ffi::OsStr;
use std::fmt;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use crate::addr::PhysAddr;
use crate::diagnostic::{Code, Diagnostic};

/// The suffix that the kernel adds to the path of a deleted file (`d_path`).
const DELETED: &[u8] = b" (deleted)";
/// Maximum bytes of a path: PATH_MAX of linux/limits.h, and the suffix for a deleted file.
pub(super) const MAX_NAME: usize = 4096 + 16;
/// How the kernel names memory that is shared without a file of its own: `memfd_create`, `shmget`, and shared anonymous memory.
const MEMFD: &[u8] = b"/memfd:";
const SYSV: &[u8] = b"/SYSV";
const ANONYMOUS: &[u8] = b"/dev/zero";
/// Huge pages without a name, and where files of huge pages are mounted.
const HUGE_PAGES: [&[u8]; 2] = [b"/anon_hugepage", b"/dev/hugepages"];
/// Where POSIX shared memory has its names (shm_open(3)).
const SHARED_MEMORY: &[u8] = b"/dev/shm/";
const DEVICES: &[u8] = b"/dev/";

/// A range of a process's memory that is mapped from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMapping {
    /// Its addresses, which are virtual.
    pub addresses: Range<PhysAddr>,
    /// Where in the file the first byte lies.
    pub offset: u64,
    /// The file, as the kernel named it when the image was taken.
    pub path: Arc<Path>,
    /// Whether the process could write to it; `None` if the image does not say.
    pub writable: Option<bool>,
    /// Whether writes of the process went to the file; `None` if the image does not say.
    pub shared: Option<bool>,
}

impl FileMapping {
    /// Where in the file the byte at an address of the mapping lies.
    pub fn offset_of(&self, at: PhysAddr) -> u64 {
        self.offset.saturating_add(at.0.saturating_sub(self.addresses.start.0))
    }

    /// Where in the file the mapping ends.
    pub(super) fn end_offset(&self) -> u64 {
        self.offset_of(self.addresses.end)
    }
}

/// What a mapped file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A file in a folder.
    Named,
    /// A deleted file.
    Deleted,
    /// POSIX shared memory: a file in /dev/shm.
    SharedMemory,
    /// Shared memory without a file: `memfd_create`, or an anonymous mapping that is shared.
    Anonymous,
    /// System V shared memory.
    SystemV,
    /// Memory in huge pages.
    HugePages,
    /// Memory of a device, or of something else that is not a file.
    Device,
}

impl FileKind {
    /// The kind for a path as the kernel names it.
    pub fn of(path: &Path) -> Self {
        let path = path.as_os_str().as_bytes();
        let begins = |prefix: &[u8]| path.starts_with(prefix);
        if HUGE_PAGES.iter().any(|prefix| begins(prefix)) {
            Self::HugePages
        } else if begins(MEMFD) || begins(ANONYMOUS) {
            Self::Anonymous
        } else if begins(SYSV) {
            Self::SystemV
        } else if begins(SHARED_MEMORY) {
            Self::SharedMemory
        } else if begins(DEVICES) || !begins(b"/") {
            Self::Device
        } else if path.ends_with(DELETED) {
            Self::Deleted
        } else {
            Self::Named
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "mapped file",
            Self::Deleted => "deleted mapped file",
            Self::SharedMemory => "shared memory",
            Self::Anonymous => "anonymous shared memory",
            Self::SystemV => "System V shared memory",
            Self::HugePages => "huge-page memory",
            Self::Device => "device mapping",
        })
    }
}

/// The path without the suffix that the kernel adds for a deleted file.
pub(super) fn without_deleted(path: &Path) -> &Path {
    let bytes = path.as_os_str().as_bytes();
    Path::new(OsStr::from_bytes(bytes.strip_suffix(DELETED).unwrap_or(bytes)))
}

/// The kind of a process image, which decides what the image leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageKind {
    /// A core.
    #[default]
    Core,
    /// A copy of /proc/PID/mem.
    Copy,
}

impl ImageKind {
    /// What leaves memory out, as a phrase for messages.
    fn leaves_out(self) -> &'static str {
        match self {
            Self::Core => "cores leave out",
            Self::Copy => "the copy of /proc/PID/mem leaves out",
        }
    }

    /// How to capture an image that holds it.
    fn remedy(self) -> &'static str {
        match self {
            Self::Core => "set coredump_filter to 0x7f before the capture, copy /proc/PID/mem instead",
            Self::Copy => "copy all readable mappings",
        }
    }
}

/// Why an address is not in a process image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The image should hold it, but ends before it.
    Cut,
    /// It is in a mapped file, with this index in [`Mappings::files`].
    File(usize),
    /// It is in a mapped file, past the end of the file that was passed for it.
    PastEnd(usize),
    /// The process had it mapped, but the image leaves it out.
    LeftOut,
    /// The image does not say whether it was mapped.
    Unknown,
}

/// A mapping of a process, whether its image holds the bytes or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its addresses, which are virtual.
    pub addresses: Range<PhysAddr>,
    /// Whether it could be read, written and executed.
    pub access: [bool; 3],
    /// Whether what the process wrote there was its own; `None` where the image does not say.
    pub private: Option<bool>,
    /// What the kernel calls it, as `[heap]`, where the image says.
    pub name: Option<String>,
}

/// What is known about a process's mappings, besides the bytes in the image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    pub(super) kind: ImageKind,
    /// All mappings, sorted, as the image lists them.
    pub(super) segments: Vec<Segment>,
    /// Sorted, without overlap.
    pub(super) files: Vec<FileMapping>,
    /// Ranges that the image should hold but does not; sorted, without overlap.
    pub(super) cut: Vec<Range<PhysAddr>>,
    /// Ranges that were mapped but are left out, sorted in the same way; for a copy, everything that was mapped.
    pub(super) left_out: Vec<Range<PhysAddr>>,
}

/// The range among sorted ranges that contains an address.
fn holder(ranges: &[Range<PhysAddr>], at: PhysAddr) -> Option<&Range<PhysAddr>> {
    let after = ranges.partition_point(|range| range.start <= at);
    ranges.get(after.checked_sub(1)?).filter(|range| at < range.end)
}

impl Mappings {
    /// All mappings, sorted by address; they may overlap where the image contradicts itself.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The mapped files, sorted by address.
    pub fn files(&self) -> &[FileMapping] {
        &self.files
    }

    /// Why an address is not in the image; `size_of` returns the size of the file that was passed for a mapping.
    pub(super) fn absence(&self, at: PhysAddr, size_of: impl Fn(&FileMapping) -> Option<u64>) -> Absence {
        if self.is_cut(at) {
            return Absence::Cut;
        }
        let after = self.files.partition_point(|file| file.addresses.start <= at);
        let file = after.checked_sub(1).and_then(|index| Some((index, self.files.get(index)?)));
        match file.filter(|(_, file)| at < file.addresses.end) {
            Some((index, file)) if size_of(file).is_some_and(|size| file.offset_of(at) >= size) => {
                Absence::PastEnd(index)
            }
            Some((index, _)) => Absence::File(index),
            None if holder(&self.left_out, at).is_some() => Absence::LeftOut,
            None => Absence::Unknown,
        }
    }

    /// Whether the image should hold the address, and ends before it.
    fn is_cut(&self, at: PhysAddr) -> bool {
        holder(&self.cut, at).is_some()
    }

    /// The reason for an absence at an address, as text.
    pub(super) fn explain(&self, at: PhysAddr, absence: Absence) -> String {
        let file = |index: usize| self.files.get(index);
        match absence {
            Absence::Cut => "the process image is cut off before it".to_owned(),
            Absence::File(index) => file(index).map_or_else(String::new, |file| {
                let (kind, by) = (FileKind::of(&file.path), self.kind.leaves_out());
                format!("it lies in the {kind} {} at offset {:#x}, which {by}", file.path.display(), file.offset_of(at))
            }),
            Absence::PastEnd(index) => file(index).map_or_else(String::new, |file| {
                let (kind, offset) = (FileKind::of(&file.path), file.offset_of(at));
                let path = file.path.display();
                format!(
                    "it lies in the {kind} {path} at offset {offset:#x}, past the end of the file that was given for it"
                )
            }),
            Absence::LeftOut => {
                let (image, why) = match self.kind {
                    ImageKind::Core => ("core", " (coredump_filter, MADV_DONTDUMP, or unreadable memory)"),
                    ImageKind::Copy => ("copy of /proc/PID/mem", ""),
                };
                format!("the process had it mapped, but the {image} leaves it out{why}")
            }
            Absence::Unknown => format!("{at} is not in the process image"),
        }
    }

    /// The warning about objects, such as `m0: 6 tensors`, whose bytes are in a mapped file from an offset on.
    pub(crate) fn missing_bytes(&self, what: &str, file: &FileMapping, from: u64) -> Diagnostic {
        let kind = FileKind::of(&file.path);
        let place = format!("{what} in the {kind} {} from offset {from:#x} on", file.path.display());
        if kind == FileKind::Device {
            let message = format!("{place}, whose memory is never in a process image");
            return Diagnostic::new(Code::BytesInMappedFile, None, message);
        }
        let (by, remedy) = (self.kind.leaves_out(), self.kind.remedy());
        let copy = match kind {
            FileKind::Named => "pass the file with `--file PATH`",
            FileKind::SharedMemory => "pass a copy of the file with `--file PATH`",
            _ => {
                "copy it from /proc/PID/map_files while the process runs and pass the copy with `--file RECORDED=COPY`"
            }
        };
        let warning = Diagnostic::new(Code::BytesInMappedFile, None, format!("{place}, which {by}"));
        Diagnostic { hint: Some(format!("{remedy}, or {copy}")), ..warning }
    }
}

/// Sorts file mappings by address. Of overlapping mappings the first is kept. Returns how many were dropped.
pub(super) fn sort_files(files: &mut Vec<FileMapping>) -> usize {
    let before = files.len();
    files.sort_by_key(|file| (file.addresses.start, file.addresses.end));
    let mut end = PhysAddr(0);
    files.retain(|file| {
        let is_free = file.addresses.start >= end && file.addresses.start < file.addresses.end;
        if is_free {
            end = file.addresses.end;
        }
        is_free
    });
    before - files.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, end: u64, offset: u64, path: &str) -> FileMapping {
        let addresses = PhysAddr(start)..PhysAddr(end);
        FileMapping { addresses, offset, path: Path::new(path).into(), writable: None, shared: None }
    }

    #[test]
    fn kinds_are_told_by_the_path() {
        let kinds = [
            ("/models/model.safetensors", FileKind::Named),
            ("/models/model.safetensors (deleted)", FileKind::Deleted),
            ("/dev/shm/torch_12_34", FileKind::SharedMemory),
            ("/memfd:weights (deleted)", FileKind::Anonymous),
            ("/dev/zero (deleted)", FileKind::Anonymous),
            ("/SYSV0000002a (deleted)", FileKind::SystemV),
            ("/anon_hugepage (deleted)", FileKind::HugePages),
            ("/dev/hugepages/pool", FileKind::HugePages),
            ("/dev/nvidia0", FileKind::Device),
            ("anon_inode:[perf_event]", FileKind::Device),
        ];
        for (path, kind) in kinds {
            assert_eq!(FileKind::of(Path::new(path)), kind, "{path}");
        }
        assert_eq!(without_deleted(Path::new("/a b (deleted)")), Path::new("/a b"));
    }

    #[test]
    fn each_absence_has_its_reason() {
        let mappings = Mappings {
            files: vec![mapping(0x1000, 0x3000, 0x5000, "/m.safetensors"), mapping(0x3000, 0x4000, 0, "/short")],
            cut: vec![PhysAddr(0x2000)..PhysAddr(0x2800)],
            left_out: vec![PhysAddr(0x3000)..PhysAddr(0x6000)],
            ..Mappings::default()
        };
        let size = |file: &FileMapping| file.path.ends_with("short").then_some(0x10);
        let why = |at| mappings.absence(PhysAddr(at), size);
        let absences = [0xfff, 0x1010, 0x2000, 0x2800, 0x300f, 0x3010, 0x4000, 0x6000].map(why);
        use Absence::{Cut, File, LeftOut, PastEnd, Unknown};
        assert_eq!(absences, [Unknown, File(0), Cut, File(0), File(1), PastEnd(1), LeftOut, Unknown]);
        let reason = mappings.explain(PhysAddr(0x1010), File(0));
        assert_eq!(reason, "it lies in the mapped file /m.safetensors at offset 0x5010, which cores leave out");
        let past = mappings.explain(PhysAddr(0x3010), PastEnd(1));
        assert!(past.contains("/short at offset 0x10") && past.contains("past the end"), "{past}");
    }

    #[test]
    fn mappings_that_overlap_are_dropped() {
        let mut files = vec![
            mapping(0x5000, 0x6000, 0, "/c"),
            mapping(0x1000, 0x3000, 0, "/a"),
            mapping(0x2000, 0x4000, 0, "/b"),
            mapping(0x7000, 0x7000, 0, "/empty"),
            mapping(0x9000, 0x8000, 0, "/backwards"),
        ];
        assert_eq!(sort_files(&mut files), 3);
        let starts: Vec<u64> = files.iter().map(|file| file.addresses.start.0).collect();
        assert_eq!(starts, [0x1000, 0x5000]);
    }
}
