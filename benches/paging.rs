//! Roots found, addresses translated, and whole spaces walked, in the shipped dump.

#![allow(missing_docs, reason = "criterion's macros")]
#![allow(clippy::unwrap_used, reason = "benchmarks may simply fail")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tensorcarve::dump;
use tensorcarve::paging::{AddressSpace, SpaceKind, discover};
use tensorcarve::scan::{Backend, scan};
use tensorcarve::signature::Signatures;

/// Page tables that a walk may visit: more than a process of the dump has.
const BUDGET: u64 = 1 << 20;

fn benchmarks(criterion: &mut Criterion) {
    let dump = dump::open("tests/data/cifar10-pdb.lime.zst".as_ref(), &Default::default(), &|_, _| {}).unwrap();
    let signatures = Signatures::load(None).unwrap();
    let mmu = signatures.mmu().unwrap();
    let frames = scan(&dump.memory, &signatures.mmu_only(), Backend::detect_best(), &|_| {}).frames;
    let discovery = discover(&dump.memory, mmu, &frames);
    let processes = discovery.spaces.iter().filter(|space| space.kind == SpaceKind::Process);
    let (memory, rules) = (Arc::new(dump.memory.clone()), Arc::new(mmu.clone()));
    let spaces: Vec<_> = processes.map(|space| AddressSpace::new(&memory, &rules, space.root, space.levels)).collect();
    // The largest one is that of a Python process.
    let mappings = spaces.iter().map(|space| (space, space.user_mappings(&mut BUDGET.clone()).unwrap()));
    let (space, mappings) = mappings.max_by_key(|(_, mappings)| mappings.len()).unwrap();
    assert!(spaces.len() >= 5 && mappings.len() >= 1000, "{} spaces, {} mappings", spaces.len(), mappings.len());

    criterion.bench_function("roots", |bencher| bencher.iter(|| discover(&dump.memory, mmu, black_box(&frames))));
    criterion.bench_function("walk_all_processes", |bencher| {
        bencher.iter(|| spaces.iter().filter_map(|space| space.user_mappings(&mut BUDGET.clone())).flatten().count());
    });
    let mut group = criterion.benchmark_group("translate");
    group.throughput(Throughput::Elements(mappings.len() as u64));
    group.bench_function("every_page_of_python", |bencher| {
        bencher.iter(|| {
            let found = mappings.iter().filter(|mapping| space.translate(black_box(mapping.va)).is_ok()).count();
            assert_eq!(found, mappings.len());
        });
    });
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
