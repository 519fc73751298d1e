use super::super::test_machine::{ANONYMOUS, Machine};
use super::*;
use crate::paging::{AddressSpace, Fault, VirtualMemory};

/// What the kernel writes over the links of a page that it takes out of a list.
const POISON: u64 = 0xdead_0000_0000_0100;
/// Page numbers of the libraries of two processes, which are far apart.
const LIBRARY: u64 = 0x7_f112_2334;
const OTHER: u64 = 0x7_f662_2334;
/// A page of a heap without a random address.
const HEAP: u64 = 0x3_5000;
const LARGE: u64 = 512;

fn machine() -> Machine {
    let mut machine = Machine::new(3 * LARGE);
    // A large page as it was freed has no links in its parts.
    for frame in 40..LARGE {
        machine.set_struct(frame, 1, POISON);
    }
    machine
}

/// A frame that was freed by itself, of that page; its first words point to those pages.
fn free(machine: &mut Machine, frame: u64, page: u64, pointers: &[u64]) {
    machine.describe(frame, 0, 0, page, 0);
    machine.set_struct(frame, 1, POISON);
    for (word, pointer) in (0..).zip(pointers) {
        machine.set(frame * FRAME_SIZE + word * 8, pointer * FRAME_SIZE + 0x800);
    }
    machine.set(frame * FRAME_SIZE + 0xff0, frame);
}

/// Makes the contents of a frame point at each other as those of a page do: two neighbours in a list, several times.
fn pair(machine: &mut Machine, frame: u64, page: u64) {
    for at in (0x400..0x700).step_by(0x80) {
        machine.set(frame * FRAME_SIZE + at, page * FRAME_SIZE + at + 0x40);
        machine.set(frame * FRAME_SIZE + at + 0x40, page * FRAME_SIZE + at);
    }
}

/// The frame of each page in the process with that library.
fn frames(machine: Machine, library: u64, pages: &[u64]) -> Vec<Option<u64>> {
    let (memory, mmu) = machine.finish();
    let freed = FreedFrames::find(&memory, &mmu, &[]);
    let of = |page: u64| freed.processes(&memory, &[VirtAddr(page * FRAME_SIZE)]).pop().unwrap();
    let space = AddressSpace::of_freed(&memory, of(library));
    let frame = |page: &u64| match space.translate(VirtAddr(page * FRAME_SIZE + 8)) {
        Ok(found) => Some(found.pa.0 / FRAME_SIZE),
        Err(Fault::NotInFreed { .. }) => None,
        Err(other) => panic!("{other}"),
    };
    let found: Vec<Option<u64>> = pages.iter().map(frame).collect();
    for (page, frame) in pages.iter().zip(&found) {
        let bytes = frame.map(|frame| memory.bytes(PhysAddr(frame * FRAME_SIZE), FRAME_SIZE).unwrap());
        assert_eq!(space.bytes_at(VirtAddr(page * FRAME_SIZE)).ok(), bytes);
    }
    found
}

#[test]
fn a_freed_page_is_where_its_struct_page_says() {
    let mut machine = machine();
    free(&mut machine, 100, HEAP, &[LIBRARY, HEAP]);
    free(&mut machine, 101, LIBRARY + 3, &[]);
    // Of another process, in use, of a file, and not known to the kernel as single.
    free(&mut machine, 102, HEAP + 1, &[OTHER, OTHER]);
    free(&mut machine, 103, HEAP + 2, &[LIBRARY]);
    machine.set_struct(103, 6, 1 << 32);
    free(&mut machine, 104, HEAP + 3, &[LIBRARY]);
    machine.set_struct(104, 3, ANONYMOUS & !1);
    free(&mut machine, 105, HEAP + 4, &[LIBRARY]);
    machine.set_struct(105, 1, 0);
    let pages = [HEAP, LIBRARY + 3, HEAP + 1, HEAP + 2, HEAP + 3, HEAP + 4];
    assert_eq!(frames(machine, LIBRARY, &pages), [Some(100), Some(101), None, None, None, None]);
}

#[test]
fn frames_that_are_mapped_are_not_free() {
    let mut machine = machine();
    free(&mut machine, 100, HEAP, &[LIBRARY]);
    free(&mut machine, 101, HEAP + 1, &[LIBRARY]);
    let (memory, mmu) = machine.finish();
    let mapped = PhysAddr(90 * FRAME_SIZE)..PhysAddr(101 * FRAME_SIZE);
    let freed = FreedFrames::find(&memory, &mmu, &[mapped]);
    assert_eq!(freed.address(PhysAddr(100 * FRAME_SIZE)), None);
    assert_eq!(freed.address(PhysAddr(101 * FRAME_SIZE + 5)), Some(VirtAddr((HEAP + 1) * FRAME_SIZE + 5)));
}

#[test]
fn two_different_frames_for_a_page_are_a_hole() {
    let mut machine = machine();
    for (frame, page) in [(100, HEAP), (101, HEAP), (102, HEAP + 1), (103, HEAP + 1)] {
        free(&mut machine, frame, page, &[LIBRARY]);
    }
    // Equal contents are no contradiction.
    machine.set(103 * FRAME_SIZE + 0xff0, 102);
    assert_eq!(frames(machine, LIBRARY, &[HEAP, HEAP + 1]), [None, Some(102)]);
}

#[test]
fn a_page_of_numbers_goes_with_its_neighbours() {
    let numbers = |after: u64| {
        let mut machine = machine();
        free(&mut machine, 100, HEAP, &[LIBRARY]);
        free(&mut machine, 101, HEAP + 1, &[]);
        free(&mut machine, 102, HEAP + 2, &[after]);
        frames(machine, LIBRARY, &[HEAP, HEAP + 1])
    };
    assert_eq!(numbers(LIBRARY), [Some(100), Some(101)]);
    assert_eq!(numbers(OTHER), [Some(100), None]);
}

#[test]
fn a_page_of_a_library_is_not_one_of_the_heap() {
    let mut machine = machine();
    free(&mut machine, 100, HEAP, &[LIBRARY, HEAP]);
    // What the loader has changed points to libraries alone; its index is a place in the file.
    free(&mut machine, 101, HEAP + 1, &[LIBRARY; 40]);
    free(&mut machine, 102, HEAP + 2, &[LIBRARY, HEAP]);
    assert_eq!(frames(machine, LIBRARY, &[HEAP, HEAP + 1, HEAP + 2]), [Some(100), None, Some(102)]);
}

#[test]
fn the_parts_of_a_large_page_vote_for_their_place() {
    let first = HEAP.next_multiple_of(LARGE);
    let large = |parts: u64, collected: u64| {
        let mut machine = machine();
        for part in 0..parts {
            pair(&mut machine, LARGE + part * 3, first + part * 3);
            machine.set((LARGE + part * 3) * FRAME_SIZE + 8, LIBRARY * FRAME_SIZE);
        }
        // The page was used again as a part of none: it is not what it was.
        free(&mut machine, LARGE + 100, HEAP + 400, &[LIBRARY]);
        for page in 0..collected {
            free(&mut machine, 100 + page, first + page, &[LIBRARY]);
        }
        frames(machine, LIBRARY, &[first, first + 1, first + 100])
    };
    assert_eq!(large(20, 0), [Some(LARGE), Some(LARGE + 1), None]);
    assert_eq!(large(3, 0), [None; 3]);
    // A few single pages contradict; many of them are what the large page was collected from.
    assert_eq!(large(20, 1), [None, Some(LARGE + 1), None]);
    assert_eq!(large(20, 60), [Some(LARGE), Some(LARGE + 1), None]);
}

#[test]
fn where_kernels_do_not_keep_the_index_contents_tell() {
    let mut machine = machine();
    let page = |frame: u64| LIBRARY + 100 + frame;
    for frame in 200..210 {
        free(&mut machine, frame, 1, &[]);
    }
    // Between frames that are as far apart as their pages are, in either direction.
    for (frame, page) in [(200, page(0)), (203, page(3)), (204, page(20)), (207, page(17)), (209, page(50))] {
        pair(&mut machine, frame, page);
    }
    let pages = [0, 1, 2, 3, 20, 19, 18, 17, 50, 49].map(page);
    let expected = [200, 201, 202, 203, 204, 205, 206, 207, 209].map(Some).into_iter().chain([None]);
    assert_eq!(frames(machine, LIBRARY, &pages), expected.collect::<Vec<_>>());
}
