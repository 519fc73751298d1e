//! Pythons that run and are not read: CPython 2 and PyPy.

use tensorcarve::addr::VirtAddr;
use tensorcarve::other_pythons::{OtherPython, OtherPythonKind};
use tensorcarve::paging::SpaceKind;

use super::images::core;
use super::synthetic::{Machine, Options, Process, Python, Torch, dump, recover};
use super::{assert_model, model};

/// Flags of `type` in CPython 2.7.18: default ones, type of a type, ready, in use by the collector.
const TYPE_FLAGS: u64 = 0x800e_55eb;

/// The `type` object of a CPython 2, with some classes and its `sys.version`.
fn python2(process: &Process, version: Option<&[u8]>) -> u64 {
    let object = process.alloc(0x400);
    let name = process.alloc(8);
    process.write(name, b"type\0");
    for (at, word) in [(0, 40), (8, object), (0x18, name), (0x20, 872), (0x28, 40), (168, TYPE_FLAGS)] {
        process.put(object + at, word);
    }
    for _ in 0..100 {
        let class = process.alloc(0x380);
        process.put(class, 2);
        process.put(class + 8, object);
    }
    if let Some(text) = version {
        let string_type = process.alloc(0x380);
        process.put(string_type, 2);
        process.put(string_type + 8, object);
        // A number in another place, one that is no string, and the string.
        for (of, text) in [(string_type, &b"2.7.1"[..]), (0x1234, text), (string_type, text)] {
            let string = process.alloc(0x100);
            process.write(string, &[1u64, of, text.len() as u64, u64::MAX].map(u64::to_le_bytes).concat());
            process.write(string + 36, text);
        }
    }
    object
}

/// The string `__pypy__` as RPython keeps it.
fn pypy(process: &Process, header: u64) -> u64 {
    let string = process.alloc(0x40);
    let words = [header, 0x1c54_95fb_a3ac_1d69, 8, u64::from_le_bytes(*b"__pypy__")];
    process.write(string, &words.map(u64::to_le_bytes).concat());
    string + 24
}

#[test]
fn a_cpython_2_is_named_beside_one_that_is_read() {
    let machine = Machine::new(Options::default());
    let torch = Torch::new(Python::new(Process::new(&machine), "3.11"), "2.6");
    let (root, truth) = model(&torch);
    let old = Process::new(&machine);
    let type_object = python2(&old, Some(b"2.7.18 (default, Apr 20 2020, 20:30:41) \n[GCC 9.3.0]"));
    let recovery = recover(&dump(&torch.python.process));
    assert_model(&torch, root, &truth, &recovery);
    let expected = OtherPython {
        root: Some(machine.borrow().root(old.space)),
        kind: OtherPythonKind::Python2,
        version: Some("2.7.18".to_owned()),
        evidence: VirtAddr(type_object),
    };
    assert_eq!(recovery.other_pythons, [expected]);
    let said: Vec<&String> = recovery.warnings.iter().filter(|said| said.contains("CPython 2.7.18 runs in")).collect();
    assert!(said.len() == 1 && said[0].contains("not supported"), "{:?}", recovery.warnings);
    assert!(recovery.warnings.iter().all(|said| !said.contains("can't be read")), "{:?}", recovery.warnings);
}

#[test]
fn a_cpython_2_without_its_version_is_named_all_the_same() {
    let machine = Machine::new(Options::default());
    let process = Process::new(&machine);
    python2(&process, None);
    for recovery in [recover(&dump(&process)), recover(&core(&process, 6))] {
        assert!(recovery.processes.is_empty());
        let [found] = &recovery.other_pythons[..] else { panic!("{:?}", recovery.other_pythons) };
        assert_eq!((found.kind, found.to_string()), (OtherPythonKind::Python2, "CPython 2".to_owned()));
    }
}

#[test]
fn a_pypy_is_named_by_what_it_has_mapped() {
    let machine = Machine::new(Options::default());
    let process = Process::new(&machine);
    let name = pypy(&process, 0x3_0000_0048);
    let text = process.alloc(0x40);
    process.write(text, b"\n[PyPy 7.3.11 with GCC 12.2.0]");
    let recovery = recover(&dump(&process));
    let root = Some(machine.borrow().root(process.space));
    let pypy = |root, version: &str| OtherPython {
        root,
        kind: OtherPythonKind::Pypy,
        version: Some(version.to_owned()),
        evidence: VirtAddr(name),
    };
    assert_eq!(recovery.other_pythons, [pypy(root, "7.3.11")]);
    assert!(recovery.warnings.iter().any(|said| said.contains("PyPy 7.3.11 runs in")), "{:?}", recovery.warnings);
    assert_eq!(recover(&core(&process, 6)).other_pythons, [pypy(None, "7.3.11")]);
}

#[test]
fn a_string_is_no_pypy() {
    let machine = Machine::new(Options::default());
    let process = Process::new(&machine);
    // As other languages keep it: a pointer or a reference count where the header is, a pointer where the hash is.
    let string = process.alloc(0x40);
    let own = string + 24;
    for words in
        [[0, 0x7f12_3456_7890, 8], [0x7f12_3456_7000, 0x1c54_95fb_a3ac_1d69, 8], [0x48, own, 8], [0x48, u64::MAX, 9]]
    {
        process.write(
            string,
            &[words[0], words[1], words[2], u64::from_le_bytes(*b"__pypy__")].map(u64::to_le_bytes).concat(),
        );
        assert_eq!(recover(&dump(&process)).other_pythons, []);
    }
    // What no process has mapped: a file in the page cache.
    let other = Process::new(&machine);
    other.alloc(0x40);
    process.write(string, &[0; 32]);
    let frame = machine.borrow_mut().frame();
    let words = [0x48, 0x1c54_95fb_a3ac_1d69, 8, u64::from_le_bytes(*b"__pypy__")];
    machine.borrow_mut().write_physical(frame + 0x100, &words.map(u64::to_le_bytes).concat());
    let recovery = recover(&dump(&process));
    assert!(recovery.discovery.spaces.iter().any(|space| space.kind == SpaceKind::Process));
    assert_eq!(recovery.other_pythons, []);
}
