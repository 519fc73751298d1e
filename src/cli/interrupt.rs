//! Signals: Ctrl-C ends the run at once and leaves the output unchanged; exceeding the file size limit is an
//! error.

use std::process;
use std::sync::{Mutex, PoisonError};

use tensorcarve::report::Cleanup;

use super::Failure;
use super::stderr::print_message;

/// What is to be undone.
static PENDING: Mutex<Option<Cleanup>> = Mutex::new(None);
/// Exit code of a program that was interrupted: 128 plus the number of SIGINT.
const INTERRUPTED: i32 = 130;

/// Installs the handler.
pub(super) fn install() -> Result<(), Failure> {
    // SAFETY: no handler of ours is involved: a write past `ulimit -f` then fails as on a full disk, where the signal would
    // end the process and leave the folder behind.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let handler = || {
        // The file that a dump is unpacked to has no name, and goes with the process.
        let pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner).take();
        let is_undone = pending.is_some_and(|cleanup| cleanup.run_for_good());
        let output = if is_undone { "; the output is unchanged" } else { "" };
        print_message(&format!("\ninterrupted{output}"));
        process::exit(INTERRUPTED);
    };
    ctrlc::set_handler(handler).map_err(|error| Failure::new(format!("cannot install the Ctrl-C handler ({error})")))
}

/// Makes something, and tells the handler how to undo it; the handler waits until both is done.
pub(super) fn undoable<T, E>(make: impl FnOnce() -> Result<T, E>, cleanup: impl FnOnce(&T) -> Cleanup) -> Result<T, E> {
    let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
    let made = make()?;
    *pending = Some(cleanup(&made));
    Ok(made)
}

/// Tells the handler that there is nothing to undo any more.
pub(super) fn keep() {
    *PENDING.lock().unwrap_or_else(PoisonError::into_inner) = None;
}
