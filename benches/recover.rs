//! All that `recover` does between the open dump and the written folder, on the shipped dump.

#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "benchmarks may simply fail")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tensorcarve::progress::Silent;
use tensorcarve::recover::recover;
use tensorcarve::scan::Backend;
use tensorcarve::{dump, signature::Signatures};

fn benchmarks(criterion: &mut Criterion) {
    let dump = dump::open("tests/data/cifar10-pdb.lime.zst".as_ref(), &Default::default(), &|_, _| {}).unwrap();
    let signatures = Signatures::load(None).unwrap();
    let mut group = criterion.benchmark_group("recover");
    group.throughput(Throughput::Bytes(dump.memory.size())).sample_size(10);
    for backend in Backend::available() {
        let run = || recover(black_box(&dump), &signatures, backend, &Silent).unwrap();
        assert_eq!(run().processes.iter().flat_map(|process| &process.models).count(), 1, "{backend}");
        group.bench_function(BenchmarkId::from_parameter(backend), |bencher| bencher.iter(run));
    }
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
