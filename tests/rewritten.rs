//! The shipped dump as other machines and kernels would have it: its page tables are written anew, and the same model must
//! come out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may simply fail")]

#[path = "synthetic/memory.rs"]
#[allow(dead_code, reason = "a part of it is for made-up machines")]
mod memory;
#[path = "synthetic/rewrite.rs"]
#[allow(dead_code, reason = "a part of it is for made-up machines")]
mod rewrite;

use std::sync::LazyLock;

use rewrite::{Entry, rewrite};
use tensorcarve::addr::{FRAME_SIZE, FileOffset, PhysAddr, VirtAddr};
use tensorcarve::case::{Case, Options};
use tensorcarve::dump::{self, Dump, MemoryRange};
use tensorcarve::linux::Process;
use tensorcarve::model::Status;
use tensorcarve::paging::{AddressSpace, VirtualMemory};
use tensorcarve::progress::Silent;
use tensorcarve::recover::{Recovery, recover};
use tensorcarve::scan::Backend;
use tensorcarve::signature::Signatures;

static SIGNATURES: LazyLock<Signatures> = LazyLock::new(|| Signatures::load(None).unwrap());
static SHIPPED: LazyLock<(Dump, Recovery)> = LazyLock::new(|| {
    let dump = dump::open("tests/data/cifar10-pdb.lime.zst".as_ref(), &Default::default(), &|_, _| ()).unwrap();
    let recovery = recover(&dump, &SIGNATURES, Backend::detect_best(), &Silent).unwrap();
    (dump, recovery)
});

/// The shipped dump with its entries changed; its ranges one after another, at addresses that are `shift` higher.
fn changed(shift: u64, change: &mut dyn FnMut(Entry) -> u64) -> (Vec<u8>, Vec<MemoryRange>) {
    let (dump, recovery) = &*SHIPPED;
    let mut bytes = Vec::new();
    let mut ranges = Vec::new();
    for range in dump.memory.ranges() {
        let offset = FileOffset(bytes.len() as u64);
        bytes.extend_from_slice(dump.memory.range_bytes(range));
        ranges.push(MemoryRange { start: PhysAddr(range.start.0 + shift), end: PhysAddr(range.end.0 + shift), offset });
    }
    let place = |frame: u64| {
        let range = ranges.iter().find(|range| (range.start.0 - shift..range.end.0 - shift).contains(&frame))?;
        Some((range.offset.0 + (frame + shift - range.start.0)) as usize)
    };
    let spaces = recovery.discovery.spaces.iter();
    let roots: Vec<u64> =
        spaces.flat_map(|space| [Some(space.root), space.kpti_user_root]).flatten().map(|r| r.0).collect();
    rewrite(&mut bytes, &place, &roots, 4, change);
    (bytes, ranges)
}

fn recovered(bytes: Vec<u8>, ranges: Vec<MemoryRange>) -> Recovery {
    recover(&memory::dump_with(bytes, ranges), &SIGNATURES, Backend::detect_best(), &Silent).unwrap()
}

/// Names and hashes of the model's tensors, all of which are complete.
fn tensors(recovery: &Recovery) -> Vec<(String, Option<String>)> {
    let models = recovery.processes.iter().flat_map(|process| &process.models);
    let tensors = models.flat_map(|model| &model.tensors);
    tensors
        .map(|tensor| {
            assert_eq!(tensor.status, Status::Complete, "{}: {:?}", tensor.name, tensor.holes);
            (tensor.name.clone(), tensor.sha256.clone())
        })
        .collect()
}

fn assert_same(name: &str, found: &Recovery) {
    let expected = tensors(&SHIPPED.1);
    assert_eq!(expected.len(), 10);
    assert_eq!(tensors(found), expected, "{name}: {:?}", found.warnings);
}

fn check(name: &str, shift: u64, mut change: impl FnMut(Entry) -> u64) -> Recovery {
    let mut count = 0;
    let (bytes, ranges) = changed(shift, &mut |entry| {
        let value = change(entry);
        count += usize::from(value != entry.value);
        value
    });
    assert!(count > 1000, "{name}: {count} entries");
    let found = recovered(bytes, ranges);
    assert_same(name, &found);
    found
}

#[test]
fn protected_by_numa_balancing() {
    let protected = |wanted: fn(&Entry) -> bool, inverted: bool| {
        move |entry: Entry| match entry.is_user_page() && wanted(&entry) {
            true => entry.protected(inverted),
            false => entry.value,
        }
    };
    check("all, inverted", 0, protected(|_| true, true));
    check("all, plain", 0, protected(|_| true, false));
    check("half, inverted", 0, protected(|entry| entry.va >> 14 & 1 == 0, true));
}

#[test]
fn being_moved() {
    // The kernel is a 6.1: types 23 to 25.
    check(
        "half",
        0,
        |entry| if entry.is_user_page() && entry.va >> 13 & 1 == 0 { entry.special(25) } else { entry.value },
    );
}

#[test]
fn encrypted() {
    for bit in [43, 51] {
        let found = check("encrypted", 0, |entry| match entry.is_leaf && entry.va >> 15 & 1 == 0 {
            true => entry.value,
            false => entry.value | 1 << bit,
        });
        assert_eq!(found.discovery.encryption_bit, Some(bit));
    }
}

#[test]
fn above_2_tib() {
    let shift = 0x200_0000_0000;
    let found = check("shifted", shift, |entry| entry.value + shift);
    assert_eq!(found.discovery.encryption_bit, None);
}

#[test]
fn without_the_hole_below_4_gib() {
    for (start, len) in [(0x800_0000, 0x4000_0000), (0x600_0000, 0xfa00_0000)] {
        let moved = |entry: Entry| entry.value + if entry.address() >= start { len } else { 0 };
        let (bytes, ranges) = changed(0, &mut { moved });
        // The file has the legacy hole below 1 MiB, and not this one.
        let mut file = vec![0; ranges.last().unwrap().end.0 as usize];
        for range in &ranges {
            let part = &bytes[range.offset.0 as usize..][..range.len() as usize];
            file[range.start.0 as usize..][..part.len()].copy_from_slice(part);
        }
        let whole = MemoryRange { start: PhysAddr(0), end: PhysAddr(file.len() as u64), offset: FileOffset(0) };
        let found = recovered(file, vec![whole]);
        assert_same("hole", &found);
        let ranges: Vec<_> = found.memory.ranges().iter().map(|range| (range.start.0, range.offset.0)).collect();
        assert_eq!(ranges, [(0, 0), (start + len, start)]);
    }
}

#[test]
fn a_copy_of_a_root_hides_no_process() {
    let (mut bytes, ranges) = changed(0, &mut |entry| entry.value);
    let root = SHIPPED.1.processes.iter().find(|process| !process.models.is_empty()).unwrap().root().unwrap();
    let at = |pa: PhysAddr| {
        let range = ranges.iter().find(|range| (range.start..range.end).contains(&pa)).unwrap();
        (range.offset.0 + (pa.0 - range.start.0)) as usize
    };
    // The copy is found before the root.
    let frames = (0x10_0000..root.0).step_by(FRAME_SIZE as usize).map(PhysAddr);
    let is_empty = |frame: &PhysAddr| bytes[at(*frame)..][..FRAME_SIZE as usize].iter().all(|byte| *byte == 0);
    let copy =
        frames.filter(|frame| ranges.iter().any(|range| (range.start..range.end).contains(frame))).find(is_empty);
    let copy = copy.unwrap();
    bytes.copy_within(at(root)..at(root) + FRAME_SIZE as usize, at(copy));
    let case = Case::new(memory::dump_with(bytes, ranges), SIGNATURES.clone(), Options::default());
    let (spaces, linux, facts) = (case.spaces().unwrap(), case.linux().unwrap(), case.python_facts().unwrap());
    let of_model = facts.interpreters.iter().find(|facts| facts.models > 0).unwrap();
    assert_eq!(of_model.roots, [copy, root]);
    let machine = linux.as_ref().as_ref().unwrap();
    assert_eq!(machine.process_of(copy).map(Process::pid), None);
    assert_eq!(spaces.process_of(machine, copy).map(Process::pid), Some(188));
}

/// Where the dump holds the `struct page` of a frame: in the array in which that of an anonymous page of the process with the
/// model has the number of the page.
fn struct_page(frame: u64) -> Option<PhysAddr> {
    static ARRAY: LazyLock<(AddressSpace, u64)> = LazyLock::new(|| {
        let (recovery, space) = (&SHIPPED.1, SHIPPED.1.discovery.spaces[0].clone());
        let process = recovery.processes.iter().find(|process| !process.models.is_empty()).unwrap();
        let data = process.models[0].tensors[0].info.as_ref().unwrap().data;
        let page = process.space.translate(data).unwrap().pa;
        let kernel = AddressSpace::new(&recovery.memory, &recovery.mmu, space.root, space.levels);
        let starts = kernel.kernel_mappings().into_iter().map(|mapping| mapping.va.0);
        let index = |start: u64| kernel.read_u64(VirtAddr(start + (page.0 >> 12) * 64 + 32));
        let mut starts = starts.filter(|start| start.is_multiple_of(1 << 30));
        let start = starts.find(|start| index(*start) == Ok(data.0 >> 12)).unwrap();
        (kernel.clone(), start)
    });
    let (kernel, start) = &*ARRAY;
    kernel.translate(VirtAddr(start + frame * 64)).ok().map(|found| found.pa)
}

#[test]
fn swapped_out() {
    let word = |at: PhysAddr, offset: u64| SHIPPED.0.memory.read_u64(PhysAddr(at.0 + offset)).unwrap();
    let is_anonymous = |frame: u64| struct_page(frame).is_some_and(|at| word(at, 24) & 1 == 1 && word(at, 40) == 0);
    let mut frames = Vec::new();
    let (mut bytes, ranges) = changed(0, &mut |entry| {
        let frame = entry.address() >> 12;
        if !entry.is_user_page() || entry.level > 1 || entry.va >> 13 & 3 == 0 || !is_anonymous(frame) {
            return entry.value;
        }
        frames.push(frame);
        // The number of the frame serves as that of the slot.
        rewrite::swap_entry(0, frame)
    });
    assert!(frames.len() > 1000, "{}", frames.len());
    let on_device = recovered(bytes.clone(), ranges.clone());
    let models = on_device.processes.iter().flat_map(|process| &process.models);
    assert!(models.flat_map(|model| &model.tensors).all(|tensor| tensor.status != Status::Complete));
    // Two processes may share a page.
    assert!(on_device.swapped_bytes() >= frames.len() as u64 * FRAME_SIZE);
    for frame in frames {
        let at = PhysAddr(struct_page(frame).unwrap().0 + 40);
        let range = ranges.iter().find(|range| (range.start..range.end).contains(&at)).unwrap();
        let at = (range.offset.0 + (at.0 - range.start.0)) as usize;
        bytes[at..at + 8].copy_from_slice(&frame.to_le_bytes());
    }
    let in_swap_cache = recovered(bytes, ranges);
    assert_same("in the swap cache", &in_swap_cache);
    assert_eq!(in_swap_cache.swapped_bytes(), 0);
}
