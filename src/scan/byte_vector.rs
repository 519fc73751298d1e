//! The vector operations that a sieve needs, once per instruction set: a byte of many slots at a time.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

/// A vector of bytes, one of each of so many slots.
///
/// # Safety
///
/// Every method needs a CPU with the instruction set of the implementing type, and is to be inlined into a function with that
/// `target_feature`. `load` and `store` access one byte a slot, `planes` reads eight, at any alignment.
pub(super) trait ByteVector: Copy {
    /// Slots whose bytes a vector holds.
    const SLOTS: usize;
    /// Which bytes of slots are taken, in registers.
    type Quad: Copy;

    /// The same sixteen bytes, over and over.
    unsafe fn repeat(bytes: &[u8; 16]) -> Self;
    unsafe fn load(bytes: *const u8) -> Self;
    unsafe fn store(self_: Self, bytes: *mut u8);
    /// Four of the eight bytes of each slot.
    unsafe fn quad(bytes: [u8; 4]) -> Self::Quad;
    /// These bytes of the slots, a vector for each byte. All are in the same order, which need not be that of the slots.
    unsafe fn planes(slots: *const u8, quad: Self::Quad) -> [Self; 4];
    /// The bytes in the order of the slots.
    unsafe fn in_order(self) -> Self;
    unsafe fn and(self, other: Self) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    /// The lower four bits of each byte.
    unsafe fn low_digits(self) -> Self;
    /// The upper four bits of each byte.
    unsafe fn high_digits(self) -> Self;
    /// The bytes of the table, which is repeated, at these digits; zero for 0x80.
    unsafe fn look_up(table: Self, digits: Self) -> Self;
    /// Numbers of two bytes, less other numbers: lower bytes, and upper ones.
    unsafe fn less(numbers: [Self; 2], others: [Self; 2]) -> [Self; 2];
    /// Bit `n` for byte `n`, where not all of its bits are set.
    unsafe fn not_full(self) -> u64;
}
