//! Tests of maps files: copies made by each rule, those that do not go with their maps, and arbitrary text.

use proptest::prelude::*;

use super::*;

/// A small process. Pages are of 16 bytes here: nothing in the parser knows their size.
const MAPS: &str = "\
560000000000-560000000010 r--p 00000000 fe:00 82469                      /usr/bin/python3.11
560000000010-560000000030 r-xp 00000010 fe:00 82469                      /usr/bin/python3.11
560000000030-560000000040 rw-p 00000030 fe:00 82469                      /usr/bin/python3.11
560000100000-560000100050 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000000210 rw-s 00000000 00:05 99                         /dev/nvidia0
7f0000001000-7f0000001090 ---p 00000000 00:00 0 
7f0000002000-7f0000002030 r--p 00000000 fe:00 7   /a name with  blanks (deleted)
7f0000003000-7f0000003020 rw-s 00000000 00:01 1024                       /dev/shm/torch_1
7ffff3a69000-7ffff3a69070 rwxp 00000000 00:00 0                          [anon:jit]
7ffff3a69080-7ffff3a69100 rw-p 00000000 00:00 0                          [stack]
7ffff3a70000-7ffff3a70040 r--p 00000000 00:00 0                          [vvar]
7ffff3a71000-7ffff3a71820 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff600420 r-xp 00000000 00:00 0                  [vsyscall]
";

/// A copy of the mappings that `rule` picks: each byte is the number of its line, but for the beginning of a program.
fn copy(rule: impl Fn(&Mapping<'_>) -> bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (line, mapping) in (1..).zip(read_maps(MAPS).unwrap()).filter(|(_, mapping)| rule(mapping)) {
        let from = bytes.len();
        bytes.resize(from + mapping.len() as usize, line);
        if mapping.is_vdso() || (mapping.path.contains("python") && mapping.file_offset == 0) {
            bytes[from..from + 4].copy_from_slice(&MAGIC);
        }
    }
    bytes
}

/// First address of each range, with the line that its last byte in the copy is of.
fn lines(copy: &[u8], contents: &Contents) -> Vec<(u64, u8)> {
    let last = |range: &MemoryRange| copy[(range.offset.0 + range.len() - 1) as usize];
    contents.ranges.iter().map(|range| (range.start.0, last(range))).collect()
}

#[test]
fn each_kind_of_copy_is_told_by_its_size() {
    for selection in Selection::all() {
        let copy = copy(|mapping| selection.copied.1(mapping) && !selection.left_out.1(mapping));
        let contents = parse(&copy, MAPS).unwrap();
        let mappings = read_maps(MAPS).unwrap();
        let want: Vec<(u64, u8)> = (1..)
            .zip(&mappings)
            .filter(|(_, mapping)| selection.copied.1(mapping) && !selection.left_out.1(mapping))
            .map(|(line, mapping)| (mapping.start, line))
            .collect();
        assert_eq!(lines(&copy, &contents), want, "{selection}");
        assert_eq!(contents.image, Some(ProcessImage::default()));
        let is_usual = selection.copied.0 == "all readable mappings";
        assert_eq!(contents.warnings.is_empty(), is_usual, "{:?}", contents.warnings);
    }
}

#[test]
fn code_is_known_and_paths_have_blanks() {
    let contents = parse(&copy(|mapping| mapping.readable), MAPS).unwrap();
    let code: Vec<u64> = contents.code.iter().map(|range| range.start.0).collect();
    assert_eq!(code, [0x5600_0000_0010, 0x7fff_f3a7_1000, 0xffff_ffff_ff60_0000]);
    assert_eq!(read_maps(MAPS).unwrap()[6].path, "/a name with  blanks (deleted)");
}

#[test]
fn mappings_of_files_are_known_whether_they_are_in_the_copy_or_not() {
    let copy = copy(|mapping| mapping.readable && mapping.writable);
    let contents = parse(&copy, MAPS).unwrap();
    let files = contents.mappings.files();
    let found: Vec<_> = files
        .iter()
        .map(|file| (file.addresses.start.0, file.offset, file.path.to_str().unwrap(), file.writable, file.shared))
        .collect();
    let python = "/usr/bin/python3.11";
    let wanted = [
        (0x5600_0000_0000, 0, python, Some(false), Some(false)),
        (0x5600_0000_0010, 0x10, python, Some(false), Some(false)),
        (0x5600_0000_0030, 0x30, python, Some(true), Some(false)),
        (0x7f00_0000_0000, 0, "/dev/nvidia0", Some(true), Some(true)),
        (0x7f00_0000_2000, 0, "/a name with  blanks (deleted)", Some(false), Some(false)),
        (0x7f00_0000_3000, 0, "/dev/shm/torch_1", Some(true), Some(true)),
    ];
    assert_eq!(found, wanted);
    let reason = |at: u64| {
        let absence = contents.mappings.absence(PhysAddr(at), |_| None);
        contents.mappings.explain(PhysAddr(at), absence)
    };
    let by = "which the copy of /proc/PID/mem leaves out";
    assert_eq!(reason(0x5600_0000_0018), format!("it lies in the mapped file {python} at offset 0x18, {by}"));
    assert!(reason(0x7f00_0000_1010).contains("had it mapped"), "{}", reason(0x7f00_0000_1010));
    assert_eq!(reason(0x1000), "0x1000 is not in the process image");
}

#[test]
fn a_copy_that_does_not_go_with_its_maps_is_refused() {
    let whole = copy(|mapping| mapping.readable);
    match parse(&whole[..whole.len() - 1], MAPS) {
        Err(DumpErrorKind::MapsSize { size, expected }) => {
            assert_eq!(size, whole.len() as u64 - 1);
            assert!(
                expected.starts_with("464 to 4192 (all readable mappings), 608 to 4336 (all mappings), "),
                "{expected}"
            );
        }
        other => panic!("{other:?}"),
    }
    let mut other = whole.clone();
    other[1] = 0;
    match parse(&other, MAPS) {
        Err(DumpErrorKind::MapsContent { offset: FileOffset(0), path }) => assert_eq!(path, "/usr/bin/python3.11"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_maps_file_is_refused_by_its_line() {
    let broken = [
        "python3.11 is here",
        "560000000000-560000000010 rwp 00000000 fe:00 1",
        "560000000010-560000000010 r--p 00000000 fe:00 1",
        "560000000010 r--p 00000000 fe:00 1",
        "56000000000000000-56000000000000010 r--p 0 fe:00 1",
        "560000000000-560000000001 r--p x fe:00 1",
        // Not above the line before.
        "560000000008-560000000020 r--p 00000000 fe:00 1",
    ];
    for line in broken {
        let maps = format!("560000000000-560000000010 r--p 00000000 00:00 0\n\n{line}\n");
        match parse(&[0; 16], &maps) {
            Err(DumpErrorKind::MapsLine { line: 3, text, .. }) => assert!(line.starts_with(&text), "{text}"),
            other => panic!("{line}: {other:?}"),
        }
    }
    let Err(error) = parse(&[0; 16], "\u{1b}[2J") else { panic!("was read") };
    assert!(!error.to_string().contains('\u{1b}'), "{error}");
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}", lines in prop::collection::vec("[0-9a-f]{0,17}-[0-9a-f]{0,17} [rwxps-]{3,5} [0-9a-f]{0,17} 0:0 0 [/a-z\\[\\]]{0,9}", 0..6), copy in prop::collection::vec(any::<u8>(), 0..99)) {
        let _ = parse(&copy, &text);
        let _ = parse(&copy, &lines.join("\n"));
    }

    #[test]
    fn ranges_lie_in_the_copy(spec in prop::collection::vec((1u64..1000, 1u64..100, 0usize..4), 1..20)) {
        let (mut maps, mut at, mut size) = (String::new(), 0, 0);
        for (gap, len, access) in spec {
            let access = ["r--p", "rw-p", "---p", "rw-s"][access];
            maps += &format!("{:x}-{:x} {access} 0 0:0 0\n", at + gap, at + gap + len);
            at += gap + len;
            size += if access == "---p" { 0 } else { len };
        }
        let contents = parse(&vec![0; size as usize], &maps).unwrap();
        prop_assert_eq!(contents.ranges.iter().map(MemoryRange::len).sum::<u64>(), size);
        prop_assert!(contents.ranges.iter().all(|range| range.offset.0 + range.len() <= size));
        prop_assert!(contents.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}
