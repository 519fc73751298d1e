//! `maps`: the memory map of a process.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use tensorcarve::addr::VirtAddr;
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::linux::{self as machine, Mapping, MappingSource, MemoryMap};
use tensorcarve::report::{columns, human_bytes, printable};

use super::args::{CaseArgs, LineFormat, ProcessArgs};
use super::linux::{self, Evidence};
use super::{Failure, Outcome, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve maps memory.lime --pid 188
  tensorcarve maps memory.lime --root 0xfa7a000 --format csv
  tensorcarve maps core.4321                  what the core of a process says of its mappings

Where the kernel's records can't be read, ranges come from the page tables, with the source `page_tables`.";

/// Arguments of `maps`.
#[derive(Args)]
pub(super) struct MapsArgs {
    #[command(flatten)]
    case: CaseArgs,
    #[command(flatten)]
    which: ProcessArgs,
    /// What to print: a table, one document, one mapping per line
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: LineFormat,
}

#[derive(Serialize)]
struct Document<'a> {
    pid: Option<u32>,
    comm: Option<&'a str>,
    mappings: Vec<Row<'a>>,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    start: VirtAddr,
    end: VirtAddr,
    permissions: &'a str,
    /// A string, because a JSON number does not hold 64 bits.
    offset: Option<VirtAddr>,
    file: Option<&'a str>,
    resident_bytes: Option<u64>,
    swapped_bytes: Option<u64>,
    missing_bytes: Option<u64>,
    source: MappingSource,
    record: Option<VirtAddr>,
}

pub(super) fn run(args: &MapsArgs) -> Result<Outcome, Failure> {
    linux::run(&args.case, false, |evidence| {
        let Evidence { case, machine, .. } = evidence;
        let dump = case.dump();
        let (pid, comm, map) = match machine.as_deref() {
            None => {
                let image = dump.addresses.process().cloned().unwrap_or_default();
                (image.pid, image.comm, machine::map_of_image(&dump.memory))
            }
            Some(Err(reason)) => return Err(Failure::new(reason)),
            Some(Ok(machine)) => {
                args.which.check_named()?;
                match machine.processes().iter().find(|process| args.which.wants(process)) {
                    Some(process) => {
                        let map = machine.map(process).unwrap_or_default();
                        (Some(process.pid()), Some(process.comm().to_owned()), map)
                    }
                    None => (None, None, machine.map_of_root(args.which.root_without_task(case)?)),
                }
            }
        };
        let MemoryMap { mappings, problems } = &map;
        let document = Document {
            pid,
            comm: comm.as_deref(),
            mappings: mappings.iter().map(row).collect(),
            problems: problems.iter().map(Diagnostic::to_string).collect(),
        };
        stdout::print(|out| match args.format {
            LineFormat::Table => out.write_all(table(&document.mappings).as_bytes()),
            LineFormat::Json => stdout::write_json(out, &document),
            LineFormat::Jsonl => document.mappings.iter().try_for_each(|row| stdout::write_line(out, row)),
            LineFormat::Csv => csv(out, &document.mappings),
        })?;
        let outcome = match (mappings.is_empty(), problems.is_empty()) {
            (true, _) => Outcome::Nothing,
            (false, true) => Outcome::Found,
            (false, false) => Outcome::Partly,
        };
        Ok((outcome, problems.clone()))
    })
}

fn row(mapping: &Mapping) -> Row<'_> {
    Row {
        start: mapping.start,
        end: mapping.end,
        permissions: &mapping.permissions,
        offset: mapping.offset.map(VirtAddr),
        file: mapping.file.as_deref(),
        resident_bytes: mapping.residency.map(|found| found.resident),
        swapped_bytes: mapping.residency.map(|found| found.swapped),
        missing_bytes: mapping.residency.map(|found| found.missing),
        source: mapping.source,
        record: mapping.record,
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let bytes = |count: Option<u64>| count.map_or("?".to_owned(), human_bytes);
    let lines = rows.iter().map(|row| {
        vec![
            row.start.to_string(),
            row.end.to_string(),
            row.permissions.to_owned(),
            row.offset.map_or("?".to_owned(), |offset| offset.to_string()),
            bytes(row.resident_bytes),
            bytes(row.swapped_bytes),
            bytes(row.missing_bytes),
            row.file.map(printable).unwrap_or_default(),
        ]
    });
    let headings = ["START", "END", "ACCESS", "OFFSET", "RESIDENT", "SWAPPED", "MISSING", "FILE"];
    columns(&headings, &[3, 4, 5, 6], lines)
}

fn csv(out: &mut dyn Write, rows: &[Row<'_>]) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    rows.iter().try_for_each(|row| csv.serialize(row))?;
    if rows.is_empty() {
        csv.write_record(["start", "end", "permissions", "offset", "file"])?;
    }
    csv.flush()
}
