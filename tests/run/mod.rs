//! A run of which the output says nothing, for tests of what is written.

use std::path::Path;
use std::time::SystemTime;

use tensorcarve::report::Run;

/// A run on this file.
pub fn nameless(input: &Path) -> Run {
    Run {
        arguments: Vec::new(),
        backend: String::new(),
        backend_reason: String::new(),
        warnings: Vec::new(),
        threads: 1,
        input: input.to_owned(),
        hashes: Vec::new(),
        started: SystemTime::now(),
        phases: Vec::new(),
        division: None,
    }
}
