//! Byte needles: every backend finds what a search without any idea finds, in memory made to be difficult.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may simply fail")]

mod random;

use std::fmt::Write;
use std::ops::Range;

use proptest::prelude::*;
use random::Random;
use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{MemoryRange, PhysicalMemory};
use tensorcarve::scan::{Backend, scan};
use tensorcarve::signature::Signatures;

/// What a thread looks at at once: needles lie across this border.
const CHUNK: u64 = 256 << 10;

/// Bytes, and a power of two that their address is a multiple of.
type Needle = (Vec<u8>, u64);

fn signatures(needles: &[Needle]) -> Signatures {
    let mut text = String::new();
    for (n, (bytes, align)) in needles.iter().enumerate() {
        writeln!(text, "[[needle]]\nname = \"{n}\"\nalign = {align}").unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "hex = \"{hex}\"").unwrap();
    }
    Signatures::from_texts([("needles.toml", text.as_str())]).unwrap()
}

/// The ranges' bytes lie one after the other, behind a few that belong to none.
fn memory(ranges: &[(u64, Vec<u8>)]) -> PhysicalMemory {
    let mut bytes = vec![0; 13];
    let mut placed = Vec::new();
    for (start, content) in ranges {
        let (start, end) = (PhysAddr(*start), PhysAddr(start + content.len() as u64));
        placed.push(MemoryRange { start, end, offset: FileOffset(bytes.len() as u64) });
        bytes.extend(content);
    }
    PhysicalMemory::owned(bytes, placed).unwrap()
}

/// Addresses and numbers of needles, in order.
fn naive(ranges: &[(u64, Vec<u8>)], needles: &[Needle]) -> Vec<(u64, u16)> {
    let mut found = Vec::new();
    for (start, bytes) in ranges {
        for (address, at) in (*start..).zip(0..bytes.len()) {
            for (number, (needle, align)) in (0..).zip(needles) {
                if bytes[at..].starts_with(needle) && address % align == 0 {
                    found.push((address, number));
                }
            }
        }
    }
    found
}

/// Checks all backends; returns the number of hits.
fn check(ranges: &[(u64, Vec<u8>)], needles: &[Needle]) -> usize {
    let expected = naive(ranges, needles);
    let (memory, signatures) = (memory(ranges), signatures(needles));
    for backend in Backend::available() {
        let hits = scan(&memory, &signatures, backend, &|_| {}).hits;
        let found: Vec<_> = hits.iter().map(|hit| (hit.address.0, hit.signature)).collect();
        assert!(found == expected, "{backend}: {} hits, not {}", found.len(), expected.len());
        assert!(hits.iter().all(|hit| hit.anchor == hit.address && hit.value == 0));
    }
    expected.len()
}

fn bytes(random: &mut Random, alphabet: u64, len: Range<u64>) -> Vec<u8> {
    let len = len.start + random.below(len.end - len.start);
    (0..len).map(|_| (random.below(alphabet) * 0x5b) as u8).collect()
}

/// Ranges that begin or end beside the border of a chunk, and ranges of a few bytes.
fn ranges(random: &mut Random, alphabet: u64) -> Vec<(u64, Vec<u8>)> {
    let lengths = [1..6, 60..70, 250..270, 300..3000];
    let mut ranges: Vec<(u64, Vec<u8>)> = Vec::new();
    for border in 1..=random.below(4) + 1 {
        let len = lengths[random.below(4) as usize].clone();
        let content = bytes(random, alphabet, len);
        let start = border * CHUNK - random.below(content.len() as u64 + 70);
        ranges.push((start, content));
    }
    ranges
}

fn needle(random: &mut Random, alphabet: u64, ranges: &[(u64, Vec<u8>)]) -> Needle {
    let align = [1, 1, 1, 2, 8, 64][random.below(6) as usize];
    let (_, content) = &ranges[random.below(ranges.len() as u64) as usize];
    let from = random.below(content.len() as u64) as usize;
    let copied: Vec<u8> = content[from..].iter().copied().take(1 + random.below(64) as usize).collect();
    match random.below(3) {
        0 => (bytes(random, alphabet, 1..9), align),
        1 => (copied, align),
        _ => {
            let mut changed = copied;
            *changed.last_mut().unwrap() ^= 1;
            (changed, align)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 10 } else { 200 }))]

    #[test]
    fn all_that_stand_are_found(
        seed in any::<u64>(),
        alphabet in prop::sample::select(vec![1u64, 2, 3, 16, 256]),
        count in prop::sample::select(vec![1usize, 2, 5, 16, 17, 33, 65, 101, 301, 700]),
    ) {
        let mut random = Random(seed);
        let ranges = ranges(&mut random, alphabet);
        let needles: Vec<_> = (0..count).map(|_| needle(&mut random, alphabet, &ranges)).collect();
        check(&ranges, &needles);
    }
}

/// Else the comparison would compare nothing with nothing.
#[test]
fn random_memory_holds_needles() {
    let mut random = Random(1);
    let ranges = ranges(&mut random, 256);
    let needles: Vec<_> = (0..400).map(|_| needle(&mut random, 256, &ranges)).collect();
    assert!(check(&ranges, &needles) > 50);
}

/// Every place around the border of a chunk, for every length up to that of a few vectors.
#[test]
fn needles_lie_across_the_border_of_a_chunk() {
    let mut random = Random(2);
    let content = bytes(&mut random, 256, 1400..1401);
    for len in (1..80).chain([255, 256, 257, 600]) {
        let places = 700 - len - 3..703;
        let needles: Vec<_> = places.clone().map(|at| (content[at..at + len].to_vec(), 1)).collect();
        assert!(check(&[(CHUNK - 700, content.clone())], &needles) >= needles.len());
    }
}

/// More needles than the tables can tell apart.
#[test]
fn thousands_of_needles_are_found() {
    let mut random = Random(3);
    let content = bytes(&mut random, 256, 9000..9001);
    let needles: Vec<_> = (0..6000).map(|at| (content[at..at + 1 + random.below(20) as usize].to_vec(), 1)).collect();
    assert!(check(&[(5 * CHUNK - 4000, content)], &needles) >= 6000);
}

/// Memory in which the window of a long needle is everywhere, and the needle almost.
#[test]
fn needles_that_almost_stand_everywhere_do_not_stand() {
    let mut content = vec![b'a'; CHUNK as usize / 2];
    content.iter_mut().skip(4000).step_by(4001).for_each(|byte| *byte = b'b');
    let needles = [4001, 4000, 4096].map(|len| (vec![b'a'; len], 1));
    assert_eq!(check(&[(0, content.clone())], &needles), content.len() / 4001);
    assert_eq!(check(&[(0, content)], &needles[..1]), 0);
}
