//! The scan and the sweep: every backend finds what is there by construction, and all find the same.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may simply fail")]
#![allow(clippy::single_range_in_vec_init, reason = "one physical range is meant")]

#[path = "scan/memory.rs"]
mod memory;
mod random;

use std::collections::{BTreeSet, HashSet};
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::{AtomicU64, Ordering};

use memory::Builder;
use proptest::prelude::*;
use random::Random;
use tensorcarve::addr::{FileOffset, PhysAddr, VirtAddr};
use tensorcarve::dump::{MemoryRange, PhysicalMemory};
use tensorcarve::scan::{
    ABSENT_FRAME, Backend, BackendChoice, Hit, Keep, Limits, PointerSet, ScanResult, TypeSlot, ZERO_FRAME, scan,
    scan_within, sweep, sweep_slots, type_slots,
};
use tensorcarve::signature::Signatures;

/// Structures that take every way through the engines.
const MANY: &str = include_str!("scan/many.toml");
const FRAME: u64 = 4096;

fn scan_all(memory: &PhysicalMemory, signatures: &Signatures) -> ScanResult {
    let reference = scan(memory, signatures, Backend::Scalar, &|_| {});
    for backend in Backend::available() {
        let seen = AtomicU64::new(0);
        let result = scan(memory, signatures, backend, &|bytes| {
            seen.fetch_add(bytes, Ordering::Relaxed);
        });
        assert_eq!(result.hits, reference.hits, "{backend}");
        assert!(result.frames == reference.frames, "frames differ on {backend}");
        assert_eq!(seen.into_inner(), memory.size());
    }
    assert!(reference.hits.is_sorted());
    reference
}

fn many() -> Signatures {
    Signatures::from_texts([
        ("cpython.toml", include_str!("../signatures/cpython.toml")),
        ("x86_64.toml", include_str!("../signatures/x86_64.toml")),
        ("many.toml", MANY),
    ])
    .unwrap()
}

fn hits_of<'a>(result: &'a ScanResult, signatures: &Signatures, name: &str) -> Vec<&'a Hit> {
    let index = signatures.index_of(name).unwrap();
    result.hits.iter().filter(|hit| hit.signature == index).collect()
}

/// A `type` object at every 8-byte position of a frame, each in a frame of its own among bytes that
/// fit nothing, over several chunks and with ragged ends of the range.
#[test]
fn type_objects_are_found_wherever_they_begin() {
    let first = 0x3f_0000;
    let range = first + 0x18..first + 513 * 2 * FRAME + 0xc05;
    let mut builder = Builder::new(std::slice::from_ref(&range));
    builder.fill(|| 0xff);
    let mut expected = Vec::new();
    for slot in 0..512 {
        let base = first + slot * (2 * FRAME + 8) + FRAME;
        let value = 0x5555_0000_0000 | (base & 0xfff);
        builder.words(base, &[0xc000_0000, value, 0, 0x7f12_3456_7891, 928, 40]);
        let tested = (base..).step_by(8).take(6).filter(|field| field / FRAME == (base + 8) / FRAME).count() as u16;
        expected.push((base, base + 8, value, tested));
    }
    let signatures = Signatures::load(None).unwrap();
    let result = scan_all(&builder.done(), &signatures);
    // A base in the last slot of a frame has its anchor in the first slot of the next one.
    let hits = hits_of(&result, &signatures, "cpython.type");
    let found: Vec<_> = hits.iter().map(|hit| (hit.address.0, hit.anchor.0, hit.value, hit.tested)).collect();
    expected.retain(|(.., tested)| *tested >= 2);
    assert!(found == expected);
    assert!(hits.iter().all(|hit| hit.tested + hit.deferred == 6));
    assert_eq!(hits.iter().filter(|hit| hit.deferred > 0).count(), 5);
}

/// Ends of ranges cut fields off as frame borders do, on both sides.
#[test]
fn fields_past_the_end_of_a_range_are_deferred() {
    let object = [1, 0x7000_0000_0100, 0, 0x1001, 928, 40];
    let signatures = Signatures::load(None).unwrap();
    let hits = |range: Range<u64>| {
        let mut builder = Builder::new(&[range]);
        builder.words(0x9f100, &object);
        let result = scan_all(&builder.done(), &signatures);
        let hits = hits_of(&result, &signatures, "cpython.type");
        hits.iter().map(|hit| (hit.address.0, hit.tested, hit.deferred)).collect::<Vec<_>>()
    };
    assert_eq!(hits(0x1000..0x9fc00), [(0x9f100, 6, 0)]);
    assert_eq!(hits(0x1000..0x9f12f), [(0x9f100, 5, 1)]);
    assert_eq!(hits(0x9f108..0xa0000), [(0x9f100, 5, 1)]);
    assert_eq!(hits(0x9f101..0x9f120), [(0x9f100, 3, 3)]);
    assert_eq!(hits(0x9f101..0x9f110), []);
    assert_eq!(hits(0x9f109..0xa0000), []);
}

/// The base of a structure whose anchor is in frame 0 may lie before address 0.
#[test]
fn bases_wrap_before_address_zero() {
    let mut builder = Builder::new(&[0..0x2000]);
    builder.words(0, &[0x7000_0000_0ff8, 0, 0x1001, 928, 40]);
    let signatures = Signatures::load(None).unwrap();
    let result = scan_all(&builder.done(), &signatures);
    let hits = hits_of(&result, &signatures, "cpython.type");
    let found: Vec<_> = hits.iter().map(|hit| (hit.address, hit.anchor, hit.tested)).collect();
    assert_eq!(found, [(PhysAddr(8u64.wrapping_neg()), PhysAddr(0), 5)]);
}

/// Needles across frame and chunk borders, at range ends, side by side and overlapping; none across a hole.
#[test]
fn needles_are_found_at_any_address() {
    for several in [false, true] {
        let mut text = "[[needle]]\nname = \"a\"\ntext = \"abab\"\n".to_owned();
        if several {
            text +=
                "[[needle]]\nname = \"b\"\nhex = \"62 61 62\"\n[[needle]]\nname = \"c\"\ntext = \"abab\"\nalign = 16\n";
        }
        let signatures = Signatures::from_texts([("n.toml", text.as_str())]).unwrap();
        let mut builder = Builder::new(&[0x1003..0x8_1234, 0x8_1236..0x9_0000]);
        let places = [0x1003, 0x1ffe, 0x3fffd, 0x3ffff, 0x5_0010, 0x8_1230, 0x8_fffc];
        places.iter().for_each(|at| builder.write(*at, b"abab"));
        builder.write(0x8_1232, b"ab__ab");
        let result = scan_all(&builder.done(), &signatures);
        let found = |index| {
            let hits = result.hits.iter().filter(move |hit| hit.signature == index);
            hits.map(|hit| hit.address.0).collect::<Vec<_>>()
        };
        assert_eq!(found(0), [0x1003, 0x1ffe, 0x3fffd, 0x3ffff, 0x5_0010, 0x8_1230, 0x8_fffc]);
        if several {
            assert_eq!(found(1), [0x1004, 0x1fff, 0x3fffe, 0x4_0000, 0x5_0011, 0x8_1231, 0x8_fffd]);
            assert_eq!(found(2), [0x5_0010, 0x8_1230]);
        }
    }
}

/// Else the comparison of backends would compare nothing with nothing.
#[test]
fn random_memory_holds_hits_of_all_signatures() {
    let signatures = many();
    let scans = (0..40).map(|seed| scan(&Random(seed).memory(), &signatures, Backend::detect_best(), &|_| {}));
    let hit: BTreeSet<u16> = scans.flat_map(|result| result.hits).map(|hit| hit.signature).collect();
    let all = (signatures.structures().len() + signatures.needles().len()) as u16;
    let missed: Vec<_> = (0..all).filter(|i| !hit.contains(i)).filter_map(|i| signatures.name(i)).collect();
    // `type` with other headers is found in the real dumps only.
    assert_eq!(missed, ["cpython.type.wide_header", "cpython.type.any_header", "impossible"]);
}

/// The rules of x86-64, written down once more.
fn naive_class(frame: &[u8]) -> u8 {
    let entries: Vec<u64> = frame.chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect();
    if entries.iter().all(|e| *e == 0) {
        return 0x80;
    }
    let present: Vec<u64> = entries.into_iter().filter(|e| e & 1 == 1).collect();
    if present.is_empty() {
        return 0x40;
    }
    if present.iter().any(|e| (e >> 48) & 0xf != 0) {
        return 0;
    }
    let fits = |rule: fn(u64) -> bool| present.iter().all(|e| e & 0x80 == 0 || rule(*e));
    let (pd, pdpt) = (fits(|e| (e >> 13) & 0xff == 0), fits(|e| (e >> 13) & 0x1_ffff == 0));
    let top = fits(|_| false);
    1 | u8::from(pd) << 1 | u8::from(pdpt) << 2 | u8::from(top) << 3 | u8::from(top) << 4
}

fn check_classes(memory: &PhysicalMemory, result: &ScanResult) {
    let mut frames = 0;
    for range in memory.ranges() {
        let whole = PhysicalMemory::frames(range);
        for pa in (whole.start.0..whole.end.0).step_by(FRAME as usize).map(PhysAddr) {
            assert_eq!(result.frames.get(pa), Some(naive_class(memory.bytes(pa, FRAME).unwrap())), "{pa}");
            frames += 1;
        }
    }
    assert_eq!(result.frames.len(), frames);
}

/// One odd entry in each slot of a frame decides the frame's class.
#[test]
fn every_entry_of_a_frame_counts() {
    let odd =
        [0, 1 << 48 | 1, 1 << 51 | 1, 1 << 52 | 1, 0x2081, 0x10_0081, 0x20_0081, 0x2000_0081, 0x4000_0081, 2, 0x81];
    let mut builder = Builder::new(&[0..odd.len() as u64 * 512 * FRAME]);
    for (entry, block) in odd.iter().zip(0..) {
        for slot in 0..512u64 {
            let frame = (block * 512 + slot) * FRAME;
            if slot % 3 != 0 {
                builder.words(frame + (slot ^ 1) * 8, &[0x1000_0027]);
            }
            builder.words(frame + slot * 8, &[*entry]);
        }
    }
    let memory = builder.done();
    let rules = include_str!("../signatures/x86_64.toml");
    let result = scan_all(&memory, &Signatures::from_texts([("x86_64.toml", rules)]).unwrap());
    check_classes(&memory, &result);
    let classes: BTreeSet<u8> =
        (0..result.frames.len() as u64).filter_map(|n| result.frames.get(PhysAddr(n * FRAME))).collect();
    assert_eq!(classes, BTreeSet::from([0, 1, 3, 7, 0x1f, ABSENT_FRAME, ZERO_FRAME]));
}

fn naive_sweep(memory: &PhysicalMemory, frames: &[Range<PhysAddr>], values: &[u64]) -> Vec<(PhysAddr, u64)> {
    let values: HashSet<u64> = values.iter().copied().collect();
    let slots = frames.iter().flat_map(|run| (run.start.0..run.end.0).step_by(8)).map(PhysAddr);
    slots.filter_map(|pa| memory.read_u64(pa).filter(|v| values.contains(v)).map(|v| (pa, v))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 12 } else { 256 }))]

    #[test]
    fn backends_agree_on_anything(seed in any::<u64>()) {
        let memory = Random(seed).memory();
        let result = scan_all(&memory, &many());
        check_classes(&memory, &result);
    }

    #[test]
    fn the_sweep_is_a_filter(seed in any::<u64>(), count in prop::sample::select(vec![0usize, 1, 2, 3, 4, 5, 8, 9, 40, 3000])) {
        let mut random = Random(seed);
        let memory = random.memory();
        let some = |random: &mut Random| memory.read_u64(PhysAddr(random.below(memory.end().0) & !7));
        let values: Vec<u64> = (0..count).map(|_| some(&mut random).unwrap_or_else(|| random.next())).collect();
        let middle = random.below(memory.end().0) & !(FRAME - 1);
        let last = memory.end().0.next_multiple_of(FRAME) + 2 * FRAME;
        let frames = [PhysAddr(0)..PhysAddr(middle), PhysAddr(middle + FRAME)..PhysAddr(last)];
        let expected = naive_sweep(&memory, &frames, &values);
        for backend in Backend::available() {
            let found = sweep(&memory, &frames, &PointerSet::new(&values), backend, &|_| {});
            prop_assert_eq!(&found, &expected, "{}", backend);
        }
    }
}

/// Slots that hold a multiple of 8 in `types`, with `after_count` behind a reference count; of frames that the dump holds in
/// part, all slots.
fn naive_type_slots(
    memory: &PhysicalMemory,
    frames: &[Range<PhysAddr>],
    types: &RangeInclusive<VirtAddr>,
    after_count: bool,
) -> Vec<(PhysAddr, u64)> {
    let is_type_slot = |(pa, value): &(PhysAddr, u64)| {
        if memory.bytes(pa.frame(), FRAME).is_none() {
            return true;
        }
        let before = (pa.in_frame() > 0).then(|| memory.read_u64(PhysAddr(pa.0 - 8)).unwrap());
        let counted = before.is_none_or(|before| (1..1 << 32).contains(&(before % (1 << 48))));
        value % 8 == 0 && types.contains(&VirtAddr(*value)) && (counted || !after_count)
    };
    let slots = frames.iter().flat_map(|run| (run.start.0..run.end.0).step_by(8)).map(PhysAddr);
    slots.filter_map(|pa| Some((pa, memory.read_u64(pa)?))).filter(is_type_slot).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 12 } else { 256 }))]

    #[test]
    fn slots_of_types_are_those_that_look_like_it(seed in any::<u64>(), after_count in any::<bool>(), count in 0usize..20) {
        let mut random = Random(seed);
        let memory = random.memory();
        let low = 0x7f00_0000_0000 + random.below(0x800);
        let types = VirtAddr(low)..=VirtAddr(low + random.below(0x4000));
        let middle = random.below(memory.end().0) & !(FRAME - 1);
        let last = memory.end().0.next_multiple_of(FRAME) + 2 * FRAME;
        let frames = [PhysAddr(0)..PhysAddr(middle), PhysAddr(middle + FRAME)..PhysAddr(last)];
        let expected = naive_type_slots(&memory, &frames, &types, after_count);
        let values: Vec<u64> = (0..count).map(|_| low + 8 * random.below(0x800)).collect();
        let (all, set) = (naive_sweep(&memory, &frames, &values), PointerSet::new(&values));
        for backend in Backend::available() {
            let (slots, hits) = type_slots(&memory, &frames, &TypeSlot::new(types.clone(), after_count), &set, backend);
            let found: Vec<_> = slots.iter().flat_map(|slots| slots.values(&memory)).collect();
            prop_assert_eq!(&found, &expected, "{}", backend);
            prop_assert!(slots.iter().all(|slots| !slots.is_empty()));
            prop_assert_eq!(&hits, &all, "{}", backend);
            let wanted: Vec<_> = expected.iter().copied().filter(|(_, value)| set.contains(*value)).collect();
            prop_assert_eq!(&sweep_slots(&memory, &slots, &set), &wanted, "{}", backend);
        }
    }
}

/// The shipped dump: two Python 3.11 processes, whose `type` stands at 0x9594a0.
#[test]
fn the_shipped_dump_holds_two_interpreters() {
    let file = std::fs::File::open("tests/data/cifar10-pdb.lime.zst").unwrap();
    let mut bytes = Vec::new();
    std::io::copy(&mut zstd::Decoder::new(file).unwrap(), &mut bytes).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (start, end) = (PhysAddr(word(at + 8)), PhysAddr(word(at + 16) + 1));
        ranges.push(MemoryRange { start, end, offset: FileOffset(at as u64 + 32) });
        at += 32 + (end.0 - start.0) as usize;
    }
    // The reference is slow, without optimisation and with many signatures: the last 2 MiB hold what is asserted.
    let last = *ranges.last().unwrap();
    let skip = last.len() - (2 << 20);
    let start = PhysAddr(last.start.0 + skip);
    let end_only = vec![MemoryRange { start, offset: FileOffset(last.offset.0 + skip), ..last }];
    let run = |bytes: Vec<u8>, ranges: Vec<MemoryRange>, signatures: &Signatures| {
        let memory = PhysicalMemory::owned(bytes, ranges).unwrap();
        let result = scan_all(&memory, signatures);
        let hits = hits_of(&result, signatures, "cpython.type");
        let whole: Vec<u64> = hits.into_iter().filter(|hit| hit.deferred == 0).map(|hit| hit.value).collect();
        assert_eq!(whole, [0x9594a0, 0x9594a0]);
        check_classes(&memory, &result);
        memory
    };
    if !cfg!(debug_assertions) {
        run(bytes.clone(), ranges, &Signatures::load(None).unwrap());
    }
    let memory = run(bytes, end_only, &many());

    let everything = [PhysAddr(0)..PhysAddr(memory.end().0.next_multiple_of(FRAME))];
    let values: Vec<u64> = (0..5000).map(|n| 0x9594a0 + n * 16).collect();
    for values in [&values[..1], &values[..3], &values[..7], &values[..]] {
        let expected = naive_sweep(&memory, &everything, values);
        assert!(!expected.is_empty());
        for backend in Backend::available() {
            let found = sweep(&memory, &everything, &PointerSet::new(values), backend, &|_| {});
            assert!(found == expected, "{backend}, {} values", values.len());
        }
    }
}

#[test]
fn backends_are_chosen_by_name() {
    for name in BackendChoice::NAMES {
        let choice: BackendChoice = name.parse().unwrap();
        if let Ok(backend) = choice.resolve() {
            assert!(Backend::available().contains(&backend) || name == "gpu");
            assert!(["auto", "simd"].contains(&name) || backend.to_string() == name);
        }
    }
    let error = "cuda".parse::<BackendChoice>().unwrap_err().to_string();
    assert_eq!(error, "no backend is named `cuda`; the backends are auto, scalar, simd, neon, avx2, avx512, gpu");
    assert_eq!(BackendChoice::Auto.resolve(), Ok(Backend::detect_best()));
    assert_eq!(Backend::available()[0], Backend::Scalar);
    // Every such CPU has it, so that the tests under an emulator are tests of it.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    assert_eq!(Backend::detect_best(), Backend::Neon);
}

#[test]
fn a_frame_full_of_hits_is_thinned_out_and_hides_no_other() {
    let mut builder = Builder::new(&[0x10_0000..0x10_0000 + 300 * FRAME]);
    for slot in (0x10_0000..0x10_0000 + 200 * FRAME).step_by(8) {
        builder.words(slot, &[u64::from_le_bytes(*b"xdebugpy")]);
    }
    let lone = 0x10_0000 + 250 * FRAME + 0x120;
    builder.words(lone, &[u64::from_le_bytes(*b"xdebugpy")]);
    let (memory, signatures) = (builder.done(), Signatures::load(None).unwrap());
    let all = scan_all(&memory, &signatures);
    assert_eq!((hits_of(&all, &signatures, "cpython.debug_offsets").len(), all.left_out), (200 * 512 + 1, 0));
    for backend in Backend::available() {
        let limits = Limits { per_frame: Some(64), total: None };
        let thin = scan_within(&memory, &signatures, backend, limits, Keep::Nothing, &|_| {});
        let hits = hits_of(&thin, &signatures, "cpython.debug_offsets");
        assert_eq!((hits.len(), thin.left_out), (200 * 64 + 1, 200 * (512 - 64)), "{backend}");
        assert_eq!((hits[63].address.0, hits[200 * 64].address.0), (0x10_0000 + 63 * 8, lone));
        assert!(thin.hits.is_sorted());
    }
}
