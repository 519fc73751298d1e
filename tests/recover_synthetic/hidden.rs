//! Pages that are there though the present bit is off, pages that say why they are gone, encrypted memory, and files
//! without the hole that memory has.

use tensorcarve::model::Status;
use tensorcarve::paging::SpaceKind;

use super::synthetic::rewrite::{Entry, old_swap_entry, swap_entry};
use super::synthetic::{Options, Placed, Tensor, Torch, recover, torch};
use super::{ModuleSpec, assert_model, assert_whole, model, only_model, tensor};

const KERNEL_WITH_MARKERS: u64 = 31;

/// A model whose one weight lies in two pages of 2 MiB, neighbours in reverse.
fn in_large_pages(options: Options) -> (Torch, Placed) {
    let torch = torch("3.11", "1.13", Options { huge_pages: 2, ..options });
    let process = &torch.python.process;
    let base = process.reserve(0x40_0000, 0x20_0000);
    for page in [base, base + 0x20_0000] {
        process.machine.borrow_mut().map_huge(process.space, page);
    }
    let weight = torch.tensor_at(&Tensor::f32(&[1024, 64]), base + 0x20_0000 - 0x12340);
    let class = torch.module_type("__main__", "Net");
    let parameters = vec![("weight", Some(&weight))];
    torch.module(class, &ModuleSpec { parameters, ..ModuleSpec::default() });
    (torch, weight)
}

#[test]
fn protected_pages_are_read_whichever_way_their_frames_are_written() {
    for (levels, kpti, inverted) in [(4, false, true), (4, true, false), (5, false, false), (5, true, true)] {
        // All pages, every other one, or those of 2 MiB only: of tables without a present entry, and of mixed ones.
        let wanted: [fn(&Entry) -> bool; 3] = [|_| true, |entry| entry.va >> 12 & 1 == 0, |entry| entry.level == 2];
        for wanted in wanted {
            let (torch, weight) = in_large_pages(Options { levels, kpti, ..Options::default() });
            let process = &torch.python.process;
            let mut changed = 0;
            let dump = process.machine.borrow().dump_with(|entry| {
                let protect = entry.is_user_page() && wanted(&entry);
                changed += usize::from(protect);
                if protect { entry.protected(inverted) } else { entry.value }
            });
            assert!(changed > 1);
            let recovery = recover(&dump);
            let root = process.machine.borrow().root(process.space);
            let space = recovery.discovery.spaces.iter().find(|space| space.root == root).unwrap();
            assert_eq!(space.kind, SpaceKind::Process);
            assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
        }
    }
}

#[test]
fn pages_that_are_being_moved_are_read_where_they_still_lie() {
    // What the types mean differs between releases; without a banner a type must mean the same in all of them.
    for (banner, kind) in [("", 28), ("Linux version 6.1.0-50-amd64 (debian", 24), ("Linux version 6.12.9 (", 26)] {
        let torch = torch("3.12", "2.6", Options::default());
        let (root, truth) = model(&torch);
        let process = &torch.python.process;
        let page = process.alloc_pages(0x1000);
        process.machine.borrow_mut().write(process.space, page, banner.as_bytes());
        let moved = |entry: Entry| {
            let young_and_dirty = 3 << 34;
            let flags = if entry.va >> 12 & 1 == 0 { young_and_dirty } else { 0 };
            if entry.is_user_page() { swap_entry(kind, entry.address() >> 12 | flags) } else { entry.value }
        };
        // Some of the pages, as it is in practice: a table in which all are being moved tells nothing of the release.
        let dump = process.machine.borrow().dump_with(|entry| match entry.va >> 13 & 1 {
            0 => moved(entry),
            _ => entry.value,
        });
        assert_model(&torch, root, &truth, &recover(&dump));
    }
}

#[test]
fn a_page_that_is_gone_says_where_it_went() {
    let outside = 0x7f_ffff_f000u64;
    let protected = |frame: u64| !frame & 0x000f_ffff_ffff_f000 | 0x120;
    let cases = [
        (0, "was never touched"),
        (swap_entry(0, 0x1234), "is swapped out: swap device 0, slot 0x1234"),
        (swap_entry(3, 0xf_ffff_ffff), "is swapped out: swap device 3, slot 0xfffffffff"),
        // With the bits that swap entries keep for themselves: written to, write-protected, exclusive.
        (swap_entry(1, 7) | 0xe, "is swapped out: swap device 1, slot 0x7"),
        (old_swap_entry(2, 0x1234), "is swapped out: swap device 2, slot 0x1234"),
        (swap_entry(KERNEL_WITH_MARKERS, 4), "is in a guard page"),
        (swap_entry(22, 0x150), "memory error"),
        (
            swap_entry(28, outside >> 12),
            "being moved, and its page at physical address 0x7ffffff000 is not in the dump",
        ),
        (protected(outside), "is not present, for an unknown reason"),
        // Firmware's memory between 640 KiB and 1 MiB, which a dump leaves out.
        (
            protected(0xf_0000),
            "is protected or being moved, and its page at physical address 0xf0000 is not in the dump",
        ),
        (0xdead_beef_0000_0010, "is not present, for an unknown reason"),
    ];
    for (entry, reason) in cases {
        let torch = torch("3.11", "1.13", Options::default());
        let (_, weight) = torch.small_model("Net", &[80, 80]);
        let process = &torch.python.process;
        let page = (weight.base & !0xfff) + 0x1000;
        process.machine.borrow_mut().swap_out(process.space, page, entry);
        let recovery = recover(&super::dump(process));
        let found = tensor(only_model(&recovery), "weight");
        assert_eq!(found.status, Status::Partial, "{reason}");
        let [hole] = &found.holes[..] else { panic!("{reason}: {:?}", found.holes) };
        assert_eq!((hole.end - hole.start, hole.address.0), (0x1000, page));
        assert!(hole.reason.contains(reason), "{} is not {reason}", hole.reason);
    }
}

#[test]
fn the_bit_of_encrypted_memory_is_found_and_left_out_of_addresses() {
    for (levels, bit) in [(4, 36), (4, 43), (5, 47), (4, 51)] {
        // Pages that are shared with a hypervisor lack it; so may others.
        for shared in [false, true] {
            let torch = torch("3.11", "2.6", Options { levels, kpti: bit == 47, ..Options::default() });
            let process = &torch.python.process;
            process.machine.borrow_mut().new_space();
            let (root, truth) = model(&torch);
            let encrypted = |entry: Entry| match shared && entry.is_leaf && entry.va >> 12 & 1 == 0 {
                true => entry.value,
                false => entry.value | 1 << bit,
            };
            let dump = process.machine.borrow().dump_with(encrypted);
            let recovery = recover(&dump);
            assert_eq!(recovery.discovery.encryption_bit, Some(bit));
            assert_model(&torch, root, &truth, &recovery);
        }
    }
}

#[test]
fn encrypted_and_protected_at_once() {
    let torch = torch("3.11", "1.13", Options::default());
    let process = &torch.python.process;
    let (root, truth) = model(&torch);
    // The kernel inverts the frame's number and not the bit.
    let change = |entry: Entry| {
        let value = if entry.is_user_page() { entry.protected(true) } else { entry.value };
        value | 1 << 47
    };
    let dump = process.machine.borrow().dump_with(change);
    assert_model(&torch, root, &truth, &recover(&dump));
}

#[test]
fn a_file_without_the_hole_below_4_gib_is_placed() {
    let gib = 0x4000_0000;
    // On a real machine the hole ends at 4 GiB.
    for (seed, start, len) in
        [(1, 0x20_0000, gib), (2, 0x40_0000, gib), (3, 0x60_0000, gib), (4, 0x40_0000, 4 * gib - 0x40_0000)]
    {
        let torch = torch("3.11", "1.13", Options { frames: 2048, seed, ..Options::default() });
        let process = &torch.python.process;
        for _ in 0..12 {
            let mut machine = process.machine.borrow_mut();
            let space = machine.new_space();
            for page in 0..4 {
                machine.map(space, 0x40_0000 + page * (1 << 39));
            }
        }
        let (_, weight) = torch.small_model("Net", &[200, 200]);
        let dump = process.machine.borrow().file_with_hole(start, len);
        let recovery = recover(&dump);
        let ranges: Vec<_> = recovery.memory.ranges().iter().map(|range| (range.start.0, range.offset.0)).collect();
        assert_eq!(ranges, [(0, 0), (start + len, start)], "{:?}", recovery.warnings);
        assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
        assert!(recovery.warnings.iter().any(|warning| warning.message.contains("without the holes")));
    }
}
