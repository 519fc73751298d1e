//! Tests of the ELF parser: cores built byte by byte, and arbitrary ones.

use proptest::prelude::*;

use super::*;
use crate::dump::ProcessImage;

const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// Type, virtual and physical address, bytes in the file, bytes in memory.
type Segment = (u32, u64, u64, Vec<u8>, u64);

fn load(vaddr: u64, paddr: u64, len: usize) -> Segment {
    (LOAD, vaddr, paddr, vec![0xaa; len], len as u64)
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let pad = |v: &[u8]| [v, &vec![0; v.len().next_multiple_of(4) - v.len()]].concat();
    let name = [name, b"\0"].concat();
    let head = [name.len() as u32, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
    [head, pad(&name), pad(desc)].concat()
}

/// An x86-64 core: header, program headers, contents.
fn core(segments: &[Segment]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0\x01\0\0\0".to_vec();
    file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat()); // entry, phoff, shoff
    file.extend([0, 0, 0, 0]); // flags
    file.extend([64, 56, segments.len() as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, vaddr, paddr, data, memsz) in segments {
        file.extend([*kind, 0].map(u32::to_le_bytes).concat());
        file.extend([offset, *vaddr, *paddr, data.len() as u64, *memsz, 0].map(u64::to_le_bytes).concat());
        offset += data.len() as u64;
    }
    segments.iter().for_each(|s| file.extend(&s.3));
    file
}

fn ranges(contents: &Contents) -> Vec<(u64, u64)> {
    contents.ranges.iter().map(|r| (r.start.0, r.end.0)).collect()
}

#[test]
fn a_qemu_core_is_a_machine_for_all_its_registers() {
    let notes = [note(b"CORE", 1, &[9; 336]), note(b"QEMU", 0, &[0; 440])].concat();
    let len = notes.len() as u64;
    let file = core(&[(NOTE, 0, 0, notes, len), load(0, 0, 0x40), load(0xc0000, 0xc0000, 0x10)]);
    let contents = parse(&file).unwrap();
    assert_eq!(ranges(&contents), [(0, 0x40), (0xc0000, 0xc0010)]);
    assert_eq!((contents.warnings.len(), contents.damaged), (0, false));
}

#[test]
fn only_bytes_in_the_file_are_memory() {
    let file = core(&[(LOAD, 0, 0x1000, vec![1; 8], 4096), load(0, 0x9000, 0), load(0, 0x3000, 4)]);
    assert_eq!(ranges(&parse(&file).unwrap()), [(0x1000, 0x1008), (0x3000, 0x3004)]);
    let none = parse(&core(&[load(0, 0x9000, 0)]));
    assert!(matches!(none, Err(DumpErrorKind::NoMemory { .. })));
}

#[test]
fn kcore_lists_ram_vmalloc_and_text() {
    const MAP: u64 = 0xffff_8880_0000_0000;
    for vmalloc in [0, u64::MAX] {
        let file = core(&[
            load(0xffff_ffff_8100_0000, 0x1008, 4),
            load(0xffff_c900_0000_0000, vmalloc, 64),
            load(MAP, 0, 16),
            load(MAP + 0x1000, 0x1000, 16),
            load(MAP + 0x4000, 0x4000, 16),
        ]);
        let contents = parse(&file).unwrap();
        assert_eq!(
            ranges(&contents),
            [(0x1008, 0x100c), (0, 16), (0x1000, 0x1008), (0x100c, 0x1010), (0x4000, 0x4010)]
        );
        assert!(contents.warnings[0].message.contains("64 bytes"), "{:?}", contents.warnings);
        assert!(contents.warnings[1].message.contains("0x1008"), "{:?}", contents.warnings);
        assert!(!contents.damaged);
    }
}

/// `dump-guest-memory -p` lists each mapping of the kernel: many small ones at one distance, the direct map in few.
#[test]
fn the_direct_map_is_where_most_bytes_are_mapped() {
    const MAP: u64 = 0xffff_8880_0000_0000;
    const MODULES: u64 = 0xffff_ffff_c000_0000;
    let low = load(MAP, 0, 0x100);
    let map = [low, load(MAP + 0x1000, 0x1000, 0x100), load(MAP + 0x8000, 0x8000, 0x400)];
    let modules = (1..40).map(|i| load(MODULES + 0x1000 * i, 0x10_0000 + 0x1000 * i, 8));
    let claims = (LOAD, MODULES - 0x1000, 0xff_0000, vec![0xaa; 8], 8);
    let mut file = core(&[&map[..], &modules.collect::<Vec<_>>(), &[claims]].concat());
    let contents = parse(&file).unwrap();
    assert!(ranges(&contents).contains(&(0, 0x100)), "{:?}", ranges(&contents));
    assert!(contents.warnings.is_empty(), "{:?}", contents.warnings);
    // A size that is claimed and not in the file counts for nothing.
    let at = 64 + 56 * 42 + 32;
    file[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    let contents = parse(&file).unwrap();
    assert!(ranges(&contents).contains(&(0, 0x100)), "{:?}", ranges(&contents));
}

/// Every byte of a file may count as memory a few times, not as often as a table can list it.
#[test]
fn segments_that_all_show_the_same_bytes_are_not_all_memory() {
    let mut segments: Vec<Segment> = (0..1000).map(|i| load(0, 0x10_0000 * i + 0x1000, 0)).collect();
    segments.push(load(0, 0x1_0000_0000, 0x1_0000));
    let mut file = core(&segments);
    let shown = 64 + 56 * 1001;
    for i in 0..1000 {
        let header = 64 + 56 * i;
        file[header + 8..header + 16].copy_from_slice(&(shown as u64).to_le_bytes());
        file[header + 32..header + 40].copy_from_slice(&0x1_0000u64.to_le_bytes());
    }
    let contents = parse(&file).unwrap();
    let memory: u64 = ranges(&contents).iter().map(|(start, end)| end - start).sum();
    let limit = 4 * file.len() as u64;
    assert!((limit..limit + 0x1_0000).contains(&memory), "{memory:#x} of a file of {:#x}", file.len());
    // What lies at one address is one memory, however often it is listed.
    assert_eq!(ranges(&contents)[0], (0x1000, 0x1_1000));
    let left_out = 1001 * 0x1_0000 - memory;
    assert!(
        contents.damaged && contents.warnings[0].message.contains(&format!("{left_out} bytes")),
        "{:?}",
        contents.warnings
    );
    // The same segments at one address are no memory more: nothing is left out.
    for i in 0..1000 {
        let address = 64 + 56 * i + 24;
        file[address..address + 8].copy_from_slice(&0x1_0000_0000u64.to_le_bytes());
    }
    let contents = parse(&file).unwrap();
    assert_eq!(ranges(&contents), [(0x1_0000_0000, 0x1_0001_0000)]);
    assert!(!contents.damaged, "{:?}", contents.warnings);
}

#[test]
fn a_truncated_core_keeps_what_is_there() {
    let file = core(&[load(0, 0x1000, 32), load(0, 0x8000, 32), load(0, 0x9000, 8)]);
    let contents = parse(&file[..file.len() - 20]).unwrap();
    assert_eq!(ranges(&contents), [(0x1000, 0x1020), (0x8000, 0x8014)]);
    assert!(contents.damaged);
    assert!(contents.warnings[0].message.contains("20 bytes short"), "{:?}", contents.warnings);
    assert!(contents.warnings[0].message.contains("0x8014"), "{:?}", contents.warnings);
}

/// Notes of a process: its registers, who it was, its auxiliary vector.
fn process_notes() -> Vec<u8> {
    let mut status = [0; 336];
    status[32] = 7;
    let mut info = [0; 136];
    info[1] = b'S';
    info[16..20].copy_from_slice(&1000u32.to_le_bytes());
    info[24] = 188;
    info[28] = 185;
    info[40..47].copy_from_slice(b"python3");
    let mut other = status;
    other[32] = 9;
    let vector = [9u64, 0x40_1000, 0, 0, 25, 7].map(u64::to_le_bytes).concat();
    let notes = [(1, &status[..]), (3, &info[..]), (1, &other[..]), (6, &vector[..])];
    notes.map(|(kind, desc)| note(b"CORE", kind, desc)).concat()
}

/// A loadable segment of a process, with its flags: 1 to execute, 2 to write, 4 to read.
fn mapped(file: &mut [u8], segment: usize, flags: u8) {
    file[64 + 56 * segment + 4] = flags;
}

#[test]
fn a_core_of_a_process_has_virtual_addresses() {
    let known = ProcessImage {
        pid: Some(188),
        comm: Some("python3".to_owned()),
        ppid: Some(185),
        uid: Some(1000),
        state: Some('S'),
        threads: vec![7, 9],
        auxiliary_vector: vec![(9, 0x40_1000)],
    };
    // Whatever the physical addresses say; a single segment is enough.
    let kernel = core(&[(NOTE, 0, 0, process_notes(), 0), load(0x40_0000, 0x9000, 16)]);
    let contents = parse(&kernel).unwrap();
    assert_eq!((contents.image.as_ref(), ranges(&contents)), (Some(&known), vec![(0x40_0000, 0x40_0010)]));
    // Only registers, which a machine has too, or nothing at all: several segments without a physical address.
    let mut status = [0; 336];
    status[32] = 7;
    let registers = (NOTE, 0, 0, note(b"CORE", 1, &status), 0);
    let loads = [load(0x40_0000, 0, 16), load(0x7fff_0000_0000, 0, 16)];
    let bare = parse(&core(&[&[registers], &loads[..]].concat())).unwrap();
    assert_eq!(bare.image, Some(ProcessImage { pid: Some(7), threads: vec![7], ..ProcessImage::default() }));
    assert_eq!(ranges(&bare), [(0x40_0000, 0x40_0010), (0x7fff_0000_0000, 0x7fff_0000_0010)]);
    assert_eq!(parse(&core(&loads)).unwrap().image, Some(ProcessImage::default()));
}

#[test]
fn what_a_process_core_leaves_out_is_a_hole() {
    // The kernel writes the first page of a library, and nothing of a reservation.
    let first_page = (LOAD, 0x7f00_0000_0000, 0, vec![1; 4096], 0x20_0000);
    let reserved = (LOAD, 0x7f10_0000_0000, 0, Vec::new(), 0x400_0000);
    let vsyscall = load(0xffff_ffff_ff60_0000, 0, 4096);
    let file = core(&[(NOTE, 0, 0, process_notes(), 0), first_page, reserved, load(0x40_0000, 0, 8), vsyscall]);
    let contents = parse(&file).unwrap();
    let want =
        [(0x7f00_0000_0000, 0x7f00_0000_1000), (0x40_0000, 0x40_0008), (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000)];
    assert_eq!(ranges(&contents), want);
    assert!(!contents.damaged && contents.warnings.is_empty());
    let none = parse(&core(&[(NOTE, 0, 0, process_notes(), 0), (LOAD, 0x1000, 0, Vec::new(), 4096)]));
    assert!(matches!(none, Err(DumpErrorKind::NoMemory { .. })));
}

#[test]
fn code_is_what_may_be_executed_and_not_written() {
    let loads = (0..4).map(|i| load(0x1000 * (i + 1), 0, 16));
    let mut file = core(&[vec![(NOTE, 0, 0, process_notes(), 0)], loads.collect()].concat());
    for (segment, flags) in [(1, 4), (2, 5), (3, 6), (4, 7)] {
        mapped(&mut file, segment, flags);
    }
    assert_eq!(parse(&file).unwrap().code, [PhysAddr(0x2000)..PhysAddr(0x2010)]);
    // Of a machine, page tables say it.
    let mut machine = core(&[load(0, 0x1000, 16)]);
    mapped(&mut machine, 0, 5);
    let contents = parse(&machine).unwrap();
    assert_eq!((contents.image, contents.code), (None, Vec::new()));
}

#[test]
fn a_truncated_process_core_keeps_what_is_there() {
    // gdb writes the notes last, so that they are gone too.
    let loads = [load(0x40_0000, 0, 32), load(0x7f00_0000_0000, 0, 32)];
    let file = core(&[&loads[..], &[(NOTE, 0, 0, process_notes(), 0)]].concat());
    let contents = parse(&file[..64 + 3 * 56 + 40]).unwrap();
    assert_eq!(contents.image, Some(ProcessImage::default()));
    assert_eq!(ranges(&contents), [(0x40_0000, 0x40_0020), (0x7f00_0000_0000, 0x7f00_0000_0008)]);
    assert!(contents.damaged);
    assert!(contents.warnings[0].message.contains("24 bytes short"), "{:?}", contents.warnings);
}

#[test]
fn other_elf_files_are_named() {
    let mut file = core(&[load(0, 0, 16)]);
    for (kind, want) in [(1, "relocatable"), (2, "executable"), (3, "shared object"), (99, "unknown")] {
        file[16] = kind;
        assert!(matches!(parse(&file), Err(DumpErrorKind::ElfNotCore(is)) if is.contains(want)));
    }
    file[16] = 4;
    file[18] = 183;
    assert!(matches!(parse(&file), Err(DumpErrorKind::ElfMachine(m)) if m == "64-bit little-endian AArch64"));
    file[4] = 1;
    file[18] = 3;
    assert!(matches!(parse(&file), Err(DumpErrorKind::ElfMachine(m)) if m == "32-bit little-endian x86"));
    assert!(matches!(parse(&file[..40]), Err(DumpErrorKind::CutHeader { need: 64, have: 40, .. })));
    file[4] = 2;
    for (machine, want) in [(190, "NVIDIA"), (224, "AMD")] {
        file[18] = machine;
        let Err(reason) = parse(&file) else { panic!("was read") };
        assert!(reason.to_string().contains(want) && reason.hint().contains("gcore"), "{reason}");
    }
}

#[test]
fn a_xen_core_is_named() {
    // No program headers; a note, two sections, of which one has the pages, and the names.
    let mut file = core(&[]);
    file.extend(note(b"Xen", 0x200_0001, &0xf00f_ebed_u64.to_le_bytes()));
    let names = file.len() as u64;
    file.extend(b"\0.xen_pages\0.shstrtab\0");
    let headers = file.len() as u64;
    let section = |name: u32, kind: u32, offset: u64, size: u64| {
        [
            &[name, kind].map(u32::to_le_bytes).concat()[..],
            &[0, 0, offset, size, 0, 8, 0].map(u64::to_le_bytes).concat(),
        ]
        .concat()
    };
    file.extend([section(0, 0, 0, 0), section(1, 1, 0x1000, 0x4000), section(12, 3, names, 22)].concat());
    file[40..48].copy_from_slice(&headers.to_le_bytes());
    file[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    for file in [&file[..], &file[..headers as usize]] {
        let Err(reason) = parse(file) else { panic!("was read") };
        assert!(matches!(reason, DumpErrorKind::OtherDump { .. }), "{reason}");
        for word in ["a Xen core", "layerwriter", "vmi-dump-memory"] {
            assert!(format!("{reason}; {}", reason.hint()).contains(word), "{reason}");
        }
    }
    // Any other file without segments holds no memory.
    assert!(matches!(parse(&core(&[])), Err(DumpErrorKind::NoMemory { .. })));
}

#[test]
fn broken_tables_and_segments_are_refused() {
    let mut file = core(&[load(0, u64::MAX - 3, 16)]);
    assert!(matches!(parse(&file), Err(DumpErrorKind::ElfSegment { index: 0, len: 16, .. })));
    file[32] = 0xf0; // the table's place
    assert!(matches!(parse(&file), Err(DumpErrorKind::ElfHeader { offset: FileOffset(0xf0), .. })));
    // What is neither of 32 nor of 64 bits is of no other machine.
    for at in [4, 5] {
        let mut file = core(&[load(0, 0x1000, 16)]);
        file[at] = 3;
        assert!(matches!(parse(&file), Err(DumpErrorKind::ElfHeader { offset, .. }) if offset.0 == at as u64));
    }
}

#[test]
fn more_headers_than_the_header_can_count() {
    // PN_XNUM: the true count is in sh_info of section 0, here behind the program headers.
    let count = 70_000u32;
    let mut file = core(&[]);
    file[56..58].copy_from_slice(&PN_XNUM.to_le_bytes());
    let data = 64 + 56 * u64::from(count);
    let sections = data + 8;
    file[40..48].copy_from_slice(&sections.to_le_bytes());
    file[58..62].copy_from_slice(&[64, 0, 1, 0]);
    for i in 0..u64::from(count) {
        file.extend([LOAD, 0].map(u32::to_le_bytes).concat());
        file.extend([data, 0x1000 * (i + 1), 0, 8, 8, 0].map(u64::to_le_bytes).concat());
    }
    file.extend([1; 8]);
    let mut section = [0; 64];
    section[44..48].copy_from_slice(&count.to_le_bytes());
    file.extend(section);
    let whole = parse(&file).unwrap();
    assert_eq!((whole.ranges.len(), whole.damaged), (count as usize, false));
    // Where the file ends before the section, the table ends where the memory begins.
    let cut = parse(&file[..file.len() - 64]).unwrap();
    assert_eq!((cut.ranges.len(), cut.damaged), (count as usize, true));
    assert!(cut.warnings[0].message.contains("first 70000 segments"), "{:?}", cut.warnings);
    // Nothing in the file but headers: the table is cut as well.
    file.truncate(64 + 56 * 9 + 5);
    assert!(matches!(parse(&file), Err(DumpErrorKind::NoMemory { .. })));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        words in prop::collection::vec(any::<u64>(), 0..40), count: u16, kinds in prop::collection::vec(0u32..6, 9)
    ) {
        let _ = parse(&bytes);
        // A sound header with wild program headers gets further than wild bytes do.
        let segments: Vec<Segment> = kinds.iter().zip(words.chunks(4)).map(|(kind, w)| {
            let at = |i: usize| w.get(i).copied().unwrap_or(0);
            (*kind, at(0), at(1), bytes.clone(), at(2))
        }).collect();
        let mut file = core(&segments);
        let _ = parse(&file);
        for (i, w) in words.iter().enumerate() {
            let at = 64 + (*w as usize >> 8) % (file.len() - 64).max(1);
            if i % 2 == 0 && at < file.len() { file[at] = *w as u8; }
        }
        let _ = parse(&file);
        file[56..58].copy_from_slice(&count.to_le_bytes());
        let _ = parse(&file);
    }

    #[test]
    fn sound_cores_come_back_as_they_were_written(
        spec in prop::collection::vec((1u64..1000, 1usize..100), 1..20),
        identity: bool, of_process: bool, cut in 0usize..200
    ) {
        let (mut segments, mut want, mut at) = (Vec::new(), Vec::new(), 0u64);
        for (gap, len) in spec {
            at += gap;
            want.push((at, at + len as u64));
            let vaddr = if identity || of_process { at } else { 0 };
            segments.push(load(vaddr, if of_process { 0 } else { at }, len));
            at += len as u64;
        }
        if of_process {
            segments.insert(0, (NOTE, 0, 0, process_notes(), 0));
        }
        let file = core(&segments);
        let contents = parse(&file).unwrap();
        prop_assert_eq!(contents.image.is_some(), of_process);
        prop_assert_eq!(ranges(&contents), want);
        prop_assert!(!contents.damaged && contents.warnings.is_empty());
        let left = &file[..file.len().saturating_sub(cut)];
        if let Ok(contents) = parse(left) {
            prop_assert!(contents.ranges.iter().all(|r| r.offset.0 + r.len() <= left.len() as u64));
        }
    }
}
