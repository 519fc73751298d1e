//! A structure of the dump whose layout is not known yet.

use crate::addr::VirtAddr;
use crate::paging::VirtualMemory;

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// The bytes of a structure from its start, as far as they can be read.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    pub(crate) at: VirtAddr,
    bytes: Vec<u8>,
}

impl Structure {
    /// Reads at most `len` bytes; the caller bounds them.
    pub(crate) fn read(memory: &dyn VirtualMemory, at: VirtAddr, len: u64) -> Self {
        let mut bytes = Vec::new();
        while let Some(left) = len.checked_sub(bytes.len() as u64).filter(|left| *left > 0) {
            let Some(next) = at.checked_add(bytes.len() as u64) else { break };
            let Ok(piece) = memory.bytes_at(next) else { break };
            bytes.extend(piece.iter().take(usize::try_from(left).unwrap_or(usize::MAX)));
        }
        Self { at, bytes }
    }

    /// The bytes that could be read.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The 64-bit words that could be read.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        self.bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word))
    }

    /// That many 64-bit words from an offset on.
    pub(crate) fn words_at(&self, offset: impl TryInto<usize>, count: u64) -> Option<Vec<u64>> {
        let start: usize = offset.try_into().ok()?;
        let len = usize::try_from(count).ok()?.checked_mul(WORD)?;
        let (words, _) = self.bytes.get(start..start.checked_add(len)?)?.as_chunks();
        Some(words.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// The 64-bit word at an offset.
    pub(crate) fn u64(&self, offset: impl TryInto<usize>) -> Option<u64> {
        self.chunk(offset).map(u64::from_le_bytes)
    }

    /// The 32-bit number at an offset.
    pub(crate) fn u32(&self, offset: impl TryInto<usize>) -> Option<u32> {
        self.chunk(offset).map(u32::from_le_bytes)
    }

    /// The 16-bit number at an offset.
    pub(crate) fn u16(&self, offset: impl TryInto<usize>) -> Option<u16> {
        self.chunk(offset).map(u16::from_le_bytes)
    }

    /// The byte at an offset.
    pub(crate) fn u8(&self, offset: impl TryInto<usize>) -> Option<u8> {
        self.chunk(offset).map(u8::from_le_bytes)
    }

    fn chunk<const N: usize>(&self, offset: impl TryInto<usize>) -> Option<[u8; N]> {
        self.bytes.get(offset.try_into().ok()?..)?.first_chunk().copied()
    }
}

/// The offset of every word of a structure of that many bytes.
pub(crate) fn word_offsets(bytes: i64) -> impl Iterator<Item = i64> + Clone {
    (0..bytes).step_by(WORD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paging::Fault;

    /// Two pieces of memory that touch, and nothing behind them.
    struct Pieces;

    impl VirtualMemory for Pieces {
        fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
            const BYTES: [u8; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20];
            let pieces = [0x1000..0x100c, 0x100c..0x1014];
            let piece = pieces.into_iter().find(|piece| piece.contains(&va.0)).ok_or(Fault::NonCanonical { va })?;
            Ok(&BYTES[(va.0 - 0x1000) as usize..(piece.end - 0x1000) as usize])
        }
    }

    #[test]
    fn what_is_missing_ends_a_structure() {
        let structure = Structure::read(&Pieces, VirtAddr(0x1000), 64);
        assert_eq!(structure.bytes().len(), 20);
        assert_eq!(structure.u64(8), Some(0x100f_0e0d_0c0b_0a09), "a word that is in both pieces");
        assert_eq!(structure.words().collect::<Vec<_>>(), [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09]);
        assert_eq!((structure.u64(16), structure.u32(16)), (None, Some(0x1413_1211)));
        assert_eq!((structure.u16(18), structure.u16(19), structure.u8(19)), (Some(0x1413), None, Some(20)));
        assert_eq!(structure.words_at(0, 2).map(|words| words.len()), Some(2));
        assert_eq!((structure.words_at(0, 3), structure.words_at(8, u64::MAX)), (None, None));
        assert_eq!((structure.u64(-8), structure.u8(u64::MAX)), (None, None));
    }

    #[test]
    fn no_more_is_read_than_asked_for() {
        assert_eq!(Structure::read(&Pieces, VirtAddr(0x1004), 10).bytes(), [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        for (at, len) in [(0x1000, 0), (0x1014, 8), (u64::MAX, u64::MAX)] {
            assert_eq!(Structure::read(&Pieces, VirtAddr(at), len).bytes(), [0u8; 0]);
        }
    }
}
