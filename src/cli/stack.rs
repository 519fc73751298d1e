//! `stack`: the Python stacks of a process: all threads, and suspended generators.

use std::io::Write;

use clap::Args;
use serde::Serialize;
use tensorcarve::cpython::{self, Frame, GeneratorState, Suspended, SuspendedKind, Thread};
use tensorcarve::report::printable;

use super::args::LineFormat;
use super::python::{Documents, ProcessKey, PythonArgs};
use super::{Failure, Outcome, python, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve stack memory.lime                the stacks of all Python processes
  tensorcarve stack memory.lime --root 0xfab2000 --locals
  tensorcarve stack core.4321 --format json | jq '.threads[].frames[0]'

The innermost frame comes first. Suspended generators and coroutines follow the threads, each with its
frame.";

/// Arguments of `stack`.
#[derive(Args)]
pub(super) struct StackArgs {
    #[command(flatten)]
    python: PythonArgs,
    /// Print the variables of each frame
    #[arg(long)]
    locals: bool,
}

/// The stacks of a process.
#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    process: ProcessKey,
    threads: Vec<Thread>,
    suspended: Vec<Suspended>,
}

pub(super) fn run(args: &StackArgs) -> Result<Outcome, Failure> {
    python::run(
        &args.python,
        |interpreter, _| cpython::wanted_types(interpreter),
        |process, runtime| {
            let (threads, suspended) = (runtime.threads(args.locals), runtime.suspended(args.locals));
            (Document { process, threads, suspended }, Vec::new())
        },
        |documents| print(args.python.format, documents),
    )
}

fn print(format: LineFormat, documents: &Documents<Document>) -> Result<(), Failure> {
    stdout::print(|out| match format {
        LineFormat::Table => documents.all().iter().try_for_each(|document| write_text(out, document)),
        LineFormat::Json => stdout::write_json(out, documents),
        LineFormat::Jsonl => documents.all().iter().try_for_each(|document| write_lines(out, document)),
        LineFormat::Csv => write_csv(out, documents.all()),
    })
}

/// Writes a heading for each process and thread, then the frames as Python prints them.
fn write_text(out: &mut dyn Write, document: &Document) -> std::io::Result<()> {
    writeln!(out, "{}", document.process)?;
    for thread in &document.threads {
        let tid = thread.tid.map_or("?".to_owned(), |tid| tid.to_string());
        let name = thread.name.as_deref().map_or(String::new(), |name| format!(" {}", printable(name)));
        writeln!(out, "\nthread {tid}{name}")?;
        thread.frames().iter().try_for_each(|frame| write_frame(out, frame))?;
        if let Some(problem) = &thread.problem {
            writeln!(out, "  … {}", printable(problem))?;
        }
    }
    for suspended in &document.suspended {
        let state = match suspended.state {
            GeneratorState::Created => ", not started",
            GeneratorState::Suspended => "",
        };
        writeln!(out, "\n{} at {}{state}", kind(suspended.kind), suspended.address)?;
        write_frame(out, &suspended.frame)?;
    }
    writeln!(out)
}

fn kind(kind: SuspendedKind) -> &'static str {
    match kind {
        SuspendedKind::Generator => "generator",
        SuspendedKind::Coroutine => "coroutine",
        SuspendedKind::AsyncGenerator => "async_generator",
    }
}

fn write_frame(out: &mut dyn Write, frame: &Frame) -> std::io::Result<()> {
    writeln!(out, "  {frame}")?;
    for (name, value) in frame.locals.iter().flatten() {
        writeln!(out, "      {} = {}", printable(name), printable(value))?;
    }
    Ok(())
}

/// One stack of a process as a line of JSON.
#[derive(Serialize)]
struct Line<'a, T> {
    #[serde(flatten)]
    process: &'a ProcessKey,
    #[serde(flatten)]
    stack: &'a T,
}

fn write_lines(out: &mut dyn Write, document: &Document) -> std::io::Result<()> {
    let process = &document.process;
    document.threads.iter().try_for_each(|stack| stdout::write_line(out, &Line { process, stack }))?;
    document.suspended.iter().try_for_each(|stack| stdout::write_line(out, &Line { process, stack }))
}

/// Writes a line for each frame. `depth` counts from the innermost frame.
fn write_csv(out: &mut dyn Write, documents: &[Document]) -> std::io::Result<()> {
    const COLUMNS: [&str; 11] =
        ["pid", "root", "kind", "tid", "thread", "depth", "function", "qualname", "file", "line", "address"];
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(COLUMNS)?;
    for document in documents {
        let mut write = |stack: [String; 3], depth: usize, frame: &Frame| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
            let pid = document.process.pid.map(|pid| pid.to_string()).unwrap_or_default();
            let root = document.process.root.map(|root| root.to_string()).unwrap_or_default();
            let names = [text(&frame.function), text(&frame.qualname), text(&frame.file)];
            let place = [number(frame.line), frame.address.to_string()];
            let record = [pid, root].into_iter().chain(stack).chain([depth.to_string()]).chain(names).chain(place);
            writer.write_record(record)
        };
        for thread in &document.threads {
            let tid = thread.tid.map(|tid| tid.to_string()).unwrap_or_default();
            let stack = ["thread".to_owned(), tid, thread.name.clone().unwrap_or_default()];
            for (depth, frame) in thread.frames().iter().enumerate() {
                write(stack.clone(), depth, frame)?;
            }
        }
        for suspended in &document.suspended {
            let stack = [kind(suspended.kind).to_owned(), String::new(), String::new()];
            write(stack, 0, &suspended.frame)?;
        }
    }
    writer.flush()
}
