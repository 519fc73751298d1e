//! What signature files may say, and how a bad one is answered.

use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"
[[structure]]
name = "a.thing"
anchor = "kind"
[[structure.field]]
name = "kind"
offset = 8
width = 8
user_pointer = true
[[structure.field]]
name = "count"
offset = 16
width = 4
range = [1, 9]
"#;

const LAYOUT: &str = r#"
[layout]
family = "cpython"
version = "3.10"
source = "Include/ of 3.10"

[layout.object]
ob_refcnt = 0
ob_type = { offset = 8, source = "Include/object.h, 3.10" }

[layout.type]
source = "Include/cpython/object.h, 3.10"
tp_name = 0x18
size = { size = 0x198 }

[layout.table]
scalar_types = [{ index = 0, name = "uint8", size = 1 }, { index = 1, name = "int8", size = 1 }]
"#;

const CHILD: &str = r#"
[layout]
family = "cpython"
version = "3.11"
inherits = "3.10"
source = "Include/ of 3.11"
[layout.type]
tp_name = 0x20
"#;

fn parse(text: &str) -> Result<Signatures, SignatureError> {
    Signatures::from_texts([("bad.toml", text)])
}

/// The message for `GOOD` with one line changed.
fn message(line: &str, replacement: &str) -> String {
    assert!(GOOD.contains(line), "{line}");
    parse(&GOOD.replacen(line, replacement, 1)).unwrap_err().to_string()
}

#[test]
fn the_built_in_signatures_load() {
    let signatures = Signatures::load(None).unwrap();
    let type_object = signatures.index_of("cpython.type").unwrap();
    let Some(Signature::Structure(structure)) = signatures.get(type_object) else { panic!("no structure") };
    assert_eq!((structure.anchor().name.as_str(), structure.anchor().offset), ("ob_type", 8));
    assert_eq!(structure.anchor().tests, [Test::UserPointer { align: 8 }, Test::PageOffsetOfSelf(-8)]);
    let needle = signatures.index_of("cpython.debug_offsets").unwrap();
    assert!(matches!(signatures.get(needle), Some(Signature::Needle(needle)) if needle.bytes == b"xdebugpy"));
    assert_eq!(signatures.get(needle + 1), None);
    let mmu = signatures.mmu().unwrap();
    assert_eq!((mmu.present, mmu.leaf_bit), (1, 0x80));
    assert_eq!((mmu.address, mmu.reserved), (0x000f_ffff_ffff_f000, 0x000f_0000_0000_0000));
    let levels: Vec<_> = mmu.levels.iter().map(|l| (l.level, l.name.as_str(), l.shift, l.leaf, l.leaf_zero)).collect();
    let expected = [
        (1, "PT", 12, Leaf::Always, 0),
        (2, "PD", 21, Leaf::ByLeafBit, 0x001f_e000),
        (3, "PDPT", 30, Leaf::ByLeafBit, 0x3fff_e000),
        (4, "PML4", 39, Leaf::Never, 0),
        (5, "PML5", 48, Leaf::Never, 0),
    ];
    assert_eq!(levels, expected);
}

#[test]
fn bad_structures_are_named_by_file_line_and_key() {
    assert!(parse(GOOD).is_ok());
    let cases = [
        (
            "range = [1, 9]",
            "range = [9, 1]",
            "bad.toml:14:9: structure.field.range: the range of `count` has min 0x9 > max 0x1",
        ),
        (
            "range = [1, 9]",
            "range = [1, 0x1_0000_0000]",
            "bad.toml:14:9: structure.field.range: does not fit the 4 bytes of `count`",
        ),
        ("range = [1, 9]", "", "bad.toml:11:8: structure.field.name: field `count` has no test"),
        ("range = [1, 9]", "rnge = [1, 9]", "bad.toml:14:1: structure.field.rnge: unknown field `rnge`"),
        (
            "range = [1, 9]",
            "equal_field = \"kid\"",
            "bad.toml:14:15: structure.field.equal_field: no field named `kid`",
        ),
        (
            "range = [1, 9]",
            "equal_field = \"kind\"",
            "bad.toml:14:15: structure.field.equal_field: must be another field of the same width",
        ),
        (
            "range = [1, 9]",
            "mask = 3",
            "bad.toml:14:8: structure.field.mask: `mask` and `value` must be given together",
        ),
        (
            "range = [1, 9]",
            "mask = 3\nvalue = 4",
            "bad.toml:15:9: structure.field.value: value 0x4 has bits outside the mask 0x3",
        ),
        ("range = [1, 9]", "one_of = [\n]", "bad.toml:14:10: structure.field.one_of: an empty list matches nothing"),
        (
            "range = [1, 9]",
            "equal = \"zz\"",
            "bad.toml:14:9: structure.field.equal: invalid value: string \"zz\", expected an integer",
        ),
        (
            "range = [1, 9]",
            "kernel_pointer = true",
            "bad.toml:13:9: structure.field.width: pointer `count` must have width 8",
        ),
        (
            "range = [1, 9]",
            "equal = 1\npointer_align = 4",
            "bad.toml:15:17: structure.field.pointer_align: needs `user_pointer`",
        ),
        (
            "user_pointer = true",
            "user_pointer = true\nkernel_pointer = true",
            "bad.toml:6:8: structure.field.name: `kind` cannot be",
        ),
        ("user_pointer = true", "equal_field = \"count\"", "must be another field of the same width"),
        ("width = 4", "width = 3", "bad.toml:13:9: structure.field.width: width of `count` is 3, not 1, 2, 4 or 8"),
        ("offset = 16", "offset = 4093", "bad.toml:12:10: structure.field.offset: `count` ends past 4096 bytes"),
        ("offset = 16", "offset = -1", "bad.toml:12:10: structure.field.offset: "),
        ("offset = 16", "", "bad.toml:10:1: structure.field: missing field `offset`"),
        (
            "anchor = \"kind\"",
            "anchor = \"kin\"",
            "bad.toml:4:10: structure.anchor: structure `a.thing` has no field named `kin`",
        ),
        ("anchor = \"kind\"", "", "bad.toml:2:1: structure: missing field `anchor`"),
        (
            "anchor = \"kind\"",
            "anchor = \"kind\"\nalign = 12",
            "bad.toml:5:9: structure.align: 12 is not a power of two between 1 and 4096",
        ),
        (
            "anchor = \"kind\"",
            "anchor = \"kind\"\nmin_tested = 3",
            "bad.toml:5:14: structure.min_tested: must be between 1 and the number of fields, 2",
        ),
        (
            "name = \"count\"",
            "name = \"kind\"",
            "bad.toml:11:8: structure.field.name: structure `a.thing` has two fields named `kind`",
        ),
        ("name = \"a.thing\"", "name = \"\"", "bad.toml:3:8: structure.name: the name is empty"),
        ("name = \"a.thing\"", "name = \"a.thing", "bad.toml:3:"),
    ];
    for (line, replacement, expected) in cases {
        let got = message(line, replacement);
        assert!(got.contains(expected), "{replacement}:\n  got      {got}\n  expected {expected}");
    }
    let alone = GOOD.replace("user_pointer = true", "equal_field = \"count\"").replace("width = 4", "width = 8");
    assert!(
        parse(&alone).unwrap_err().to_string().starts_with("bad.toml:4:10: structure.anchor: the anchor is tested")
    );
}

#[test]
fn bad_needles_and_page_table_rules_are_named_by_file_line_and_key() {
    let mmu = include_str!("../../signatures/x86_64.toml");
    let cases = [
        ("[[needle]]\nname = \"n\"\ntext = \"\"", "bad.toml:3:8: needle.text: needle `n` is empty"),
        ("[[needle]]\nname = \"n\"\nhex = \"abc\"", "bad.toml:3:7: needle.hex: 3 hexadecimal digits"),
        ("[[needle]]\nname = \"n\"\nhex = \"ag\"", "bad.toml:3:7: needle.hex: `g` is not a hexadecimal digit"),
        ("[[needle]]\nname = \"n\"", "bad.toml:2:8: needle.name: needle `n` needs either `text` or `hex`"),
        ("[[needle]]\nname = \"n\"\nhex = \"00\"\ntext = \"a\"", "needs either `text` or `hex`"),
        ("[[needl]]\nname = \"n\"", "bad.toml:1:3: needl: unknown field `needl`"),
        (&mmu.replace("[13, 20]", "[20, 13]"), ": mmu.level.leaf_zero: [20, 13] is not a range of bits"),
        (&mmu.replace("reserved = [48, 51]", "reserved = [48, 64]"), ": mmu.reserved: [48, 64] is not a range of bits"),
        (&mmu.replace("present = 0", "present = 64"), ": mmu.present: bit 64 is not between 0 and 63"),
        (&mmu.replace("level = 5", "level = 4"), ": mmu.level.level: level 4 is given twice"),
        (&mmu.replace("level = 5", "level = 8"), ": mmu.level.level: level 8 is not between 1 and 6"),
        (&mmu.replace("\"never\"", "\"sometimes\""), ": mmu.level.leaf: unknown variant `sometimes`"),
    ];
    for (text, expected) in cases {
        let got = parse(text).unwrap_err().to_string();
        assert!(got.contains(expected), "\n  got      {got}\n  expected {expected}");
    }
}

#[test]
fn names_are_unique_in_an_origin() {
    let twice = Signatures::from_texts([("a.toml", GOOD), ("b.toml", GOOD)]).unwrap_err().to_string();
    assert_eq!(twice, "b.toml:3:8: structure.name: \"a.thing\" is also given in a.toml:3");
    let needle = "[[needle]]\nname = \"a.thing\"\ntext = \"x\"";
    let other = Signatures::from_texts([("a.toml", GOOD), ("b.toml", needle)]).unwrap_err().to_string();
    assert_eq!(other, "b.toml:2:8: needle.name: `a.thing` is the name of a signature of another kind in a.toml:3");
}

#[test]
fn numbers_of_64_bits_can_be_written() {
    for number in ["0xffff_ffff_ffff_fff0", "\"0xffff_ffff_ffff_fff0\"", "18446744073709551600", "-16"] {
        let text = GOOD.replace("user_pointer = true", &format!("equal = {number}"));
        let signatures = parse(&text).unwrap();
        assert_eq!(signatures.structures()[0].anchor().tests, [Test::Equal(0xffff_ffff_ffff_fff0)], "{number}");
    }
}

#[test]
fn a_folder_adds_and_replaces() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Signatures::load(Some(folder.path())), Err(SignatureError::Empty(_))));
    let missing = folder.path().join("none");
    assert!(matches!(Signatures::load(Some(&missing)), Err(SignatureError::Unreadable { .. })));
    std::fs::create_dir(folder.path().join("layouts")).unwrap();
    std::fs::write(folder.path().join("own.toml"), GOOD.replace("a.thing", "cpython.type")).unwrap();
    std::fs::write(folder.path().join("more.toml"), GOOD).unwrap();
    std::fs::write(folder.path().join("layouts/x.toml"), LAYOUT.replace("3.10", "0.1")).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not a signature").unwrap();
    let signatures = Signatures::load(Some(folder.path())).unwrap();
    assert_eq!(signatures.index_of("cpython.type"), Signatures::load(None).unwrap().index_of("cpython.type"));
    let replaced = &signatures.structures()[usize::from(signatures.index_of("cpython.type").unwrap())];
    assert_eq!(replaced.fields().len(), 2);
    assert!(signatures.index_of("a.thing").is_some());
    assert!(signatures.layouts("cpython").any(|layout| layout.version == "0.1"));
}

#[test]
fn layouts_inherit() {
    let signatures = Signatures::from_texts([("child.toml", CHILD), ("parent.toml", LAYOUT)]).unwrap();
    let layouts: Vec<_> = signatures.layouts("cpython").collect();
    let [parent, child] = layouts[..] else { panic!("{layouts:?}") };
    assert_eq!((parent.version.as_str(), child.version.as_str()), ("3.10", "3.11"));
    assert_eq!((parent.get("type.tp_name"), child.get("type.tp_name")), (Some(0x18), Some(0x20)));
    assert_eq!(child.get("type.size"), Some(0x198));
    assert_eq!(child.get("type.none"), None);
    let source = |layout: &Layout, name: &str| layout.fields[name].source.clone();
    assert_eq!(source(child, "object.ob_type"), "Include/object.h, 3.10");
    assert_eq!(source(child, "object.ob_refcnt"), "Include/ of 3.10");
    assert_eq!(source(child, "type.size"), "Include/cpython/object.h, 3.10");
    assert_eq!(source(child, "type.tp_name"), "Include/ of 3.11");
    let types = child.table("scalar_types").and_then(|table| table.as_array()).unwrap();
    assert_eq!(types[1]["name"].as_str(), Some("int8"));
    assert_eq!(signatures.layouts("pytorch").count(), 0);
}

#[test]
fn bad_layouts_are_named_by_file_line_and_key() {
    let cases = [
        (CHILD.to_owned(), "bad.toml:5:12: layout.inherits: there is no layout for cpython 3.10"),
        (CHILD.replace("\"3.10\"", "\"3.11\""), "bad.toml:5:12: layout.inherits: cpython 3.11 inherits from itself"),
        (LAYOUT.replace("version = \"3.10\"", ""), "bad.toml:2:1: layout: missing key `version`"),
        (LAYOUT.replace("source = \"Include/ of 3.10\"", ""), ": layout.object.ob_refcnt: no `source`"),
        (LAYOUT.replace("offset = 8", "ofset = 8"), ": layout.object.ob_type: unknown field `ofset`"),
        (LAYOUT.replace("tp_name = 0x18", "tp_name = true"), ": layout.type.tp_name: invalid type: boolean `true`"),
    ];
    for (text, expected) in &cases {
        let got = parse(text).unwrap_err().to_string();
        assert!(got.contains(expected), "\n  got      {got}\n  expected {expected}");
    }
    let back = LAYOUT.replace("source = \"Include/ of 3.10\"", "source = \"s\"\ninherits = \"3.11\"");
    let cycle = Signatures::from_texts([("a.toml", back.as_str()), ("b.toml", CHILD)]).unwrap_err().to_string();
    assert!(cycle.ends_with("inherits from itself"), "{cycle}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text);
    }

    /// Files that are nearly right: a good one with one piece replaced.
    #[test]
    fn no_damage_panics(
        which in 0..4usize,
        at in 0..2000usize,
        removed in 0..20usize,
        added in "([\\[\\]{}=\",.#\n0-9a-zé_-]|0x|\\[\\[|name|offset|[1-9]{18,22}){0,6}",
    ) {
        let good = [GOOD, LAYOUT, CHILD, include_str!("../../signatures/x86_64.toml")][which];
        let characters: Vec<char> = good.chars().collect();
        let from = at % characters.len();
        let to = (from + removed).min(characters.len());
        let damaged: String =
            characters[..from].iter().copied().chain(added.chars()).chain(characters[to..].iter().copied()).collect();
        if let Err(SignatureError::Invalid { file, line, column, key, .. }) = parse(&damaged) {
            prop_assert!(file == "bad.toml" && column > 0 && !key.is_empty());
            prop_assert!((1..=damaged.matches('\n').count() + 1).contains(&line));
        }
    }
}
