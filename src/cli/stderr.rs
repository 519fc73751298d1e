//! Messages on stderr.

use std::io::{self, Write};

use tensorcarve::case::Spaces;
use tensorcarve::report::printable;
use tensorcarve::scan::SelectedBackend;

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

/// Prints that the results are from the index, if they are.
pub(super) fn print_index_use(spaces: &Spaces) {
    if spaces.from_index {
        print_message("the results of the scan and of paging are from the index; --no-index searches the dump again");
    }
}

/// Prints which backend searched, and why.
pub(super) fn print_backend(choice: &SelectedBackend) {
    print_message(&format!("backend {}: {}", choice.backend, choice.reason));
}
