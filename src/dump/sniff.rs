//! What a file is, by its content: a dump, a compressed file, or something else with a name.
//!
//! A raw dump has no magic number: a file of no other kind is raw.

use std::io::Read;

use super::{Compression, DumpErrorKind, Format, elf, foreign, lime};

/// What a file looks like.
#[derive(Debug)]
pub(super) enum Kind {
    /// A dump in a container.
    Dump(Format),
    /// A compressed file that we unpack.
    Compressed(Compression),
    /// Something else, with the reason to refuse it.
    Refused(DumpErrorKind),
    /// No known mark: a raw dump, or nothing.
    Unknown,
}

/// Bytes that are examined: most magic numbers are in the first 4 KiB, and text is recognized by all of the bytes.
pub(super) const SAMPLE: usize = 64 << 10;

/// What the file with these bytes is.
pub(super) fn sniff(bytes: &[u8]) -> Kind {
    let sample = bytes.get(..SAMPLE).unwrap_or(bytes);
    if sample.starts_with(&lime::MAGIC) {
        return Kind::Dump(Format::Lime);
    }
    if sample.starts_with(&elf::MAGIC) {
        return Kind::Dump(Format::Elf);
    }
    if let Some(compression) = compression(sample) {
        return Kind::Compressed(compression);
    }
    foreign::refusal(sample).map_or(Kind::Unknown, Kind::Refused)
}

/// The compression that a file starts with, of those that we unpack.
fn compression(sample: &[u8]) -> Option<Compression> {
    match *sample {
        // A zstd frame, or a skippable one, which pzstd puts in front.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Compression::Zstd),
        // Method 8 is the only one, and the upper three flags are always 0.
        [0x1f, 0x8b, 8, 0..=0x1f, ..] => Some(Compression::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compression::Xz),
        // Two bytes are no proof, so that we look inside.
        [0x78, check, ..] if (0x7800 + u16::from(check)) % 31 == 0 && inflates_to_lime(sample) => {
            Some(Compression::Zlib)
        }
        _ => None,
    }
}

fn inflates_to_lime(sample: &[u8]) -> bool {
    let mut start = [0; 4];
    flate2::bufread::ZlibDecoder::new(sample).read_exact(&mut start).is_ok() && start == lime::MAGIC
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn padded(start: &[u8]) -> Vec<u8> {
        let mut bytes = start.to_vec();
        bytes.resize(8192, 0);
        bytes
    }

    #[test]
    fn other_files_are_named() {
        let jpeg = sniff(&padded(b"\xff\xd8\xff\xe0\0\x10JFIF\0"));
        assert!(matches!(jpeg, Kind::Refused(DumpErrorKind::OtherFile("a JPEG image"))), "{jpeg:?}");
        let pdf = sniff(&padded(b"%PDF-1.7\n"));
        assert!(matches!(pdf, Kind::Refused(DumpErrorKind::OtherFile("a PDF document"))), "{pdf:?}");
        let zip = sniff(&padded(b"PK\x03\x04\x14\0\0\0\x08\0"));
        assert!(matches!(zip, Kind::Refused(DumpErrorKind::Archive("a zip archive"))), "{zip:?}");
        let bz2 = sniff(&padded(b"BZh91AY&SY"));
        assert!(matches!(bz2, Kind::Refused(DumpErrorKind::Archive("a bzip2 file"))), "{bz2:?}");
    }

    #[test]
    fn memory_at_address_0_is_raw() {
        let interrupts = b"\x53\xff\0\xf0\x53\xff\0\xf0\xc3\xe2\0\xf0".repeat(99);
        for start in [&[][..], b"MZ\x90\0", b"\xeb\x63\x90", b"BM", b"\xff\xd8\xff\0", b"\x78\x9c\x01", &interrupts] {
            assert!(matches!(sniff(&padded(start)), Kind::Unknown), "{start:x?}");
        }
    }

    #[test]
    fn compressions_are_told_by_content() {
        let zstd = sniff(&padded(b"\x28\xb5\x2f\xfd"));
        assert!(matches!(zstd, Kind::Compressed(Compression::Zstd)));
        assert!(matches!(sniff(&padded(b"\x1f\x8b\x08\0")), Kind::Compressed(Compression::Gzip)));
        assert!(matches!(sniff(&padded(b"\xfd7zXZ\0")), Kind::Compressed(Compression::Xz)));
        let zlib = |content: &[u8]| {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        };
        assert!(matches!(sniff(&zlib(b"EMiL\x01\0\0\0")), Kind::Compressed(Compression::Zlib)));
        assert!(matches!(sniff(&zlib(&[0; 99])), Kind::Unknown));
    }
}
