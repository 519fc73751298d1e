//! Fills the holes of a process image from mapped files that the user passes.
//!
//! Bytes of the image always take precedence, because it holds the pages that the process has changed. A file may have
//! changed since the capture: it is only used if it agrees with those pages of the image that the process could not
//! write.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::elf::MAGIC;
use super::mapped::{FileKind, FileMapping, ImageKind, Mappings, without_deleted};
use super::memory::subtract;
use super::{
    Addresses, Dump, DumpError, DumpErrorKind, MappedFile, MemoryRange, PhysicalMemory, RangeError, Source, sysroot,
};
use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};
use crate::words::counted;

/// Maximum number of paths in a message.
const LISTED: usize = 8;

/// The files that the user passes for the mapped files of a process.
#[derive(Clone, Debug, Default)]
pub struct MappedFiles {
    /// Each entry is a path whose file name is that of a mapped file, or `RECORDED=PATH`, where RECORDED is the path of
    /// the mapped file or the end of it.
    pub files: Vec<PathBuf>,
    /// A folder with a copy of the machine's files, in which each mapped file is looked up.
    pub sysroot: Option<PathBuf>,
}

/// A file that provides a part of the memory.
#[derive(Debug)]
pub struct FilledFile {
    /// The mapped file, as the kernel named it when the image was taken.
    pub recorded: Arc<Path>,
    /// The file that was given for it.
    pub local: PathBuf,
    /// Bytes in that.
    pub size: u64,
    /// SHA-256 of all of it, in lower-case hex.
    pub sha256: String,
    /// Bytes of memory that come from it.
    pub filled: u64,
    /// Bytes of it that the image also holds, and that agree.
    pub agreed: u64,
    /// Bytes of it past everything that the process had mapped.
    pub unmapped: u64,
    map: MappedFile,
    base: u64,
}

impl FilledFile {
    /// Where it begins in the offsets of [`PhysicalMemory`].
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Checks that everything that was read could be read and has not changed, like [`PhysicalMemory::check`].
    pub(super) fn check(&self) -> Result<(), DumpError> {
        self.map.check()
    }

    /// Whether a page of it could not be read.
    pub(super) fn is_lost(&self) -> bool {
        self.map.is_lost()
    }

    /// Where it ends there.
    pub(super) fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    /// Bytes at such an offset.
    pub(super) fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset.checked_sub(self.base)?).ok()?;
        self.map.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }
}

/// Why the files that the user passed can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The dump is of a machine.
    #[error(
        "--file and --sysroot only work with a process image, but this is a dump of a whole machine, which holds mapped files in its page cache"
    )]
    Machine,
    /// The image lists no mapped files.
    #[error("the process image does not say which files were mapped (in a core's NT_FILE note, or with --maps)")]
    NoMappings,
    /// No mapped file has that name.
    #[error("{given}: no mapped file with missing bytes has this name; candidates: {candidates}")]
    Unmatched {
        /// What the user gave.
        given: String,
        /// The mapped files.
        candidates: String,
    },
    /// Several mapped files have that name.
    #[error("{given}: several mapped files have this name: {candidates}")]
    Ambiguous {
        /// What the user gave.
        given: String,
        /// The mapped files.
        candidates: String,
    },
    /// Two files were given for one.
    #[error("{given}: another file was already given for {recorded}")]
    Twice {
        /// What the user gave.
        given: String,
        /// The mapped file.
        recorded: String,
    },
    /// A file can't be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not, as for a dump.
        reason: DumpErrorKind,
    },
    /// The folder can't be used.
    #[error(
        "{}: cannot be used as --sysroot ({source})", path.display()
    )]
    Sysroot {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The ranges contradict each other.
    #[error(transparent)]
    Ranges(#[from] RangeError),
}

impl FillError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Machine | Self::NoMappings => "omit --file and --sysroot",
            Self::Unmatched { .. } => "pass RECORDED=PATH with one of these, or omit the file",
            Self::Ambiguous { .. } => "pass RECORDED=PATH with one of these",
            Self::Twice { .. } => "pass only one of them",
            Self::Unreadable { reason, .. } => reason.hint(),
            Self::Sysroot { .. } => "pass a folder with a copy of the machine's files",
            Self::Ranges(..) => "copy the process image again",
        }
    }
}

impl Dump {
    /// Fills the holes of a process image from the files that the user passed. [`PhysicalMemory::files`] and the
    /// warnings say what was done.
    ///
    /// # Errors
    /// A file can't be read, or it is not clear which mapped file it stands for. A file that contradicts the image is
    /// not used, with a warning.
    pub fn fill(&mut self, given: &MappedFiles) -> Result<(), FillError> {
        if given.files.is_empty() && given.sysroot.is_none() {
            return Ok(());
        }
        if self.addresses == Addresses::Physical {
            return Err(FillError::Machine);
        }
        let missing = missing(&self.memory);
        if self.memory.mappings().files().is_empty() {
            return Err(FillError::NoMappings);
        }
        let mut wanted: BTreeMap<Arc<Path>, PathBuf> = BTreeMap::new();
        for file in &given.files {
            let (recorded, local) = match_file(file.as_os_str(), &missing)?;
            let (given, name) = (shown(file), shown(&recorded));
            if wanted.insert(recorded, local).is_some() {
                return Err(FillError::Twice { given, recorded: name });
            }
        }
        let mut opened = Vec::new();
        for (recorded, local) in wanted {
            let map = open(&local).map_err(|reason| FillError::Unreadable { path: local.clone(), reason })?;
            opened.push((recorded, local, map));
        }
        if let Some(root) = &given.sysroot {
            self.look_up(root, &missing, &mut opened)?;
        }
        self.use_files(opened)
    }

    /// Opens those mapped files that are under a folder.
    fn look_up(
        &mut self,
        root: &Path,
        missing: &BTreeMap<Arc<Path>, Lack>,
        opened: &mut Vec<(Arc<Path>, PathBuf, MappedFile)>,
    ) -> Result<(), FillError> {
        let unusable = |source| FillError::Sysroot { path: root.to_owned(), source };
        let root = fs::canonicalize(root).map_err(unusable)?;
        fs::read_dir(&root).map_err(unusable)?;
        let mut absent = Vec::new();
        // A deleted file is not the one that may stand in its place now.
        let is_listed = |path: &Path| {
            matches!(FileKind::of(path), FileKind::Named | FileKind::SharedMemory | FileKind::HugePages)
                && without_deleted(path) == path
        };
        let named = missing.iter().filter(|(path, lack)| lack.bytes > 0 && is_listed(path));
        let known: Vec<Arc<Path>> = opened.iter().map(|(recorded, ..)| Arc::clone(recorded)).collect();
        for (recorded, _) in named.filter(|(recorded, _)| !known.contains(recorded)) {
            // The kernel names no path with `..`; many such could stand for one file.
            let climbs = recorded.components().any(|part| part == Component::ParentDir);
            let local = if climbs { None } else { sysroot::resolve(&root, recorded).ok() };
            match local.and_then(|local| Some((open(&local).ok()?, local))) {
                Some((map, local)) => opened.push((Arc::clone(recorded), local, map)),
                None => absent.push(shown(recorded)),
            }
        }
        if !absent.is_empty() {
            let (count, list) = (absent.len(), listed(absent.into_iter()));
            let message = format!(
                "missing or unreadable under {}: {}: {list}",
                root.display(),
                counted(count, "mapped file", "mapped files")
            );
            self.warnings.push(Diagnostic::new(Code::MappedFilesMissing, None, message));
        }
        Ok(())
    }

    /// Checks files against the image, and fills memory from those that pass.
    fn use_files(&mut self, opened: Vec<(Arc<Path>, PathBuf, MappedFile)>) -> Result<(), FillError> {
        let mut mappings: BTreeMap<&Path, Vec<&FileMapping>> = BTreeMap::new();
        for mapping in self.memory.mappings().files() {
            mappings.entry(&mapping.path).or_default().push(mapping);
        }
        let check = |(recorded, local, map): (Arc<Path>, PathBuf, MappedFile)| {
            let of_file = mappings.get(&*recorded).map(Vec::as_slice).unwrap_or_default();
            check(&self.memory, of_file, Arc::clone(&recorded), local, map)
        };
        let checked: Vec<Checked> = opened.into_par_iter().map(check).collect();
        let (mut files, mut filled, mut base) = (Vec::new(), Vec::new(), self.memory.backing_len());
        for Checked { mut file, parts, complaint } in checked {
            self.warnings.extend(complaint);
            if parts.is_empty() {
                continue;
            }
            file.base = base;
            let placed = parts.into_iter().map(|(addresses, offset)| MemoryRange {
                start: addresses.start,
                end: addresses.end,
                offset: FileOffset(base.saturating_add(offset)),
            });
            filled.extend(placed);
            base = file.end();
            files.push(file);
        }
        self.memory = self.memory.with_files(files, filled)?;
        Ok(())
    }
}

/// The part of a mapped file that is missing in the image.
#[derive(Clone, Copy, Default)]
struct Lack {
    bytes: u64,
    /// Mappings of the file: a program or a library has several.
    mappings: usize,
}

/// The mapped files by path, with what is missing of each in the image.
fn missing(memory: &PhysicalMemory) -> BTreeMap<Arc<Path>, Lack> {
    let mut missing: BTreeMap<Arc<Path>, Lack> = BTreeMap::new();
    for mapping in memory.mappings().files().iter().filter(|mapping| FileKind::of(&mapping.path) != FileKind::Device) {
        let bytes = gaps(memory, mapping).iter().map(|gap| gap.end.0 - gap.start.0).sum::<u64>();
        let lack = missing.entry(Arc::clone(&mapping.path)).or_default();
        lack.bytes = lack.bytes.saturating_add(bytes);
        lack.mappings += 1;
    }
    missing
}

/// The parts of a mapping that are missing in the image, except those that are missing because the image is cut off.
fn gaps(memory: &PhysicalMemory, mapping: &FileMapping) -> Vec<Range<PhysAddr>> {
    let Mappings { kind, cut, .. } = memory.mappings();
    if *kind == ImageKind::Copy && mapping.writable == Some(true) && mapping.shared == Some(false) {
        // A core holds such a mapping as soon as the process has changed a page of it; a copy may leave it out all the same.
        return Vec::new();
    }
    let gaps = subtract(mapping.addresses.clone(), memory.ranges(), |range| range.start..range.end);
    gaps.into_iter().flat_map(|gap| subtract(gap, cut, Clone::clone)).collect()
}

/// The mapped file that a user's file stands for, and the path of the user's file.
fn match_file(given: &OsStr, missing: &BTreeMap<Arc<Path>, Lack>) -> Result<(Arc<Path>, PathBuf), FillError> {
    let plain = Path::new(given);
    let text = given.as_bytes();
    let equals = text.iter().enumerate().filter(|(_, byte)| **byte == b'=').map(|(at, _)| at);
    if fs::symlink_metadata(plain).is_err() {
        for at in equals {
            let (recorded, local) = (text.get(..at).unwrap_or_default(), text.get(at + 1..).unwrap_or_default());
            let recorded = Path::new(OsStr::from_bytes(recorded));
            let is_it = |path: &Path| path.ends_with(recorded) || without_deleted(path).ends_with(recorded);
            let found: Vec<&Arc<Path>> = missing.keys().filter(|path| is_it(path)).collect();
            let exact = found.iter().find(|path| path.as_os_str() == recorded.as_os_str());
            match (exact, found.as_slice()) {
                (Some(one), _) | (None, [one]) => {
                    return Ok((Arc::clone(one), PathBuf::from(OsString::from(OsStr::from_bytes(local)))));
                }
                (None, []) => {}
                (None, _) => return Err(ambiguous(plain, &found)),
            }
        }
    }
    let named: Vec<&Arc<Path>> =
        missing.keys().filter(|path| plain.file_name() == without_deleted(path).file_name()).collect();
    // Of several that have the name, the one that has most of the folders above it as well.
    let absolute = std::path::absolute(plain).unwrap_or_else(|_| plain.to_owned());
    let shared = |path: &Path| {
        let pairs = without_deleted(path).components().rev().zip(absolute.components().rev());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let most = named.iter().map(|path| shared(path)).max().unwrap_or_default();
    let best: Vec<&Arc<Path>> = named.into_iter().filter(|path| shared(path) == most).collect();
    match best.as_slice() {
        [one] => Ok((Arc::clone(one), plain.to_owned())),
        [] => {
            let mut candidates: Vec<(&Arc<Path>, &Lack)> = missing.iter().filter(|(_, lack)| lack.bytes > 0).collect();
            // Large files of data first.
            candidates.sort_by_key(|(_, lack)| (lack.mappings, std::cmp::Reverse(lack.bytes)));
            let candidates = listed(candidates.into_iter().map(|(path, _)| shown(path)));
            Err(FillError::Unmatched { given: shown(plain), candidates })
        }
        _ => Err(ambiguous(plain, &best)),
    }
}

fn ambiguous(given: &Path, found: &[&Arc<Path>]) -> FillError {
    let candidates = listed(found.iter().map(|path| shown(path)));
    FillError::Ambiguous { given: shown(given), candidates }
}

/// Opens and maps a file that is to fill memory.
fn open(path: &Path) -> Result<MappedFile, DumpErrorKind> {
    MappedFile::new(Source::open_inner(path)?).map_err(|(reason, _)| reason)
}

/// A file that was compared with the image, and the parts of memory that it fills, each with its offset in the file.
struct Checked {
    file: FilledFile,
    parts: Vec<(Range<PhysAddr>, u64)>,
    complaint: Option<Diagnostic>,
}

/// Compares a file with the image; `mappings` are the mappings of this file.
fn check(
    memory: &PhysicalMemory,
    mappings: &[&FileMapping],
    recorded: Arc<Path>,
    local: PathBuf,
    map: MappedFile,
) -> Checked {
    let size = map.len() as u64;
    let (names, end) = (
        format!("{} (given for {})", local.display(), shown(&recorded)),
        mappings.iter().map(|mapping| mapping.end_offset()).max(),
    );
    let (mut parts, mut complaint) = (Vec::new(), None);
    let agreed =
        mappings.iter().try_fold(0u64, |agreed, mapping| Ok(agreed.saturating_add(compare(memory, mapping, &map)?)));
    match agreed {
        Err(Differs { offset }) => {
            let message = format!(
                "{names} is not used: it differs from the process image, first at file offset {offset:#x}; it has \
                 changed since the capture, or is another file"
            );
            complaint = Some(Diagnostic::new(Code::FileNotUsed, None, message));
        }
        Ok(_) => {
            for (mapping, gap) in
                mappings.iter().flat_map(|mapping| gaps(memory, mapping).into_iter().map(move |gap| (mapping, gap)))
            {
                let offset = mapping.offset_of(gap.start);
                let there = size.saturating_sub(offset).min(gap.end.0 - gap.start.0);
                if there > 0 {
                    parts.push((gap.start..PhysAddr(gap.start.0 + there), offset));
                }
            }
            if parts.is_empty() {
                let message = format!("{names} is not used: the process image has no hole that it could fill");
                complaint = Some(Diagnostic::new(Code::FileNotUsed, None, message));
            } else if let Some(end) =
                end.filter(|end| end.saturating_sub(size) >= FRAME_SIZE && !map.starts_with(&MAGIC))
            {
                // The last page of a mapping may reach past the end of its file; a library's loader maps more than it has.
                let message = format!(
                    "{names} has {size} bytes, but the process had mapped it up to offset {end:#x}: the rest stays \
                     missing"
                );
                complaint = Some(Diagnostic::new(Code::FileTooShort, None, message));
            }
        }
    }
    let filled = parts.iter().map(|(addresses, _)| addresses.end.0 - addresses.start.0).sum();
    let sha256 = if parts.is_empty() { String::new() } else { hex::encode(Sha256::digest(&*map)) };
    let agreed = agreed.unwrap_or_default();
    let unmapped = size.saturating_sub(end.unwrap_or_default());
    let file = FilledFile { recorded, local, size, sha256, filled, agreed, unmapped, map, base: 0 };
    Checked { file, parts, complaint }
}

/// A file contradicts the image at this offset.
struct Differs {
    offset: u64,
}

/// Compares a file with the image's bytes of one of its mappings, if these must equal the file's. Returns the number of
/// compared bytes.
fn compare(memory: &PhysicalMemory, mapping: &FileMapping, file: &[u8]) -> Result<u64, Differs> {
    if mapping.writable != Some(false) && mapping.shared != Some(true) {
        return Ok(0);
    }
    // The loader changes pages of programs before it takes away the right to write; not the first, which has the headers.
    let limit = if file.starts_with(&MAGIC) { FRAME_SIZE } else { u64::MAX };
    let mut agreed = 0u64;
    for part in memory.parts(mapping.addresses.clone()) {
        let offset = mapping.offset_of(part.start);
        let len = part.len().min(limit.saturating_sub(offset));
        let there = usize::try_from(offset).ok().and_then(|start| file.get(start..)).unwrap_or_default();
        let known = memory.range_bytes(&part);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(there.len()).min(known.len());
        let (there, known) = (there.get(..len).unwrap_or_default(), known.get(..len).unwrap_or_default());
        if there != known {
            let at = there.iter().zip(known).take_while(|(a, b)| a == b).count();
            return Err(Differs { offset: offset.saturating_add(at as u64) });
        }
        agreed = agreed.saturating_add(len as u64);
    }
    Ok(agreed)
}

/// A path from the evidence or the user, safe for a terminal.
fn shown(path: &Path) -> String {
    path.to_string_lossy()
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

/// The first of some paths.
fn listed(paths: impl ExactSizeIterator<Item = String>) -> String {
    let more = paths.len().saturating_sub(LISTED);
    let list = paths.take(LISTED).collect::<Vec<_>>().join(", ");
    match more {
        _ if list.is_empty() => "none".to_owned(),
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
