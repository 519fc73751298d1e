//! The job as a rule of the YARA family: YARA, YARA-X and boreal get the same text.
//!
//! The rule holds what its strings can say. A rule as a whole only says yes or no, so the structure's hits are
//! taken from the matches of its rarest field and checked in Rust: that is faster than arithmetic in the condition.

use std::fmt::Write;

use crate::job::{Hit, Job};

/// The text of the rule; string `$n7` is pattern 7.
pub fn text(job: &Job) -> String {
    let mut strings = String::new();
    for (pattern, n) in job.patterns().iter().zip(0..) {
        let hex: String = pattern.iter().map(|byte| format!("{byte:02x} ")).collect();
        let _ = writeln!(strings, "        $n{n} = {{ {hex}}}");
    }
    format!("rule job {{\n    strings:\n{strings}    condition:\n        any of them\n}}\n")
}

/// The hits that a match of the string `name` (with or without `$`) at `at` stands for.
pub fn hits(job: &Job, bytes: &[u8], name: &str, at: usize) -> Option<Hit> {
    let id: usize = name.trim_start_matches('$').strip_prefix('n')?.parse().ok()?;
    match job {
        Job::Needles(_) => Some((at, id)),
        Job::Type => job.hits_at(bytes, at).next(),
    }
}
