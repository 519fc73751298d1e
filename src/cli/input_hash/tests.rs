//! Hashes of files: against digests that others published or computed.

use std::fs;

use sha2::{Digest, Sha256};

use super::*;
use crate::cli::args::VerbosityArgs;

const ALL: [Algorithm; 4] = [Algorithm::Blake3, Algorithm::Sha256, Algorithm::Md5, Algorithm::Sha256Pieces(16 << 20)];

fn hash(file: &File, algorithms: &[Algorithm], width: usize) -> io::Result<Hashed> {
    let silent = VerbosityArgs { verbose: false, quiet: true, no_progress: true };
    InputHash::start(file, algorithms, width)?.finish(&Progress::new(&silent))
}

fn hash_bytes(bytes: &[u8], algorithms: &[Algorithm], width: usize) -> Hashed {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    hash(&File::open(file.path()).unwrap(), algorithms, width).unwrap()
}

#[test]
fn hashes_as_everybody_does() {
    let hashed = hash_bytes(b"abc", &ALL, 2);
    let digests: Vec<_> = hashed.hashes.iter().map(|hash| (hash.algorithm, hash.digest.as_deref())).collect();
    let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let expected = [
        ("blake3", Some("6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85")),
        ("sha256", Some(sha256)),
        ("md5", Some("900150983cd24fb0d6963f7d28e17f72")),
        ("sha256-pieces", None),
    ];
    assert_eq!((digests.as_slice(), hashed.bytes), (&expected[..], 3));
    let pieces: Vec<_> = hashed.hashes.iter().flat_map(|hash| &hash.pieces).collect();
    let [piece] = pieces[..] else { panic!("{pieces:?}") };
    assert_eq!((piece.offset, piece.length, piece.digest.as_str()), (0, 3, sha256));
}

/// Sizes around those at which another part or another level of the tree begins.
#[test]
fn parts_in_any_number_make_the_hash_of_the_whole() {
    const PART: usize = 8 << 20;
    let bytes: Vec<u8> = (0..5 * PART + 1).map(|at| (at ^ at >> 9) as u8).collect();
    for len in [0, 1, 1024, PART - 1, PART, PART + 1, 2 * PART, 3 * PART - 1, 3 * PART, 4 * PART + 1024, 5 * PART + 1] {
        let bytes = &bytes[..len];
        for width in [1, 3] {
            let hashed = hash_bytes(bytes, &ALL, width);
            let digest = |index: usize| hashed.hashes[index].digest.clone().unwrap();
            assert_eq!(digest(0), blake3::hash(bytes).to_hex().as_str(), "{len}");
            assert_eq!(digest(1), hex::encode(Sha256::digest(bytes)), "{len}");
            assert_eq!(digest(2), hex::encode(md5::Md5::digest(bytes)), "{len}");
            let mut end = 0;
            for piece in &hashed.hashes[3].pieces {
                let part = &bytes[piece.offset as usize..][..piece.length as usize];
                assert_eq!((piece.offset, &piece.digest), (end, &hex::encode(Sha256::digest(part))), "{len}");
                end += piece.length;
            }
            assert_eq!(end, len as u64);
        }
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    assert!(hash(&File::open("/").unwrap(), &ALL, 2).is_err());
    // Cut off after it was measured.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    let parts = Parts::new(Algorithm::Blake3, 64 << 20);
    let (done, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work =
        Work { file: file.reopen().unwrap(), size: 64 << 20, start: Instant::now(), hashes: vec![parts], done, failed };
    file.as_file().set_len(20 << 20).unwrap();
    let error = work.take_all_parts().unwrap_err();
    assert!(error.kind() == io::ErrorKind::UnexpectedEof && error.to_string().contains("0x1400000"), "{error}");
    assert!(work.hashes[0].combine(64 << 20).is_err());
}

#[test]
fn none_stands_alone_and_nothing_is_done_twice() {
    let of = HashChoice::Of;
    let twice = [of(Algorithm::Md5), of(Algorithm::Blake3), of(Algorithm::Md5)];
    assert!(algorithms(&twice).is_ok_and(|it| it == [Algorithm::Md5, Algorithm::Blake3]));
    assert!(algorithms(&[HashChoice::None]).is_ok_and(|it| it.is_empty()));
    assert!(algorithms(&[of(Algorithm::Md5), HashChoice::None]).is_err());
    assert!(hash_bytes(b"abc", &[], 2).hashes.is_empty());
}
