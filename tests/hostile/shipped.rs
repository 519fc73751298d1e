//! The shipped dump, with frames overwritten: what is called complete is true, unless its own bytes were hit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tensorcarve::addr::VirtAddr;
use tensorcarve::dump::{self, Dump, MemoryRange, OpenOptions, PhysicalMemory};
use tensorcarve::model::{NamedTensor, Status};
use tensorcarve::recover::Recovery;

use super::alone;
use super::synthetic::{Random, dump_of, recover};

const FRAME: usize = 0x1000;
/// Recoveries from damaged copies.
const ROUNDS: u64 = if cfg!(debug_assertions) { 3 } else { 8 };

/// What the victim said of its tensors.
struct Truth {
    shape: Vec<u64>,
    dtype: String,
    sha256: String,
}

fn truth() -> BTreeMap<String, Truth> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cifar10-pdb.truth.json");
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let tensors = json["processes"][0]["state_dict"].as_object().unwrap();
    let read = |value: &serde_json::Value| Truth {
        shape: value["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect(),
        dtype: match value["dtype"].as_str().unwrap() {
            "float32" => "F32".to_owned(),
            other => other.to_owned(),
        },
        sha256: value["sha256"].as_str().unwrap().to_owned(),
    };
    tensors.iter().map(|(name, value)| (name.clone(), read(value))).collect()
}

fn tensors(recovery: &Recovery) -> impl Iterator<Item = (&tensorcarve::recover::Process, &NamedTensor)> {
    let models = recovery.processes.iter().flat_map(|process| process.models.iter().map(move |model| (process, model)));
    models.flat_map(|(process, model)| model.tensors.iter().map(move |tensor| (process, tensor)))
}

/// The frames that a contiguous tensor's bytes lie in.
fn frames(process: &tensorcarve::recover::Process, tensor: &NamedTensor) -> BTreeSet<u64> {
    let space = &process.space;
    let info = tensor.info.as_ref().unwrap();
    let pages = (info.data.0 & !0xfff..info.data.0 + info.byte_len()).step_by(FRAME);
    pages.filter_map(|page| Some(space.translate(VirtAddr(page)).ok()?.pa.0)).collect()
}

/// Asserts that every complete tensor that can be compared is true, or that its own bytes were damaged; how many were.
fn check(recovery: &Recovery, damaged: &BTreeSet<u64>, what: &str) -> usize {
    let truth = truth();
    let mut compared = 0;
    for (process, tensor) in tensors(recovery) {
        let (Some(truth), Some(info)) = (truth.get(&tensor.name), &tensor.info) else { continue };
        let is_same = info.shape == truth.shape && info.dtype.label() == truth.dtype;
        if tensor.status != Status::Complete || !is_same {
            continue;
        }
        compared += 1;
        let is_true = tensor.sha256.as_deref() == Some(truth.sha256.as_str());
        let is_hurt = || !frames(process, tensor).is_disjoint(damaged);
        assert!(is_true || is_hurt(), "{what}: {} is complete and wrong: {tensor:?}", tensor.name);
    }
    compared
}

/// Memory at its physical addresses.
fn bytes_of(dump: &Dump) -> Vec<u8> {
    let mut bytes = vec![0; dump.memory.end().0 as usize];
    for range in dump.memory.ranges() {
        bytes[range.start.0 as usize..range.end.0 as usize].copy_from_slice(dump.memory.range_bytes(range));
    }
    bytes
}

fn whole_frames(range: &MemoryRange) -> impl Iterator<Item = u64> + use<> {
    let frames = PhysicalMemory::frames(range);
    (frames.start.0..frames.end.0).step_by(FRAME)
}

#[test]
fn an_overwritten_dump_gives_what_is_left_and_nothing_wrong() {
    let _alone = alone();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cifar10-pdb.lime.zst");
    let whole = dump::open(&path, &OpenOptions::default(), &|_, _| ()).unwrap();
    // The same memory at its physical addresses, in a buffer that can be changed.
    let bytes = bytes_of(&whole);
    let present: Vec<u64> = whole.memory.ranges().iter().flat_map(whole_frames).collect();
    drop(whole);
    let dump = dump_of(bytes, present.iter().copied());
    let recovery = recover(&dump);
    assert_eq!(check(&recovery, &BTreeSet::new(), "whole"), truth().len());
    // Damage that is spread evenly misses the point: half of it goes where the process's objects are.
    let own: Vec<u64> = {
        let process = recovery.processes.iter().find(|process| !process.models.is_empty()).unwrap();
        let space = &process.space;
        let model = &process.models[0];
        let objects = model.tensors.iter().map(|t| t.object).chain(model.modules.iter().map(|m| m.object));
        let around = objects
            .chain(process.python.as_ref().map(|python| python.type_object.0))
            .flat_map(|at| [at, VirtAddr(at.0 + 0x1000)]);
        let pages: BTreeSet<u64> = around.filter_map(|at| Some(space.translate(at).ok()?.pa.0 & !0xfff)).collect();
        pages.into_iter().collect()
    };
    drop(recovery);
    let mut bytes = bytes_of(&dump);
    drop(dump);
    let mut total = 0;
    for round in 0..ROUNDS {
        let mut random = Random(100 + round);
        let mut damaged = BTreeSet::new();
        let mut undo = Vec::new();
        for i in 0..300 {
            let from = if i < 2 { &own } else { &present };
            let frame = from[random.below(from.len() as u64) as usize];
            let at = frame as usize;
            undo.push((at, bytes[at..at + FRAME].to_vec()));
            damaged.insert(frame);
            match random.below(3) {
                // A flipped bit, a random word in eight places, a frame of noise.
                0 => bytes[at + random.below(FRAME as u64) as usize] ^= 1 << random.below(8),
                1 => {
                    for _ in 0..8 {
                        let word = at + random.below(512) as usize * 8;
                        bytes[word..word + 8].copy_from_slice(&random.next().to_le_bytes());
                    }
                }
                _ => bytes[at..at + FRAME].chunks_mut(8).for_each(|w| w.copy_from_slice(&random.next().to_le_bytes())),
            }
        }
        let dump = dump_of(std::mem::take(&mut bytes), present.iter().copied());
        let recovery = recover(&dump);
        let compared = check(&recovery, &damaged, &format!("damage {round}"));
        total += compared;
        eprintln!("damage {round}: {} processes, {compared} compared", recovery.processes.len());
        bytes = bytes_of(&dump);
        for (at, old) in undo.into_iter().rev() {
            bytes[at..at + FRAME].copy_from_slice(&old);
        }
    }
    // Not all is lost.
    assert!(total > 0);
}
