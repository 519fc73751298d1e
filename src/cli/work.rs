//! How verbs work on a dump: they open it, make the case that they ask, and start the threads.

use std::sync::Arc;

use rayon::ThreadPoolBuilder;
use tensorcarve::case::{Case, Options};
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::dump::{self, Source};
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::scan;
use tensorcarve::signature::Signatures;

use super::Failure;
use super::args::{CaseArgs, IndexArgs, InputArgs, WorkArgs};
use super::progress::Progress;

impl CaseArgs {
    /// Opens the dump as a case, whose work the progress shows.
    pub(super) fn open(&self) -> Result<(Case, Arc<Progress>), Failure> {
        // Whatever can be refused is refused before the long work.
        self.work.backend.resolve()?;
        let signatures = Signatures::load(self.work.signatures.as_deref())?;
        let progress = Arc::new(Progress::new(&self.verbosity));
        let dump = open(&self.input, &progress)?;
        Ok((Case::new(dump, signatures, case_options(&self.work, &self.index, &progress)), progress))
    }
}

/// Opens the dump that was named, as [`open_source`] does.
pub(super) fn open(input: &InputArgs, progress: &Progress) -> Result<dump::Dump, Failure> {
    open_source(Source::open(&input.dump)?, input, progress)
}

/// Opens the dump. If it is compressed, unpacking is a phase of its own.
pub(super) fn open_source(source: Source, input: &InputArgs, progress: &Progress) -> Result<dump::Dump, Failure> {
    dump::open_source(source, &input.options(), &unpacking(progress)).map_err(|error| {
        // The line of progress must not stay above the error.
        progress.finish();
        error.into()
    })
}

/// Shows how far a dump is unpacked, by the numbers of bytes that are done and that there are.
pub(crate) fn unpacking(observer: &impl Observer) -> impl Fn(u64, u64) {
    let seen = std::cell::Cell::new(None);
    move |done: u64, total: u64| {
        if seen.get().is_none() {
            observer.begin(Phase::Unpack, total);
        }
        observer.advance(done.saturating_sub(seen.get().unwrap_or(0)));
        seen.set(Some(done));
    }
}

/// How a verb works on its case.
pub(super) fn case_options(work: &WorkArgs, index: &IndexArgs, progress: &Arc<Progress>) -> Options {
    Options { backend: work.backend, observer: Arc::clone(progress) as _, index: index.index(), ..Options::default() }
}

/// That the GPU failed on the way, if it did.
pub(super) fn gpu_warning() -> Option<Diagnostic> {
    let reason = scan::gpu::given_up()?;
    Some(Diagnostic::new(Code::GpuFailed, None, format!("{reason}; the CPU did the rest")))
}

/// Runs `work` on as many threads as the user wants.
pub(super) fn in_pool<T: Send>(threads: Option<u16>, work: impl FnOnce() -> T + Send) -> Result<T, Failure> {
    let builder = ThreadPoolBuilder::new().num_threads(threads.map_or(0, usize::from));
    let pool = builder
        .build()
        .map_err(|error| Failure::new(format!("cannot start the threads ({error})")).hint("use fewer with -j"))?;
    Ok(pool.install(work))
}
