//! Maple trees, which hold the mappings of a process since Linux 6.1.
//!
//! A node's address has its type in the low 8 bits. The pivots between its slots are the ends of address ranges. Source:
//! include/linux/maple_tree.h and lib/maple_tree.c (Linux 6.12).

use std::collections::HashSet;

use super::kernel::Kernel;
use super::layout::Layout;
use crate::addr::VirtAddr;
use crate::signature::KERNEL_POINTER_MIN;

/// Tag bits of a pointer to a node (`MAPLE_NODE_MASK`), and the type among them (`MAPLE_NODE_TYPE_SHIFT`).
const NODE_MASK: u64 = 255;
const TYPE_SHIFT: u32 = 3;
const TYPE_MASK: u64 = 15;
/// Types of nodes (`enum maple_type`).
const LEAF_64: u64 = 1;
const RANGE_64: u64 = 2;
const ARANGE_64: u64 = 3;
/// The lower bits of the root distinguish a node from an entry (`xa_is_node`).
const INTERNAL_MASK: u64 = 3;
const INTERNAL: u64 = 2;
/// Maximum number of nodes of a tree. A process has up to 65,530 mappings (`vm.max_map_count`), an administrator can raise it.
const MAX_NODES: usize = 1 << 20;
/// Maximum number of levels of a tree.
const MAX_DEPTH: usize = 32;

/// The entry of a range of addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) value: VirtAddr,
}

/// The entries of a tree in order, and how many nodes could not be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) entries: Vec<Entry>,
    pub(super) unreadable: usize,
}

/// Walks the tree whose `ma_root` is given; `None` where the layout lacks the nodes.
pub(super) fn walk(kernel: &Kernel, layout: &Layout, root: u64) -> Option<Tree> {
    let nodes = Nodes::new(layout)?;
    let mut tree = Tree::default();
    if root & INTERNAL_MASK != INTERNAL || root < KERNEL_POINTER_MIN {
        // A tree with one entry has no node.
        let value = VirtAddr(root);
        tree.entries.extend((root >= KERNEL_POINTER_MIN).then_some(Entry { first: 0, last: 0, value }));
        tree.unreadable += usize::from(root != 0 && root < KERNEL_POINTER_MIN);
        return Some(tree);
    }
    let mut seen = HashSet::new();
    nodes.visit(kernel, root, 0, u64::MAX, MAX_DEPTH, &mut seen, &mut tree);
    Some(tree)
}

/// Offsets of pivots and slots in a node, and the number of slots.
#[derive(Clone, Copy)]
struct Node {
    pivot: u64,
    slot: u64,
    slots: u64,
}

struct Nodes {
    range: Node,
    arange: Node,
}

impl Nodes {
    fn new(layout: &Layout) -> Option<Self> {
        let [range_slots, arange_slots] = layout.sizes.maple_slots;
        let node = |base: Option<u64>, pivot: Option<u64>, slot: Option<u64>, slots: Option<u64>| {
            let slots = slots.filter(|slots| (2..=64).contains(slots))?;
            Some(Node { pivot: base?.checked_add(pivot?)?, slot: base?.checked_add(slot?)?, slots })
        };
        let (range, arange) = (layout.range64, layout.arange64);
        Some(Self {
            range: node(layout.maple.range64, range.pivot, range.slot, range_slots)?,
            arange: node(layout.maple.arange64, arange.pivot, arange.slot, arange_slots)?,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the state of a recursive walk")]
    fn visit(
        &self,
        kernel: &Kernel,
        encoded: u64,
        min: u64,
        max: u64,
        depth: usize,
        seen: &mut HashSet<u64>,
        tree: &mut Tree,
    ) {
        let (address, kind) = (VirtAddr(encoded & !NODE_MASK), encoded >> TYPE_SHIFT & TYPE_MASK);
        let node = match kind {
            LEAF_64 | RANGE_64 => self.range,
            ARANGE_64 => self.arange,
            _ => {
                tree.unreadable += 1;
                return;
            }
        };
        if depth == 0 || seen.len() >= MAX_NODES || !seen.insert(address.0) {
            tree.unreadable += 1;
            return;
        }
        let word = |base: u64, index: u64| kernel.u64(address, base.checked_add(index * 8)?);
        let mut first = min;
        for index in 0..node.slots {
            // There is one pivot fewer than slots. The pivots after the last used one are zero.
            let pivot = if index + 1 < node.slots { word(node.pivot, index) } else { Some(max) };
            let Some(pivot) = pivot else {
                tree.unreadable += 1;
                return;
            };
            let last = if pivot == 0 && index > 0 { max } else { pivot.min(max) };
            if last < first {
                tree.unreadable += 1;
                return;
            }
            match word(node.slot, index) {
                None => tree.unreadable += 1,
                Some(0) => {}
                Some(value) if kind == LEAF_64 => {
                    // Small values are the tree's own markers (`XA_ZERO_ENTRY`).
                    if value >= KERNEL_POINTER_MIN {
                        tree.entries.push(Entry { first, last, value: VirtAddr(value) });
                    }
                }
                Some(child) if child >= KERNEL_POINTER_MIN => {
                    self.visit(kernel, child, first, last, depth - 1, seen, tree);
                }
                Some(_) => tree.unreadable += 1,
            }
            let Some(next) = last.checked_add(1).filter(|_| last < max) else { return };
            first = next;
        }
    }
}
