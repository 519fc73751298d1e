//! Pythons that run but can't be read: CPython 2, PyPy, and CPythons whose classes can't be read.

use std::fmt;

use memchr::memmem::Finder;

use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr, field};
use crate::cpython::Candidate;
use crate::diagnostic::{Code, Diagnostic};
use crate::paging::{AddressSpace, Mapping, VirtualMemory};
use crate::scan::Hit;
use crate::signature::{Layout, Signatures};

/// Family of the layouts that tell CPython 2 from CPython 3.
const FAMILY: &str = "cpython-2";
/// What the version of CPython 2 begins with in its `sys.version`, and what comes before that of PyPy.
const PYTHON2_VERSION: &[u8] = b"2.7.";
const PYPY_VERSION: &[u8] = b"[PyPy ";
/// Bytes of a version, at most.
const VERSION: usize = 16;
/// Bytes of `sys.version`, at most.
const VERSION_TEXT: u64 = 512;
/// Maximum number of interpreters whose version is searched for: each search scans all memory of the process.
const MAX_VERSIONS: usize = 16;
/// Pages in which versions are looked for, per frame of the dump, for all interpreters of a kind together: real ones share
/// few pages, hostile ones may all map the same.
const PAGES_PER_FRAME: u64 = 2;

/// A Python that runs but can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherPython {
    /// Root of its address space; `None` if the dump is a process image, which has no page tables.
    pub root: Option<PhysAddr>,
    /// Which Python.
    pub kind: OtherPythonKind,
    /// Its version, as its `sys.version` says.
    pub version: Option<String>,
    /// The address of the evidence: its `type`, or for PyPy the name of the module `__pypy__`.
    pub evidence: VirtAddr,
}

/// The kind of a Python that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OtherPythonKind {
    /// CPython 2.
    Python2,
    /// PyPy.
    Pypy,
    /// A CPython whose classes no layout can read.
    UnreadableCpython,
}

impl fmt::Display for OtherPython {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_deref();
        match self.kind {
            OtherPythonKind::Python2 => write!(f, "CPython {}", version.unwrap_or("2")),
            OtherPythonKind::Pypy => {
                write!(f, "PyPy{}", version.map_or(String::new(), |version| format!(" {version}")))
            }
            OtherPythonKind::UnreadableCpython => f.write_str("a CPython whose classes can't be read"),
        }
    }
}

impl OtherPython {
    /// The warning that it was found, and why it can't be read.
    pub(crate) fn warning(&self) -> Diagnostic {
        let place = self.root.map_or("the process".to_owned(), |root| format!("the address space {root}"));
        let at = self.evidence;
        let (code, message) = match self.kind {
            OtherPythonKind::Python2 => (
                Code::UnsupportedPython,
                format!(
                    "{self} runs in {place} (its `type` is at {at}): CPython 2 is not supported, so nothing of it is \
                     read"
                ),
            ),
            OtherPythonKind::Pypy => (
                Code::UnsupportedPython,
                format!(
                    "{self} runs in {place} (its module name `__pypy__` is at {at}): PyPy is not supported, so nothing of \
                 it is read"
                ),
            ),
            OtherPythonKind::UnreadableCpython => (
                Code::UnreadablePython,
                format!(
                    "{self} runs in {place} (its `type` is at {at}): either no layout file fits and none could be \
                 inferred, or too much of its memory is not in the dump; its models are not recovered"
                ),
            ),
        };
        Diagnostic::new(code, Some(at.into()), message)
    }

    /// An interpreter whose classes no layout can read.
    pub(crate) fn unreadable(candidate: &Candidate) -> Self {
        let (root, evidence) = (candidate.space.root(), candidate.type_object);
        Self { root, kind: OtherPythonKind::UnreadableCpython, version: None, evidence }
    }
}

/// Takes the interpreters of CPython 2 out of the candidates for `type`; `limit` bounds the page tables of each that are
/// looked at.
///
/// The `type` of CPython 2 is confirmed as that of CPython 3 is, and has the flags that all types of CPython 2 have.
pub(crate) fn python2(candidates: &mut Vec<Candidate>, signatures: &Signatures, limit: u64) -> Vec<OtherPython> {
    let mut found: Vec<OtherPython> = Vec::new();
    let mut pages = candidates.first().map_or(0, |candidate| most_pages(&candidate.space));
    for layout in signatures.layouts(FAMILY) {
        let is_python2 = |candidate: &Candidate| {
            let (offset, default) = layout.get("type.tp_flags").zip(layout.get("tp_flags.DEFAULT")).unwrap_or_default();
            let flags = candidate.space.read_u64(field(candidate.type_object, offset));
            default != 0 && flags.is_ok_and(|flags| flags & default.cast_unsigned() == default.cast_unsigned())
        };
        for candidate in candidates.extract_if(.., |candidate| is_python2(candidate)) {
            let (root, evidence) = (candidate.space.root(), candidate.type_object);
            let is_asked = found.len() < MAX_VERSIONS;
            let version = is_asked.then(|| python2_version(&candidate, layout, limit, &mut pages)).flatten();
            found.push(OtherPython { root, kind: OtherPythonKind::Python2, version, evidence });
        }
    }
    found
}

/// The version in a string of a CPython 2 that has the form of `sys.version`.
fn python2_version(candidate: &Candidate, layout: &Layout, limit: u64, pages: &mut u64) -> Option<String> {
    let Candidate { space, type_object, .. } = candidate;
    let (ob_type, ob_size, ob_sval) =
        (layout.get("object.ob_type")?, layout.get("str.ob_size")?, layout.get("str.ob_sval")?);
    let mut budget = limit;
    find_text(space, &space.user_mappings(&mut budget)?, PYTHON2_VERSION, pages, |at| {
        let string = field(at, -ob_sval);
        let type_of = |object: VirtAddr| space.read_u64(field(object, ob_type)).ok().map(VirtAddr);
        let is_string = type_of(type_of(string)?)? == *type_object;
        let length = space.read_u64(field(string, ob_size)).ok().filter(|length| *length <= VERSION_TEXT)?;
        let mut text = vec![0; usize::try_from(length).ok()?];
        space.read(at, &mut text).ok()?;
        // As in `2.7.18 (default, Apr 20 2020, 20:30:41) \n[GCC 9.3.0]`.
        let is_version = text.windows(2).any(|pair| pair == b" (") && text.windows(2).any(|pair| pair == b"\n[");
        (is_string && is_version).then(|| version(&text)).flatten()
    })
}

/// The PyPys among processes: `hits` are of the name of PyPy's module; those count that a process has mapped as data.
/// `limit` bounds the page tables of each process that are looked at.
pub(crate) fn pypys(spaces: &[AddressSpace], hits: &[Hit], limit: u64) -> Vec<OtherPython> {
    let mut found: Vec<OtherPython> = Vec::new();
    if hits.is_empty() {
        return found;
    }
    let mut pages = spaces.first().map_or(0, most_pages);
    for space in spaces {
        let mut budget = limit;
        let Some(mut mappings) = space.user_mappings(&mut budget) else { continue };
        mappings.retain(|mapping| !mapping.executable);
        let place = |mapping: &Mapping| {
            let first = hits.partition_point(|hit| hit.anchor < mapping.pa);
            let distance = hits.get(first)?.anchor.0 - mapping.pa.0;
            (distance < mapping.len).then(|| mapping.va.checked_add(distance)).flatten()
        };
        let Some(evidence) = mappings.iter().find_map(place) else { continue };
        let is_asked = found.len() < MAX_VERSIONS;
        let after = |at: VirtAddr| {
            let mut text = [0; VERSION];
            space.read(at.checked_add(PYPY_VERSION.len() as u64)?, &mut text).ok()?;
            version(&text)
        };
        let version = is_asked.then(|| find_text(space, &mappings, PYPY_VERSION, &mut pages, after)).flatten();
        found.push(OtherPython { root: space.root(), kind: OtherPythonKind::Pypy, version, evidence });
    }
    found
}

/// Pages in which versions are looked for.
fn most_pages(space: &AddressSpace) -> u64 {
    (space.memory().size() / FRAME_SIZE).saturating_mul(PAGES_PER_FRAME)
}

/// The version that a text begins with: numbers and dots, at least one of each.
fn version(text: &[u8]) -> Option<String> {
    let len = text.iter().take(VERSION).take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
    let version = std::str::from_utf8(text.get(..len)?).ok()?;
    let is_version = version.contains('.') && version.starts_with(|first: char| first.is_ascii_digit());
    is_version.then(|| version.trim_end_matches('.').to_owned())
}

/// The first answer to a place at which a text stands in data of a space. Places across the border of two pages that are
/// not neighbours in the dump are passed over. The pages that are looked at are taken off
/// `pages`; the search ends when none is left.
fn find_text(
    space: &AddressSpace,
    mappings: &[Mapping],
    text: &[u8],
    pages: &mut u64,
    answer: impl Fn(VirtAddr) -> Option<String>,
) -> Option<String> {
    let (finder, memory) = (Finder::new(text), space.memory());
    for mapping in mappings.iter().filter(|mapping| !mapping.executable) {
        for part in memory.parts(mapping.pa..PhysAddr(mapping.pa.0.saturating_add(mapping.len))) {
            *pages = pages.checked_sub(1 + part.len() / FRAME_SIZE)?;
            let start = mapping.va.checked_add(part.start.0 - mapping.pa.0)?;
            let places = finder.find_iter(memory.range_bytes(&part));
            let found = places.filter_map(|place| start.checked_add(place as u64)).find_map(&answer);
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_end_where_their_numbers_end() {
        assert_eq!(version(b"2.7.18 (default, "), Some("2.7.18".to_owned()));
        assert_eq!(version(b"2.7.18+ (default"), Some("2.7.18".to_owned()));
        assert_eq!(version(b"7.3.11 with GCC "), Some("7.3.11".to_owned()));
        assert_eq!(version(b"7.3.-alpha"), Some("7.3".to_owned()));
        for none in [&b""[..], b"7 with", b".7.3", b"with 7.3"] {
            assert_eq!(version(none), None);
        }
    }
}
