//! The heap of a process as glibc's `malloc` keeps it: which memory is free, and which bytes of it `malloc` has overwritten.
//!
//! A chunk begins with two words: the size of the chunk before it, which is only kept while that one is free, and its own size,
//! whose three lowest bits are flags. Behind them is what `malloc` returned. A free chunk has the addresses of others over its
//! first words (malloc/malloc.c, glibc 2.26 to 2.41, x86-64).

use crate::addr::{FRAME_SIZE, VirtAddr};
use crate::paging::VirtualMemory;
use crate::signature::{USER_POINTER_MAX, is_user_pointer};

/// Bytes of a chunk before what `malloc` returned.
const HEAD: u64 = 16;
/// Bytes of the size of a chunk. The last word of what `malloc` returned is the first word of the next chunk.
const SIZE: u64 = 8;
/// All sizes and addresses of chunks are multiples of it.
const ALIGN: u64 = 16;
const MIN_CHUNK: u64 = 32;
/// Flags in the word of the size: the chunk before is in use; the chunk is a mapping of its own; it is not of the main arena.
const PREV_INUSE: u64 = 1;
const IS_MMAPPED: u64 = 2;
const FLAGS: u64 = 7;
/// Bytes by which a chunk may be larger than what was asked for: the rest is too small for a chunk of its own.
const MAX_SLACK: u64 = 32;
/// The same of a chunk with pages of its own, whose start may be aligned.
const MAX_MAPPED_SLACK: u64 = 2 * FRAME_SIZE;
/// Chunks of at least this size are linked by four words instead of two.
const LARGE: u64 = 1 << 10;
/// Chunks up to this size may be in a list whose chunks count as in use (`tcache`, and the fast bins).
const MAX_CACHED: u64 = 1040;
/// Chunks that are passed on the way to others, at most.
const MAX_STEPS: usize = 1 << 22;
/// Bytes that are searched for pointers, at most.
const MAX_SEARCHED: u64 = 1 << 32;

/// Memory that was freed, and that nothing seems to have used since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FreedMemory {
    /// Which of its bytes hold what the allocator has written since: start and end of each run, sorted.
    pub overwritten: Vec<(VirtAddr, VirtAddr)>,
}

/// Memory that `malloc` returned at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Block {
    /// What `malloc` returned.
    pub(crate) start: VirtAddr,
    /// Bytes that were asked for.
    pub(crate) bytes: u64,
}

impl Block {
    fn chunk(self) -> Option<VirtAddr> {
        self.start.0.checked_sub(HEAD).filter(|chunk| chunk.is_multiple_of(ALIGN)).map(VirtAddr)
    }

    pub(crate) fn end(self) -> Option<u64> {
        self.start.0.checked_add(self.bytes)
    }

    /// Bytes of the smallest chunk that has room for it.
    fn chunk_size(self) -> Option<u64> {
        Some(self.bytes.checked_add(SIZE)?.checked_next_multiple_of(ALIGN)?.max(MIN_CHUNK))
    }
}

/// How the chunk of a freed block was found to be free.
enum Place {
    /// It has the chunk for itself, or shares the chunk with blocks behind it, and is in a list of free chunks, linked by
    /// so many bytes.
    Listed(u64),
    /// Its own chunk is still to be seen in a larger free one, or in the memory of a process that has ended. It may have been in a
    /// list before.
    Within,
    /// It had pages of its own.
    Mapped,
}

/// What is known of the heap of a process.
pub(crate) enum Heap<'a> {
    /// Blocks that `malloc` returned and that are in use, sorted: chunks are counted from these.
    Used(&'a [VirtAddr]),
    /// The process has ended: nothing is in use.
    Ended,
}

/// Which of the blocks are free, in their order; they must be sorted.
pub(crate) fn freed(memory: &dyn VirtualMemory, blocks: &[Block], heap: &Heap<'_>) -> Vec<Option<FreedMemory>> {
    let mut walk = Walk { memory, at: None, steps: 0 };
    let mut searched = 0;
    let mut within = |block: Block| match heap {
        Heap::Used(known) => walk.within(block, known),
        Heap::Ended => own_chunk(memory, block),
    };
    let find = |block: &Block| {
        let place = place(memory, *block).or_else(|| within(*block))?;
        let overwritten = overwritten(memory, *block, &place)?;
        searched += block.bytes;
        let is_unused = searched <= MAX_SEARCHED && !holds_pointers(memory, *block, &overwritten);
        is_unused.then_some(FreedMemory { overwritten })
    };
    blocks.iter().map(find).collect()
}

/// The size of the chunk, and whether the chunk before it is in use; `None` where no chunk of the heap is.
fn size(memory: &dyn VirtualMemory, chunk: VirtAddr) -> Option<(u64, bool)> {
    let word = memory.word(chunk, SIZE.cast_signed()).ok()?;
    let size = word & !FLAGS;
    let is_chunk = size >= MIN_CHUNK && size.is_multiple_of(ALIGN) && word & IS_MMAPPED == 0;
    (is_chunk && size < USER_POINTER_MAX).then_some((size, word & PREV_INUSE != 0))
}

/// Whether the own chunk of a block is still to be seen.
fn own_chunk(memory: &dyn VirtualMemory, block: Block) -> Option<Place> {
    let (chunk, least) = (block.chunk()?, block.chunk_size()?);
    if let Some((own, _)) = size(memory, chunk) {
        return (own >= least && own - least <= MAX_SLACK).then_some(Place::Within);
    }
    let word = memory.word(chunk, SIZE.cast_signed()).ok()?;
    let own = word & !FLAGS;
    let ends_with_page = chunk.checked_add(own)?.in_frame() == 0;
    (word & FLAGS == IS_MMAPPED && ends_with_page && own >= least && own - least <= MAX_MAPPED_SLACK)
        .then_some(Place::Mapped)
}

/// Whether the chunk is free by what the chunk behind it says.
fn is_free(memory: &dyn VirtualMemory, chunk: VirtAddr, size: u64) -> bool {
    let Some(next) = chunk.checked_add(size) else { return false };
    let says_free = self::size(memory, next).is_some_and(|(_, before_in_use)| !before_in_use);
    says_free && memory.word(next, 0) == Ok(size)
}

/// Where a block is if its own chunk tells that it is free.
fn place(memory: &dyn VirtualMemory, block: Block) -> Option<Place> {
    let (chunk, least) = (block.chunk()?, block.chunk_size()?);
    let (size, _) = size(memory, chunk).filter(|(size, _)| *size >= least)?;
    if is_free(memory, chunk, size) {
        return Some(Place::Listed(if size >= LARGE { 32 } else { 16 }));
    }
    let is_own = size <= MAX_CACHED && size - least <= MAX_SLACK;
    if is_own { cached(memory, block.start, size).map(Place::Listed) } else { None }
}

/// Bytes at the begin of a block that link it to others of its size in a list whose chunks count as in use; `None` if it is in none.
fn cached(memory: &dyn VirtualMemory, start: VirtAddr, size: u64) -> Option<u64> {
    let (next, key) = (memory.word(start, 0).ok()?, memory.word(start, SIZE.cast_signed()).ok()?);
    // From 2.32 on, the address is combined with its own place (`PROTECT_PTR`).
    let (page, clear) = (start.0 >> 12, next ^ (start.0 >> 12));
    let has_size = |other: VirtAddr| self::size(memory, other).is_some_and(|(found, _)| found == size);
    let same_key = |other: u64| {
        let chunk = other.checked_sub(HEAD).filter(|chunk| chunk.is_multiple_of(ALIGN)).map(VirtAddr);
        chunk.is_some_and(has_size) && memory.word(VirtAddr(other), SIZE.cast_signed()) == Ok(key)
    };
    // The lists of a thread are in a chunk of its heap, and before 2.34 the key is the address of that.
    let is_of_lists = || key.checked_sub(HEAD).is_some_and(|lists| self::size(memory, VirtAddr(lists)).is_some());
    if key != 0 && (next == page || same_key(clear) || same_key(next) || (next == 0 && is_of_lists())) {
        return Some(16);
    }
    // The lists of fast bins lead from chunk to chunk, and have no key.
    let is_chunk = |other: u64| other != 0 && other.is_multiple_of(ALIGN) && has_size(VirtAddr(other));
    (next == page || is_chunk(clear)).then_some(SIZE)
}

/// The bytes that the allocator may have written over; `None` if these are all, or can't be told.
fn overwritten(memory: &dyn VirtualMemory, block: Block, place: &Place) -> Option<Vec<(VirtAddr, VirtAddr)>> {
    let (end, size) = (block.end()?, block.chunk_size()?);
    let links = match *place {
        Place::Listed(links) => links,
        Place::Within => left_over(memory, block.start, size),
        Place::Mapped => return Some(Vec::new()),
    };
    let links = (links > 0).then_some((block.start.0, block.start.0.checked_add(links)?.min(end)));
    // The size of a free chunk is over the first word of the next one, which may be the last of its own block.
    let foot = block.start.0.checked_add(size - HEAD)?;
    let foot = (foot < end).then_some((foot, end));
    let overwritten: Vec<_> = links.into_iter().chain(foot).map(|(from, to)| (VirtAddr(from), VirtAddr(to))).collect();
    let lost: u64 = overwritten.iter().map(|(from, to)| to.0 - from.0).sum();
    (lost < block.bytes).then_some(overwritten)
}

/// Bytes that a list seems to have left at the begin of a block: two words that are the addresses of chunks, or one that is such an
/// address combined with its own place.
fn left_over(memory: &dyn VirtualMemory, start: VirtAddr, size: u64) -> u64 {
    let [first, second] = [0, SIZE].map(|offset| memory.word(start, offset.cast_signed()).unwrap_or_default());
    let clear = first ^ (start.0 >> 12);
    let is_combined = first <= USER_POINTER_MAX && clear.is_multiple_of(ALIGN) && size <= MAX_CACHED;
    if is_pointer(first) && is_pointer(second) {
        2 * HEAD
    } else if is_combined {
        HEAD
    } else {
        0
    }
}

fn is_pointer(word: u64) -> bool {
    is_user_pointer(word) && word.is_multiple_of(8)
}

/// Whether a block has been used for objects since, or was split: these leave addresses behind.
fn holds_pointers(memory: &dyn VirtualMemory, block: Block, overwritten: &[(VirtAddr, VirtAddr)]) -> bool {
    let links = overwritten.first().filter(|(start, _)| *start == block.start);
    let (mut at, end) = (links.map_or(block.start, |(_, end)| *end).0, block.end().unwrap_or_default());
    while at < end {
        // What can't be read is a hole.
        let Ok(bytes) = memory.bytes_at(VirtAddr(at)) else {
            at = (at | 0xfff) + 1;
            continue;
        };
        let bytes = bytes.get(..(end - at).min(bytes.len() as u64) as usize).unwrap_or(bytes);
        let words = bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word));
        let mut pointers = words.filter(|word| is_pointer(*word));
        if pointers.any(|word| memory.bytes_at(VirtAddr(word)).is_ok()) {
            return true;
        }
        at = at.saturating_add((bytes.len() as u64).max(1));
    }
    false
}

/// A walk along the chunks of the heap, upwards.
struct Walk<'m> {
    memory: &'m dyn VirtualMemory,
    /// The chunk that was reached.
    at: Option<VirtAddr>,
    steps: usize,
}

impl Walk<'_> {
    /// Whether a block lies in a larger chunk that is free, and its own chunk is still to be seen there. `known` are blocks from which
    /// the walk can begin.
    fn within(&mut self, block: Block, known: &[VirtAddr]) -> Option<Place> {
        let (chunk, end) = (block.chunk()?, block.end()?);
        let Some(Place::Within) = own_chunk(self.memory, block) else { return None };
        let before = known.partition_point(|known| *known <= chunk).checked_sub(1);
        let known = before.and_then(|index| known.get(index)?.0.checked_sub(HEAD)).map(VirtAddr);
        self.at = self.at.filter(|at| *at <= chunk).max(known);
        while let Some(at) = self.at {
            let (size, _) = size(self.memory, at)?;
            let next = at.checked_add(size)?;
            if next > chunk {
                let is_whole = next.0 >= end && (is_free(self.memory, at, size) || self.is_top(next));
                return is_whole.then_some(Place::Within);
            }
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return None;
            }
            self.at = Some(next);
        }
        None
    }

    /// Whether a chunk that ends there is the last of its heap: what has not been given out yet.
    fn is_top(&self, end: VirtAddr) -> bool {
        end.in_frame() == 0 && self.memory.bytes_at(end).is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::Fault;

    const START: u64 = 0x5566_7788_9000;
    const KEY: u64 = 0x4350_2617_2489_208c;

    /// A heap of two pages, filled with chunks from its start on.
    struct Arena {
        bytes: Vec<u8>,
        next: usize,
    }

    impl VirtualMemory for Arena {
        fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
            let offset = va.0.checked_sub(START).map(|offset| offset as usize);
            let bytes = offset.and_then(|offset| self.bytes.get(offset..)).filter(|bytes| !bytes.is_empty());
            bytes.ok_or(Fault::NotInFreed { va })
        }
    }

    impl Arena {
        fn new() -> Self {
            Self { bytes: vec![0; 0x2000], next: 0 }
        }

        fn put(&mut self, at: u64, word: u64) {
            let offset = (at - START) as usize;
            self.bytes[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
        }

        /// What `malloc` returns, filled with bytes that are no address.
        fn alloc(&mut self, bytes: u64) -> Block {
            let block = Block { start: VirtAddr(START + self.next as u64 + HEAD), bytes };
            let size = block.chunk_size().unwrap();
            self.put(block.start.0 - SIZE, size | PREV_INUSE);
            let data = self.next + HEAD as usize;
            self.bytes[data..data + bytes as usize].fill(0xbd);
            self.next += size as usize;
            block
        }

        /// What has not been given out is one chunk.
        fn end(&mut self) {
            let left = (self.bytes.len() - self.next) as u64;
            self.put(START + self.next as u64 + SIZE, left | PREV_INUSE);
        }

        /// Frees all from the first to the last of two blocks as one chunk, in a list of such.
        fn free(&mut self, first: Block, last: Block) {
            let chunk = first.start.0 - HEAD;
            let next = last.start.0 - HEAD + last.chunk_size().unwrap();
            self.put(chunk + SIZE, (next - chunk) | PREV_INUSE);
            self.put(next, next - chunk);
            let word = u64::from_le_bytes(*self.bytes[(next + SIZE - START) as usize..].first_chunk().unwrap());
            self.put(next + SIZE, word & !PREV_INUSE);
            self.put(first.start.0, START + 0x10);
            self.put(first.start.0 + 8, START + 0x20);
        }

        fn freed(&self, block: Block, known: &[Block]) -> Option<Vec<(u64, u64)>> {
            let known: Vec<VirtAddr> = known.iter().map(|block| block.start).collect();
            let found = freed(self, &[block], &Heap::Used(&known)).pop().flatten()?;
            // As offsets in the block.
            let offset = |at: VirtAddr| at.0 - block.start.0;
            Some(found.overwritten.iter().map(|(from, to)| (offset(*from), offset(*to))).collect())
        }
    }

    #[test]
    fn a_chunk_in_a_list_has_links_over_its_first_words() {
        for (bytes, overwritten) in [
            (480, vec![(0, 16)]),
            // The last words are where the size of the chunk is repeated.
            (484, vec![(0, 16), (480, 484)]),
            (488, vec![(0, 16), (480, 488)]),
            (2100, vec![(0, 32), (2096, 2100)]),
        ] {
            let mut arena = Arena::new();
            let [before, block, after] = [64, bytes, 64].map(|bytes| arena.alloc(bytes));
            arena.end();
            assert_eq!(arena.freed(block, &[before]), None, "in use");
            arena.free(block, block);
            assert_eq!(arena.freed(block, &[]), Some(overwritten), "{bytes} bytes");
            assert_eq!(arena.freed(Block { bytes: bytes + 64, ..block }, &[]), None, "too large for the chunk");
            assert_eq!(arena.freed(before, &[]), None);
            assert_eq!(arena.freed(after, &[]), None);
        }
    }

    #[test]
    fn a_block_in_a_larger_free_chunk_is_found_from_a_block_in_use() {
        let mut arena = Arena::new();
        let [used, first, block, last, _] = [64, 200, 480, 200, 64].map(|bytes| arena.alloc(bytes));
        arena.end();
        arena.free(first, last);
        assert_eq!(arena.freed(block, &[]), None, "nothing leads to the chunk");
        assert_eq!(arena.freed(block, &[used]), Some(vec![]));
        // It had been in lists by itself.
        arena.put(block.start.0, START + 0x10);
        arena.put(block.start.0 + 8, START + 0x20);
        assert_eq!(arena.freed(block, &[used]), Some(vec![(0, 32)]));
        arena.put(block.start.0, (block.start.0 >> 12) ^ first.start.0);
        arena.put(block.start.0 + 8, 0xbdbd_bdbd_bdbd_bdbd);
        assert_eq!(arena.freed(block, &[used]), Some(vec![(0, 16)]));
        // Another chunk was made of a part of the larger one: the size is gone.
        arena.put(block.start.0 - SIZE, 0xbdbd_bdbd_bdbd_bdbd);
        assert_eq!(arena.freed(block, &[used]), None);
    }

    #[test]
    fn a_block_in_what_has_not_been_given_out_is_free() {
        let mut arena = Arena::new();
        let [used, block] = [64, 480].map(|bytes| arena.alloc(bytes));
        let chunk = block.start.0 - HEAD;
        arena.end();
        assert_eq!(arena.freed(block, &[used]), None, "in use");
        // The chunk before it was free at that time, so that its size stayed.
        arena.put(used.start.0 - HEAD + SIZE, (START + 0x2000 - (used.start.0 - HEAD)) | PREV_INUSE);
        assert_eq!(arena.freed(block, &[used]), Some(vec![]));
        arena.put(used.start.0 - HEAD + SIZE, (chunk - (used.start.0 - HEAD) + 0x100) | PREV_INUSE);
        assert_eq!(arena.freed(block, &[used]), None, "the chunk ends within it");
    }

    #[test]
    fn nothing_is_in_use_when_the_process_has_ended() {
        let mut arena = Arena::new();
        let [block, _] = [480, 64].map(|bytes| arena.alloc(bytes));
        arena.end();
        let ended = |arena: &Arena, block: Block| {
            let found = freed(arena, &[block], &Heap::Ended).pop().flatten()?;
            Some(found.overwritten.len())
        };
        assert_eq!(arena.freed(block, &[]), None);
        assert_eq!(ended(&arena, block), Some(0));
        assert_eq!(ended(&arena, Block { bytes: 440, ..block }), None, "the chunk is too large for it");
        // A chunk with pages of its own, whose start is aligned.
        let own = Block { start: VirtAddr(START + 0x40), bytes: 0x1f00 };
        let mut arena = Arena::new();
        arena.put(own.start.0 - SIZE, 0x1fd0 | IS_MMAPPED);
        assert_eq!(ended(&arena, own), Some(0));
        assert_eq!(arena.freed(own, &[]), None, "it is in use as long as it is there");
        arena.put(own.start.0 - SIZE, 0x1fc0 | IS_MMAPPED);
        assert_eq!(ended(&arena, own), None, "it does not end with a page");
    }

    #[test]
    fn chunks_of_small_lists_count_as_in_use_and_are_known_by_their_links() {
        let mut arena = Arena::new();
        let [block, other, small, _] = [480, 480, 100, 64].map(|bytes| arena.alloc(bytes));
        arena.end();
        let combined = |at: Block, next: u64| (at.start.0 >> 12) ^ next;
        for (next, key, other_key, found) in [
            (combined(block, other.start.0), KEY, KEY, Some(vec![(0, 16)])),
            (combined(block, 0), KEY, 0, Some(vec![(0, 16)])),
            // Before 2.32, and before 2.34.
            (other.start.0, KEY, KEY, Some(vec![(0, 16)])),
            (0, small.start.0, 0, Some(vec![(0, 16)])),
            (combined(block, other.start.0), KEY, KEY + 8, None),
            (combined(block, small.start.0), KEY, KEY, None),
            (0, KEY, KEY, None),
            (0xbdbd_bdbd_bdbd_bdbd, KEY, KEY, None),
        ] {
            arena.put(block.start.0, next);
            arena.put(block.start.0 + 8, key);
            arena.put(other.start.0 + 8, other_key);
            assert_eq!(arena.freed(block, &[]), found, "{next:#x}, {key:#x}, {other_key:#x}");
        }
        arena.put(small.start.0, combined(small, 0));
        arena.put(small.start.0 + 8, 0);
        assert_eq!(arena.freed(small, &[]), Some(vec![(0, 8), (96, 100)]));
    }

    #[test]
    fn memory_with_addresses_in_it_was_used_again() {
        let mut arena = Arena::new();
        let [block, _] = [480, 64].map(|bytes| arena.alloc(bytes));
        arena.end();
        arena.free(block, block);
        arena.put(block.start.0 + 64, 0x7fff_0000_0000);
        assert_eq!(arena.freed(block, &[]), Some(vec![(0, 16)]), "nothing is there");
        arena.put(block.start.0 + 64, START + 0x100);
        assert_eq!(arena.freed(block, &[]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_content_makes_it_fail(words in proptest::collection::vec(0u64..0x400, 1024), at in 0u64..0x2000, bytes: u64) {
            let mut arena = Arena::new();
            for (offset, word) in words.iter().enumerate() {
                arena.put(START + 8 * offset as u64, if word % 3 == 0 { START + word * 8 } else { *word });
            }
            for bytes in [bytes, bytes % 0x2000] {
                let block = Block { start: VirtAddr(START + at), bytes };
                for heap in [Heap::Used(&[VirtAddr(START + 16)]), Heap::Ended] {
                let found = freed(&arena, &[block], &heap).pop().flatten();
                let lost = found.iter().flat_map(|found| &found.overwritten).map(|(from, to)| to.0 - from.0);
                proptest::prop_assert!(lost.sum::<u64>() <= block.bytes);
                }
            }
        }
    }
}
