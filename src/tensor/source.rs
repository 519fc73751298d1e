//! The sources of a tensor's bytes that are not from the dump: files that the user passed for mapped files.

use std::collections::BTreeMap;

use serde::Serialize;

use super::gather::Elements;
use crate::addr::FileOffset;
use crate::paging::AddressSpace;

/// The most places in files that are listed for one tensor.
const MAX_SOURCES: usize = 256;

/// A part of a tensor that comes from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// What it comes from.
    pub source: &'static str,
    /// First byte of the contiguous tensor that comes from it; `None` where they are scattered over the tensor.
    pub start: Option<u64>,
    /// First byte that no longer does.
    pub end: Option<u64>,
    /// The mapped file, as the kernel named it when the image was taken.
    pub file: String,
    /// Where in the file the first byte lies.
    pub offset: FileOffset,
    /// Bytes from the first to the last one in the file.
    pub bytes: u64,
    /// SHA-256 of the file that was given, in lower-case hex.
    pub sha256: String,
}

/// The parts of a tensor or array that come from files, by address. If there are more than 256 places, there is one
/// entry per file.
pub fn sources(space: &AddressSpace, elements: &Elements) -> Vec<Source> {
    let Some((start, end)) = elements.span().filter(|(start, end)| start < end) else { return Vec::new() };
    let is_contiguous = elements.is_contiguous();
    let mut sources: Vec<Source> = Vec::new();
    let mut by_file: BTreeMap<u64, Source> = BTreeMap::new();
    for part in space.filled(start, end) {
        let (first, bytes) = (part.addresses.start.0 - start.0, part.addresses.end.0 - part.addresses.start.0);
        let source = || Source {
            source: "file",
            start: is_contiguous.then_some(first),
            end: is_contiguous.then_some(first + bytes),
            file: part.file.recorded.to_string_lossy().into_owned(),
            offset: FileOffset(part.offset),
            bytes,
            sha256: part.file.sha256.clone(),
        };
        if sources.len() <= MAX_SOURCES {
            sources.push(source());
        }
        let sum = by_file.entry(part.file.base()).or_insert_with(|| Source { bytes: 0, ..source() });
        (sum.start, sum.end) = (None, None);
        sum.offset = sum.offset.min(FileOffset(part.offset));
        sum.bytes = sum.bytes.saturating_add(bytes);
    }
    if sources.len() > MAX_SOURCES { by_file.into_values().collect() } else { sources }
}
