//! ELF cores of one process: told from those of a machine by their notes.
//!
//! The kernel and gdb describe a process by its auxiliary vector, its mapped files and its last
//! signal; a machine has none of these. Registers (NT_PRSTATUS) are in both kinds: QEMU and kdump
//! write one per CPU.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use object::LittleEndian as LE;
use object::elf::{
    FileHeader64, NT_AUXV, NT_FILE, NT_PRPSINFO, NT_PRSTATUS, NT_SIGINFO, PF_R, PF_W, PF_X, PT_LOAD, PT_NOTE,
    ProgramHeader64,
};
use object::read::elf::{NoteIterator, ProgramHeader};

use super::core_notes::{
    NO_ID, PRPSINFO_LETTER, PRPSINFO_NAME, PRPSINFO_PID, PRPSINFO_PPID, PRPSINFO_UID, PRSTATUS_PID,
};
use super::mapped::{FileMapping, MAX_NAME, Mappings, Segment, sort_files};
use super::memory::joined;
use super::{MAX_RANGES, ProcessImage};
use crate::addr::PhysAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::words::counted;

/// Maximum number of threads that are listed, and of entries of the auxiliary vector (`AT_VECTOR_SIZE` is about 50).
const MAX_THREADS: usize = 1 << 16;
const MAX_AUXV: usize = 256;
/// Bytes of a word in NT_FILE: first the number of files and the unit of offsets in bytes, then three per file, first
/// and last address and offset, then the names, each with a zero at its end (`fill_files_note` in Linux's fs/binfmt_elf.c;
/// gdb's gdb/linux-tdep.c writes the same with 1 as the unit).
const WORD: usize = 8;
const FILE_HEAD: usize = 2 * WORD;
const FILE_ENTRY: usize = 3 * WORD;

/// What the notes of a core say about the process in it.
#[derive(Default)]
struct Notes<'a> {
    /// At least one note that only a process has.
    of_process: bool,
    image: ProcessImage,
    /// The mapped files.
    files: Option<&'a [u8]>,
}

/// A process that a core is of.
pub(super) struct Process {
    pub(super) image: ProcessImage,
    pub(super) mappings: Mappings,
    pub(super) warnings: Vec<Diagnostic>,
}

/// The process that a core is of, or `None` for a machine's.
pub(super) fn process(bytes: &[u8], headers: &[ProgramHeader64<LE>]) -> Option<Process> {
    let mut notes = Notes::default();
    for header in headers.iter().filter(|h| h.p_type(LE) == PT_NOTE) {
        notes.read(bytes, header);
    }
    let is_image = notes.of_process || lacks_physical_addresses(headers);
    is_image.then(|| {
        let image = ProcessImage { pid: notes.image.pid.or(notes.image.threads.first().copied()), ..notes.image };
        let (mut files, mut warnings) = notes.files.map(read_files).unwrap_or_default();
        let dropped = sort_files(&mut files);
        if dropped > 0 {
            let dropped = counted(dropped, "entry", "entries");
            let message = format!(
                "not used of the core's list of mapped files (NT_FILE): {dropped} that overlap others or have no \
                 addresses"
            );
            warnings.push(Diagnostic::new(Code::BrokenFileList, None, message));
        }
        let mappings = absences(bytes.len() as u64, headers, files);
        Process { image, mappings, warnings }
    })
}

/// What the segments say about memory that is not in the file, and about access to mapped files.
fn absences(size: u64, headers: &[ProgramHeader64<LE>], mut files: Vec<FileMapping>) -> Mappings {
    let (mut cut, mut left_out, mut access, mut segments) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for header in headers.iter().filter(|h| h.p_type(LE) == PT_LOAD) {
        let (start, in_file) = (header.p_vaddr(LE), header.p_filesz(LE));
        let there = size.saturating_sub(header.p_offset(LE)).min(in_file);
        let end = |len: u64| PhysAddr(start.saturating_add(len));
        if there < in_file {
            cut.push(end(there)..end(in_file));
        }
        let all = header.p_memsz(LE).max(in_file);
        if in_file < all {
            left_out.push(end(in_file)..end(all));
        }
        let flags = header.p_flags(LE);
        access.push((PhysAddr(start), end(all), flags & PF_W == PF_W));
        if all > 0 && segments.len() < MAX_RANGES {
            let access = [PF_R, PF_W, PF_X].map(|bit| flags & bit == bit);
            let segment = Segment { addresses: PhysAddr(start)..end(all), access, private: None, name: None };
            segments.push((segment, in_file < all));
        }
    }
    access.sort_unstable();
    segments.sort_by_key(|(segment, _)| (segment.addresses.start, segment.addresses.end));
    let segments = whole_mappings(segments, &files);
    for file in &mut files {
        let after = access.partition_point(|(start, ..)| *start <= file.addresses.start);
        let segment = after.checked_sub(1).and_then(|index| access.get(index));
        file.writable = segment.filter(|(_, end, _)| file.addresses.start < *end).map(|(.., writable)| *writable);
    }
    Mappings { files, segments, cut: joined(&cut), left_out: joined(&left_out), ..Mappings::default() }
}

/// Mappings from segments, of which each is with whether its end is absent. Where a mapping has gaps, as of what `tensorcarve
/// core` writes, it is in several segments, and a segment ends at each gap.
fn whole_mappings(segments: Vec<(Segment, bool)>, files: &[FileMapping]) -> Vec<Segment> {
    // A file's mappings begin and end where the note says. Anonymous ones beside each other with the same access are one in most
    // cases, because the kernel joins them itself.
    let is_edge = |at: PhysAddr| {
        let after = files.partition_point(|file| file.addresses.start < at);
        let ends = |file: &FileMapping| file.addresses.end == at;
        files.get(after).is_some_and(|file| file.addresses.start == at)
            || after.checked_sub(1).and_then(|before| files.get(before)).is_some_and(ends)
    };
    let mut whole: Vec<Segment> = Vec::new();
    let mut has_gap = false;
    for (segment, has_gap_at_end) in segments {
        let start = segment.addresses.start;
        match whole.last_mut() {
            Some(last)
                if has_gap && last.addresses.end == start && last.access == segment.access && !is_edge(start) =>
            {
                last.addresses.end = segment.addresses.end;
            }
            _ => whole.push(segment),
        }
        has_gap = has_gap_at_end;
    }
    whole
}

/// The mapped files that a note lists, and what is wrong with the note. The readable part of a broken note is used.
fn read_files(desc: &[u8]) -> (Vec<FileMapping>, Vec<Diagnostic>) {
    let broken = |files: Vec<FileMapping>, what: String| {
        let message = format!("the core's list of mapped files (NT_FILE) is broken: {what}");
        (files, vec![Diagnostic::new(Code::BrokenFileList, None, message)])
    };
    let word = |at: usize| desc.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
    let (Some(count), Some(unit)) = (word(0), word(WORD)) else {
        return broken(Vec::new(), "it has no header".to_owned());
    };
    // As many as there is room for, each with a name of one byte at least.
    let room = desc.len().saturating_sub(FILE_HEAD) / (FILE_ENTRY + 1);
    let used = usize::try_from(count).unwrap_or(usize::MAX).min(room).min(MAX_RANGES);
    let names = desc.get(FILE_HEAD + used * FILE_ENTRY..).unwrap_or_default();
    let entries = desc.get(FILE_HEAD..).unwrap_or_default().chunks_exact(FILE_ENTRY).take(used);
    if used as u64 != count {
        // Where the names begin is not known either.
        return broken(Vec::new(), format!("it claims {count} files in {} bytes", desc.len()));
    }
    let mut files: Vec<FileMapping> = Vec::new();
    let mut names = names.split_inclusive(|byte| *byte == 0);
    for (index, entry) in entries.enumerate() {
        let Some(name) = names.next().and_then(|name| name.strip_suffix(&[0])) else {
            return broken(files, format!("it ends within the name of file {index} of {count}"));
        };
        let number = |at: usize| entry.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
        let numbers = number(0).zip(number(WORD)).zip(number(2 * WORD)).and_then(|((start, end), offset)| {
            let offset = offset.checked_mul(unit)?;
            // The end of the mapping is a place in the file as well.
            offset.checked_add(end.checked_sub(start)?)?;
            Some((start, end, offset))
        });
        let (Some((start, end, offset)), 1..=MAX_NAME) = (numbers, name.len()) else {
            return broken(files, format!("file {index} of {count} has an impossible address, offset or name"));
        };
        let name = Path::new(OsStr::from_bytes(name));
        // A file is mapped in several pieces, one after another.
        let path =
            files.last().filter(|last| *last.path == *name).map_or_else(|| name.into(), |last| Arc::clone(&last.path));
        files.push(FileMapping {
            addresses: PhysAddr(start)..PhysAddr(end),
            offset,
            path,
            writable: None,
            shared: None,
        });
    }
    (files, Vec::new())
}

/// Several segments that are all at physical address 0, and at virtual addresses besides: of a
/// process, only the virtual ones are known.
fn lacks_physical_addresses(headers: &[ProgramHeader64<LE>]) -> bool {
    let mut loads = headers.iter().filter(|h| h.p_type(LE) == PT_LOAD).peekable();
    let several = loads.clone().nth(1).is_some();
    let virtual_only = loads.clone().any(|h| h.p_vaddr(LE) != 0);
    loads.peek().is_some() && several && virtual_only && loads.all(|h| h.p_paddr(LE) == 0)
}

impl<'a> Notes<'a> {
    /// Takes in one note segment. A broken one is read up to where it breaks: it is a hint only.
    fn read(&mut self, bytes: &'a [u8], header: &ProgramHeader64<LE>) {
        let start = usize::try_from(header.p_offset(LE)).unwrap_or(usize::MAX).min(bytes.len());
        let size = usize::try_from(header.p_filesz(LE)).unwrap_or(usize::MAX);
        // Of a truncated file, the part that is there.
        let data = bytes.get(start..start.saturating_add(size).min(bytes.len())).unwrap_or_default();
        let Ok(mut notes) = NoteIterator::<FileHeader64<LE>>::new(LE, header.p_align(LE), data) else {
            return;
        };
        while let Ok(Some(note)) = notes.next() {
            if note.name() != b"CORE" {
                continue;
            }
            let desc = note.desc();
            match note.n_type(LE) {
                NT_SIGINFO => self.of_process = true,
                NT_AUXV => {
                    self.of_process = true;
                    self.image.auxiliary_vector = auxiliary_vector(desc);
                }
                NT_FILE => {
                    self.of_process = true;
                    self.files = self.files.or(Some(desc));
                }
                // One per thread; the first is of the thread that the core was taken for.
                NT_PRSTATUS if self.image.threads.len() < MAX_THREADS => {
                    self.image.threads.extend(pid(desc, PRSTATUS_PID));
                }
                NT_PRPSINFO if self.image.comm.is_none() => {
                    let letter = desc.get(PRPSINFO_LETTER).copied().map(char::from);
                    let image = &mut self.image;
                    image.pid = pid(desc, PRPSINFO_PID);
                    image.ppid = pid(desc, PRPSINFO_PPID);
                    image.uid = number(desc, PRPSINFO_UID).filter(|uid| *uid != NO_ID);
                    image.state = letter.filter(char::is_ascii_uppercase);
                    image.comm = desc.get(PRPSINFO_NAME).and_then(comm);
                }
                _ => {}
            }
        }
    }
}

/// The 32-bit number at `offset`.
fn number(desc: &[u8], offset: usize) -> Option<u32> {
    desc.get(offset..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// The process id at `offset`, unless it is 0, which no process has.
fn pid(desc: &[u8], offset: usize) -> Option<u32> {
    number(desc, offset).filter(|pid| *pid != 0)
}

/// The pairs of a type and a value up to the one that ends the vector.
fn auxiliary_vector(desc: &[u8]) -> Vec<(u64, u64)> {
    let (words, _) = desc.as_chunks();
    let (pairs, _) = words.as_chunks();
    let pairs = pairs.iter().map(|[kind, value]| (u64::from_le_bytes(*kind), u64::from_le_bytes(*value)));
    pairs.take_while(|(kind, _)| *kind != 0).take(MAX_AUXV).collect()
}

/// A name up to its first zero byte.
fn comm(field: &[u8]) -> Option<String> {
    let name = field.split(|b| *b == 0).next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_at_a_zero() {
        assert_eq!(comm(b"python3\0\0x"), Some("python3".to_owned()));
        assert_eq!(comm(b"\xff3\0"), Some("\u{fffd}3".to_owned()));
        assert_eq!(comm(b"\0\0"), None);
    }

    /// A note with these files: addresses, offset in units of `unit` bytes, name.
    fn note(count: u64, unit: u64, files: &[(u64, u64, u64, &[u8])]) -> Vec<u8> {
        let mut desc = [count, unit].map(u64::to_le_bytes).concat();
        files.iter().for_each(|(start, end, at, _)| desc.extend([*start, *end, *at].map(u64::to_le_bytes).concat()));
        files.iter().for_each(|(.., name)| desc.extend([name, &b"\0"[..]].concat()));
        desc
    }

    #[test]
    fn mapped_files_are_read_with_their_unit() {
        let files: [(u64, u64, u64, &[u8]); 3] = [
            (0x7000, 0x9000, 0, b"/a b/m.safetensors"),
            (0x9000, 0xa000, 2, b"/a b/m.safetensors"),
            (0xf000, 0x10000, 3, b"/not \xff UTF-8 (deleted)"),
        ];
        for (unit, offsets) in [(0x1000, [0, 0x2000, 0x3000]), (1, [0, 2, 3])] {
            let (read, warnings) = read_files(&note(3, unit, &files));
            assert_eq!(warnings, Vec::new());
            for (file, ((start, end, _, name), offset)) in read.iter().zip(files.iter().zip(offsets)) {
                assert_eq!((file.addresses.clone(), file.offset), (PhysAddr(*start)..PhysAddr(*end), offset));
                assert_eq!(file.path.as_os_str().as_bytes(), *name);
            }
            assert_eq!(read.len(), 3);
            assert!(Arc::ptr_eq(&read[0].path, &read[1].path));
        }
    }

    #[test]
    fn broken_lists_of_files_are_read_as_far_as_they_go() {
        let two: [(u64, u64, u64, &[u8]); 2] = [(0x1000, 0x2000, 0, b"/a"), (0x3000, 0x4000, 0, b"/b")];
        let of = |desc: &[u8]| {
            let (files, warnings) = read_files(desc);
            (files.len(), warnings.len())
        };
        let whole = note(2, 4096, &two);
        assert_eq!(of(&whole), (2, 0));
        // Without the last zero; without a name; with a head alone; with nothing.
        assert_eq!(of(&whole[..whole.len() - 1]), (1, 1));
        assert_eq!(of(&whole[..whole.len() - 3]), (1, 1));
        assert_eq!(of(&whole[..16]), (0, 1));
        assert_eq!(of(&[]), (0, 1));
        for count in [3, 1 << 20, 1 << 40, u64::MAX] {
            assert_eq!(of(&note(count, 4096, &two)), (0, 1), "{count}");
        }
        // Backwards; an offset past 2^64; a mapping that ends past it; a name that no path can be.
        let long = [b'x'; MAX_NAME + 1];
        let odd: [(u64, u64, u64, &[u8]); 5] = [
            (0x2000, 0x1000, 0, b"/a"),
            (0x1000, 0x2000, u64::MAX / 4095, b"/a"),
            (0, u64::MAX, 1, b"/a"),
            (0x1000, 0x2000, 0, &long),
            (0x1000, 0x2000, 0, b""),
        ];
        for file in odd {
            assert_eq!(of(&note(2, 4096, &[two[0], file])), (1, 1), "{:x?}", (file.0, file.1, file.2));
        }
    }

    #[test]
    fn a_mapping_with_gaps_is_one() {
        let segment = |start, end, can_write, has_gap| {
            let addresses = PhysAddr(start)..PhysAddr(end);
            (Segment { addresses, access: [true, can_write, false], private: None, name: None }, has_gap)
        };
        let (mut files, _) = read_files(&note(2, 1, &[(0x1000, 0x4000, 0, b"/a"), (0x4000, 0x5000, 0, b"/b")]));
        sort_files(&mut files);
        let segments = vec![
            segment(0x1000, 0x2000, false, true),
            segment(0x2000, 0x4000, false, true),
            // Another file; no gap; other access; not beside it.
            segment(0x4000, 0x5000, false, true),
            segment(0x5000, 0x6000, false, false),
            segment(0x6000, 0x7000, false, true),
            segment(0x7000, 0x8000, true, true),
            segment(0x9000, 0xa000, true, true),
            segment(0xa000, 0xb000, true, false),
        ];
        let whole = whole_mappings(segments, &files);
        let found: Vec<_> = whole.iter().map(|segment| (segment.addresses.start.0, segment.addresses.end.0)).collect();
        let expected = [
            (0x1000, 0x4000),
            (0x4000, 0x5000),
            (0x5000, 0x6000),
            (0x6000, 0x7000),
            (0x7000, 0x8000),
            (0x9000, 0xb000),
        ];
        assert_eq!(found, expected);
    }

    proptest::proptest! {
        #[test]
        fn any_note_is_survived(desc in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), count in 0u64..9) {
            let _ = read_files(&desc);
            let _ = read_files(&[&count.to_le_bytes()[..], &4096u64.to_le_bytes(), &desc].concat());
        }
    }

    #[test]
    fn pids_need_their_bytes() {
        assert_eq!(pid(&[1, 2, 0, 0, 9], 1), Some(0x0900_0002));
        assert_eq!(pid(&[1, 2, 0, 0], 1), None);
        assert_eq!(pid(&[0; 8], 4), None);
    }
}
