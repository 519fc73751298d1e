//! Messages on stderr.

use std::io::{self, Write};

use tensorcarve::diagnostic::{Diagnostic, Level};
use tensorcarve::report::printable;

use super::args::VerbosityArgs;

/// Prints a message of one or more lines. It does not matter whether anybody reads stderr.
pub(crate) fn print_message(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints what an analyst should know of the results, unless only errors are wanted.
pub(super) fn print_diagnostics<'a>(diagnostics: impl IntoIterator<Item = &'a Diagnostic>, verbosity: &VerbosityArgs) {
    if !verbosity.quiet {
        diagnostics.into_iter().for_each(|diagnostic| print_message(&in_words(diagnostic)));
    }
}

/// The lines of a diagnostic.
fn in_words(diagnostic: &Diagnostic) -> String {
    let level = match diagnostic.level() {
        Level::Note => "note",
        Level::Warning => "warning",
    };
    let hint = diagnostic.hint.as_ref().map(|hint| format!("\nhint: {}", printable(hint)));
    format!("{level}: {}{}", printable(&diagnostic.message), hint.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tensorcarve::diagnostic::Code;

    use super::*;

    #[test]
    fn a_diagnostic_has_a_level_and_its_hint_a_line() {
        let note = Diagnostic::new(Code::CopiedDump, None, "copied\u{1b}".to_owned());
        assert_eq!(in_words(&note), "note: copied\\u{1b}");
        let warning = Diagnostic::new(Code::UnknownAddresses, None, "unknown".to_owned());
        let warning = Diagnostic { hint: Some("take another".to_owned()), ..warning };
        assert_eq!(in_words(&warning), "warning: unknown\nhint: take another");
    }
}
