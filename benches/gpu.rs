//! Everything that is measured on a GPU, in one command: `cargo bench --bench gpu`.
//!
//! It prints a table, and writes the same as JSON to the file that `--out` names. It takes under ten minutes, also on Mesa's
//! software adapter, for which memory is smaller. Each row has a speed and that with which it is compared:
//!
//! - `copies` from staging to the device, filled once, against nothing: what the bus can do;
//! - `upload`, the same with the staging filled from the dump, against `copies`;
//! - for each set of signatures the whole `scan` on memory that is not on the device yet, against `upload`, and that of the best
//!   backend of the CPU in turns with it, against reading;
//! - `resident`, the scan of what is on the device by the device's clock, and the `sweep` for 5,000 values, both against a sum of
//!   the same bytes;
//! - `recover` of the shipped dump, against that with the best backend of the CPU, in turns. These two are seconds.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark may simply fail")]

#[allow(dead_code, reason = "`bench` and `devices` use the rest")]
#[path = "../src/cli/machine.rs"]
mod machine;
#[allow(dead_code, reason = "other benchmarks use the rest")]
#[path = "../src/cli/bench/memory.rs"]
mod memory;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use machine::Machine;
use memory::{TILE, Tile, structures, sweep_values};
use serde::Serialize;
use tensorcarve::report::rfc3339;
use tensorcarve::scan::gpu::{self, AdapterInfo};
use tensorcarve::scan::{Backend, BackendChoice, PointerSet, read, scan};
use tensorcarve::signature::Signatures;

/// Values of the sweep.
const VALUES: usize = 5000;
/// MiB of made-up memory, on a real GPU and on a software adapter.
const SIZE: usize = 4096;
const SOFTWARE_SIZE: usize = 64;

#[derive(Parser)]
struct Arguments {
    /// Write the measurements to this file, as JSON
    #[arg(long)]
    out: Option<PathBuf>,
    /// MiB of made-up memory
    #[arg(long)]
    size: Option<usize>,
    /// Rounds, whose median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// The command that recovers
    #[arg(long, default_value = env!("CARGO_BIN_EXE_tensorcarve"))]
    tensorcarve: PathBuf,
    /// Cargo's own
    #[arg(long, hide = true)]
    bench: bool,
}

/// A measurement.
#[derive(Serialize)]
struct Row {
    what: String,
    /// 10^9 bytes a second, or seconds of a `recover`.
    value: f64,
    /// What that is compared with, and its value.
    against: &'static str,
    reference: Option<f64>,
    /// The value by the reference.
    ratio: Option<f64>,
}

/// What is written.
#[derive(Serialize)]
struct Record {
    date: String,
    version: &'static str,
    card: String,
    driver: String,
    machine: Machine,
    mib: usize,
    rounds: usize,
    rows: Vec<Row>,
}

fn main() {
    let arguments = Arguments::parse();
    if let Err(error) = BackendChoice::Gpu.resolve() {
        eprintln!("error: {error}\n  hint: {}", error.hint());
        std::process::exit(1);
    }
    let adapter = gpu::adapters().into_iter().find(|adapter| adapter.would_be_used).unwrap();
    let tiles = (arguments.size.unwrap_or(if adapter.is_software { SOFTWARE_SIZE } else { SIZE }) << 20).div_ceil(TILE);
    let mut rows = Vec::new();
    for (name, signatures) in sets() {
        measure_set(name, &signatures, tiles, &arguments, &mut rows);
    }
    recover(&arguments, &mut rows);
    let record = Record::new(&adapter, tiles * TILE >> 20, arguments.rounds, rows);
    print!("{}", record.table());
    if let Some(out) = &arguments.out {
        fs::write(out, serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
    }
}

fn sets() -> [(&'static str, Signatures); 4] {
    let built_in = Signatures::load(None).unwrap();
    let cpython = Signatures::from_texts([
        ("cpython.toml", include_str!("../signatures/cpython.toml")),
        ("x86_64.toml", include_str!("../signatures/x86_64.toml")),
    ]);
    [
        ("cpython", cpython.unwrap()),
        ("default", built_in),
        ("16", structures(16).unwrap()),
        ("64", structures(64).unwrap()),
    ]
}

/// All rows of one set of signatures; the bus and the sweep are the same for all, and measured with the first.
fn measure_set(name: &str, signatures: &Signatures, tiles: usize, arguments: &Arguments, rows: &mut Vec<Row>) {
    let mut tile = Tile::new();
    tile.plant(signatures);
    let memory = tile.memory(tiles).unwrap();
    let best = Backend::detect_best();
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=arguments.rounds {
        let (gpu, gpu_time) = timed(|| scan(&memory, signatures, Backend::Gpu, &|_| {}));
        let (cpu, cpu_time) = timed(|| scan(&memory, signatures, best, &|_| {}));
        let (_, read_time) = timed(|| read(&memory));
        assert!(gpu == cpu, "{name}: the GPU finds something else");
        assert_eq!(gpu::given_up(), None);
        // The first round compiles the shader, and reads all memory for the first time.
        if round > 0 {
            times.iter_mut().zip([gpu_time, cpu_time, read_time]).for_each(|(times, time)| times.push(time));
        }
    }
    let values = PointerSet::new(&sweep_values(VALUES));
    let measured = gpu::measure(&memory, signatures, &values).unwrap();
    let speed = |time: Duration| memory.size() as f64 / 1e9 / time.as_secs_f64();
    let resident_speed = |time: Duration| measured.resident_bytes as f64 / 1e9 / time.as_secs_f64();
    let [gpu, cpu, reading] = times.map(|times| speed(median(times)));
    let (copies, upload) = (speed(measured.copies), speed(measured.upload));
    let sum = measured.sum.map(resident_speed);
    if rows.is_empty() {
        rows.push(Row::new("copies".to_owned(), copies, "", None));
        rows.push(Row::new("upload".to_owned(), upload, "copies", Some(copies)));
        let sweep = measured.sweep.map(resident_speed);
        rows.extend(sweep.map(|sweep| Row::new(format!("sweep for {VALUES} values, resident"), sweep, "sum", sum)));
    }
    rows.push(Row::new(format!("scan {name}"), gpu, "upload", Some(upload)));
    rows.push(Row::new(format!("scan {name}, {best}"), cpu, "reading", Some(reading)));
    let resident = measured.scan.map(resident_speed);
    rows.extend(resident.map(|resident| Row::new(format!("scan {name}, resident"), resident, "sum", sum)));
}

/// Both ways to recover the shipped dump, in turns.
fn recover(arguments: &Arguments, rows: &mut Vec<Row>) {
    let dir = tempfile::tempdir().unwrap();
    let dump = dir.path().join("dump.lime");
    let packed = Path::new("tests/data/cifar10-pdb.lime.zst");
    io::copy(&mut zstd::Decoder::new(File::open(packed).unwrap()).unwrap(), &mut File::create(&dump).unwrap()).unwrap();
    let run = |backend: &str| {
        let mut command = Command::new(&arguments.tensorcarve);
        command.arg("recover").arg(&dump).arg("-o").arg(dir.path().join("out"));
        command.args(["--backend", backend, "--overwrite", "--hash", "none", "--no-index", "-q", "--no-progress"]);
        let (status, time) = timed(|| command.stdout(Stdio::null()).status().unwrap());
        assert!(status.success(), "recover --backend {backend}: {status}");
        time
    };
    let [mut gpu, mut cpu] = [const { Vec::new() }; 2];
    for _ in 0..arguments.rounds.min(3) {
        gpu.push(run("gpu"));
        cpu.push(run("auto"));
    }
    let [gpu, cpu] = [gpu, cpu].map(|times| median(times).as_secs_f64());
    rows.push(Row::new("recover, s".to_owned(), gpu, "recover, auto", Some(cpu)));
}

impl Row {
    fn new(what: String, value: f64, against: &'static str, reference: Option<f64>) -> Self {
        Self { what, value, against, reference, ratio: reference.map(|reference| value / reference) }
    }
}

impl Record {
    fn new(adapter: &AdapterInfo, mib: usize, rounds: usize, rows: Vec<Row>) -> Self {
        Self {
            date: rfc3339(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION"),
            card: adapter.name.clone(),
            driver: format!("{} {}", adapter.driver, adapter.driver_info),
            machine: Machine::detect(),
            mib,
            rounds,
            rows,
        }
    }

    /// As Markdown.
    fn table(&self) -> String {
        let Self { date, card, driver, machine, mib, rounds, .. } = self;
        let threads = machine.threads;
        let cpu = machine.cpu.as_deref().unwrap_or("unknown CPU");
        let mut text = format!("{card}, {driver}; {cpu}, {threads} threads; {mib} MiB, {rounds} rounds, {date}\n\n");
        text += "| what | GB/s | against | GB/s | ratio |\n|---|---|---|---|---|\n";
        let number = |number: Option<f64>| number.map_or(String::new(), |number| format!("{number:.2}"));
        for Row { what, value, against, reference, ratio } in &self.rows {
            text += &format!("| {what} | {value:.2} | {against} | {} | {} |\n", number(*reference), number(*ratio));
        }
        text
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
