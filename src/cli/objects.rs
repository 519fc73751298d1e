//! `objects`: the objects of a Python process, by type or one by one.

use std::io::Write;

use clap::Args;
use serde::Serialize;
use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::{self, ImportedModule, ObjectDetails, ObjectRow, Runtime, TypeCount};
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::report::{columns, printable};

use super::args::{LineFormat, parse_number};
use super::python::{Documents, ProcessKey, PythonArgs};
use super::{Failure, Outcome, python, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve objects memory.lime --root 0xfab2000
  tensorcarve objects core.4321 --type torch.nn.modules.linear.Linear
  tensorcarve objects core.4321 --address 0x7fc91cd4e6d0 --format json
  tensorcarve objects core.4321 --modules
  tensorcarve objects core.4321 --strings password

COUNT is the number of objects that the garbage collector tracks, as in gc.get_objects(). For a type that
the collector does not track, it is the number of objects found in memory. UNTRACKED counts further
objects of a tracked type. BYTES and SIZE do not include the objects that an object refers to.";

/// Arguments of `objects`.
#[derive(Args)]
pub(super) struct ObjectsArgs {
    #[command(flatten)]
    python: PythonArgs,
    #[command(flatten)]
    what: What,
    /// Print only the first N rows
    #[arg(long, value_name = "N", default_value = "65536")]
    limit: usize,
}

/// What is listed instead of types.
#[derive(Args)]
#[group(multiple = false)]
struct What {
    /// List the objects of this type: its name in the list of types, or the last part of it
    #[arg(long = "type", value_name = "NAME")]
    type_name: Option<String>,
    /// Print one object: its attributes, and the objects that it refers to
    #[arg(long, value_name = "ADDRESS", value_parser = |text: &str| parse_number(text).map(VirtAddr))]
    address: Option<VirtAddr>,
    /// List the imported modules and their files
    #[arg(long)]
    modules: bool,
    /// List the strings that contain this text
    #[arg(long, value_name = "TEXT")]
    strings: Option<String>,
}

/// The objects of a process.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    process: ProcessKey,
    #[serde(flatten)]
    found: Found,
}

/// What was requested.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Found {
    Types(Vec<TypeCount>),
    Objects(Vec<ObjectRow>),
    Object(Option<ObjectDetails>),
    Modules(Vec<ImportedModule>),
}

impl Found {
    /// The number of rows.
    fn count(&self) -> usize {
        match self {
            Self::Types(types) => types.len(),
            Self::Objects(objects) => objects.len(),
            Self::Object(_) => 0,
            Self::Modules(modules) => modules.len(),
        }
    }
}

pub(super) fn run(args: &ObjectsArgs) -> Result<Outcome, Failure> {
    python::run(
        &args.python,
        |interpreter, _| match args.what.modules || args.what.address.is_some() {
            true => cpython::wanted_types(interpreter),
            false => cpython::all_types(interpreter),
        },
        |process, runtime| {
            let found = find(args, runtime);
            let is_cut = found.count() == args.limit;
            let warning = is_cut.then(|| {
                let message = format!("{process}: only the first {} rows are listed", args.limit);
                let warning = Diagnostic::new(Code::RowsLeftOut, None, message);
                Diagnostic { hint: Some("see --limit".to_owned()), ..warning }
            });
            (Document { process, found }, warning.into_iter().collect())
        },
        |documents| print(args.python.format, documents),
    )
}

fn find(args: &ObjectsArgs, runtime: &Runtime<'_>) -> Found {
    let limit = args.limit;
    let What { type_name, address, modules, strings } = &args.what;
    if let Some(address) = address {
        return Found::Object(runtime.details(*address));
    }
    if *modules {
        return Found::Modules(runtime.imported_modules().into_iter().take(limit).collect());
    }
    let census = runtime.census(&runtime.collector());
    match (type_name, strings) {
        (Some(name), _) => Found::Objects(runtime.instances(&census, name, limit)),
        (None, Some(text)) => Found::Objects(runtime.strings(&census, text, limit)),
        (None, None) => Found::Types(census.types.into_iter().take(limit).collect()),
    }
}

fn print(format: LineFormat, documents: &Documents<Document>) -> Result<(), Failure> {
    stdout::print(|out| match format {
        LineFormat::Table => documents.all().iter().try_for_each(|document| {
            let (headings, rows) = cells(&document.found, &printable);
            let of_numbers = headings.iter().enumerate().filter(|(_, heading)| NUMBERS.contains(*heading));
            let numbers: Vec<usize> = of_numbers.map(|(at, _)| at).collect();
            let headings: Vec<String> = headings.iter().map(|heading| heading.to_uppercase()).collect();
            let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
            writeln!(out, "{}\n\n{}", document.process, columns(&headings, &numbers, rows))
        }),
        LineFormat::Json => stdout::write_json(out, documents),
        LineFormat::Jsonl => documents.all().iter().try_for_each(|document| write_lines(out, document)),
        LineFormat::Csv => write_csv(out, documents.all()),
    })
}

/// Columns of numbers.
const NUMBERS: [&str; 4] = ["count", "bytes", "untracked", "size"];

/// The column names, and the cells of each row.
fn cells(found: &Found, shown: &dyn Fn(&str) -> String) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let object = |row: &ObjectRow| {
        let size = row.size.map(|size| size.to_string()).unwrap_or_default();
        vec![row.address.to_string(), shown(&row.type_name), size, shown(&row.repr)]
    };
    match found {
        Found::Types(types) => {
            let row = |found: &TypeCount| {
                let numbers = [found.count.to_string(), found.bytes.to_string(), found.untracked.to_string()];
                [&[shown(&found.name)], &numbers[..]].concat()
            };
            (vec!["type", "count", "bytes", "untracked"], types.iter().map(row).collect())
        }
        Found::Objects(objects) => (vec!["address", "type", "size", "repr"], objects.iter().map(object).collect()),
        Found::Object(details) => {
            let held = details.iter().flat_map(|details| {
                let attributes = details.attributes.iter().map(|held| (format!(".{}", held.name), &held.object));
                let referents = details.referents.iter().map(|held| (held.name.clone(), &held.object));
                let object = [(String::new(), &details.object)];
                object.into_iter().chain(attributes).chain(referents).collect::<Vec<_>>()
            });
            let row = |(name, row): (String, &ObjectRow)| [vec![shown(&name)], object(row)].concat();
            (vec!["name", "address", "type", "size", "repr"], held.map(row).collect())
        }
        Found::Modules(modules) => {
            let row = |module: &ImportedModule| {
                vec![shown(&module.name), module.file.as_deref().map(shown).unwrap_or_default()]
            };
            (vec!["module", "file"], modules.iter().map(row).collect())
        }
    }
}

/// A row as a line of JSON.
#[derive(Serialize)]
struct Line<'a, T> {
    #[serde(flatten)]
    process: &'a ProcessKey,
    #[serde(flatten)]
    row: &'a T,
}

fn write_lines(out: &mut dyn Write, document: &Document) -> std::io::Result<()> {
    fn each<T: Serialize>(out: &mut dyn Write, process: &ProcessKey, rows: &[T]) -> std::io::Result<()> {
        rows.iter().try_for_each(|row| stdout::write_line(out, &Line { process, row }))
    }
    match &document.found {
        Found::Types(rows) => each(out, &document.process, rows),
        Found::Objects(rows) => each(out, &document.process, rows),
        Found::Object(details) => each(out, &document.process, details.as_slice()),
        Found::Modules(rows) => each(out, &document.process, rows),
    }
}

fn write_csv(out: &mut dyn Write, documents: &[Document]) -> std::io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    for (at, Document { process, found }) in documents.iter().enumerate() {
        let (headings, rows) = cells(found, &str::to_owned);
        if at == 0 {
            writer.write_record(["pid", "root"].iter().chain(&headings))?;
        }
        let pid = process.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let root = process.root.map(|root| root.to_string()).unwrap_or_default();
        for row in rows {
            writer.write_record([&pid, &root].into_iter().chain(&row))?;
        }
    }
    writer.flush()
}
