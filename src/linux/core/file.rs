//! The file of a core: headers, notes, and the bytes of the segments.
//!
//! ```text
//!  ELF header │ program headers │ section header, if they are many │ notes │ pages …
//! ```

use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use object::LittleEndian as LE;
use object::elf::{
    ELFCLASS64, ELFDATA2LSB, ELFMAG, ELFOSABI_NONE, EM_X86_64, ET_CORE, EV_CURRENT, FileFlags, FileHeader64, Ident,
    PF_R, PF_W, PF_X, PN_XNUM, PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64, SHN_UNDEF, SHT_NULL, SectionFlags,
    SectionHeader64,
};
use object::{U16, U32, U64, pod};

use super::Core;
use super::notes::ALIGN;
use super::segments::Segment;
use crate::addr::FRAME_SIZE;
use crate::paging::VirtualMemory;

/// Bytes that are written at once: the file system takes many pages together faster than one by one.
const BUFFER: usize = 1 << 20;
const FILE_HEADER: u16 = size_of::<FileHeader64<LE>>() as u16;
const PROGRAM_HEADER: u16 = size_of::<ProgramHeader64<LE>>() as u16;
const SECTION_HEADER: u16 = size_of::<SectionHeader64<LE>>() as u16;

/// Where the parts before the pages lie.
struct Head {
    /// Program headers, that of the notes included.
    count: u64,
    /// The section header that holds the count, if the file header has no room for it.
    section: Option<u64>,
    notes: u64,
    end: u64,
}

impl Head {
    fn new(core: &Core) -> Self {
        let count = core.segments.len() as u64 + 1;
        let table_end = u64::from(FILE_HEADER) + count * u64::from(PROGRAM_HEADER);
        let section = (count >= u64::from(PN_XNUM)).then_some(table_end);
        let notes = table_end + section.map_or(0, |_| u64::from(SECTION_HEADER));
        Self { count, section, notes, end: notes + core.notes.len() as u64 }
    }
}

/// Bytes of the core of a process.
pub(super) fn size(core: &Core) -> u64 {
    core.segments.iter().fold(Head::new(core).end, |end, segment| segment.end_in_file(end))
}

/// Writes the core of a process to what is empty.
pub(super) fn write(core: &Core, out: &mut (impl Write + Seek), advance: &dyn Fn(u64)) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let head = Head::new(core);
    let mut table = Vec::new();
    table.extend(pod::bytes_of(&file_header(&head)));
    table.extend(pod::bytes_of(&program_header_of_notes(core, &head)));
    let mut end = head.end;
    for segment in &core.segments {
        table.extend(pod::bytes_of(&program_header(segment, segment.start_in_file(end))));
        end = segment.end_in_file(end);
    }
    if head.section.is_some() {
        table.extend(pod::bytes_of(&section_header(&head)));
    }
    out.write_all(&table)?;
    out.write_all(&core.notes)?;
    advance(head.end);
    write_pages(core, head.end, &mut out, advance)
}

/// Writes the bytes of all segments, the first behind `end`; those of pages of zeros are skipped.
fn write_pages(core: &Core, mut end: u64, out: &mut (impl Write + Seek), advance: &dyn Fn(u64)) -> io::Result<()> {
    // Where `out` is, and where the next bytes belong.
    let mut at = end;
    for segment in core.segments.iter().filter(|segment| segment.in_file > 0) {
        let mut to = segment.start_in_file(end);
        let mut va = segment.start;
        end = segment.end_in_file(end);
        while to < end {
            // To the end of a page, at which the next bytes may lie elsewhere in the dump.
            let most = (FRAME_SIZE - va.in_frame()).min(end - to);
            let bytes = core.space.bytes_at(va).map_err(|fault| io::Error::other(core.space.explain(fault)))?;
            let bytes = bytes.get(..usize::try_from(most).unwrap_or(usize::MAX)).unwrap_or(bytes);
            let len = bytes.len() as u64;
            if bytes.iter().any(|byte| *byte != 0) {
                if at != to {
                    out.seek(SeekFrom::Start(to))?;
                }
                out.write_all(bytes)?;
                at = to + len;
            }
            to += len;
            va = va.checked_add(len).ok_or_else(|| io::Error::other("a segment lies past the last address"))?;
            advance(len);
        }
    }
    if at < end {
        // The file is as long as it would be with the zeros at its end.
        out.seek(SeekFrom::Start(end - 1))?;
        out.write_all(&[0])?;
    }
    out.flush()
}

fn file_header(head: &Head) -> FileHeader64<LE> {
    FileHeader64 {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(LE, ET_CORE),
        e_machine: U16::new(LE, EM_X86_64),
        e_version: U32::new(LE, EV_CURRENT.0.into()),
        e_entry: U64::new(LE, 0),
        e_phoff: U64::new(LE, FILE_HEADER.into()),
        e_shoff: U64::new(LE, head.section.unwrap_or(0)),
        e_flags: U32::new(LE, FileFlags(0)),
        e_ehsize: U16::new(LE, FILE_HEADER),
        e_phentsize: U16::new(LE, PROGRAM_HEADER),
        e_phnum: U16::new(
            LE,
            if head.section.is_some() { PN_XNUM } else { u16::try_from(head.count).unwrap_or(PN_XNUM) },
        ),
        e_shentsize: U16::new(LE, if head.section.is_some() { SECTION_HEADER } else { 0 }),
        e_shnum: U16::new(LE, u16::from(head.section.is_some())),
        e_shstrndx: U16::new(LE, SHN_UNDEF),
    }
}

/// The first section header: `sh_info` is the number of program headers.
fn section_header(head: &Head) -> SectionHeader64<LE> {
    SectionHeader64 {
        sh_name: U32::new(LE, 0),
        sh_type: U32::new(LE, SHT_NULL),
        sh_flags: U64::new(LE, SectionFlags(0)),
        sh_addr: U64::new(LE, 0),
        sh_offset: U64::new(LE, 0),
        sh_size: U64::new(LE, 1),
        sh_link: U32::new(LE, 0),
        sh_info: U32::new(LE, u32::try_from(head.count).unwrap_or(u32::MAX)),
        sh_addralign: U64::new(LE, 0),
        sh_entsize: U64::new(LE, 0),
    }
}

fn program_header_of_notes(core: &Core, head: &Head) -> ProgramHeader64<LE> {
    let len = core.notes.len() as u64;
    ProgramHeader64 {
        p_type: U32::new(LE, PT_NOTE),
        p_flags: U32::new(LE, ProgramFlags(0)),
        p_offset: U64::new(LE, head.notes),
        p_vaddr: U64::new(LE, 0),
        p_paddr: U64::new(LE, 0),
        p_filesz: U64::new(LE, len),
        p_memsz: U64::new(LE, 0),
        p_align: U64::new(LE, ALIGN as u64),
    }
}

/// That of a segment whose bytes begin at `offset`.
fn program_header(segment: &Segment, offset: u64) -> ProgramHeader64<LE> {
    let bits = segment.access.into_iter().zip([PF_R, PF_W, PF_X]).filter(|(has, _)| *has);
    let flags = bits.fold(ProgramFlags(0), |flags, (_, bit)| flags | bit);
    ProgramHeader64 {
        p_type: U32::new(LE, PT_LOAD),
        p_flags: U32::new(LE, flags),
        p_offset: U64::new(LE, offset),
        p_vaddr: U64::new(LE, segment.start.0),
        p_paddr: U64::new(LE, 0),
        p_filesz: U64::new(LE, segment.in_file),
        p_memsz: U64::new(LE, segment.in_memory),
        p_align: U64::new(LE, FRAME_SIZE),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::Arc;

    use object::read::elf::{FileHeader, ProgramHeader};

    use super::*;
    use crate::addr::{FileOffset, PhysAddr, VirtAddr};
    use crate::dump::{MemoryRange, PhysicalMemory};
    use crate::paging::AddressSpace;

    /// A core of so many pages beside each other without bytes, and of four pages behind them: zeros, ones, twos, zeros.
    fn core(absent: u64) -> Core {
        let start = absent * FRAME_SIZE;
        let bytes = [0, 1, 2, 0].into_iter().flat_map(|byte| [byte; FRAME_SIZE as usize]).collect::<Vec<u8>>();
        let end = start + bytes.len() as u64;
        let range = MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset: FileOffset(0) };
        let memory = Arc::new(PhysicalMemory::owned(bytes, vec![range]).unwrap());
        let segment = |page: u64, in_file: u64| Segment {
            start: VirtAddr(page * FRAME_SIZE),
            in_memory: in_file.max(FRAME_SIZE),
            in_file,
            access: [true, false, true],
        };
        let segments = (0..absent).map(|page| segment(page, 0));
        Core {
            space: AddressSpace::of_image(&memory),
            segments: segments.chain([segment(absent, FRAME_SIZE), segment(absent + 1, 3 * FRAME_SIZE)]).collect(),
            notes: Vec::new(),
            mapped: 0,
            held: 0,
            swapped: 0,
            missing: 0,
            threads: 0,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn any_number_of_segments_can_be_read_again() {
        // One header is that of the notes, and 0xffff of them are too many for the file header.
        for absent in [0, 5, 0xfffb, 0xfffc, 0xfffd, 70_000] {
            let core = core(absent);
            let mut file = Cursor::new(Vec::new());
            let done = std::cell::Cell::new(0);
            core.write(&mut file, &|bytes| done.set(done.get() + bytes)).unwrap();
            let file = file.into_inner();
            assert_eq!(file.len() as u64, core.size(), "{absent}");
            assert_eq!(done.get(), Head::new(&core).end + 4 * FRAME_SIZE);
            let header = FileHeader64::<LE>::parse(&*file).unwrap();
            let segments = header.program_headers(LE, &*file).unwrap();
            assert_eq!(segments.len() as u64, absent + 3);
            let data = |segment: &ProgramHeader64<LE>| segment.data(LE, &*file).unwrap();
            let [.., zeros, others] = segments else { panic!("two at least") };
            assert_eq!(data(zeros), [0; FRAME_SIZE as usize]);
            let (pages, _) = data(others).as_chunks::<{ FRAME_SIZE as usize }>();
            assert_eq!(pages, [1, 2, 0].map(|byte| [byte; FRAME_SIZE as usize]));
            assert_eq!((others.p_vaddr(LE), others.p_flags(LE)), ((absent + 1) * FRAME_SIZE, PF_R | PF_X));
        }
    }

    #[test]
    fn what_can_not_be_read_is_an_error() {
        let mut core = core(1);
        core.segments.insert(0, Segment { in_file: FRAME_SIZE, ..core.segments[0] });
        assert!(core.write(&mut Cursor::new(Vec::new()), &|_| ()).is_err());
    }
}
