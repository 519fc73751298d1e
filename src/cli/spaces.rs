//! `spaces`: the address spaces in a dump.

use std::sync::Arc;

use rayon::ThreadPoolBuilder;
use serde::Serialize;
use tensorcarve::case::{Case, Options, Spaces};
use tensorcarve::paging::{Attempt, Discovery, Space, SpaceKind};
use tensorcarve::report::columns;
use tensorcarve::scan::{self, Choice};
use tensorcarve::signature::Signatures;

use super::args::{IndexArgs, SpacesArgs, WorkArgs};
use super::info::{open, say_warnings};
use super::progress::{Progress, say_times};
use super::{Failure, Outcome, say, stdout};

#[derive(Serialize)]
struct Document<'a> {
    spaces: &'a [Space],
    tried: &'a [Attempt],
    /// The bit that page-table entries of encrypted memory have set; it is not part of an address.
    encryption_bit: Option<u32>,
    warnings: &'a [String],
}

pub(super) fn run(args: &SpacesArgs) -> Result<Outcome, Failure> {
    args.work.backend.resolve()?;
    let signatures = Signatures::load(args.work.signatures.as_deref())?;
    let progress = Arc::new(Progress::new(&args.talk));
    let dump = open(&args.input, &progress)?;
    if dump.addresses.process().is_some() {
        progress.finish();
        return Err(Failure::new(
            "the dump is a process image, which has no page tables; `tensorcarve info` lists its address ranges",
        ));
    }
    let case = Case::new(dump, signatures, case_options(&args.work, &args.index, &progress));
    let (spaces, choice) =
        in_pool(args.work.threads, || -> Result<_, Failure> { Ok((case.spaces()?, case.backend()?)) }).flatten()?;
    let times = progress.finish();
    let (dump, discovery) = (case.dump(), &spaces.discovery);
    stdout::print_document(args.format, &document(discovery), |_| table(discovery))?;
    let warnings = dump.warnings.iter().chain(&spaces.warnings).chain(&discovery.warnings).map(String::as_str);
    let notes = case.notes();
    let notes = notes.iter().map(String::as_str);
    say_warnings(warnings.chain(gpu_warning().as_deref()).chain(notes), &args.talk);
    if args.talk.verbose {
        say_choice(&choice);
        say_index(&spaces);
        say_times(&times);
    }
    Ok(match (discovery.spaces.is_empty(), dump.damaged) {
        (true, _) => {
            say("no address space found: is this a complete dump of an x86-64 machine?");
            Outcome::Nothing
        }
        (false, true) => Outcome::Partly,
        (false, false) => Outcome::Found,
    })
}

/// How a verb works on its case.
pub(super) fn case_options(work: &WorkArgs, index: &IndexArgs, progress: &Arc<Progress>) -> Options {
    Options { backend: work.backend, observer: Arc::clone(progress) as _, index: index.index() }
}

/// Says so if memory was not searched again.
pub(super) fn say_index(spaces: &Spaces) {
    if spaces.from_index {
        say("the results of the scan and of paging are from the index; --no-index searches the dump again");
    }
}

/// Says which backend searched, and why.
pub(super) fn say_choice(choice: &Choice) {
    say(&format!("backend {}: {}", choice.backend, choice.reason));
}

/// That the GPU failed on the way, if it did.
pub(super) fn gpu_warning() -> Option<String> {
    scan::gpu::given_up().map(|reason| format!("{reason}; the CPU did the rest"))
}

/// Runs `work` on as many threads as the user wants.
pub(super) fn in_pool<T: Send>(threads: Option<u16>, work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    let builder = ThreadPoolBuilder::new().num_threads(threads.map_or(0, usize::from));
    let pool = builder
        .build()
        .map_err(|error| Failure::new(format!("cannot start the threads ({error}); use fewer with --threads")))?;
    Ok(pool.install(work))
}

fn document(discovery: &Discovery) -> Document<'_> {
    Document {
        spaces: &discovery.spaces,
        tried: &discovery.tried,
        encryption_bit: discovery.encryption_bit,
        warnings: &discovery.warnings,
    }
}

fn table(discovery: &Discovery) -> String {
    let rows = discovery.spaces.iter().map(|space| {
        let kind = match space.kind {
            SpaceKind::Process => "process",
            SpaceKind::Kernel => "kernel",
            SpaceKind::Stale => "stale",
        };
        let user = space.kpti_user_root.map_or("-".to_owned(), |root| root.to_string());
        vec![space.root.to_string(), space.levels.to_string(), kind.to_owned(), user]
    });
    columns(&["ROOT", "LEVELS", "KIND", "KPTI USER ROOT"], &[1], rows)
}
