//! Data on stdout.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};

use serde::Serialize;
use tensorcarve::report::printable;

use super::Failure;
use super::args::PlainFormat;

/// Text on its way to a terminal: control characters, which a dump may hold anywhere, are shown and not obeyed.
struct ForTerminal<W> {
    out: W,
    /// The beginning of a character whose other bytes have not come yet.
    begun: Vec<u8>,
}

impl<W: Write> Write for ForTerminal<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.begun.extend_from_slice(bytes);
        for chunk in std::mem::take(&mut self.begun).utf8_chunks() {
            for (index, line) in chunk.valid().split('\n').enumerate() {
                if index > 0 {
                    self.out.write_all(b"\n")?;
                }
                self.out.write_all(printable(line).as_bytes())?;
            }
            self.begun = chunk.invalid().to_vec();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Lets `print` write to stdout. A reader that has gone, like `head`, is no error.
pub(super) fn print(print: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let stdout = io::stdout().lock();
    let is_terminal = stdout.is_terminal();
    let mut out = BufWriter::new(stdout);
    let printed = match is_terminal {
        true => print(&mut ForTerminal { out: &mut out, begun: Vec::new() }),
        false => print(&mut out),
    };
    match printed.and_then(|()| out.flush()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_character() {
        let mut shown = Vec::new();
        let mut out = ForTerminal { out: &mut shown, begun: Vec::new() };
        let text = "a\u{9b}31m,\u{202e}\n\x1b[2J \u{7}Ä\n".as_bytes();
        // Characters arrive in pieces.
        text.iter().for_each(|byte| out.write_all(&[*byte]).unwrap());
        assert_eq!(String::from_utf8(shown).unwrap(), "a\\u{9b}31m,\\u{202e}\n\\u{1b}[2J \\u{7}Ä\n");
    }
}
