//! Layouts of structures: numbers with names, from a file or from the evidence of the dump.
//!
//! A layout is a table of offsets, sizes and flags, of one version of a program ([`StructLayout`]). Which one reads a dump is
//! decided by evidence: `rank` orders the tables by it and names the runner-up and the rivals, `release` tells which tables
//! could be of a version. Where no table fits, the numbers are inferred in one of two ways: the structures vote for each
//! number (`vote`), or a table is changed as long as more of what is read makes sense (`climb`).
//! [`LayoutSource`] and [`Change`] tell the analyst where the numbers come from.

mod change;
mod climb;
mod numbers;
mod rank;
mod release;
mod structure;
mod vote;

pub use change::{Change, LayoutSource, changes, changes_from_table};
pub(crate) use climb::{Checks, Group, climb};
pub use numbers::{LayoutError, MissingField, Numbers, StructLayout};
pub(crate) use numbers::{layout_struct, required, table};
pub(crate) use rank::Ranking;
pub(crate) use release::{Release, nearest, release};
pub(crate) use structure::{Structure, word_offsets};
pub(crate) use vote::{Votes, elect};
