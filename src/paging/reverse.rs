//! The reverse map: from a physical address to every space and virtual address that maps it.

use std::ops::Range;

use super::space::{AddressSpace, Mapping};
use crate::addr::{PhysAddr, VirtAddr};

/// Spaces that may use up what is granted to each; real ones need a small part of it.
const SPACES_AT_LIMIT: u64 = 16;

/// The mappings of the user halves of spaces without those of code, each with the position of its space; and the positions of
/// spaces that have more than `limit` page tables and mappings, so that a hostile one hides no other.
pub fn data_mappings<'s>(
    spaces: impl IntoIterator<Item = &'s AddressSpace>,
    limit: u64,
) -> (Vec<(usize, Vec<Mapping>)>, Vec<usize>) {
    let mut left = limit.saturating_mul(SPACES_AT_LIMIT);
    let (mut mapped, mut left_out) = (Vec::new(), Vec::new());
    for (index, space) in spaces.into_iter().enumerate() {
        let granted = limit.min(left);
        let mut budget = granted;
        let mappings = space.user_mappings(&mut budget);
        left -= granted - budget;
        match mappings {
            Some(mut mappings) => {
                mappings.retain(|mapping| !mapping.executable);
                mapped.push((index, mappings));
            }
            None => left_out.push(index),
        }
    }
    (mapped, left_out)
}

/// Mappings of several spaces, ordered by physical address.
#[derive(Clone, Debug, Default)]
pub struct ReverseMap {
    /// Space and mapping, sorted by first physical address.
    entries: Vec<(usize, Mapping)>,
    /// For each entry the highest end among it and those before, so that a look-up knows when to stop.
    reach: Vec<u64>,
}

impl ReverseMap {
    /// The reverse of the mappings of spaces, each given with an index that look-ups return.
    pub fn new(spaces: impl IntoIterator<Item = (usize, Vec<Mapping>)>) -> Self {
        let mut entries: Vec<(usize, Mapping)> = spaces
            .into_iter()
            .flat_map(|(space, mappings)| mappings.into_iter().map(move |mapping| (space, mapping)))
            .collect();
        entries.sort_unstable_by_key(|(space, mapping)| (mapping.pa, *space, mapping.va));
        let mut highest = 0;
        let reach = entries
            .iter()
            .map(|(_, mapping)| {
                highest = highest.max(mapping.pa.0.saturating_add(mapping.len));
                highest
            })
            .collect();
        Self { entries, reach }
    }

    /// Every space and virtual address at which the byte at `pa` is mapped.
    pub fn lookup(&self, pa: PhysAddr) -> impl Iterator<Item = (usize, VirtAddr)> {
        self.mappings_of(pa, self.after(pa)).map(move |(space, mapping)| (*space, virtual_address(mapping, pa)))
    }

    /// The number of entries that begin at `pa` or before.
    fn after(&self, pa: PhysAddr) -> usize {
        self.entries.partition_point(|(_, mapping)| mapping.pa <= pa)
    }

    /// The entries that hold `pa`; `after` is [`ReverseMap::after`] of it.
    fn mappings_of(&self, pa: PhysAddr, after: usize) -> impl Iterator<Item = &(usize, Mapping)> {
        // Cut before they are paired: `take` on pairs would pass all the others one by one.
        let entries = self.entries.get(..after).unwrap_or_default();
        let reach = self.reach.get(..after).unwrap_or_default();
        let near = entries.iter().zip(reach).rev().take_while(move |(_, reach)| **reach > pa.0);
        near.map(|(entry, _)| entry).filter(move |(_, mapping)| pa.0 - mapping.pa.0 < mapping.len)
    }

    /// What [`ReverseMap::lookup`] returns, up to `most` places, and the first address behind `pa` for which it could return
    /// other mappings.
    pub fn lookup_run(&self, pa: PhysAddr, most: usize) -> (Vec<(usize, VirtAddr)>, PhysAddr) {
        let after = self.after(pa);
        let mut end = self.entries.get(after).map_or(u64::MAX, |(_, mapping)| mapping.pa.0);
        let mut places = Vec::new();
        for (space, mapping) in self.mappings_of(pa, after).take(most) {
            end = end.min(mapping.pa.0.saturating_add(mapping.len));
            places.push((*space, virtual_address(mapping, pa)));
        }
        (places, PhysAddr(end))
    }

    /// The physical addresses that any space maps: sorted, without overlap.
    pub fn frames(&self) -> Vec<Range<PhysAddr>> {
        let mut frames: Vec<Range<PhysAddr>> = Vec::new();
        for (_, mapping) in &self.entries {
            let end = PhysAddr(mapping.pa.0.saturating_add(mapping.len));
            match frames.last_mut() {
                Some(last) if mapping.pa <= last.end => last.end = last.end.max(end),
                _ => frames.push(mapping.pa..end),
            }
        }
        frames
    }
}

/// Where a mapping shows a physical address that it holds.
fn virtual_address(mapping: &Mapping, pa: PhysAddr) -> VirtAddr {
    VirtAddr(mapping.va.0 + (pa.0 - mapping.pa.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(va: u64, pa: u64, len: u64) -> Mapping {
        Mapping { va: VirtAddr(va), pa: PhysAddr(pa), len, executable: false }
    }

    #[test]
    fn finds_every_mapping_of_a_frame() {
        let map = ReverseMap::new([
            (0, vec![mapping(0x10000, 0x20_0000, 0x20_0000), mapping(0x90000, 0x1000, 0x1000)]),
            (7, vec![mapping(0x50000, 0x20_5000, 0x1000), mapping(0x70000, 0x40_0000, 0x1000)]),
        ]);
        let mut found: Vec<_> = map.lookup(PhysAddr(0x20_5010)).collect();
        found.sort_unstable();
        assert_eq!(found, [(0, VirtAddr(0x15010)), (7, VirtAddr(0x50010))]);
        // Behind the small mapping, the large one still reaches here.
        assert_eq!(map.lookup(PhysAddr(0x3f_ffff)).collect::<Vec<_>>(), [(0, VirtAddr(0x20_ffff))]);
        assert_eq!(map.lookup(PhysAddr(0x40_1000)).count(), 0);
        // The same mappings hold until one begins or ends.
        let run = |pa| map.lookup_run(PhysAddr(pa), 9);
        assert_eq!(run(0x20_0010), (vec![(0, VirtAddr(0x10010))], PhysAddr(0x20_5000)));
        assert_eq!(run(0x20_5010), (vec![(7, VirtAddr(0x50010)), (0, VirtAddr(0x15010))], PhysAddr(0x20_6000)));
        assert_eq!(run(0x20_6000), (vec![(0, VirtAddr(0x16000))], PhysAddr(0x40_0000)));
        assert_eq!(run(0x40_1000), (vec![], PhysAddr(u64::MAX)));
        assert_eq!(map.lookup_run(PhysAddr(0x20_5010), 1).0.len(), 1);
        assert_eq!(map.lookup(PhysAddr(0xfff)).count(), 0);
        let frames = map.frames();
        assert_eq!(frames, [PhysAddr(0x1000)..PhysAddr(0x2000), PhysAddr(0x20_0000)..PhysAddr(0x40_1000)]);
    }
}
