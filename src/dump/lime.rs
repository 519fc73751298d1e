//! LiME: ranges of memory back to back, each behind a header of 32 bytes.
//!
//! The header: magic `EMiL`, version 1, first address, last address (inclusive), 8 reserved bytes;
//! all little-endian. Source: LiME, `doc/README.md` and `src/lime.h`.

use super::coverage::Coverage;
use super::{Contents, DumpErrorKind, Format, MAX_RANGES, MemoryRange};
use crate::addr::{FileOffset, PhysAddr};

/// The first four bytes of each header.
pub(super) const MAGIC: [u8; 4] = *b"EMiL";

/// Bytes in a header.
const HEADER_SIZE: u64 = 32;

/// One header.
struct Header {
    magic: u32,
    version: u32,
    start: u64,
    /// Last byte of the range, inclusive.
    last: u64,
}

/// The ranges of a LiME file. A file that ends early, or goes on as something else after at least
/// one sound range, is damaged, not refused.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents, DumpErrorKind> {
    let size = bytes.len() as u64;
    let mut contents = Contents::default();
    let mut coverage = Coverage::default();
    let mut offset = 0u64;
    let mut headers = 0usize;
    while offset < size {
        let have = size - offset;
        let Some(header) = read_header(bytes, offset) else {
            if headers == 0 {
                return Err(DumpErrorKind::CutHeader {
                    format: Format::Lime,
                    offset: FileOffset(offset),
                    need: HEADER_SIZE,
                    have,
                });
            }
            contents.warn(format!(
                "the file ends {have} bytes into the 32-byte LiME header at file offset {}: what follows is missing",
                FileOffset(offset)
            ));
            break;
        };
        if header.magic != u32::from_le_bytes(MAGIC) {
            let found = header.magic;
            if headers == 0 {
                return Err(DumpErrorKind::LimeMagic { offset: FileOffset(offset), found });
            }
            contents.warn(format!(
                "no LiME header at file offset {} (expected the magic 0x4c694d45, found {found:#010x}): \
                 the last {have} bytes of the file are not used",
                FileOffset(offset)
            ));
            break;
        }
        let version = header.version;
        if version != 1 {
            return Err(DumpErrorKind::LimeVersion { offset: FileOffset(offset), version });
        }
        if headers == MAX_RANGES {
            return Err(DumpErrorKind::TooManyRanges {
                format: Format::Lime,
                offset: FileOffset(offset),
                limit: MAX_RANGES,
            });
        }
        headers += 1;
        let (start, last) = (header.start, header.last);
        let impossible =
            || DumpErrorKind::LimeRange { offset: FileOffset(offset), start: PhysAddr(start), end: PhysAddr(last) };
        let end = last.checked_add(1).ok_or_else(impossible)?;
        let claimed = end.checked_sub(start).filter(|len| *len > 0).ok_or_else(impossible)?;
        let data = offset + HEADER_SIZE;
        let there = claimed.min(size - data);
        if there < claimed {
            contents.warn(format!(
                "the file ends {} bytes short: the memory from {} to {} is missing",
                claimed - there,
                PhysAddr(start + there),
                PhysAddr(end)
            ));
        }
        let range = MemoryRange { start: PhysAddr(start), end: PhysAddr(start + there), offset: FileOffset(data) };
        coverage.claim(range, &mut contents.ranges);
        offset = data + there;
    }
    contents.warnings.extend(coverage.warning());
    if contents.ranges.is_empty() {
        return Err(DumpErrorKind::NoMemory {
            format: Format::Lime,
            why: "the file ends where its first range begins",
        });
    }
    Ok(contents)
}

fn read_header(bytes: &[u8], offset: u64) -> Option<Header> {
    let start = usize::try_from(offset).ok()?;
    let header = bytes.get(start..start.checked_add(HEADER_SIZE as usize)?)?;
    let words: [u64; 4] = bytemuck::pod_read_unaligned(header);
    let [mark, start, last, _reserved] = words.map(u64::from_le);
    Some(Header { magic: mark as u32, version: (mark >> 32) as u32, start, last })
}

impl Contents {
    /// Notes that something announced is missing.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
        self.damaged = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(start: u64, last: u64) -> Vec<u8> {
        let mut h = Vec::from(*b"EMiL\x01\0\0\0");
        h.extend(start.to_le_bytes());
        h.extend(last.to_le_bytes());
        h.extend([0; 8]);
        h
    }

    fn range(start: u64, len: usize) -> Vec<u8> {
        let mut r = header(start, start + len as u64 - 1);
        r.resize(32 + len, 0xaa);
        r
    }

    #[test]
    fn ranges_follow_each_other() {
        let file = [range(0x1000, 0x20), range(0x8000, 0x10)].concat();
        let contents = parse(&file).unwrap();
        let got: Vec<_> = contents.ranges.iter().map(|r| (r.start.0, r.end.0, r.offset.0)).collect();
        assert_eq!(got, [(0x1000, 0x1020, 32), (0x8000, 0x8010, 96)]);
        assert_eq!((contents.warnings.len(), contents.damaged), (0, false));
    }

    #[test]
    fn a_cut_range_keeps_what_is_there() {
        let file = [range(0x1000, 0x20), range(0x8000, 0x10)].concat();
        let contents = parse(&file[..file.len() - 4]).unwrap();
        assert_eq!(contents.ranges[1].end, PhysAddr(0x800c));
        assert!(contents.damaged);
        assert!(contents.warnings[0].contains("4 bytes short"), "{:?}", contents.warnings);
        assert!(contents.warnings[0].contains("0x800c"), "{:?}", contents.warnings);
    }

    #[test]
    fn a_cut_or_bad_later_header_keeps_the_ranges_before() {
        for tail in [&header(0, 9)[..9], &[b'x'; 64][..]] {
            let contents = parse(&[&range(0x1000, 0x20), tail].concat()).unwrap();
            assert_eq!((contents.ranges.len(), contents.damaged), (1, true));
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        let later = [range(0x1000, 0x20), header(0x9000, 0x8000)].concat();
        assert!(matches!(
            parse(&later),
            Err(DumpErrorKind::LimeRange { offset: FileOffset(64), start: PhysAddr(0x9000), end: PhysAddr(0x8000) })
        ));
        assert!(matches!(parse(&header(0, u64::MAX)), Err(DumpErrorKind::LimeRange { .. })));
        assert!(matches!(parse(&header(1, 0)), Err(DumpErrorKind::LimeRange { .. })));
        assert!(matches!(parse(&header(0, 99)), Err(DumpErrorKind::NoMemory { .. })));
        assert!(matches!(parse(b"EMiL\x01"), Err(DumpErrorKind::CutHeader { need: 32, have: 5, .. })));
        let mut version = range(0, 16);
        version[4] = 2;
        assert!(matches!(parse(&version), Err(DumpErrorKind::LimeVersion { version: 2, .. })));
        assert!(matches!(parse(&[7; 99]), Err(DumpErrorKind::LimeMagic { .. })));
    }

    #[test]
    fn a_million_ranges_are_too_many() {
        let file: Vec<u8> = (0..=MAX_RANGES as u64).flat_map(|i| range(i, 1)).collect();
        assert!(matches!(parse(&file), Err(DumpErrorKind::TooManyRanges { .. })));
        assert_eq!(parse(&file[..33 * MAX_RANGES]).unwrap().ranges.len(), MAX_RANGES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), start: u64, last: u64) {
            let _ = parse(&bytes);
            let _ = parse(&[header(start, last), bytes.clone()].concat());
            let _ = parse(&[range(0, 7), header(start, last), bytes].concat());
        }

        #[test]
        fn sound_files_come_back_as_they_were_written(
            spec in prop::collection::vec((1u64..1000, 1usize..100), 1..20), cut in 0usize..100
        ) {
            let (mut file, mut want, mut at) = (Vec::new(), Vec::new(), 0u64);
            for (gap, len) in spec {
                at += gap;
                let offset = FileOffset(file.len() as u64 + 32);
                want.push(MemoryRange { start: PhysAddr(at), end: PhysAddr(at + len as u64), offset });
                file.extend(range(at, len));
                at += len as u64;
            }
            let contents = parse(&file).unwrap();
            prop_assert_eq!(&contents.ranges, &want);
            prop_assert!(!contents.damaged);
            // Cut anywhere, the ranges all lie inside what is left.
            let left = &file[..file.len().saturating_sub(cut)];
            if let Ok(cut) = parse(left) {
                prop_assert!(cut.ranges.iter().all(|r| r.offset.0 + r.len() <= left.len() as u64));
            }
        }
    }
}
