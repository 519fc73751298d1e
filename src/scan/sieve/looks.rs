//! The closer look at the few slots that pass: tables with a bit for each entry.

use super::Entry;
use super::digits::{Column, Table};
use crate::addr::FRAME_SIZE;
use crate::scan::sample::BESIDE;

/// Slots around one that are looked at, with itself, and after them its value less its place.
const SLOTS: usize = 2 * BESIDE.unsigned_abs() + 1;
const VALUES: usize = SLOTS + 1;

/// What the entries say of a slot and of those around it.
#[derive(Clone, Debug)]
pub(super) struct Looks {
    /// For each slot the entries that allow zeros there.
    zeros: [u64; SLOTS],
    digits: Vec<Look>,
}

/// A digit that is looked up.
#[derive(Clone, Debug)]
struct Look {
    /// Of which value.
    value: usize,
    shift: u32,
    table: Table,
}

impl Looks {
    /// The columns are looked up in their order.
    pub(super) fn new(entries: &[(usize, Entry)], columns: &[&Column]) -> Self {
        let mut zeros = [0; SLOTS];
        for (zero, distance) in zeros.iter_mut().zip(-BESIDE..) {
            let may_be_zero = entries.iter().zip(0..).filter(|((_, entry), _)| entry.may_be_zero(distance));
            *zero = may_be_zero.fold(0, |zero, (_, entry)| zero | 1 << entry);
        }
        let digits = columns.iter().map(|column| {
            let slot = (column.distance + BESIDE).cast_unsigned();
            let value = if column.digit.is_relative { SLOTS } else { slot };
            Look { value, shift: column.digit.shift, table: column.table }
        });
        Self { zeros, digits: digits.collect() }
    }

    /// Those of the entries that the slot at `place` and those around it allow. Where some lie in another frame, all are left to
    /// the exact check.
    pub(super) fn reduce(&self, frame: &[u8; FRAME_SIZE as usize], place: usize, mut entries: u64) -> u64 {
        let from = place.checked_add_signed(-8 * BESIDE).and_then(|from| frame.get(from..));
        let Some(window) = from.and_then(<[u8]>::first_chunk::<{ 8 * SLOTS }>) else { return entries };
        let mut values = [0; VALUES];
        for ((value, bytes), zero) in values.iter_mut().zip(window.as_chunks().0).zip(self.zeros) {
            *value = u64::from_le_bytes(*bytes);
            entries &= if *value == 0 { zero } else { u64::MAX };
        }
        let [.., own, _, _, _, relative] = &mut values;
        *relative = own.wrapping_sub(place as u64);
        for Look { value, shift, table } in &self.digits {
            if entries == 0 {
                break;
            }
            let digit = values.get(value % VALUES).map_or(0, |value| value >> shift) as usize;
            entries &= table.get(digit % table.len()).copied().unwrap_or(u64::MAX);
        }
        entries
    }
}
