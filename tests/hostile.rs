//! Evidence that lies, is damaged, or is no evidence: nothing may panic, hang, eat all memory, or be believed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may simply fail"
)]

mod synthetic;

#[path = "hostile/arbitrary.rs"]
mod arbitrary;
#[path = "hostile/bounds.rs"]
mod bounds;
#[path = "hostile/nesting.rs"]
mod nesting;
#[path = "hostile/objects.rs"]
mod objects;
#[path = "hostile/shipped.rs"]
mod shipped;
#[path = "hostile/tables.rs"]
mod tables;

use bounds::{alone, bounded};
use synthetic::{Random, dump_of, recover};
use tensorcarve::dump::{Addresses, ProcessImage};

/// Memory of frames whose words are given by frame and index, from address 0 on.
fn memory(frames: u64, mut word: impl FnMut(u64, u64) -> u64) -> tensorcarve::dump::Dump {
    let mut bytes = Vec::with_capacity(frames as usize * 4096);
    for frame in 0..frames {
        for index in 0..512 {
            bytes.extend_from_slice(&word(frame, index).to_le_bytes());
        }
    }
    dump_of(bytes, (0..frames).map(|frame| frame << 12))
}

#[test]
fn noise_and_patterns_hold_nothing() {
    let _alone = alone();
    let mut random = Random(7);
    let mut small = Random(8);
    let mut pointers = Random(9);
    let dumps = [
        ("random", memory(4096, |_, _| random.next())),
        ("ones", memory(4096, |_, _| 0x0101_0101_0101_0101)),
        ("0x67", memory(4096, |_, _| 0x6767_6767_6767_6767)),
        ("only present bits", memory(4096, |_, _| 0x67)),
        ("all bits", memory(4096, |_, _| u64::MAX)),
        ("small odd numbers", memory(4096, |_, _| small.below(1 << 16) | 1)),
        ("odd pointers", memory(4096, |_, _| 0x7f00_0000_0001 | pointers.below(1 << 24))),
        // Every slot could be the `ob_type` of a `type`.
        ("slots that point to themselves", memory(4096, |frame, index| (frame << 12 | index << 3).wrapping_sub(8))),
    ];
    for (name, mut dump) in dumps {
        // In the image of a process every pointer leads where it says.
        for addresses in [Addresses::Physical, Addresses::Virtual(ProcessImage::default())] {
            dump.addresses = addresses;
            let recovery = bounded(name, || recover(&dump));
            assert!(recovery.processes.is_empty(), "{name} {:?}", dump.addresses);
        }
    }
}
