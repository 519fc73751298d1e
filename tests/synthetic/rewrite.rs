//! Page tables as other machines and kernels would have them: the entries of a memory written anew.

use std::collections::BTreeSet;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE: u64 = 0x80;
const USER: u64 = 0x4;
const PROTECTED: u64 = 0x100;

/// A present entry of a page table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub value: u64,
    /// Of the table, 1 for the last.
    pub level: u8,
    /// The first virtual address that it translates.
    pub va: u64,
    /// Whether it maps a page.
    pub is_leaf: bool,
    /// Whether user mode may reach what is below it.
    pub user: bool,
}

impl Entry {
    pub fn is_user_page(&self) -> bool {
        self.is_leaf && self.user && self.va < 1 << 56
    }

    pub fn address(&self) -> u64 {
        let size = 1u64 << (12 + 9 * (u32::from(self.level) - 1));
        self.value & ADDRESS & if self.is_leaf { !(size - 1) } else { !0 }
    }

    /// As NUMA balancing leaves it: not present, the frame's number inverted since the fix for L1TF.
    pub fn protected(&self, inverted: bool) -> u64 {
        let frame = if inverted { !self.address() & ADDRESS } else { self.address() };
        frame | PROTECTED | 0x20 | if self.level > 1 { LARGE } else { 0 }
    }

    /// As it is while its page is moved to another frame.
    pub fn special(&self, kind: u64) -> u64 {
        swap_entry(kind, self.address() >> 12)
    }
}

/// A swap entry of Linux since 4.19.
pub fn swap_entry(kind: u64, offset: u64) -> u64 {
    kind << 59 | (!offset & ((1 << 50) - 1)) << 9
}

/// A swap entry of Linux 4.8 to 4.18.
pub fn old_swap_entry(kind: u64, offset: u64) -> u64 {
    kind << 9 | offset << 14
}

/// Replaces every present entry below `roots`, tables of level `levels`. `place` says where in `bytes` a frame lies.
pub fn rewrite(
    bytes: &mut [u8],
    place: &dyn Fn(u64) -> Option<usize>,
    roots: &[u64],
    levels: u8,
    change: &mut dyn FnMut(Entry) -> u64,
) {
    let mut done = BTreeSet::new();
    let mut todo: Vec<(u64, u8, u64, bool)> = roots.iter().map(|root| (*root, levels, 0, true)).collect();
    while let Some((table, level, base, user)) = todo.pop() {
        let Some(at) = place(table).filter(|_| done.insert((table, level))) else { continue };
        for index in 0..512usize {
            let slot = at + index * 8;
            let value = u64::from_le_bytes(bytes[slot..slot + 8].try_into().unwrap());
            if value & 1 == 0 {
                continue;
            }
            let is_leaf = level == 1 || level < 4 && value & LARGE != 0;
            let mut va = base + ((index as u64) << (12 + 9 * (u32::from(level) - 1)));
            if level == levels && index >= 256 {
                va |= 1 << 63;
            }
            let entry = Entry { value, level, va, is_leaf, user: user && value & USER != 0 };
            if !is_leaf {
                todo.push((value & ADDRESS, level - 1, va, entry.user));
            }
            bytes[slot..slot + 8].copy_from_slice(&change(entry).to_le_bytes());
        }
    }
}
