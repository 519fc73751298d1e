//! The sweep for pointers.

use super::select::select;
use super::slot_tests::{EqualTest, SpansTest};
use crate::addr::PhysAddr;
use crate::scan::chunk::View;
use crate::scan::engine::Engine;
use crate::scan::pointer_set::{PointerSet, Search};
use crate::scan::scalar::Scalar;
use crate::scan::vector::Vector;

/// Adds every slot whose value is in the set.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn sweep<V: Vector>(values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
    let bytes = slots.bytes;
    let value_at = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(|b| u64::from_le_bytes(*b));
    let mut survivor = |at: usize| {
        if let Some(value) = value_at(at)
            && values.contains_quick(value)
        {
            found.push((PhysAddr(slots.start.0 + at as u64), value));
        }
    };
    // SAFETY: the caller has made sure that the CPU has the instruction set of `V`.
    let rest = unsafe {
        match values.search() {
            Search::Few1(values) => select(bytes, &EqualTest::<V, 1>::new(values), &mut survivor),
            Search::Few2(values) => select(bytes, &EqualTest::<V, 2>::new(values), &mut survivor),
            Search::Few4(values) => select(bytes, &EqualTest::<V, 4>::new(values), &mut survivor),
            Search::Few8(values) => select(bytes, &EqualTest::<V, 8>::new(values), &mut survivor),
            Search::Spans1(spans) => select(bytes, &SpansTest::<V, 1>::new(spans), &mut survivor),
            Search::Spans4(spans) => select(bytes, &SpansTest::<V, 4>::new(spans), &mut survivor),
        }
    };
    let tail = PhysAddr(slots.end().0 - rest as u64)..slots.end();
    Scalar.sweep(values, slots.part(tail), found);
}
