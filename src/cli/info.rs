//! `info`: what a dump is.

use serde::Serialize;
use tensorcarve::dump::{self, Compression, Format, MemoryRange, Source};
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::report::{bytes_in_words, columns, printable};

use super::args::{InfoArgs, InputArgs, TalkArgs};
use super::progress::{Progress, say_times};
use super::{Failure, Outcome, say, stdout};

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
    warnings: &'a [String],
}

pub(super) fn run(args: &InfoArgs) -> Result<Outcome, Failure> {
    let progress = Progress::new(&args.talk);
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
        warnings: &dump.warnings,
    };
    stdout::print_document(args.format, &document, table)?;
    say_warnings(dump.warnings.iter().map(String::as_str), &args.talk);
    if args.talk.verbose {
        say_times(&times);
    }
    Ok(if dump.damaged { Outcome::Partly } else { Outcome::Found })
}

/// Opens the dump that was named, as [`open_source`] does.
pub(super) fn open(input: &InputArgs, progress: &Progress) -> Result<dump::Dump, Failure> {
    open_source(Source::open(&input.dump)?, input, progress)
}

/// Opens the dump. If it is compressed, unpacking is a phase of its own.
pub(super) fn open_source(source: Source, input: &InputArgs, progress: &Progress) -> Result<dump::Dump, Failure> {
    let seen = std::cell::Cell::new(None);
    let unpacked = |done: u64, total: u64| {
        if seen.get().is_none() {
            progress.begin(Phase::Unpack, total);
        }
        progress.advance(done.saturating_sub(seen.get().unwrap_or(0)));
        seen.set(Some(done));
    };
    dump::open_source(source, &input.options(), &unpacked).map_err(|error| {
        // The line of progress must not stay above the error.
        progress.finish();
        error.into()
    })
}

/// Says what an analyst should know, on stderr.
pub(super) fn say_warnings<'a>(warnings: impl Iterator<Item = &'a str>, talk: &TalkArgs) {
    if !talk.quiet {
        warnings.for_each(|warning| say(&format!("warning: {}", printable(warning))));
    }
}

fn table(document: &Document<'_>) -> String {
    let compression = document.compression.map_or("none".to_owned(), |compression| compression.to_string());
    let pid = document.pid.map(|pid| format!(" of process {pid}"));
    let comm = document.comm.map(|comm| format!(" ({})", printable(comm)));
    let addresses = [Some(document.addresses.to_owned()), pid, comm].into_iter().flatten().collect();
    let size = |bytes: u64| format!("{bytes} bytes ({})", bytes_in_words(bytes));
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
        vec![range.start.to_string(), range.end.to_string(), bytes_in_words(range.len()), range.offset.to_string()]
    });
    text.push('\n');
    text += &columns(&["START", "END", "SIZE", "AT OFFSET"], &[2], ranges);
    let further = document.ranges.len().saturating_sub(MAX_RANGES);
    if further > 0 {
        text += &format!("{further} further ranges; --format json lists all\n");
    }
    text
}
