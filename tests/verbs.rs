//! The verbs `scan`, `devices` and `bench`: what they print, and what they refuse.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may simply fail")]

mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use program::program;
use serde_json::Value;

const SHIPPED: &str = "tests/data/cifar10-pdb.lime.zst";

fn tensorcarve(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A LiME dump from 0x1000 to 0x9000 with a `type` object at 0x3100, one whose item size is wrong at
/// 0x5200, one of which only three fields are in its frame at 0x6ff0, and the cookie at 0x7008.
fn dump(folder: &Path) -> PathBuf {
    let mut memory = vec![0u8; 0x8000];
    let mut write = |at: usize, words: &[u64]| {
        for (word, at) in words.iter().zip((at - 0x1000..).step_by(8)) {
            memory[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    };
    write(0x3100, &[1, 0x55_5555_5100, 0, 0x40_1001, 928, 40]);
    write(0x5200, &[1, 0x55_5555_5200, 0, 0x40_1001, 928, 41]);
    write(0x6ff0, &[0xffff_ffff, 0x55_5555_5ff0]);
    memory[0x6008..0x6010].copy_from_slice(b"xdebugpy");
    let header = [b"EMiL\x01\0\0\0", &0x1000u64.to_le_bytes()[..], &0x8fffu64.to_le_bytes(), &[0; 8]].concat();
    let path = folder.join("memory.lime");
    fs::write(&path, [header, memory].concat()).unwrap();
    path
}

#[test]
fn scan_lists_hits_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump(dir.path());
    let scan = |more: &[&str]| tensorcarve(&[&["scan", dump.to_str().unwrap()], more].concat());
    let expected = serde_json::json!([
        {"address": "0x3100", "signature": "cpython.type", "anchor": "0x3108", "value": "0x5555555100",
         "tested": 6, "deferred": 0, "file_offset": "0x2128"},
        {"address": "0x3118", "signature": "cpython.type.any_header", "anchor": "0x3128", "value": "0x28",
         "tested": 3, "deferred": 0, "file_offset": "0x2148"},
        {"address": "0x6ff0", "signature": "cpython.type", "anchor": "0x6ff8", "value": "0x5555555ff0",
         "tested": 2, "deferred": 4, "file_offset": "0x6018"},
        {"address": "0x7008", "signature": "cpython.debug_offsets", "anchor": "0x7008", "value": "0x0",
         "tested": 0, "deferred": 0, "file_offset": "0x6028"},
    ]);
    let output = scan(&["--format", "json"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    assert_eq!(json(&output), serde_json::json!({"total": 4, "left_out": 0, "hits": expected}));
    let lines = stdout(&scan(&["--format", "jsonl"]));
    assert_eq!(
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>(),
        expected.as_array().unwrap()[..]
    );
    let csv = stdout(&scan(&["--format", "csv"]));
    let csv: Vec<&str> = csv.lines().collect();
    assert_eq!(csv[0], "address,signature,anchor,value,tested,deferred,file_offset");
    assert_eq!(csv[3], "0x6ff0,cpython.type,0x6ff8,0x5555555ff0,2,4,0x6018");
    let table = stdout(&scan(&["--backend", "scalar", "-j", "1"]));
    assert_eq!(table.lines().count(), 5);
    assert!(table.starts_with("ADDRESS") && table.contains("0x3108  0x5555555100       6"), "{table}");
    let verbose = stderr(&scan(&["-v"]));
    assert!(
        verbose.contains("2 hits for cpython.type") && verbose.contains("8 frames, 4 of them all zeros"),
        "{verbose}"
    );
}

/// A LiME dump of so many MiB from address 0 on, with a needle in every slot.
fn dump_full_of_hits(folder: &Path, size: usize) -> PathBuf {
    let path = folder.join("hits.lime");
    let file = fs::File::create(&path).unwrap();
    let last = ((size as u64) << 20) - 1;
    let header = [b"EMiL\x01\0\0\0", &[0; 8][..], &last.to_le_bytes(), &[0; 8]].concat();
    std::io::Write::write_all(&mut &file, &header).unwrap();
    let chunk = b"xdebugpy".repeat((1 << 20) / 8);
    (0..size).for_each(|_| std::io::Write::write_all(&mut &file, &chunk).unwrap());
    path
}

#[test]
fn scan_keeps_no_more_hits_than_it_may_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump_full_of_hits(dir.path(), 3);
    let arguments = ["scan", dump.to_str().unwrap(), "--signature", "cpython.debug_offsets", "--max-hits"];
    let scan = |more: &[&str]| tensorcarve(&[&arguments, more].concat());
    let total = 3 * (1 << 20) / 8;
    for backend in ["scalar", "simd"] {
        for threads in ["1", "3"] {
            let output = scan(&["40000", "--format", "json", "--backend", backend, "-j", threads]);
            assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
            let document = json(&output);
            assert_eq!(
                (document["total"].as_u64(), document["left_out"].as_u64()),
                (Some(total), Some(total - 40_000))
            );
            let hits = document["hits"].as_array().unwrap();
            let expected = (0..40_000).map(|slot| format!("{:#x}", slot * 8));
            assert!(hits.iter().map(|hit| hit["address"].as_str().unwrap().to_owned()).eq(expected));
            let said = format!("{} of {total} hits are left out", total - 40_000);
            assert!(stderr(&output).contains(&said), "{}", stderr(&output));
        }
    }
    let all = scan(&[&total.to_string(), "--format", "json", "--limit", "0"]);
    assert_eq!((all.status.code(), json(&all)["left_out"].as_u64()), (Some(0), Some(0)));
    // Without any, it is still said that there are hits.
    let none = scan(&["0", "--format", "jsonl"]);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(3), 0));
}

/// With all of these hits in memory, each command would need 2 GB.
#[test]
fn a_dump_that_matches_everywhere_needs_less_than_1_gb() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump_full_of_hits(dir.path(), 256);
    // Private memory that can be written, in KiB: the mapped dump does not count.
    let limited = |arguments: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "ulimit -d 1000000; exec \"$@\"", "sh"]).arg(program().get_program()).args(arguments);
        command
            .args(["-j", "2", "--no-index"].iter().filter(|option| arguments[0] != "scan" || **option != "--no-index"));
        command.output().unwrap()
    };
    let output = limited(&["scan", dump.to_str().unwrap(), "--format", "json", "--limit", "1"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let total = 256 * (1 << 20) / 8;
    assert!(json(&output)["total"].as_u64() >= Some(total) && json(&output)["left_out"].as_u64() > Some(total / 2));
    let output = limited(&["spaces", dump.to_str().unwrap(), "--format", "json"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn scan_looks_for_what_is_asked_where_it_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump(dir.path());
    let scan = |more: &[&str]| tensorcarve(&[&["scan", dump.to_str().unwrap(), "--format", "json"], more].concat());
    let addresses = |output: &Output| {
        let hits = json(output)["hits"].as_array().unwrap().clone();
        hits.iter().map(|hit| hit["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(addresses(&scan(&["--signature", "cpython.debug_offsets"])), ["0x7008"]);
    assert_eq!(
        addresses(&scan(&["--range", "0x7000-0x7010", "--range", "12288-16384"])),
        ["0x3100", "0x3118", "0x7008"]
    );
    let limited = scan(&["--limit", "1"]);
    assert_eq!((addresses(&limited), json(&limited)["total"].as_u64()), (vec!["0x3100".to_owned()], Some(4)));
    assert!(stderr(&limited).contains("1 of 4 hits"), "{}", stderr(&limited));
    let nothing = scan(&["--range", "0x1000-0x3000"]);
    assert_eq!((nothing.status.code(), addresses(&nothing).len()), (Some(1), 0));
    // Cut off: found, but not all of the dump is there.
    let bytes = fs::read(&dump).unwrap();
    fs::write(&dump, &bytes[..bytes.len() - 0x1000]).unwrap();
    assert_eq!(scan(&["-q"]).status.code(), Some(3));
}

#[test]
fn scan_explains_what_was_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump(dir.path());
    let explain = |more: &[&str]| tensorcarve(&[&["scan", dump.to_str().unwrap(), "--explain"], more].concat());
    let rejected = json(&explain(&["--format", "json"]))["rejected"].clone();
    let counts = serde_json::json!([
        {"signature": "cpython.type", "field": "tp_itemsize", "expected": "equal = 0x28", "candidates": 1}]);
    let candidates = serde_json::json!([
        {"anchor": "0x5208", "signature": "cpython.type", "field": "tp_itemsize", "value": "0x29", "tested": null}]);
    assert_eq!((&rejected["counts"], &rejected["candidates"]), (&counts, &candidates));
    let table = stdout(&explain(&[]));
    assert!(table.contains("0x5208  cpython.type  tp_itemsize  0x29"), "{table}");
    // Of all candidates there is a count, whatever the limit.
    let rejected = json(&explain(&["--format", "json", "--limit", "0"]))["rejected"].clone();
    assert_eq!((&rejected["counts"], &rejected["candidates"]), (&counts, &serde_json::json!([])));
    // A range that ends behind the reference count and the type leaves two fields to test; three are wanted here.
    let signatures = dir.path().join("signatures");
    fs::create_dir(&signatures).unwrap();
    let stricter = include_str!("../signatures/cpython.toml").replace("min_tested = 2", "min_tested = 3");
    fs::write(signatures.join("mine.toml"), stricter).unwrap();
    let more = ["--signatures", signatures.to_str().unwrap(), "--range", "0x6000-0x7000", "--format", "json"];
    let candidate = json(&explain(&more))["rejected"]["candidates"][0].clone();
    assert_eq!((&candidate["field"], &candidate["tested"]), (&Value::Null, &2.into()));
}

/// Each command of the walkthrough prints what the page says, in that order.
#[test]
fn the_walkthrough_shows_what_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string("docs/walkthrough.md").unwrap();
    let blocks: Vec<&str> = page.split("```console\n$ tensorcarve ").skip(1).collect();
    assert_eq!(blocks.len(), 10);
    for block in blocks {
        let (command, rest) = block.split_once('\n').unwrap();
        let shown = rest.split_once("```").unwrap().0;
        let arguments: Vec<String> = command
            .split(' ')
            .map(|word| match word {
                "core.188" | "out" => folder.path().join(word).to_str().unwrap().to_owned(),
                word => word.to_owned(),
            })
            .collect();
        let output = tensorcarve(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{command}: {}", stderr(&output));
        let printed = stdout(&output);
        let mut lines = printed.lines();
        let mut is_gap = false;
        for line in shown.lines() {
            if line == "…" {
                is_gap = true;
                continue;
            }
            let found = if is_gap { lines.find(|printed| *printed == line) } else { lines.next() };
            assert_eq!(found, Some(line), "{command}");
            is_gap = false;
        }
        assert!(is_gap || lines.all(str::is_empty), "{command}: more was printed");
    }
    assert!(folder.path().join("out/models/m0/model.safetensors").exists());
}

/// The processes and a memory map of the dump that ships with the project; tests/linux.rs has the values.
#[test]
fn ps_and_maps_print_every_format() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cifar10-pdb.lime.zst");
    let run = |arguments: &[&str]| {
        let output = tensorcarve(&[&arguments[..1], &[shipped], &arguments[1..]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    };
    let document = json(&run(&["ps", "--format", "json", "-j", "2"]));
    let python = document["processes"].as_array().unwrap().iter().find(|row| row["pid"] == 188).unwrap();
    assert_eq!(
        (&python["comm"], &python["ppid"], &python["kind"]),
        (&"python3".into(), &185.into(), &"process".into())
    );
    let facts = (&python["python"], &python["frameworks"], &python["models"]);
    assert_eq!(facts, (&"3.11.2".into(), &serde_json::json!(["numpy", "torch"]), &1.into()));
    let pythons = stdout(&run(&["ps", "--python"]));
    assert_eq!(pythons.lines().count(), 3, "{pythons}");
    assert!(pythons.contains("numpy 1.24.2, torch 1.13.0a0"), "{pythons}");
    assert!(python["threads"].as_array().unwrap().iter().any(|thread| thread["tid"] == 188));
    let one = ["ps", "--pid", "188", "--threads", "--tree", "--jobs", "1"];
    let table = stdout(&run(&one));
    assert!(table.contains("/workloads/cnn_cifar10.py") && !table.contains("kthreadd"), "{table}");
    let lines = |arguments: &[&str]| stdout(&run(arguments)).lines().map(str::to_owned).collect::<Vec<_>>();
    let each = lines(&["ps", "--format", "jsonl"]);
    assert_eq!(each.len(), document["processes"].as_array().unwrap().len());
    assert_eq!(lines(&["ps", "--format", "csv"]).len(), each.len() + 1);
    let map = json(&run(&["maps", "--pid", "188", "--format", "json"]));
    let mappings = map["mappings"].as_array().unwrap();
    assert_eq!((&map["pid"], &mappings[0]["permissions"]), (&188.into(), &"r--p".into()));
    assert_eq!(lines(&["maps", "--pid", "188", "--format", "jsonl"]).len(), mappings.len());
    assert_eq!(lines(&["maps", "--pid", "188", "--format", "csv"]).len(), mappings.len() + 1);
    assert_eq!(lines(&["maps", "--pid", "188"]).len(), mappings.len() + 1);
}

#[test]
fn wrong_usage_is_refused_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump(dir.path());
    let dump = dump.to_str().unwrap();
    for (arguments, words) in [
        (
            &["scan", dump, "--signature", "cpython.tpye"][..],
            &["cpython.tpye", "cpython.type, cpython.type.wide_header"][..],
        ),
        (&["scan", dump, "--range", "0x2000-0x1000"], &["above the start"]),
        (&["scan", dump, "--range", "0x2000"], &["START-END"]),
        (&["scan", dump, "--range", "2x-0x3000"], &["`2x`"]),
        (&["scan", dump, "--range", "0x100000-0x200000"], &["no memory at these addresses", "tensorcarve info"]),
        (&["scan", dump, "--explain", "--format", "csv"], &["table or json"]),
        (&["bench", "--set", "everything"], &["everything", "needle-200"]),
        (&["bench", "--set", "input"], &["pass a dump"]),
        (&["bench", dump, "--size", "64"], &["--size"]),
        (&["bench", "--rounds", "0"], &["0"]),
    ] {
        let output = tensorcarve(arguments);
        let message = stderr(&output);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{message}");
        words.iter().for_each(|word| assert!(message.contains(word), "no {word:?} in: {message}"));
    }
}

#[test]
fn devices_names_what_auto_takes() {
    let output = tensorcarve(&["devices", "--format", "json"]);
    let document = json(&output);
    let chosen = document["chosen"].as_str().unwrap();
    let backends = document["backends"].as_array().unwrap();
    assert!(backends.iter().any(|backend| backend["name"] == chosen && backend["available"] == true), "{document}");
    assert!(stdout(&tensorcarve(&["devices"])).contains("chosen by --backend auto"));
}

/// The counts of planted hits are checked by the program itself: that it succeeds is the test.
#[test]
fn bench_finds_what_it_planted() {
    let arguments = ["bench", "--size", "32", "--rounds", "1", "-j", "2", "--format", "json"];
    let output =
        tensorcarve(&[&arguments[..], &["--set", "default", "--set", "needle-20", "--set", "sweep-16"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let document = json(&output);
    let results = document["results"].as_array().unwrap();
    let best = |set: &str| results.iter().rfind(|row| row["set"] == set).unwrap();
    // Two tiles with one of each built-in signature, some of which hold another as well, and of each needle.
    assert_eq!((&best("default")["hits"], &best("needle-20")["hits"]), (&46.into(), &40.into()));
    assert!(best("sweep-16")["hits"].as_u64().unwrap() >= 32);
    assert!(results.iter().all(|row| row["threads"] == 2 && row["ratio_to_read"].as_f64().unwrap() > 0.0));
}

#[test]
fn bench_measures_a_dump_and_how_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dump(dir.path());
    let arguments = ["--set", "default", "--set", "input", "--rounds", "1", "-j", "1", "--format", "json"];
    let output = tensorcarve(&[&["bench", dump.to_str().unwrap()], &arguments[..]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let results = json(&output)["results"].as_array().unwrap().clone();
    let rows = |set: &str| results.iter().filter(|row| row["set"] == set).collect::<Vec<_>>();
    assert!(rows("default").iter().all(|row| row["hits"] == 4 && row["bytes"] == 0x8000));
    assert_eq!((rows("input-warm").len(), rows("input-cold").len()), (2, 2));
}

/// A copy of a process's memory says nothing of itself: the maps file has the addresses.
#[test]
fn a_copy_of_a_process_is_read_by_its_maps() {
    let dir = tempfile::tempdir().unwrap();
    let (mem, maps) = (dir.path().join("mem"), dir.path().join("maps"));
    let mut bytes = vec![1u8; 0x2000];
    for (at, word) in (0x1100..).step_by(8).zip([1u64, 0x7f00_0000_0100, 0, 0x40_1001, 928, 40]) {
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    fs::write(&mem, bytes).unwrap();
    let lines = "400000-401000 rw-p 0 0:0 0\n500000-900000 ---p 0 0:0 0\n7f0000000000-7f0000001000 rw-p 0 0:0 0\n";
    fs::write(&maps, lines).unwrap();
    let run = |verb: &str, more: &[&str]| {
        let input = [verb, mem.to_str().unwrap(), "--maps", maps.to_str().unwrap()];
        tensorcarve(&[&input[..], more].concat())
    };
    let info = run("info", &["--format", "json"]);
    assert_eq!((info.status.code(), stderr(&info)), (Some(0), String::new()));
    let info = json(&info);
    assert_eq!((&info["format"], &info["addresses"], &info["pid"]), (&"raw".into(), &"virtual".into(), &Value::Null));
    assert_eq!(info["ranges"][1], serde_json::json!({"start": "0x7f0000000000", "end": "0x7f0000001000"}));
    let scan = run("scan", &["--signature", "cpython.type", "--format", "json"]);
    assert_eq!(json(&scan)["hits"][0]["address"], "0x7f0000000100");
    assert_eq!(json(&scan)["hits"][0]["file_offset"], "0x1108");
    let spaces = run("spaces", &[]);
    assert_eq!(spaces.status.code(), Some(2));
    assert!(stderr(&spaces).contains("which has no page tables"), "{}", stderr(&spaces));
    let out = dir.path().join("out");
    let recover = run("recover", &["-o", out.to_str().unwrap()]);
    assert_eq!(recover.status.code(), Some(1));
    assert!(stderr(&recover).contains("in the process image"), "{}", stderr(&recover));
    let recovery: Value = serde_json::from_slice(&fs::read(out.join("recovery.json")).unwrap()).unwrap();
    assert_eq!((&recovery["dump"]["addresses"], &recovery["spaces"]), (&"virtual".into(), &serde_json::json!([])));

    assert_eq!(run("info", &["--input-format", "raw"]).status.code(), Some(2));
    fs::write(&maps, "400000-401000 rw-p 0 0:0 0\n").unwrap();
    let short = run("info", &[]);
    assert_eq!(short.status.code(), Some(2));
    assert!(stderr(&short).contains("has 8192 bytes") && stderr(&short).contains("4096 (all"), "{}", stderr(&short));
    fs::remove_file(&maps).unwrap();
    let gone = run("info", &[]);
    assert!(stderr(&gone).contains("its maps file") && stderr(&gone).contains("no such file"), "{}", stderr(&gone));
}

/// sysfs reads, but does not map.
#[test]
fn a_file_that_cannot_be_mapped_is_copied_first() {
    let path = "/sys/kernel/notes";
    let Ok(bytes) = fs::read(path) else {
        println!("skipped: there is no {path}");
        return;
    };
    let output = tensorcarve(&["info", path, "--input-format", "raw", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(json(&output)["memory"], bytes.len());
    assert!(stderr(&output).contains("cannot map files"), "{}", stderr(&output));
}

#[test]
fn the_index_changes_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index");
    let with = |arguments: &[&str]| {
        let all = [arguments, &["--index", index.to_str().unwrap(), "-v", "--format", "json"]].concat();
        tensorcarve(&all)
    };
    let files = || -> Vec<_> { std::fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path()).collect() };
    let plain = tensorcarve(&["spaces", SHIPPED, "--no-index", "-v", "--format", "json"]);
    let first = with(&["spaces", SHIPPED]);
    assert_eq!(files().len(), 1);
    let second = with(&["spaces", SHIPPED]);
    assert!(plain.stdout == first.stdout && first.stdout == second.stdout);
    let scans = |output: &Output| stderr(output).contains("     scan ");
    assert!(scans(&plain) && scans(&first) && !scans(&second));
    // One that is damaged is noticed, and made again.
    let path = files().remove(0);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let third = with(&["spaces", SHIPPED]);
    assert!(stderr(&third).contains("it is damaged"), "{third:?}");
    assert!(third.stdout == plain.stdout && std::fs::read(&path).unwrap() == whole);
    // Other signatures see something else in the same dump.
    let signatures = dir.path().join("signatures");
    std::fs::create_dir(&signatures).unwrap();
    std::fs::write(signatures.join("own.toml"), "[[needle]]\nname = \"own\"\ntext = \"never there\"\n").unwrap();
    let own = with(&["spaces", SHIPPED, "--signatures", signatures.to_str().unwrap()]);
    assert!(own.stdout == plain.stdout && scans(&own), "{own:?}");
    assert_eq!(files().len(), 2);
    let recovered = |name: &str, arguments: &[&str]| {
        let out = dir.path().join(name);
        let output =
            tensorcarve(&[&["recover", SHIPPED, "--hash", "none", "-o", out.to_str().unwrap()], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        let files = ["recovery.json", "models/m0/model.json", "models/m0/model.safetensors"];
        files.map(|file| std::fs::read(out.join(file)).unwrap())
    };
    let indexed = recovered("indexed", &["--index", index.to_str().unwrap()]);
    assert!(indexed == recovered("plain", &["--no-index"]));
    // What `recover` learned of the Pythons is in the index as well.
    let processes = with(&["ps", SHIPPED, "--python"]);
    assert!(!stderr(&processes).contains(" cpython "), "{processes:?}");
    let plain = tensorcarve(&["ps", SHIPPED, "--python", "--no-index", "-v", "--format", "json"]);
    assert!(stderr(&plain).contains(" cpython ") && processes.stdout == plain.stdout);
}

#[test]
fn a_line_that_no_maps_file_has_is_not_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mem, maps) = (dir.path().join("mem"), dir.path().join("maps"));
    fs::write(&mem, vec![1u8; 0x1000]).unwrap();
    let line = "400000-401000 rw-p 0 0:0 0 /";
    fs::write(&maps, [line.as_bytes(), &[b'a'; 1 << 17][..]].concat()).unwrap();
    let output = tensorcarve(&["info", mem.to_str().unwrap(), "--maps", maps.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no line of a maps file is so long"), "{}", stderr(&output));
    assert!(stderr(&output).contains("line 1 "), "{}", stderr(&output));
}

#[test]
fn ranges_without_end_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (dump, out) = (dir.path().join("ranges.lime"), dir.path().join("out"));
    let range = |number: u64| {
        let (first, last) = (number * 16, number * 16 + 7);
        [b"EMiL\x01\0\0\0", &first.to_le_bytes()[..], &last.to_le_bytes(), &[0; 16]].concat()
    };
    fs::write(&dump, (0..70_000).flat_map(range).collect::<Vec<u8>>()).unwrap();
    let info = tensorcarve(&["info", dump.to_str().unwrap()]);
    assert!(stdout(&info).ends_with("65904 further ranges; --format json lists all\n"));
    let info = json(&tensorcarve(&["info", dump.to_str().unwrap(), "--format", "json"]));
    assert_eq!(info["ranges"].as_array().unwrap().len(), 70_000);
    let output = tensorcarve(&["recover", dump.to_str().unwrap(), "-o", out.to_str().unwrap(), "--no-index"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for (file, key) in [("recovery.json", "dump"), ("manifest.json", "input")] {
        let document: Value = serde_json::from_slice(&fs::read(out.join(file)).unwrap()).unwrap();
        let document = &document[key];
        assert_eq!(document["ranges"].as_array().unwrap().len(), 1 << 16, "{file}");
        let left_out = serde_json::json!({"count": 70_000 - (1 << 16), "bytes": 8 * (70_000 - (1 << 16))});
        assert_eq!(document["ranges_left_out"], left_out, "{file}");
    }
}
