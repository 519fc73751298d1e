//! Interpreters that no layout file describes, and what interpreters tell of themselves.

use tensorcarve::cpython::{Change, LayoutScore, LayoutSource};
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::recover::Recovery;
use tensorcarve::signature::{Layout, Signatures};

use super::synthetic::{
    CPYTHONS, Keeping, Machine, Options, Process, Python, SIGNATURES, Torch, dump, layout, recover, recover_with,
    release,
};
use super::{assert_model, model};

/// Structures that begin with an object's header.
const OBJECTS: [&str; 13] = [
    "object",
    "var",
    "type",
    "heap_type",
    "str",
    "str_legacy",
    "int",
    "float",
    "tuple",
    "list",
    "set",
    "dict",
    "module",
];

/// Moves all numbers of these structures that are no less than `from`.
fn moved(layout: &mut Layout, structures: &[&str], from: i64, bytes: i64) {
    for (key, entry) in &mut layout.fields {
        let (of, name) = key.split_once('.').unwrap();
        if structures.contains(&of) && entry.value >= from && name != "ref_shared_shift" {
            entry.value += bytes;
        }
    }
}

/// A layout whose objects have so many bytes more in their header: before the count, between count and type, behind the
/// type.
pub fn padded(plain: &Layout, place: usize, bytes: i64) -> Layout {
    let mut padded = plain.clone();
    moved(&mut padded, &OBJECTS, 0, bytes);
    for key in ["ob_refcnt", "ob_ref_local", "ob_ref_shared", "ob_type"] {
        let stays = place == 2 || (place == 1 && key != "ob_type");
        if let Some(entry) = padded.fields.get_mut(&format!("object.{key}")).filter(|_| stays) {
            entry.value -= bytes;
        }
    }
    padded
}

fn layout_exists(version: &str) -> bool {
    CPYTHONS.contains(&version)
}

/// A whole model in an interpreter that keeps its objects as the layout says is recovered; how it was read.
fn recovered(layout: &Layout) -> LayoutScore {
    let machine = Machine::new(Options::default());
    let torch = Torch::new(Python::of_layout(Process::new(&machine), layout.clone(), None), "2.6");
    let (root, truth) = model(&torch);
    let recovery = recover(&dump(&torch.python.process));
    assert_model(&torch, root, &truth, &recovery);
    recovery.processes[0].python.as_ref().unwrap().layout.0.clone()
}

/// The changes by name: from, to.
fn changes(score: &LayoutScore) -> Vec<(&str, Option<i64>, Option<i64>)> {
    score.changes.iter().map(|Change { number, from, to }| (*number, *from, *to)).collect()
}

#[test]
fn padded_object_headers() {
    for version in ["3.8", "3.11", "3.13", "3.14", "3.14-free-threaded"] {
        for bytes in [8, 16] {
            for place in 0..3 {
                let plain = layout(version);
                // Two words before the count are what Py_TRACE_REFS has.
                let is_known = place == 0 && bytes == 16 && layout_exists(&format!("{version}-trace-refs"));
                // The owner's count and the others' keep their distance from the type.
                if is_known || (place == 1 && plain.get("object.ob_ref_local").is_some()) {
                    continue;
                }
                let score = recovered(&padded(&plain, place, bytes));
                let case = format!("{version}, {bytes} bytes at place {place}: {score:?}");
                assert_eq!(score.source, LayoutSource::Inferred, "{case}");
                assert_eq!(score.readable, score.sampled, "{case}");
                // A later release with two words before the count is nearest to an earlier one that has them.
                if (place, bytes) != (0, 16) {
                    let size = plain.get("object.sizeof");
                    assert!(
                        changes(&score).contains(&("object.sizeof", size, size.map(|size| size + bytes))),
                        "{case}"
                    );
                }
            }
        }
    }
}

#[test]
fn structures_that_grew() {
    // A structure, the first number that moved, and by how much.
    let cases: [(&[&str], i64, i64); 9] = [
        (&["type", "heap_type"], 256, 8),
        (&["type", "heap_type"], 344, 16),
        (&["heap_type"], 0, 16),
        (&["str", "str_legacy"], 32, 8),
        (&["str_state"], 0, 1),
        (&["tuple"], 24, 8),
        (&["dict"], 32, 8),
        (&["dict_keys"], 24, 8),
        (&["int"], 24, 8),
    ];
    for version in ["3.10", "3.13"] {
        for (structures, from, bytes) in cases {
            let mut grown = layout(version);
            moved(&mut grown, structures, from, bytes);
            // What `type` says of its instances tells of a change, whatever structure it was in.
            grown.fields.get_mut("heap_type.sizeof").unwrap().value += 24;
            let score = recovered(&grown);
            assert_eq!(score.source, LayoutSource::Inferred, "{version} {structures:?}: {score:?}");
            assert_eq!(score.readable, score.sampled, "{version} {structures:?}: {score:?}");
        }
    }
}

/// The signatures without the layouts of one release.
fn without(version: &str) -> Signatures {
    let mut files = Vec::new();
    for name in ["cpython.toml", "x86_64.toml"] {
        files.push((name.to_owned(), std::fs::read_to_string(format!("signatures/{name}")).unwrap()));
    }
    let known = SIGNATURES.layouts("cpython").filter(|layout| release(&layout.version) != version);
    for layout in known {
        let head = format!("[layout]\nfamily = \"cpython\"\nversion = \"{}\"\nsource = \"a copy\"\n", layout.version);
        let numbers = layout.fields.iter().map(|(key, entry)| {
            let (of, name) = key.split_once('.').unwrap();
            format!("[layout.{of}.{name}]\noffset = {}\n", entry.value)
        });
        files.push((layout.version.clone(), head + &numbers.collect::<String>()));
    }
    for folder in std::fs::read_dir("signatures/layouts").unwrap() {
        let path = folder.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("pytorch") {
            files.push((name, std::fs::read_to_string(path).unwrap()));
        }
    }
    Signatures::from_texts(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))).unwrap()
}

#[test]
fn a_release_that_no_file_describes() {
    for version in CPYTHONS {
        let machine = Machine::new(Options::default());
        let torch = Torch::new(Python::new(Process::new(&machine), version), "2.6");
        let (root, truth) = model(&torch);
        let signatures = without(release(version));
        let recovery = recover_with(&dump(&torch.python.process), &signatures);
        assert_eq!(recovery.processes.len(), 1, "{version}");
        let (score, _) = &recovery.processes[0].python.as_ref().unwrap().layout;
        assert_eq!(score.source, LayoutSource::Inferred, "{version}: {score:?}");
        assert_eq!(recovery.processes[0].python.as_ref().unwrap().version, Some(format!("{}.7", release(version))));
        // How instances keep their attributes in 3.11, and in 3.12, no other release does.
        if !["3.11", "3.12"].contains(&release(version)) {
            assert_model(&torch, root, &truth, &recovery);
        }
    }
}

/// What `_PyRuntime` begins with is written into a process: where it lies.
fn runtime(python: &Python, version: &str, told: &Layout, is_running: bool) -> u64 {
    let places = SIGNATURES.layouts("cpython-debug-offsets").find(|places| places.version == release(version)).unwrap();
    let process = &python.process;
    let at = process.alloc(0x1000);
    let [interpreter, thread] = [process.alloc(0x800), process.alloc(0x800)];
    let put = |key: &str, value: u64| process.put(at + places.get(key).unwrap().cast_unsigned(), value);
    process.write(at, b"xdebugpy");
    for key in places.fields.keys().filter(|key| !key.starts_with("width.")) {
        let value = match (key.as_str(), key.split_once('.').unwrap().1) {
            ("runtime_state.interpreters_head", _) => 0x700,
            ("interpreter_state.threads_head", _) => 0x108,
            ("interpreter_state.imports_modules", _) => 0x210,
            ("interpreter_state.next", _) => 0x100,
            ("thread_state.interp", _) => 0x18,
            ("debug_offsets.free_threaded", _) => u64::from(version.ends_with("free-threaded")),
            ("debug_offsets.version", _) => 0x0300_00f0 | u64::from(super::synthetic::minor(version)) << 16,
            (_, "size") => 0x800,
            _ => told.get(key).unwrap_or_default().cast_unsigned(),
        };
        put(key, value);
    }
    if is_running {
        process.put(at + 0x700, interpreter);
        process.put(interpreter + 0x108, thread);
        process.put(interpreter + 0x210, python.dict(&[("sys", python.builtin.none)]));
        process.put(thread + 0x18, interpreter);
    }
    at
}

fn with_runtime(version: &str, layout: &Layout, is_running: bool) -> (Recovery, Torch) {
    let machine = Machine::new(Options::default());
    let torch = Torch::new(Python::of_layout(Process::new(&machine), layout.clone(), None), "2.6");
    runtime(&torch.python, version, layout, is_running);
    let (root, truth) = model(&torch);
    let recovery = recover(&dump(&torch.python.process));
    assert_model(&torch, root, &truth, &recovery);
    (recovery, torch)
}

#[test]
fn what_an_interpreter_tells_of_itself_is_preferred() {
    for version in ["3.13", "3.13-free-threaded", "3.14", "3.14-free-threaded", "3.15", "3.15-free-threaded"] {
        let plain = layout(version);
        let (recovery, _) = with_runtime(version, &plain, true);
        let (score, _) = &recovery.processes[0].python.as_ref().unwrap().layout;
        assert_eq!((score.source, score.version.as_str()), (LayoutSource::DebugOffsets, version));
        assert_eq!(score.changes, []);

        let mut other = plain.clone();
        moved(&mut other, &["list"], plain.get("list.ob_item").unwrap(), 8);
        moved(&mut other, &["float"], 0, 8);
        let (recovery, _) = with_runtime(version, &other, true);
        let (score, _) = &recovery.processes[0].python.as_ref().unwrap().layout;
        assert_eq!(score.source, LayoutSource::DebugOffsets, "{score:?}");
        let moved = |key: &'static str| (key, plain.get(key), other.get(key));
        assert_eq!(changes(score), [moved("float.ob_fval"), moved("list.ob_item")]);
    }
}

#[test]
fn debug_offsets_of_no_running_interpreter_are_not_believed() {
    let mut wrong = layout("3.14");
    moved(&mut wrong, &["float"], 0, 8);
    // A field that begins outside its structure, or ends outside it; all structures are 0x800 bytes long.
    let fields = [None, Some(("float.ob_fval", 0x800)), Some(("float.ob_fval", 0x7f9)), Some(("int.ob_digit", 0x7fd))];
    for unsound in fields {
        let machine = Machine::new(Options::default());
        let torch = Torch::new(Python::new(Process::new(&machine), "3.14"), "2.6");
        let mut wrong = wrong.clone();
        if let Some((field, offset)) = unsound {
            wrong.fields.get_mut(field).unwrap().value = offset;
        }
        let is_running = unsound.is_some();
        runtime(&torch.python, "3.14", &wrong, is_running);
        let (root, truth) = model(&torch);
        let mut recovery = recover(&dump(&torch.python.process));
        let unsound_offsets = |said: &mut Diagnostic| said.code == Code::UnsoundDebugOffsets;
        let said: Vec<Diagnostic> = recovery.warnings.extract_if(.., unsound_offsets).collect();
        assert_model(&torch, root, &truth, &recovery);
        let (score, _) = &recovery.processes[0].python.as_ref().unwrap().layout;
        assert_eq!((score.source, changes(score)), (LayoutSource::Table, vec![]));
        match unsound {
            Some((field, offset)) => {
                let most = 0x800 - if field == "int.ob_digit" { 4 } else { 8 };
                assert!(
                    said[0].message.contains(&format!("{field} = {offset} is not between 0 and {most}")),
                    "{said:?}"
                );
            }
            None => assert_eq!(said, []),
        }
    }
    // The last place at which a field of four bytes fits.
    let machine = Machine::new(Options::default());
    let torch = Torch::new(Python::new(Process::new(&machine), "3.14"), "2.6");
    wrong.fields.get_mut("int.ob_digit").unwrap().value = 0x7fc;
    runtime(&torch.python, "3.14", &wrong, true);
    model(&torch);
    let recovery = recover(&dump(&torch.python.process));
    assert!(recovery.warnings.iter().all(|said| said.code != Code::UnsoundDebugOffsets), "{:?}", recovery.warnings);
}

#[test]
fn a_subinterpreter_shares_the_types_made_in_c() {
    for version in ["3.11", "3.12", "3.14"] {
        let machine = Machine::new(Options::default());
        let torch = Torch::new(Python::new(Process::new(&machine), version), "2.6");
        let (root, truth) = model(&torch);
        // Modules and classes are its own, of the same names; it imported little.
        let python = &torch.python;
        python.module("sys", &[("version", python.str("3.99.0 (never)"))]);
        python.module("builtins", &[("None", python.builtin.none)]);
        python.class(python.builtin.type_, "__main__", "main.<locals>.Net", python.builtin.object, Keeping::Dict);
        assert_model(&torch, root, &truth, &recover(&dump(&python.process)));
    }
}
