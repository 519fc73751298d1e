//! `core` on the shipped dump: what other programs, and we ourselves, read in the core of a process.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;

use object::LittleEndian as LE;
use object::elf::{FileHeader64, NT_AUXV, NT_FILE, NT_PRPSINFO, NT_PRSTATUS, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use program::program;
use serde_json::Value;
use tempfile::TempDir;

const SHIPPED: &str = "tests/data/cifar10-pdb.lime.zst";
/// The process that the truth is about: it waits for input in pdb.
const PID: &str = "188";

fn tensorcarve(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn json(arguments: &[&str]) -> Value {
    let output = tensorcarve(&[arguments, &["--format", "json", "-q"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The core of the process, written once for all tests of this file.
fn core() -> &'static str {
    static CORE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = CORE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let output = tensorcarve(&["core", SHIPPED, "--pid", PID, "-o", path.to_str().unwrap()]);
        let messages = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{messages}");
        assert!(messages.contains("1 thread; absent:") && !messages.contains("warning"), "{messages}");
        (folder, path)
    });
    path.to_str().unwrap()
}

/// What the library `object` reads in the core.
struct Elf {
    bytes: Vec<u8>,
    /// Address, bytes in memory, and bytes in the file.
    loads: Vec<(u64, u64, std::ops::Range<usize>)>,
    notes: Vec<(u32, Vec<u8>)>,
}

impl Elf {
    fn read(path: &str) -> Self {
        let bytes = fs::read(path).unwrap();
        let header = FileHeader64::<LE>::parse(&*bytes).unwrap();
        let (mut loads, mut notes) = (Vec::new(), Vec::new());
        for segment in header.program_headers(LE, &*bytes).unwrap() {
            if segment.p_type(LE) == PT_NOTE {
                let mut all = segment.notes(LE, &*bytes).unwrap().unwrap();
                while let Some(note) = all.next().unwrap() {
                    assert_eq!(note.name(), b"CORE");
                    notes.push((note.n_type(LE).0, note.desc().to_vec()));
                }
                continue;
            }
            assert_eq!(segment.p_type(LE), PT_LOAD);
            let (start, len) = (segment.p_offset(LE) as usize, segment.p_filesz(LE) as usize);
            assert_eq!(segment.p_offset(LE) % segment.p_align(LE), segment.p_vaddr(LE) % segment.p_align(LE));
            assert!(segment.p_filesz(LE) <= segment.p_memsz(LE) && (len == 0 || start + len <= bytes.len()));
            loads.push((segment.p_vaddr(LE), segment.p_memsz(LE), start..start + len));
        }
        Self { bytes, loads, notes }
    }

    fn note(&self, kind: object::elf::NoteType) -> Vec<&[u8]> {
        self.notes.iter().filter(|(of, _)| *of == kind.0).map(|(_, desc)| &desc[..]).collect()
    }

    fn memory(&self, at: u64, len: usize) -> &[u8] {
        let (start, _, file) = self.loads.iter().find(|(start, len, _)| (*start..start + len).contains(&at)).unwrap();
        &self.bytes[file.clone()][(at - start) as usize..][..len]
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn segments_are_the_mappings_and_hold_what_the_dump_holds() {
    let elf = Elf::read(core());
    let ends: Vec<u64> = elf.loads.iter().map(|(start, len, _)| start + len).collect();
    assert!(elf.loads.iter().skip(1).zip(&ends).all(|((start, ..), end)| start >= end));
    // Where something is absent in the middle of a mapping, nothing is filled in.
    assert!(elf.loads.iter().any(|(_, len, file)| !file.is_empty() && (file.len() as u64) < *len));
    let key = |maps: &Value| -> Vec<Value> {
        let row = |row: &Value| {
            let file = row["file"].as_str().filter(|file| file.starts_with('/'));
            let access = &row["permissions"].as_str().unwrap()[..3];
            serde_json::json!([row["start"], row["end"], access, row["offset"], file, row["resident_bytes"]])
        };
        maps["mappings"].as_array().unwrap().iter().map(row).collect()
    };
    let (of_dump, of_core) = (json(&["maps", SHIPPED, "--pid", PID]), json(&["maps", core()]));
    assert_eq!(of_core["pid"], 188);
    assert_eq!(key(&of_core), key(&of_dump));
    let held: u64 = elf.loads.iter().map(|(_, _, file)| file.len() as u64).sum();
    let rows = of_dump["mappings"].as_array().unwrap().iter();
    let resident: u64 = rows.map(|row| row["resident_bytes"].as_u64().unwrap()).sum();
    assert_eq!(held, resident);
}

#[test]
fn the_thread_waits_in_a_system_call() {
    let elf = Elf::read(core());
    let threads = elf.note(NT_PRSTATUS);
    assert_eq!((threads.len(), threads[0].len()), (1, 336));
    assert_eq!(threads[0][32..36], 188u32.to_le_bytes());
    let register = |index: usize| word(threads[0], 112 + 8 * index);
    let (rax, number, rip, rsp, fs_base) = (register(10), register(15), register(16), register(19), register(21));
    // read(0, …), which has not returned: the kernel would restart it.
    assert_eq!((number, register(14)), (0, 0));
    assert!((rax as i64) < 0);
    assert_eq!(elf.memory(rip - 2, 2), [0x0f, 0x05], "{rip:#x}");
    assert_eq!([register(17), register(20)], [0x33, 0x2b]);
    let maps = json(&["maps", SHIPPED, "--pid", PID]);
    let stack = maps["mappings"].as_array().unwrap().iter().find(|row| row["file"] == "[stack]").unwrap();
    let address = |key: &str| u64::from_str_radix(&stack[key].as_str().unwrap()[2..], 16).unwrap();
    assert!((address("start")..address("end")).contains(&rsp), "{rsp:#x}");
    // The thread's own memory begins with its address (`tcbhead_t` of glibc).
    assert_eq!(word(elf.memory(fs_base, 8), 0), fs_base);
}

#[test]
fn ps_prints_of_the_core_what_it_prints_of_the_dump() {
    let process = |arguments: &[&str]| json(&[&["ps"], arguments].concat())["processes"][0].clone();
    let (of_dump, of_core) = (process(&[SHIPPED, "--pid", PID]), process(&[core()]));
    for key in ["pid", "ppid", "comm", "kind", "uid", "state", "cmdline", "exe", "python", "frameworks", "models"] {
        assert_eq!(of_core[key], of_dump[key], "{key}");
    }
    assert!(of_core["cmdline"].as_array().is_some_and(|words| words.len() > 1), "{}", of_core["cmdline"]);
    let ids = |row: &Value| -> Vec<u64> {
        row["threads"].as_array().unwrap().iter().map(|thread| thread["tid"].as_u64().unwrap()).collect()
    };
    assert_eq!(ids(&of_core), ids(&of_dump));
}

#[test]
fn the_process_is_described() {
    let elf = Elf::read(core());
    let [process] = elf.note(NT_PRPSINFO)[..] else { panic!("one note") };
    assert_eq!((process.len(), process[1]), (136, b'S'));
    assert_eq!(process[24..28], 188u32.to_le_bytes());
    assert!(process[40..].starts_with(b"python3\0"));
    assert!(process[56..].starts_with(b"python3 /workloads/cnn_cifar10.py\0"));
    let [vector] = elf.note(NT_AUXV)[..] else { panic!("one note") };
    let pairs: Vec<(u64, u64)> = vector.chunks_exact(16).map(|pair| (word(pair, 0), word(pair, 8))).collect();
    // AT_PAGESZ; AT_PHDR, which points to the program's own headers; AT_NULL.
    assert!(pairs.contains(&(6, 4096)));
    let headers = pairs.iter().find(|(kind, _)| *kind == 3).unwrap().1;
    assert_eq!(elf.memory(headers, 8), [6, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(pairs.last(), Some(&(0, 0)));
    let [files] = elf.note(NT_FILE)[..] else { panic!("one note") };
    assert_eq!([word(files, 8), word(files, 16), word(files, 32)], [4096, 0x40_0000, 0]);
    assert!(files[16 + 24 * word(files, 0) as usize..].starts_with(b"/usr/bin/python3.11\0"));
}

#[test]
fn python_and_its_tensors_are_those_of_the_dump() {
    let stack = |arguments: &[&str]| json(&[&["stack"], arguments, &["--locals"]].concat())["threads"].clone();
    assert_eq!(stack(&[core()]), stack(&[SHIPPED, "--pid", PID]));
    let recover = |dump: &str| {
        let folder = tempfile::tempdir().unwrap();
        let output = tensorcarve(&["recover", dump, "-q", "--hash", "none", "-o", folder.path().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let document: Value = serde_json::from_slice(&fs::read(folder.path().join("recovery.json")).unwrap()).unwrap();
        let processes = document["processes"].as_array().unwrap().clone();
        processes.into_iter().find(|process| process["pid"] == 188).unwrap()
    };
    let (of_core, of_dump) = (recover(core()), recover(SHIPPED));
    for key in ["python", "torch"] {
        assert_eq!(of_core[key]["version"], of_dump[key]["version"]);
    }
    let tensors = |process: &Value| -> Value {
        let keys = ["name", "data", "dtype", "shape", "stride", "status", "sha256"];
        let tensors = process["models"][0]["tensors"].as_array().unwrap().iter();
        tensors.map(|tensor| keys.map(|key| tensor[key].clone())).map(|values| Value::from(values.to_vec())).collect()
    };
    assert_eq!(tensors(&of_dump).as_array().unwrap().len(), 10);
    assert_eq!(tensors(&of_core), tensors(&of_dump));
}

#[test]
fn what_is_no_process_of_a_machine_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let refused = |arguments: &[&str], out: &Path, words: &[&str]| {
        let output = tensorcarve(&[&["core", "-o", out.to_str().unwrap()], arguments].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused(&[core()], &path, &["process image"]);
    refused(&[SHIPPED], &path, &["--pid", "--root"]);
    refused(&[SHIPPED, "--pid", "2"], &path, &["thread of the kernel"]);
    refused(&[SHIPPED, "--pid", "99999"], &path, &["no process 99999"]);
    refused(&[SHIPPED, "--root", "0x1000"], &path, &["no process with the root 0x1000"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    fs::write(&path, "mine").unwrap();
    refused(&[SHIPPED, "--pid", PID], &path, &["exists", "--overwrite"]);
    refused(&[SHIPPED, "--pid", PID, "--overwrite"], folder.path(), &["not a regular file"]);
    // The evidence is never replaced.
    refused(&[path.to_str().unwrap(), "--pid", PID, "--overwrite"], &path, &["replace the dump"]);
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
