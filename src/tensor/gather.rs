//! The bytes of a tensor or an array, in logical order, straight from the dump: what is not there is a hole.

use super::holes::{Holes, Recorder};
use crate::addr::{FRAME_SIZE, VirtAddr};
use crate::paging::{Fault, VirtualMemory};

/// Bytes that are collected before they are handed on.
const BUFFER: usize = 1 << 16;
/// The most pages that a strided walk keeps at hand: a column of a matrix comes back to each of its pages.
const CACHED_PAGES: u64 = 1 << 14;

/// An odd number whose multiples look like random ones: 2^64 over the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Where the elements of a tensor or an array lie.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Elements {
    /// The first element.
    pub data: VirtAddr,
    /// Elements along each dimension, outermost first.
    pub shape: Vec<u64>,
    /// Bytes between neighbours along each dimension; NumPy's may be negative.
    pub stride: Vec<i64>,
    /// Bytes of one element.
    pub size: u64,
    /// The gaps between blocks, if a dimension is stored in blocks.
    pub jumps: Vec<Jump>,
    /// Bits of each element that differ from memory.
    pub flips: Flips,
    /// Bytes that no longer hold elements: start and end of each run, sorted.
    pub overwritten: Vec<(VirtAddr, VirtAddr)>,
}

/// The gap after every given number of steps along a dimension, in addition to its stride, for a matrix in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Jump {
    /// The dimension.
    pub dim: usize,
    /// Steps between two jumps.
    pub every: u64,
    /// Bytes.
    pub bytes: i64,
}

impl Jump {
    /// Bytes that are skipped before the element of that index.
    fn before(self, index: u64) -> i64 {
        index.checked_div(self.every).unwrap_or_default().cast_signed().wrapping_mul(self.bytes)
    }
}

/// Bits that are flipped in every element while it is read: the signs of a lazy conjugate or negative view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flips(
    /// The bits, in an element as a little-endian integer of up to 16 bytes.
    pub u128,
);

impl Elements {
    /// Number of elements; saturates.
    pub fn numel(&self) -> u64 {
        // A zero makes any product zero, also one that has saturated.
        if self.shape.contains(&0) {
            0
        } else {
            self.shape.iter().fold(1, |product, size| product.saturating_mul(*size))
        }
    }

    /// Bytes of the elements when they lie one after another; saturates.
    pub fn byte_len(&self) -> u64 {
        self.numel().saturating_mul(self.size)
    }

    /// The addresses from the lowest byte of any element to the end of the highest; `None` where they
    /// leave the 64-bit space.
    pub fn span(&self) -> Option<(VirtAddr, VirtAddr)> {
        if self.byte_len() == 0 {
            return Some((self.data, self.data));
        }
        let (mut low, mut high) = (self.data.0, self.data.0);
        for jump in &self.jumps {
            let last = self.shape.get(jump.dim)?.saturating_sub(1);
            let reach = last.checked_div(jump.every)?.checked_mul(jump.bytes.unsigned_abs())?;
            if jump.bytes < 0 { low = low.checked_sub(reach)? } else { high = high.checked_add(reach)? }
        }
        for (size, stride) in self.shape.iter().zip(&self.stride) {
            let reach = size.saturating_sub(1).checked_mul(stride.unsigned_abs())?;
            if *stride < 0 { low = low.checked_sub(reach)? } else { high = high.checked_add(reach)? }
        }
        Some((VirtAddr(low), VirtAddr(high.checked_add(self.size)?)))
    }

    /// Whether the elements lie one after another in row-major order.
    pub fn is_contiguous(&self) -> bool {
        runs(self).0.is_empty()
    }

    /// Whether some elements share their bytes: more of them than the span has room for (stride 0).
    pub fn overlap(&self) -> bool {
        self.span().is_none_or(|(start, end)| self.byte_len() > end.0 - start.0)
    }
}

/// How many times the limit the pages of a tensor may have whose elements are far apart. Views that overlap, as of a sliding
/// window, visit a page several times.
const MAX_SPREAD: u64 = 64;

/// The tensor claims more bytes than the storage, or the dump, can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes are more than the limit of {limit}")]
pub struct TooLarge {
    /// Bytes of the contiguous tensor.
    pub bytes: u64,
    /// The most that is gathered.
    pub limit: u64,
}

/// Hands the bytes of a tensor to `sink` in row-major order, as `tensor.contiguous()` would hold them,
/// and returns its holes; their bytes are handed over as zeros.
///
/// `limit` bounds the bytes: a tensor that repeats its elements (stride 0) can claim any size.
///
/// # Errors
/// The tensor is larger than `limit`, or `sink` failed.
pub fn gather<E: From<TooLarge>>(
    memory: &dyn VirtualMemory,
    elements: &Elements,
    limit: u64,
    sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<Holes, E> {
    let bytes = elements.byte_len();
    if bytes > limit {
        return Err(TooLarge { bytes, limit }.into());
    }
    let (spread, limit) = (spread(elements), limit.saturating_mul(MAX_SPREAD));
    if spread > limit {
        return Err(TooLarge { bytes: spread, limit }.into());
    }
    if let Some((start, end)) = elements.span().filter(|(start, end)| end.0 - start.0 <= bytes.saturating_mul(2)) {
        memory.fetch(start..end);
    }
    let memory: &dyn VirtualMemory = &Without { memory, overwritten: &elements.overwritten };
    let mut gatherer = Gatherer {
        pages: Pages::new(memory, elements),
        flips: elements.flips,
        size: elements.size,
        sink,
        buffer: Vec::with_capacity(BUFFER),
        done: 0,
        holes: Recorder::new(memory),
    };
    if bytes > 0 {
        let (mut outer, run) = runs(elements);
        // The innermost of the strided dimensions in a loop of its own: most of the time goes there.
        let (inner_size, inner_stride) = outer.pop().unwrap_or((1, 0));
        let mut index = vec![0u64; outer.len()];
        let steps = |i: u64, stride: i64| stride.wrapping_mul(i.cast_signed());
        let jumps = |dim: usize, i: u64| {
            let of_dim = elements.jumps.iter().filter(|jump| jump.dim == dim);
            of_dim.fold(0i64, |sum, jump| sum.wrapping_add(jump.before(i)))
        };
        let inner = outer.len();
        loop {
            let offset = index.iter().zip(&outer).map(|(i, (_, stride))| steps(*i, *stride));
            let jumped = index.iter().enumerate().map(|(dim, i)| jumps(dim, *i));
            let first = offset.chain(jumped).fold(elements.data.0, u64::wrapping_add_signed);
            for i in 0..inner_size {
                let at = first.wrapping_add_signed(steps(i, inner_stride)).wrapping_add_signed(jumps(inner, i));
                gatherer.run(VirtAddr(at), run)?;
            }
            if !advance(&mut index, &outer) {
                break;
            }
        }
    }
    gatherer.flush()?;
    Ok(gatherer.holes.finish())
}

/// The bytes of the pages that the elements are in, where each is in a page of its own; 0 where several share a page.
fn spread(elements: &Elements) -> u64 {
    let is_far = |stride: i64| stride.unsigned_abs() >= FRAME_SIZE;
    let strided = elements.shape.iter().zip(&elements.stride).filter(|(size, _)| **size > 1);
    if strided.clone().all(|(_, stride)| !is_far(*stride)) {
        return 0;
    }
    let far = strided.filter(|(_, stride)| is_far(**stride)).map(|(size, _)| *size);
    far.fold(FRAME_SIZE, u64::saturating_mul)
}

/// Splits the dimensions: outer ones as size and stride, and the bytes of the contiguous rest.
fn runs(elements: &Elements) -> (Vec<(u64, i64)>, u64) {
    let mut outer: Vec<(u64, i64)> = elements.shape.iter().copied().zip(elements.stride.iter().copied()).collect();
    let mut run = elements.size;
    while let Some((size, stride)) = outer.last().copied().filter(|_| elements.jumps.is_empty()) {
        if size != 1 && stride != run.cast_signed() {
            break;
        }
        run *= size;
        outer.pop();
    }
    (outer, run)
}

/// Counts up in row-major order; `false` after the last index.
fn advance(index: &mut [u64], outer: &[(u64, i64)]) -> bool {
    for (i, (size, _)) in index.iter_mut().zip(outer).rev() {
        *i += 1;
        if *i < *size {
            return true;
        }
        *i = 0;
    }
    false
}

struct Gatherer<'a, S> {
    pages: Pages<'a>,
    flips: Flips,
    /// Bytes of one element.
    size: u64,
    sink: S,
    buffer: Vec<u8>,
    done: u64,
    holes: Recorder<'a>,
}

impl<E, S: FnMut(&[u8]) -> Result<(), E>> Gatherer<'_, S> {
    fn run(&mut self, start: VirtAddr, len: u64) -> Result<(), E> {
        let mut at = start.0;
        let mut left = len;
        while left > 0 {
            let count = match self.pages.bytes_at(VirtAddr(at)) {
                Ok(bytes) => {
                    // Bytes are flipped in the buffer, so no more than that at a time.
                    let most = if self.flips == Flips::default() { left } else { left.min(BUFFER as u64) };
                    let count = most.min(bytes.len() as u64);
                    let bytes = bytes.get(..count as usize).unwrap_or_default();
                    if self.buffer.len() + bytes.len() > BUFFER {
                        (self.sink)(&self.buffer)?;
                        self.buffer.clear();
                    }
                    if bytes.len() > BUFFER {
                        (self.sink)(bytes)?
                    } else {
                        let start = self.buffer.len();
                        self.buffer.extend_from_slice(bytes);
                        self.flip(start);
                    }
                    count
                }
                Err(fault) => {
                    let end = match fault {
                        Fault::Overwritten { end, .. } => end.0.saturating_sub(at),
                        _ => FRAME_SIZE,
                    };
                    let count = left.min(FRAME_SIZE - VirtAddr(at).in_frame()).min(end);
                    self.holes.add(self.done, VirtAddr(at), count, fault);
                    if self.buffer.len() as u64 + count > BUFFER as u64 {
                        (self.sink)(&self.buffer)?;
                        self.buffer.clear();
                    }
                    self.buffer.resize(self.buffer.len() + count as usize, 0);
                    count
                }
            };
            self.done += count;
            at = at.wrapping_add(count);
            left -= count;
        }
        Ok(())
    }

    /// Flips bits of the bytes that were read into the buffer from `start` on. Bytes of holes stay zero.
    fn flip(&mut self, start: usize) {
        if self.flips == Flips::default() {
            return;
        }
        let mask = self.flips.0.to_le_bytes();
        for (at, byte) in (self.done..).zip(self.buffer.iter_mut().skip(start)) {
            *byte ^= mask.get((at % self.size.max(1)) as usize).copied().unwrap_or_default();
        }
    }

    fn flush(&mut self) -> Result<(), E> {
        if self.buffer.is_empty() { Ok(()) } else { (self.sink)(&self.buffer) }
    }
}

/// Memory without the bytes that were overwritten.
struct Without<'a> {
    memory: &'a dyn VirtualMemory,
    overwritten: &'a [(VirtAddr, VirtAddr)],
}

impl VirtualMemory for Without<'_> {
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        let bytes = self.memory.bytes_at(va)?;
        let Some((start, end)) = self.overwritten.iter().copied().find(|(_, end)| va < *end) else { return Ok(bytes) };
        if start <= va {
            return Err(Fault::Overwritten { va, end });
        }
        Ok(bytes.get(..(start.0 - va.0) as usize).unwrap_or(bytes))
    }

    fn explain(&self, fault: Fault) -> String {
        self.memory.explain(fault)
    }
}

/// The pages that were read last: a strided tensor comes back to each many times.
struct Pages<'a> {
    memory: &'a dyn VirtualMemory,
    cached: Vec<Option<(u64, &'a [u8])>>,
}

impl<'a> Pages<'a> {
    /// Slots for the pages that the elements lie in, as far as that helps.
    fn new(memory: &'a dyn VirtualMemory, elements: &Elements) -> Self {
        let span = elements.span().map_or(u64::MAX, |(start, end)| end.0 - start.0);
        let pages = (span / FRAME_SIZE).clamp(1, CACHED_PAGES / 2);
        Self { memory, cached: vec![None; 2 * pages as usize] }
    }

    fn bytes_at(&mut self, va: VirtAddr) -> Result<&'a [u8], Fault> {
        let page = va.frame().0;
        // Multiplied, so that pages at regular distances do not share a few slots.
        let hash = (page / FRAME_SIZE).wrapping_mul(SPREAD) >> 32;
        let slots = self.cached.len().max(1);
        let slot = self.cached.get_mut(hash as usize % slots);
        if let Some(Some((cached, bytes))) = slot.as_deref()
            && *cached == page
            && let Some(rest) = bytes.get(va.in_frame() as usize..).filter(|rest| !rest.is_empty())
        {
            return Ok(rest);
        }
        // A large page goes on past these 4 KiB; a frame can also begin in the middle of a page.
        match self.memory.bytes_at(VirtAddr(page)) {
            Ok(bytes) if bytes.len() as u64 > va.in_frame() => {
                if let Some(slot) = slot {
                    *slot = Some((page, bytes));
                }
                Ok(bytes.get(va.in_frame() as usize..).unwrap_or_default())
            }
            _ => self.memory.bytes_at(va),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::Gone;

    /// Memory whose pages of 4 KiB are there or not; byte `i` of it is `i % 251`.
    struct Pattern {
        bytes: Vec<u8>,
        missing: Vec<u64>,
    }

    impl Pattern {
        fn new(missing: &[u64]) -> Self {
            Self { bytes: (0..0x10000u32).map(|i| (i % 251) as u8).collect(), missing: missing.to_vec() }
        }
    }

    impl VirtualMemory for Pattern {
        fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
            if self.missing.contains(&va.frame().0) || va.0 >= 0x10000 {
                return Err(Fault::NotPresent { va, level: 1, entry: 0, cause: Gone::Untouched });
            }
            Ok(&self.bytes[va.0 as usize..va.frame().0 as usize + 0x1000])
        }
    }

    /// Strides in elements, as PyTorch has them.
    fn elements(shape: &[u64], stride: &[i64], data: u64, size: u64) -> Elements {
        let stride = stride.iter().map(|stride| stride * size.cast_signed()).collect();
        Elements { data: VirtAddr(data), shape: shape.to_vec(), stride, size, ..Elements::default() }
    }

    fn collect(memory: &Pattern, elements: &Elements) -> (Vec<u8>, Holes) {
        let mut bytes = Vec::new();
        let holes = gather::<TooLarge>(memory, elements, 1 << 20, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        });
        (bytes, holes.unwrap())
    }

    /// Element by element, by the definition of strides.
    fn naive(memory: &Pattern, elements: &Elements) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..elements.numel() {
            let (mut rest, mut start) = (i, elements.data.0);
            for (size, stride) in elements.shape.iter().zip(&elements.stride).rev() {
                start = start.checked_add_signed((rest % size) as i64 * stride).unwrap();
                rest /= size;
            }
            for byte in start as usize..(start + elements.size) as usize {
                let there = !memory.missing.contains(&(byte as u64 & !0xfff));
                bytes.push(if there { memory.bytes[byte] } else { 0 });
            }
        }
        bytes
    }

    #[test]
    fn every_stride_gives_the_logical_order() {
        let memory = Pattern::new(&[]);
        for elements in [
            elements(&[4, 5, 6], &[30, 6, 1], 0x100, 4),
            elements(&[4, 5, 6], &[1, 4, 20], 0x100, 4),
            elements(&[2, 8, 3, 3], &[72, 1, 24, 8], 0xff0, 2),
            elements(&[7, 9], &[0, 1], 0x1ffe, 8),
            elements(&[3, 1, 2], &[2, 999, 1], 8, 1),
            elements(&[64, 64], &[1, 64], 0xfff, 8),
            elements(&[], &[], 0x2fff, 4),
            elements(&[0, 3], &[3, 1], 0, 4),
            elements(&[3000], &[5], 3, 4),
            elements(&[40000], &[1], 1, 1),
            // Backwards, as NumPy can.
            elements(&[500], &[-1], 0x2100, 8),
            elements(&[30, 40], &[-40, 1], 0x1800, 4),
            elements(&[30, 40], &[40, -1], 0x1ffe, 2),
            // Bytes that are no multiple of the element's size.
            Elements { stride: vec![-13, 5], ..elements(&[100, 2], &[0, 0], 0x3000, 4) },
        ] {
            let (bytes, holes) = collect(&memory, &elements);
            assert_eq!(bytes, naive(&memory, &elements), "{elements:?}");
            assert!(holes.is_empty());
        }
    }

    /// A matrix of 11 rows and 7 columns in blocks of 8 by 3, four rows of a column side by side, as FBGEMM packs it.
    #[test]
    fn blocks_give_the_logical_order() {
        let memory = Pattern::new(&[0x2000]);
        let (rows, columns, block_rows, block_columns, side_by_side) = (11u64, 7u64, 8u64, 3u64, 4u64);
        let blocks = columns.div_ceil(block_columns);
        let place = |row: u64, column: u64| {
            (row / block_rows * blocks + column / block_columns) * block_rows * block_columns
                + row % block_rows / side_by_side * block_columns * side_by_side
                + column % block_columns * side_by_side
                + row % side_by_side
        };
        let jump = |dim, every, bytes| Jump { dim, every, bytes };
        let jumps = vec![
            jump(0, block_columns, (block_rows * block_columns - block_columns * side_by_side) as i64),
            jump(1, side_by_side, ((block_columns - 1) * side_by_side) as i64),
            jump(1, block_rows, ((blocks - 1) * block_rows * block_columns) as i64),
        ];
        let packed = Elements { jumps, ..elements(&[columns, rows], &[side_by_side as i64, 1], 0x1fd0, 1) };
        let (bytes, holes) = collect(&memory, &packed);
        let truth = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
        let addresses: Vec<u64> = truth.map(|(row, column)| 0x1fd0 + place(row, column)).collect();
        let there: Vec<u8> =
            addresses.iter().map(|at| if *at < 0x2000 { memory.bytes[*at as usize] } else { 0 }).collect();
        assert_eq!(bytes, there);
        assert_eq!(holes.bytes, addresses.iter().filter(|at| **at >= 0x2000).count() as u64);
        let last = addresses.iter().max().unwrap() + 1;
        assert!(packed.span().is_some_and(|(start, end)| start.0 == 0x1fd0 && end.0 >= last));
    }

    #[test]
    fn what_is_missing_is_listed_not_invented() {
        let memory = Pattern::new(&[0x2000, 0x3000, 0x6000]);
        let contiguous = elements(&[0x6000], &[1], 0x1800, 1);
        let (bytes, holes) = collect(&memory, &contiguous);
        assert_eq!(bytes, naive(&memory, &contiguous));
        let spans: Vec<_> = holes.iter().map(|hole| (hole.start, hole.end, hole.address.0)).collect();
        assert_eq!(spans, [(0x800, 0x2800, 0x2000), (0x4800, 0x5800, 0x6000)]);
        let transposed = elements(&[0x1000, 7], &[1, 0x1000], 0, 1);
        let (bytes, holes) = collect(&memory, &transposed);
        assert_eq!(bytes, naive(&memory, &transposed));
        assert_eq!((holes.count, holes.bytes), (3 * 0x1000, 3 * 0x1000));
        let runs: Vec<_> = holes.pages.iter().map(|run| (run.start.0, run.end.0)).collect();
        assert_eq!(runs, [(0x2000, 0x4000), (0x6000, 0x7000)]);
        assert_eq!((holes[0].start, holes[0].end, holes[0].address.0), (2, 3, 0x2000));
    }

    #[test]
    fn signs_are_flipped_in_elements_and_not_in_holes() {
        let memory = Pattern::new(&[0x3000]);
        let complex = 1u128 << 63;
        // Elements across pages and buffers, contiguous and not; both bits of an element, and of the largest one.
        for (elements, flips) in [
            (elements(&[0x1e00], &[1], 0x13, 8), complex),
            (elements(&[100, 60], &[1, 100], 0xff1, 8), complex | 1 << 31),
            (elements(&[700, 2], &[4, 1], 0x2008, 16), 1 << 127),
            (elements(&[0x1000], &[2], 0x7f01, 2), 1 << 15),
        ] {
            let elements = Elements { flips: Flips(flips), ..elements };
            let (bytes, holes) = collect(&memory, &elements);
            let mut expected = naive(&memory, &elements);
            let mask = flips.to_le_bytes();
            let is_hole = |at: u64| holes.iter().any(|hole| (hole.start..hole.end).contains(&at));
            for (at, byte) in (0..).zip(&mut expected).filter(|(at, _)| !is_hole(*at)) {
                *byte ^= mask[(at % elements.size) as usize];
            }
            assert!(bytes == expected, "{elements:?}");
        }
    }

    #[test]
    fn a_tensor_that_repeats_itself_is_bounded() {
        assert!(elements(&[7, 9], &[0, 1], 0, 8).overlap() && !elements(&[7, 9], &[-9, 1], 0x1000, 8).overlap());
        let endless = elements(&[1 << 40, 1 << 10], &[0, 0], 0, 8);
        let result = gather::<TooLarge>(&Pattern::new(&[]), &endless, 1 << 20, |_| Ok(()));
        assert_eq!(result, Err(TooLarge { bytes: 1 << 53, limit: 1 << 20 }));
    }

    #[test]
    fn a_tensor_whose_elements_are_far_apart_is_bounded() {
        let gathered = |shape: &[u64], stride: &[i64]| {
            let far = elements(shape, stride, 0x1000, 1);
            gather::<TooLarge>(&Pattern::new(&[]), &far, 1 << 16, |_| Ok(())).map(|_| ())
        };
        let limit = MAX_SPREAD << 16;
        let pages = limit / FRAME_SIZE;
        assert_eq!(gathered(&[pages], &[4099]), Ok(()));
        assert_eq!(gathered(&[pages + 1], &[4099]), Err(TooLarge { bytes: limit + FRAME_SIZE, limit }));
        assert_eq!(gathered(&[2, pages], &[8192, -4096]), Err(TooLarge { bytes: 2 * limit, limit }));
        // Elements side by side share a page.
        assert_eq!(gathered(&[pages + 1], &[4095]), Ok(()));
        assert_eq!(gathered(&[8, 1 << 10], &[1 << 20, 1]), Ok(()));
    }
}
