//! `_Py_DebugOffsets`, with which `_PyRuntime` begins from 3.13 on: an interpreter's own word for where its fields lie.
//!
//! The file of the program holds the same bytes, and the page cache with it. Those are believed that belong to an
//! interpreter that runs: its head, first thread and imported modules are where they should be.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::candidate::{Candidate, is_type_type};
use super::layout::Layout;
use super::object::{ObjectError, Objects};
use super::sweeper::Sweeper;
use crate::addr::{VirtAddr, field};
use crate::layout::StructLayout;
use crate::paging::VirtualMemory;
use crate::scan::Hit;
use crate::signature;

/// Family of the layouts that tell where in the structure which number stands.
const FAMILY: &str = "cpython-debug-offsets";
/// Cookies that are looked at; a machine holds one for each process, and one for each file in its page cache.
const MAX_COOKIES: usize = 1 << 14;
/// No structure of CPython's is larger, in bytes.
const MAX_SIZE: i64 = 1 << 20;
/// Bytes of a field without a width in its layout.
const POINTER: i64 = 8;
/// Prefixes of the names of such widths, and of numbers that are not part of the interpreter's layout.
const WIDTH: &str = "width.";
const OURS: [&str; 2] = ["debug_offsets.", WIDTH];
/// Fields that hold a size of a structure, not an offset in it.
const SIZES: [&str; 4] = ["size", "sizeof", "sizeof_ascii", "sizeof_compact"];

/// Why an interpreter's own numbers are not trusted: they contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{number} = {value} is not between {} and {}", .possible.start(), .possible.end())]
pub struct UnsoundOffset {
    /// The number, by its name in layout files.
    number: String,
    /// The interpreter's value, in bytes.
    value: i64,
    /// The possible values: sizes, or offsets at which the field is still inside its structure.
    possible: RangeInclusive<i64>,
}

/// Lets every candidate whose `_Py_DebugOffsets` are among the hits of their cookie be read with the numbers in them.
///
/// Returns those that are not trusted: index of the candidate, address of the structure, reason.
pub fn read_debug_offsets(
    candidates: &mut [Candidate],
    hits: impl Iterator<Item = Hit>,
    sweeper: &Sweeper,
    known: &signature::Signatures,
) -> BTreeMap<usize, (VirtAddr, UnsoundOffset)> {
    let mut unsound = BTreeMap::new();
    for (index, address) in hits.take(MAX_COOKIES).flat_map(|hit| sweeper.addresses(hit.anchor)) {
        let Some(candidate) = candidates.get_mut(index).filter(|candidate| candidate.debug_offsets.is_none()) else {
            continue;
        };
        let offsets = match DebugOffsets::read(&candidate.space, address, known) {
            Ok(Some(offsets)) => offsets,
            Ok(None) => continue,
            Err(reason) => {
                unsound.entry(index).or_insert((address, reason));
                continue;
            }
        };
        let layouts: Vec<Layout> = candidate.layouts.iter().map(|layout| offsets.over(layout)).collect();
        let belong = |layout: &Layout| {
            let objects = Objects::new(&candidate.space, layout);
            is_type_type(&objects, candidate.type_object) && offsets.belong_to(&objects, address, candidate.type_object)
        };
        let layouts: Vec<Layout> = layouts.into_iter().filter(belong).collect();
        if !layouts.is_empty() {
            (candidate.layouts, candidate.debug_offsets) = (layouts, Some(offsets));
            unsound.remove(&index);
        }
    }
    unsound
}

/// The numbers that an interpreter tells of itself, by their names in layout files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DebugOffsets {
    /// Where they stand: `_PyRuntime` begins with them.
    pub(super) runtime: VirtAddr,
    numbers: Vec<(String, i64)>,
}

impl DebugOffsets {
    /// Reads the structure at `address`; `None` if it is not a known one.
    fn read(
        memory: &dyn VirtualMemory,
        address: VirtAddr,
        known: &signature::Signatures,
    ) -> Result<Option<Self>, UnsoundOffset> {
        let found = known.layouts(FAMILY).find_map(|places| {
            let at = |key: &str| memory.read_u64(field(address, places.get(key)?)).ok();
            // PY_VERSION_HEX: major and minor version in the upper bytes of 32 bits.
            let version = u32::try_from(at("debug_offsets.version")?).ok()?;
            let [major, minor, ..] = version.to_be_bytes();
            if places.version != format!("{major}.{minor}") || at("debug_offsets.free_threaded")? > 1 {
                return None;
            }
            let is_told = |key: &&String| OURS.iter().all(|ours| !key.starts_with(ours));
            // What is no number of 63 bits is too large to be sound.
            let number = |key: &String| Some((key.clone(), at(key)?.try_into().unwrap_or(i64::MAX)));
            let numbers = places.fields.keys().filter(is_told).map(number);
            Some((Self { runtime: address, numbers: numbers.collect::<Option<_>>()? }, places))
        });
        let Some((offsets, places)) = found else { return Ok(None) };
        offsets.check(places)?;
        Ok(Some(offsets))
    }

    /// All numbers, by their names in layout files.
    pub(super) fn numbers(&self) -> &[(String, i64)] {
        &self.numbers
    }

    pub(super) fn get(&self, key: &str) -> Option<i64> {
        self.numbers.iter().find(|(known, _)| known == key).map(|(_, value)| *value)
    }

    /// Checks that no structure is too large, and that every field is completely inside its structure.
    fn check(&self, places: &signature::Layout) -> Result<(), UnsoundOffset> {
        for (number, value) in &self.numbers {
            let (of, name) = number.split_once('.').unwrap_or_default();
            let possible = if SIZES.contains(&name) {
                1..=MAX_SIZE
            } else {
                let size = SIZES.iter().take(2).find_map(|size| self.get(&format!("{of}.{size}"))).unwrap_or(MAX_SIZE);
                let width = places.get(&format!("{WIDTH}{number}")).unwrap_or(POINTER);
                0..=size.saturating_sub(width)
            };
            if !possible.contains(value) {
                return Err(UnsoundOffset { number: number.clone(), value: *value, possible });
            }
        }
        Ok(())
    }

    /// Whether they are those of a running interpreter whose `type` this is; `objects` read with a layout of theirs.
    pub(super) fn belong_to(&self, objects: &Objects<'_>, runtime: VirtAddr, type_object: VirtAddr) -> bool {
        let check = || -> Result<bool, ObjectError> {
            let pointer = |from: VirtAddr, key: &str| {
                let unknown = ObjectError::WrongType { address: from, expected: "structure of a known layout" };
                objects.pointer(from, self.get(key).ok_or(unknown)?)
            };
            let interpreter = pointer(runtime, "runtime_state.interpreters_head")?;
            let thread = pointer(interpreter, "interpreter_state.threads_head")?;
            let modules = pointer(interpreter, "interpreter_state.imports_modules")?;
            Ok(pointer(thread, "thread_state.interp")? == interpreter
                && objects.type_of(objects.type_of(modules)?)? == type_object
                && objects.has_type_flag(modules, objects.layout().flag_dict)?)
        };
        check().unwrap_or(false)
    }

    /// A layout with these numbers in place of its own.
    pub(super) fn over(&self, layout: &Layout) -> Layout {
        let mut layout = layout.clone();
        for (key, value) in &self.numbers {
            layout.set(key, Some(*value));
        }
        layout
    }
}
