//! Errors: one exception, with the hint that the command line prints.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::cli::Failure;

create_exception!(
    tensorcarve,
    Error,
    PyException,
    "Why something could not be done. `hint` says what to try, or is None."
);

/// Makes the exception of an error.
pub(crate) fn raise(py: Python<'_>, failure: impl Into<Failure>) -> PyErr {
    let failure = failure.into();
    let error = PyErr::new::<Error, _>(failure.text());
    let hint = failure.hints().join("\n");
    // An exception without its hint is better than another exception.
    _ = error.value(py).setattr("hint", (!hint.is_empty()).then_some(hint));
    error
}

/// The same of a message and what to try.
pub(crate) fn refuse(py: Python<'_>, message: impl std::fmt::Display, hint: &str) -> PyErr {
    raise(py, Failure::new(message).hint(hint))
}
