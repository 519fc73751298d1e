//! ELF cores: of a machine, where the physical addresses of segments count, or of a process, where the virtual ones do.
//!
//! Machines: written by QEMU (`dump-guest-memory`), libvirt (`virsh dump --memory-only`), VirtualBox
//! (`dumpvmcore`), and by kernels as /proc/kcore and /proc/vmcore. Processes: by the kernel when one dies of a signal, and
//! by gdb (`gcore`).

use std::collections::HashMap;
use std::ops::Range;

use object::LittleEndian as LE;
use object::ReadRef;
use object::elf::{FileHeader64, PF_W, PF_X, PN_XNUM, PT_LOAD, PT_NOTE, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

use super::coverage::Coverage;
use super::{Contents, DumpErrorKind, Format, MAX_RANGES, MemoryRange, foreign, process_core};
use crate::addr::{FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};

/// The first four bytes of each ELF file.
pub(super) const MAGIC: [u8; 4] = *b"\x7fELF";

/// Bytes in the header of a 64-bit ELF file.
const HEADER_SIZE: u64 = 64;
/// Bytes in a program header of one.
const PROGRAM_HEADER_SIZE: u64 = 56;
/// Bytes in a section header of one.
const SECTION_HEADER_SIZE: u64 = 64;
/// ELF machines that are GPUs, and what a core of one is called.
const GPUS: [(object::elf::Machine, &str); 2] =
    [(object::elf::EM_CUDA, "a core of an NVIDIA GPU (CUDA)"), (object::elf::EM_AMDGPU, "a core of an AMD GPU (ROCm)")];
/// What to do about one.
const GPU: &str =
    "it holds GPU memory, which has no Python objects; take a core of the process with `gcore` as well, and pass that";
/// The section in which a Xen core keeps memory, and the words that its note begins with.
/// Source: Xen, `docs/misc/dump-core-format.txt`.
const XEN_PAGES: &[u8] = b".xen_pages";
const XEN_MAGICS: [u64; 2] = [0xf00f_ebed, 0xf00f_ebee];
/// Bytes from the start in which that note is looked for.
const XEN_NOTE_REACH: usize = 64 << 10;
/// How often the bytes of a file may count as memory. Known writers give each byte of the file one address; a table of
/// segments that all show the same bytes makes terabytes of memory of a small file.
const TIMES_THE_FILE: u64 = 4;
/// First address of the kernel's half of a 64-bit address space.
const KERNEL_HALF: u64 = 1 << 63;

/// The ranges of an ELF core. A file that ends early is damaged, not refused.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents, DumpErrorKind> {
    parse_fetched(bytes, &|_| ())
}

/// The same; `fetch` is called with each part of the file before it is read.
pub(super) fn parse_fetched(bytes: &[u8], fetch: &dyn Fn(Range<u64>)) -> Result<Contents, DumpErrorKind> {
    let within =
        |start: u64, len: u64| start.min(bytes.len() as u64)..start.saturating_add(len).min(bytes.len() as u64);
    fetch(within(0, XEN_NOTE_REACH as u64));
    refuse_kind(bytes)?;
    let broken = |offset, what| DumpErrorKind::ElfHeader { offset: FileOffset(offset), what };
    let file = FileHeader64::<LE>::parse(bytes).map_err(|_| broken(0, "expected ELF version 1"))?;
    if file.e_phnum(LE) == 0 && is_xen_core(file, bytes) {
        let what = "a Xen core (`xl dump-core`), whose memory is in sections";
        return Err(DumpErrorKind::OtherDump { what, remedy: foreign::XEN_CORE });
    }
    let table = file.e_phoff(LE);
    // The first section header may have the number of program headers.
    fetch(within(file.e_shoff(LE), SECTION_HEADER_SIZE));
    let count = file.phnum(LE, bytes).map_or(MAX_RANGES as u64, |count| count as u64).min(MAX_RANGES as u64);
    fetch(within(table, count * PROGRAM_HEADER_SIZE));
    let counted = file.program_headers(LE, bytes).ok();
    let headers = counted
        .or_else(|| uncounted_headers(file, bytes))
        .ok_or_else(|| broken(table, "expected a table of 56-byte program headers within the file"))?;
    if headers.len() > MAX_RANGES {
        let offset = FileOffset(table.saturating_add(PROGRAM_HEADER_SIZE * MAX_RANGES as u64));
        return Err(DumpErrorKind::TooManyRanges { format: Format::Elf, offset, limit: MAX_RANGES });
    }
    for notes in headers.iter().filter(|header| header.p_type(LE) == PT_NOTE) {
        fetch(within(notes.p_offset(LE), notes.p_filesz(LE)));
    }
    let size = bytes.len() as u64;
    let mut contents = match process_core::process(bytes, headers) {
        Some(process_core::Process { image, mappings, warnings }) => {
            let mut contents = read_segments(size, headers, |header| Some(header.p_vaddr(LE)))?;
            contents.warnings.extend(warnings);
            Contents { image: Some(image), mappings, ..contents }
        }
        None => {
            let direct_map = direct_map(size, headers);
            let address = |header: &ProgramHeader64<LE>| is_physical(header, direct_map).then(|| header.p_paddr(LE));
            let contents = read_segments(size, headers, address)?;
            Contents { code: Vec::new(), ..contents }
        }
    };
    if counted.is_none() {
        let count = headers.len();
        let message =
            format!("the file ends before the extended segment count: only the first {count} segments are used");
        contents.damage(Diagnostic::new(Code::SegmentsLeftOut, None, message));
    }
    Ok(contents)
}

/// Whether a file without program headers is a core of a Xen guest: by the name of a section, or where the file ends
/// before its section headers, by the note at its start.
fn is_xen_core(file: &FileHeader64<LE>, bytes: &[u8]) -> bool {
    if let Ok(sections) = file.sections(LE, bytes) {
        let mut names = sections.iter().filter_map(|section| sections.section_name(LE, section).ok());
        if names.any(|name| name == XEN_PAGES) {
            return true;
        }
    }
    let head = bytes.get(..XEN_NOTE_REACH).unwrap_or(bytes);
    let (words, _) = head.as_chunks::<4>();
    words.windows(2).any(|pair| {
        matches!(pair, [low, high] if {
            let word = u64::from(u32::from_le_bytes(*low)) | u64::from(u32::from_le_bytes(*high)) << 32;
            XEN_MAGICS.contains(&word)
        })
    })
}

/// The program headers of a core that has more than a 16-bit number can count, and was cut off: their number stands in the
/// first section header, which lies behind all memory. The table ends at the latest where the memory begins.
fn uncounted_headers<'a>(file: &FileHeader64<LE>, bytes: &'a [u8]) -> Option<&'a [ProgramHeader64<LE>]> {
    let table = file.e_phoff(LE);
    let room = (bytes.len() as u64).checked_sub(table)? / PROGRAM_HEADER_SIZE;
    if file.e_phnum(LE) != PN_XNUM || u64::from(file.e_phentsize(LE)) != PROGRAM_HEADER_SIZE {
        return None;
    }
    let headers: &[ProgramHeader64<LE>] = bytes.read_slice_at(table, usize::try_from(room).ok()?).ok()?;
    let mut memory = u64::MAX;
    let mut end = table;
    let count = headers.iter().take_while(|header| {
        end = end.saturating_add(PROGRAM_HEADER_SIZE);
        if header.p_filesz(LE) != 0 {
            memory = memory.min(header.p_offset(LE));
        }
        end <= memory
    });
    headers.get(..count.count())
}

/// Refuses what is no 64-bit x86 core. By hand, because `object` reads one class and byte order at
/// a time, and the kind of file can be named for all of them.
fn refuse_kind(bytes: &[u8]) -> Result<(), DumpErrorKind> {
    let have = bytes.len() as u64;
    let cut = || DumpErrorKind::CutHeader { format: Format::Elf, offset: FileOffset(0), need: HEADER_SIZE, have };
    let header = bytes.first_chunk::<{ HEADER_SIZE as usize }>().ok_or_else(cut)?;
    let [m0, m1, m2, m3, class, order, _, _, _, _, _, _, _, _, _, _, t0, t1, a0, a1, ..] = *header;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(DumpErrorKind::ElfHeader { offset: FileOffset(0), what: "expected the magic 7f 45 4c 46" });
    }
    let byte = |at: u64, what| DumpErrorKind::ElfHeader { offset: FileOffset(at), what };
    if !matches!(class, 1 | 2) {
        return Err(byte(4, "expected the class 1 (32-bit) or 2 (64-bit)"));
    }
    if !matches!(order, 1 | 2) {
        return Err(byte(5, "expected the byte order 1 (little-endian) or 2 (big-endian)"));
    }
    let big_endian = order == 2;
    let half = |bytes| if big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) };
    match half([t0, t1]) {
        4 => {}
        1 => return Err(DumpErrorKind::ElfNotCore("relocatable (an object file or kernel module)")),
        2 => return Err(DumpErrorKind::ElfNotCore("executable")),
        3 => return Err(DumpErrorKind::ElfNotCore("shared object or executable")),
        _ => return Err(DumpErrorKind::ElfNotCore("file of an unknown type")),
    }
    let machine = half([a0, a1]);
    if class == 2 && order == 1 && machine == object::elf::EM_X86_64.0 {
        return Ok(());
    }
    if let Some((_, what)) = GPUS.iter().find(|(gpu, _)| gpu.0 == machine) {
        return Err(DumpErrorKind::OtherDump { what, remedy: GPU });
    }
    let bits = if class == 1 { "32-bit" } else { "64-bit" };
    let order = if big_endian { "big-endian" } else { "little-endian" };
    let machine = match object::elf::Machine(machine) {
        object::elf::EM_X86_64 => "x86-64".to_owned(),
        object::elf::EM_386 => "x86".to_owned(),
        object::elf::EM_AARCH64 => "AArch64".to_owned(),
        object::elf::EM_ARM => "ARM".to_owned(),
        object::elf::EM_S390 => "S/390".to_owned(),
        object::elf::EM_PPC64 => "PowerPC".to_owned(),
        object::elf::EM_RISCV => "RISC-V".to_owned(),
        other => format!("machine {}", other.0),
    };
    Err(DumpErrorKind::ElfMachine(format!("{bits} {order} {machine}")))
}

/// What each loadable segment has in the file, at the address that `address` gives it; those without one are left out.
fn read_segments(
    size: u64,
    headers: &[ProgramHeader64<LE>],
    address: impl Fn(&ProgramHeader64<LE>) -> Option<u64>,
) -> Result<Contents, DumpErrorKind> {
    let mut contents = Contents::default();
    let mut coverage = Coverage::default();
    let mut cut: Option<(PhysAddr, u64)> = None;
    let mut unplaced = 0u64;
    let (mut placed, mut left_out) = (0u64, 0u64);
    // p_memsz plays no part: what a segment lacks in the file is a hole, not zeros.
    for (index, header) in loads(headers) {
        let len = header.p_filesz(LE);
        let Some(start) = address(header) else {
            unplaced = unplaced.saturating_add(len);
            continue;
        };
        let Some(end) = start.checked_add(len) else {
            return Err(DumpErrorKind::ElfSegment { index, start: PhysAddr(start), len });
        };
        let offset = header.p_offset(LE);
        let there = size.saturating_sub(offset).min(len);
        if there < len {
            let (_, missing) = cut.get_or_insert((PhysAddr(start + there), 0));
            *missing = missing.saturating_add(end - (start + there));
        }
        if placed >= size.saturating_mul(TIMES_THE_FILE) {
            left_out = left_out.saturating_add(there);
            continue;
        }
        let range = MemoryRange { start: PhysAddr(start), end: PhysAddr(start + there), offset: FileOffset(offset) };
        let known = contents.ranges.len();
        coverage.claim(range, &mut contents.ranges);
        let new = contents.ranges.get(known..).unwrap_or_default();
        placed = new.iter().map(|range| range.end.0 - range.start.0).fold(placed, u64::saturating_add);
        let flags = header.p_flags(LE);
        if flags & PF_X == PF_X && flags & PF_W != PF_W {
            contents.code.extend(new.iter().map(|range| range.start..range.end));
        }
    }
    if let Some((at, missing)) = cut {
        let message =
            format!("the file is {missing} bytes shorter than its segments: the memory from {at} on is missing");
        contents.damage(Diagnostic::new(Code::CutOff, Some(at.into()), message));
    }
    if left_out > 0 {
        let message = format!(
            "segments show the same bytes of the file at many addresses: {left_out} bytes of them are left out, because \
             those before make {placed} bytes of memory of a file of {size}"
        );
        contents.damage(Diagnostic::new(Code::SegmentsLeftOut, None, message));
    }
    if unplaced > 0 {
        let message = format!(
            "{unplaced} bytes in segments without a physical address are not used (the kernel's virtual mappings)"
        );
        contents.warnings.push(Diagnostic::new(Code::VirtualSegments, None, message));
    }
    contents.warnings.extend(coverage.warning());
    if contents.ranges.is_empty() {
        return Err(DumpErrorKind::NoMemory {
            format: Format::Elf,
            why: "no loadable segment has any bytes in the file",
        });
    }
    Ok(contents)
}

/// The loadable segments that have bytes in the file, with their numbers.
fn loads(headers: &[ProgramHeader64<LE>]) -> impl Iterator<Item = (usize, &ProgramHeader64<LE>)> {
    headers.iter().enumerate().filter(|(_, h)| h.p_type(LE) == PT_LOAD && h.p_filesz(LE) != 0)
}

/// The distance between virtual and physical addresses that holds for most bytes of the file: the kernel's direct map.
///
/// The number of segments says nothing: with its option `-p`, `dump-guest-memory` writes one for every page that a
/// process or a module has mapped, and the direct map in a few large ones.
fn direct_map(size: u64, headers: &[ProgramHeader64<LE>]) -> Option<u64> {
    let mut votes: HashMap<u64, u64> = HashMap::new();
    let placed = loads(headers).filter(|(_, h)| h.p_vaddr(LE) >= KERNEL_HALF && has_address(h));
    for (_, header) in placed {
        let bytes = votes.entry(header.p_vaddr(LE).wrapping_sub(header.p_paddr(LE))).or_default();
        // What is not in the file has no vote: a header may claim any size.
        *bytes = bytes.saturating_add(header.p_filesz(LE).min(size.saturating_sub(header.p_offset(LE))));
    }
    // The distance itself breaks ties, so that the answer does not depend on the order of a hash map.
    votes.into_iter().max_by_key(|(distance, bytes)| (*bytes, *distance)).map(|(distance, _)| distance)
}

fn has_address(header: &ProgramHeader64<LE>) -> bool {
    header.p_paddr(LE) != 0 && header.p_paddr(LE) != u64::MAX
}

/// Whether the physical address of a segment is meant. /proc/kcore also lists vmalloc and modules:
/// with a physical address of −1, in older kernels of 0. Such a 0 is told from a true one by the
/// direct map, which a segment of RAM at 0 would be in.
fn is_physical(header: &ProgramHeader64<LE>, direct_map: Option<u64>) -> bool {
    match header.p_paddr(LE) {
        u64::MAX => false,
        0 => header.p_vaddr(LE) < KERNEL_HALF || direct_map.is_none_or(|distance| header.p_vaddr(LE) == distance),
        _ => true,
    }
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
