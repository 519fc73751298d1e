//! `info`: what a dump is.

use clap::Args;
use serde::Serialize;
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::dump::{Compression, Format, MemoryRange};
use tensorcarve::report::{columns, human_bytes, printable};

use super::args::{InputArgs, PlainFormat, VerbosityArgs};
use super::progress::{Progress, print_times};
use super::stderr::print_diagnostics;
use super::work::open;
use super::{Failure, Outcome, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve info memory.lime.zst
  tensorcarve info memory.lime --format json | jq '.ranges[0]'";

/// Arguments of `info`.
#[derive(Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: PlainFormat,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

/// The most ranges that the table shows: a real dump has some hundreds.
const MAX_RANGES: usize = 1 << 12;

#[derive(Serialize)]
struct Document<'a> {
    path: String,
    format: Format,
    addresses: &'static str,
    pid: Option<u32>,
    comm: Option<&'a str>,
    compression: Option<Compression>,
    file_size: u64,
    size: u64,
    memory: u64,
    damaged: bool,
    ranges: &'a [MemoryRange],
    warnings: Vec<String>,
}

pub(super) fn run(args: &InfoArgs) -> Result<Outcome, Failure> {
    let progress = Progress::new(&args.verbosity);
    let dump = open(&args.input, &progress)?;
    let times = progress.finish();
    let process = dump.addresses.process();
    let document = Document {
        path: args.input.dump.display().to_string(),
        format: dump.format,
        addresses: dump.addresses.name(),
        pid: process.and_then(|process| process.pid),
        comm: process.and_then(|process| process.comm.as_deref()),
        compression: dump.compression,
        file_size: dump.file_size,
        size: dump.size,
        memory: dump.memory.size(),
        damaged: dump.damaged,
        ranges: dump.memory.ranges(),
        warnings: dump.warnings.iter().map(Diagnostic::to_string).collect(),
    };
    stdout::print_document(args.format, &document, table)?;
    print_diagnostics(&dump.warnings, &args.verbosity);
    if args.verbosity.verbose {
        print_times(&times);
    }
    Ok(if dump.damaged { Outcome::Partly } else { Outcome::Found })
}

fn table(document: &Document<'_>) -> String {
    let compression = document.compression.map_or("none".to_owned(), |compression| compression.to_string());
    let pid = document.pid.map(|pid| format!(" of process {pid}"));
    let comm = document.comm.map(|comm| format!(" ({})", printable(comm)));
    let addresses = [Some(document.addresses.to_owned()), pid, comm].into_iter().flatten().collect();
    let size = |bytes: u64| format!("{bytes} bytes ({})", human_bytes(bytes));
    let mut text = columns(
        &["DUMP", ""],
        &[],
        [
            vec!["format".to_owned(), document.format.to_string()],
            vec!["addresses".to_owned(), addresses],
            vec!["compression".to_owned(), compression],
            vec!["file".to_owned(), size(document.file_size)],
            vec!["unpacked".to_owned(), size(document.size)],
            vec!["memory".to_owned(), size(document.memory)],
            vec!["damaged".to_owned(), if document.damaged { "yes" } else { "no" }.to_owned()],
        ],
    );
    let ranges = document.ranges.iter().take(MAX_RANGES).map(|range| {
        vec![range.start.to_string(), range.end.to_string(), human_bytes(range.len()), range.offset.to_string()]
    });
    text.push('\n');
    text += &columns(&["START", "END", "SIZE", "AT OFFSET"], &[2], ranges);
    let further = document.ranges.len().saturating_sub(MAX_RANGES);
    if further > 0 {
        text += &format!("{further} further ranges; --format json lists all\n");
    }
    text
}
