//! Data on stdout.

use std::io::{self, BufWriter, ErrorKind, Write};

use super::Failure;

/// Lets `print` write to stdout. A reader that has gone, like `head`, is no error.
pub(super) fn print(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    match print(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to stdout ({error}); redirect it to a place with room")))
        }
        _ => Ok(()),
    }
}
