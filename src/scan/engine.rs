//! The seam between what is looked for and the machine that looks: one trait, an implementation per backend.
//!
//! An engine gets a run of whole frames, so one that copies them elsewhere first (a GPU) can do so
//! in pieces of its own choice.

use super::Hit;
use super::chunk::View;
use super::filter::Anchor;
use super::frames::ABSENT_FRAME;
use super::pointer_set::PointerSet;
use crate::addr::PhysAddr;
use crate::signature::{Leaf, Mmu, Signatures, Structure};

/// The signatures in the form that engines use.
pub(super) struct Plan<'a> {
    pub(super) mmu: Option<&'a Mmu>,
    pub(super) rules: Option<FrameRules>,
    pub(super) structures: &'a [Structure],
    /// One for each structure.
    pub(super) anchors: Vec<Anchor>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(signatures: &'a Signatures) -> Self {
        let structures = signatures.structures();
        Self {
            mmu: signatures.mmu(),
            rules: signatures.mmu().map(FrameRules::new),
            structures,
            anchors: structures.iter().map(Anchor::new).collect(),
        }
    }
}

/// The rules of page-table frames, reduced to what can be told from entries or-ed together.
#[derive(Clone, Debug, Default)]
pub(super) struct FrameRules {
    pub(super) present: u64,
    pub(super) leaf_bit: u64,
    pub(super) reserved: u64,
    /// The bit of a level in the class, and the bits that entries with the leaf bit must not have there.
    levels: Vec<(u8, u64)>,
}

impl FrameRules {
    fn new(mmu: &Mmu) -> Self {
        let levels = mmu.levels.iter().map(|level| {
            let forbidden = match level.leaf {
                Leaf::Always => 0,
                Leaf::ByLeafBit => level.leaf_zero,
                Leaf::Never => u64::MAX,
            };
            (1 << (level.level - 1), forbidden)
        });
        Self { present: mmu.present, leaf_bit: mmu.leaf_bit, reserved: mmu.reserved, levels: levels.collect() }
    }

    /// The class of a frame that is not zero, whose present entries, or-ed, are `present`, and those of them with
    /// the leaf bit `leaves`.
    pub(super) fn class(&self, present: u64, leaves: u64) -> u8 {
        if present == 0 {
            return ABSENT_FRAME;
        }
        if present & self.reserved != 0 {
            return 0;
        }
        self.levels.iter().filter(|(_, forbidden)| leaves & forbidden == 0).fold(0, |class, (bit, _)| class | bit)
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
