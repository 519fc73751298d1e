//! Real dumps with frames blanked at random: what is called complete is exact, holes are where the frames were.
//!
//! `TENSORCARVE_SEEDS=100 cargo test --release --test blanked -- --nocapture` prints the table of DESIGN.md.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

mod random;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use random::Random;
use tensorcarve::addr::{FileOffset, PhysAddr, VirtAddr};
use tensorcarve::dump::{self, Dump, MemoryRange, PhysicalMemory};
use tensorcarve::model::{NamedTensor, Status, TensorKind};
use tensorcarve::progress::Silent;
use tensorcarve::recover::{Process, Recovery, recover};
use tensorcarve::scan::Backend;
use tensorcarve::signature::Signatures;
use tensorcarve::tensor::{Holes, TensorInfo, TooLarge, gather};

const FRAME: u64 = 0x1000;
/// One frame in so many is blanked.
const RATES: [u64; 3] = [1000, 100, 10];
/// Damaged copies of each dump at each rate, unless `TENSORCARVE_SEEDS` says how many.
const SEEDS: u64 = 4;

/// What came of damaged copies of a dump.
#[derive(Default)]
struct Counts {
    /// Copies in which any tensor was found, and in which one was found as a tensor of its module.
    found: usize,
    named: usize,
    complete: usize,
    partial: usize,
    /// Named, with their headers or bytes lost.
    missing: usize,
    /// Not named, because nothing that leads to them was left.
    unknown: usize,
}

/// The tensors of a recovery's modules with their process.
fn tensors(recovery: &Recovery) -> impl Iterator<Item = (&Process, &NamedTensor)> {
    let models = recovery.processes.iter().flat_map(|process| process.models.iter().map(move |model| (process, model)));
    let modules = models.filter(|(_, model)| model.chain.is_none());
    modules.flat_map(|(process, model)| model.all_tensors().map(move |tensor| (process, tensor)))
}

/// The tensors that no module leads to, by their headers: those of chains, and those of no model. Without those that were freed: what
/// has used their memory since is told by traces, which may be lost with a frame.
fn alone(recovery: &Recovery) -> impl Iterator<Item = (&Process, &NamedTensor)> {
    recovery.processes.iter().flat_map(|process| {
        let chains = process.models.iter().filter(|model| model.chain.is_some());
        let others = process.standalone.found.iter().filter(|found| found.array.is_none()).map(|found| &found.tensor);
        let all = chains.flat_map(|chain| chain.all_tensors()).chain(others).map(move |tensor| (process, tensor));
        all.filter(|(_, tensor)| tensor.info.as_ref().is_none_or(|info| info.freed.is_none()))
    })
}

/// What headers say of where the elements are and how they are kept.
fn place(info: &TensorInfo) -> (VirtAddr, &str, &[u64], &[u64], VirtAddr, u64) {
    (info.storage, &info.dtype.name, &info.shape, &info.stride, info.data, info.storage_bytes)
}

fn is_training(kind: TensorKind) -> bool {
    matches!(kind, TensorKind::Gradient | TensorKind::Optimizer)
}

/// An undamaged dump, and what is in it.
struct Whole {
    dump: Dump,
    signatures: Signatures,
    recovery: Recovery,
}

impl Whole {
    fn open(path: &str) -> Self {
        let dump = dump::open(Path::new(path), &Default::default(), &|_, _| ()).unwrap();
        let signatures = Signatures::load(None).unwrap();
        let recovery = recover(&dump, &signatures, Backend::detect_best(), &Silent).unwrap();
        Self { dump, signatures, recovery }
    }

    /// The dump without the frames in `lost`, which are holes in it.
    fn without(&self, lost: &BTreeSet<u64>) -> Dump {
        let memory = &self.dump.memory;
        let mut kept: Vec<MemoryRange> = Vec::new();
        for range in memory.ranges() {
            let mut start = range.start.0;
            let mut keep = |start: u64, end: u64| {
                if start < end {
                    let offset = FileOffset(range.offset.0 + (start - range.start.0));
                    kept.push(MemoryRange { start: PhysAddr(start), end: PhysAddr(end), offset });
                }
            };
            for frame in lost.range(range.start.0..range.end.0) {
                keep(start, *frame);
                start = (frame + FRAME).min(range.end.0);
            }
            keep(start, range.end.0);
        }
        Dump {
            memory: memory.with_ranges(kept).unwrap(),
            warnings: Vec::new(),
            addresses: self.dump.addresses.clone(),
            format: self.dump.format,
            compression: None,
            file_size: self.dump.size,
            size: self.dump.size,
            damaged: true,
        }
    }

    /// Whether the page at `va` can't be reached without the frames in `lost`: by a walk of our own.
    fn is_lost(&self, process: &Process, va: u64, lost: &BTreeSet<u64>) -> bool {
        let mut at = process.root().unwrap().0;
        for level in (1..=process.space.levels().unwrap()).rev() {
            if lost.contains(&at) {
                return true;
            }
            let shift = 12 + 9 * (level - 1);
            let entry = self.dump.memory.read_u64(PhysAddr(at + 8 * ((va >> shift) & 511))).unwrap();
            at = entry & 0x000f_ffff_ffff_f000;
            if level > 1 && entry & 0x80 != 0 {
                at += va & ((1 << shift) - 1) & !0xfff;
                break;
            }
        }
        lost.contains(&(at & !0xfff))
    }

    fn bytes(&self, memory: &Arc<PhysicalMemory>, process: &Process, info: &TensorInfo) -> Vec<u8> {
        let space = &process.space;
        let mut bytes = Vec::new();
        gather::<TooLarge>(space, &info.elements().unwrap(), memory.size(), |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        bytes
    }

    /// Recovers a damaged copy, and holds all that it says against the whole.
    fn check(&self, lost: &BTreeSet<u64>, counts: &mut Counts) {
        let damaged = self.without(lost);
        let recovery = recover(&damaged, &self.signatures, Backend::detect_best(), &Silent).unwrap();
        let mut seen = BTreeSet::new();
        let mut is_named = false;
        let of_modules = tensors(&recovery).map(|(process, tensor)| (process, tensor, false));
        let others = alone(&recovery).map(|(process, tensor)| (process, tensor, true));
        for (process, tensor, is_alone) in of_modules.chain(others) {
            let what = &tensor.name;
            // By what leads to it: a module whose holder is lost is a model of its own, with shorter names. A gradient
            // whose headers are lost has no address.
            let is_it = |(holder, truth): &(&Process, &NamedTensor)| {
                let is_same = match &tensor.info {
                    Some(info) => truth.info.as_ref().is_some_and(|truth| truth.header == info.header),
                    None => tensor.object.0 == 0 || truth.object == tensor.object,
                };
                // A name that can't be read is a question mark and an address; what training left of
                // a tied weight goes by the first name that is left.
                let has_name = what.contains('?') || truth.name.ends_with(what) || is_training(truth.kind);
                is_same && holder.root() == process.root() && (is_alone || truth.kind == tensor.kind && has_name)
            };
            let truth = tensors(&self.recovery).chain(alone(&self.recovery)).find(is_it).map(|(_, truth)| truth);
            is_named |= truth.is_some() && !is_alone;
            let is_new = truth.is_none_or(|truth| {
                truth.kind != TensorKind::Other && seen.insert((process.root(), truth.name.clone(), truth.kind as u8))
            });
            let Some(info) = &tensor.info else {
                // Where not even headers are left it may be no tensor: `None` looks like that when its frame is blanked.
                assert!(tensor.status == Status::Missing && tensor.problem.is_some(), "{tensor:?}");
                counts.missing += usize::from(truth.is_some() && is_new);
                continue;
            };
            let Some(truth) = truth else { panic!("{tensor:?} is not in the whole dump") };
            assert_eq!(Some(place(info)), truth.info.as_ref().map(place), "headers of {what}");
            let (whole, found) =
                (self.bytes(&self.recovery.memory, process, info), self.bytes(&recovery.memory, process, info));
            let size = info.dtype.size as usize;
            let mut missing = vec![false; whole.len()];
            for (index, at) in addresses(info).enumerate() {
                for byte in 0..size {
                    missing[index * size + byte] = self.is_lost(process, at + byte as u64, lost);
                }
            }
            let mut listed = vec![false; whole.len()];
            tensor.holes.iter().for_each(|hole| listed[hole.start as usize..hole.end as usize].fill(true));
            check_holes(what, &tensor.holes, &listed, &missing, info);
            for ((whole, found), missing) in whole.iter().zip(&found).zip(&missing) {
                assert_eq!(*found, if *missing { 0 } else { *whole }, "a byte of {what}");
            }
            let is_whole = !missing.contains(&true);
            assert_eq!(tensor.status == Status::Complete, is_whole, "{tensor:?}");
            match tensor.status {
                Status::Complete => {
                    assert_eq!(tensor.sha256, truth.sha256, "{what}");
                    counts.complete += usize::from(is_new);
                }
                Status::Freed => panic!("{what} is of no process that has ended"),
                Status::Partial => counts.partial += usize::from(is_new),
                Status::Missing | Status::Device => counts.missing += usize::from(is_new),
            }
        }
        counts.found += usize::from(!seen.is_empty());
        counts.named += usize::from(is_named);
        counts.unknown += tensors(&self.recovery)
            .filter(|(process, tensor)| !seen.contains(&(process.root(), tensor.name.clone(), tensor.kind as u8)))
            .count();
    }

    /// All rates and seeds, a row of the table for each rate.
    fn check_all(&self, name: &str) {
        let seeds = std::env::var("TENSORCARVE_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
        let frames: Vec<u64> = self
            .dump
            .memory
            .ranges()
            .iter()
            .flat_map(|range| (range.start.frame().0..range.end.0).step_by(FRAME as usize))
            .collect();
        let all = tensors(&self.recovery).count() * seeds as usize;
        for rate in RATES {
            let mut counts = Counts::default();
            for seed in 0..seeds {
                let mut random = Random(rate << 32 | seed);
                let lost = frames.iter().copied().filter(|_| random.below(rate) == 0).collect();
                self.check(&lost, &mut counts);
            }
            let Counts { found, named, complete, partial, missing, unknown } = counts;
            let share = |count: usize| format!("{:.1}%", 100.0 * count as f64 / all as f64);
            println!(
                "| {name} | {}% | {named} of {seeds} | {found} of {seeds} | {} | {} | {} | {} |",
                100.0 / rate as f64,
                share(complete),
                share(partial),
                share(missing),
                share(unknown)
            );
        }
    }
}

/// Whether the holes are all of what is missing, and nothing else.
///
/// A list has an end: what is missing after it lies in the runs of pages. The sums are exact in either case.
fn check_holes(what: &str, holes: &Holes, listed: &[bool], missing: &[bool], info: &TensorInfo) {
    assert_eq!(holes.bytes, missing.iter().filter(|is_missing| **is_missing).count() as u64, "sums of {what}");
    let size = info.dtype.size as usize;
    let element_addresses: Vec<u64> = addresses(info).collect();
    for (byte, (listed, missing)) in listed.iter().zip(missing).enumerate() {
        assert!(*missing || !listed, "byte {byte} of {what} is no hole");
        let at = VirtAddr(element_addresses[byte / size] + (byte % size) as u64);
        let is_in_pages = || holes.pages.iter().any(|run| (run.start..run.end).contains(&at));
        assert!(*listed || !missing || is_in_pages(), "byte {byte} of {what} is missing, and in no hole");
    }
    assert_eq!(holes.pages.is_empty(), holes.len() as u64 == holes.count, "the list of {what} has an end unsaid");
}

/// The address of each element, in logical order.
fn addresses(info: &TensorInfo) -> impl Iterator<Item = u64> {
    (0..info.numel()).map(|mut rest| {
        let mut at = info.data.0;
        for (size, stride) in info.shape.iter().zip(&info.stride).rev() {
            at += rest % size * stride * info.dtype.size;
            rest /= size;
        }
        at
    })
}

#[test]
fn of_the_shipped_dump_what_is_left_is_exact() {
    Whole::open("tests/data/cifar10-pdb.lime.zst").check_all("shipped, LiME");
}

#[test]
fn of_the_dump_with_five_levels_what_is_left_is_exact() {
    let path = "../shared/dumps/residual.elf.zst";
    if !Path::new(path).exists() {
        eprintln!("skipped: {path} is not there");
        return;
    }
    Whole::open(path).check_all("shared, ELF");
}
