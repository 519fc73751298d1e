//! Pythons that run and are not read: CPython 2 and PyPy.

use tensorcarve::addr::VirtAddr;
use tensorcarve::diagnostic::Code;
use tensorcarve::other_pythons::{OtherPython, OtherPythonKind};
use tensorcarve::paging::SpaceKind;
use tensorcarve::recover::Recovery;

use super::images::core;
use super::synthetic::{Machine, Options, Process, Python, Torch, dump, recover};
use super::{assert_model, model};

/// Flags of `type` in CPython 2.7.18: default ones, type of a type, ready, in use by the collector.
const TYPE_FLAGS: u64 = 0x800e_55eb;

/// A CPython 2, perhaps with its `sys.version`. What `type` is told by lies as in CPython 3.8, but for the flags.
fn python2(process: Process, version: Option<&[u8]>) -> Python {
    let python = Python::new(process, "3.8");
    let (process, type_object) = (&python.process, python.builtin.type_);
    process.put(type_object + 168, TYPE_FLAGS);
    if let Some(text) = version {
        let string_type = process.alloc(0x380);
        process.put(string_type, 2);
        process.put(string_type + 8, type_object);
        // A number in another string, one in what is no string, and the one that is looked for.
        for (of, text) in [(string_type, &b"2.7.1"[..]), (0x1234, text), (string_type, text)] {
            let string = process.alloc(0x100);
            process.write(string, &[1u64, of, text.len() as u64, u64::MAX].map(u64::to_le_bytes).concat());
            process.write(string + 36, text);
        }
    }
    python
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
    let old = python2(Process::new(&machine), Some(b"2.7.18 (default, Apr 20 2020, 20:30:41) \n[GCC 9.3.0]"));
    let recovery = recover(&dump(&torch.python.process));
    let expected = OtherPython {
        root: Some(machine.borrow().root(old.process.space)),
        kind: OtherPythonKind::Python2,
        version: Some("2.7.18".to_owned()),
        evidence: VirtAddr(old.builtin.type_),
    };
    assert_eq!(recovery.other_pythons, [expected]);
    let [said] = &recovery.warnings[..] else { panic!("{:?}", recovery.warnings) };
    assert_eq!((said.code, said.address), (Code::UnsupportedPython, Some(VirtAddr(old.builtin.type_).into())));
    assert!(said.message.contains("CPython 2.7.18 runs in") && said.message.contains("not supported"), "{said}");
    assert_model(&torch, root, &truth, &Recovery { warnings: Vec::new(), ..recovery });
}

#[test]
fn a_cpython_2_without_its_version_is_named_all_the_same() {
    let machine = Machine::new(Options::default());
    let old = python2(Process::new(&machine), None);
    for recovery in [recover(&dump(&old.process)), recover(&core(&old.process, 6))] {
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
    assert!(
        recovery.warnings.iter().any(|said| said.message.contains("PyPy 7.3.11 runs in")),
        "{:?}",
        recovery.warnings
    );
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
