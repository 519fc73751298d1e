//! How verbs work on a dump: the case that they ask, the threads, and what is said of the work.

use std::sync::Arc;

use rayon::ThreadPoolBuilder;
use tensorcarve::case::{Case, Options, Spaces};
use tensorcarve::scan::{self, SelectedBackend};
use tensorcarve::signature::Signatures;

use super::args::{CaseArgs, IndexArgs, WorkArgs};
use super::info::open;
use super::progress::Progress;
use super::{Failure, say};

impl CaseArgs {
    /// Opens the dump as a case, whose work the progress shows.
    pub(super) fn open(&self) -> Result<(Case, Arc<Progress>), Failure> {
        // Whatever can be refused is refused before the long work.
        self.work.backend.resolve()?;
        let signatures = Signatures::load(self.work.signatures.as_deref())?;
        let progress = Arc::new(Progress::new(&self.talk));
        let dump = open(&self.input, &progress)?;
        Ok((Case::new(dump, signatures, case_options(&self.work, &self.index, &progress)), progress))
    }
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
pub(super) fn say_choice(choice: &SelectedBackend) {
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
        .map_err(|error| Failure::new(format!("cannot start the threads ({error})")).hint("use fewer with -j"))?;
    Ok(pool.install(work))
}
