//! The release of the kernel, from the banner in its memory: `Linux version 6.1.0-…`.
//!
//! It is only needed for numbers that changed between releases, and only if an entry has one of them.

use std::collections::BTreeMap;
use std::thread;

use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::dump::{PhysicalMemory, Question, ShardMemory, ShardPart};

/// What the banner begins with (init/version-timestamp.c).
const BANNER: &[u8] = b"Linux version ";
/// Bytes that one thread looks through at a time.
const PIECE: usize = 16 << 20;
/// Bytes after the beginning that are looked at.
const REACH: usize = 32;
/// Banners of a piece that are counted.
const MAX_COUNTED: usize = 64;

/// Major and minor number of the release that most banners name.
pub(super) fn kernel_release(memory: &PhysicalMemory) -> Option<[u64; 2]> {
    let found = match memory.remote() {
        None => banners(memory),
        Some(remote) => {
            let question = |shard: &ShardPart| Some((shard.ranges.clone(), Banners {}));
            remote.ask(question, &|_| ()).into_iter().flat_map(|(_, releases)| releases).collect()
        }
    };
    let mut counts: BTreeMap<[u64; 2], usize> = BTreeMap::new();
    for release in found {
        *counts.entry(release).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(release, count)| (*count, *release)).map(|(release, _)| release)
}

/// The releases that the banners in a part of a dump name.
#[derive(Serialize, Deserialize)]
pub(crate) struct Banners {}

impl Question for Banners {
    const NAME: &'static str = "banners";
    type Answer = Vec<[u64; 2]>;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Self::Answer {
        banners(memory)
    }
}

/// Major and minor number of the release that each banner names.
fn banners(memory: &PhysicalMemory) -> Vec<[u64; 2]> {
    let pieces: Vec<&[u8]> = memory
        .ranges()
        .iter()
        .flat_map(|range| {
            let bytes = memory.range_bytes(range);
            (0..bytes.len())
                .step_by(PIECE)
                .filter_map(move |start| bytes.get(start..bytes.len().min(start.saturating_add(PIECE + REACH))))
        })
        .collect();
    let of_piece = |piece: &[u8]| -> Vec<[u64; 2]> {
        let found = memmem::find_iter(piece, BANNER).take(MAX_COUNTED);
        found.filter_map(|at| numbers(piece.get(at + BANNER.len()..)?)).collect()
    };
    // Others wait for the result. A thread of the pool that waits for its share of this could take up work that waits for it.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let of_pieces =
            |pieces: &[&[u8]]| -> Vec<[u64; 2]> { pieces.iter().flat_map(|piece| of_piece(piece)).collect() };
        let share = pieces.len().div_ceil(threads).max(1);
        let workers: Vec<_> = pieces.chunks(share).map(|pieces| scope.spawn(move || of_pieces(pieces))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).flatten().collect()
    })
}

/// The two numbers that a text begins with, with a point between them.
fn numbers(text: &[u8]) -> Option<[u64; 2]> {
    let text = text.get(..text.len().min(REACH - BANNER.len()))?;
    let mut parts = text.split(|byte| !byte.is_ascii_digit());
    let mut number = || str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
    let release = [number()?, number()?];
    let point = text.iter().position(|byte| !byte.is_ascii_digit())?;
    (text.get(point) == Some(&b'.')).then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{FileOffset, PhysAddr};
    use crate::dump::MemoryRange;

    #[test]
    fn the_release_is_the_one_that_most_banners_name() {
        let text = b"Linux version 6.12.9-x Linux version 4.x Linux version 5.10 Linux version 5.10.1 Linux version ";
        let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(text.len() as u64), offset: FileOffset(0) };
        let memory = PhysicalMemory::owned(text.to_vec(), vec![range]).unwrap();
        assert_eq!(kernel_release(&memory), Some([5, 10]));
        assert_eq!(kernel_release(&PhysicalMemory::owned(vec![0; 64], Vec::new()).unwrap()), None);
        assert_eq!(numbers(b"6 12"), None);
        assert_eq!(numbers(b"99999999999999999999999.1"), None);
    }
}
