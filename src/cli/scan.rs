//! `scan`: where signatures match, and with `--explain` where they nearly do.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use clap::Args;
use serde::{Serialize, Serializer};
use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::PhysicalMemory;
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::report::{columns, printable};
use tensorcarve::scan::{
    self, ABSENT_FRAME, Explanation, FrameClasses, Hit, Keep, Limits, RejectedCandidate, Rejection, ZERO_FRAME,
};
use tensorcarve::signature::{Signature, Signatures, Structure};

use super::args::{InputArgs, LineFormat, VerbosityArgs, WorkArgs, parse_range};
use super::progress::{Progress, print_times};
use super::stderr::{print_diagnostics, print_message};
use super::work::{gpu_warning, in_pool, open};
use super::{Failure, Outcome, stdout};

/// Rows below one line of headings.
const ROWS_PER_TABLE: usize = 1 << 13;

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve scan memory.lime
  tensorcarve scan memory.lime --signature cpython.type --explain
  tensorcarve scan memory.lime --signatures my/ --range 0x100000-0x8000000 --format jsonl | jq .address

A hit shows the address of the structure, the address and value of its anchor, and how many fields
were tested. Fields outside the anchor's 4 KiB frame are deferred. signatures/README.md explains how
to write your own signatures. Addresses are physical, or virtual for a process image. The formats
json, jsonl and csv also have file_offset, the anchor's position in the (unpacked) file. If hits are
left out because of --max-hits, the exit code is 3.";

/// Arguments of `scan`.
#[derive(Args)]
pub(super) struct ScanArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Search for this signature only; can be repeated [default: all]
    #[arg(long = "signature", value_name = "NAME")]
    names: Vec<String>,
    /// Search only these addresses (END is exclusive); can be repeated [default: all]
    #[arg(long = "range", value_name = "START-END", value_parser = parse_range)]
    ranges: Vec<Range<PhysAddr>>,
    /// Print at most N hits and N rejected candidates
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Keep at most N hits, those whose anchors have the lowest addresses, however many the dump holds
    #[arg(long, value_name = "N", default_value_t = MAX_HITS)]
    max_hits: usize,
    /// Also list rejected candidates (addresses where only a structure's anchor matched) and the reasons
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    work: WorkArgs,
    /// Output format; --explain needs table or json
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: LineFormat,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

/// Hits that are kept where the user sets no limit: a real dump has some thousands, and these need 320 MB on the way.
const MAX_HITS: usize = 5_000_000;
/// Rejected candidates that are listed where the user sets no limit; all are counted.
const LISTED: usize = 20;

#[derive(Serialize)]
struct Row<'a> {
    address: PhysAddr,
    signature: &'a str,
    anchor: PhysAddr,
    value: String,
    tested: u16,
    deferred: u16,
    /// Of the anchor.
    file_offset: Option<FileOffset>,
}

/// `hits` are made one by one as they are written.
#[derive(Serialize)]
struct Document<'a, R: Iterator<Item = Row<'a>> + Clone> {
    /// Hits, of which a limit may have left some out.
    total: usize,
    /// Hits beyond those that are kept.
    left_out: usize,
    #[serde(serialize_with = "serialize_rows")]
    hits: R,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejected<'a>>,
}

#[derive(Serialize)]
struct Rejected<'a> {
    counts: Vec<Count<'a>>,
    candidates: Vec<Candidate<'a>>,
}

#[derive(Serialize)]
struct Count<'a> {
    signature: &'a str,
    /// The field that failed first.
    field: Option<&'a str>,
    expected: String,
    candidates: u64,
}

#[derive(Serialize)]
struct Candidate<'a> {
    anchor: PhysAddr,
    signature: &'a str,
    field: Option<&'a str>,
    value: Option<String>,
    /// Where `field` is null: how many fields could be tested.
    tested: Option<u16>,
}

pub(super) fn run(args: &ScanArgs) -> Result<Outcome, Failure> {
    if args.explain && matches!(args.format, LineFormat::Jsonl | LineFormat::Csv) {
        return Err(Failure::new("hits and rejected candidates cannot be printed as one list of lines")
            .hint("use --format table or json with --explain"));
    }
    let backend = args.work.backend.resolve()?;
    let mut signatures = Signatures::load(args.work.signatures.as_deref())?;
    if !args.names.is_empty() {
        signatures = signatures.only(&args.names)?;
    }
    let progress = Progress::new(&args.verbosity);
    let dump = open(&args.input, &progress)?;
    let memory = if args.ranges.is_empty() { dump.memory.clone() } else { dump.memory.only(&args.ranges) };
    if memory.ranges().is_empty() {
        progress.finish();
        return Err(
            Failure::new("the dump has no memory at these addresses").hint("`tensorcarve info` lists its ranges")
        );
    }
    let limit = args.limit.unwrap_or(usize::MAX);
    let (found, explanation) = in_pool(args.work.threads, || {
        let advance = |bytes| progress.advance(bytes);
        progress.begin(Phase::Scan, memory.size());
        let limits = Limits { per_frame: None, total: Some(args.max_hits) };
        let found = scan::scan_within(&memory, &signatures, backend, limits, Keep::Nothing, &advance);
        let explanation = args.explain.then(|| {
            progress.begin_named("explain", memory.size());
            scan::explain(&memory, &signatures, args.limit.unwrap_or(LISTED), &advance)
        });
        (found, explanation)
    })?;
    let times = progress.finish();
    memory.check()?;
    let total = found.hits.len() + found.left_out;
    let rows = || found.hits.iter().take(limit).map(|hit| row(hit, &signatures, &memory));
    stdout::print(|out| match args.format {
        LineFormat::Table => print_table(out, rows(), explanation.as_ref().map(|it| rejected(it, &signatures))),
        LineFormat::Json => {
            let rejected = explanation.as_ref().map(|it| rejected(it, &signatures));
            let document = Document { total, left_out: found.left_out, hits: rows(), rejected };
            stdout::write_json(out, &document)
        }
        LineFormat::Jsonl => rows().try_for_each(|row| stdout::write_line(out, &row)),
        LineFormat::Csv => print_csv(out, rows()),
    })?;
    print_diagnostics(dump.warnings.iter().chain(&gpu_warning()), &args.verbosity);
    if args.verbosity.verbose {
        print_times(&times);
        print_counts(&found.hits, &signatures);
        print_frames(&found.frames, &signatures);
    }
    if found.left_out > 0 && !args.verbosity.quiet {
        print_message(&format!(
            "{} of {total} hits are left out: only the {} with the lowest addresses are kept (--max-hits)",
            found.left_out,
            found.hits.len()
        ));
    }
    if found.hits.len() > limit && !args.verbosity.quiet {
        print_message(&format!("only the first {limit} of {total} hits are shown (--limit)"));
    }
    Ok(match (total == 0, dump.damaged || found.left_out > 0) {
        (true, _) => {
            if !args.verbosity.quiet {
                print_message("no hits: --explain lists the rejected candidates and the reasons");
            }
            Outcome::Nothing
        }
        (false, true) => Outcome::Partly,
        (false, false) => Outcome::Found,
    })
}

fn serialize_rows<S: Serializer>(
    rows: &(impl Iterator<Item: Serialize> + Clone),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rows.clone())
}

fn name(signatures: &Signatures, index: u16) -> &str {
    signatures.name(index).unwrap_or("?")
}

fn row<'a>(hit: &Hit, signatures: &'a Signatures, memory: &PhysicalMemory) -> Row<'a> {
    Row {
        address: hit.address,
        signature: name(signatures, hit.signature),
        anchor: hit.anchor,
        value: format!("{:#x}", hit.value),
        tested: hit.tested,
        deferred: hit.deferred,
        file_offset: memory.file_offset(hit.anchor),
    }
}

fn structure(signatures: &Signatures, index: u16) -> Option<&Structure> {
    match signatures.get(index)? {
        Signature::Structure(structure) => Some(structure),
        Signature::Needle(_) => None,
    }
}

fn rejected<'a>(explanation: &Explanation, signatures: &'a Signatures) -> Rejected<'a> {
    let counts = explanation.counts.iter().map(|(&(signature, index), &candidates)| {
        let structure = structure(signatures, signature);
        let field = index.and_then(|index| structure?.fields().get(usize::from(index)));
        let expected = match (structure, field) {
            (Some(structure), Some(field)) => structure.expectation(field),
            (structure, _) => format!("at least {} fields in the frame", structure.map_or(0, |it| it.min_tested)),
        };
        let field = field.map(|field| field.name.as_str());
        Count { signature: name(signatures, signature), field, expected, candidates }
    });
    let candidate = |candidate: &RejectedCandidate| {
        let (field, value, tested) = match candidate.rejection {
            Rejection::Field { index, value } => (Some(index), Some(format!("{value:#x}")), None),
            Rejection::TooFewTested { tested } => (None, None, Some(tested)),
        };
        let field =
            field.and_then(|index| structure(signatures, candidate.signature)?.fields().get(usize::from(index)));
        let field = field.map(|field| field.name.as_str());
        Candidate { anchor: candidate.anchor, signature: name(signatures, candidate.signature), field, value, tested }
    };
    Rejected { counts: counts.collect(), candidates: explanation.candidates.iter().map(candidate).collect() }
}

fn print_table<'a>(
    out: &mut dyn Write,
    rows: impl Iterator<Item = Row<'a>>,
    rejected: Option<Rejected<'a>>,
) -> io::Result<()> {
    let mut rows = rows.peekable();
    // A table is laid out as a whole: a dump that matches everywhere must not need many times its size in memory.
    while rows.peek().is_some() {
        let cells = rows.by_ref().take(ROWS_PER_TABLE).map(|row| {
            let signature = printable(row.signature);
            let numbers = [row.tested.to_string(), row.deferred.to_string()];
            [vec![row.address.to_string(), signature, row.anchor.to_string(), row.value], numbers.to_vec()].concat()
        });
        out.write_all(
            columns(&["ADDRESS", "SIGNATURE", "ANCHOR", "VALUE", "TESTED", "DEFERRED"], &[4, 5], cells).as_bytes(),
        )?;
    }
    let Some(rejected) = rejected else { return Ok(()) };
    let field = |field: Option<&str>| field.map_or("(too few)".to_owned(), printable);
    let counts = rejected.counts.iter().map(|count| {
        vec![count.candidates.to_string(), printable(count.signature), field(count.field), count.expected.clone()]
    });
    out.write_all(columns(&["REJECTED", "SIGNATURE", "FIELD", "EXPECTED"], &[0], counts).as_bytes())?;
    let candidates = rejected.candidates.iter().map(|candidate| {
        let value = candidate.value.clone().or(candidate.tested.map(|tested| format!("{tested} tested")));
        let cells = [candidate.anchor.to_string(), printable(candidate.signature), field(candidate.field)];
        cells.into_iter().chain(value).collect()
    });
    out.write_all(columns(&["ANCHOR", "SIGNATURE", "FIELD", "VALUE"], &[], candidates).as_bytes())
}

fn print_csv<'a>(out: &mut dyn Write, rows: impl Iterator<Item = Row<'a>>) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    for row in rows {
        writer.serialize(row).map_err(|error| match error.into_kind() {
            csv::ErrorKind::Io(error) => error,
            other => io::Error::other(format!("{other:?}")),
        })?;
    }
    writer.flush()
}

/// How many hits each signature has.
fn print_counts(hits: &[Hit], signatures: &Signatures) {
    let mut counts = BTreeMap::new();
    for index in (0..).take_while(|index| signatures.get(*index).is_some()) {
        counts.insert(index, 0u64);
    }
    hits.iter().for_each(|hit| *counts.entry(hit.signature).or_default() += 1);
    for (index, count) in counts {
        print_message(&format!("{count:>9} hits for {}", printable(name(signatures, index))));
    }
}

/// How many frames could be page tables, and of which level.
fn print_frames(frames: &FrameClasses, signatures: &Signatures) {
    let count = |mask| frames.with(mask).count();
    print_message(&format!("{:>9} frames, {} of them all zeros", frames.len(), count(ZERO_FRAME)));
    let Some(mmu) = signatures.mmu() else { return };
    print_message(&format!("{:>9} frames without a present entry", count(ABSENT_FRAME)));
    for level in &mmu.levels {
        print_message(&format!(
            "{:>9} frames that could be a {}",
            count(1 << (level.level - 1)),
            printable(&level.name)
        ));
    }
}
