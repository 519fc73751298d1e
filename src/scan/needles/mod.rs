//! Byte needles: every place in a range where one of them stands, overlapping ones included.
//!
//! [`reference`] says what is found, with the search of well-kept crates. Where the computer has vectors, memory is
//! filtered for [`window`]s, the rarest few bytes of each needle: [`filter`] lets a place pass, [`verify`] knows
//! which needles have that window, and then the needle itself is compared.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod buckets;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for vectors only"))]
mod filter;
mod reference;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors only"))]
mod vector;
mod verify;
mod window;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::sync::OnceLock;

use super::Hit;
use super::backend::Backend;
use super::chunk::View;
use super::engine::{needle_hit, unaligned_needles};
use crate::addr::PhysAddr;
use crate::signature::{Needle, Signatures};

use filter::Filter;
use reference::Reference;
use verify::Windows;
use window::Window;

/// The most blocks that may be compared in vain, per byte of a chunk, before the reference takes the chunk over:
/// memory made for it could have long needles compared at every place.
const PATIENCE: usize = 4;

/// The needles, ready to be searched for.
pub(super) struct Needles<'a> {
    /// Those that the pass over slots does not find, each with the index of its signature.
    needles: Vec<(u16, &'a Needle)>,
    filtered: Option<(Filter, Windows)>,
    /// Made when it is first needed.
    reference: OnceLock<Reference<'a>>,
}

impl<'a> Needles<'a> {
    pub(super) fn new(signatures: &'a Signatures, backend: Backend) -> Self {
        let needles: Vec<_> = unaligned_needles(signatures).collect();
        let windows: Vec<_> = needles.iter().map(|(_, needle)| Window::of(&needle.bytes)).collect();
        let filtered = Filter::new(backend, &windows).map(|filter| (filter, Windows::new(windows)));
        Self { needles, filtered, reference: OnceLock::new() }
    }

    /// Adds the needles that begin in `chunk`; they may end after it, in the same range.
    pub(super) fn find(&self, range: View<'_>, chunk: View<'_>, hits: &mut Vec<Hit>) {
        let seen = range.part(chunk.start..range.end()).bytes;
        let before = hits.len();
        if let Some((filter, windows)) = &self.filtered {
            let wasted = self.find_filtered(filter, windows, seen, chunk, hits);
            if wasted / PATIENCE <= chunk.bytes.len() {
                return;
            }
            hits.truncate(before);
        }
        let reference = self.reference.get_or_init(|| Reference::new(&self.needles));
        reference.find(&self.needles, seen, chunk.bytes.len(), |at, number| hits.extend(self.hit(chunk, at, number)));
    }

    /// Returns how much was compared in vain.
    fn find_filtered(
        &self,
        filter: &Filter,
        windows: &Windows,
        seen: &[u8],
        chunk: View<'_>,
        hits: &mut Vec<Hit>,
    ) -> usize {
        let mut wasted = 0;
        let places = (chunk.bytes.len() + windows.largest_offset()).min(seen.len());
        filter.search(seen, places, &mut |place| {
            if wasted / PATIENCE > chunk.bytes.len() {
                return;
            }
            windows.at(seen.get(place..).unwrap_or_default(), |offset, number| {
                let Some(at) = place.checked_sub(offset).filter(|at| *at < chunk.bytes.len()) else { return };
                let (Some((_, needle)), Some(here)) = (self.needles.get(number), seen.get(at..)) else { return };
                match verify::compare(&needle.bytes, here) {
                    Ok(()) => hits.extend(self.hit(chunk, at, number)),
                    Err(blocks) => wasted += blocks,
                }
            });
        });
        wasted
    }

    /// The hit of a needle that stands at a place in `chunk`, where its alignment allows that.
    fn hit(&self, chunk: View<'_>, at: usize, number: usize) -> Option<Hit> {
        let (signature, needle) = *self.needles.get(number)?;
        needle_hit(needle, signature, PhysAddr(chunk.start.0 + at as u64))
    }
}
