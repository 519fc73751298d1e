//! Opening dumps: what is read, what is refused, and whether the refusal helps.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

use std::cell::Cell;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tensorcarve::addr::PhysAddr;
use tensorcarve::diagnostic::Code;
use tensorcarve::dump::{
    self, Addresses, Compression, Dump, DumpError, DumpErrorKind, Format, OpenOptions, ProcessImage,
};

/// A file of these bytes in a folder that is gone with the test.
fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    // The name tells nothing, or a lie: only the content counts.
    let path = dir.path().join("evidence.pdf");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn open(path: &Path) -> Result<Dump, DumpError> {
    dump::open(path, &OpenOptions::default(), &|_, _| ())
}

fn open_bytes(bytes: &[u8]) -> Result<Dump, DumpError> {
    let (_dir, path) = file(bytes);
    open(&path)
}

/// The refusal of a file, whose message must say the words.
fn refused(bytes: &[u8], words: &[&str]) -> DumpErrorKind {
    let Err(error) = open_bytes(bytes) else { panic!("was opened") };
    let message = format!("{error}; {}", error.reason.hint());
    assert!(message.contains("evidence.pdf"), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    error.reason
}

fn lime_range(start: u64, bytes: &[u8]) -> Vec<u8> {
    let last = start + bytes.len() as u64 - 1;
    [b"EMiL\x01\0\0\0", &start.to_le_bytes()[..], &last.to_le_bytes(), &[0; 8], bytes].concat()
}

/// Two ranges with a hole, of bytes that tell where they are from.
fn lime() -> Vec<u8> {
    let page = |seed: u64| (0..8192u64).map(|i| ((i * seed) >> 3) as u8).collect::<Vec<_>>();
    [lime_range(0x1000, &page(11)), lime_range(0x10_0000, &page(13))].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An ELF file of x86-64 with loadable segments (virtual address, physical address, bytes) and notes.
fn elf(kind: u16, loads: &[(u64, u64, &[u8])], notes: &[u8]) -> Vec<u8> {
    let count = loads.len() as u16 + 1;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([kind, 62, 1, 0].map(u16::to_le_bytes).concat());
    file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 64, 56, count, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * u64::from(count);
    let segments = [(4u32, 0, 0, notes)].into_iter().chain(loads.iter().map(|(v, p, b)| (1, *v, *p, *b)));
    for (kind, vaddr, paddr, bytes) in segments.clone() {
        let len = bytes.len() as u64;
        file.extend([kind, 4].map(u32::to_le_bytes).concat());
        file.extend([offset, vaddr, paddr, len, len, 4].map(u64::to_le_bytes).concat());
        offset += len;
    }
    segments.for_each(|(.., bytes)| file.extend(bytes));
    file
}

fn note(kind: u32, desc: &[u8]) -> Vec<u8> {
    [&5u32.to_le_bytes()[..], &(desc.len() as u32).to_le_bytes(), &kind.to_le_bytes(), b"CORE\0\0\0\0", desc].concat()
}

#[test]
fn a_plain_lime_dump_is_mapped() {
    let dump = open_bytes(&lime()).unwrap();
    assert_eq!((dump.format, dump.compression), (Format::Lime, None));
    assert_eq!((dump.size, dump.file_size), (lime().len() as u64, lime().len() as u64));
    assert_eq!(dump.memory.size(), 16384);
    assert_eq!(dump.memory.bytes(PhysAddr(0x10_0000), 8192), lime().get(32 + 8192 + 32..));
    assert!(!dump.damaged && dump.warnings.is_empty());
}

#[test]
fn compressed_dumps_are_unpacked() {
    let cases = [
        (Compression::Zstd, zstd(&lime())),
        (Compression::Gzip, gzip(&lime())),
        (Compression::Xz, xz(&lime())),
        (Compression::Zlib, zlib(&lime())),
        (Compression::Zstd, lime().chunks(5000).flat_map(zstd).collect()),
        (Compression::Gzip, lime().chunks(5000).flat_map(gzip).collect()),
        (Compression::Xz, lime().chunks(5000).flat_map(xz).collect()),
    ];
    for (compression, bytes) in cases {
        let (_dir, path) = file(&bytes);
        let spool = tempfile::tempdir().unwrap();
        let options = OpenOptions { spool_dir: Some(spool.path().to_owned()), ..OpenOptions::default() };
        let last = Cell::new((0, 0));
        let dump = dump::open(&path, &options, &|done, all| last.set((done, all))).unwrap();
        assert_eq!((dump.format, dump.compression), (Format::Lime, Some(compression)));
        assert_eq!((dump.size, dump.file_size), (lime().len() as u64, bytes.len() as u64));
        assert_eq!(dump.memory.bytes(PhysAddr(0x1000), 8192), lime().get(32..32 + 8192));
        assert_eq!(last.get(), (dump.file_size, dump.file_size));
        // The spool file has no name.
        assert_eq!(fs::read_dir(spool.path()).unwrap().count(), 0);
    }
}

#[test]
fn anything_without_a_mark_is_raw() {
    for bytes in [vec![0; 8192], (0..8192u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()] {
        let dump = open_bytes(&bytes).unwrap();
        assert_eq!(dump.format, Format::Raw);
        assert_eq!(dump.memory.bytes(PhysAddr(0), 8192), Some(&bytes[..]));
    }
    let odd = open_bytes(&[0; 5000]).unwrap();
    assert!(odd.warnings[0].message.contains("904 bytes into a 4096-byte page"), "{:?}", odd.warnings);
}

#[test]
fn the_format_can_be_forced() {
    let (_dir, path) = file(&[&b"\xff\xd8\xff\xe0\0\x10JFIF\0"[..], &[0; 8192]].concat());
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    assert_eq!(dump::open(&path, &options, &|_, _| ()).unwrap().format, Format::Raw);
    let options = OpenOptions { format: Some(Format::Lime), ..OpenOptions::default() };
    let error = dump::open(&path, &options, &|_, _| ()).err().unwrap();
    assert!(matches!(error.reason, DumpErrorKind::LimeMagic { found: 0xe0ff_d8ff, .. }));
}

#[test]
fn a_machine_core_is_read() {
    let file = elf(4, &[(0, 0, &[1; 4096]), (0, 0xc_0000, &[2; 4096])], &note(1, &[0; 336]));
    let dump = open_bytes(&file).unwrap();
    assert_eq!((dump.format, dump.addresses), (Format::Elf, Addresses::Physical));
    assert_eq!(dump.memory.bytes(PhysAddr(0xc_0000), 4096), Some(&[2; 4096][..]));
    assert_eq!(dump.memory.bytes(PhysAddr(0x1000), 1), None);
}

#[test]
fn zeros_that_nobody_wrote_are_read_and_not_searched() {
    // As in cores: a reservation of a process that the file has as a hole, between two pages, none at a page border.
    const RESERVED: u64 = 64 << 20;
    let head = elf(4, &[(0x40_0000, 0, &[1; 4096]), (0x1000_0000, 0, &[]), (0x7fff_0000_0000, 0, &[])], &[]);
    let (_dir, path) = file(&head);
    let mut bytes = head.clone();
    for (segment, offset, len) in [(2, head.len() as u64, RESERVED), (3, head.len() as u64 + RESERVED, 4096)] {
        let at = 64 + 56 * segment + 8;
        bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
        bytes[at + 24..at + 32].copy_from_slice(&len.to_le_bytes());
    }
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&bytes).unwrap();
    file.seek(SeekFrom::Start(head.len() as u64 + RESERVED)).unwrap();
    file.write_all(&[2; 4096]).unwrap();
    drop(file);
    for packed in [false, true] {
        if packed {
            fs::write(&path, zstd(&fs::read(&path).unwrap())).unwrap();
        }
        let memory = open(&path).unwrap().memory;
        assert_eq!(memory.size(), RESERVED + 2 * 4096);
        assert!(memory.bytes(PhysAddr(0x1000_0000), RESERVED).unwrap().iter().all(|byte| *byte == 0));
        let searchable = memory.searchable();
        assert!(searchable.size() < 1 << 20, "{}", searchable.size());
        assert!(searchable.contains(PhysAddr(0x40_0fff)) && searchable.contains(PhysAddr(0x7fff_0000_0fff)));
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let reason = |path: &Path| open(path).err().unwrap().reason;
    assert!(matches!(reason(&dir.path().join("none")), DumpErrorKind::Missing));
    assert!(matches!(reason(dir.path()), DumpErrorKind::Directory));
    assert!(matches!(reason(Path::new("/dev/null")), DumpErrorKind::NotAFile("character device")));
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(matches!(reason(&socket), DumpErrorKind::NotAFile("socket")));
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(matches!(reason(&fifo), DumpErrorKind::NotAFile("pipe")));
}

#[test]
fn what_holds_no_memory_is_refused() {
    assert!(matches!(refused(b"", &["is empty"]), DumpErrorKind::Empty));
    assert!(matches!(refused(&zstd(b""), &["is empty"]), DumpErrorKind::Empty));
    assert!(matches!(refused(&[7; 99], &["99 bytes", "--input-format raw"]), DumpErrorKind::TooSmall(99)));
    let jpeg = [&b"\xff\xd8\xff\xe0\0\x10JFIF\0"[..], &[3; 9999]].concat();
    refused(&jpeg, &["looks like a JPEG image, not a memory dump", "--input-format raw"]);
    refused(&gzip(&jpeg), &["JPEG"]);
    refused(&b"one line of text\n".repeat(999), &["a text file", "pass the dump itself"]);
    refused(&[b"AVML", &[0; 9999][..]].concat(), &["AVML", "avml-convert"]);
    refused(&[b"BZh91AY&SY", &[0; 9999][..]].concat(), &["bzip2", "unpack it first"]);
    refused(&gzip(&xz(&lime())), &["xz inside gzip"]);
}

#[test]
fn parts_of_a_split_file_are_said_to_be_parts() {
    let dir = tempfile::tempdir().unwrap();
    let whole = lime();
    let parts: Vec<PathBuf> = (1..=3).map(|part| dir.path().join(format!("memory.lime.00{part}"))).collect();
    for (part, bytes) in parts.iter().zip(whole.chunks(8192)) {
        fs::write(part, bytes).unwrap();
    }
    let first = open(&parts[0]).unwrap();
    assert_eq!((first.format, first.damaged), (Format::Lime, true));
    assert!(first.warnings.iter().any(|said| said.message.contains("the first part")), "{:?}", first.warnings);
    let second = open(&parts[1]).unwrap();
    assert_eq!(second.format, Format::Raw);
    assert!(
        second.warnings.iter().any(|said| said.message.contains("memory.lime.001 is next to it")),
        "{:?}",
        second.warnings
    );
    fs::write(&parts[0], &whole).unwrap();
    assert!(open(&parts[0]).unwrap().warnings.is_empty());
}

#[test]
fn a_lime_dump_cut_in_a_range_is_used_as_far_as_it_goes() {
    let whole = lime();
    let dump = open_bytes(&whole[..whole.len() - 1000]).unwrap();
    assert!(dump.damaged);
    assert_eq!(dump.memory.size(), 16384 - 1000);
    assert!(dump.warnings[0].message.contains("1000 bytes too short"), "{:?}", dump.warnings);
    let cut = (dump.warnings[0].code, dump.warnings[0].address);
    assert_eq!(cut, (Code::CutOff, Some(PhysAddr(0x101c18).into())));
}

#[test]
fn a_lime_range_that_ends_before_it_starts_costs_what_follows() {
    let mut file = lime();
    file[8224 + 16..8224 + 24].copy_from_slice(&0xf_0000u64.to_le_bytes());
    let dump = open_bytes(&file).unwrap();
    assert!(dump.damaged);
    assert_eq!((dump.memory.size(), dump.memory.bytes(PhysAddr(0x1000), 8192)), (8192, lime().get(32..32 + 8192)));
    for word in ["8224 bytes", "0x2020", "0x100000", "0xf0000"] {
        assert!(dump.warnings[0].message.contains(word), "no {word} in {:?}", dump.warnings);
    }
    // As the first, there is nothing to use.
    let reason = refused(&file[8224..], &["offset 0x0", "0x100000", "0xf0000"]);
    assert!(matches!(reason, DumpErrorKind::LimeRange { .. }));
}

#[test]
fn an_elf_file_that_is_no_core_is_refused() {
    let reason = refused(&elf(2, &[(0x40_0000, 0x40_0000, &[0x90; 64])], &[]), &["ELF executable", "not a core"]);
    assert!(matches!(reason, DumpErrorKind::ElfNotCore("executable")));
    let own = open(&std::env::current_exe().unwrap()).err().unwrap();
    assert!(matches!(own.reason, DumpErrorKind::ElfNotCore(_)), "{own}");
}

#[test]
fn a_stream_that_ends_early_is_refused() {
    for (whole, name) in [(zstd(&lime()), "zstd"), (gzip(&lime()), "gzip"), (xz(&lime()), "xz")] {
        let reason = refused(&whole[..whole.len() - 100], &[name, "ends early", "were unpacked"]);
        assert!(matches!(reason, DumpErrorKind::TruncatedCompression { .. }));
    }
}

#[test]
fn the_core_of_a_process_is_read_at_its_virtual_addresses() {
    let mut info = [0; 136];
    info[24..28].copy_from_slice(&4321u32.to_le_bytes());
    info[40..47].copy_from_slice(b"python3");
    let notes = [note(1, &[0; 336]), note(3, &info), note(6, &[0; 32])].concat();
    let file = elf(4, &[(0x40_0000, 0, &[1; 4096]), (0x7fff_0000_0000, 0, &[2; 4096])], &notes);
    let whole = open_bytes(&file).unwrap();
    let packed = open_bytes(&zstd(&file)).unwrap();
    assert_eq!((whole.compression, packed.compression), (None, Some(Compression::Zstd)));
    for dump in [whole, packed] {
        assert_eq!(dump.format, Format::Elf);
        let (pid, comm, uid) = (Some(4321), Some("python3".to_owned()), Some(0));
        let image = ProcessImage { pid, comm, uid, ..ProcessImage::default() };
        assert_eq!(dump.addresses, Addresses::Virtual(image));
        assert_eq!(dump.memory.bytes(PhysAddr(0x7fff_0000_0000), 4096), Some(&[2; 4096][..]));
        assert!(!dump.damaged && dump.warnings.is_empty());
    }
}
