//! What is wrong with a signature file, and where: file, line, column, key, reason.

use std::ops::Range;
use std::path::PathBuf;

/// Why signatures could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The folder or a file in it cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder holds no signature file: most likely it is the wrong folder.
    #[error("{}: no .toml file in this folder or its subfolders", .0.display())]
    Empty(PathBuf),
    /// A file says something that cannot be used.
    #[error("{file}:{line}:{column}: {key}: {reason}")]
    Invalid {
        /// The file, as it was named.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// Column in characters, counted from 1.
        column: usize,
        /// The key with its table, as `structure.field.range`.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A signature was asked for that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no signature is named `{name}`; the signatures are {}", known.join(", "))]
pub struct UnknownSignature {
    /// The name that was given.
    pub name: String,
    /// The names that there are.
    pub known: Vec<String>,
}

/// A place in a signature file.
#[derive(Clone, Debug)]
pub(super) struct Location {
    file: String,
    line: usize,
    column: usize,
    key: String,
}

impl Location {
    pub(super) fn error(&self, reason: impl Into<String>) -> SignatureError {
        SignatureError::Invalid {
            file: self.file.clone(),
            line: self.line,
            column: self.column,
            key: self.key.clone(),
            reason: reason.into(),
        }
    }

    /// `file:line`, to point at this place from the error of another.
    pub(super) fn short(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// The text of one signature file, which turns byte spans into places.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Text<'_> {
    pub(super) fn at(&self, span: Range<usize>) -> Location {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Location {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |line| line.chars().count()) + 1,
            key: self.key_at(line_start),
        }
    }

    pub(super) fn error(&self, span: Range<usize>, reason: impl Into<String>) -> SignatureError {
        self.at(span).error(reason)
    }

    /// The table and key that the line at byte `line_start` belongs to. TOML's own errors carry no
    /// key, so it is read from the text: the nearest `key =` and the nearest `[header]` at or above.
    fn key_at(&self, line_start: usize) -> String {
        let rest = self.text.get(line_start..).unwrap_or_default();
        let above = self.text.get(..line_start).unwrap_or_default();
        let lines = rest.lines().take(1).chain(above.lines().rev());
        let mut key = None;
        for line in lines.map(str::trim) {
            if let Some(header) = header_of(line) {
                return key.map_or(header.to_owned(), |key| format!("{header}.{key}"));
            }
            if key.is_none() && !line.starts_with(['#', '{']) {
                key = line.split_once('=').map(|(key, _)| key.trim().to_owned()).filter(|key| !key.is_empty());
            }
        }
        key.unwrap_or_else(|| "file".to_owned())
    }
}

/// The name in a line that is a `[table]` or `[[table]]` header.
fn header_of(line: &str) -> Option<&str> {
    let line = line.split('#').next().unwrap_or_default().trim();
    let name = line.strip_prefix('[')?.strip_suffix(']')?;
    let name = name.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(name).trim();
    let bare = |c: char| c.is_ascii_alphanumeric() || "_-.\"".contains(c);
    (name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(bare)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_becomes_line_column_and_key() {
        let text = "# note\n[[structure]]\nname = 1\n[[structure.field]]\none_of = [\n  1,\n  2,\n]\n";
        let source = Text { file: "a.toml", text };
        let at = |needle: &str| {
            let start = text.find(needle).unwrap();
            source.error(start..start + 1, "bad").to_string()
        };
        assert_eq!(at("1\n"), "a.toml:3:8: structure.name: bad");
        assert_eq!(at("2,"), "a.toml:7:3: structure.field.one_of: bad");
        assert_eq!(at("[structure]]"), "a.toml:2:2: structure: bad");
        assert_eq!(at("# note"), "a.toml:1:1: file: bad");
        let nameless = Text { file: "a.toml", text: "= 1\n" };
        assert_eq!(nameless.error(0..1, "bad").to_string(), "a.toml:1:1: file: bad");
        assert_eq!(source.error(9999..10000, "bad").to_string(), "a.toml:9:1: structure.field.one_of: bad");
    }
}
