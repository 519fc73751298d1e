//! ELF cores of one process: told from those of a machine by their notes.
//!
//! The kernel and gdb describe a process by its auxiliary vector, its mapped files and its last
//! signal; a machine has none of these. Registers (NT_PRSTATUS) are in both kinds: QEMU and kdump
//! write one per CPU.

use object::LittleEndian as LE;
use object::elf::{
    FileHeader64, NT_AUXV, NT_FILE, NT_PRPSINFO, NT_PRSTATUS, NT_SIGINFO, PT_LOAD, PT_NOTE, ProgramHeader64,
};
use object::read::elf::{NoteIterator, ProgramHeader};

use super::ProcessImage;

/// `pr_pid` in x86-64's `struct elf_prstatus` (linux/elfcore.h).
const PRSTATUS_PID: usize = 32;
/// `pr_pid` in x86-64's `struct elf_prpsinfo` (linux/elfcore.h).
const PRPSINFO_PID: usize = 24;
/// `pr_fname` there: 16 bytes, filled up with zeros.
const PRPSINFO_FNAME: std::ops::Range<usize> = 40..56;

/// What the notes of a core say about the process in it.
#[derive(Default)]
struct Notes {
    /// At least one note that only a process has.
    of_process: bool,
    prstatus_pid: Option<u32>,
    prpsinfo_pid: Option<u32>,
    comm: Option<String>,
}

/// The process that a core is of, or `None` for a machine's.
pub(super) fn image(bytes: &[u8], headers: &[ProgramHeader64<LE>]) -> Option<ProcessImage> {
    let mut notes = Notes::default();
    for header in headers.iter().filter(|h| h.p_type(LE) == PT_NOTE) {
        notes.read(bytes, header);
    }
    let is_image = notes.of_process || lacks_physical_addresses(headers);
    is_image.then(|| ProcessImage { pid: notes.prpsinfo_pid.or(notes.prstatus_pid), comm: notes.comm })
}

/// Several segments that are all at physical address 0, and at virtual addresses besides: of a
/// process, only the virtual ones are known.
fn lacks_physical_addresses(headers: &[ProgramHeader64<LE>]) -> bool {
    let mut loads = headers.iter().filter(|h| h.p_type(LE) == PT_LOAD).peekable();
    let several = loads.clone().nth(1).is_some();
    let virtual_only = loads.clone().any(|h| h.p_vaddr(LE) != 0);
    loads.peek().is_some() && several && virtual_only && loads.all(|h| h.p_paddr(LE) == 0)
}

impl Notes {
    /// Takes in one note segment. A broken one is read up to where it breaks: it is a hint only.
    fn read(&mut self, bytes: &[u8], header: &ProgramHeader64<LE>) {
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
                NT_AUXV | NT_FILE | NT_SIGINFO => self.of_process = true,
                // One per thread; the first is of the thread that the core was taken for.
                NT_PRSTATUS if self.prstatus_pid.is_none() => self.prstatus_pid = pid(desc, PRSTATUS_PID),
                NT_PRPSINFO if self.comm.is_none() => {
                    self.prpsinfo_pid = pid(desc, PRPSINFO_PID);
                    self.comm = desc.get(PRPSINFO_FNAME).and_then(comm);
                }
                _ => {}
            }
        }
    }
}

/// The process id at `offset`, unless it is 0, which no process has.
fn pid(desc: &[u8], offset: usize) -> Option<u32> {
    let word: [u8; 4] = desc.get(offset..offset + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(word)).filter(|pid| *pid != 0)
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

    #[test]
    fn pids_need_their_bytes() {
        assert_eq!(pid(&[1, 2, 0, 0, 9], 1), Some(0x0900_0002));
        assert_eq!(pid(&[1, 2, 0, 0], 1), None);
        assert_eq!(pid(&[0; 8], 4), None);
    }
}
