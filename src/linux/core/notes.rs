//! The notes of a core: threads with their registers, the process, its auxiliary vector, its files.

use object::LittleEndian as LE;
use object::elf::{NT_AUXV, NT_FILE, NT_PRPSINFO, NT_PRSTATUS, NoteHeader32, NoteType};
use object::{U32, pod};

use crate::addr::FRAME_SIZE;
use crate::dump::core_notes::*;
use crate::linux::process::Process;
use crate::linux::registers::Registers;
use crate::linux::task::Task;
use crate::linux::vma::Mapping;

/// The name of these notes, with the bytes that fill it up.
const NAME: &[u8; 8] = b"CORE\0\0\0\0";
const NAME_LEN: u32 = 5;
/// The alignment of notes.
pub(super) const ALIGN: usize = 4;
/// Words of `struct pt_regs` that hold selectors, whose other bits are the kernel's own with FRED.
const SELECTORS: [&str; 2] = ["cs", "ss"];
const SELECTOR: u64 = 0xffff;
/// The letters of states, by `pr_state` (`fill_psinfo` of fs/binfmt_elf.c).
const STATES: [char; 6] = ['R', 'S', 'D', 'T', 'Z', 'W'];
/// Bytes of the list of files (the upper limit of the sysctl `core_file_note_size_limit`).
const MAX_FILES: usize = 16 << 20;
const WORD: usize = 8;

/// Notes, one after another.
#[derive(Default)]
pub(super) struct Notes(Vec<u8>);

impl Notes {
    fn push(&mut self, kind: NoteType, desc: &[u8]) {
        // No note is as long as 4 GiB.
        let len = u32::try_from(desc.len()).unwrap_or(u32::MAX);
        let header =
            NoteHeader32 { n_namesz: U32::new(LE, NAME_LEN), n_descsz: U32::new(LE, len), n_type: U32::new(LE, kind) };
        self.0.extend(pod::bytes_of(&header));
        self.0.extend(NAME);
        self.0.extend(desc);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    /// A thread and its registers (NT_PRSTATUS).
    ///
    /// Selectors of data segments are 0, as in every 64-bit program; a base that is not known is 0 as well.
    pub(super) fn thread(&mut self, process: &Process, thread: &Task, registers: &Registers) {
        let mut desc = vec![0; PRSTATUS];
        put(&mut desc, PRSTATUS_PID, &thread.pid.value.to_le_bytes());
        put(&mut desc, PRSTATUS_PPID, &process.ppid.map_or(0, |ppid| ppid.value).to_le_bytes());
        // `struct user_regs_struct` begins as `struct pt_regs`.
        let words =
            registers.named().map(|(name, word)| if SELECTORS.contains(&name) { word & SELECTOR } else { word });
        let bases = [registers.fs_base, registers.gs_base].map(Option::unwrap_or_default);
        for (index, word) in words.chain(bases).enumerate() {
            put(&mut desc, PRSTATUS_REGISTERS + index * WORD, &word.to_le_bytes());
        }
        self.push(NT_PRSTATUS, &desc);
    }

    /// The process (NT_PRPSINFO). The group of its user is not known, nor is the user of some.
    pub(super) fn process(&mut self, process: &Process, arguments: Option<&[String]>) {
        let mut desc = vec![0; PRPSINFO];
        let leader = &process.leader;
        let letter = leader.state.map(|state| state.value);
        let state = letter.and_then(|letter| STATES.iter().position(|state| *state == letter));
        // What has no number is past the last one, with a dot.
        put(&mut desc, PRPSINFO_STATE, &[u8::try_from(state.unwrap_or(STATES.len())).unwrap_or_default()]);
        put(
            &mut desc,
            PRPSINFO_LETTER,
            &[state.and(letter).and_then(|letter| u8::try_from(letter).ok()).unwrap_or(b'.')],
        );
        put(&mut desc, PRPSINFO_ZOMBIE, &[u8::from(letter == Some('Z'))]);
        put(&mut desc, PRPSINFO_UID, &leader.uid.map_or(NO_ID, |uid| uid.value).to_le_bytes());
        put(&mut desc, PRPSINFO_GID, &NO_ID.to_le_bytes());
        put(&mut desc, PRPSINFO_PID, &process.pid().to_le_bytes());
        put(&mut desc, PRPSINFO_PPID, &process.ppid.map_or(0, |ppid| ppid.value).to_le_bytes());
        put(&mut desc, PRPSINFO_NAME.start, cut(process.comm().as_bytes(), PRPSINFO_NAME.len()));
        let arguments = arguments.unwrap_or_default().join(" ");
        put(&mut desc, PRPSINFO_ARGUMENTS.start, cut(arguments.as_bytes(), PRPSINFO_ARGUMENTS.len()));
        self.push(NT_PRPSINFO, &desc);
    }

    /// The auxiliary vector (NT_AUXV), with the pair that ends it.
    pub(super) fn auxiliary_vector(&mut self, vector: &[(u64, u64)]) {
        let words = vector.iter().chain([&(0, 0)]).flat_map(|(kind, value)| [*kind, *value]);
        self.push(NT_AUXV, &words.flat_map(u64::to_le_bytes).collect::<Vec<u8>>());
    }

    /// The files that are mapped (NT_FILE), and how many mappings of files were left out because the list would be too long.
    pub(super) fn files(&mut self, mappings: &[Mapping]) -> usize {
        let (mut entries, mut names, mut left_out) = (Vec::new(), Vec::new(), 0);
        for mapping in mappings {
            let Some((name, offset)) = file(mapping) else { continue };
            let more = 3 * WORD + name.len() + 1;
            if 2 * WORD + entries.len() + names.len() + more > MAX_FILES {
                left_out += 1;
                continue;
            }
            entries
                .extend([mapping.start.0, mapping.end.0, offset / FRAME_SIZE].into_iter().flat_map(u64::to_le_bytes));
            names.extend(name.as_bytes());
            names.push(0);
        }
        if !entries.is_empty() {
            let count = (entries.len() / (3 * WORD)) as u64;
            let head = [count, FRAME_SIZE].map(u64::to_le_bytes).concat();
            self.push(NT_FILE, &[head, entries, names].concat());
        }
        left_out
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The file of a mapping, and where in it the mapping begins. What the kernel calls a mapping that has none, as `[heap]`, is no file.
fn file(mapping: &Mapping) -> Option<(&str, u64)> {
    let name = mapping.file.as_deref().filter(|name| !name.is_empty() && !name.starts_with('['))?;
    Some((name, mapping.offset?))
}

/// The first bytes of a text, with room for a NUL behind them.
fn cut(text: &[u8], len: usize) -> &[u8] {
    text.get(..len - 1).unwrap_or(text)
}

fn put(desc: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = desc.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}
