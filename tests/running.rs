//! What Python processes did: stacks, the collector's lists, objects, against what the victims said of themselves.
//!
//! Victims run under every Python 3.8 or later of this machine. An image of each is a copy of its memory with its maps.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may simply fail")]

mod program;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use program::program;
use serde_json::Value;
use tempfile::TempDir;

/// Of what is too long, this is left out.
const ELLIPSIS: &str = "…";

/// An image of a process, and what it said of itself.
struct Image {
    python: PathBuf,
    folder: TempDir,
    /// Where mappings lie, and where in the copy of memory.
    mappings: Vec<(u64, u64, u64)>,
    /// Those of no file.
    anonymous: Vec<(u64, u64)>,
    truth: Value,
}

impl Image {
    fn memory(&self) -> PathBuf {
        self.folder.path().join("memory")
    }

    /// What a verb prints as JSON.
    fn ask(&self, arguments: &[&str]) -> Value {
        self.ask_of(&self.memory(), arguments)
    }

    fn ask_of(&self, memory: &Path, arguments: &[&str]) -> Value {
        let (verb, options) = arguments.split_first().unwrap();
        let mut command = program();
        command.arg(verb);
        command.arg(memory).arg("--maps").arg(self.folder.path().join("maps")).args(["--format", "json", "-q"]);
        let output = command.args(options).stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!([Some(0), Some(1), Some(3)].contains(&output.status.code()), "{:?}: {errors}", self.python);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// A copy of the memory with some words changed.
    fn with_words(&self, words: &[(u64, u64)]) -> tempfile::TempPath {
        let copy = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap().into_temp_path();
        fs::copy(self.memory(), &copy).unwrap();
        let file = File::options().write(true).open(&copy).unwrap();
        for (address, word) in words {
            file.write_all_at(&word.to_le_bytes(), self.offset(*address)).unwrap();
        }
        copy
    }

    fn word(&self, address: u64) -> u64 {
        let mut word = [0; 8];
        File::open(self.memory()).unwrap().read_exact_at(&mut word, self.offset(address)).unwrap();
        u64::from_le_bytes(word)
    }

    fn offset(&self, address: u64) -> u64 {
        let of = |(start, end, offset): &(u64, u64, u64)| {
            (*start..*end).contains(&address).then(|| offset + address - start)
        };
        self.mappings.iter().find_map(of).unwrap()
    }
}

fn address(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// The Pythons of this machine from 3.8 on, each version once.
fn pythons() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten().flatten();
    let mut candidates: Vec<PathBuf> = installed.map(|version| version.path().join("bin/python3")).collect();
    candidates.extend(["/usr/bin/python3", "python3"].map(PathBuf::from));
    let mut versions = std::collections::BTreeMap::new();
    for python in candidates {
        let print = "import sys; print('%d.%02d' % sys.version_info[:2])";
        let output = Command::new(&python).args(["-c", print]).output();
        let version =
            output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        if version.as_str() >= "3.08" {
            versions.entry(version).or_insert(python);
        }
    }
    versions.into_values().collect()
}

/// A process that is ended with the test.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Images of the victim under every Python; taken once for all tests of this file.
fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let images: Vec<Image> = pythons().into_iter().filter_map(take).collect();
        if images.is_empty() {
            println!("skipped: no image of a running Python could be taken");
        }
        images
    })
}

fn take(python: PathBuf) -> Option<Image> {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("truth.json");
    let mut command = Command::new(&python);
    // Without the archive of locales, which is ten times the rest.
    command.env("LC_ALL", "C").env("PYTHONCOERCECLOCALE", "0").env("PYTHONUTF8", "1");
    let victim = command.args(["-B", "tests/running/victim.py"]).arg(&told).stdin(Stdio::null()).spawn();
    let victim = Victim(victim.ok()?);
    let begun = Instant::now();
    while !told.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{python:?} says nothing");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The thread that wrote the truth still has to get to where it waits.
    std::thread::sleep(Duration::from_millis(300));
    let proc = PathBuf::from(format!("/proc/{}", victim.0.id()));
    let maps = fs::read_to_string(proc.join("maps")).unwrap();
    let from = File::open(proc.join("mem")).ok().filter(|memory| memory.read_at(&mut [0], 0).is_err())?;
    let to = File::create(folder.path().join("memory")).unwrap();
    let (mut mappings, mut anonymous, mut offset) = (Vec::new(), Vec::new(), 0);
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|bound| u64::from_str_radix(bound, 16).unwrap());
        if !rest.starts_with('r') || start >= 0xffff_ffff << 32 {
            continue;
        }
        for page in (start..end).step_by(4096) {
            let mut bytes = [0; 4096];
            // Pages that nobody can read are zeros, as of [vvar].
            let _ = from.read_exact_at(&mut bytes, page);
            to.write_all_at(&bytes, offset + page - start).unwrap();
        }
        mappings.push((start, end, offset));
        if rest.starts_with("rw") && !rest.contains('/') {
            anonymous.push((start, end));
        }
        offset += end - start;
    }
    fs::write(folder.path().join("maps"), maps).unwrap();
    let truth = serde_json::from_slice(&fs::read(&told).unwrap()).unwrap();
    Some(Image { python, folder, mappings, anonymous, truth })
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().unwrap()
}

/// Holds a frame against the truth: function, file, line, and the variables that are plain values.
fn check_frame(python: &Path, frame: &Value, truth: &Value) {
    for key in ["function", "file", "line"] {
        assert_eq!(frame[key], truth[key], "{python:?} {frame}");
    }
    // Before 3.11 code objects do not tell their full names; functions that still live do.
    assert!(truth["qualname"].is_null() || frame["qualname"] == truth["qualname"], "{python:?} {frame}");
    if truth["function"] == "<module>" {
        return;
    }
    let (locals, truths) = (frame["locals"].as_object().unwrap(), truth["locals"].as_object().unwrap());
    assert_eq!(locals.keys().collect::<Vec<_>>(), truths.keys().collect::<Vec<_>>(), "{python:?} {frame}");
    for (name, value) in truths.iter().filter(|(_, value)| value.is_string()) {
        let shown = locals[name].as_str().unwrap();
        let (shown, is_cut) = shown.split_once(ELLIPSIS).map_or((shown, false), |(shown, _)| (shown, true));
        let value = value.as_str().unwrap();
        let agrees = if is_cut { value.starts_with(shown.trim_end_matches('\'')) } else { value == shown };
        assert!(agrees, "{python:?} {name}: {shown} is not {value}");
    }
}

#[test]
fn stacks_are_those_that_the_victim_saw() {
    for image in images() {
        let found = image.ask(&["stack", "--locals"]);
        let threads = list(&found, "threads");
        let truths = list(&image.truth, "threads");
        // The one that wrote the truth stood elsewhere while it did so.
        assert_eq!(threads.len(), truths.len() + 1, "{:?}", image.python);
        for truth in truths {
            let thread = threads.iter().find(|thread| thread["name"] == truth["name"]).unwrap();
            assert_eq!((&thread["tid"], &thread["problem"]), (&truth["tid"], &Value::Null), "{:?}", image.python);
            let (frames, truths) = (list(thread, "frames"), list(truth, "frames"));
            assert_eq!(frames.len(), truths.len(), "{:?} {thread}", image.python);
            frames.iter().zip(truths).for_each(|(frame, truth)| check_frame(&image.python, frame, truth));
        }
        let recorder = threads.iter().find(|thread| thread["name"] == "recorder").unwrap();
        assert!(list(recorder, "frames").iter().any(|frame| frame["function"] == "record"), "{recorder}");
    }
}

#[test]
fn generators_and_coroutines_that_wait_are_found() {
    for image in images() {
        let found = image.ask(&["stack", "--locals"]);
        let key = |suspended: &Value| {
            let frame = &suspended["frame"];
            let locals = [&frame["locals"]["n"], &frame["locals"]["tag"]];
            format!("{} {} {} {locals:?}", suspended["kind"], frame["function"], frame["line"])
        };
        let ours =
            |suspended: &&Value| suspended["frame"]["file"].as_str().is_some_and(|file| file.ends_with("victim.py"));
        let mut found: Vec<&Value> = list(&found, "suspended").iter().filter(ours).collect();
        let mut truths: Vec<&Value> = list(&image.truth, "suspended").iter().collect();
        found.sort_by_key(|suspended| key(suspended));
        truths.sort_by_key(|suspended| key(suspended));
        let keys = |list: &[&Value]| list.iter().map(|suspended| key(suspended)).collect::<Vec<_>>();
        assert_eq!(keys(&found), keys(&truths), "{:?}", image.python);
        for (found, truth) in found.iter().zip(&truths) {
            check_frame(&image.python, &found["frame"], &truth["frame"]);
        }
        let created = found.iter().filter(|suspended| suspended["state"] == "created").count();
        assert_eq!(created, 2, "{:?}", image.python);
    }
}

#[test]
fn the_collectors_lists_have_as_many_objects_as_python_says() {
    for image in images() {
        let found = image.ask(&["gc"]);
        assert_eq!(list(&found, "broken"), [] as [Value; 0], "{:?}", image.python);
        let counts = list(&found, "generations").iter().map(|generation| generation["objects"].as_u64().unwrap());
        let counts: Vec<u64> = counts.collect();
        let truths: Vec<u64> = list(&image.truth, "gc").iter().map(|count| count.as_u64().unwrap()).collect();
        // Writing the truth made some young objects, and dropped a few old ones.
        let allowed = [200, 0, 16];
        assert!(counts.len() >= allowed.len(), "{:?} {counts:?}", image.python);
        for ((count, truth), allowed) in counts.iter().zip(&truths).zip(allowed) {
            assert!(count.abs_diff(*truth) <= allowed, "{:?} {counts:?} {truths:?}", image.python);
        }
    }
}

#[test]
fn types_have_as_many_objects_as_python_says() {
    for image in images() {
        let found = image.ask(&["objects"]);
        let types = list(&found, "types");
        let count = |name: &str| {
            let found = types.iter().find(|found| found["name"] == name);
            found.map_or(0, |found| found["count"].as_u64().unwrap())
        };
        for (name, truth) in image.truth["types"].as_object().unwrap() {
            let (count, truth) = (count(name), truth.as_u64().unwrap());
            match name.as_str() {
                name if name.starts_with("__main__.") => assert_eq!(count, truth, "{:?} {name}", image.python),
                "dict" | "function" | "type" => {
                    assert!(count.abs_diff(truth) * 100 <= truth, "{:?} {name}: {count} {truth}", image.python)
                }
                _ => {}
            }
        }
        let shapes = image.ask(&["objects", "--type", "Shape"]);
        let shapes = list(&shapes, "objects");
        assert_eq!(shapes.len(), 37, "{:?}", image.python);
        let shape = image.ask(&["objects", "--address", shapes[0]["address"].as_str().unwrap()]);
        let shape = &shape["object"];
        assert_eq!(shape["type"], "__main__.Shape");
        let attributes: Vec<(&str, &str)> = list(shape, "attributes")
            .iter()
            .map(|held| (held["name"].as_str().unwrap(), held["repr"].as_str().unwrap()))
            .collect();
        assert_eq!(attributes[1], ("sides", "[1, 2.5, -3]"), "{:?}", image.python);
        assert!(attributes[0].0 == "name" && attributes[0].1.starts_with("'s"), "{attributes:?}");
        let strings = image.ask(&["objects", "--strings", "recursion \u{1b}"]);
        assert!(list(&strings, "objects").iter().any(|found| found["repr"] == "'recursion \\x1b[31m'"), "{strings}");
        let modules = image.ask(&["objects", "--modules"]);
        let main = list(&modules, "modules").iter().find(|module| module["name"] == "__main__").unwrap();
        assert!(main["file"].as_str().unwrap().ends_with("victim.py"), "{main}");
    }
}

#[test]
fn rings_of_frames_and_broken_lists_end() {
    for image in images() {
        let found = image.ask(&["stack"]);
        let thread = list(&found, "threads").iter().find(|thread| thread["name"] == "closure").unwrap();
        let frames: Vec<u64> = list(thread, "frames").iter().map(|frame| address(&frame["address"])).collect();
        let [first, second, third, ..] = frames[..] else { panic!("{thread}") };
        // The link of the second frame to the third leads back to the first.
        let link = (second..).step_by(8).find(|at| image.word(*at) == third).unwrap();
        let ring = image.ask_of(&image.with_words(&[(link, first)]), &["stack", "--locals"]);
        let thread = list(&ring, "threads").iter().find(|thread| thread["name"] == "closure").unwrap();
        assert_eq!(list(thread, "frames").len(), 2, "{:?} {thread}", image.python);
        assert!(thread["problem"].as_str().unwrap().contains("go round"), "{thread}");
        // A link in the middle of the oldest generation leads back to itself, another one to what is no object.
        let lists = image.ask(&["gc"]);
        let (all, oldest) = (lists["objects"].as_u64().unwrap(), &lists["generations"][2]);
        let head = address(&oldest["head"]);
        let nodes: Vec<u64> = std::iter::successors(Some(head), |node| Some(image.word(*node) & !3)).take(9).collect();
        for target in [nodes[8], 0, head + 8, 0xdead_0000_0000_0000] {
            let broken = image.ask_of(&image.with_words(&[(nodes[8], target)]), &["gc"]);
            assert!(!list(&broken, "broken").is_empty(), "{broken}");
            // The other way round all of them are found.
            assert_eq!(broken["objects"].as_u64().unwrap(), all, "{:?} {target:#x}", image.python);
        }
        // While the collector works, previous links count references: the lists are whole all the same.
        let counting: Vec<(u64, u64)> = nodes[1..].iter().map(|node| (node + 8, 5 << 2 | 2)).collect();
        let collecting = image.ask_of(&image.with_words(&counting), &["gc"]);
        let [broken] = list(&collecting, "broken") else { panic!("{collecting}") };
        assert!(broken["reason"].as_str().unwrap().contains("in 8 objects"), "{broken}");
        assert_eq!(collecting["objects"].as_u64().unwrap(), all, "{:?}", image.python);
    }
}

#[test]
fn damaged_memory_is_no_reason_to_fail() {
    let Some(image) = images().first() else { return };
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3 {
        let mut words = Vec::new();
        for _ in 0..20_000 {
            let (start, end) = image.anonymous[random() as usize % image.anonymous.len()];
            let at = start + random() % (end - start) / 8 * 8;
            let (other, ..) = image.mappings[random() as usize % image.mappings.len()];
            words.push((at, if random() % 2 == 0 { random() } else { other + random() % 0x1000 }));
        }
        let damaged = image.with_words(&words);
        for verb in [&["stack", "--locals"][..], &["gc"], &["objects"], &["objects", "--type", "dict"]] {
            image.ask_of(&damaged, verb);
        }
    }
}

#[test]
fn the_shipped_dump_shows_pdb_over_the_training_script() {
    let dump = "tests/data/cifar10-pdb.lime.zst";
    let ask = |arguments: &[&str]| -> Value {
        let output = program().args(arguments).args([dump, "-q", "--format", "json", "--pid", "188"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let stack = ask(&["stack", "--locals"]);
    let [thread] = list(&stack, "threads") else { panic!("{stack}") };
    assert_eq!((&thread["tid"], &thread["name"]), (&188.into(), &"MainThread".into()));
    let frames = list(thread, "frames");
    let place = |frame: &Value| {
        let file = frame["file"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        (file, frame["line"].as_u64().unwrap(), frame["qualname"].as_str().unwrap().to_owned())
    };
    let expected = [("cmd.py", "Cmd.cmdloop"), ("pdb.py", "Pdb._cmdloop"), ("pdb.py", "Pdb.interaction")];
    for (frame, (file, name)) in frames.iter().zip(expected) {
        assert_eq!((place(frame).0.as_str(), place(frame).2.as_str()), (file, name));
    }
    let last = frames.last().unwrap();
    assert_eq!(place(last), ("cnn_cifar10.py".to_owned(), 35, "<module>".to_owned()));
    let locals = last["locals"].as_object().unwrap();
    for name in ["net", "criterion", "optimizer", "probe", "inputs", "labels", "i"] {
        assert!(locals.contains_key(name), "{name}");
    }
    assert_eq!(locals["i"], "29");
    assert_eq!(locals["net"], "<__main__.SimpleCNN at 0x7fc91cd4e6d0>");
    let truth: Value = serde_json::from_slice(&fs::read("tests/data/cifar10-pdb.truth.json").unwrap()).unwrap();
    let gc = ask(&["gc"]);
    // pdb was imported after the victim had counted. Two pages of the process moved while the dump was taken: the page tables
    // lead to their new frames, which the dump holds as they were before. So the walks end at these pages in both directions,
    // and the sweep finds the objects between them.
    let number = |value: &Value| value.as_u64().unwrap();
    let unlisted: u64 = list(&gc, "unlisted").iter().map(|found| number(&found["objects"])).sum();
    let (found, counted) = (number(&gc["objects"]) + unlisted, number(&truth["processes"][0]["gc_count"]));
    assert!(found.abs_diff(counted) * 50 < counted, "{found} {counted}");
}
