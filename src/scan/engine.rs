//! The seam between what is looked for and the machine that looks: one trait, an implementation per backend.

use super::Hit;
use super::chunk::View;
use super::sweep::PointerSet;
use crate::addr::PhysAddr;
use crate::signature::{Mmu, Signatures, Structure};

/// The signatures in the form that engines use.
pub(super) struct Plan<'a> {
    pub(super) mmu: Option<&'a Mmu>,
    pub(super) structures: &'a [Structure],
}

impl<'a> Plan<'a> {
    pub(super) fn new(signatures: &'a Signatures) -> Self {
        Self { mmu: signatures.mmu(), structures: signatures.structures() }
    }
}

/// A way to look at memory. All engines find the same, bit for bit; [`super::scalar`] says what.
pub(super) trait Engine: Sync {
    /// Classifies whole `frames`, one byte of `classes` each, and adds the hits of all structures in any order.
    fn scan_frames(&self, plan: &Plan<'_>, frames: View<'_>, classes: &mut [u8], hits: &mut Vec<Hit>);

    /// Adds every 8-byte slot whose value is in the set, in the order of addresses.
    /// `slots` begins at a multiple of eight; its length is one.
    fn sweep(&self, values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>);
}
