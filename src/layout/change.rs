//! Where the numbers of a layout come from, and where they differ from a layout file.

use std::fmt;

use super::numbers::{Numbers, StructLayout};

/// The source of the numbers of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayoutSource {
    /// A layout file.
    Table,
    /// A layout file, and for those that it has the interpreter's own `_Py_DebugOffsets`.
    DebugOffsets,
    /// A layout file, changed until what is read with it makes sense.
    Inferred,
    /// The kernel's own type information (BTF), which is in the dump.
    Btf,
    /// A vote among the structures of the dump, without a layout file.
    Voting,
}

impl fmt::Display for LayoutSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "table",
            Self::DebugOffsets => "table and debug offsets",
            Self::Inferred => "inferred",
            Self::Btf => "BTF",
            Self::Voting => "voting",
        })
    }
}

/// A number that is not that of the layout file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Its name in layout files.
    pub number: &'static str,
    /// The file's number, if it has one.
    pub from: Option<i64>,
    /// The one that is used, if there is one.
    pub to: Option<i64>,
}

/// The numbers in which a layout differs from the one that it was made of. Both have the same names in the same order.
pub fn changes(from: Numbers, to: Numbers) -> Vec<Change> {
    let changed = from.into_iter().zip(to).filter(|(from, to)| from.1 != to.1);
    changed.map(|((number, from), (_, to))| Change { number, from, to }).collect()
}

/// The numbers in which a layout differs from the table of its version.
pub fn changes_from_table<L: StructLayout>(layout: &L, tables: &[L]) -> Vec<Change> {
    let table = tables.iter().find(|table| table.version() == layout.version());
    table.map(|table| changes(table.numbers(), layout.numbers())).unwrap_or_default()
}
