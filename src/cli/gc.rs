//! `gc`: the garbage collector's lists.

use std::io::Write;

use clap::Args;
use serde::Serialize;
use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::{self, Collector};
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::report::{columns, printable};

use super::args::LineFormat;
use super::python::{Documents, ProcessKey, PythonArgs};
use super::{Failure, Outcome, python, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve gc memory.lime --root 0xfab2000
  tensorcarve gc core.4321 --format json | jq .broken

Each list is walked forward from its head. If a link is broken, the list is walked backward as well.
IN NO LIST (`unlisted`) counts the objects that have links and that no walk reached. gc.get_objects()
leaves out the generation `permanent`. Free-threaded builds have no lists: their objects are counted by
a bit in each of them.";

/// Arguments of `gc`.
#[derive(Args)]
pub(super) struct GcArgs {
    #[command(flatten)]
    python: PythonArgs,
}

/// The garbage collector of a process.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    process: ProcessKey,
    #[serde(flatten)]
    collector: Collector,
}

pub(super) fn run(args: &GcArgs) -> Result<Outcome, Failure> {
    python::run(
        &args.python,
        cpython::collected_types,
        |process, runtime| {
            let collector = runtime.collector();
            let warning = (collector.objects == 0).then(|| {
                let message = format!("{process}: the lists of the garbage collector were not found");
                Diagnostic::new(Code::NoCollectorLists, None, message)
            });
            (Document { process, collector }, warning.into_iter().collect())
        },
        |documents| print(args.python.format, documents),
    )
}

fn print(format: LineFormat, documents: &Documents<Document>) -> Result<(), Failure> {
    stdout::print(|out| match format {
        LineFormat::Table => documents.all().iter().try_for_each(|document| write_table(out, document)),
        LineFormat::Json => stdout::write_json(out, documents),
        LineFormat::Jsonl => documents.all().iter().try_for_each(|document| stdout::write_line(out, document)),
        LineFormat::Csv => write_csv(out, documents.all()),
    })
}

fn write_table(out: &mut dyn Write, document: &Document) -> std::io::Result<()> {
    let Collector { generations, objects, broken, unlisted, .. } = &document.collector;
    writeln!(out, "{}\n", document.process)?;
    let rows = generations.iter().map(|generation| {
        let [head, interpreter] = [Some(generation.head), generation.interpreter].map(address);
        vec![generation.name.to_owned(), generation.objects.to_string(), head, interpreter]
    });
    let total = vec!["all".to_owned(), objects.to_string(), String::new(), String::new()];
    let headings = ["GENERATION", "OBJECTS", "HEAD", "INTERPRETER"];
    out.write_all(columns(&headings, &[1], rows.chain([total])).as_bytes())?;
    if !broken.is_empty() {
        let rows = broken.iter().map(|link| vec![link.address.to_string(), link.reason.clone()]);
        write!(out, "\n{}", columns(&["BROKEN LINK", "REASON"], &[], rows))?;
    }
    if !unlisted.is_empty() {
        let rows = unlisted.iter().map(|found| vec![printable(&found.type_name), found.objects.to_string()]);
        write!(out, "\n{}", columns(&["IN NO LIST", "OBJECTS"], &[1], rows))?;
    }
    writeln!(out)
}

fn address(address: Option<VirtAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

fn write_csv(out: &mut dyn Write, documents: &[Document]) -> std::io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(["pid", "root", "generation", "objects", "head", "interpreter"])?;
    for Document { process, collector } in documents {
        for generation in &collector.generations {
            let pid = process.pid.map(|pid| pid.to_string()).unwrap_or_default();
            let root = process.root.map(|root| root.to_string()).unwrap_or_default();
            let [head, interpreter] = [Some(generation.head), generation.interpreter].map(address);
            let numbers = [generation.objects.to_string(), head, interpreter];
            writer.write_record([pid, root, generation.name.to_owned()].iter().chain(&numbers))?;
        }
    }
    writer.flush()
}
