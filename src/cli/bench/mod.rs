//! `bench`: how fast memory is searched, as a share of how fast it can be read.

mod input;
mod memory;
mod work;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use tensorcarve::addr::PhysAddr;
use tensorcarve::dump::{self, OpenOptions, PhysicalMemory};
use tensorcarve::report::{columns, rfc3339};
use tensorcarve::scan::{self, Backend, BackendChoice, gpu};

use super::args::{PlainFormat, VerbosityArgs, backend_parser};
use super::machine::{Machine, available_memory};
use super::progress::Progress;
use super::stderr::print_message;
use super::work::in_pool;
use super::{Failure, Outcome, stdout};
use memory::{TILE, Tile};
use work::{Work, wrong_count};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve bench                           synthetic memory, all sets and backends, one thread and all
  tensorcarve bench --set default -j 1 --backend simd
  tensorcarve bench memory.lime --set default --format json
  tensorcarve bench memory.lime --set input   the file itself: mapped or read, warm or cold cache

OF READ compares the speed with a plain sum over the same bytes on the same threads. Both are
measured in turn, round by round. OF READ is the median round, MIN-MAX the lowest and the highest.
Synthetic memory has a known number of hits. On a dump, all backends must find the same hits.
Otherwise the run fails. The set `input` evicts the file from the page cache.";

/// Arguments of `bench`.
#[derive(Args)]
pub(super) struct BenchArgs {
    /// A dump to measure on [default: synthetic memory]
    #[arg(value_name = "DUMP")]
    dump: Option<PathBuf>,
    /// What to search for; can be repeated [default: all except input]
    #[arg(long = "set", value_name = "NAME", value_parser = PossibleValuesParser::new(SETS))]
    sets: Vec<String>,
    /// Backend to measure; can be repeated [default: all CPU backends, and a hardware GPU if there is one]
    #[arg(long = "backend", value_name = "NAME", value_parser = backend_parser())]
    backends: Vec<BackendChoice>,
    /// Numbers of threads, such as 1,2,4 [default: one, and one per core]
    #[arg(short = 'j', long, value_name = "N", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    threads: Vec<u16>,
    /// Size of the synthetic memory in MiB [default: 512, or a quarter of the free memory]
    #[arg(long, value_name = "MIB", conflicts_with = "dump", value_parser = clap::value_parser!(u32).range(16..))]
    size: Option<u32>,
    /// Number of rounds; the result is the median
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: PlainFormat,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

/// What can be looked for. The last one is for a dump alone, and is not among the defaults.
const SETS: [&str; 13] = [
    "default",
    "cpython",
    "typing",
    "single",
    "16",
    "64",
    "needle-1",
    "needle-20",
    "needle-200",
    "sweep-1",
    "sweep-16",
    "sweep-5000",
    INPUT,
];
const INPUT: &str = "input";
/// Bytes of made-up memory where enough is free.
const SIZE: u64 = 512 << 20;
/// A backend that would take longer for one pass is measured on a part of the memory.
const LONGEST_PASS: Duration = Duration::from_millis(600);

#[derive(Serialize)]
struct Document {
    machine: Machine,
    date: String,
    command: String,
    /// What was searched: the path of a dump, or null for made-up memory.
    dump: Option<String>,
    /// Bytes that were searched.
    size: u64,
    rounds: u16,
    results: Vec<Row>,
}

/// One measurement. Speeds are those of the middle round, in 10^9 bytes per second.
#[derive(Serialize)]
struct Row {
    backend: String,
    threads: u16,
    set: String,
    gb_per_s: f64,
    /// Speed by the speed of reading in the same round: the middle round, the lowest, the highest.
    ratio_to_read: f64,
    ratio_min: f64,
    ratio_max: f64,
    read_gb_per_s: f64,
    /// What was found; null for a part of the work that finds nothing.
    hits: Option<u64>,
    /// Bytes of a pass: less than the size where a backend is slow.
    bytes: u64,
}

impl Row {
    #[expect(clippy::too_many_arguments, reason = "one per column")]
    fn new(
        backend: &str,
        threads: u16,
        set: String,
        bytes: u64,
        speeds: &Samples,
        ratios: &[f64],
        read_gb_per_s: f64,
        hits: Option<u64>,
    ) -> Self {
        let ratios = Samples(ratios.to_vec());
        Self {
            backend: backend.to_owned(),
            threads,
            set,
            gb_per_s: speeds.median(),
            ratio_to_read: ratios.median(),
            ratio_min: ratios.iter().fold(f64::INFINITY, f64::min),
            ratio_max: ratios.iter().fold(0.0, f64::max),
            read_gb_per_s,
            hits,
            bytes,
        }
    }
}

/// 10^9 bytes per second.
fn speed(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e9 / time.as_secs_f64()
}

/// A number per round.
#[derive(Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn push(&mut self, bytes: u64, time: Duration) {
        self.0.push(speed(bytes, time));
    }

    /// Adds the speed of `pass`.
    fn add<T>(&mut self, bytes: u64, pass: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = black_box(pass());
        self.push(bytes, start.elapsed());
        result
    }

    fn iter(&self) -> impl Iterator<Item = f64> {
        self.0.iter().copied()
    }

    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

pub(super) fn run(args: &BenchArgs) -> Result<Outcome, Failure> {
    let backends: Vec<Backend> = if args.backends.is_empty() {
        let gpu = gpu::adapters().iter().any(|adapter| adapter.would_be_used && !adapter.is_software);
        let gpu = gpu.then(|| "gpu".parse().and_then(BackendChoice::resolve).ok()).flatten();
        Backend::available().into_iter().chain(gpu).collect()
    } else {
        args.backends.iter().map(|choice| choice.resolve()).collect::<Result<_, _>>()?
    };
    let machine = Machine::detect();
    let mut threads = args.threads.clone();
    if threads.is_empty() {
        threads = vec![1, u16::try_from(machine.threads).unwrap_or(u16::MAX)];
    }
    threads.dedup();
    let sets: Vec<&'static str> = SETS
        .into_iter()
        .filter(|set| if args.sets.is_empty() { *set != INPUT } else { args.sets.iter().any(|name| name == set) })
        .collect();
    let progress = Progress::new(&args.verbosity);
    let measured = match &args.dump {
        Some(path) => measure_dump(args, path, &sets, &backends, &threads, &progress),
        None if sets.contains(&INPUT) => Err(Failure::new("the set `input` needs a file").hint("pass a dump")),
        None => measure_made_up(args, &sets, &backends, &threads, &progress),
    };
    progress.finish();
    let (size, results) = measured?;
    let document = Document {
        machine,
        date: rfc3339(SystemTime::now()),
        command: std::env::args().collect::<Vec<_>>().join(" "),
        dump: args.dump.as_ref().map(|path| path.display().to_string()),
        size,
        rounds: args.rounds,
        results,
    };
    stdout::print_document(args.format, &document, table)?;
    Ok(Outcome::Found)
}

/// Every set on memory of its own, in which its hits are planted.
fn measure_made_up(
    args: &BenchArgs,
    sets: &[&'static str],
    backends: &[Backend],
    threads: &[u16],
    progress: &Progress,
) -> Result<(u64, Vec<Row>), Failure> {
    let wanted = args.size.map_or_else(
        || available_memory().map_or(SIZE, |free| SIZE.min(free / 4)),
        |mebibytes| u64::from(mebibytes) << 20,
    );
    let tiles = (wanted as usize / TILE).max(1);
    let mut rows = Vec::new();
    for set in sets {
        progress.begin_named(set, 0);
        let work = Work::new(set)?;
        let mut tile = Tile::new();
        let expected = work.plant(&mut tile);
        let part = tile.memory(1).map_err(Failure::new)?;
        let in_tile = expected.check(&work, &work.run(&part, Backend::Scalar))?;
        let memory = tile.memory(tiles).map_err(Failure::new)?;
        print_ways(args, set, &work, &memory, backends);
        for &threads in threads {
            let measured = in_pool(Some(threads), || measure(&work, &memory, &part, backends, args.rounds))??;
            let read = read_speed(&measured);
            for (backend, found, row) in measured {
                let expected = in_tile * (row.bytes / TILE as u64);
                if found != expected {
                    return Err(wrong_count(found, expected).hint(format!("set {set}, backend {backend}")));
                }
                rows.push(Row { threads, set: (*set).to_owned(), ..row });
            }
            rows.extend(on_device(&work, &memory, backends, threads, set, read)?);
        }
    }
    Ok(((tiles * TILE) as u64, rows))
}

fn measure_dump(
    args: &BenchArgs,
    path: &Path,
    sets: &[&'static str],
    backends: &[Backend],
    threads: &[u16],
    progress: &Progress,
) -> Result<(u64, Vec<Row>), Failure> {
    let mut rows = Vec::new();
    if sets.contains(&INPUT) {
        progress.begin_named(INPUT, 0);
        for &threads in threads {
            rows.extend(input::measure(path, threads, args.rounds)?);
        }
    }
    let dump = dump::open(path, &OpenOptions::default(), &|_, _| {})?;
    let memory = &dump.memory;
    // What a slow backend is measured on: the end of the largest range.
    let largest = memory.ranges().iter().max_by_key(|range| range.len());
    let part = memory.only(&largest.map_or(Vec::new(), |range| {
        let start = range.end.0.saturating_sub(TILE as u64).max(range.start.0);
        vec![PhysAddr(start)..range.end]
    }));
    for set in sets.iter().filter(|set| **set != INPUT) {
        progress.begin_named(set, 0);
        let work = Work::new(set)?;
        print_ways(args, set, &work, memory, backends);
        for &threads in threads {
            let measured = in_pool(Some(threads), || measure(&work, memory, &part, backends, args.rounds))??;
            let read = read_speed(&measured);
            rows.extend(measured.into_iter().map(|(_, _, row)| Row { threads, set: (*set).to_owned(), ..row }));
            rows.extend(on_device(&work, memory, backends, threads, set, read)?);
        }
    }
    memory.check()?;
    Ok((memory.size(), rows))
}

/// Says with `-v` how each backend looks for the set.
fn print_ways(args: &BenchArgs, set: &str, work: &Work, memory: &PhysicalMemory, backends: &[Backend]) {
    let Work::Scan(signatures) = work else { return };
    for &backend in backends.iter().filter(|_| args.verbosity.verbose) {
        for way in scan::ways(memory, signatures, backend) {
            print_message(&format!("{set}, {backend}: {way}"));
        }
    }
}

/// Measures one set on all backends in turn, each round together with reading; the hits and the row of each.
/// All backends must find the same, on `part` and on as much of `memory` as they are measured on.
fn measure(
    work: &Work,
    memory: &PhysicalMemory,
    part: &PhysicalMemory,
    backends: &[Backend],
    rounds: u16,
) -> Result<Vec<(Backend, u64, Row)>, Failure> {
    // Reading touches all pages, so that no one pays for it.
    black_box(scan::read(memory));
    let reference = work.run(part, Backend::Scalar);
    let mut whole = None;
    let mut runs = Vec::new();
    for &backend in backends {
        let differs = || {
            Failure::new(format!("the backend {backend} finds different hits from the other backends"))
                .hint("report this as a bug")
        };
        let start = Instant::now();
        if work.run(part, backend) != reference {
            return Err(differs());
        }
        // Without what a scan costs before it begins, which does not grow with memory.
        let setup = Instant::now();
        black_box(work.run(&part.only(&[]), backend));
        let passed = start.elapsed().saturating_sub(setup.elapsed() * 2);
        let is_slow = passed.mul_f64(memory.size() as f64 / part.size().max(1) as f64) > LONGEST_PASS;
        let hits = if is_slow {
            work.hits(&reference)
        } else {
            let found = work.run(memory, backend);
            if whole.as_ref().is_some_and(|first| *first != found) {
                return Err(differs());
            }
            work.hits(whole.get_or_insert(found))
        };
        runs.push((backend, if is_slow { part } else { memory }, hits, Samples::default(), Vec::new()));
    }
    let mut reads = Samples::default();
    for _ in 0..rounds {
        reads.add(memory.size(), || scan::read(memory));
        let read = reads.0.last().copied().unwrap_or_default();
        for (backend, memory, _, speeds, ratios) in &mut runs {
            speeds.add(memory.size(), || work.run(memory, *backend));
            ratios.extend(speeds.0.last().map(|speed| speed / read));
        }
    }
    let row = |(backend, memory, hits, speeds, ratios): (Backend, &PhysicalMemory, u64, Samples, Vec<f64>)| {
        let name = backend.to_string();
        (backend, hits, Row::new(&name, 0, String::new(), memory.size(), &speeds, &ratios, reads.median(), Some(hits)))
    };
    Ok(runs.into_iter().map(row).collect())
}

/// The speed of reading, which all backends of a measurement have beside theirs.
fn read_speed(measured: &[(Backend, u64, Row)]) -> f64 {
    measured.first().map_or(0.0, |(_, _, row)| row.read_gb_per_s)
}

/// What bounds the scan on a GPU, where one is measured: `gpu-upload` brings the memory to the device and does nothing
/// with it, against `read`, the speed of reading; `gpu-resident` scans what is on the device already, by the device's
/// clock, against the sum of the same bytes there.
fn on_device(
    work: &Work,
    memory: &PhysicalMemory,
    backends: &[Backend],
    threads: u16,
    set: &str,
    read: f64,
) -> Result<Vec<Row>, Failure> {
    #[cfg(feature = "gpu")]
    if let Work::Scan(signatures) = work
        && backends.contains(&Backend::Gpu)
    {
        let measured = in_pool(Some(threads), || gpu::measure(memory, signatures, &scan::PointerSet::new(&[])))?
            .map_err(Failure::new)?;
        let row = |backend: &str, bytes: u64, time: Duration, read: f64| {
            let mut speeds = Samples::default();
            speeds.push(bytes, time);
            let ratio = speeds.median() / read;
            Row::new(backend, threads, set.to_owned(), bytes, &speeds, &[ratio], read, None)
        };
        let upload = row("gpu-upload", memory.size(), measured.upload, read);
        let resident = measured.scan.zip(measured.sum).map(|(scan, sum)| {
            let bytes = measured.resident_bytes;
            row("gpu-resident", bytes, scan, speed(bytes, sum))
        });
        return Ok([upload].into_iter().chain(resident).collect());
    }
    #[cfg(not(feature = "gpu"))]
    let _ = (work, memory, backends, threads, set, read);
    Ok(Vec::new())
}

fn table(document: &Document) -> String {
    let cpu = document.machine.cpu.as_deref().unwrap_or("unknown CPU");
    let facts = format!("{cpu}, {}, {} rounds, {} MiB\n", document.date, document.rounds, document.size >> 20);
    let rows = document.results.iter().map(|row| {
        vec![
            row.set.clone(),
            row.backend.clone(),
            row.threads.to_string(),
            format!("{:.2}", row.gb_per_s),
            format!("{:.2}", row.read_gb_per_s),
            format!("{:.2}", row.ratio_to_read),
            format!("{:.2}-{:.2}", row.ratio_min, row.ratio_max),
            row.hits.map_or_else(|| "–".to_owned(), |hits| hits.to_string()),
            (row.bytes >> 20).to_string(),
        ]
    });
    let headings = ["SET", "BACKEND", "THREADS", "GB/S", "READ", "OF READ", "MIN-MAX", "HITS", "MIB"];
    facts + &columns(&headings, &[2, 3, 4, 5, 6, 7, 8], rows)
}
