//! Code objects: names, file, and the line of an instruction.
//!
//! Line tables have three formats: pairs of deltas (`co_lnotab`, up to 3.9; Objects/lnotab_notes.txt), pairs of ranges
//! (PEP 626, 3.10), and locations (PEP 657, from 3.11 on; Objects/locations.md).

use super::bytes;
use super::layout::RuntimeLayout;
use crate::addr::{VirtAddr, field};
use crate::cpython::{Objects, bounded};

/// The longest name or path that is kept whole, in bytes.
const MAX_NAME: usize = 1024;
/// The largest line table that is read, in bytes.
const MAX_TABLE: u64 = 1 << 22;
/// Bytes of a code unit (`_Py_CODEUNIT`).
pub(super) const UNIT: i64 = 2;

/// A code object.
#[derive(Clone, Debug, Default)]
pub(super) struct Code {
    /// `co_name`.
    pub(super) name: Option<String>,
    /// `co_qualname`, from 3.11 on.
    pub(super) qualname: Option<String>,
    /// `co_filename`.
    pub(super) file: Option<String>,
    /// `co_firstlineno`.
    first_line: Option<i64>,
    lines: Lines,
}

/// A line table.
#[derive(Clone, Debug, Default)]
enum Lines {
    #[default]
    Unknown,
    Deltas(Vec<u8>),
    Ranges(Vec<u8>),
    Locations(Vec<u8>),
}

impl Code {
    /// Reads a code object. Fields that cannot be read are `None`.
    pub(super) fn read(objects: &Objects<'_>, layout: &RuntimeLayout, code: VirtAddr) -> Self {
        let text = |offset: Option<i64>| {
            let text = objects.pointer(code, offset?).ok().and_then(|text| objects.str(text).ok());
            text.map(|text| bounded(text, MAX_NAME))
        };
        let table = |offset: Option<i64>| {
            let table = objects.pointer(code, offset?).ok()?;
            bytes(objects, layout, table, MAX_TABLE)
        };
        let lines = match (table(layout.code_line_deltas), table(layout.code_line_table)) {
            (Some(deltas), _) => Lines::Deltas(deltas),
            // Both formats use the same field name. Locations were introduced together with adaptive bytecode.
            (None, Some(table)) if layout.code_start.is_some() => Lines::Locations(table),
            (None, Some(table)) => Lines::Ranges(table),
            (None, None) => Lines::Unknown,
        };
        Self {
            name: text(layout.code_name),
            qualname: text(layout.code_qualname),
            file: text(layout.code_file),
            first_line: layout.code_first_line.and_then(|offset| int32(objects, code, offset)).map(i64::from),
            lines,
        }
    }

    /// The line of the instruction at an offset in bytes. Before the first instruction it is the line of the definition.
    ///
    /// `None` if the instruction belongs to no line, or if the table can't be read.
    pub(super) fn line(&self, instruction: i64) -> Option<i64> {
        let first = self.first_line?;
        if instruction < 0 {
            return Some(first);
        }
        match &self.lines {
            Lines::Unknown => None,
            Lines::Deltas(table) => Some(by_deltas(table, first, instruction)),
            Lines::Ranges(table) => by_ranges(table, first, instruction),
            Lines::Locations(table) => by_locations(table, first, instruction),
        }
    }
}

/// A signed 32-bit field.
pub(super) fn int32(objects: &Objects<'_>, address: VirtAddr, offset: i64) -> Option<i32> {
    objects.memory().read_u32(field(address, offset)).ok().map(u32::cast_signed)
}

/// A byte as a signed number.
fn signed(byte: u8) -> i64 {
    i64::from(byte.cast_signed())
}

/// As `PyCode_Addr2Line` of 3.9 does (Objects/codeobject.c).
fn by_deltas(table: &[u8], first: i64, instruction: i64) -> i64 {
    let (mut line, mut at) = (first, 0i64);
    for [bytes, lines] in table.as_chunks().0 {
        at += i64::from(*bytes);
        if at > instruction {
            break;
        }
        line += signed(*lines);
    }
    line
}

/// As `PyLineTable_NextAddressRange` of 3.10 does (Objects/codeobject.c).
fn by_ranges(table: &[u8], first: i64, instruction: i64) -> Option<i64> {
    /// The delta that marks instructions without a line.
    const NO_LINE: i64 = -128;
    let (mut line, mut at) = (first, 0i64);
    for [bytes, lines] in table.as_chunks().0 {
        let delta = signed(*lines);
        line += if delta == NO_LINE { 0 } else { delta };
        at += i64::from(*bytes);
        if instruction < at {
            return (delta != NO_LINE).then_some(line);
        }
    }
    None
}

/// As `_PyLineTable_NextAddressRange` of 3.11 does (Objects/codeobject.c): every entry begins with a byte whose top bit is set.
fn by_locations(table: &[u8], first: i64, instruction: i64) -> Option<i64> {
    let (mut line, mut at) = (first, 0i64);
    let mut rest = table;
    while let Some((head, tail)) = rest.split_first() {
        let (kind, units) = (head >> 3 & 15, i64::from(head & 7) + 1);
        line = line.wrapping_add(match kind {
            // No columns, or long: the delta is a number of any length.
            13 | 14 => signed_number(tail),
            10..=12 => i64::from(kind) - 10,
            _ => 0,
        });
        at += units * UNIT;
        if instruction < at {
            return (kind != 15).then_some(line);
        }
        let next = tail.iter().position(|byte| byte & 0x80 != 0).unwrap_or(tail.len());
        rest = tail.get(next..).unwrap_or_default();
    }
    None
}

/// A signed number in groups of six bits, the lowest first (`scan_signed_varint`). Bits above 64 are dropped.
fn signed_number(bytes: &[u8]) -> i64 {
    let (mut value, mut shift) = (0u64, 0u32);
    for byte in bytes {
        value |= u64::from(byte & 0x3f).checked_shl(shift).unwrap_or_default();
        shift = shift.saturating_add(6);
        if byte & 0x40 == 0 {
            break;
        }
    }
    let magnitude = (value >> 1).cast_signed();
    if value & 1 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deltas_of_39() {
        // Line 10 for 6 bytes, line 12 for 300 bytes in two steps, then back to 11.
        let table = [6, 2, 255, 0, 45, 0xff];
        let lines = [0, 5, 6, 260, 305, 306, 9999].map(|at| by_deltas(&table, 10, at));
        assert_eq!(lines, [10, 10, 12, 12, 12, 11, 11]);
        assert_eq!(by_deltas(&[3], 7, 100), 7, "an odd byte at the end");
    }

    #[test]
    fn ranges_of_310() {
        // `def f(): pass` on line 4 to 6, with instructions of no line between.
        let table = [2, 1, 4, 0x80, 6, 1];
        let lines = [0, 1, 2, 5, 6, 11, 12].map(|at| by_ranges(&table, 4, at));
        assert_eq!(lines, [Some(5), Some(5), None, None, Some(6), Some(6), None]);
    }

    #[test]
    fn locations_of_311() {
        // co_linetable of a function: short form (same line, one unit), one line on (two units), a long form that goes 100 lines
        // back with columns, and one without a line.
        let table = [0x80, 0x12, 0x80 | 11 << 3 | 1, 4, 9, 0x80 | 14 << 3, 0x49, 3, 0, 1, 1, 0x80 | 15 << 3];
        assert_eq!(signed_number(&[0x49, 3]), -100);
        let lines = [0, 1, 2, 5, 6, 7, 8, 10].map(|at| by_locations(&table, 200, at));
        assert_eq!(lines, [Some(200), Some(200), Some(201), Some(201), Some(101), Some(101), None, None]);
        assert_eq!(signed_number(&[0xff; 64]), -(i64::MAX), "too long, yet it ends");
    }
}
