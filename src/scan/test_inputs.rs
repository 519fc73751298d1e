//! What the tests of several backends search: memory and random numbers, as the tests outside this crate make them.

/// Bytes of a frame.
pub(super) const FRAME: u64 = 4096;

#[path = "../../tests/scan/memory.rs"]
#[allow(dead_code, reason = "shared with tests/scan.rs")]
pub(super) mod memory;
#[path = "../../tests/random/mod.rs"]
pub(super) mod random;
