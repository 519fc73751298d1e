//! How many bytes a compressed file unpacks to, as far as that can be told without unpacking it.

use super::Compression;

/// At least how many bytes `file` unpacks to, or `None` where it does not say.
///
/// Exact for zstd and xz, but for a zstd file that was written by a pipe: there each block counts
/// for the most that it may hold, which all but the last of a frame do. For gzip a lower bound: the
/// size in its trailer is modulo 2³², and of the last member only. Nothing more than a hint, since
/// a hostile file says what it likes: unpacking checks for itself.
pub(super) fn unpacked_size(compression: Compression, file: &[u8]) -> Option<u64> {
    match compression {
        Compression::Zstd => match zstd::zstd_safe::find_decompressed_size(file) {
            Ok(Some(size)) => Some(size),
            _ => zstd::zstd_safe::decompress_bound(file).ok(),
        },
        Compression::Gzip => file.last_chunk::<4>().map(|size| u64::from(u32::from_le_bytes(*size))),
        Compression::Xz => xz_size(file),
        Compression::Zlib => None,
    }
}

/// Bytes in the header, and in the footer, of an xz stream.
const XZ_EDGE: usize = 12;

/// The sum over all streams of an xz file, read from the indexes at their ends, the last first.
/// Source: the .xz file format 1.2.1, sections 2.1.2 (footer) and 4 (index).
fn xz_size(file: &[u8]) -> Option<u64> {
    let mut rest = file;
    let mut total = 0u64;
    while !rest.is_empty() {
        // Padding between streams is of zeros, four at a time.
        if let Some((before, [0, 0, 0, 0])) = rest.split_last_chunk::<4>() {
            rest = before;
            continue;
        }
        let (before, footer) = rest.split_last_chunk::<XZ_EDGE>()?;
        let [_, _, _, _, s0, s1, s2, s3, _, _, b'Y', b'Z'] = *footer else {
            return None;
        };
        let index_size = (u64::from(u32::from_le_bytes([s0, s1, s2, s3])) + 1) * 4;
        let index_start = before.len().checked_sub(usize::try_from(index_size).ok()?)?;
        let (before, index) = before.split_at_checked(index_start)?;
        let (blocks, unpacked) = xz_index(index)?;
        total = total.checked_add(unpacked)?;
        let start = before.len().checked_sub(usize::try_from(blocks).ok()?)?.checked_sub(XZ_EDGE)?;
        rest = before.get(..start)?;
    }
    Some(total)
}

/// The bytes of all blocks of one stream: packed, with their padding, and unpacked.
fn xz_index(index: &[u8]) -> Option<(u64, u64)> {
    let (0, mut fields) = index.split_first()? else {
        return None;
    };
    let records = xz_number(&mut fields)?;
    let (mut packed, mut unpacked) = (0u64, 0u64);
    // As hostile as the count may be, each turn uses up at least two bytes of the index.
    for _ in 0..records {
        packed = packed.checked_add(xz_number(&mut fields)?.checked_next_multiple_of(4)?)?;
        unpacked = unpacked.checked_add(xz_number(&mut fields)?)?;
    }
    Some((packed, unpacked))
}

/// A number of 7 bits per byte, the lowest first, of at most nine bytes.
fn xz_number(fields: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = fields.split_first()?;
        *fields = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn xz(content: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn xz_streams_add_up() {
        let file = [xz(&[1; 100_000]), vec![0; 8], xz(b"x"), xz(b"")].concat();
        assert_eq!(unpacked_size(Compression::Xz, &file), Some(100_001));
        assert_eq!(unpacked_size(Compression::Xz, &file[..file.len() - 5]), None);
    }

    #[test]
    fn zstd_frames_add_up() {
        let sized = zstd::bulk::compress(&[1; 100_000], 1).unwrap();
        assert_eq!(unpacked_size(Compression::Zstd, &sized.repeat(3)), Some(300_000));
        let piped = zstd::stream::encode_all(&[1; 100_000][..], 1).unwrap();
        assert!(unpacked_size(Compression::Zstd, &piped).unwrap() >= 100_000);
        assert_eq!(unpacked_size(Compression::Zstd, &sized[..sized.len() - 1]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80), index in 0u8..20) {
            for compression in [Compression::Zstd, Compression::Gzip, Compression::Xz] {
                let _ = unpacked_size(compression, &bytes);
            }
            let footer = [0, 0, 0, 0, index, 0, 0, 0, 0, 1, b'Y', b'Z'];
            let _ = unpacked_size(Compression::Xz, &[bytes.clone(), footer.to_vec()].concat());
            let _ = xz_index(&[&[0], &bytes[..]].concat());
        }
    }
}
