//! What `ps` and `maps` share: a dump opened, and the Linux machine in it.

use tensorcarve::addr::PhysAddr;
use tensorcarve::dump::Dump;
use tensorcarve::linux::{Machine, NoMachine, Process};
use tensorcarve::recover::{self, RecoverError, View};
use tensorcarve::scan;
use tensorcarve::signature::Signatures;

use super::args::{InputArgs, ProcessArgs, TalkArgs, WorkArgs};
use super::info::{open, say_warnings};
use super::progress::{Progress, say_times};
use super::spaces::{gpu_warning, in_pool, say_choice};
use super::{Failure, Outcome};

/// What a verb works on.
pub(super) struct Evidence<'e> {
    pub(super) dump: &'e Dump,
    /// What was found in the dump of a machine; `None` for the image of a process.
    pub(super) machine: Option<(&'e View, Result<Machine<'e>, NoMachine>)>,
}

/// Opens a dump and lets `work` look at it. Warnings are said at the end, and the outcome is that of a damaged dump where it is
/// one.
pub(super) fn run(
    (input, work_args, talk): (&InputArgs, &WorkArgs, &TalkArgs),
    work: impl FnOnce(&Evidence<'_>) -> Result<(Outcome, Vec<String>), Failure> + Send,
) -> Result<Outcome, Failure> {
    work_args.backend.resolve()?;
    let signatures = Signatures::load(work_args.signatures.as_deref())?;
    let mmu = signatures.mmu().ok_or(RecoverError::NoMmu)?;
    let progress = Progress::new(talk);
    let dump = open(input, &progress)?;
    let (outcome, mut warnings, choice, times) = in_pool(work_args.threads, || -> Result<_, Failure> {
        if dump.addresses.process().is_some() {
            let times = progress.finish();
            let (outcome, warnings) = work(&Evidence { dump: &dump, machine: None })?;
            return Ok((outcome, warnings, None, times));
        }
        let choice = scan::choose(&dump.memory, &signatures, work_args.backend)?;
        let view = View::new(&dump, mmu, &signatures, choice.backend, &progress);
        let rules = view.discovery.rules(mmu);
        progress.begin_named("linux", 0);
        let btfs = recover::btf_hits(&view.found, &signatures);
        let machine = Machine::find(&view.memory, &rules, &view.discovery, &btfs, choice.backend);
        let times = progress.finish();
        let (outcome, mut warnings) = work(&Evidence { dump: &dump, machine: Some((&view, machine)) })?;
        warnings.splice(0..0, view.discovery.warnings.iter().chain(&view.warnings).cloned());
        Ok((outcome, warnings, Some(choice), times))
    })
    .flatten()?;
    dump.memory.check()?;
    warnings.splice(0..0, dump.warnings.iter().cloned());
    warnings.extend(gpu_warning());
    say_warnings(warnings.iter().map(String::as_str), talk);
    if talk.verbose {
        choice.iter().for_each(say_choice);
        say_times(&times);
    }
    Ok(if dump.damaged && outcome == Outcome::Found { Outcome::Partly } else { outcome })
}

impl ProcessArgs {
    /// Whether the user wants to see this process.
    pub(super) fn wants(&self, process: &Process) -> bool {
        self.pid.is_none_or(|pid| process.pid() == pid) && self.root.is_none_or(|root| process.root == Some(root))
    }

    /// Says which process is not there.
    pub(super) fn missing(&self) -> Failure {
        let what = match (self.pid, self.root) {
            (Some(pid), _) => format!("there is no process {pid} in the dump"),
            (_, Some(PhysAddr(root))) => format!("there is no process with the root {root:#x} in the dump"),
            (None, None) => "there is no process in the dump".to_owned(),
        };
        Failure::new(what).hint("`tensorcarve ps` lists the processes")
    }
}
