//! Time and memory of the commands by the size of the dump, as Markdown tables: of `scan` and `recover`, and with `--verbs`
//! of all commands that ask a question, with and without an index.
//!
//! `cargo bench --bench scaling -- 0.25 1 4 16` takes sizes in GB (10^9 bytes). Each dump is the shipped one, a machine
//! of 256 MB, with more memory added above 4 GiB: dense, or sparse with holes in the file for fifteen parts
//! of sixteen; with `--verbs` it is what the files of /usr hold. Files are made under `target/tmp`, one at a time, and are in the page cache when they are measured.
//! Of each command the fastest of three runs counts, and the most memory of all of them. Memory is
//! what the process has beside the mapped file: RssAnon and RssShmem of /proc/PID/status, looked at every millisecond.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark may simply fail")]

#[allow(dead_code, reason = "other benchmarks use the rest")]
#[path = "../src/cli/bench/memory.rs"]
mod memory;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use memory::{TILE, Tile};
use tensorcarve::addr::FRAME_SIZE;
use tensorcarve::signature::Signatures;

const RUNS: usize = 3;
/// The first address of what is added.
const ABOVE: u64 = 4 << 30;
/// One tile in this many is in a sparse file.
const SPARSE: usize = 16;

/// Where files are taken from.
const FILES: &str = "/usr";
/// The commands that ask a question, and their arguments beside the dump.
const VERBS: [&[&str]; 8] = [
    &["recover", "--overwrite", "--hash", "none", "-o", "OUT"],
    &["ps"],
    &["ps", "--python"],
    &["maps", "--pid", "188"],
    &["core", "--overwrite", "--pid", "188", "-o", "OUT"],
    &["stack"],
    &["gc"],
    &["objects"],
];

fn main() {
    let asks_verbs = std::env::args().any(|argument| argument == "--verbs");
    let sizes: Vec<f64> = std::env::args().skip(1).filter_map(|size| size.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![0.25, 1.0] } else { sizes };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut shipped = Vec::new();
    let packed = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cifar10-pdb.lime.zst")).unwrap();
    io::copy(&mut zstd::Decoder::new(packed).unwrap(), &mut shipped).unwrap();
    let mut tile = Tile::new();
    tile.plant(&Signatures::load(None).unwrap());
    let tile = tile.bytes();
    let path = dir.path().join("dump.lime");
    if asks_verbs {
        for size in sizes {
            let len = ((size * 1e9) as u64).saturating_sub(shipped.len() as u64) / FRAME_SIZE * FRAME_SIZE;
            write_files(&path, &shipped, len);
            io::copy(&mut File::open(&path).unwrap(), &mut io::sink()).unwrap();
            compare_verbs(size, path.to_str().unwrap(), dir.path());
        }
        return;
    }
    // The hits of the shipped dump, and those with one tile: what is planted may match more than one signature.
    let hits = [0, 1].map(|tiles| {
        write(&path, &shipped, tile, tiles, false);
        measure(&["scan", path.to_str().unwrap(), "--format", "jsonl"]).lines
    });
    println!("| dump | on disk | scan | GB/s | memory | recover | memory |\n|---|---|---|---|---|---|---|");
    for size in sizes {
        for is_sparse in [false, true] {
            let tiles = ((size * 1e9) as usize).saturating_sub(shipped.len()) / TILE;
            if tiles == 0 && is_sparse {
                continue;
            }
            let written = write(&path, &shipped, tile, tiles, is_sparse);
            io::copy(&mut File::open(&path).unwrap(), &mut io::sink()).unwrap();
            let dump = path.to_str().unwrap();
            let scan = measure(&["scan", dump, "--format", "jsonl"]);
            assert_eq!(scan.lines, hits[0] + written as u64 * (hits[1] - hits[0]), "hits");
            let out = dir.path().join("out");
            let options = ["--overwrite", "--hash", "none", "--format", "jsonl"];
            let recover = measure(&[&["recover", dump, "-o", out.to_str().unwrap()], &options[..]].concat());
            assert_eq!(recover.lines, 1, "models");
            let bytes = fs::metadata(&path).unwrap().len() as f64;
            let on_disk = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) as f64 * 512.0;
            println!(
                "| {size} GB, {} | {:.2} GB | {:.2} s | {:.1} | {} MB | {:.2} s | {} MB |",
                if is_sparse { "sparse" } else { "dense" },
                on_disk / 1e9,
                scan.time.as_secs_f64(),
                bytes / 1e9 / scan.time.as_secs_f64(),
                scan.memory / 1000,
                recover.time.as_secs_f64(),
                recover.memory / 1000,
            );
        }
    }
}

/// All commands on one dump, in turns: each without an index, and with the one that the first command made.
fn compare_verbs(size: f64, dump: &str, dir: &Path) {
    let (out, index) = (dir.join("verb-out"), dir.join("index"));
    let scan = ["scan", dump, "--format", "jsonl"];
    let arguments = |verb: &[&'static str], index: &[&str]| -> Vec<String> {
        let own = verb.iter().skip(1).map(|word| if *word == "OUT" { out.join(verb[0]) } else { word.into() });
        let own = own.map(|word| word.to_str().unwrap().to_owned());
        [verb[0], dump].iter().chain(index).map(ToString::to_string).chain(own).collect()
    };
    fs::create_dir_all(&out).unwrap();
    let indexed = ["--index", index.to_str().unwrap()];
    let commands: Vec<[Vec<String>; 2]> =
        VERBS.iter().map(|verb| [arguments(verb, &["--no-index"]), arguments(verb, &indexed)]).collect();
    let mut fastest = vec![[Duration::MAX; 2]; VERBS.len()];
    let (mut memory, mut fastest_scan) = (vec![0; VERBS.len()], Duration::MAX);
    for _ in 0..=RUNS {
        fastest_scan = fastest_scan.min(run(&scan).time);
        for ((commands, fastest), memory) in commands.iter().zip(&mut fastest).zip(&mut memory) {
            for (command, fastest) in commands.iter().zip(fastest) {
                let measured = run(&command.iter().map(String::as_str).collect::<Vec<_>>());
                *fastest = measured.time.min(*fastest);
                *memory = measured.memory.max(*memory);
            }
        }
    }
    let seconds = |time: Duration| time.as_secs_f64();
    println!("{size} GB, scan {:.2} s\n", seconds(fastest_scan));
    println!("| command | without an index | of the scan | with one | memory |\n|---|---|---|---|---|");
    for ((verb, [without, with]), memory) in VERBS.iter().zip(fastest).zip(memory) {
        let words: Vec<&str> =
            verb.iter().copied().filter(|word| !["--overwrite", "-o", "OUT"].contains(word)).collect();
        println!(
            "| `{}` | {:.2} s | {:.2} | {:.3} s | {} MB |",
            words.join(" "),
            seconds(without),
            seconds(without) / seconds(fastest_scan),
            seconds(with),
            memory / 1000,
        );
    }
}

/// Writes the shipped dump and a range of `tiles` behind it; gives how many of them are not holes.
fn write(path: &Path, shipped: &[u8], tile: &[u8], tiles: usize, is_sparse: bool) -> usize {
    let mut file = File::create(path).unwrap();
    file.write_all(shipped).unwrap();
    if tiles == 0 {
        return 0;
    }
    let last = ABOVE + (tiles * TILE) as u64 - 1;
    file.write_all(&[b"EMiL\x01\0\0\0", &ABOVE.to_le_bytes()[..], &last.to_le_bytes(), &[0; 8]].concat()).unwrap();
    let start = shipped.len() + 32;
    file.set_len((start + tiles * TILE) as u64).unwrap();
    let kept: Vec<usize> = (0..tiles).filter(|n| !is_sparse || n % SPARSE == 0).collect();
    for n in &kept {
        file.seek(SeekFrom::Start((start + n * TILE) as u64)).unwrap();
        file.write_all(tile).unwrap();
    }
    file.sync_all().unwrap();
    kept.len()
}

/// Writes the shipped dump and a range behind it with the files of this machine, each from a frame on, as a page cache holds them:
/// made-up memory has far more page tables than that of a machine.
fn write_files(path: &Path, shipped: &[u8], len: u64) {
    let mut out = File::create(path).unwrap();
    out.write_all(shipped).unwrap();
    out.write_all(&[b"EMiL\x01\0\0\0", &ABOVE.to_le_bytes()[..], &(ABOVE + len - 1).to_le_bytes(), &[0; 8]].concat())
        .unwrap();
    let start = shipped.len() as u64 + 32;
    let mut at = 0;
    let mut folders = vec![Path::new(FILES).to_owned()];
    while at < len {
        // Where the files are too few, they are taken again.
        let folder = folders.pop().unwrap_or_else(|| Path::new(FILES).to_owned());
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if let Some(file) = File::open(entry.path()).ok().filter(|_| kind.is_file() && at < len) {
                out.seek(SeekFrom::Start(start + at)).unwrap();
                let copied = io::copy(&mut file.take(len - at), &mut out).unwrap();
                at += copied.next_multiple_of(FRAME_SIZE);
            }
        }
    }
    out.set_len(start + len).unwrap();
    out.sync_all().unwrap();
}

/// What a command took.
struct Measured {
    time: Duration,
    /// 10^3 bytes beside the mapped file.
    memory: u64,
    /// Lines on stdout.
    lines: u64,
}

fn measure(arguments: &[&str]) -> Measured {
    let runs = (0..RUNS).map(|_| run(arguments));
    runs.reduce(|best, next| {
        assert_eq!(best.lines, next.lines);
        Measured { time: best.time.min(next.time), memory: best.memory.max(next.memory), ..best }
    })
    .unwrap()
}

fn run(arguments: &[&str]) -> Measured {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorcarve"));
    command.args(arguments).args(["-q", "--no-progress"]).stdout(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut stdout = child.stdout.take().unwrap();
    let watcher = thread::spawn(move || {
        let mut most = 0;
        // The lines are gone when the process has ended.
        while let Some(now) = memory_of(&status) {
            most = most.max(now);
            thread::sleep(Duration::from_millis(1));
        }
        most
    });
    let mut text = String::new();
    io::Read::read_to_string(&mut stdout, &mut text).unwrap();
    let exit = child.wait().unwrap();
    let time = start.elapsed();
    assert!(exit.success(), "{arguments:?}: {exit}");
    Measured { time, memory: watcher.join().unwrap(), lines: text.lines().count() as u64 }
}

/// Anonymous and shared memory of a process, in 10^3 bytes.
fn memory_of(status: &str) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let value = |key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok())
    };
    Some((value("RssAnon:")? + value("RssShmem:")?) * 1024 / 1000)
}
