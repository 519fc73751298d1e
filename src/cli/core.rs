//! `core`: a process of a machine as an ELF core.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use tensorcarve::linux::{Core, Process};
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::report::{NewFile, human_bytes, printable};
use tensorcarve::words::counted;

use super::args::{CaseArgs, ProcessArgs};
use super::linux::{self, Evidence};
use super::stderr::print_message;
use super::{Failure, Outcome, interrupt};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve core memory.lime --pid 188 -o core.188
  gdb python3 core.188 -ex 'info threads' -ex bt
  pystack core core.188 python3
  tensorcarve stack core.188

The core has each mapping of the process, with the bytes that the dump holds, and the registers of its
threads. Memory that is not in the dump is absent, never zeros: a debugger says that it can't be read.
That holds for pages that were never touched as well. Give gdb the program and, with `set sysroot`, a
copy of the machine's files, from which it reads code that is absent.";

/// Arguments of `core`.
#[derive(Args)]
pub(super) struct CoreArgs {
    #[command(flatten)]
    case: CaseArgs,
    #[command(flatten)]
    which: ProcessArgs,
    /// File to write, which must not exist. Only its owner can read it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

pub(super) fn run(args: &CoreArgs) -> Result<Outcome, Failure> {
    check_output(&args.case.input.dump, &args.output)?;
    let mut file = interrupt::undoable(|| NewFile::create(&args.output, args.overwrite), NewFile::cleanup)?;
    linux::run(&args.case, false, |evidence| {
        let core = find(evidence, &args.which)?;
        let progress = &evidence.progress;
        progress.begin(Phase::Write, core.size());
        file.write(core.size(), |out| core.write(out, &|bytes| progress.advance(bytes)))?;
        progress.finish();
        evidence.case.dump().memory.check()?;
        file.finish()?;
        interrupt::keep();
        if !args.case.verbosity.quiet {
            print_message(&summary(&args.output, &core));
        }
        let outcome = if core.is_whole() { Outcome::Found } else { Outcome::Partly };
        Ok((outcome, core.warnings))
    })
}

/// Refuses to write a core over the dump.
pub(crate) fn check_output(dump: &Path, output: &Path) -> Result<(), Failure> {
    match is_same_file(dump, output) {
        true => Err(Failure::new("the core would replace the dump").hint("choose another file")),
        false => Ok(()),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let key = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    key(one).is_some_and(|one| key(other) == Some(one))
}

/// The process that is asked for.
fn find(evidence: &Evidence, which: &ProcessArgs) -> Result<Core, Failure> {
    let machine = match evidence.machine.as_deref() {
        None => {
            return Err(Failure::new("the dump is a process image").hint(
                "`core` writes a process of a whole machine; gdb can read this image as it is, if it is a core",
            ));
        }
        Some(Err(reason)) => return Err(Failure::new(reason)),
        Some(Ok(machine)) => machine,
    };
    which.check_named()?;
    let mut wanted = machine.processes().iter().filter(|process| which.wants(process)).peekable();
    let first = wanted.peek().copied();
    match (wanted.find_map(|process| machine.core(process)), first) {
        (Some(core), _) => Ok(core),
        (None, Some(process)) => Err(without_memory(process)),
        (None, None) => Ok(machine.core_of_root(which.root_without_task(&evidence.case)?)),
    }
}

fn without_memory(process: &Process) -> Failure {
    let why = if process.leader.is_kernel {
        "it is a thread of the kernel"
    } else if process.exited() == Some(true) {
        "it has ended"
    } else {
        "its page tables can't be found"
    };
    Failure::new(format!("process {} has no memory of its own: {why}", process.pid()))
}

/// What the core has, and what of the process it does not have.
fn summary(path: &Path, core: &Core) -> String {
    let absent = core.mapped.saturating_sub(core.held).saturating_sub(core.swapped).saturating_sub(core.missing);
    let parts = [(core.swapped, "swapped out"), (core.missing, "not in the dump"), (absent, "not in memory")];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", human_bytes(*bytes)))
        .collect();
    let parts = if parts.is_empty() { String::new() } else { format!("; absent: {}", parts.join(", ")) };
    format!(
        "{}: {} of {} mapped, {}{parts}",
        printable(&path.display().to_string()),
        human_bytes(core.held),
        human_bytes(core.mapped),
        counted(core.threads, "thread", "threads"),
    )
}
