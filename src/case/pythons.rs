//! The second stage: the Python interpreters in the address spaces.

use std::collections::BTreeSet;

use super::{CaseError, Spaces};
use crate::addr::VirtAddr;
use crate::cpython::{self, Candidate, Interpreter, Layout, Sweeper, UnsoundOffset};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::PhysicalMemory;
use crate::other_pythons::{self, OtherPython};
use crate::progress::{Observer, Phase};
use crate::scan::{Backend, Hit};
use crate::signature::Signatures;

/// The signatures of CPython's `type` object, or what their names begin with, and of the cookie before what it tells.
pub(super) const TYPE_SIGNATURE: &str = "cpython.type";
const DEBUG_OFFSETS: &str = "cpython.debug_offsets";
/// The signature of the name of a module that every PyPy has.
const PYPY_NAME: &str = "pypy.module_name";
/// Address spaces without room that are named one by one.
const MAX_ROOTS_NAMED: usize = 8;
/// Pythons that can't be read and that are named one by one.
const MAX_OTHERS_NAMED: usize = 16;

/// The interpreters in a dump, with their types and the instances of those that were wanted.
pub struct Pythons {
    /// The CPython 3 interpreters, which are read.
    pub interpreters: Vec<Interpreter>,
    /// Other interpreters, which are not read.
    pub others: Vec<OtherPython>,
    /// The pages of their processes, for further sweeps.
    pub sweeper: Sweeper,
    /// The layouts of all known versions.
    pub layouts: Vec<Layout>,
    /// Warnings for the analyst.
    pub warnings: Vec<Diagnostic>,
}

impl Pythons {
    /// Finds the interpreters, and the instances of the types that `wanted` picks in each. `wanted` is called again
    /// when more types are known, and may only add to its answer.
    ///
    /// # Errors
    /// The signatures lack required entries, or the dump can no longer be read.
    pub fn find(
        spaces: &Spaces,
        signatures: &Signatures,
        backend: Backend,
        wanted: impl Fn(&Interpreter) -> BTreeSet<VirtAddr> + Sync,
        observer: &dyn Observer,
    ) -> Result<Self, CaseError> {
        signatures.index_of(TYPE_SIGNATURE).ok_or(CaseError::NoTypeSignature)?;
        let layouts = cpython::layouts(signatures)?;
        observer.begin(Phase::Cpython, 0);
        let memory: &PhysicalMemory = &spaces.memory;
        let mut warnings = Vec::new();
        let types: Vec<Hit> = spaces.hits_of(signatures, |name| name.starts_with(TYPE_SIGNATURE)).collect();
        let (distinct, copies) = spaces.distinct();
        if copies > 0 {
            let message = format!(
                "{copies} page-table roots show the same user memory as another: each such memory is searched once"
            );
            warnings.push(Diagnostic::new(Code::CopiedRoots, None, message));
        }
        let mut candidates = cpython::candidates(memory, &types, &distinct, &layouts);
        let limit = spaces.mapping_limit();
        let mut others = other_pythons::python2(&mut candidates, signatures, limit);
        let pypy_names: Vec<Hit> = spaces.hits_of(signatures, |name| name == PYPY_NAME).collect();
        others.extend(other_pythons::pypys(&spaces.of_processes(), &pypy_names, limit));
        let (sweeper, left_out) = Sweeper::new(memory.searchable(), backend, &candidates, limit);
        let mut left_out = left_out.into_iter().filter_map(|index| candidates.get(index)?.space.root());
        for root in left_out.by_ref().take(MAX_ROOTS_NAMED) {
            let message = format!("the page tables under {root} map more than the dump can hold: left out");
            warnings.push(Diagnostic::new(Code::HostilePageTables, Some(root.into()), message));
        }
        let further = left_out.count();
        if further > 0 {
            let message =
                format!("the page tables under {further} further roots map more than the dump can hold: left out");
            warnings.push(Diagnostic::new(Code::HostilePageTables, None, message));
        }
        let cookies = spaces.hits_of(signatures, |name| name == DEBUG_OFFSETS);
        let unsound = cpython::read_debug_offsets(&mut candidates, cookies, &sweeper, signatures);
        let unsound = unsound.iter().filter_map(|(index, found)| Some(unsound_offsets(candidates.get(*index)?, found)));
        warnings.extend(unsound);
        let (interpreters, unread) = cpython::interpreters(&candidates, &layouts, &sweeper, wanted);
        let unreadable = unread.into_iter().filter_map(|index| candidates.get(index)).map(OtherPython::unreadable);
        // What looks like CPython in a process of PyPy is its imitation of CPython's C API.
        let unreadable: Vec<OtherPython> =
            unreadable.filter(|found| others.iter().all(|other| other.root != found.root)).collect();
        others.extend(unreadable);
        warnings.extend(others.iter().take(MAX_OTHERS_NAMED).map(OtherPython::warning));
        let further = others.len().saturating_sub(MAX_OTHERS_NAMED);
        if further > 0 {
            let message = format!("{further} further Pythons that can't be read: other_pythons lists them");
            warnings.push(Diagnostic::new(Code::UnsupportedPython, None, message));
        }
        memory.check()?;
        Ok(Self { interpreters, others, sweeper, layouts, warnings })
    }
}

/// A warning that an interpreter's own offsets are inconsistent.
fn unsound_offsets(candidate: &Candidate, (address, reason): &(VirtAddr, UnsoundOffset)) -> Diagnostic {
    let message = format!(
        "the CPython with `type` at {} is read without its own _Py_DebugOffsets at {address}, which are unsound: \
         {reason}",
        candidate.type_object
    );
    Diagnostic::new(Code::UnsoundDebugOffsets, Some((*address).into()), message)
}
