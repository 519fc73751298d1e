//! A device does what the reference does, also where lists are too short and where the device fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::super::chunk::{Chunk, View};
use super::super::super::collector::Collector;
use super::super::super::frames::FrameClasses;
use super::super::super::sample::Sample;
use super::super::super::{
    Backend, BesideGpu, Hit, Limits, Needles, PointerSet, ScanResult, chunk, engine, scan, sweep,
};
use super::super::device::{Gpu, Options};
use super::super::program::Program;
use super::super::scan::OnCpu;
use super::{FRAME, many, open, several_batches, some_values};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::scan::test_inputs::random::Random;
use crate::signature::Signatures;

/// The CPU's part, which counts the bytes that it does in the device's place.
struct Counting<'a> {
    cpu: BesideGpu<'a>,
    in_place: AtomicU64,
}

impl OnCpu for Counting<'_> {
    fn scan_on_cpu(&self, chunk: &Chunk<'_>, hits: &mut Vec<Hit>) {
        self.cpu.scan_on_cpu(chunk, hits);
    }

    fn whole_frames(&self, chunk: &mut Chunk<'_>, hits: &mut Vec<Hit>) {
        self.in_place.fetch_add(chunk.whole_frames.0.bytes.len() as u64, Ordering::Relaxed);
        self.cpu.whole_frames(chunk, hits);
    }
}

/// A scan with a device of the test's own; also how many bytes the CPU did in its place.
fn scan_with(
    gpu: &Gpu,
    memory: &PhysicalMemory,
    signatures: &Signatures,
    kept: Option<&PhysicalMemory>,
) -> (ScanResult, u64) {
    let plan = engine::Plan::new(signatures, memory, Backend::Scalar.engine());
    let needles = Needles::new(signatures, Backend::detect_best());
    let mut frames = FrameClasses::unclassified(memory);
    let chunks = chunk::split(memory, &mut frames);
    let cpu = BesideGpu { engine: Backend::Scalar.engine(), plan: &plan, needles: &needles };
    let cpu = Counting { cpu, in_place: AtomicU64::new(0) };
    let seen = AtomicU64::new(0);
    let progress = |bytes| {
        seen.fetch_add(bytes, Ordering::Relaxed);
    };
    let collector = Collector::new(Limits::default());
    let program = Program::new(signatures, &Sample::new(memory));
    gpu.scan(kept, &program, chunks, &cpu, &collector, &progress);
    assert_eq!(seen.into_inner(), memory.size());
    let (hits, left_out) = collector.finish();
    (ScanResult { hits, frames, left_out }, cpu.in_place.into_inner())
}

/// 2 MiB, so that the memory above is four of them, and less than a ring full.
fn small_batches(options: Options) -> Options {
    Options { batch_frames: 512, capacity: 512 * 64, ..options }
}

#[test]
fn a_device_finds_what_the_reference_finds() {
    let Some(gpu) = open(small_batches) else { return };
    let signatures = many();
    for seed in 0..12 {
        let memory = if seed < 4 { several_batches(seed) } else { Random(seed).memory() };
        let expected = scan(&memory, &signatures, Backend::Scalar, &|_| {});
        let (result, in_place) = scan_with(&gpu, &memory, &signatures, Some(&memory));
        assert!(result == expected, "seed {seed}");
        assert_eq!(in_place, 0, "seed {seed}");
    }
    assert_eq!(gpu.failure(), None);
}

#[test]
fn a_list_that_is_too_short_loses_nothing() {
    let signatures = many();
    let memory = several_batches(7);
    let expected = scan(&memory, &signatures, Backend::Scalar, &|_| {});
    let Some(gpu) = open(|options| Options { capacity: 5, ..small_batches(options) }) else { return };
    let (result, in_place) = scan_with(&gpu, &memory, &signatures, Some(&memory));
    assert!(result == expected);
    assert!(in_place > 0, "no list was too short");
    let values = PointerSet::new(&[0, 0x4242, 40]);
    check_sweep(&gpu, &memory, &values, |on_cpu, all| assert!(on_cpu > all / 2));
    assert_eq!(gpu.failure(), None);
}

#[test]
fn when_the_device_is_lost_the_cpu_does_the_rest() {
    let signatures = many();
    let memory = several_batches(8);
    let expected = scan(&memory, &signatures, Backend::Scalar, &|_| {});
    for lost_after in [1, 2, 3] {
        let Some(gpu) = open(|options| Options { lost_after, ..small_batches(options) }) else { return };
        let (result, in_place) = scan_with(&gpu, &memory, &signatures, Some(&memory));
        assert!(result == expected, "lost after {lost_after}");
        assert!(in_place > 0, "lost after {lost_after}");
        let failure = gpu.failure().unwrap();
        assert!(failure.starts_with(&gpu.adapter.name) && failure.contains(" failed: "), "{failure}");
        check_sweep(&gpu, &memory, &PointerSet::new(&[0x4242]), |on_cpu, all| assert_eq!(on_cpu, all));
    }
}

/// A fault in our own use of the device is no panic either.
#[test]
fn when_the_driver_refuses_the_cpu_does_the_work() {
    let signatures = many();
    let memory = several_batches(9);
    let expected = scan(&memory, &signatures, Backend::Scalar, &|_| {});
    let Some(gpu) = open(small_batches) else { return };
    drop(gpu.buffer(!3, wgpu::BufferUsages::STORAGE));
    assert!(gpu.failure().is_some());
    let (result, in_place) = scan_with(&gpu, &memory, &signatures, Some(&memory));
    assert!(result == expected);
    assert!(in_place > 0);
}

/// Sweeps with the device and with the reference; `look` gets the bytes that the CPU did, and all.
fn check_sweep(gpu: &Gpu, memory: &PhysicalMemory, values: &PointerSet, look: impl FnOnce(u64, u64)) {
    let frames = [PhysAddr(0)..PhysAddr(0x7_3000), PhysAddr(0x7_5000)..PhysAddr(0x200_0000)];
    let expected = sweep(memory, &frames, values, Backend::Scalar, &|_| {});
    let views = sweep::views(memory, &frames);
    let all: u64 = views.iter().map(|view| view.bytes.len() as u64).sum();
    let (seen, on_cpu) = (AtomicU64::new(0), AtomicU64::new(0));
    let cpu = |view: View<'_>, found: &mut Vec<(PhysAddr, u64)>| {
        on_cpu.fetch_add(view.bytes.len() as u64, Ordering::Relaxed);
        Backend::Scalar.engine().sweep(values, view, found);
    };
    let progress = |bytes| {
        seen.fetch_add(bytes, Ordering::Relaxed);
    };
    let mut found = gpu.sweep(memory, &views, values, &cpu, &progress);
    found.sort_unstable();
    assert!(found == expected, "{} found, {} expected", found.len(), expected.len());
    assert!(!expected.is_empty());
    assert_eq!(seen.into_inner(), all);
    look(on_cpu.into_inner(), all);
}

#[test]
fn sweeps_use_what_is_on_the_device_and_stream_the_rest() {
    for resident_bytes in [0, 5 << 20, 1 << 30] {
        let Some(gpu) = open(|options| Options { resident_bytes, ..small_batches(options) }) else { return };
        let mut random = Random(3);
        let memory = several_batches(3);
        let sweep_all = |random: &mut Random| {
            for count in [1, 3, 40, 5000] {
                let values = PointerSet::new(&some_values(&memory, random, count));
                check_sweep(&gpu, &memory, &values, |on_cpu, all| assert!(on_cpu < 4 * FRAME && all > on_cpu));
            }
        };
        let here = || gpu.state.lock().unwrap().resident.bytes();
        // Nothing is there yet; then this memory; then another one of the same addresses.
        scan_with(&gpu, &memory, &many(), None);
        assert_eq!(here(), 0);
        sweep_all(&mut random);
        scan_with(&gpu, &memory, &many(), Some(&memory));
        let kept = here();
        assert_eq!(kept > 0, resident_bytes > 0);
        assert!(kept <= resident_bytes);
        sweep_all(&mut random);
        let other = several_batches(4);
        scan_with(&gpu, &other, &many(), None);
        assert_eq!(here(), kept);
        sweep_all(&mut random);
        scan_with(&gpu, &other, &many(), Some(&other));
        sweep_all(&mut random);
        assert_eq!(gpu.failure(), None);
    }
}

#[test]
fn the_measure_has_all_its_times() {
    let Some(gpu) = open(small_batches) else { return };
    let memory = several_batches(5);
    let measured = gpu.measure(&memory, &many(), &PointerSet::new(&[0x4242])).unwrap();
    assert!(measured.upload > Duration::ZERO && measured.copies > Duration::ZERO);
    assert!(measured.resident_bytes > 0 && measured.resident_bytes <= memory.size());
    for time in [measured.scan, measured.sweep, measured.sum] {
        assert_eq!(time.is_some_and(|time| time > Duration::ZERO), gpu.adapter.has_timestamps);
    }
    assert_eq!(gpu.failure(), None);
}
