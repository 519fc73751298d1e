//! Every way through the sieve finds what the scalar scan finds, whatever the sample says of it.

use std::collections::BTreeSet;

use super::digits::Column;
use super::{ENTRIES, Sieve, Way};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::scan::chunk::View;
use crate::scan::engine::{Pass, Plan};
use crate::scan::sample::Sample;
use crate::scan::test_inputs::{FRAME, memory, random::Random};
use crate::scan::{Backend, scalar};
use crate::signature::{Signatures, Structure, Test};

/// A hundred and more entries of all kinds.
fn crowd() -> Signatures {
    Signatures::from_texts([
        ("cpython.toml", include_str!("../../../signatures/cpython.toml")),
        ("pytorch.toml", include_str!("../../../signatures/pytorch.toml")),
        ("x86_64.toml", include_str!("../../../signatures/x86_64.toml")),
        ("many.toml", include_str!("../../../tests/scan/many.toml")),
        ("structures.toml", include_str!("../../../benches/structures.toml")),
    ])
    .unwrap()
}

/// Some of the signatures, at least one.
fn some(random: &mut Random, count: usize) -> Signatures {
    let all = crowd();
    let names = (0..(all.structures().len() + all.needles().len()) as u16).filter_map(|index| all.name(index));
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    while names.len() > count {
        names.swap_remove(random.below(names.len() as u64) as usize);
    }
    all.only(&names).unwrap()
}

/// Memory as dumps hold it, with whole structures and parts of them in it, some across the borders of frames.
fn memory_with(structures: &[Structure], random: &mut Random) -> PhysicalMemory {
    let end = 24 * FRAME;
    let mut builder = memory::Builder::new(&[0x1010..end]);
    for at in (0..end).step_by(8) {
        let noise = [random.next(), 0, random.below(1 << 12), 0x7f00_0000_0000 + random.below(1 << 24) * 8];
        builder.words(at, &[noise[random.below(4) as usize]]);
    }
    for _ in 0..800 {
        let structure = &structures[random.below(structures.len() as u64) as usize];
        let base = random.below(end / structure.align.min(512)) * structure.align.min(512);
        let fails = random.below(12) as usize;
        for (field, n) in structure.fields().iter().zip(0..) {
            let at = base + field.offset;
            let value = field.tests.iter().fold(random.next(), |value, test| fitting(value, test, at));
            let bytes = if n == fails { random.next() } else { value }.to_le_bytes();
            builder.write(at, &bytes[..usize::from(field.width)]);
        }
    }
    builder.done()
}

/// A number that passes the test of a field at this address; what it keeps of `value` passes others.
fn fitting(value: u64, test: &Test, at: u64) -> u64 {
    match test {
        Test::Equal(wanted) => *wanted,
        Test::Masked { mask, value: wanted } => value & !mask | wanted,
        Test::Range { min, max } => min + value.checked_rem((max - min).saturating_add(1)).unwrap_or(0),
        Test::OneOf(values) => values[value as usize % values.len()],
        Test::UserPointer { align } => (0x7000_0000_0000 | value >> 20) & !(align - 1),
        Test::KernelPointer { align } => (0xffff_8000_0000_0000 | value) & !(align - 1),
        Test::PageOffsetOfSelf(k) => value & !(FRAME - 1) | at.wrapping_add_signed(*k) & (FRAME - 1),
        Test::EqualField(_) => value,
    }
}

#[test]
fn every_way_finds_what_is_there() {
    let (mut ways, mut found) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..if cfg!(debug_assertions) { 6 } else { 40 } {
        let mut random = Random(seed);
        let signatures = some(&mut random, [2, 7, 9, 20, 64, 200][seed as usize % 6]);
        let memory = memory_with(signatures.structures(), &mut random);
        let range = View { start: memory.ranges()[0].start, bytes: memory.range_bytes(&memory.ranges()[0]) };
        let frames = range.whole_frames();
        let mut plan = Plan::new(&signatures, &memory, Backend::Scalar.engine());
        let entries = plan.enter();
        let mut expected = Vec::new();
        frames.frames().for_each(|frame| scalar::match_view(&plan, range, frame, &mut expected));
        expected.sort_unstable();
        found.extend(expected.iter().map(|hit| hit.signature));
        // A sample that is no guide, and one of nothing.
        for sample in [Sample::new(&Random(seed).memory()), Sample::default()] {
            let of_part = |part| {
                let columns = Column::all(part, &sample);
                let all = Way::all(&columns, entries.len().min(ENTRIES), &sample);
                all.into_iter().map(|way| Sieve::new(part, &columns, way, &sample)).collect()
            };
            let parts: Vec<Vec<Sieve>> = entries.chunks(ENTRIES).map(of_part).collect();
            for n in 0..parts.iter().map(Vec::len).max().unwrap() {
                let sieves: Vec<Sieve> = parts.iter().map(|ways| ways[n.min(ways.len() - 1)].clone()).collect();
                ways.extend(sieves.iter().map(|sieve| (sieve.quads.len(), sieve.groups.len())));
                plan.passes = sieves.into_iter().map(Pass::Many).collect();
                for backend in Backend::available().into_iter().skip(1) {
                    let (mut hits, mut classes) = (Vec::new(), [0; 24]);
                    backend.engine().scan_frames(&plan, range, frames, &mut classes, &mut hits);
                    hits.sort_unstable();
                    assert!(hits == expected, "{backend}, way {n}, seed {seed}: {} of {}", hits.len(), expected.len());
                }
            }
        }
    }
    assert!(found.len() > 20);
    for way in [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4), (2, 8)] {
        assert!(ways.contains(&way), "{way:?} of {ways:?}");
    }
}

/// What a sieve rejects, the exact check would reject: an anchor in any slot, with fields that lie in other frames.
#[test]
fn what_lies_in_another_frame_denies_nothing() {
    let signatures = crowd().only(&["cpython.type".to_owned(), "cpython.type.wide_header".to_owned()]).unwrap();
    for slot in 0..512 {
        let at = 0x1_0000 + 8 * slot;
        let mut builder = memory::Builder::new(&[0x1_0000..0x1_1000]);
        builder.fill(|| 0xff);
        let words = [1, 0x7f00_0000_0000 | at & 0xfff, 0, 0x7000_0000_1000, 928, 40];
        (at..).step_by(8).zip(words).for_each(|(at, word)| builder.words(at, &[word]));
        let memory = builder.done();
        let mut plan = Plan::new(&signatures, &memory, Backend::Scalar.engine());
        let entries = plan.enter();
        let sample = Sample::new(&memory);
        let columns = Column::all(&entries, &sample);
        let range = View { start: PhysAddr(0x1_0000), bytes: memory.range_bytes(&memory.ranges()[0]) };
        let mut expected = Vec::new();
        scalar::match_view(&plan, range, range, &mut expected);
        assert_eq!(expected.len(), usize::from(slot < 511), "{slot}");
        for way in Way::all(&columns, entries.len(), &sample) {
            plan.passes = vec![Pass::Many(Sieve::new(&entries, &columns, way, &sample))];
            for backend in Backend::available().into_iter().skip(1) {
                let mut hits = Vec::new();
                backend.engine().scan_frames(&plan, range, range, &mut [0], &mut hits);
                assert_eq!(hits, expected, "{backend}, slot {slot}");
            }
        }
    }
}
