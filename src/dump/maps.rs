//! Copies of /proc/PID/mem: mappings of a process one after another, placed by a copy of its /proc/PID/maps.
//!
//! Such a copy has no marks of its own. Programs that make one leave out what can't be read, or what they do not want; which
//! mappings are in it is told by its size. Where a program or a library should begin is then looked at, to see whether it does.
//! Source of the maps file's form: proc_pid_maps(5), Linux man-pages 6.9.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::elf::MAGIC;
use super::mapped::{FileMapping, ImageKind, MAX_NAME, Mappings, Segment, sort_files};
use super::{Contents, DumpErrorKind, MAX_RANGES, MemoryRange, ProcessImage};
use crate::addr::{FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};

/// First address of the kernel's half, where `[vsyscall]` lies.
const KERNEL_HALF: u64 = 1 << 63;
/// One beginning in this many may be another than a program has.
const TOLERATED: usize = 4;
/// The longest part of a broken line that is shown, in characters.
const SHOWN: usize = 40;

/// A line of a maps file.
#[derive(Debug)]
struct Mapping<'a> {
    start: u64,
    end: u64,
    readable: bool,
    writable: bool,
    executable: bool,
    private: bool,
    /// Where in the file that is mapped it begins.
    file_offset: u64,
    /// A file, a name of the kernel's in brackets, or nothing.
    path: &'a str,
}

impl Mapping<'_> {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    fn addresses(&self) -> Range<PhysAddr> {
        PhysAddr(self.start)..PhysAddr(self.end)
    }

    /// Whether it shows a file, which is not one of a device.
    fn is_file(&self) -> bool {
        self.path.starts_with('/') && !self.is_device()
    }

    fn is_device(&self) -> bool {
        self.path.starts_with("/dev/") && !self.path.starts_with("/dev/shm/") && !self.path.starts_with("/dev/zero")
    }

    fn is_vvar(&self) -> bool {
        self.path.starts_with("[vvar")
    }

    fn is_vdso(&self) -> bool {
        self.path == "[vdso]"
    }

    fn is_in_kernel_half(&self) -> bool {
        self.start >= KERNEL_HALF
    }
}

/// A rule about mappings, in words.
type Rule = (&'static str, fn(&Mapping<'_>) -> bool);

/// What programs copy.
const COPIED: [Rule; 6] = [
    ("all readable mappings", |it| it.readable),
    ("all mappings", |_| true),
    ("all writable mappings", |it| it.readable && it.writable),
    ("all private writable mappings", |it| it.readable && it.writable && it.private),
    ("all rw-p mappings", |it| it.readable && it.writable && !it.executable && it.private),
    ("all mappings without a file", |it| it.readable && !it.is_file()),
];

/// What they leave out of it: the kernel's own mappings, which can't be read or are not wanted, and devices.
const LEFT_OUT: [Rule; 7] = [
    ("", |_| false),
    (" without [vsyscall]", |it| it.is_in_kernel_half()),
    (" without [vsyscall] and [vvar]", |it| it.is_in_kernel_half() || it.is_vvar()),
    (" without [vsyscall], [vvar] and devices", |it| it.is_in_kernel_half() || it.is_vvar() || it.is_device()),
    (" without [vsyscall], [vvar] and [vdso]", |it| it.is_in_kernel_half() || it.is_vvar() || it.is_vdso()),
    (" without [vsyscall], [vvar], [vdso] and devices", |it| {
        it.is_in_kernel_half() || it.is_vvar() || it.is_vdso() || it.is_device()
    }),
    (" without devices", |it| it.is_device()),
];

/// Which mappings may be in a copy.
#[derive(Clone, Copy)]
struct Selection {
    copied: Rule,
    left_out: Rule,
}

impl Selection {
    fn all() -> impl Iterator<Item = Self> {
        COPIED.into_iter().flat_map(|copied| LEFT_OUT.into_iter().map(move |left_out| Self { copied, left_out }))
    }

    /// The mappings, each with its place in the copy.
    fn with_offsets<'m, 'a>(self, mappings: &'m [Mapping<'a>]) -> impl Iterator<Item = (u64, &'m Mapping<'a>)> {
        let mut offset = 0u64;
        mappings.iter().filter(move |mapping| self.copied.1(mapping) && !self.left_out.1(mapping)).map(move |mapping| {
            let at = offset;
            offset = offset.saturating_add(mapping.len());
            (at, mapping)
        })
    }

    /// Bytes of a copy.
    fn size(self, mappings: &[Mapping<'_>]) -> u64 {
        self.with_offsets(mappings).map(|(_, mapping)| mapping.len()).fold(0, u64::saturating_add)
    }

    /// Where in the copy programs and libraries begin, and whether they do.
    fn beginnings<'m>(self, copy: &[u8], mappings: &'m [Mapping<'_>]) -> Vec<(u64, &'m str, bool)> {
        let programs: BTreeSet<&str> = mappings.iter().filter(|it| it.executable).map(|it| it.path).collect();
        let is_program = |mapping: &Mapping<'_>| mapping.is_file() && programs.contains(mapping.path);
        let first =
            |(_, mapping): &(u64, &Mapping<'_>)| mapping.file_offset == 0 && (is_program(mapping) || mapping.is_vdso());
        let firsts = self.with_offsets(mappings).filter(first);
        let begins =
            |at: u64| usize::try_from(at).ok().and_then(|at| copy.get(at..)).is_some_and(|it| it.starts_with(&MAGIC));
        firsts.map(|(at, mapping)| (at, mapping.path, begins(at))).collect()
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.copied.0, self.left_out.0)
    }
}

/// The ranges of a copy, by the text of the maps file.
pub(super) fn parse(copy: &[u8], maps: &str) -> Result<Contents, DumpErrorKind> {
    let mappings = read_maps(maps)?;
    let size = copy.len() as u64;
    // The fewest beginnings that are wrong, then the most that are right; of several that say the same, the first.
    let mut best: Option<((usize, Reverse<usize>), Selection)> = None;
    let mut displaced = None;
    for selection in Selection::all().filter(|selection| selection.size(&mappings) == size) {
        let beginnings = selection.beginnings(copy, &mappings);
        let right = beginnings.iter().filter(|(.., begins)| *begins).count();
        let wrong = beginnings.len() - right;
        let score = (wrong, Reverse(right));
        // A process can have changed the first page of some.
        if wrong * TOLERATED > beginnings.len() {
            let first = beginnings.into_iter().find(|(.., begins)| !begins);
            displaced = displaced.or(first.map(|(at, path, _)| (at, path.to_owned())));
        } else if best.is_none_or(|(known, _)| score < known) {
            best = Some((score, selection));
        }
    }
    let Some((_, selection)) = best else {
        return Err(match displaced {
            Some((offset, path)) => DumpErrorKind::MapsContent { offset: FileOffset(offset), path: shown(&path) },
            None => DumpErrorKind::MapsSize { size, expected: sizes(&mappings) },
        });
    };
    let mut contents = Contents {
        image: Some(ProcessImage::default()),
        // All of them: only addresses that are not in the copy are looked up.
        mappings: Mappings {
            kind: ImageKind::Copy,
            segments: mappings.iter().map(segment).collect(),
            files: files(&mappings),
            left_out: mappings.iter().map(Mapping::addresses).collect(),
            ..Mappings::default()
        },
        ..Contents::default()
    };
    let [usual, ..] = COPIED;
    if selection.copied.0 != usual.0 {
        let message = format!("judging by its size, the copy of /proc/PID/mem holds {selection} and nothing else");
        contents.warnings.push(Diagnostic::new(Code::PartialCopy, None, message));
    }
    for (offset, mapping) in selection.with_offsets(&mappings) {
        let Range { start, end } = mapping.addresses();
        contents.ranges.push(MemoryRange { start, end, offset: FileOffset(offset) });
        if mapping.executable && !mapping.writable {
            contents.code.push(start..end);
        }
    }
    Ok(contents)
}

fn segment(mapping: &Mapping<'_>) -> Segment {
    Segment {
        addresses: mapping.addresses(),
        access: [mapping.readable, mapping.writable, mapping.executable],
        private: Some(mapping.private),
        name: mapping.path.starts_with('[').then(|| mapping.path.chars().take(MAX_NAME).collect()),
    }
}

/// The mappings of files.
fn files(mappings: &[Mapping<'_>]) -> Vec<FileMapping> {
    let shows = |path: &str| !path.starts_with('[') && (1..=MAX_NAME).contains(&path.len());
    let shown = mappings.iter().filter(|mapping| shows(mapping.path));
    // The end of a mapping is a place in the file as well.
    let whole = shown.filter(|mapping| mapping.file_offset.checked_add(mapping.len()).is_some());
    let mut files: Vec<FileMapping> = Vec::new();
    for mapping in whole {
        let path = Path::new(mapping.path);
        // A file is mapped in several pieces, one after another.
        let path =
            files.last().filter(|last| *last.path == *path).map_or_else(|| path.into(), |last| Arc::clone(&last.path));
        files.push(FileMapping {
            addresses: mapping.addresses(),
            offset: mapping.file_offset,
            path,
            writable: Some(mapping.writable),
            shared: Some(!mapping.private),
        });
    }
    // The lines are sorted and do not overlap.
    sort_files(&mut files);
    files
}

/// The sizes that a copy may have, in words: the least and the most of each kind.
fn sizes(mappings: &[Mapping<'_>]) -> String {
    let kinds = COPIED.map(|copied| {
        let sizes = || LEFT_OUT.iter().map(|left_out| Selection { copied, left_out: *left_out }.size(mappings));
        let (least, most) = (sizes().min().unwrap_or_default(), sizes().max().unwrap_or_default());
        match least == most {
            true => format!("{most} ({})", copied.0),
            false => format!("{least} to {most} ({})", copied.0),
        }
    });
    kinds.join(", ")
}

/// The lines of a maps file; they are sorted by address.
fn read_maps(maps: &str) -> Result<Vec<Mapping<'_>>, DumpErrorKind> {
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for (line, text) in (1..).zip(maps.lines()).filter(|(_, text)| !text.trim().is_empty()) {
        let broken = |what| DumpErrorKind::MapsLine { line, text: shown(text), what };
        let mapping = read_line(text).ok_or_else(|| broken("expected `START-END rwxp OFFSET DEVICE INODE PATH`"))?;
        if mappings.last().is_some_and(|last| mapping.start < last.end) {
            return Err(broken("expected an address above that of the line before"));
        }
        if mappings.len() == MAX_RANGES {
            return Err(broken("no process has so many mappings"));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

/// The error for a line that is longer than any; `text` ends with its beginning.
pub(super) fn too_long(line: usize, text: &str) -> DumpErrorKind {
    let text = shown(text.rsplit('\n').next().unwrap_or_default());
    DumpErrorKind::MapsLine { line, text, what: "no line of a maps file is so long" }
}

/// Whether a line could be from a maps file.
pub(super) fn is_line(text: &str) -> bool {
    read_line(text).is_some()
}

fn read_line(text: &str) -> Option<Mapping<'_>> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut rest = text.trim();
    let mut word = || {
        let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after.trim_start();
        word
    };
    let (addresses, access, file_offset, _device, _inode) = (word(), word(), word(), word(), word());
    let (start, end) = addresses.split_once('-')?;
    let [read, write, execute, share] = *access.as_bytes() else { return None };
    let mapping = Mapping {
        start: hex(start)?,
        end: hex(end)?,
        readable: read == b'r',
        writable: write == b'w',
        executable: execute == b'x',
        private: share == b'p',
        file_offset: hex(file_offset)?,
        path: rest,
    };
    (mapping.start < mapping.end).then_some(mapping)
}

/// The beginning of a text from the evidence, safe for a terminal.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
#[path = "maps_tests.rs"]
mod tests;
