//! The pointer sweep per backend, for one, some and many values.

#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "benchmarks may simply fail")]
#![allow(clippy::single_range_in_vec_init, reason = "one physical range is meant")]

#[allow(dead_code, reason = "other benchmarks use the rest")]
#[path = "../src/cli/bench/memory.rs"]
mod memory;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memory::{TILE, Tile, sweep_values};
use tensorcarve::addr::PhysAddr;
use tensorcarve::scan::{Backend, PointerSet, sweep};

const TILES: usize = 4;

fn benchmarks(criterion: &mut Criterion) {
    let tile = Tile::new();
    let memory = tile.memory(TILES).unwrap();
    let frames = [PhysAddr(0)..memory.end()];
    for count in [1, 16, 5000] {
        let values = sweep_values(count);
        let set = PointerSet::new(&values);
        let expected = tile.count(&values) * TILES as u64;
        let mut group = criterion.benchmark_group(format!("sweep_{count}"));
        group.throughput(Throughput::Bytes((TILES * TILE) as u64)).sample_size(20);
        for backend in Backend::available() {
            assert_eq!(sweep(&memory, &frames, &set, backend, &|_| {}).len() as u64, expected, "{backend}");
            group.bench_function(BenchmarkId::from_parameter(backend), |bencher| {
                bencher.iter(|| sweep(black_box(&memory), &frames, &set, backend, &|_| {}));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
