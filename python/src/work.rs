//! Long work: on a thread of its own, while Python handles signals and shows progress.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tensorcarve::progress::{Observer, Phase};

use crate::cli::Failure;
use crate::error::raise;

/// How often Python looks for signals.
const TICK: Duration = Duration::from_millis(50);

/// How far the work is, and who wants to know it.
#[derive(Default)]
pub(crate) struct Meter {
    callback: Option<Py<PyAny>>,
    /// The phase, and the bytes that it has; 0 if that is unknown.
    phase: Mutex<Option<(Phase, u64)>>,
    done: AtomicU64,
    /// When each phase began.
    begun: Mutex<Vec<(Phase, Instant)>>,
}

impl Meter {
    /// Calls `callback(phase, done, total)` with the phase's name and numbers of bytes while work goes on.
    pub(crate) fn new(callback: Option<Py<PyAny>>) -> Self {
        Self { callback, ..Self::default() }
    }

    /// The phases with their times, in their order; the last one ends now.
    pub(crate) fn times(&self) -> Vec<(&'static str, Duration)> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = begun.iter().skip(1).map(|(_, next)| *next).chain([Instant::now()]);
        begun.iter().zip(ends).map(|((phase, start), end)| (phase.name(), end.duration_since(*start))).collect()
    }

    fn show(&self, py: Python<'_>) -> PyResult<()> {
        let phase = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(callback), Some((phase, total))) = (&self.callback, phase) {
            let done = self.done.load(Ordering::Relaxed);
            callback.call1(py, (phase.name(), done, total))?;
        }
        Ok(())
    }
}

impl Observer for Meter {
    fn begin(&self, phase: Phase, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Some((phase, total));
        self.done.store(0, Ordering::Relaxed);
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push((phase, Instant::now()));
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Does long work. If Ctrl-C is pressed, `KeyboardInterrupt` is raised at once, and the work ends in the background.
pub(crate) fn run<T: Send + 'static, E: Into<Failure>>(
    py: Python<'_>,
    meter: &Meter,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> PyResult<T> {
    let (sender, mut receiver) = channel();
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(|| work().map_err(Into::into)));
        // Nobody waits after Ctrl-C.
        _ = sender.send(done);
    };
    thread::Builder::new().name("tensorcarve".to_owned()).spawn(work)?;
    loop {
        let received;
        // The receiver may be with one thread at a time, and so goes there and back.
        (receiver, received) = py.detach(move || {
            let received = receiver.recv_timeout(TICK);
            (receiver, received)
        });
        match received {
            Ok(Ok(done)) => return done.map_err(|failure| raise(py, failure)),
            Ok(Err(_)) | Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("tensorcarve failed; its message is on standard error"));
            }
            Err(RecvTimeoutError::Timeout) => {
                py.check_signals()?;
                meter.show(py)?;
            }
        }
    }
}
