//! LiME: ranges of memory back to back, each behind a header of 32 bytes.
//!
//! The header: magic `EMiL`, version 1, first address, last address (inclusive), 8 reserved bytes;
//! all little-endian. Source: LiME, `doc/README.md` and `src/lime.h`.

use std::ops::Range;

use super::coverage::Coverage;
use super::{Contents, DumpErrorKind, Format, MAX_RANGES, MemoryRange};
use crate::addr::{FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};

/// The first four bytes of each header.
pub(super) const MAGIC: [u8; 4] = *b"EMiL";

/// Bytes in a header.
const HEADER_SIZE: u64 = 32;

/// The ranges of a LiME file. A file that ends early or has broken later headers is damaged but not refused: the ranges
/// before the damage are used. There is no search for later headers, because memory can contain LiME headers as well.
pub(super) fn parse(bytes: &[u8]) -> Result<Contents, DumpErrorKind> {
    parse_fetched(bytes, &|_| ())
}

/// The same; `fetch` is called with each part of the file before it is read.
pub(super) fn parse_fetched(bytes: &[u8], fetch: &dyn Fn(Range<u64>)) -> Result<Contents, DumpErrorKind> {
    let size = bytes.len() as u64;
    let mut contents = Contents::default();
    let mut coverage = Coverage::default();
    let mut offset = 0u64;
    let mut headers = 0usize;
    while offset < size {
        fetch(offset..offset.saturating_add(HEADER_SIZE).min(size));
        let (start, end) = match read_header(bytes, offset) {
            Ok(range) => range,
            Err(reason) if headers == 0 => return Err(reason),
            Err(reason) => {
                let lost = size - offset;
                let offset = FileOffset(offset);
                let message = format!("the last {lost} bytes of the file, from offset {offset} on, are lost: {reason}");
                contents.damage(Diagnostic::new(Code::DamagedHeader, Some(offset.into()), message));
                break;
            }
        };
        if headers == MAX_RANGES {
            let (format, offset) = (Format::Lime, FileOffset(offset));
            return Err(DumpErrorKind::TooManyRanges { format, offset, limit: MAX_RANGES });
        }
        headers += 1;
        let data = offset + HEADER_SIZE;
        let claimed = end.0 - start.0;
        let there = claimed.min(size - data);
        let range = MemoryRange { start, end: PhysAddr(start.0 + there), offset: FileOffset(data) };
        if there < claimed {
            let (missing, at) = (claimed - there, range.end);
            let message = format!("the file is {missing} bytes too short: the memory from {at} to {end} is missing");
            contents.damage(Diagnostic::new(Code::CutOff, Some(at.into()), message));
        }
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

/// What the header at this offset announces: first address, and the one after the last. The header lies in the file.
fn read_header(bytes: &[u8], at: u64) -> Result<(PhysAddr, PhysAddr), DumpErrorKind> {
    let offset = FileOffset(at);
    let have = (bytes.len() as u64).saturating_sub(at);
    let here = usize::try_from(at).ok().and_then(|at| bytes.get(at..)?.first_chunk::<{ HEADER_SIZE as usize }>());
    let Some(header) = here else {
        return Err(DumpErrorKind::CutHeader { format: Format::Lime, offset, need: HEADER_SIZE, have });
    };
    let words: [u64; 4] = bytemuck::pod_read_unaligned(header);
    let [mark, start, last, _reserved] = words.map(u64::from_le);
    let (magic, version) = (mark as u32, (mark >> 32) as u32);
    if magic != u32::from_le_bytes(MAGIC) {
        return Err(DumpErrorKind::LimeMagic { offset, found: magic });
    }
    if version != 1 {
        return Err(DumpErrorKind::LimeVersion { offset, version });
    }
    match last.checked_add(1) {
        Some(end) if start < end => Ok((PhysAddr(start), PhysAddr(end))),
        _ => Err(DumpErrorKind::LimeRange { offset, start: PhysAddr(start), end: PhysAddr(last) }),
    }
}

impl Contents {
    /// Notes that something announced is missing.
    pub(super) fn damage(&mut self, diagnostic: Diagnostic) {
        self.warnings.push(diagnostic);
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
        let [cut] = &contents.warnings[..] else { panic!("{:?}", contents.warnings) };
        assert_eq!((cut.code, cut.address), (Code::CutOff, Some(PhysAddr(0x800c).into())), "{cut}");
        assert!(cut.message.contains("4 bytes too short"), "{cut}");
    }

    #[test]
    fn a_cut_or_bad_later_header_keeps_the_ranges_before() {
        let mut version = range(0x9000, 32);
        version[4] = 2;
        for (tail, why) in [
            (&header(0, 9)[..9], "needs 32 bytes, but only 9 are left"),
            (&[b'x'; 64][..], "expected the magic 0x4c694d45, found 0x78787878"),
            (&version, "has version 2, expected 1"),
            (&[header(0x9000, 0x8000), vec![0; 32]].concat(), "claims memory from 0x9000 to 0x8000"),
            (&header(0x9000, u64::MAX), "claims memory from 0x9000 to 0xffffffffffffffff"),
        ] {
            let contents = parse(&[&range(0x1000, 0x20), tail].concat()).unwrap();
            assert_eq!((contents.ranges.len(), contents.damaged), (1, true));
            let lost = format!("the last {} bytes of the file, from offset 0x40 on, are lost", tail.len());
            let warning = contents.warnings[0].to_string();
            assert!(warning.contains(&lost) && warning.contains(why), "{warning}");
            assert!(!warning.contains("take the dump"), "{warning}");
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        assert!(matches!(
            parse(&header(0x9000, 0x8000)),
            Err(DumpErrorKind::LimeRange { offset: FileOffset(0), start: PhysAddr(0x9000), end: PhysAddr(0x8000) })
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
