//! Errors as the user sees them: one line that says what is wrong, and what to try below it.

use std::fmt;

use tensorcarve::case::CaseError;
use tensorcarve::report::printable;
use tensorcarve::signature::{SignatureError, UnknownSignature};

/// Why a run failed.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hints: Vec<String>,
}

impl Failure {
    pub(crate) fn new(error: impl fmt::Display) -> Self {
        Self { message: error.to_string(), hints: Vec::new() }
    }

    /// Adds what to try.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// What is wrong. Names of files are in it, and a file that came with the evidence may have any name.
    pub(crate) fn text(&self) -> String {
        printable(&self.message)
    }

    /// What to try.
    pub(crate) fn hints(&self) -> Vec<String> {
        self.hints.iter().map(|hint| printable(hint)).collect()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.text())?;
        self.hints().iter().try_for_each(|hint| write!(f, "\nhint: {hint}"))
    }
}

impl From<tensorcarve::dump::DumpError> for Failure {
    fn from(error: tensorcarve::dump::DumpError) -> Self {
        Self::new(&error).hint(error.reason.hint())
    }
}

impl From<tensorcarve::dump::FillError> for Failure {
    fn from(error: tensorcarve::dump::FillError) -> Self {
        Self::new(&error).hint(error.hint())
    }
}

impl From<tensorcarve::report::OutputError> for Failure {
    fn from(error: tensorcarve::report::OutputError) -> Self {
        Self::new(&error).hint(error.hint())
    }
}

impl From<tensorcarve::scan::BackendError> for Failure {
    fn from(error: tensorcarve::scan::BackendError) -> Self {
        Self::new(&error).hint(error.hint())
    }
}

impl From<CaseError> for Failure {
    fn from(error: CaseError) -> Self {
        match error {
            CaseError::Input(error) => error.into(),
            CaseError::Backend(error) => error.into(),
            error => Self::new(error).hint("omit --signatures to use the built-in signatures"),
        }
    }
}

impl From<UnknownSignature> for Failure {
    fn from(error: UnknownSignature) -> Self {
        Self::new(error).hint("use one of these, or add your own with --signatures")
    }
}

impl From<SignatureError> for Failure {
    fn from(error: SignatureError) -> Self {
        let hint = match error {
            SignatureError::Invalid { .. } => "signatures/README.md explains every key",
            SignatureError::Empty(_) => "pass a folder with signature files, or omit --signatures",
            SignatureError::Unreadable { .. } => "check the path after --signatures",
        };
        Self::new(error).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_try_is_a_line_of_its_own() {
        let failure = Failure::new("a: is b; not c").hint("name another").hint("or none");
        assert_eq!(failure.to_string(), "error: a: is b; not c\nhint: name another\nhint: or none");
        assert_eq!(Failure::new("a").to_string(), "error: a");
    }

    #[test]
    fn names_of_files_do_not_steer_the_terminal() {
        let failure = Failure::new("\u{1b}[31m.lime: there is no such file").hint("check \u{7}");
        assert_eq!(failure.to_string(), "error: \\u{1b}[31m.lime: there is no such file\nhint: check \\u{7}");
    }
}
