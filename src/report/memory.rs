//! The memory that was searched as the documents describe it: ranges of the dump, and files in place of mapped files.

use std::borrow::Cow;

use serde::Serialize;

use crate::dump::{FilledFile, MemoryRange, PhysicalMemory};

/// The most ranges of memory that a document lists.
const MAX_RANGES: usize = 1 << 16;

/// Ranges of memory that a document does not list.
#[derive(Serialize)]
pub(super) struct RangesLeftOut {
    count: usize,
    bytes: u64,
}

/// The ranges that come from the dump itself, as a document lists them: what a hostile container has in excess is counted.
pub(super) fn ranges(memory: &PhysicalMemory) -> (Vec<&MemoryRange>, Option<RangesLeftOut>) {
    let mut ranges = memory.own_ranges();
    let listed = ranges.by_ref().take(MAX_RANGES).collect();
    let empty = RangesLeftOut { count: 0, bytes: 0 };
    let add = |sum: RangesLeftOut, range: &MemoryRange| RangesLeftOut {
        count: sum.count + 1,
        bytes: sum.bytes.saturating_add(range.len()),
    };
    let left_out = ranges.fold(empty, add);
    (listed, Some(left_out).filter(|left_out| left_out.count > 0))
}

/// A file that was given for one that a process had mapped.
#[derive(Serialize)]
pub(super) struct FileRow<'a> {
    /// The mapped file, as the kernel named it.
    path: Cow<'a, str>,
    /// The file that was passed for it; its path says nothing about the dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    given: Option<Cow<'a, str>>,
    size: u64,
    sha256: &'a str,
    /// Bytes of memory that come from it, and bytes of it that the image also holds.
    filled: u64,
    agreed: u64,
}

impl<'a> FileRow<'a> {
    /// All of them; `local` also tells where they lay.
    pub(super) fn all(memory: &'a PhysicalMemory, local: bool) -> Vec<Self> {
        let row = |file: &'a FilledFile| Self {
            path: file.recorded.to_string_lossy(),
            given: local.then(|| file.local.to_string_lossy()),
            size: file.size,
            sha256: &file.sha256,
            filled: file.filled,
            agreed: file.agreed,
        };
        memory.files().iter().map(row).collect()
    }
}
