//! Words of tensors' headers damaged at random: what was not touched is never complete and wrong, whatever layout is used.
//!
//! `TENSORCARVE_RUNS=5000 cargo test --release --test damaged -- --nocapture` prints how many tensors stay complete.
//! `TENSORCARVE_CORE=FILE` does the same with a dump of a real process, whose undamaged recovery is the truth.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may simply fail"
)]

mod synthetic;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use synthetic::{
    ModuleSpec, Options, PYTORCHES, Placed, Random, SIGNATURES, Tensor, Torch, dump, recover, sha256, torch,
};
use tensorcarve::addr::{FileOffset, PhysAddr, VirtAddr};
use tensorcarve::dump::{self, Dump, MemoryRange, PhysicalMemory};
use tensorcarve::model::{NamedTensor, Status};
use tensorcarve::paging::VirtualMemory;
use tensorcarve::recover::{Process, Recovery};

/// Copies of each small model that are damaged, unless `TENSORCARVE_RUNS` says how many there are of all models together.
const RUNS_PER_MODEL: u64 = 6;
/// Damaged words of a copy, at most.
const MOST_WORDS: u64 = 5;
/// Bytes of each structure that are damaged: the whole of it, or all that a layout reads.
const OBJECT: u64 = 48;
const IMPL: u64 = 208;
const STORAGE: u64 = 72;
const AUTOGRAD: u64 = 152;
const FRAME: u64 = 0x1000;

/// The headers of a tensor, each with its length.
type Headers = Vec<(u64, u64)>;

/// What came of damaged copies.
#[derive(Debug, Default)]
struct Counts {
    runs: usize,
    /// Tensors of which no header was damaged, and those of them that came out complete and right.
    untouched: usize,
    complete: usize,
    /// The same of those with a damaged header.
    touched: usize,
    complete_touched: usize,
    /// Copies in which a layout was inferred.
    inferred: usize,
}

/// Words that headers hold, and such as they don't.
fn word(random: &mut Random, other: u64) -> u64 {
    const EDGES: [u64; 16] =
        [0, 1, 2, 3, 4, 7, 8, 64, 650, 1 << 31, 1 << 32, 1 << 47, 1 << 50, 1 << 62, 1 << 63, u64::MAX];
    match random.below(4) {
        0 => random.next(),
        1 => random.below(4096),
        2 => other,
        _ => EDGES[random.below(EDGES.len() as u64) as usize],
    }
}

/// Tensors of all models by their name.
fn tensors(processes: &[Process]) -> BTreeMap<String, &NamedTensor> {
    let models = processes.iter().flat_map(|process| &process.models);
    let named = models.flat_map(|model| {
        model.tensors.iter().map(move |tensor| (format!("{} {}", model.object, tensor.name), tensor))
    });
    named.collect()
}

/// Damages words of the headers in one copy; `write` puts a word. Gives the tensors that were touched.
fn damage(
    random: &mut Random,
    all: &[Headers],
    mut write: impl FnMut(u64, u64),
    read: impl Fn(u64) -> u64,
) -> BTreeSet<usize> {
    let mut damaged = Vec::new();
    for _ in 0..=random.below(MOST_WORDS) {
        let pick = |random: &mut Random| {
            let headers = &all[random.below(all.len() as u64) as usize];
            let (start, bytes) = headers[random.below(headers.len() as u64) as usize];
            start + random.below(bytes / 8) * 8
        };
        let at = pick(random);
        let other = read(pick(random));
        write(at, word(random, other));
        damaged.push(at);
    }
    let is_in = |at: &u64, (start, bytes): &(u64, u64)| (*start..start + bytes).contains(at);
    let is_touched = |headers: &Headers| damaged.iter().any(|at| headers.iter().any(|header| is_in(at, header)));
    (0..all.len()).filter(|index| is_touched(&all[*index])).collect()
}

/// Holds what came out of a damaged copy against the truth: the SHA-256 of each tensor.
fn check(case: &str, recovery: &Recovery, truth: &[(String, String)], touched: &BTreeSet<usize>, counts: &mut Counts) {
    let found = tensors(&recovery.processes);
    counts.runs += 1;
    let layouts = recovery.processes.iter().filter_map(|process| process.facts.torch.as_ref()?.layout.as_ref());
    counts.inferred += usize::from(layouts.clone().any(|(layout, _)| layout.inferred));
    for (index, (name, sha256)) in truth.iter().enumerate() {
        let is_complete = found.get(name).is_some_and(|tensor| tensor.status == Status::Complete);
        let is_right = found.get(name).is_some_and(|tensor| tensor.sha256.as_ref() == Some(sha256));
        if touched.contains(&index) {
            counts.touched += 1;
            counts.complete_touched += usize::from(is_complete && is_right);
            continue;
        }
        counts.untouched += 1;
        counts.complete += usize::from(is_complete && is_right);
        let layout: Vec<_> = layouts.clone().map(|(layout, _)| layout).collect();
        assert!(is_right || !is_complete, "{case}: {name} is complete and wrong: {:#?}\n{layout:#?}", found.get(name));
    }
}

impl Counts {
    fn print(&self, name: &str) {
        let Self { runs, untouched, complete, touched, complete_touched, inferred } = self;
        println!(
            "{name}: {runs} copies, {inferred} with an inferred layout; untouched tensors complete: {complete} of \
             {untouched}; touched: {complete_touched} of {touched}"
        );
    }
}

/// Small models of several kinds.
fn small_models(torch: &Torch) -> Vec<Vec<Placed>> {
    let whole = || Tensor::f32(&[700]);
    let slices = |of: &Placed, count: u64, is_learned: bool| -> Vec<Placed> {
        let spec = |i: u64| Tensor { requires_grad: is_learned, ..Tensor::f32(&[10]).at_offset(10 + 10 * i) };
        (0..count).map(|i| torch.view(&spec(i), of)).collect()
    };
    let learned = |shapes: &[&[u64]]| -> Vec<Placed> { shapes.iter().map(|shape| torch.parameter(shape)).collect() };
    let transposed = |n: u64| torch.tensor(&Tensor::f32(&[5, 3 + n]).strided(&[1, 5]).learned());
    let frozen = |shape: &[u64]| torch.tensor(&Tensor::f32(shape));
    vec![
        learned(&[&[5, 10], &[5], &[2]]),
        [slices(&torch.tensor(&whole()), 2, true), learned(&[&[2]])].concat(),
        [slices(&torch.tensor(&whole()), 3, true), learned(&[&[3], &[4], &[5], &[6]])].concat(),
        [slices(&torch.tensor(&whole()), 1, false), vec![frozen(&[2, 3])]].concat(),
        vec![frozen(&[3]), frozen(&[2, 3]), torch.tensor(&Tensor::new("Long", &[]))],
        (0..4).map(transposed).collect(),
        vec![torch.parameter(&[4, 4])],
        slices(&torch.tensor(&whole()), 8, true),
        [
            learned(&[&[8, 1, 3, 3], &[8]]),
            vec![frozen(&[8]), torch.tensor(&Tensor::new("Long", &[])), torch.tensor(&Tensor::new("Double", &[7]))],
        ]
        .concat(),
    ]
}

/// The headers of a tensor that this code wrote.
fn headers(torch: &Torch, placed: &Placed) -> Headers {
    let meta = torch.python.process.get(placed.tensor_impl + torch.numbers.at("tensor.autograd_meta"));
    let mut headers = vec![(placed.object, OBJECT), (placed.tensor_impl, IMPL), (placed.storage, STORAGE)];
    if placed.spec.requires_grad {
        headers.push((meta, AUTOGRAD));
    }
    headers
}

#[test]
fn what_is_untouched_is_right() {
    let runs = std::env::var("TENSORCARVE_RUNS").ok().map(|runs| runs.parse::<u64>().unwrap());
    let mut all = Counts::default();
    for (index, pytorch) in PYTORCHES.into_iter().enumerate() {
        let kinds = 9;
        for kind in 0..kinds {
            let torch = torch("3.11", pytorch, Options { frames: 256, ..Options::default() });
            let placed = small_models(&torch).swap_remove(kind);
            let names: Vec<String> = (0..placed.len()).map(|i| format!("t{i}")).collect();
            let buffers = names.iter().map(String::as_str).zip(placed.iter().map(Some)).collect();
            let class = torch.module_type("__main__", "Net");
            let root = torch.module(class, &ModuleSpec { buffers, ..ModuleSpec::default() });
            let truth: Vec<(String, String)> = names
                .iter()
                .zip(&placed)
                .map(|(name, placed)| (format!("{} {name}", VirtAddr(root)), sha256(&placed.logical)))
                .collect();
            let headers: Vec<Headers> = placed.iter().map(|placed| headers(&torch, placed)).collect();
            let process = &torch.python.process;
            let runs = runs.map_or(RUNS_PER_MODEL, |runs| runs.div_ceil((PYTORCHES.len() * kinds) as u64));
            for seed in 0..runs {
                let mut random = Random((index as u64) << 40 | (kind as u64) << 32 | seed);
                let mut before = Vec::new();
                let write = |at: u64, word: u64| {
                    before.push((at, process.get(at)));
                    process.put(at, word);
                };
                let touched = damage(&mut random, &headers, write, |at| process.get(at));
                let recovery = recover(&dump(process));
                check(&format!("{pytorch}, model {kind}, seed {seed}"), &recovery, &truth, &touched, &mut all);
                before.iter().rev().for_each(|(at, word)| process.put(*at, *word));
            }
        }
    }
    all.print("made-up machines");
    // Most of what was not touched is found as well: only what leads to it can be lost.
    assert!(all.complete * 20 > all.untouched * 19, "{all:?}");
}

/// An undamaged dump whose own recovery is the truth.
struct Real {
    dump: Dump,
    recovery: Recovery,
    bytes: Vec<u8>,
}

/// A damaged copy: pages of 4 KiB by their address in the dump, and the tensors that were touched.
type Copy = (BTreeMap<u64, Vec<u8>>, BTreeSet<usize>);

impl Real {
    fn open(path: &str) -> Self {
        let dump = dump::open(Path::new(path), &Default::default(), &|_, _| ()).unwrap();
        let recovery = recover(&dump);
        Self { recovery, bytes: std::fs::read(path).unwrap(), dump }
    }

    /// The complete tensors of the first process that has models, by name.
    fn truth(&self) -> (&Process, Vec<(String, &NamedTensor)>) {
        let process = self.recovery.processes.iter().find(|process| !process.models.is_empty()).unwrap();
        let all = tensors(std::slice::from_ref(process)).into_iter();
        (process, all.filter(|(_, tensor)| tensor.status == Status::Complete).collect())
    }

    fn headers(&self, process: &Process, tensor: &NamedTensor) -> Headers {
        let info = tensor.info.as_ref().unwrap();
        let version = &process.facts.torch.as_ref().unwrap().layout.as_ref().unwrap().0.version;
        let numbers = SIGNATURES.layouts("pytorch").find(|layout| layout.version == *version).unwrap();
        let space = &process.space;
        let at = numbers.get("tensor.autograd_meta").unwrap().cast_unsigned();
        let meta = space.read_u64(VirtAddr(info.header.0 + at)).unwrap();
        let mut headers =
            vec![(info.object.0, OBJECT), (info.header.0, IMPL), (info.storage.0, STORAGE), (meta, AUTOGRAD)];
        headers.retain(|(start, _)| *start != 0);
        headers
    }

    fn damaged(&self, random: &mut Random, process: &Process, all: &[Headers]) -> Copy {
        let space = &process.space;
        let mut pages: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let write = |at: u64, word: u64| {
            let place = space.translate(VirtAddr(at)).unwrap().pa.0;
            let (page, inside) = (place & !(FRAME - 1), (place % FRAME) as usize);
            let whole = |address: u64| self.dump.memory.read_u64(PhysAddr(address)).unwrap().to_le_bytes();
            let bytes = pages.entry(page).or_insert_with(|| (page..page + FRAME).step_by(8).flat_map(whole).collect());
            bytes[inside..inside + 8].copy_from_slice(&word.to_le_bytes());
        };
        let touched = damage(random, all, write, |at| space.read_u64(VirtAddr(at)).unwrap());
        (pages, touched)
    }

    /// Damages copies of the first process's models and holds what comes out against the truth.
    fn check(&self, name: &str, runs: u64) {
        let mut counts = Counts::default();
        let (process, all) = self.truth();
        let headers: Vec<Headers> = all.iter().map(|(_, tensor)| self.headers(process, tensor)).collect();
        let truth: Vec<(String, String)> =
            all.iter().map(|(name, tensor)| (name.clone(), tensor.sha256.clone().unwrap())).collect();
        let copies: Vec<Copy> = (0..runs).map(|seed| self.damaged(&mut Random(seed), process, &headers)).collect();
        // All damaged pages lie behind the file; each copy maps its own.
        let end = self.bytes.len().next_multiple_of(FRAME as usize);
        let mut bytes = self.bytes.clone();
        bytes.resize(end, 0);
        bytes.extend(copies.iter().flat_map(|(pages, _)| pages.values().flatten()));
        let memory = PhysicalMemory::owned(bytes, self.dump.memory.ranges().to_vec()).unwrap();
        let mut next = end as u64;
        for (seed, (pages, touched)) in copies.iter().enumerate() {
            let mut ranges = self.dump.memory.ranges().to_vec();
            for page in pages.keys() {
                ranges = ranges.into_iter().flat_map(|range| with_page(range, *page, next)).collect();
                next += FRAME;
            }
            let dump = Dump {
                memory: memory.with_ranges(ranges).unwrap(),
                warnings: Vec::new(),
                addresses: self.dump.addresses.clone(),
                format: self.dump.format,
                compression: None,
                file_size: self.dump.size,
                size: self.dump.size,
                damaged: false,
            };
            check(&format!("{name}, seed {seed}"), &recover(&dump), &truth, touched, &mut counts);
        }
        counts.print(name);
    }
}

/// A range in which one page lies elsewhere in the file.
fn with_page(range: MemoryRange, page: u64, at: u64) -> Vec<MemoryRange> {
    let part = |start: u64, end: u64, offset: u64| MemoryRange {
        start: PhysAddr(start),
        end: PhysAddr(end),
        offset: FileOffset(offset),
    };
    let (start, end, offset) = (range.start.0, range.end.0, range.offset.0);
    if page < start || page >= end {
        return vec![range];
    }
    let after = page + FRAME;
    let parts =
        [part(start, page, offset), part(page, after, at), part(after, end, offset + after.saturating_sub(start))];
    parts.into_iter().filter(|part| part.start < part.end).collect()
}

#[test]
fn what_is_untouched_in_a_real_process_is_right() {
    let Ok(paths) = std::env::var("TENSORCARVE_CORE") else { return };
    let runs = std::env::var("TENSORCARVE_RUNS").map_or(20, |runs| runs.parse().unwrap());
    for path in paths.split(',') {
        Real::open(path).check(path, runs);
    }
}
