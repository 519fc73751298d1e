//! What a list of processes says of the Python in each: little, so that the index keeps it.

use serde::{Deserialize, Serialize};

use super::Spaces;
use super::index::Kept;
use super::recover::Process;
use crate::addr::PhysAddr;
use crate::diagnostic::Diagnostic;
use crate::framework::ImportedFramework;
use crate::other_pythons::OtherPython;

/// The Pythons of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PythonFacts {
    /// One for each interpreter.
    pub interpreters: Vec<InterpreterFacts>,
    /// Warnings for the analyst.
    pub warnings: Vec<Diagnostic>,
}

/// What is known of one interpreter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterpreterFacts {
    /// The roots of the address spaces that show its memory; none if the dump is a process image, which has no page tables.
    pub roots: Vec<PhysAddr>,
    /// The version that its `sys.version` says; `None` where that can't be read.
    pub version: Option<String>,
    /// The frameworks that it has imported, by name.
    pub frameworks: Vec<ImportedFramework>,
    /// Models that are alive in it, those that it shares with other processes included.
    pub models: usize,
}

impl Kept for PythonFacts {
    const NAME: &'static str = "pythons";
    const VERSION: u32 = 3;
}

impl PythonFacts {
    pub(super) fn new(spaces: &Spaces, processes: &[Process], others: &[OtherPython], warnings: &[Diagnostic]) -> Self {
        let roots = |root: Option<PhysAddr>| root.map(|root| spaces.roots_of_same_memory(root)).unwrap_or_default();
        let readable = processes.iter().filter_map(|process| {
            Some(InterpreterFacts {
                roots: roots(process.root()),
                version: process.python.as_ref()?.version.clone(),
                frameworks: process.frameworks.clone(),
                models: process.models.len() + process.shared_models.len(),
            })
        });
        let unreadable = others.iter().map(|other| InterpreterFacts {
            roots: roots(other.root),
            version: other.version.clone(),
            frameworks: Vec::new(),
            models: 0,
        });
        Self { interpreters: readable.chain(unreadable).collect(), warnings: warnings.to_vec() }
    }
}
