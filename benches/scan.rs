//! The scan per backend, over memory as dumps hold it: built-in signatures, frame typing alone, many structures, needles.
//!
//! `RAYON_NUM_THREADS=1 cargo bench --bench scan` measures one core. Every benchmark first checks
//! that what was planted is found, so that no fast wrong answer is measured. `tensorcarve bench` measures the same
//! against reading, on this memory or a dump.

#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "benchmarks may simply fail")]

#[allow(dead_code, reason = "other benchmarks use the rest")]
#[path = "../src/cli/bench/memory.rs"]
mod memory;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memory::{TILE, Tile, needles, structures};
use tensorcarve::scan::{Backend, read, scan};
use tensorcarve::signature::Signatures;

const TILES: usize = 4;

fn benchmarks(criterion: &mut Criterion) {
    let built_in = Signatures::load(None).unwrap();
    let sets = [
        ("typing", built_in.mmu_only()),
        ("default", built_in),
        ("16_structures", structures(16).unwrap()),
        ("20_needles", needles(20).unwrap()),
    ];
    for (name, signatures) in &sets {
        let mut tile = Tile::new();
        let planted = tile.plant(signatures).len() * TILES;
        let memory = tile.memory(TILES).unwrap();
        let mut group = criterion.benchmark_group(*name);
        group.throughput(Throughput::Bytes((TILES * TILE) as u64)).sample_size(20);
        group.bench_function("read", |bencher| bencher.iter(|| read(black_box(&memory))));
        for backend in Backend::available() {
            assert_eq!(scan(&memory, signatures, backend, &|_| {}).hits.len(), planted, "{name}, {backend}");
            group.bench_function(BenchmarkId::from_parameter(backend), |bencher| {
                bencher.iter(|| scan(black_box(&memory), signatures, backend, &|_| {}));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
