//! What the tests of the GPU share; shaders against twins in one file, the device's ways in the other.
//!
//! The device's part says that it skips where there is no adapter; the twins' part runs anywhere.

mod device;
mod shaders;

use super::device::{Gpu, Options};
use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::scan::test_inputs::{FRAME, memory, random::Random};
use crate::signature::Signatures;

fn many() -> Signatures {
    Signatures::from_texts([
        ("cpython.toml", include_str!("../../../../signatures/cpython.toml")),
        ("x86_64.toml", include_str!("../../../../signatures/x86_64.toml")),
        ("many.toml", include_str!("../../../../tests/scan/many.toml")),
    ])
    .unwrap()
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

/// A value that our memories hold in many places, and others, most of which they hold.
fn some_values(memory: &PhysicalMemory, random: &mut Random, count: usize) -> Vec<u64> {
    let end = memory.end().0;
    let mut other = || memory.read_u64(PhysAddr(random.below(end) & !7)).filter(|v| *v != 0).unwrap_or(random.next());
    std::iter::once(0x4242).chain((1..count).map(|_| other())).collect()
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
