//! `recovery.json`: everything that was found, in one document.

use std::io::{self, Write};

use serde::Serialize;

use super::memory::{self, FileRow, RangesLeftOut};
use super::process::ProcessRow;
use super::{SCHEMA_VERSION, TOOL, json};
use crate::addr::{PhysAddr, VirtAddr};
use crate::diagnostic::Diagnostic;
use crate::dump::{Dump, Format, MemoryRange};
use crate::other_pythons::{OtherPython, OtherPythonKind};
use crate::paging::Space;
use crate::recover::Recovery;

/// Nesting down to which the document is indented: a tensor is one line.
pub(super) const DEPTH: usize = 6;

/// The document.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    schema_version: u32,
    tool: &'static str,
    dump: DumpRow<'a>,
    spaces: &'a [Space],
    processes: Vec<ProcessRow<'a>>,
    other_pythons: Vec<OtherPythonRow<'a>>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct OtherPythonRow<'a> {
    root: Option<PhysAddr>,
    kind: OtherPythonKind,
    version: Option<&'a str>,
    evidence: VirtAddr,
}

#[derive(Serialize)]
struct DumpRow<'a> {
    format: Format,
    /// `physical`, or `virtual` in the image of a process.
    addresses: &'static str,
    size: u64,
    damaged: bool,
    /// The bit that page-table entries of encrypted memory have set.
    encryption_bit: Option<u32>,
    ranges: Vec<&'a MemoryRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranges_left_out: Option<RangesLeftOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileRow<'a>>,
}

impl<'a> Document<'a> {
    pub(super) fn new(dump: &'a Dump, recovery: &'a Recovery) -> Self {
        let (ranges, ranges_left_out) = memory::ranges(&recovery.memory);
        Self {
            schema_version: SCHEMA_VERSION,
            tool: TOOL,
            dump: DumpRow {
                format: dump.format,
                addresses: dump.addresses.name(),
                size: dump.size,
                damaged: dump.damaged,
                encryption_bit: recovery.discovery.encryption_bit,
                ranges,
                ranges_left_out,
                files: FileRow::all(&recovery.memory, false),
            },
            spaces: &recovery.discovery.spaces,
            processes: recovery.processes.iter().map(ProcessRow::new).collect(),
            other_pythons: recovery.other_pythons.iter().map(OtherPythonRow::new).collect(),
            warnings: super::warnings(dump, recovery).map(Diagnostic::to_string).collect(),
        }
    }
}

impl<'a> OtherPythonRow<'a> {
    fn new(found: &'a OtherPython) -> Self {
        Self { root: found.root, kind: found.kind, version: found.version.as_deref(), evidence: found.evidence }
    }
}

/// Writes what `recovery.json` holds.
///
/// # Errors
/// `out` failed.
pub fn print_json(out: &mut dyn Write, dump: &Dump, recovery: &Recovery) -> io::Result<()> {
    json::write(out, DEPTH, &Document::new(dump, recovery))
}
