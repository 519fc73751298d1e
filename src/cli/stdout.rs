//! Data on stdout.

use std::io::{self, BufWriter, ErrorKind, Write};

use serde::Serialize;

use super::Failure;
use super::args::PlainFormat;

/// Lets `print` write to stdout. A reader that has gone, like `head`, is no error.
pub(super) fn print(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to stdout ({error})")).hint("redirect it to a disk with free space"))
        }
        _ => Ok(()),
    }
}

/// Writes a document as JSON for people.
pub(super) fn write_json<T: Serialize>(out: &mut dyn Write, document: &T) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, document)?;
    out.write_all(b"\n")
}

/// Writes a value as a line of JSON.
pub(super) fn write_line<T: Serialize>(out: &mut dyn Write, value: &T) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Prints a document in the format that the user wants.
pub(super) fn print_document<T: Serialize>(
    format: PlainFormat,
    document: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    print(|out| match format {
        PlainFormat::Json => write_json(out, document),
        PlainFormat::Table => out.write_all(table(document).as_bytes()),
    })
}
