//! Tests of filling: which file stands for which mapping, what is filled, what is refused.

use proptest::prelude::*;

use super::*;
use crate::dump::{Compression, Format, ProcessImage};

const PAGE: u64 = FRAME_SIZE;

fn file_mapping(start: u64, pages: u64, offset: u64, path: &str, writable: bool) -> FileMapping {
    let addresses = PhysAddr(start)..PhysAddr(start + pages * PAGE);
    FileMapping { addresses, offset, path: Path::new(path).into(), writable: Some(writable), shared: None }
}

/// An image that holds these pages, each full of one byte.
fn image(pages: &[(u64, u8)], mappings: Mappings) -> Dump {
    let bytes: Vec<u8> = pages.iter().flat_map(|(_, byte)| vec![*byte; PAGE as usize]).collect();
    let range = |(index, (start, _)): (usize, &(u64, u8))| MemoryRange {
        start: PhysAddr(*start),
        end: PhysAddr(start + PAGE),
        offset: FileOffset(index as u64 * PAGE),
    };
    let ranges = pages.iter().enumerate().map(range).collect();
    let size = bytes.len() as u64;
    Dump {
        memory: PhysicalMemory::owned(bytes, ranges).unwrap().with_mappings(mappings),
        addresses: Addresses::Virtual(ProcessImage::default()),
        format: Format::Elf,
        compression: None::<Compression>,
        file_size: size,
        size,
        warnings: Vec::new(),
        damaged: false,
    }
}

fn mappings(files: Vec<FileMapping>) -> Mappings {
    Mappings { files, ..Mappings::default() }
}

/// A file whose pages are full of the bytes 1, 2, …, in a folder of its own.
fn file(dir: &Path, name: &str, pages: u8, more: usize) -> PathBuf {
    let mut bytes: Vec<u8> = (1..=pages).flat_map(|page| vec![page; PAGE as usize]).collect();
    bytes.extend(vec![0xee; more]);
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

fn given(files: &[&Path]) -> MappedFiles {
    MappedFiles { files: files.iter().map(|file| file.to_path_buf()).collect(), sysroot: None }
}

/// The byte at the start of a page.
fn byte(dump: &Dump, at: u64) -> Option<u8> {
    dump.memory.bytes(PhysAddr(at), 1).map(|bytes| bytes[0])
}

#[test]
fn what_is_missing_is_filled_and_the_image_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "m.bin", 3, 0);
    // Mapped from its second page on. The process has changed the first of these pages, and may write.
    let mut dump =
        image(&[(0x10000, 0xaa), (0x50000, 0xbb)], mappings(vec![file_mapping(0x10000, 2, PAGE, "/x/m.bin", true)]));
    let own = dump.memory.ranges().to_vec();
    dump.fill(&given(&[&path])).unwrap();
    assert_eq!(
        [0xf000, 0x10000, 0x11000, 0x12000, 0x50000].map(|at| byte(&dump, at)),
        [None, Some(0xaa), Some(3), None, Some(0xbb)]
    );
    assert_eq!(dump.memory.own_ranges().copied().collect::<Vec<_>>(), own);
    assert_eq!(dump.memory.searchable().ranges(), own);
    assert_eq!(dump.memory.file_offset(PhysAddr(0x11000)), None);
    assert_eq!(dump.memory.file_offset(PhysAddr(0x50010)), Some(FileOffset(PAGE + 0x10)));
    let parts: Vec<_> =
        dump.memory.filled(PhysAddr(0)..PhysAddr(u64::MAX)).map(|part| (part.addresses, part.offset)).collect();
    assert_eq!(parts, [(PhysAddr(0x11000)..PhysAddr(0x12000), 2 * PAGE)]);
    let [filled] = dump.memory.files() else { panic!("{:?}", dump.memory.files()) };
    assert_eq!((filled.size, filled.filled, filled.agreed), (3 * PAGE, PAGE, 0));
    assert_eq!(filled.sha256, hex::encode(Sha256::digest(fs::read(&path).unwrap())));
    assert_eq!(dump.warnings, []);
}

#[test]
fn two_files_go_to_their_mappings() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (file(dir.path(), "a", 1, 0), file(dir.path(), "b", 2, 0));
    let files = vec![file_mapping(0x10000, 2, 0, "/b", false), file_mapping(0x20000, 1, 0, "/a", false)];
    let mut dump = image(&[(0x50000, 0xbb)], mappings(files));
    dump.fill(&given(&[&a, &b])).unwrap();
    assert_eq!([0x10000, 0x11000, 0x20000].map(|at| byte(&dump, at)), [Some(1), Some(2), Some(1)]);
    // No read goes from the dump to a file, or from one to the other.
    assert_eq!(dump.memory.bytes(PhysAddr(0x11000), 2 * PAGE), None);
    assert_eq!(dump.memory.bytes(PhysAddr(0x10000), 2 * PAGE).map(<[u8]>::len), Some(2 * PAGE as usize));
}

#[test]
fn a_file_that_ends_early_leaves_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "m.bin", 1, 16);
    let mut dump = image(&[(0x50000, 0)], mappings(vec![file_mapping(0x10000, 4, 0, "/m.bin", false)]));
    dump.fill(&given(&[&path])).unwrap();
    assert_eq!(dump.memory.bytes(PhysAddr(0x11000), 16), Some(&[0xee; 16][..]));
    assert_eq!(dump.memory.bytes(PhysAddr(0x11000), 17), None);
    assert_eq!(dump.memory.absence(PhysAddr(0x11010)), crate::dump::Absence::PastEnd(0));
    assert!(dump.warnings[0].message.contains("up to offset 0x4000"), "{:?}", dump.warnings);
    // The last page of a mapping always reaches past the end of its file.
    let mut dump = image(&[(0x50000, 0)], mappings(vec![file_mapping(0x10000, 2, 0, "/m.bin", false)]));
    dump.fill(&given(&[&path])).unwrap();
    assert_eq!(dump.warnings, []);
}

#[test]
fn a_file_that_contradicts_the_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "m.bin", 2, 0);
    let files = |writable| mappings(vec![file_mapping(0x10000, 2, 0, "/m.bin", writable)]);
    for (first, writable, second, agreed) in [(1, false, Some(2), PAGE), (9, false, None, 0), (9, true, Some(2), 0)] {
        let mut dump = image(&[(0x10000, first)], files(writable));
        dump.fill(&given(&[&path])).unwrap();
        assert_eq!(byte(&dump, 0x11000), second);
        assert_eq!(dump.memory.files().iter().map(|file| file.agreed).sum::<u64>(), agreed);
        let says = "is not used: it differs from the process image, first at file offset 0x0";
        let is_said = |said: &Diagnostic| said.code == Code::FileNotUsed && said.message.contains(says);
        assert_eq!(dump.warnings.iter().any(is_said), second.is_none());
    }
}

#[test]
fn what_was_cut_off_or_left_out_of_a_copy_is_not_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "m.bin", 2, 0);
    // The image had a page of it, perhaps a changed one, and was cut.
    let cut = vec![PhysAddr(0x11000)..PhysAddr(0x12000)];
    let mut dump =
        image(&[(0x50000, 0)], Mappings { cut, ..mappings(vec![file_mapping(0x10000, 2, 0, "/m.bin", true)]) });
    dump.fill(&given(&[&path])).unwrap();
    assert_eq!([0x10000, 0x11000].map(|at| byte(&dump, at)), [Some(1), None]);
    // Who makes a copy may leave out a page that the process has changed.
    for (shared, writable, filled) in [(false, true, None), (true, true, Some(1)), (false, false, Some(1))] {
        let file = FileMapping { shared: Some(shared), ..file_mapping(0x10000, 2, 0, "/m.bin", writable) };
        let mut dump = image(&[(0x50000, 0)], Mappings { kind: ImageKind::Copy, ..mappings(vec![file]) });
        dump.fill(&given(&[&path])).unwrap();
        assert_eq!(byte(&dump, 0x10000), filled, "{shared} {writable}");
    }
}

#[test]
fn a_file_is_known_by_its_name() {
    let recorded = ["/a/m.bin", "/b/c/m.bin", "/b/d/m.bin", "/gone.bin (deleted)", "/memfd:w (deleted)", "/odd=name"];
    let lacks = [(1, 1), (1, 2), (1, 3), (4, 4), (1, 5), (1, 6)].map(|(mappings, bytes)| Lack { bytes, mappings });
    let missing: BTreeMap<Arc<Path>, Lack> = recorded.iter().map(|path| Path::new(path).into()).zip(lacks).collect();
    let chosen = |given: &str| match match_file(given.as_ref(), &missing) {
        Ok((recorded, local)) => format!("{} by {}", recorded.display(), local.display()),
        Err(error) => error.to_string(),
    };
    assert_eq!(chosen("/copy/c/m.bin"), "/b/c/m.bin by /copy/c/m.bin");
    assert_eq!(chosen("/copy/gone.bin"), "/gone.bin (deleted) by /copy/gone.bin");
    assert_eq!(chosen("/a/m.bin=/x/y"), "/a/m.bin by /x/y");
    assert_eq!(chosen("d/m.bin=y"), "/b/d/m.bin by y");
    assert_eq!(chosen("gone.bin=y=z"), "/gone.bin (deleted) by y=z");
    assert_eq!(chosen("memfd:w=y"), "/memfd:w (deleted) by y");
    assert_eq!(chosen("/x/odd=name"), "/odd=name by /x/odd=name");
    assert_eq!(chosen("odd=name=y"), "/odd=name by y");
    for several in ["/x/m.bin", "m.bin=/x/y"] {
        assert!(
            chosen(several).contains("several mapped files have this name: /a/m.bin, /b/c/m.bin, /b/d/m.bin"),
            "{several}"
        );
    }
    let none = chosen("/x/other.bin");
    assert!(none.contains("no mapped file") && none.contains("/odd=name, /memfd:w (deleted), /b/d/m.bin"), "{none}");
}

#[test]
fn what_can_not_be_used_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "m.bin", 1, 0);
    let files = || mappings(vec![file_mapping(0x10000, 1, 0, "/m.bin", false)]);
    let fill = |mut dump: Dump, given: MappedFiles| dump.fill(&given).unwrap_err();
    let dump = || image(&[(0x50000, 0)], files());
    let machine = Dump { addresses: Addresses::Physical, ..dump() };
    assert!(matches!(fill(machine, given(&[&path])), FillError::Machine));
    assert!(matches!(fill(image(&[(0, 0)], Mappings::default()), given(&[&path])), FillError::NoMappings));
    let gone = dir.path().join("x/m.bin");
    assert!(matches!(fill(dump(), given(&[&gone])), FillError::Unreadable { reason: DumpErrorKind::Missing, .. }));
    let again = file(dir.path(), "y/m.bin", 1, 0);
    assert!(matches!(fill(dump(), given(&[&path, &again])), FillError::Twice { .. }));
    let sysroot = |root: &Path| MappedFiles { sysroot: Some(root.to_owned()), ..MappedFiles::default() };
    assert!(matches!(fill(dump(), sysroot(&path)), FillError::Sysroot { .. }));
    assert!(matches!(fill(dump(), sysroot(&gone)), FillError::Sysroot { .. }));
}

#[test]
fn files_are_looked_up_under_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for (name, pages) in [("root/data/m.bin", 1), ("root/data/gone.bin", 1), ("other.bin", 1)] {
        file(dir.path(), name, pages, 0);
    }
    std::os::unix::fs::symlink(dir.path().join("other.bin"), root.join("data/out.bin")).unwrap();
    let names = ["/data/m.bin", "/data/gone.bin (deleted)", "/data/out.bin", "/../other.bin", "/data", "/dev/null"];
    let files = names.iter().zip(1..).map(|(name, place)| file_mapping(place << 16, 1, 0, name, false)).collect();
    let mut dump = image(&[(0, 0)], mappings(files));
    dump.fill(&MappedFiles { files: Vec::new(), sysroot: Some(root) }).unwrap();
    let bytes: Vec<Option<u8>> = (1..=6).map(|place| byte(&dump, place << 16)).collect();
    assert_eq!(bytes, [Some(1), None, None, None, None, None]);
    assert!(dump.warnings[0].message.contains(": 3 mapped files: "), "{:?}", dump.warnings);
}

proptest! {
    /// Every byte is from the image where that has it, else from the file at the place that the mapping says, else a hole.
    #[test]
    fn a_page_is_from_the_image_or_from_its_place_in_the_file(
        held in prop::collection::btree_set(0u64..40, 0..20),
        cut in prop::collection::btree_set(0u64..40, 0..4),
        spec in prop::collection::vec((0u64..6, 1u64..8, 0u64..12), 0..6),
        pages in 1u8..10,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "m.bin", pages, 0);
        let (mut at, mut files) = (0, vec![file_mapping(1 << 40, 1, 0, "/m.bin", true)]);
        for (gap, count, offset) in spec {
            files.insert(files.len() - 1, file_mapping((at + gap) * PAGE, count, offset * PAGE, "/m.bin", true));
            at += gap + count;
        }
        let held: Vec<(u64, u8)> = held.into_iter().map(|page| (page * PAGE, 0xaa)).chain([(1 << 41, 0xaa)]).collect();
        let cut: Vec<Range<PhysAddr>> = cut.into_iter().map(|page| PhysAddr(page * PAGE)..PhysAddr((page + 1) * PAGE)).collect();
        let mut dump = image(&held, Mappings { cut: cut.clone(), ..mappings(files.clone()) });
        dump.fill(&given(&[&path])).unwrap();
        for page in (0..50).map(|page| page * PAGE) {
            let mapping = files.iter().find(|file| file.addresses.contains(&PhysAddr(page)));
            let in_file = mapping.map(|mapping| mapping.offset_of(PhysAddr(page)) / PAGE + 1);
            let is_cut = cut.iter().any(|range| range.contains(&PhysAddr(page)));
            let expected = match in_file {
                _ if held.contains(&(page, 0xaa)) => Some(0xaa),
                Some(number) if !is_cut && number <= u64::from(pages) => Some(number as u8),
                _ => None,
            };
            prop_assert_eq!(byte(&dump, page), expected, "page {:#x}", page);
        }
    }
}
