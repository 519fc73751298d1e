//! `ps`: the processes of a Linux machine.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tensorcarve::addr::{PhysAddr, VirtAddr};
use tensorcarve::case::PythonFacts;
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::dump::{PhysicalMemory, ProcessImage};
use tensorcarve::linux::{Fact, LayoutSource, Machine, Process, Task, command_line_of_image, executable_of_image};
use tensorcarve::paging::{AddressSpace, SpaceKind};
use tensorcarve::report::{columns, human_bytes, printable};

use super::args::{CaseArgs, LineFormat, ProcessArgs};
use super::linux::{self, Evidence};
use super::{Failure, Outcome, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve ps memory.lime
  tensorcarve ps memory.lime --tree
  tensorcarve ps memory.lime --python         which Python runs where, and with how many models
  tensorcarve ps memory.lime --threads --pid 188
  tensorcarve ps memory.lime --format json | jq '.processes[] | select(.kind == \"process\") | .cmdline'

No kernel symbols are needed: offsets in the kernel's structures are taken from the BTF in its memory or,
where that is lost, from what the tasks of the dump agree on. What can't be established is null, or `?` in the table.
The plain table does not look at Python, which takes longer; the other formats and --python do.";

/// Arguments of `ps`.
#[derive(Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    case: CaseArgs,
    /// List threads as well
    #[arg(long)]
    threads: bool,
    /// Show which process created which
    #[arg(long)]
    tree: bool,
    /// List only processes in which a Python runs, with its version, frameworks and number of models
    #[arg(long)]
    python: bool,
    #[command(flatten)]
    which: ProcessArgs,
    /// What to print: a table, one document, one process per line
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: LineFormat,
}

/// Maximum number of characters of a command line in the table.
const SHOWN: usize = 80;
/// Maximum depth of the indentation.
const MAX_INDENT: usize = 32;

#[derive(Serialize)]
struct Document<'a> {
    processes: &'a [Row],
    /// The source of the offsets in the kernel's structures.
    layout: Option<LayoutSource>,
    /// The first virtual address of the direct map of physical memory.
    direct_map: Option<VirtAddr>,
}

#[derive(Serialize)]
struct Row {
    pid: Option<u32>,
    ppid: Option<u32>,
    comm: Option<String>,
    kind: &'static str,
    exited: Option<bool>,
    uid: Option<u32>,
    root: Option<PhysAddr>,
    cmdline: Option<Vec<String>>,
    exe: Option<String>,
    threads: Option<Vec<ThreadRow>>,
    /// The version of the Python that runs in it.
    python: Option<String>,
    frameworks: Vec<String>,
    framework_versions: BTreeMap<String, Option<String>>,
    models: usize,
    rss_bytes: Option<u64>,
    state: Option<char>,
    start_time_ns: Option<u64>,
    /// Whether it is in the kernel's list of processes.
    listed: Option<bool>,
    task: Option<VirtAddr>,
    mm: Option<VirtAddr>,
    /// The address of each fact in the kernel's memory.
    addresses: Map<String, Value>,
    #[serde(skip)]
    has_python: bool,
    #[serde(skip)]
    depth: usize,
}

#[derive(Serialize)]
struct ThreadRow {
    tid: u32,
    comm: Option<String>,
    state: Option<char>,
    task: Option<VirtAddr>,
}

pub(super) fn run(args: &PsArgs) -> Result<Outcome, Failure> {
    linux::run(&args.case, args.python || args.format != LineFormat::Table, |evidence| {
        let mut warnings = Vec::new();
        let mut document = Document { processes: &[], layout: None, direct_map: None };
        let Evidence { case, machine, pythons, .. } = evidence;
        let mut rows = match machine.as_deref() {
            Some(Ok(machine)) => {
                document.layout = Some(machine.layout().source);
                document.direct_map = Some(machine.kernel().direct_map());
                warnings.extend(machine.warnings());
                process_rows(machine, args)
            }
            Some(Err(reason)) => {
                let message = format!("{reason}; what is listed are the address spaces of processes");
                warnings.push(Diagnostic::new(Code::NoLinux, None, message));
                let spaces = case.spaces()?;
                let of_processes = spaces.discovery.spaces.iter().filter(|space| space.kind == SpaceKind::Process);
                let wanted = of_processes.filter(|space| args.which.wants_ids(None, Some(space.root)));
                wanted.map(|space| Row { root: Some(space.root), ..Row::unknown() }).collect()
            }
            None => {
                let memory = &case.spaces()?.memory;
                let image = case.dump().addresses.process().map(|image| of_image(memory, image));
                image.into_iter().filter(|row| args.which.wants_ids(row.pid, None)).collect()
            }
        };
        if let Some(facts) = pythons {
            warnings.extend(facts.warnings.iter().cloned());
            warnings.extend(add_python(&mut rows, facts, args));
        }
        if rows.is_empty() && (args.which.pid.is_some() || args.which.root.is_some()) && warnings.is_empty() {
            return Err(args.which.missing());
        }
        document.processes = &rows;
        stdout::print(|out| match args.format {
            LineFormat::Table => out.write_all(table(&rows, args).as_bytes()),
            LineFormat::Json => stdout::write_json(out, &document),
            LineFormat::Jsonl => rows.iter().try_for_each(|row| stdout::write_line(out, row)),
            LineFormat::Csv => csv(out, &rows),
        })?;
        Ok((if rows.is_empty() { Outcome::Nothing } else { Outcome::Found }, warnings))
    })
}

fn process_rows(machine: &Machine, args: &PsArgs) -> Vec<Row> {
    let wanted: Vec<&Process> = machine.processes().iter().filter(|process| args.which.wants(process)).collect();
    let order = if args.tree { tree(&wanted) } else { wanted.into_iter().map(|process| (process, 0)).collect() };
    order.into_iter().map(|(process, depth)| row(machine, process, depth)).collect()
}

/// The processes in the order of the tree, each with its depth.
fn tree<'p>(processes: &[&'p Process]) -> Vec<(&'p Process, usize)> {
    let pids: HashSet<u32> = processes.iter().map(|process| process.pid()).collect();
    let mut children: BTreeMap<Option<u32>, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        let parent = process.ppid.map(|ppid| ppid.value).filter(|ppid| pids.contains(ppid) && *ppid != process.pid());
        children.entry(parent).or_default().push(process);
    }
    let mut order = Vec::new();
    let mut todo: Vec<(&Process, usize)> = Vec::new();
    let mut visit = |from: Option<u32>, children: &mut BTreeMap<Option<u32>, Vec<&'p Process>>| {
        let add = |todo: &mut Vec<(&'p Process, usize)>, found: Option<Vec<&'p Process>>, depth| {
            todo.extend(found.into_iter().flatten().rev().map(|process| (process, depth)));
        };
        let mut todo = std::mem::take(&mut todo);
        add(&mut todo, children.remove(&from), 0);
        while let Some((process, depth)) = todo.pop() {
            order.push((process, depth));
            add(&mut todo, children.remove(&Some(process.pid())), depth + 1);
        }
    };
    visit(None, &mut children);
    // Parents can form a cycle.
    while let Some(from) = children.keys().next().copied() {
        visit(from, &mut children);
    }
    order
}

fn row(machine: &Machine, process: &Process, depth: usize) -> Row {
    let leader = &process.leader;
    let threads = process.threads.as_ref().map(|threads| threads.iter().map(thread).collect());
    Row {
        pid: Some(process.pid()),
        ppid: value(&process.ppid),
        comm: Some(process.comm().to_owned()),
        kind: if leader.is_kernel { "kernel" } else { "process" },
        exited: process.exited(),
        uid: value(&leader.uid),
        root: process.root,
        cmdline: machine.command_line(process),
        exe: machine.executable(process),
        threads,
        rss_bytes: machine.resident(process),
        state: value(&leader.state),
        start_time_ns: value(&leader.start_time),
        listed: Some(process.is_listed),
        task: Some(leader.address),
        mm: process.mm,
        addresses: addresses(process),
        depth,
        ..Row::unknown()
    }
}

fn thread(task: &Task) -> ThreadRow {
    ThreadRow {
        tid: task.pid.value,
        comm: Some(task.comm.value.clone()),
        state: value(&task.state),
        task: Some(task.address),
    }
}

fn value<T: Copy>(fact: &Option<Fact<T>>) -> Option<T> {
    fact.as_ref().map(|fact| fact.value)
}

fn addresses(process: &Process) -> Map<String, Value> {
    let leader = &process.leader;
    let facts = [
        ("pid", Some(leader.tgid.address)),
        ("ppid", process.ppid.as_ref().map(|fact| fact.address)),
        ("comm", Some(leader.comm.address)),
        ("uid", leader.uid.as_ref().map(|fact| fact.address)),
        ("state", leader.state.as_ref().map(|fact| fact.address)),
        ("start_time_ns", leader.start_time.as_ref().map(|fact| fact.address)),
        ("mm", leader.mm.as_ref().map(|fact| fact.address)),
    ];
    facts.into_iter().filter_map(|(name, address)| Some((name.to_owned(), json!(address?)))).collect()
}

/// The process of a process image.
fn of_image(memory: &Arc<PhysicalMemory>, image: &ProcessImage) -> Row {
    let thread = |tid: &u32| ThreadRow { tid: *tid, comm: None, state: None, task: None };
    Row {
        pid: image.pid,
        ppid: image.ppid,
        comm: image.comm.clone(),
        uid: image.uid,
        cmdline: command_line_of_image(&AddressSpace::of_image(memory), image),
        exe: executable_of_image(memory, image),
        threads: (!image.threads.is_empty()).then(|| image.threads.iter().map(thread).collect()),
        rss_bytes: Some(memory.held(PhysAddr(0)..memory.end())),
        state: image.state,
        ..Row::unknown()
    }
}

impl Row {
    /// A process of which nothing is known.
    fn unknown() -> Self {
        Self {
            pid: None,
            ppid: None,
            comm: None,
            kind: "process",
            exited: None,
            uid: None,
            root: None,
            cmdline: None,
            exe: None,
            threads: None,
            python: None,
            frameworks: Vec::new(),
            framework_versions: BTreeMap::new(),
            models: 0,
            rss_bytes: None,
            state: None,
            start_time_ns: None,
            listed: None,
            task: None,
            mm: None,
            addresses: Map::new(),
            has_python: false,
            depth: 0,
        }
    }
}

/// Adds what is known of the Pythons; says of those whose address space no process has.
fn add_python(rows: &mut Vec<Row>, facts: &PythonFacts, args: &PsArgs) -> Vec<Diagnostic> {
    let mut without_process = Vec::new();
    for found in &facts.interpreters {
        let is_here = |row: &Row| row.root.map_or(found.roots.is_empty(), |root| found.roots.contains(&root));
        let mut here = rows.iter_mut().filter(|row| is_here(row)).peekable();
        if let (None, Some(root)) = (here.peek(), found.roots.first())
            && args.which.pid.is_none()
            && args.which.root.is_none_or(|wanted| found.roots.contains(&wanted))
        {
            let version = found.version.as_deref().unwrap_or("of an unknown version");
            let message = format!("a Python {version} is in the address space {root}, which belongs to no process");
            without_process.push(Diagnostic::new(Code::PythonWithoutProcess, Some((*root).into()), message));
        }
        // Processes that share their memory share its Python.
        for row in here {
            row.has_python = true;
            row.python = row.python.take().or_else(|| found.version.clone());
            row.models += found.models;
            for framework in &found.frameworks {
                if !row.frameworks.contains(&framework.name) {
                    row.frameworks.push(framework.name.clone());
                    row.framework_versions.insert(framework.name.clone(), framework.version.clone());
                }
            }
        }
    }
    rows.retain(|row| row.has_python || !args.python);
    without_process
}

fn or_unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or("?".to_owned(), |value| value.to_string())
}

/// The command as ps(1) prints it: the arguments, or the name in brackets if there are none.
fn command(row: &Row) -> String {
    let text = match &row.cmdline {
        Some(arguments) if !arguments.is_empty() => arguments.join(" "),
        _ => format!("[{}]", row.comm.as_deref().unwrap_or("?")),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => printable(text.get(..end).unwrap_or(&text)) + "…",
        None => printable(&text),
    }
}

fn table(rows: &[Row], args: &PsArgs) -> String {
    let mut names = vec!["PID", "PPID", "UID", "STATE", "RSS", "ROOT", "NAME", "COMMAND"];
    if args.python {
        names.splice(7..7, ["PYTHON", "MODELS", "FRAMEWORKS"]);
    }
    let mut lines = Vec::new();
    for row in rows {
        let indent = "  ".repeat(row.depth.min(MAX_INDENT));
        let root = row.root.map_or("-".to_owned(), |root| root.to_string());
        let rss = row.rss_bytes.map_or("-".to_owned(), human_bytes);
        let state = if row.exited == Some(true) { "ended".to_owned() } else { or_unknown(row.state) };
        let name = indent + &printable(row.comm.as_deref().unwrap_or("?"));
        let mut cells =
            vec![or_unknown(row.pid), or_unknown(row.ppid), or_unknown(row.uid), state, rss, root, name, command(row)];
        if args.python {
            let of = |name: &String| match row.framework_versions.get(name) {
                Some(Some(version)) => printable(&format!("{name} {version}")),
                _ => format!("{name} ?"),
            };
            let frameworks: Vec<String> = row.frameworks.iter().map(of).collect();
            let python = row.python.as_deref().map_or("?".to_owned(), printable);
            cells.splice(7..7, [python, row.models.to_string(), frameworks.join(", ")]);
        }
        lines.push(cells);
        for thread in row.threads.iter().flatten().filter(|thread| args.threads && Some(thread.tid) != row.pid) {
            let name = "  ".repeat(row.depth.min(MAX_INDENT))
                + "  · "
                + &printable(thread.comm.as_deref().unwrap_or_default());
            let blank = String::new;
            let state = or_unknown(thread.state);
            let mut cells = vec![thread.tid.to_string(), blank(), blank(), state, blank(), blank(), name];
            cells.resize_with(names.len(), blank);
            lines.push(cells);
        }
    }
    columns(&names, if args.python { &[0, 1, 2, 4, 8] } else { &[0, 1, 2, 4] }, lines)
}

fn csv(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record([
        "pid",
        "ppid",
        "comm",
        "kind",
        "exited",
        "uid",
        "root",
        "cmdline",
        "exe",
        "threads",
        "python",
        "frameworks",
        "models",
        "rss_bytes",
        "state",
        "start_time_ns",
        "listed",
        "task",
        "mm",
    ])?;
    let text = |value: Option<String>| value.unwrap_or_default();
    for row in rows {
        csv.write_record([
            text(row.pid.map(|value| value.to_string())),
            text(row.ppid.map(|value| value.to_string())),
            text(row.comm.clone()),
            row.kind.to_owned(),
            text(row.exited.map(|value| value.to_string())),
            text(row.uid.map(|value| value.to_string())),
            text(row.root.map(|value| value.to_string())),
            text(row.cmdline.as_ref().map(|arguments| arguments.join(" "))),
            text(row.exe.clone()),
            text(row.threads.as_ref().map(|threads| threads.len().to_string())),
            text(row.python.clone()),
            row.frameworks.join(" "),
            row.models.to_string(),
            text(row.rss_bytes.map(|value| value.to_string())),
            text(row.state.map(|value| value.to_string())),
            text(row.start_time_ns.map(|value| value.to_string())),
            text(row.listed.map(|value| value.to_string())),
            text(row.task.map(|value| value.to_string())),
            text(row.mm.map(|value| value.to_string())),
        ])?;
    }
    csv.flush()
}
