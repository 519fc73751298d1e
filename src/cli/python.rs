//! What the Python verbs share: they open the dump, find its interpreters and choose the requested ones.

use std::collections::BTreeSet;
use std::fmt;

use clap::Args;
use rayon::prelude::*;
use serde::Serialize;
use tensorcarve::addr::{PhysAddr, VirtAddr};
use tensorcarve::cpython::{self, Interpreter, Runtime, RuntimeLayout};
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::report::printable;

use super::args::{CaseArgs, LineFormat, ProcessArgs};
use super::progress::print_work;
use super::stderr::{print_diagnostics, print_message};
use super::work::{gpu_warning, in_pool};
use super::{Failure, Outcome};

/// Arguments of the Python verbs.
#[derive(Args)]
pub(in crate::cli) struct PythonArgs {
    #[command(flatten)]
    case: CaseArgs,
    #[command(flatten)]
    which: ProcessArgs,
    /// What to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(in crate::cli) format: LineFormat,
}

/// The process that a document describes.
#[derive(Clone, Debug, Serialize)]
pub(in crate::cli) struct ProcessKey {
    pub(in crate::cli) pid: Option<u32>,
    pub(in crate::cli) root: Option<PhysAddr>,
    pub(in crate::cli) python: Option<String>,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid.map(|pid| format!(" {pid}")).unwrap_or_default();
        let root = self.root.map(|root| format!(" with the root {root}")).unwrap_or_default();
        write!(f, "process{pid}{root}, Python {}", printable(self.python.as_deref().unwrap_or("?")))
    }
}

/// The results for the requested processes.
#[derive(Serialize)]
#[serde(untagged)]
pub(in crate::cli) enum Documents<T> {
    /// The result for the named process, or for the only process of an image.
    One(T),
    /// The results for all Python processes.
    All {
        /// One document for each process.
        processes: Vec<T>,
    },
}

impl<T> Documents<T> {
    pub(in crate::cli) fn all(&self) -> &[T] {
        match self {
            Self::One(document) => std::slice::from_ref(document),
            Self::All { processes } => processes,
        }
    }
}

/// Finds the interpreters of a dump, calls `describe` for each requested process, and prints the results with `print`.
///
/// `wanted` chooses the types whose instances are needed.
pub(in crate::cli) fn run<T: Send>(
    args: &PythonArgs,
    wanted: impl Fn(&Interpreter, &[RuntimeLayout]) -> BTreeSet<VirtAddr> + Sync + Send,
    describe: impl Fn(ProcessKey, &Runtime<'_>) -> (T, Vec<Diagnostic>) + Sync,
    print: impl FnOnce(&Documents<T>) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let (CaseArgs { work, verbosity, .. }, which) = (&args.case, &args.which);
    let (case, progress) = args.case.open()?;
    let dump = case.dump();
    let is_image = dump.addresses.process().is_some();
    let (mut found, mut warnings, choice) = in_pool(work.threads, || -> Result<_, Failure> {
        let (spaces, linux) = (case.spaces()?, case.linux()?);
        let (running, warnings) = case.running_interpreters(&wanted)?;
        let mut warnings = [spaces.warnings.clone(), spaces.discovery.warnings.clone(), warnings].concat();
        let described = running.runtimes().into_par_iter().map(|runtime| {
            let interpreter = runtime.interpreter();
            let root = interpreter.space().root();
            let of_kernel = linux.as_ref().as_ref().ok().and_then(|machine| spaces.process_of(machine, root?));
            let of_image = dump.addresses.process().and_then(|process| process.pid);
            let key = ProcessKey {
                pid: of_image.or(of_kernel.map(tensorcarve::linux::Process::pid)),
                root,
                python: cpython::python_version(&interpreter.objects(), runtime.modules()),
            };
            // If the pid is not known, the ids of the threads identify the process: the main thread has the same id.
            let is_pid = |pid: u32| key.pid.map_or_else(|| runtime.has_thread(pid.into()), |known| known == pid);
            let is_root = |wanted| key.root.is_some_and(|root| spaces.roots_of_same_memory(root).contains(&wanted));
            let is_asked_for = which.pid.is_none_or(is_pid) && which.root.is_none_or(is_root);
            is_asked_for.then(|| {
                let (document, more) = describe(key, &runtime);
                (document, [runtime.warnings(), more].concat())
            })
        });
        let described: Vec<Option<(T, Vec<Diagnostic>)>> = described.collect();
        let (found, more): (Vec<T>, Vec<Vec<Diagnostic>>) = described.into_iter().flatten().unzip();
        warnings.extend(more.into_iter().flatten());
        spaces.memory.check()?;
        Ok((found, warnings, case.backend()?))
    })
    .flatten()
    .inspect_err(|_| drop(progress.finish()))?;
    let times = progress.finish();
    warnings.splice(0..0, dump.warnings.iter().cloned());
    warnings.extend(case.notes());
    print_diagnostics(warnings.iter().chain(&gpu_warning()), verbosity);
    if verbosity.verbose {
        print_work(Some(&choice), &*case.spaces()?, &times);
    }
    if found.is_empty() {
        print_message("the requested CPython was not found (`tensorcarve recover -v` prints what was found)");
    }
    let is_found = !found.is_empty();
    let is_one = found.len() == 1 && (is_image || which.pid.is_some() || which.root.is_some());
    let documents = match found.pop() {
        Some(document) if is_one => Documents::One(document),
        last => Documents::All { processes: found.into_iter().chain(last).collect() },
    };
    print(&documents)?;
    Ok(match (is_found, dump.damaged) {
        (false, _) => Outcome::Nothing,
        (true, true) => Outcome::Partly,
        (true, false) => Outcome::Found,
    })
}
