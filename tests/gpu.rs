//! The GPU finds what the reference finds: on random memory, on both real dumps, in sweeps of every size.
//!
//! The tests say that they skip where there is no Vulkan adapter, and fail there where
//! `TENSORCARVE_REQUIRE_GPU` is set. A process has one device, which works for one at a time: they take turns.

#![cfg(feature = "gpu")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may simply fail")]
#![allow(clippy::single_range_in_vec_init, reason = "one physical range is meant")]

#[allow(dead_code, reason = "shared with tests/scan.rs")]
#[path = "scan/memory.rs"]
mod memory;
mod random;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use random::Random;
use tensorcarve::addr::PhysAddr;
use tensorcarve::dump::{self, PhysicalMemory};
use tensorcarve::scan::{
    Backend, BackendChoice, Hit, Keep, Limits, PointerSet, ScanResult, gpu, scan, scan_within, sweep,
};
use tensorcarve::signature::Signatures;

const FRAME: u64 = 4096;

/// The device, for one test at a time; nothing where there is none.
fn device() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match BackendChoice::Gpu.resolve() {
        Ok(_) => Some(turn),
        Err(error) if std::env::var_os("TENSORCARVE_REQUIRE_GPU").is_none() => {
            assert!(error.hint().contains("install a Vulkan driver"), "{error}");
            eprintln!("skipped: no Vulkan adapter (on Debian: apt install mesa-vulkan-drivers)");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn compare(memory: &PhysicalMemory, signatures: &Signatures, reference: Backend) -> ScanResult {
    let expected = scan(memory, signatures, reference, &|_| {});
    let result = scan_within(memory, signatures, Backend::Gpu, Limits::default(), Keep::Memory, &|_| {});
    let alone = scan(memory, signatures, Backend::Gpu, &|_| {});
    assert!(result == alone, "what stays on the device changes what is found");
    assert!(result.hits == expected.hits, "{} hits, {} expected", result.hits.len(), expected.hits.len());
    assert!(result.frames == expected.frames, "classes differ");
    assert_eq!(gpu::given_up(), None);
    result
}

fn compare_sweeps(memory: &PhysicalMemory, values: &[u64]) {
    let end = memory.end().0.next_multiple_of(FRAME);
    let middle = (end / 2) & !(FRAME - 1);
    let frames = [PhysAddr(0)..PhysAddr(middle), PhysAddr(middle + FRAME)..PhysAddr(end)];
    for count in [1, 2, 8, 300, 5000] {
        let values = PointerSet::new(&values[..count]);
        let expected = sweep(memory, &frames, &values, Backend::detect_best(), &|_| {});
        let found = sweep(memory, &frames, &values, Backend::Gpu, &|_| {});
        assert!(found == expected, "{count} values: {} found, {} expected", found.len(), expected.len());
        assert!(!expected.is_empty());
    }
    assert_eq!(gpu::given_up(), None);
}

#[test]
fn random_memory() {
    let Some(_turn) = device() else { return };
    let many = Signatures::from_texts([
        ("cpython.toml", include_str!("../signatures/cpython.toml")),
        ("x86_64.toml", include_str!("../signatures/x86_64.toml")),
        ("many.toml", include_str!("scan/many.toml")),
    ]);
    let many = many.unwrap();
    for seed in 100..160 {
        compare(&Random(seed).memory(), &many, Backend::Scalar);
        compare(&Random(seed).memory(), &many.mmu_only(), Backend::Scalar);
    }
}

/// The values of those hits of CPython's `type` that have all fields in one frame.
fn whole_types(signatures: &Signatures, hits: &[Hit]) -> Vec<u64> {
    let is_whole = |hit: &&Hit| signatures.name(hit.signature) == Some("cpython.type") && hit.tested == 6;
    hits.iter().filter(is_whole).map(|hit| hit.value).collect()
}

#[test]
fn the_shipped_dump() {
    let Some(_turn) = device() else { return };
    let dump = dump::open(Path::new("tests/data/cifar10-pdb.lime.zst"), &Default::default(), &|_, _| ()).unwrap();
    let signatures = Signatures::load(None).unwrap();
    let result = compare(&dump.memory, &signatures, Backend::Scalar);
    assert_eq!(whole_types(&signatures, &result.hits), [0x9594a0, 0x9594a0]);
    // More of it than stays on a software device.
    let values: Vec<u64> = (0..5000).map(|n| 0x9594a0 + n * 16).collect();
    compare_sweeps(&dump.memory, &values);
}

#[test]
fn the_shared_dump() {
    let Some(_turn) = device() else { return };
    let packed = Path::new("../shared/dumps/residual.elf.zst");
    if !packed.exists() {
        eprintln!("skipped: {} is not there", packed.display());
        return;
    }
    let dump = dump::open(packed, &Default::default(), &|_, _| ()).unwrap();
    let signatures = Signatures::load(None).unwrap();
    let result = compare(&dump.memory, &signatures, Backend::Scalar);
    let first = whole_types(&signatures, &result.hits)[0];
    let values: Vec<u64> = (0..5000).map(|n| first + n * 8).collect();
    compare_sweeps(&dump.memory, &values);
}

#[test]
fn the_adapter_that_is_used_is_listed() {
    let Some(_turn) = device() else { return };
    let adapters = gpu::adapters();
    let used: Vec<_> = adapters.iter().filter(|adapter| adapter.would_be_used).collect();
    assert_eq!(used.len(), 1);
    assert!(adapters.is_sorted_by_key(|adapter| adapter.kind));
    assert!(used[0].max_storage_binding_size >= 128 << 20 && used[0].max_workgroups_per_dimension >= 65_535);
}
