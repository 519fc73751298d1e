//! Shaders against their twins, twins against the reference; overflow, loss of the device, what stays on it.
//!
//! The device's part says that it skips where there is no adapter; the twins' part runs anywhere.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::{cast_slice, pod_collect_to_vec};

use super::super::chunk::{Chunk, View};
use super::super::frames::FrameClasses;
use super::super::sample::Sample;
use super::super::{Backend, BesideGpu, Hit, Needles, PointerSet, ScanResult, chunk, engine, scalar, structures};
use super::device::{Gpu, Options};
use super::program::{DeviceStructure, DeviceTest, Program, ScanParams, SweepParams, SweepProgram};
use super::scan::OnCpu;
use super::twin::{self, List};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::signature::{Signature, Signatures};

const FRAME: u64 = 4096;

#[allow(dead_code, reason = "shared with tests/scan.rs")]
#[path = "../../../tests/scan/memory.rs"]
mod memory;
#[path = "../../../tests/random/mod.rs"]
mod random;

use random::Random;

/// Enough for all candidates of a small memory.
const ROOM: u32 = 1 << 20;

fn many() -> Signatures {
    Signatures::from_texts([
        ("cpython.toml", include_str!("../../../signatures/cpython.toml")),
        ("x86_64.toml", include_str!("../../../signatures/x86_64.toml")),
        ("many.toml", include_str!("../../../tests/scan/many.toml")),
    ])
    .unwrap()
}

/// More structures than a table has bits for, so that some share one.
fn crowd() -> Signatures {
    let structure = |n: u64| {
        format!(
            "[[structure]]\nname = \"s{n}\"\nanchor = \"a\"\n[[structure.field]]\nname = \"a\"\noffset = {}\nwidth = 8\n\
             range = [{}, {}]\n",
            n % 3 * 8,
            n,
            n + n % 5
        )
    };
    let text: String = (0..70).map(structure).collect();
    Signatures::from_texts([("crowd.toml", text.as_str())]).unwrap()
}

/// A device of the test's own, or a word that there is none.
fn open(options: impl FnOnce(Options) -> Options) -> Option<Gpu> {
    match Gpu::open(options) {
        Ok(gpu) => Some(gpu),
        Err(error) if std::env::var_os("TENSORCARVE_REQUIRE_GPU").is_none() => {
            eprintln!("skipped: no Vulkan adapter, {error} (on Debian: apt install mesa-vulkan-drivers)");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The whole frames of all ranges, one after the other, with their addresses.
fn whole_frames(memory: &PhysicalMemory) -> (Vec<PhysAddr>, Vec<u8>) {
    let mut addresses = Vec::new();
    let mut bytes = Vec::new();
    for range in memory.ranges() {
        let frames = PhysicalMemory::frames(range);
        for pa in (frames.start.0..frames.end.0).step_by(FRAME as usize).map(PhysAddr) {
            addresses.push(pa);
            bytes.extend(memory.bytes(pa, FRAME).unwrap());
        }
    }
    (addresses, bytes)
}

fn run_twin(program: &Program, frames: u32, capacity: u32, bytes: &[u8]) -> (Vec<u32>, List<[u32; 2]>) {
    let params = ScanParams { frame_count: frames, capacity, ..program.params };
    let words: Vec<[u32; 4]> = pod_collect_to_vec(bytes);
    let mut classes = vec![0; frames as usize];
    let mut candidates = List::new();
    twin::scan(&params, &program.structures, &program.tests, &program.tables, &words, &mut classes, &mut candidates);
    candidates.list.sort_unstable();
    (classes, candidates)
}

/// The twin's classes are the reference's, and its candidates, checked, are the reference's hits.
#[test]
fn the_twin_of_scan_misses_nothing() {
    for (signatures, seeds) in [(many(), 0..20), (crowd(), 20..30), (Signatures::load(None).unwrap(), 30..40)] {
        let program = Program::new(&signatures);
        let (mut all, mut tried) = (0, 0);
        for seed in seeds {
            let memory = Random(seed).memory();
            let plan = engine::Plan::new(&signatures, &Sample::new(&memory));
            let (addresses, bytes) = whole_frames(&memory);
            let (classes, candidates) = run_twin(&program, addresses.len() as u32, ROOM, &bytes);
            let mut expected = Vec::new();
            for ((frame, start), class) in bytes.chunks(FRAME as usize).zip(&addresses).zip(&classes) {
                assert_eq!(*class, u32::from(scalar::classify(signatures.mmu(), frame)), "{start}");
                let view = View { start: *start, bytes: frame };
                let range = memory.range_of(*start).unwrap();
                let range = View { start: range.start, bytes: memory.range_bytes(range) };
                scalar::match_view(&plan, range, view, &mut expected);
            }
            let mut hits: Vec<Hit> = candidates
                .list
                .iter()
                .filter_map(|[byte, index]| {
                    let frame = (byte / 4096) as usize;
                    let view = View { start: addresses[frame], bytes: &bytes[frame * 4096..][..4096] };
                    let signature = program.signatures[*index as usize];
                    let at = byte % 4096;
                    match signatures.get(signature).unwrap() {
                        Signature::Structure(structure) => structures::check(structure, signature, view, at as usize),
                        Signature::Needle(needle) => {
                            let range = memory.range_of(view.start).unwrap();
                            let range = View { start: range.start, bytes: memory.range_bytes(range) };
                            engine::needle_at(needle, signature, range, PhysAddr(view.start.0 + u64::from(at)))
                        }
                    }
                })
                .collect();
            hits.sort_unstable();
            expected.sort_unstable();
            assert!(hits == expected, "seed {seed}: {} hits, {} expected", hits.len(), expected.len());
            all += hits.len();
            tried += candidates.count as usize;
        }
        // The filter is one: what it lets through in vain are lists and equal fields.
        assert!(all > 0 && tried < all + all / 2, "{all} of {tried}");
    }
}

/// Runs the shader as the ring does, on frames of a test's own making.
fn run_shader(gpu: &Gpu, name: &str, params: &[u8], inputs: &[&[u8]], outputs: [u64; 2], frames: u32) -> [Vec<u8>; 2] {
    use wgpu::BufferUsages as Usage;
    let pipeline = match name {
        "scan" => &gpu.pipelines.scan,
        "sweep" => &gpu.pipelines.sweep,
        _ => &gpu.pipelines.sum,
    };
    let mut buffers = Vec::new();
    if !params.is_empty() {
        buffers.push(gpu.buffer_with(params, Usage::UNIFORM));
    }
    buffers.extend(inputs.iter().map(|input| gpu.buffer_with(input, Usage::STORAGE)));
    let outputs = outputs.map(|size| (size > 0).then(|| gpu.buffer(size, Usage::STORAGE | Usage::COPY_SRC)));
    buffers.extend(outputs.iter().flatten().cloned());
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    gpu.dispatch(&mut encoder, pipeline, &buffers.iter().collect::<Vec<_>>(), frames, None);
    let back = outputs.map(|output| {
        output.map(|output| {
            let back = gpu.buffer(output.size(), Usage::MAP_READ | Usage::COPY_DST);
            encoder.copy_buffer_to_buffer(&output, 0, &back, 0, output.size());
            back
        })
    });
    let submission = gpu.submit(encoder);
    back.iter().flatten().for_each(|back| back.map_async(wgpu::MapMode::Read, .., |result| result.unwrap()));
    gpu.wait(submission).unwrap();
    back.map(|back| back.map_or(Vec::new(), |back| back.get_mapped_range(..).unwrap().to_vec()))
}

fn words(bytes: &[u8]) -> Vec<u32> {
    pod_collect_to_vec(bytes)
}

#[test]
fn the_shader_of_scan_does_what_its_twin_does() {
    let Some(gpu) = open(|options| options) else { return };
    for (signatures, seeds) in [(many(), 0..6), (crowd(), 6..9), (Signatures::load(None).unwrap(), 9..12)] {
        let program = Program::new(&signatures);
        for seed in seeds {
            let (addresses, bytes) = whole_frames(&Random(seed).memory());
            let frames = addresses.len() as u32;
            if frames == 0 {
                continue;
            }
            for capacity in [ROOM, 3] {
                let (expected_classes, expected) = run_twin(&program, frames, capacity, &bytes);
                let params = ScanParams { frame_count: frames, capacity, ..program.params };
                let inputs: [&[u8]; 4] =
                    [cast_slice(&program.structures), cast_slice(&program.tests), cast_slice(&program.tables), &bytes];
                let sizes = [u64::from(frames) * 4, 8 + u64::from(capacity) * 8];
                let params = bytemuck::bytes_of(&params);
                let [classes, candidates] = run_shader(&gpu, "scan", params, &inputs, sizes, frames);
                assert!(words(&classes) == expected_classes, "seed {seed}");
                let count = words(&candidates[..4])[0];
                assert_eq!(count, expected.count, "seed {seed}");
                if count <= capacity {
                    let mut list: Vec<[u32; 2]> = pod_collect_to_vec(&candidates[8..][..count as usize * 8]);
                    list.sort_unstable();
                    assert!(list == expected.list, "seed {seed}");
                }
            }
        }
    }
}

/// A value that our memories hold in many places, and others, most of which they hold.
fn some_values(memory: &PhysicalMemory, random: &mut Random, count: usize) -> Vec<u64> {
    let end = memory.end().0;
    let mut other = || memory.read_u64(PhysAddr(random.below(end) & !7)).filter(|v| *v != 0).unwrap_or(random.next());
    std::iter::once(0x4242).chain((1..count).map(|_| other())).collect()
}

#[test]
fn the_shader_of_sweep_does_what_its_twin_does_and_the_twin_is_a_filter() {
    let gpu = open(|options| options);
    for (seed, count) in [1usize, 2, 7, 100, 5000].into_iter().enumerate() {
        let mut random = Random(seed as u64);
        let memory = several_batches(seed as u64);
        let (addresses, bytes) = whole_frames(&memory);
        let values = PointerSet::new(&some_values(&memory, &mut random, count));
        let program = SweepProgram::new(&values);
        let frames: Vec<u32> = (0..addresses.len() as u32).filter(|frame| frame % 3 != 1).collect();
        for capacity in [ROOM, 2] {
            let params = SweepParams { frame_count: frames.len() as u32, capacity, ..program.params };
            let slots: Vec<[u32; 2]> = pod_collect_to_vec(&bytes);
            let mut found = List::new();
            twin::sweep(&params, &program.table, &frames, &slots, &mut found);
            found.list.sort_unstable();
            if capacity == ROOM {
                let value = |slot: u32| u64::from(slots[slot as usize][0]) | u64::from(slots[slot as usize][1]) << 32;
                let is_found = |n: u32| values.contains(value(frames[n as usize / 512] * 512 + n % 512));
                let expected: Vec<u32> = (0..frames.len() as u32 * 512).filter(|n| is_found(*n)).collect();
                assert!(found.list == expected && !expected.is_empty(), "seed {seed}");
            }
            let Some(gpu) = &gpu else { continue };
            let inputs: [&[u8]; 3] = [cast_slice(&program.table), cast_slice(&frames), &bytes];
            let sizes = [8 + u64::from(capacity) * 4, 0];
            let params = bytemuck::bytes_of(&params);
            let [output, _] = run_shader(gpu, "sweep", params, &inputs, sizes, frames.len() as u32);
            assert_eq!(words(&output[..4])[0], found.count);
            if found.count <= capacity {
                let mut list = words(&output[8..][..found.count as usize * 4]);
                list.sort_unstable();
                assert!(list == found.list, "seed {seed}");
            }
        }
    }
}

#[test]
fn the_shader_of_sum_does_what_its_twin_does() {
    let (_, bytes) = whole_frames(&Random(5).memory());
    let expected = words(&bytes).into_iter().fold(0, u32::wrapping_add);
    for workgroups in [1, 7] {
        let mut total = 0;
        twin::sum(workgroups, &pod_collect_to_vec::<u8, [u32; 4]>(&bytes), &mut total);
        assert_eq!(total, expected);
    }
    let Some(gpu) = open(|options| options) else { return };
    let [total, _] = run_shader(&gpu, "sum", &[], &[&bytes], [4, 0], 7);
    assert_eq!(words(&total), [expected]);
}

/// The CPU's part, which counts the bytes that it does in the device's place.
struct Counting<'a> {
    cpu: BesideGpu<'a>,
    in_place: AtomicU64,
}

impl OnCpu for Counting<'_> {
    fn beside(&self, chunk: &Chunk<'_>, hits: &mut Vec<Hit>) {
        self.cpu.beside(chunk, hits);
    }

    fn whole_frames(&self, chunk: &mut Chunk<'_>, hits: &mut Vec<Hit>) {
        self.in_place.fetch_add(chunk.whole_frames.0.bytes.len() as u64, Ordering::Relaxed);
        self.cpu.whole_frames(chunk, hits);
    }
}

/// A scan with a device of the test's own; also how many bytes the CPU did in its place.
fn scan_with(gpu: &Gpu, memory: &PhysicalMemory, signatures: &Signatures) -> (ScanResult, u64) {
    let plan = engine::Plan::new(signatures, &Sample::new(memory));
    let needles = Needles::new(signatures);
    let mut frames = FrameClasses::unclassified(memory);
    let chunks = chunk::split(memory, &mut frames);
    let cpu = BesideGpu { engine: Backend::Scalar.engine(), plan: &plan, needles: &needles };
    let cpu = Counting { cpu, in_place: AtomicU64::new(0) };
    let seen = AtomicU64::new(0);
    let progress = |bytes| {
        seen.fetch_add(bytes, Ordering::Relaxed);
    };
    let mut hits = gpu.scan(memory, signatures, chunks, &cpu, &progress);
    hits.sort_unstable();
    assert_eq!(seen.into_inner(), memory.size());
    (ScanResult { hits, frames }, cpu.in_place.into_inner())
}

/// Several batches of zeros, tables and pointers, with ragged ends.
fn several_batches(seed: u64) -> PhysicalMemory {
    let mut random = Random(seed);
    let mut builder = memory::Builder::new(&[0x1008..0x40_0000, 0x100_0010..0x118_0123]);
    for _ in 0..2000 {
        let at = random.below(0x118_0000) & !7;
        let value = [random.next(), 0x4242, 40, 0x7f00_0000_0000 | (at & 0xfff), 0x9594a0][random.below(5) as usize];
        builder.words(at, &[value]);
        builder.words(random.below(0x118_0000) & !0xfff, &[0x1000_0027, random.below(1 << 40) | 1]);
    }
    builder.done()
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
        let expected = super::super::scan(&memory, &signatures, Backend::Scalar, &|_| {});
        let (result, in_place) = scan_with(&gpu, &memory, &signatures);
        assert!(result == expected, "seed {seed}");
        assert_eq!(in_place, 0, "seed {seed}");
    }
    assert_eq!(gpu.failure(), None);
}

#[test]
fn a_list_that_is_too_short_loses_nothing() {
    let signatures = many();
    let memory = several_batches(7);
    let expected = super::super::scan(&memory, &signatures, Backend::Scalar, &|_| {});
    let Some(gpu) = open(|options| Options { capacity: 5, ..small_batches(options) }) else { return };
    let (result, in_place) = scan_with(&gpu, &memory, &signatures);
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
    let expected = super::super::scan(&memory, &signatures, Backend::Scalar, &|_| {});
    // The first submissions map the four staging buffers.
    for lost_after in [2, 5, 7, 9] {
        let Some(gpu) = open(|options| Options { lost_after, ..small_batches(options) }) else { return };
        let (result, in_place) = scan_with(&gpu, &memory, &signatures);
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
    let expected = super::super::scan(&memory, &signatures, Backend::Scalar, &|_| {});
    let Some(gpu) = open(small_batches) else { return };
    drop(gpu.buffer(!3, wgpu::BufferUsages::STORAGE));
    assert!(gpu.failure().is_some());
    let (result, in_place) = scan_with(&gpu, &memory, &signatures);
    assert!(result == expected);
    assert!(in_place > 0);
}

/// Sweeps with the device and with the reference; `look` gets the bytes that the CPU did, and all.
fn check_sweep(gpu: &Gpu, memory: &PhysicalMemory, values: &PointerSet, look: impl FnOnce(u64, u64)) {
    let frames = [PhysAddr(0)..PhysAddr(0x7_3000), PhysAddr(0x7_5000)..PhysAddr(0x200_0000)];
    let expected = super::super::sweep(memory, &frames, values, Backend::Scalar, &|_| {});
    let views = super::super::sweep::views(memory, &frames);
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
        let sweep = |random: &mut Random| {
            for count in [1, 3, 40, 5000] {
                let values = PointerSet::new(&some_values(&memory, random, count));
                check_sweep(&gpu, &memory, &values, |on_cpu, all| assert!(on_cpu < 4 * FRAME && all > on_cpu));
            }
        };
        // Nothing is there yet; then this memory; then another one of the same addresses.
        sweep(&mut random);
        scan_with(&gpu, &memory, &many());
        let here = gpu.state.lock().unwrap().resident.bytes();
        assert_eq!(here > 0, resident_bytes > 0);
        assert!(here <= resident_bytes);
        sweep(&mut random);
        scan_with(&gpu, &several_batches(4), &many());
        sweep(&mut random);
        assert_eq!(gpu.failure(), None);
    }
}

/// Members and offsets of a struct of ours.
macro_rules! layout {
    ($type:ident as $name:literal: $($member:ident),*) => {
        ($name, size_of::<$type>(), vec![$((stringify!($member), offset_of!($type, $member))),*])
    };
}

#[test]
fn structs_are_laid_out_as_in_the_shaders() {
    let ours = [
        layout!(ScanParams as "ScanParams": frame_count, slot_structures, structures, column_count, capacity,
            level_count, has_mmu, zeros_may_match, present, leaf_bit, reserved, all_bits, padding, levels),
        layout!(DeviceStructure as "Structure": first_test, test_count, phase, step),
        layout!(DeviceTest as "Test": position, width, kind, padding, low, high),
        layout!(SweepParams as "SweepParams": frame_count, capacity, last, padding, low, high, absent_bits, empty),
    ];
    let mut checked = 0;
    for (source, list) in [
        (include_str!("../../../shaders/scan.wgsl"), Some(("Candidates", 8))),
        (include_str!("../../../shaders/sweep.wgsl"), Some(("Found", 8))),
        (include_str!("../../../shaders/sum.wgsl"), None),
    ] {
        let module = naga::front::wgsl::parse_str(source).unwrap();
        for (_, value) in module.types.iter() {
            let naga::TypeInner::Struct { members, span } = &value.inner else { continue };
            let name = value.name.as_deref().unwrap();
            let theirs: Vec<_> = members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
            if let Some((list, header)) = list
                && name == list
            {
                assert_eq!(theirs, [("count", 0), ("padding", 4), ("list", header)]);
                assert_eq!(header as u64, super::ring::HEADER);
            } else {
                let (_, size, offsets) = ours.iter().find(|(ours, ..)| *ours == name).unwrap();
                assert_eq!(theirs, *offsets, "{name}");
                assert_eq!(*span as usize, *size, "{name}");
            }
            checked += 1;
        }
    }
    assert_eq!(checked, ours.len() + 2);
}
