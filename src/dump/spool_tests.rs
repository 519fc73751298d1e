//! Tests of unpacking: round trips, streams that end early or are damaged, room on the disk.

use std::io::{Seek, Write};

use super::*;

/// Longer than all buffers together, with zeros at both ends and in the middle.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; BUFFER * (BUFFERS + 1) + 77_777];
    for (i, b) in bytes.iter_mut().enumerate().skip(SPARSE * 3 + 5).take(BUFFER) {
        *b = ((i * i) >> 7) as u8;
    }
    bytes[BUFFER * 3..BUFFER * 4 + 9].fill(7);
    bytes
}

fn packed(compression: Compression, content: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Zstd => {
            // As the command line tool writes it; without a checksum, damage may go unseen.
            let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
            compressor.include_checksum(true).unwrap();
            compressor.compress(content).unwrap()
        }
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Xz => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zlib => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
    }
}

fn unpack_here(compression: Compression, input: &[u8]) -> Result<Vec<u8>, DumpErrorKind> {
    let mut file = unpack(compression, input, &std::env::temp_dir(), &|_, _| ())?;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok(bytes)
}

const ALL: [Compression; 4] = [Compression::Zstd, Compression::Gzip, Compression::Xz, Compression::Zlib];

#[test]
fn each_compression_gives_back_what_went_in() {
    let content = content();
    for compression in ALL {
        let once = packed(compression, &content);
        assert!(unpack_here(compression, &once).unwrap() == content, "{compression}");
        if compression != Compression::Zlib {
            let twice = [&once[..], &packed(compression, b"end")].concat();
            assert!(unpack_here(compression, &twice).unwrap() == [&content[..], b"end"].concat(), "{compression}");
        }
    }
}

#[test]
fn a_stream_that_ends_early_is_told_from_a_damaged_one() {
    let content = content();
    for compression in ALL {
        let whole = packed(compression, &content);
        for keep in [whole.len() - 1, whole.len() / 2, 7] {
            match unpack_here(compression, &whole[..keep]) {
                Err(DumpErrorKind::TruncatedCompression { consumed, unpacked, .. }) => {
                    assert!(consumed <= keep as u64 && unpacked <= content.len() as u64);
                }
                other => panic!("{compression} cut to {keep}: {:?}", other.map(|bytes| bytes.len())),
            }
        }
        let mut wrong = whole.clone();
        wrong[whole.len() / 3..whole.len() / 3 + 40].fill(0xff);
        let got = unpack_here(compression, &wrong);
        assert!(matches!(got, Err(DumpErrorKind::DamagedCompression { .. })), "{compression}: {:?}", got.err());
    }
}

#[test]
fn progress_ends_at_the_end() {
    let seen = Cell::new((0, 0));
    let input = packed(Compression::Zstd, &content());
    let file = unpack(Compression::Zstd, &input, &std::env::temp_dir(), &|done, all| {
        assert!(done > seen.get().0);
        seen.set((done, all));
    });
    assert!(file.is_ok());
    assert_eq!(seen.get(), (input.len() as u64, input.len() as u64));
}

#[test]
fn zeros_take_no_room() {
    use std::os::unix::fs::MetadataExt;
    let input = packed(Compression::Zstd, &vec![0; 64 << 20]);
    let file = unpack(Compression::Zstd, &input, &std::env::temp_dir(), &|_, _| ()).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 64 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
}

#[test]
fn room_is_checked_before() {
    // A frame header that claims 2⁶² bytes; no disk has them.
    let mut frame = zstd::bulk::compress(&[1; 70_000], 1).unwrap();
    let size = 70_000u32.to_le_bytes();
    let at = frame.windows(4).position(|w| w == size).unwrap();
    assert_eq!(frame[4] >> 6, 2, "a four-byte size");
    frame[4] |= 0xc0;
    frame.splice(at..at + 4, (1u64 << 62).to_le_bytes());
    match unpack_here(Compression::Zstd, &frame) {
        Err(DumpErrorKind::SpoolSpace { need, free, .. }) => assert!(need == 1 << 62 && free < need),
        other => panic!("{:?}", other.map(|bytes| bytes.len())),
    }
    let gone = unpack(Compression::Zstd, &frame, Path::new("/nowhere"), &|_, _| ());
    assert!(matches!(gone, Err(DumpErrorKind::Spool { .. })));
}
