//! How the work goes: a line on the terminal, and the time of each phase.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tensorcarve::case::Spaces;
use tensorcarve::progress::{Observer, Phase};
use tensorcarve::scan::SelectedBackend;

use super::args::VerbosityArgs;
use super::stderr::print_message;

const WITH_TOTAL: &str =
    "{prefix:>9} {bar:28} {decimal_bytes:>9} of {decimal_total_bytes} {decimal_bytes_per_sec:>11} ETA {eta}";
const WITHOUT_TOTAL: &str = "{prefix:>9} {spinner} {decimal_bytes} {elapsed}";

/// Watches the phases.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Bytes of the phase under way.
    bytes: AtomicU64,
    phases: Mutex<Phases>,
}

#[derive(Default)]
struct Phases {
    done: Vec<PhaseTime>,
    current: Option<(&'static str, Instant)>,
}

/// The time that a phase took.
#[derive(Clone, Copy)]
pub(super) struct PhaseTime {
    /// The phase's name, for people and for the manifest.
    pub(super) name: &'static str,
    pub(super) time: Duration,
    /// Bytes that it went through.
    pub(super) bytes: u64,
}

impl Progress {
    pub(super) fn new(verbosity: &VerbosityArgs) -> Self {
        // On anything but a terminal indicatif draws nothing.
        let is_wanted = !verbosity.quiet && !verbosity.no_progress;
        let target = if is_wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        Self { bar, bytes: AtomicU64::new(0), phases: Mutex::default() }
    }

    /// Ends the last phase and clears the line; the times of all phases, in their order.
    pub(super) fn finish(&self) -> Vec<PhaseTime> {
        let mut phases = self.phases();
        self.end_phase(&mut phases);
        self.bar.finish_and_clear();
        phases.done.clone()
    }

    fn phases(&self) -> MutexGuard<'_, Phases> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_phase(&self, phases: &mut Phases) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        let Some((name, start)) = phases.current.take() else { return };
        match phases.done.iter_mut().find(|done| done.name == name) {
            // A phase may be entered again, for the next process.
            Some(done) => {
                done.time += start.elapsed();
                done.bytes += bytes;
            }
            None => phases.done.push(PhaseTime { name, time: start.elapsed(), bytes }),
        }
    }
}

impl Observer for Progress {
    fn begin(&self, phase: Phase, total: u64) {
        self.begin_named(phase.name(), total);
    }

    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc(bytes);
    }
}

impl Progress {
    /// Begins a phase that only the command line has.
    pub(super) fn begin_named(&self, name: &'static str, total: u64) {
        let mut phases = self.phases();
        self.end_phase(&mut phases);
        phases.current = Some((name, Instant::now()));
        let template = if total > 0 { WITH_TOTAL } else { WITHOUT_TOTAL };
        // The templates are ours; a wrong one would only cost the form of the line.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.set_prefix(name);
        self.bar.set_style(style.progress_chars("=> "));
        self.bar.set_length(total);
        // Also after a phase that was the last one.
        self.bar.reset();
        self.bar.tick();
    }
}

/// Prints how the work went: which backend searched and why, if one did, whether the index was used, and the time of each phase.
pub(super) fn print_work(choice: Option<&SelectedBackend>, spaces: &Spaces, times: &[PhaseTime]) {
    if let Some(choice) = choice {
        print_message(&format!("backend {}: {}", choice.backend, choice.reason));
    }
    if spaces.from_index {
        print_message("the results of the scan and of paging are from the index; --no-index searches the dump again");
    }
    print_times(times);
}

/// Prints how long each phase took, how fast it went through its bytes, and how that compares with the scan.
pub(super) fn print_times(times: &[PhaseTime]) {
    let scan = times.iter().find(|phase| phase.name == Phase::Scan.name()).map(|phase| phase.time.as_secs_f64());
    for phase in times {
        let seconds = phase.time.as_secs_f64();
        let rate = match rate(phase.bytes, phase.time) {
            Some(rate) => format!("{rate:8.2} GB/s"),
            None => " ".repeat(13),
        };
        let share = match scan.map(|scan| 100.0 * seconds / scan) {
            Some(share) if phase.name != Phase::Scan.name() && share.is_finite() => format!("{share:6.0}% of the scan"),
            _ => String::new(),
        };
        print_message(format!("{:>9} {seconds:8.3} s {rate}{share}", phase.name).trim_end());
    }
}

/// Gigabytes per second; `None` where nothing is counted in bytes.
pub(super) fn rate(bytes: u64, time: Duration) -> Option<f64> {
    let rate = bytes as f64 / 1e9 / time.as_secs_f64();
    (bytes > 0 && rate.is_finite()).then_some(rate)
}
