//! How fast memory is looked at: the scan, its parts, and the pointer sweep, per backend.
//!
//! `RAYON_NUM_THREADS=1 cargo bench --bench scan` measures one core. Every benchmark first checks
//! that what was planted is found, so that no fast wrong answer is measured.

#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "benchmarks may simply fail")]
#![allow(clippy::single_range_in_vec_init, reason = "one physical range is meant")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{MemoryRange, PhysicalMemory};
use tensorcarve::scan::{Backend, PointerSet, scan, sweep};
use tensorcarve::signature::Signatures;

const SIZE: u64 = 64 << 20;
const FRAME: u64 = 4096;
/// Where the bytes begin in the file of an ELF core: aligned to eight, not to a cache line.
const FILE_OFFSET: usize = 0x838;
const PLANTED: u64 = 100;
const TYPE_ADDRESS: u64 = 0x5555_5595_4000;

/// Frames as dumps hold them: zeros, machine code or weights, heaps full of pointers, page tables.
fn memory() -> PhysicalMemory {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = vec![0; FILE_OFFSET + SIZE as usize];
    let mut frames = bytes[FILE_OFFSET..].chunks_exact_mut(FRAME as usize).enumerate();
    for (n, frame) in &mut frames {
        for (slot, word) in frame.chunks_exact_mut(8).enumerate() {
            let r = random();
            let value = match n % 16 {
                0..4 => 0,
                4..10 => r,
                10..14 => match slot % 4 {
                    0 => 1,
                    1 => TYPE_ADDRESS + (r % (1 << 22)) * 16,
                    2 => 0x7f00_0000_0000 + (r % (1 << 28)) * 16,
                    _ => r % 1000,
                },
                14 => (r % (1 << 20)) << 12 | 0x67,
                _ => u64::from_le_bytes(*b"def forw"),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    for n in 0..PLANTED {
        let base = n * (SIZE / PLANTED / FRAME * FRAME) + FRAME + n * 40 % 4000 / 8 * 8;
        let object = [1, TYPE_ADDRESS | (base % FRAME), 0, 0x1001, 928, 40];
        for (word, at) in object.iter().zip((FILE_OFFSET + base as usize..).step_by(8)) {
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(*word));
        }
    }
    let range = MemoryRange { start: PhysAddr(0), end: PhysAddr(SIZE), offset: FileOffset(FILE_OFFSET as u64) };
    PhysicalMemory::owned(bytes, vec![range]).unwrap()
}

fn benchmarks(criterion: &mut Criterion) {
    let memory = memory();
    let all = Signatures::load(None).unwrap();
    let mmu = include_str!("../signatures/x86_64.toml");
    let typing = Signatures::from_texts([("x86_64.toml", mmu)]).unwrap();

    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(SIZE)).sample_size(20);
    let words = || memory.range_bytes(&memory.ranges()[0]).as_chunks::<8>().0;
    group.bench_function("sum", |bencher| {
        bencher.iter(|| words().iter().fold(0u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(*word))));
    });
    group.finish();

    for (name, signatures, planted) in [("scan", &all, PLANTED as usize), ("typing", &typing, 0)] {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(SIZE)).sample_size(20);
        for backend in Backend::available() {
            let whole = |result: &tensorcarve::scan::ScanResult| result.hits.iter().filter(|h| h.tested >= 6).count();
            assert_eq!(whole(&scan(&memory, signatures, backend, &|_| {})), planted, "{backend}");
            group.bench_function(BenchmarkId::from_parameter(backend), |bencher| {
                bencher.iter(|| scan(black_box(&memory), signatures, backend, &|_| {}));
            });
        }
        group.finish();
    }

    let frames = [PhysAddr(0)..PhysAddr(SIZE)];
    let first = TYPE_ADDRESS;
    for count in [1, 16, 5000] {
        // Types of the executable, and types on the heap.
        let values: Vec<u64> =
            (0..count).map(|n| if n % 2 == 0 { first + n * 0x130 } else { 0x7f00_0000_0000 + n * 0x1_0130 }).collect();
        let set = PointerSet::new(&values);
        let expected = sweep(&memory, &frames, &set, Backend::Scalar, &|_| {});
        let mut group = criterion.benchmark_group(format!("sweep_{count}"));
        group.throughput(Throughput::Bytes(SIZE)).sample_size(20);
        for backend in Backend::available() {
            assert!(sweep(&memory, &frames, &set, backend, &|_| {}) == expected, "{backend}");
            group.bench_function(BenchmarkId::from_parameter(backend), |bencher| {
                bencher.iter(|| sweep(black_box(&memory), &frames, &set, backend, &|_| {}));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
