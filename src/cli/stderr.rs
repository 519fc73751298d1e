//! Messages on stderr.

use std::io::{self, Write};

use tensorcarve::report::printable;

use super::args::VerbosityArgs;

/// Prints a message of one or more lines. It does not matter whether anybody reads stderr.
pub(crate) fn print_message(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints what an analyst should know of the results, unless only errors are wanted.
pub(super) fn print_warnings<'a>(warnings: impl Iterator<Item = &'a str>, verbosity: &VerbosityArgs) {
    if !verbosity.quiet {
        warnings.for_each(|warning| print_message(&format!("warning: {}", printable(warning))));
    }
}
