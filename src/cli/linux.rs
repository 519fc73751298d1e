//! What `ps`, `maps` and `core` share: they open the dump and find the Linux machine in it.

use std::sync::Arc;

use tensorcarve::addr::PhysAddr;
use tensorcarve::case::{Case, PythonFacts};
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::linux::{Machine, NoMachine, Process};

use super::args::{CaseArgs, ProcessArgs};
use super::progress::{Progress, print_work};
use super::stderr::print_diagnostics;
use super::work::{gpu_warning, in_pool};
use super::{Failure, Outcome};

/// The input of a verb.
pub(super) struct Evidence {
    pub(super) case: Case,
    /// The machine in the dump; `None` for a process image.
    pub(super) machine: Option<Arc<Result<Machine, NoMachine>>>,
    /// The Pythons, if they were asked for.
    pub(super) pythons: Option<Arc<PythonFacts>>,
    /// Where long work is shown.
    pub(super) progress: Arc<Progress>,
}

/// Opens a dump and calls `work` with it. Warnings are printed at the end. A damaged dump changes the outcome.
pub(super) fn run(
    args: &CaseArgs,
    with_python: bool,
    work: impl FnOnce(&Evidence) -> Result<(Outcome, Vec<Diagnostic>), Failure> + Send,
) -> Result<Outcome, Failure> {
    let verbosity = &args.verbosity;
    let (case, progress) = args.open()?;
    let is_image = case.dump().addresses.process().is_some();
    let (outcome, mut warnings, times) = in_pool(args.work.threads, || -> Result<_, Failure> {
        let machine = if is_image { None } else { Some(case.linux()?) };
        let pythons = if with_python { Some(case.python_facts()?) } else { None };
        progress.finish();
        let found = work(&Evidence { case: case.clone(), machine, pythons, progress: Arc::clone(&progress) });
        let times = progress.finish();
        let (outcome, mut warnings) = found?;
        if !is_image {
            let spaces = case.spaces()?;
            warnings.splice(0..0, spaces.discovery.warnings.iter().chain(&spaces.warnings).cloned());
        }
        Ok((outcome, warnings, times))
    })
    .flatten()?;
    let dump = case.dump();
    dump.memory.check()?;
    warnings.splice(0..0, dump.warnings.iter().cloned());
    warnings.extend(gpu_warning());
    warnings.extend(case.notes());
    print_diagnostics(&warnings, verbosity);
    if verbosity.verbose && !is_image {
        let spaces = case.spaces()?;
        let choice = if spaces.from_index { None } else { Some(case.backend()?) };
        print_work(choice.as_deref(), &spaces, &times);
    }
    Ok(if dump.damaged && outcome == Outcome::Found { Outcome::Partly } else { outcome })
}

impl ProcessArgs {
    /// Whether the user requested this process.
    pub(super) fn wants(&self, process: &Process) -> bool {
        self.wants_ids(Some(process.pid()), process.root)
    }

    /// The same of a process by its id and its root, as far as they are known.
    pub(super) fn wants_ids(&self, pid: Option<u32>, root: Option<PhysAddr>) -> bool {
        self.pid.is_none_or(|wanted| pid == Some(wanted)) && self.root.is_none_or(|wanted| root == Some(wanted))
    }

    /// Whether a process is named at all: a machine has many.
    pub(super) fn check_named(&self) -> Result<(), Failure> {
        match (self.pid, self.root) {
            (None, None) => Err(Failure::new("a machine has many processes").hint("choose one with --pid or --root")),
            _ => Ok(()),
        }
    }

    /// The requested root, of an address space that no task has: its page tables are all that is left of it.
    pub(super) fn root_without_task(&self, case: &Case) -> Result<PhysAddr, Failure> {
        let spaces = case.spaces()?;
        let is_known = |root: &PhysAddr| spaces.discovery.spaces.iter().any(|space| space.root == *root);
        self.root.filter(is_known).ok_or_else(|| self.missing())
    }

    /// The error that the requested process was not found.
    pub(super) fn missing(&self) -> Failure {
        let what = match (self.pid, self.root) {
            (Some(pid), _) => format!("there is no process {pid} in the dump"),
            (_, Some(PhysAddr(root))) => format!("there is no process with the root {root:#x} in the dump"),
            (None, None) => "there is no process in the dump".to_owned(),
        };
        Failure::new(what).hint("`tensorcarve ps` lists the processes")
    }
}
