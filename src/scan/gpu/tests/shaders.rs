//! Shaders against their twins, twins against the reference, and layouts of structs.

use std::collections::BTreeSet;
use std::mem::offset_of;

use bytemuck::{cast_slice, pod_collect_to_vec};

use super::super::super::chunk::View;
use super::super::super::sample::Sample;
use super::super::super::{Backend, Hit, PointerSet, engine, scalar, structures};
use super::super::device::{Gpu, Options, Shader};
use super::super::program::{DeviceStructure, DeviceTest, Program, Question, ScanParams, SweepParams, SweepProgram};
use super::super::ring::HEADER;
use super::super::source::{self, Team};
use super::super::twin::{self, List};
use super::{FRAME, many, open, several_batches, some_values};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::scan::test_inputs::random::Random;
use crate::signature::{Signature, Signatures};

/// Enough for all candidates of a small memory.
const ROOM: u32 = 1 << 20;

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

fn run_twin(program: &Program<'_>, frames: u32, capacity: u32, bytes: &[u8]) -> (Vec<u32>, List<[u32; 2]>) {
    let words: Vec<[u32; 4]> = pod_collect_to_vec(bytes);
    let mut classes = vec![0; frames as usize];
    let mut candidates = List::new();
    twin::scan(program, capacity, &words, &mut classes, &mut candidates);
    candidates.list.sort_unstable();
    (classes, candidates)
}

/// Small sets and large ones, of structures and of needles.
fn sets() -> [Signatures; 5] {
    let numbers = (1..200u64).map(|n| format!("{:016x}", n << 56 | n)).chain(["64656275".to_owned()]);
    let needle = |hex: String| format!("[[needle]]\nname = \"{hex}\"\nhex = \"{hex}\"\nalign = 8\n");
    let needles: String = numbers.map(needle).collect();
    let cpython = Signatures::from_texts([("cpython.toml", include_str!("../../../../signatures/cpython.toml"))]);
    [
        many(),
        crowd(),
        Signatures::load(None).unwrap(),
        cpython.unwrap(),
        Signatures::from_texts([("n.toml", &*needles)]).unwrap(),
    ]
}

/// The twin's classes are the reference's, and its candidates, checked, are the reference's hits.
#[test]
fn the_twin_of_scan_misses_nothing() {
    for (signatures, seeds) in sets().into_iter().zip([0..20, 20..30, 30..40, 40..45, 45..50]) {
        let (mut all, mut tried) = (0, 0);
        for seed in seeds {
            let memory = Random(seed).memory();
            let program = Program::new(&signatures, &Sample::new(&memory));
            let plan = engine::Plan::new(&signatures, &memory, Backend::Scalar.engine());
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
                    let signature = program.indices[*index as usize];
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
fn run_shader(
    gpu: &Gpu,
    shader: &Shader,
    params: &[u8],
    inputs: &[&[u8]],
    outputs: [u64; 2],
    frames: u32,
) -> [Vec<u8>; 2] {
    use wgpu::BufferUsages as Usage;
    let mut buffers = Vec::new();
    if !params.is_empty() {
        buffers.push(gpu.buffer_with(params, Usage::UNIFORM));
    }
    buffers.extend(inputs.iter().map(|input| gpu.buffer_with(input, Usage::STORAGE)));
    let outputs = outputs.map(|size| (size > 0).then(|| gpu.buffer(size, Usage::STORAGE | Usage::COPY_SRC)));
    buffers.extend(outputs.iter().flatten().cloned());
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    gpu.dispatch(&mut encoder, shader, &buffers.iter().collect::<Vec<_>>(), frames, None);
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
    for team in [Team::Lane, Team::Subgroup] {
        let Some(gpu) = open(|options| Options { team, ..options }) else { return };
        if team == Team::Subgroup && !gpu.adapter.has_subgroups {
            eprintln!("skipped: the scan by subgroups, which {} does not have", gpu.adapter.name);
            return;
        }
        // Of a needle that may stand anywhere, nothing is looked up in slots.
        let anywhere = Signatures::from_texts([("n.toml", "[[needle]]\nname = \"n\"\ntext = \"xdeb\"\n")]).unwrap();
        let sets = sets().into_iter().chain([anywhere]);
        for (signatures, seeds) in sets.zip([0..4, 4..7, 7..10, 10..12, 12..14, 14..15]) {
            for seed in seeds {
                let memory = Random(seed).memory();
                let program = Program::new(&signatures, &Sample::new(&memory));
                compare_with_twin(&gpu, &program, &memory, &format!("{team:?}, seed {seed}"));
            }
        }
        assert_eq!(gpu.failure(), None);
    }
}

fn compare_with_twin(gpu: &Gpu, program: &Program<'_>, memory: &PhysicalMemory, what: &str) {
    let (addresses, bytes) = whole_frames(memory);
    let frames = addresses.len() as u32;
    if frames == 0 {
        return;
    }
    let shader = gpu.scan_shader(program, &mut gpu.state.lock().unwrap());
    for capacity in [ROOM, 3] {
        let (expected_classes, expected) = run_twin(program, frames, capacity, &bytes);
        let params = ScanParams { frame_count: frames, capacity };
        let tables = program.tables();
        let inputs: [&[u8]; 4] =
            [cast_slice(&program.structures), cast_slice(&program.tests), cast_slice(&tables), &bytes];
        let sizes = [u64::from(frames) * 4, 8 + u64::from(capacity) * 8];
        let params = bytemuck::bytes_of(&params);
        let [classes, candidates] = run_shader(gpu, &shader, params, &inputs, sizes, frames);
        assert!(words(&classes) == expected_classes, "{what}");
        let count = words(&candidates[..4])[0];
        assert_eq!(count, expected.count, "{what}");
        if count <= capacity {
            let mut list: Vec<[u32; 2]> = pod_collect_to_vec(&candidates[8..][..count as usize * 8]);
            list.sort_unstable();
            assert!(list == expected.list, "{what}");
        }
    }
}

/// What a driver would refuse shows here, on machines without one as well, and for adapters that are not at hand.
#[test]
fn what_is_written_for_signatures_is_valid() {
    use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
    let structures = Signatures::from_texts([("s.toml", include_str!("../../../../benches/structures.toml"))]).unwrap();
    let typing = Signatures::load(None).unwrap().mmu_only();
    let mut questions = BTreeSet::new();
    for signatures in sets().into_iter().chain([structures, typing]) {
        for sample in [Sample::default(), Sample::new(&several_batches(1))] {
            let program = Program::new(&signatures, &sample);
            questions
                .insert(std::mem::discriminant(&program.question) == std::mem::discriminant(&Question::Columns(0)));
            for (team, capabilities) in [(Team::Lane, Capabilities::empty()), (Team::Subgroup, Capabilities::SUBGROUP)]
            {
                let source = source::scan(&program, team);
                let module = naga::front::wgsl::parse_str(&source).map_err(|e| e.emit_to_string(&source)).unwrap();
                let mut validator = Validator::new(ValidationFlags::all(), capabilities);
                validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
                validator.validate(&module).map_err(|e| e.emit_to_string(&source)).unwrap();
            }
        }
    }
    assert_eq!(questions.len(), 2);
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
            let [output, _] = run_shader(gpu, &gpu.shaders.sweep, params, &inputs, sizes, frames.len() as u32);
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
    let [total, _] = run_shader(&gpu, &gpu.shaders.sum, &[], &[&bytes], [4, 0], 7);
    assert_eq!(words(&total), [expected]);
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
        layout!(ScanParams as "ScanParams": frame_count, capacity),
        layout!(DeviceStructure as "Structure": first_test, test_count, start, phase, step),
        layout!(DeviceTest as "Test": position, width, kind, padding, low, high),
        layout!(SweepParams as "SweepParams": frame_count, capacity, last, padding, low, high, absent_bits, empty),
    ];
    let signatures = many();
    let scan = source::scan(&Program::new(&signatures, &Sample::default()), Team::Lane);
    let mut checked = 0;
    for (source, list) in [
        (scan.as_str(), Some(("Candidates", 8))),
        (include_str!("../../../../shaders/sweep.wgsl"), Some(("Found", 8))),
        (include_str!("../../../../shaders/sum.wgsl"), None),
    ] {
        let module = naga::front::wgsl::parse_str(source).unwrap();
        for (_, value) in module.types.iter() {
            let naga::TypeInner::Struct { members, span } = &value.inner else { continue };
            let name = value.name.as_deref().unwrap();
            // Only a shader's own.
            if name == "Seen" {
                continue;
            }
            let theirs: Vec<_> = members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
            if let Some((list, header)) = list
                && name == list
            {
                assert_eq!(theirs, [("count", 0), ("padding", 4), ("list", header)]);
                assert_eq!(header as u64, HEADER);
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
