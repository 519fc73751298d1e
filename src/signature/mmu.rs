//! The rules of page-table entries, as data: which level of table a frame could be.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::error::{SignatureError, Text};
use crate::addr::PhysAddr;

/// How page-table entries of an architecture are built: 512 entries of 8 bytes in a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The bit that marks encrypted pages and belongs to no address, as a mask; 0 where memory is not encrypted.
    pub encryption: u64,
    /// The levels, lowest first.
    pub levels: Vec<MmuLevel>,
    /// What the operating system stores in entries that are not present; `None` if the file does not say.
    pub absent: Option<AbsentEntries>,
    /// What the kernel that wrote the entries of one dump tells of them; `None` in rules that belong to no dump.
    #[serde(skip)]
    pub(crate) kernel: Option<KernelFacts>,
}

/// What the kernel of one dump tells of the entries that are not present, each looked for when it is first needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelFacts {
    /// The release.
    pub(crate) release: OnceLock<Option<[u64; 2]>>,
    /// Top tables of processes, each with its number of levels.
    pub(crate) roots: Vec<(PhysAddr, u8)>,
    /// The first physical address of each page that is in memory though an entry names its slot on a swap device.
    pub(crate) swap_cache: OnceLock<HashMap<SwapSlot, u64>>,
}

/// A slot on a swap device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SwapSlot {
    /// Number of the device.
    pub(crate) device: u64,
    /// Number of the slot, in pages.
    pub(crate) number: u64,
}

/// What Linux stores in entries whose present bit is off: some of them still name a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbsentEntries {
    /// Where the numbers come from.
    pub source: String,
    /// The bit of an entry of the lowest level that maps a page without any access, as a mask; its frame is still named.
    pub protected: u64,
    /// The bits that are zero in an entry that names a place in swap, as a mask.
    pub swap_zero: u64,
    /// Types of swap entries from this one on are not swap devices: they say what else happened to the page.
    pub first_special: u64,
    /// How kernels build swap entries.
    pub swap: Vec<SwapForm>,
    /// What the special types mean in which kernels, oldest first.
    pub special: Vec<SpecialTypes>,
}

/// How one range of kernel releases builds a swap entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapForm {
    /// The first release that does so.
    pub since: String,
    /// First and last bit of the type: the number of the swap device, or a special type.
    pub kind: [u32; 2],
    /// First and last bit of the offset: the slot on the device, or the number of a frame.
    pub offset: [u32; 2],
    /// Whether the bits of the offset are inverted.
    pub inverted: bool,
}

/// What the special types of swap entries mean in one configuration of some kernel releases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTypes {
    /// The first release with these numbers, as major and minor number.
    pub since: [u64; 2],
    /// The type of a page whose frame had a memory error.
    pub broken: u64,
    /// First and last type of a page that is being moved: the frame still holds it.
    pub migrating: [u64; 2],
    /// First and last type of a page that a device holds, or shares; `None` where the kernel has none.
    pub device: Option<[u64; 2]>,
    /// The type of an entry that marks an address without a page; `None` where the kernel has none.
    pub marker: Option<u64>,
}

/// One level of page tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
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

    /// The same rules for a machine that sets `bit` in the entries of pages that it encrypts (AMD SME and SEV): it is
    /// no part of the address.
    pub fn without_address_bit(&self, bit: u32) -> Self {
        let encryption = 1u64.checked_shl(bit).unwrap_or_default();
        let (address, reserved) = (self.address & !encryption, self.reserved & !encryption);
        Self { address, reserved, encryption, ..self.clone() }
    }
}

impl AbsentEntries {
    /// What the special types can mean in a kernel of that release; in any, if it is not known.
    pub fn special_of(&self, release: Option<[u64; 2]>) -> impl Iterator<Item = &SpecialTypes> {
        let since = self.special.iter().map(|types| types.since);
        let era = release.and_then(|release| since.filter(|since| *since <= release).max());
        self.special.iter().filter(move |types| era.is_none_or(|era| types.since == era))
    }
}

impl SwapForm {
    /// The type that an entry holds in this form.
    pub fn kind_of(&self, entry: u64) -> u64 {
        field(entry, self.kind)
    }

    /// The offset that an entry holds in this form.
    pub fn offset_of(&self, entry: u64) -> u64 {
        field(if self.inverted { !entry } else { entry }, self.offset)
    }
}

/// The value of the bits `[first, last]`, which were checked when the file was read.
fn field(entry: u64, [first, last]: [u32; 2]) -> u64 {
    (entry & (u64::MAX >> 63u32.saturating_sub(last))).checked_shr(first).unwrap_or_default()
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
    absent: Option<RawAbsent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAbsent {
    #[serde(default)]
    source: String,
    protected: Spanned<u32>,
    swap_zero: Spanned<[u32; 2]>,
    first_special: u64,
    swap: Vec<RawSwapForm>,
    #[serde(default)]
    special: Vec<RawSpecialTypes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSwapForm {
    since: String,
    #[serde(rename = "type")]
    kind: Spanned<[u32; 2]>,
    offset: Spanned<[u32; 2]>,
    #[serde(default)]
    inverted: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSpecialTypes {
    since: [u64; 2],
    broken: u64,
    migrating: [u64; 2],
    device: Option<[u64; 2]>,
    marker: Option<u64>,
}

impl RawAbsent {
    fn check(&self, text: Text<'_>) -> Result<AbsentEntries, SignatureError> {
        let form = |raw: &RawSwapForm| {
            bits(&raw.kind, text)?;
            bits(&raw.offset, text)?;
            Ok(SwapForm {
                since: raw.since.clone(),
                kind: *raw.kind.get_ref(),
                offset: *raw.offset.get_ref(),
                inverted: raw.inverted,
            })
        };
        let special = self.special.iter().map(|raw| SpecialTypes {
            since: raw.since,
            broken: raw.broken,
            migrating: raw.migrating,
            device: raw.device,
            marker: raw.marker,
        });
        Ok(AbsentEntries {
            source: self.source.clone(),
            protected: bit(&self.protected, text)?,
            swap_zero: bits(&self.swap_zero, text)?,
            first_special: self.first_special,
            swap: self.swap.iter().map(form).collect::<Result<_, _>>()?,
            special: special.collect(),
        })
    }
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
                return Err(text.error(stray.span(), "is meaningful only with leaf = \"by_leaf_bit\""));
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
            encryption: 0,
            name: self.name.get_ref().clone(),
            source: self.source.clone(),
            present: bit(&self.present, text)?,
            user: bit(&self.user, text)?,
            no_execute: bit(&self.no_execute, text)?,
            leaf_bit: bit(&self.leaf_bit, text)?,
            address: bits(&self.address, text)?,
            reserved: bits(&self.reserved, text)?,
            levels,
            absent: self.absent.as_ref().map(|absent| absent.check(text)).transpose()?,
            kernel: None,
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
        let reason = format!("[{first}, {last}] is not a range of bits [first, last] between 0 and 63");
        return Err(text.error(raw.span(), reason));
    }
    Ok((u64::MAX >> (63 - last)) & (u64::MAX << first))
}
