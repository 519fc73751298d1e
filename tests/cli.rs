//! The command line: exit codes, messages that help, and nothing touched where it refuses.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

mod mounted;
mod program;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use mounted::Mounted;
use program::program;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cifar10-pdb.lime.zst");

fn tensorcarve<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Output {
    program().args(arguments).output().unwrap()
}

fn recover(dump: &Path, out: &Path, more: &[&str]) -> Output {
    tensorcarve([&["recover", dump.to_str().unwrap(), "-o", out.to_str().unwrap()], more].concat())
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The exit code is that of an error, the message says the words, and stdout is empty.
fn refused(output: &Output, words: &[&str]) {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(output.stdout.is_empty());
    assert!(message.starts_with("error: ") && message.contains("\nhint: "), "{message}");
    assert!(!message.contains("panicked") && !message.contains("RUST_BACKTRACE"), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
}

/// A small LiME dump without anything in it.
fn empty_dump(folder: &Path) -> PathBuf {
    let path = folder.join("holiday.jpg");
    let (start, last) = (0x1000u64, 0x1000 + 0x4_0000 - 1u64);
    let header = [b"EMiL\x01\0\0\0", &start.to_le_bytes()[..], &last.to_le_bytes(), &[0; 8]].concat();
    fs::write(&path, [header, vec![0; 0x4_0000]].concat()).unwrap();
    path
}

#[test]
fn dumps_that_are_none_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    refused(&recover(&dir.path().join("none"), &out, &[]), &["no such file"]);
    refused(&recover(&file("empty", b""), &out, &[]), &["is empty"]);
    refused(&recover(dir.path(), &out, &[]), &["folder"]);
    refused(&recover(&file("small", &[1; 99]), &out, &[]), &["99 bytes"]);
    let jpeg = [&b"\xff\xd8\xff\xe0\0\x10JFIF\0"[..], &[0; 9000]].concat();
    refused(&recover(&file("picture", &jpeg), &out, &[]), &["JPEG", "--input-format raw"]);
    refused(&recover(&file("cut.zst", &fs::read(SHIPPED).unwrap()[..100_000]), &out, &[]), &["ends early"]);
    assert!(!out.exists());
}

#[test]
fn files_for_a_dump_that_has_no_mapped_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (dump, out) = (empty_dump(dir.path()), dir.path().join("out"));
    refused(&recover(&dump, &out, &["--file", "model.safetensors"]), &["a dump of a whole machine", "omit --file"]);
    refused(&recover(&dump, &out, &["--sysroot", "/"]), &["a dump of a whole machine"]);
    assert!(!out.exists());
}

#[test]
fn an_output_folder_that_is_not_ours_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "all of it").unwrap();
    refused(&recover(&dump, &out, &[]), &["not empty", "--overwrite"]);
    refused(&recover(&dump, &out, &["--overwrite"]), &["no manifest.json", "-o"]);
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["thesis.tex"]);
    assert_eq!(fs::read_to_string(out.join("thesis.tex")).unwrap(), "all of it");
    refused(&recover(&dump, &dump, &[]), &["not a folder"]);
    refused(&recover(&dump, &dump.join("below"), &[]), &["part of the path is a file"]);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    // Nobody, not even root, makes folders here.
    refused(&recover(&dump, Path::new("/proc/tensorcarve"), &[]), &["/proc/tensorcarve"]);
    let out = dir.path().join("read-only");
    fs::create_dir(&out).unwrap();
    let Some(_mounted) = Mounted::new(&out, "ro,size=64k") else { return };
    refused(&recover(&dump, &out, &[]), &["read-only"]);
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let Some(_mounted) = Mounted::new(&disk, "size=64k") else { return };
    let filler = fs::File::create(disk.join("filler")).unwrap();
    while std::io::Write::write(&mut &filler, &[1; 4096]).is_ok() {}
    refused(&recover(&dump, &disk.join("out"), &[]), &["not enough disk space", "larger disk"]);
    let names: Vec<_> = fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["filler"]);
}

#[test]
fn bad_signatures_are_named_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let out = dir.path().join("out");
    let signatures = dir.path().join("signatures");
    fs::create_dir(&signatures).unwrap();
    let option = ["--signatures", signatures.to_str().unwrap()];
    refused(&recover(&dump, &out, &option), &["no .toml file"]);
    fs::write(signatures.join("mine.toml"), "# mine\n[[needle]]\nname = 7\n").unwrap();
    refused(&recover(&dump, &out, &option), &["mine.toml:3:8", "signatures/README.md"]);
    let file = ["--signatures", signatures.join("mine.toml").to_str().unwrap()].map(str::to_owned);
    refused(&recover(&dump, &out, &file.each_ref().map(String::as_str)), &["mine.toml:3:8"]);
    assert!(!out.exists());
}

#[test]
fn help_teaches_and_wrong_usage_is_an_error() {
    for (arguments, words) in [
        (&["--help"][..], &["recover", "info", "spaces", "Exit codes", "load.py"][..]),
        (&["recover", "--help"], &["Examples:", "--output-dir", "--overwrite", "avx512", "recovery.json"]),
        (&["info", "--help"], &["Examples:"]),
        (&["spaces", "--help"], &["Examples:", "--threads"]),
        (&["scan", "--help"], &["Examples:", "--explain", "START-END", "deferred"]),
        (&["devices", "--help"], &["Examples:"]),
        (&["bench", "--help"], &["Examples:", "needle-200", "OF READ"]),
        (&["--version"], &[env!("CARGO_PKG_VERSION")]),
    ] {
        let output = tensorcarve(arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no {word:?} in: {text}");
        }
    }
    for arguments in [&[][..], &["recover"], &["info", "x", "--format", "csv"], &["recover", "x", "-j", "0"]] {
        assert_eq!(tensorcarve(arguments).status.code(), Some(2), "{arguments:?}");
    }
    refused(&tensorcarve(["recover", SHIPPED, "--input-format", "elf", "-o", "/tmp/tensorcarve-none"]), &["ELF"]);
}

#[test]
fn shells_and_manuals_know_every_command() {
    let help = String::from_utf8(tensorcarve(["--help"]).stdout).unwrap();
    let (_, commands) = help.split_once("Commands:").unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty() && *name != "help")
        })
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    for shell in ["bash", "zsh", "fish"] {
        let output = tensorcarve(["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        for word in commands.iter().chain(&["without-python"]) {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(tensorcarve(["man".as_ref(), dir.path()]).status.code(), Some(0));
    for command in &commands {
        let page = fs::read_to_string(dir.path().join(format!("tensorcarve-{command}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") || page.contains(".SH SYNOPSIS"), "{command}");
    }
    refused(&tensorcarve(["man".as_ref(), dir.path().join("none").as_path()]), &["none", "no such folder"]);
}

/// Before any work, with what was looked for and what to do.
#[test]
fn a_gpu_that_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let out = dir.path().join("out");
    for (variable, value, word) in [
        ("VK_DRIVER_FILES", "/none", "Vulkan driver"),
        ("TENSORCARVE_GPU", "no such card", if cfg!(feature = "gpu") { "`no such card`" } else { "feature `gpu`" }),
    ] {
        let mut command = program();
        command.args(["recover".as_ref(), dump.as_os_str(), "-o".as_ref(), out.as_os_str(), "--backend".as_ref()]);
        let output = command.arg("gpu").env(variable, value).env("VK_ICD_FILENAMES", "/none").output().unwrap();
        refused(&output, &["backend gpu", word, "auto"]);
        assert!(!out.exists());
    }
}

#[test]
fn info_says_what_a_dump_is() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let output = tensorcarve(["info".as_ref(), dump.as_os_str()]);
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    assert!(text.contains("LiME") && text.contains("0x1000"), "{text}");
    let output = tensorcarve(["info".as_ref(), dump.as_os_str(), "--format".as_ref(), "json".as_ref()]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["format"], &json["memory"]), (&"lime".into(), &0x4_0000.into()));
    // Cut off within its range: used as far as it goes, and said.
    let bytes = fs::read(&dump).unwrap();
    fs::write(&dump, &bytes[..bytes.len() / 2]).unwrap();
    let output = tensorcarve(["info".as_ref(), dump.as_os_str()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).starts_with("warning: "), "{}", stderr(&output));
    let output = tensorcarve(["info".as_ref(), dump.as_os_str(), "-q".as_ref()]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(3), String::new()));
}

#[test]
fn a_dump_without_spaces_is_exit_code_1() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let output = tensorcarve(["spaces".as_ref(), dump.as_os_str(), "--format".as_ref(), "json".as_ref()]);
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["spaces"], serde_json::json!([]));
    assert!(stderr(&output).contains("no address space"), "{}", stderr(&output));
}

#[test]
fn a_dump_without_models_is_exit_code_1_and_says_how_far_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    // Without -o: a folder of the dump's name where the user is.
    let run = |arguments: &[&str]| {
        let mut command = program();
        command.current_dir(dir.path()).arg("recover").arg(&dump).args(arguments).output().unwrap()
    };
    let output = run(&["-v"]);
    let message = stderr(&output);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{message}");
    for words in ["no model found in 0 address spaces", "hint: ", "recovery.json", "scan "] {
        assert!(message.contains(words), "no {words:?} in: {message}");
    }
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.path().join("holiday.jpg.carved").join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("recovery.json")["processes"], serde_json::json!([]));
    let hash = blake3::hash(&fs::read(&dump).unwrap());
    let expected = serde_json::json!([{ "algorithm": "blake3", "digest": hash.to_hex().as_str() }]);
    assert_eq!(read("manifest.json")["input"]["hashes"], expected);
    assert_eq!(run(&[]).status.code(), Some(2));
    let output = run(&["--overwrite", "-q", "--hash", "none", "--format", "json", "-j", "1", "--backend", "scalar"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), String::new()));
    assert_eq!(output.stdout, fs::read(dir.path().join("holiday.jpg.carved/recovery.json")).unwrap());
    assert_eq!(read("manifest.json")["input"]["hashes"], serde_json::json!([]));
}

/// The digests that others compute of the file, as it was named, and of its pieces.
#[test]
fn hashes_of_the_dump_are_those_of_coreutils() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let arguments = ["-q", "--no-index", "--hash", "sha256,sha256-pieces=16MiB,md5", "--hash", "blake3,sha256"];
    let output = recover(Path::new(SHIPPED), &out, &arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let hashes = manifest["input"]["hashes"].as_array().unwrap();
    let names: Vec<&str> = hashes.iter().map(|hash| hash["algorithm"].as_str().unwrap()).collect();
    assert_eq!(names, ["sha256", "sha256-pieces", "md5", "blake3"]);
    let shell = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).env("DUMP", SHIPPED).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(hashes[0]["digest"], shell("sha256sum < \"$DUMP\""));
    assert_eq!(hashes[2]["digest"], shell("md5sum < \"$DUMP\""));
    assert_eq!(hashes[3]["digest"], blake3::hash(&fs::read(SHIPPED).unwrap()).to_hex().as_str());
    assert!(hashes[1]["digest"].is_null());
    let mut end = 0;
    for piece in hashes[1]["pieces"].as_array().unwrap() {
        let [offset, length] = ["offset", "length"].map(|key| piece[key].as_u64().unwrap());
        let dd = format!(
            "dd if=\"$DUMP\" iflag=skip_bytes,count_bytes skip={offset} count={length} status=none | sha256sum"
        );
        assert_eq!((offset, &piece["digest"]), (end, &shell(&dd).into()));
        assert!(length == 16 << 20 || offset + length == fs::metadata(SHIPPED).unwrap().len());
        end += length;
    }
    assert_eq!(end, fs::metadata(SHIPPED).unwrap().len());
}

#[test]
fn hashes_that_cannot_be_had_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (hash, words) in [
        ("sha1", "sha256-pieces=SIZE"),
        ("sha256-pieces", "sha256-pieces=SIZE"),
        ("sha256-pieces=4KiB", "at least 16777216 bytes"),
        ("sha256-pieces=64Mib/s", "64MiB"),
        ("none,md5", "can't be combined"),
    ] {
        let output = recover(&empty_dump(dir.path()), &out, &["--hash", hash]);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with("error: ") && message.contains(words), "{message}");
        assert!(output.stdout.is_empty() && !out.exists());
    }
}

#[test]
fn the_profile_has_every_phase_and_its_share_of_the_scan() {
    let dir = tempfile::tempdir().unwrap();
    let said = stderr(&recover(Path::new(SHIPPED), &dir.path().join("out"), &["-v", "--threads", "1", "--no-index"]));
    let line = |name: &str| -> Vec<&str> {
        let lines = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.into_iter().find(|words| words.first() == Some(&name)).unwrap_or_else(|| panic!("no {name} in: {said}"))
    };
    let number = |word: &str| word.trim_end_matches('%').parse::<f64>().unwrap();
    let scan = line("scan");
    let seconds = number(scan[1]);
    // 255 MiB of memory; times are rounded to milliseconds.
    assert!(scan[4] == "GB/s" && (number(scan[3]) * seconds / 0.2678 - 1.0).abs() < 0.1, "{said}");
    for name in ["paging", "cpython", "tensors", "write"] {
        let words = line(name);
        let share = words.iter().position(|word| word.ends_with('%')).unwrap_or_else(|| panic!("no share: {said}"));
        assert_eq!(words[share + 1..], ["of", "the", "scan"], "{said}");
        // Both times are within half a millisecond of what is printed, the share within half a percent.
        let time = number(words[1]);
        let least = 100.0 * (time - 0.0005) / (seconds + 0.0005) - 0.5001;
        let most = 100.0 * (time + 0.0005) / (seconds - 0.0005) + 0.5001;
        assert!((least..=most).contains(&number(words[share])), "{said}");
    }
    assert!(line("unpack").len() >= 3 && said.contains("blake3 of the dump file: "), "{said}");
}

#[test]
fn a_reader_that_goes_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let dump = empty_dump(dir.path());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = program();
    command.arg("info").arg(&dump).stdout(writer).stderr(Stdio::piped());
    let output = command.output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

/// Stopped as soon as the dump is mapped, so that it is cut off in the middle of the work.
#[test]
fn a_dump_that_is_cut_off_meanwhile_is_said_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("large.raw");
    let out = dir.path().join("out");
    for verb in ["recover", "scan", "spaces"] {
        let file = fs::File::create(&dump).unwrap();
        file.set_len(256 << 20).unwrap();
        let mut command = program();
        command.arg(verb).arg(&dump).args(["-j", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        if verb == "recover" {
            command.arg("-o").arg(&out);
        }
        let run = command.spawn().unwrap();
        let signal = |name: &str| Command::new("kill").args([name, &run.id().to_string()]).status().unwrap();
        let start = Instant::now();
        let maps = format!("/proc/{}/maps", run.id());
        while !fs::read_to_string(&maps).unwrap().contains("large.raw") {
            assert!(start.elapsed() < Duration::from_secs(60));
        }
        signal("-STOP");
        file.set_len(0x1234).unwrap();
        signal("-CONT");
        let output = run.wait_with_output().unwrap();
        refused(&output, &["large.raw", "268435456 bytes", "has 4660 now", "from offset 0x1234 on"]);
        assert!(!out.exists());
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let limited =
        format!("ulimit -f 40 && exec {} recover {SHIPPED} -o {}", env!("CARGO_BIN_EXE_tensorcarve"), out.display());
    // What the dump is unpacked to is a file too.
    let output = Command::new("bash").env("XDG_CACHE_HOME", dir.path()).args(["-c", &limited]).output().unwrap();
    refused(&output, &["--spool-dir"]);
    assert!(!out.exists());
}

#[test]
fn an_interrupted_run_ends_at_once_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/out");
    let mut command = program();
    command.args(["recover", SHIPPED, "-o", out.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::piped());
    let run = command.spawn().unwrap();
    let start = Instant::now();
    while !out.join(".tensorcarve-incomplete").exists() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted; the output is unchanged"), "{}", stderr(&output));
    assert!(!dir.path().join("new").exists());
}
