//! The rules of page-table entries, as data: which level of table a frame could be.

use serde::Deserialize;
use toml::Spanned;

use super::error::{SignatureError, Text};

/// How page-table entries of an architecture are built: 512 entries of 8 bytes in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mmu {
    /// Name of the architecture.
    pub name: String,
    /// Where the numbers come from.
    pub source: String,
    /// The bit of an entry that makes it present, as a mask.
    pub present: u64,
    /// The bit of an entry that lets user mode in, as a mask.
    pub user: u64,
    /// The bit of an entry that forbids execution, as a mask.
    pub no_execute: u64,
    /// The bit that makes an entry of a `ByLeafBit` level a (large) page, as a mask.
    pub leaf_bit: u64,
    /// The bits that hold the physical address, as a mask.
    pub address: u64,
    /// The bits that are zero in every present entry, as a mask.
    pub reserved: u64,
    /// The levels, lowest first.
    pub levels: Vec<MmuLevel>,
}

/// One level of page tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MmuLevel {
    /// 1 for the tables of 4 KiB pages, up to 6; bit `level - 1` of a frame's class.
    pub level: u8,
    /// The field's name: PT, PD, PDPT, PML4, PML5.
    pub name: String,
    /// The lowest bit of a virtual address that this level translates.
    pub shift: u32,
    /// Which entries map a page rather than point to a table.
    pub leaf: Leaf,
    /// The bits that are zero in a present entry with the leaf bit (large pages are aligned), as a mask.
    pub leaf_zero: u64,
}

/// Which entries of a level map a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaf {
    /// All: the leaf bit means something else here.
    Always,
    /// Those with the leaf bit.
    ByLeafBit,
    /// None: the leaf bit is zero.
    Never,
}

impl Mmu {
    /// The rules of one level.
    pub fn level(&self, level: u8) -> Option<&MmuLevel> {
        self.levels.iter().find(|l| l.level == level)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMmu {
    pub(super) name: Spanned<String>,
    #[serde(default)]
    source: String,
    present: Spanned<u32>,
    user: Spanned<u32>,
    no_execute: Spanned<u32>,
    leaf_bit: Spanned<u32>,
    address: Spanned<[u32; 2]>,
    reserved: Spanned<[u32; 2]>,
    level: Vec<RawLevel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLevel {
    level: Spanned<u8>,
    name: String,
    shift: Spanned<u32>,
    leaf: Leaf,
    leaf_zero: Option<Spanned<[u32; 2]>>,
}

impl RawMmu {
    pub(super) fn check(&self, text: Text<'_>) -> Result<Mmu, SignatureError> {
        let mut levels: Vec<MmuLevel> = Vec::new();
        for raw in &self.level {
            let level = *raw.level.get_ref();
            if !(1..=6).contains(&level) {
                return Err(text.error(raw.level.span(), format!("level {level} is not between 1 and 6")));
            }
            if levels.iter().any(|l| l.level == level) {
                return Err(text.error(raw.level.span(), format!("level {level} is given twice")));
            }
            bit(&raw.shift, text)?;
            let leaf_zero = raw.leaf_zero.as_ref().map_or(Ok(0), |range| bits(range, text))?;
            if let Some(stray) = raw.leaf_zero.as_ref().filter(|_| raw.leaf != Leaf::ByLeafBit) {
                return Err(text.error(stray.span(), "has a meaning only with leaf = \"by_leaf_bit\""));
            }
            levels.push(MmuLevel {
                level,
                name: raw.name.clone(),
                shift: *raw.shift.get_ref(),
                leaf: raw.leaf,
                leaf_zero,
            });
        }
        levels.sort_by_key(|l| l.level);
        Ok(Mmu {
            name: self.name.get_ref().clone(),
            source: self.source.clone(),
            present: bit(&self.present, text)?,
            user: bit(&self.user, text)?,
            no_execute: bit(&self.no_execute, text)?,
            leaf_bit: bit(&self.leaf_bit, text)?,
            address: bits(&self.address, text)?,
            reserved: bits(&self.reserved, text)?,
            levels,
        })
    }
}

/// The mask of one bit.
fn bit(raw: &Spanned<u32>, text: Text<'_>) -> Result<u64, SignatureError> {
    let bit = *raw.get_ref();
    1u64.checked_shl(bit).ok_or_else(|| text.error(raw.span(), format!("bit {bit} is not between 0 and 63")))
}

/// The mask of the bits `[first, last]`.
fn bits(raw: &Spanned<[u32; 2]>, text: Text<'_>) -> Result<u64, SignatureError> {
    let [first, last] = *raw.get_ref();
    if first > last || last > 63 {
        let reason = format!("[{first}, {last}] is no range of bits [first, last] between 0 and 63");
        return Err(text.error(raw.span(), reason));
    }
    Ok((u64::MAX >> (63 - last)) & (u64::MAX << first))
}
