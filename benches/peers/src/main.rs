//! The same job put to tensorcarve and to what a user would take instead, in interleaved rounds over one file.
//!
//! Every peer must first find exactly what is there; one that does not is named and not timed. All run on one thread.

mod input;
mod job;
mod peers;
mod read;
mod table;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;

use input::Input;
use job::Job;
use peers::{Peer, Search};
use table::{Round, Row, Table};

#[derive(Parser)]
struct Args {
    /// The dump to search; by default the one of the tests.
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/cifar10-pdb.lime.zst"))]
    dump: PathBuf,
    /// Times that everyone searches, one after the other.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only this job: needles-1, needles-20, needles-200, type-by-rule or type-by-field.
    #[arg(long)]
    job: Option<String>,
    /// Only tensorcarve and the peers whose name contains this.
    #[arg(long)]
    peer: Option<String>,
    /// Write all figures here, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let input = Input::planted(&args.dump)?;
    eprintln!("{:.1} MB from {}", input.bytes.len() as f64 / 1e6, args.dump.display());
    let wanted = |peer: &dyn Peer| {
        let chosen = |part: &String| peer.name().contains(part.as_str());
        peer.name() == "tensorcarve" || args.peer.as_ref().is_none_or(chosen)
    };
    let peers: Vec<_> = peers::all().into_iter().filter(|peer| wanted(peer.as_ref())).collect();
    let jobs = Job::all().into_iter().filter(|job| args.job.as_ref().is_none_or(|name| *name == job.name()));
    let tables: Vec<Table> = jobs.map(|job| measure(&job, &input, &peers, args.rounds)).collect::<Result<_, _>>()?;
    if tables.is_empty() {
        return Err("there is no such job".into());
    }
    tables.iter().for_each(|table| println!("{table}"));
    if let Some(path) = args.json {
        let results: Vec<_> = tables.iter().flat_map(Table::json).collect();
        std::fs::write(path, serde_json::to_string_pretty(&serde_json::json!({ "results": results }))?)?;
    }
    Ok(())
}

/// All rounds of one job.
fn measure(job: &Job, input: &Input, peers: &[Box<dyn Peer>], rounds: usize) -> Result<Table, String> {
    let expected = job.expected(&input.bytes);
    let mut table = Table { job: job.name(), hits: expected.len(), rows: Vec::new() };
    let mut searches: Vec<Search<'_>> = Vec::new();
    for peer in peers {
        eprint!("{}: {} ... ", table.job, peer.name());
        match checked(peer.as_ref(), job, input, &expected) {
            Ok(Some((version, search))) => {
                eprintln!("finds the {} that are there", expected.len());
                table.rows.push(Row { peer: peer.name(), version, bytes: peer.range(input).len(), rounds: Vec::new() });
                searches.push(search);
            }
            Ok(None) => eprintln!("not its job"),
            Err(reason) => eprintln!("left out: {reason}"),
        }
    }
    let rate = |bytes: usize, seconds: f64| bytes as f64 / 1e9 / seconds;
    for _ in 0..rounds {
        for (row, search) in table.rows.iter_mut().zip(&mut searches) {
            // Right before each search, so that all find the caches as a plain reader leaves them.
            let clock = Instant::now();
            black_box(read::sum(black_box(&input.bytes)));
            let read = rate(input.bytes.len(), clock.elapsed().as_secs_f64());
            let clock = Instant::now();
            let found = search()?;
            let search = rate(row.bytes, found.time.unwrap_or(clock.elapsed()).as_secs_f64());
            row.rounds.push(Round { read, search });
        }
    }
    Ok(table)
}

/// The search of a peer that found what is there.
fn checked<'a>(
    peer: &dyn Peer,
    job: &'a Job,
    input: &'a Input,
    expected: &[job::Hit],
) -> Result<Option<(String, Search<'a>)>, String> {
    let version = peer.version()?;
    let Some(mut search) = peer.prepare(job, input)? else { return Ok(None) };
    let mut hits = search()?.hits;
    hits.sort_unstable();
    // At the border of a slice it is a matter of taste whether what lies across it is found.
    let range = peer.range(input);
    let end = if range.end == input.bytes.len() { range.end } else { range.end - 64 };
    hits.retain(|(at, _)| (range.start..end).contains(at));
    let expected: Vec<_> = expected.iter().filter(|(at, _)| (range.start..end).contains(at)).copied().collect();
    if hits == expected {
        return Ok(Some((version, search)));
    }
    let missing = expected.iter().filter(|hit| hits.binary_search(hit).is_err()).count();
    let wrong = hits.iter().filter(|hit| expected.binary_search(hit).is_err()).count();
    Err(format!("of {} hits {missing} are missing, and {wrong} are wrong", expected.len()))
}
