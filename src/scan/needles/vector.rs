//! The search with vectors: one algorithm over the few operations that it needs, compiled once per instruction set.

use super::filter::{Group, Shape};
use super::window::WINDOW;
use crate::scan::prefetch::prefetch;

/// A vector of bytes.
///
/// # Safety
///
/// Every function needs a CPU with the instruction set of the implementing type, and is to be inlined
/// into a function with that `target_feature`. `load` reads `BYTES` bytes at any alignment.
pub(super) trait Vector: Copy {
    /// Bytes in a vector.
    const BYTES: usize;
    /// Bits of a byte that one table tells apart: it has an entry for each of their values.
    const FIELD_BITS: u32;

    unsafe fn load(bytes: *const u8) -> Self;
    /// A table, of which only as many entries count as there are values of a field.
    unsafe fn table(entries: &[u8; 64]) -> Self;
    /// The entries of a table at the lowest bits of each byte.
    unsafe fn at_low_bits(bytes: Self, table: Self) -> Self;
    /// The entries of a table at the highest bits of each byte.
    unsafe fn at_high_bits(bytes: Self, table: Self) -> Self;
    unsafe fn and(a: Self, b: Self) -> Self;
    unsafe fn or(a: Self, b: Self) -> Self;
    unsafe fn zero() -> Self;
    unsafe fn is_zero(bytes: Self) -> bool;
    /// Bit `n` for a byte `n` that is not 0.
    unsafe fn not_zero(bytes: Self) -> u64;
}

/// Functions of [`Vector`] whose bodies are intrinsics.
macro_rules! functions {
    ($($name:ident($($arg:ident: $of:ty),*) $(-> $result:ty)? { $body:expr })*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $of),*) $(-> $result)? {
                // SAFETY: the caller vouches for the instruction set, and for the bytes of a load.
                unsafe { $body }
            }
        )*
    };
}
pub(super) use functions;

/// Vectors that are looked at together: most of the time nothing passes.
pub(super) const VECTORS: usize = 4;

/// How far ahead memory is asked for. Four loads per byte leave the CPU no room to run ahead by itself: without
/// this, AVX2 reads memory at a third of the speed. 1 to 2 KiB were best.
const AHEAD: usize = 1536;
const CACHE_LINE: usize = 64;

/// The search in the shape that the groups were made for.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn search_shape<V: Vector>(
    shape: Shape,
    groups: &[Group],
    bytes: &[u8],
    candidate: &mut dyn FnMut(usize),
) {
    // SAFETY: the caller has made sure that the CPU has the instruction set.
    unsafe {
        match (shape, groups) {
            (Shape::OneLow, [a]) => search::<V, 1, false>(&[*a], bytes, candidate),
            (_, [a]) => search::<V, 1, true>(&[*a], bytes, candidate),
            (_, [a, b]) => search::<V, 2, true>(&[*a, *b], bytes, candidate),
            (_, [a, b, c, d]) => search::<V, 4, true>(&[*a, *b, *c, *d], bytes, candidate),
            _ => {}
        }
    }
}

/// Calls `candidate` with every place where the look-ups of some group leave a bit. `bytes` are a multiple of
/// [`VECTORS`] vectors, and the rest of the last window. With `BOTH`, the tables of the high bits are used, too.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn search<V: Vector, const GROUPS: usize, const BOTH: bool>(
    groups: &[Group; GROUPS],
    bytes: &[u8],
    candidate: &mut dyn FnMut(usize),
) {
    let step = VECTORS * V::BYTES;
    let places = bytes.len().saturating_sub(WINDOW - 1) / step * step;
    // No closures here: what is called in them is not inlined reliably.
    // SAFETY: the caller has made sure that the CPU has the instruction set; after the last place the rest of its window follows.
    unsafe {
        let mut tables = [[(V::zero(), V::zero()); WINDOW]; GROUPS];
        for (vectors, group) in tables.iter_mut().zip(groups) {
            for (vectors, tables) in vectors.iter_mut().zip(group) {
                *vectors = (V::table(&tables.low), V::table(&tables.high));
            }
        }
        for start in (0..places).step_by(step) {
            let block = bytes.as_ptr().add(start);
            for line in (0..step).step_by(CACHE_LINE) {
                prefetch(block.wrapping_add(AHEAD + line));
            }
            let mut passed = [V::zero(); VECTORS];
            for (n, passed) in passed.iter_mut().enumerate() {
                for group in &tables {
                    let [first, rest @ ..] = group;
                    let vector = block.add(n * V::BYTES);
                    let mut buckets = look_up::<V, BOTH>(V::load(vector), *first);
                    for (byte, tables) in (1..).zip(rest) {
                        buckets = V::and(buckets, look_up::<V, BOTH>(V::load(vector.add(byte)), *tables));
                    }
                    *passed = V::or(*passed, buckets);
                }
            }
            let [a, b, c, d] = passed;
            if V::is_zero(V::or(V::or(a, b), V::or(c, d))) {
                continue;
            }
            for (vector, first) in passed.into_iter().zip((start..).step_by(V::BYTES)) {
                let mut bits = V::not_zero(vector);
                while bits != 0 {
                    candidate(first + bits.trailing_zeros() as usize);
                    bits &= bits - 1;
                }
            }
        }
    }
}

/// The buckets that each byte passes.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn look_up<V: Vector, const BOTH: bool>(bytes: V, (low, high): (V, V)) -> V {
    // SAFETY: the caller has made sure that the CPU has the instruction set.
    unsafe {
        let by_low = V::at_low_bits(bytes, low);
        if BOTH { V::and(by_low, V::at_high_bits(bytes, high)) } else { by_low }
    }
}
