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

use super::DumpErrorKind;

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
    command: Option<String>,
}

/// The refusal of a core that is of a process, or `None` for a machine's.
pub(super) fn refuse(bytes: &[u8], headers: &[ProgramHeader64<LE>]) -> Option<DumpErrorKind> {
    let mut notes = Notes::default();
    for header in headers.iter().filter(|h| h.p_type(LE) == PT_NOTE) {
        notes.read(bytes, header);
    }
    if !notes.of_process && !lacks_physical_addresses(headers) {
        return None;
    }
    Some(DumpErrorKind::ProcessCore { pid: notes.prpsinfo_pid.or(notes.prstatus_pid), command: notes.command })
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
                NT_PRPSINFO if self.command.is_none() => {
                    self.prpsinfo_pid = pid(desc, PRPSINFO_PID);
                    self.command = desc.get(PRPSINFO_FNAME).and_then(command);
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

/// A name up to its first zero byte. Escaped, because it goes to a terminal and comes from evidence.
fn command(field: &[u8]) -> Option<String> {
    let name = field.split(|b| *b == 0).next()?;
    (!name.is_empty()).then(|| name.escape_ascii().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_safe_to_print() {
        assert_eq!(command(b"python3\0\0"), Some("python3".to_owned()));
        assert_eq!(command(b"\x1b[2Jx"), Some("\\x1b[2Jx".to_owned()));
        assert_eq!(command(b"\0\0"), None);
    }

    #[test]
    fn pids_need_their_bytes() {
        assert_eq!(pid(&[1, 2, 0, 0, 9], 1), Some(0x0900_0002));
        assert_eq!(pid(&[1, 2, 0, 0], 1), None);
        assert_eq!(pid(&[0; 8], 4), None);
    }
}
