//! The hashes that `--hash` names, how each cuts the file into parts, and how a part is hashed.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::hazmat::{self, ChainingValue, HasherExt, Mode};
use bytesize::ByteSize;
use sha2::digest::DynDigest;
use tensorcarve::report::{FileHash, PieceHash};

/// Bytes that are read at a time: they must still be in the L2 cache when they are hashed.
const BUFFER: usize = 256 << 10;
/// Bytes of a part of BLAKE3's tree, a power of two. Threads finish their last parts within milliseconds of each other, and
/// the digests of a file of 12 TB need 100 MB.
const BLAKE3_PART: u64 = 8 << 20;
/// The smallest piece: a file of 12 TB has 700,000 of them.
const MIN_PIECE: u64 = 16 << 20;

/// A hash of the whole file, or of its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Algorithm {
    Blake3,
    Sha256,
    Md5,
    /// SHA-256 of each piece of this many bytes.
    Sha256Pieces(u64),
}

/// One word of `--hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum HashChoice {
    None,
    Of(Algorithm),
}

impl FromStr for HashChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Ok(Self::Of(match word.split_once('=') {
            None if word == "none" => return Ok(Self::None),
            None if word == "blake3" => Algorithm::Blake3,
            None if word == "sha256" => Algorithm::Sha256,
            None if word == "md5" => Algorithm::Md5,
            Some((PIECES, size)) => Algorithm::Sha256Pieces(piece_size(size)?),
            _ => return Err(format!("the hashes are blake3, sha256, md5, {PIECES}=SIZE and none")),
        }))
    }
}

const PIECES: &str = "sha256-pieces";

fn piece_size(text: &str) -> Result<u64, String> {
    let parsed: Result<ByteSize, _> = text.parse();
    let size = parsed.map_err(|_| format!("`{text}` is no size: write it as 67108864, 64MiB, 1GiB or 1TiB"))?;
    match size {
        ByteSize(size) if size >= MIN_PIECE => Ok(size),
        _ => Err(format!("a piece must have at least {MIN_PIECE} bytes (16MiB)")),
    }
}

impl Algorithm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
            Self::Sha256Pieces(_) => PIECES,
        }
    }

    /// Bytes of a part; `None` if the hash is one chain over the whole file.
    pub(super) fn part_size(self) -> Option<u64> {
        match self {
            Self::Blake3 => Some(BLAKE3_PART),
            Self::Sha256 | Self::Md5 => None,
            Self::Sha256Pieces(size) => Some(size),
        }
    }

    /// Hashes `part` of a file with `size` bytes, and adds the bytes to `done` on the way.
    pub(super) fn hash_part(self, file: &File, size: u64, part: Range<u64>, done: &AtomicU64) -> io::Result<Box<[u8]>> {
        let mut hasher = match self {
            Self::Blake3 => {
                let mut hasher = blake3::Hasher::new();
                hasher.set_input_offset(part.start);
                PartHasher::Blake3(Box::new(hasher))
            }
            Self::Sha256 | Self::Sha256Pieces(_) => PartHasher::Chain(Box::<sha2::Sha256>::default()),
            Self::Md5 => PartHasher::Chain(Box::<md5::Md5>::default()),
        };
        let mut buffer = vec![0; BUFFER];
        let mut at = part.start;
        while at < part.end {
            let want = usize::try_from(part.end - at).unwrap_or(BUFFER).min(BUFFER);
            // At a place of its own: the cursor is shared with whoever else reads the file.
            match file.read_at(buffer.get_mut(..want).unwrap_or_default(), at) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends at {at:#x}"))),
                Ok(count) => {
                    hasher.update(buffer.get(..count).unwrap_or_default());
                    at += count as u64;
                    done.fetch_add(count as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let digest: Box<[u8]> = match hasher {
            PartHasher::Blake3(hasher) if part == (0..size) => Box::new(*hasher.finalize().as_bytes()),
            PartHasher::Blake3(hasher) => Box::new(hasher.finalize_non_root()),
            PartHasher::Chain(hasher) => hasher.finalize(),
        };
        Ok(digest)
    }

    /// The hash of a file from those of all its parts, in their order.
    pub(super) fn combine(self, size: u64, parts: &[&[u8]]) -> FileHash {
        let (digest, pieces) = match (self, self.part_size()) {
            (Self::Sha256Pieces(_), Some(part_size)) => {
                let piece = |(index, digest): (u64, &&[u8])| {
                    let offset = index * part_size;
                    PieceHash { offset, length: part_size.min(size - offset), digest: hex::encode(digest) }
                };
                (None, (0..).zip(parts).map(piece).collect())
            }
            _ => (whole(parts).map(hex::encode), Vec::new()),
        };
        FileHash { algorithm: self.name(), digest, pieces }
    }
}

/// What hashes the bytes of a part, one after another.
enum PartHasher {
    Blake3(Box<blake3::Hasher>),
    Chain(Box<dyn DynDigest>),
}

impl PartHasher {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
            Self::Chain(hasher) => hasher.update(bytes),
        }
    }
}

/// The digest of the whole file. If there are several parts, they are subtrees of BLAKE3.
fn whole(parts: &[&[u8]]) -> Option<Vec<u8>> {
    match parts {
        [] => None,
        [only] => Some(only.to_vec()),
        _ => {
            let (left, right) = halves(parts)?;
            Some(hazmat::merge_subtrees_root(&subtree(left)?, &subtree(right)?, Mode::Hash).as_bytes().to_vec())
        }
    }
}

/// The chaining value of neighbouring parts, which is not that of the whole tree.
fn subtree(parts: &[&[u8]]) -> Option<ChainingValue> {
    match parts {
        [] => None,
        [only] => (*only).try_into().ok(),
        _ => {
            let (left, right) = halves(parts)?;
            Some(hazmat::merge_subtrees_non_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
        }
    }
}

/// Two or more parts as BLAKE3 divides them: on the left the largest power of two that leaves some on the right.
fn halves<T>(parts: &[T]) -> Option<(&[T], &[T])> {
    parts.split_at_checked(parts.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line() {
        let parse = |word: &str| word.parse::<HashChoice>();
        let expected = [
            ("none", HashChoice::None),
            ("blake3", HashChoice::Of(Algorithm::Blake3)),
            ("sha256", HashChoice::Of(Algorithm::Sha256)),
            ("md5", HashChoice::Of(Algorithm::Md5)),
            ("sha256-pieces=64MiB", HashChoice::Of(Algorithm::Sha256Pieces(64 << 20))),
            ("sha256-pieces=1TiB", HashChoice::Of(Algorithm::Sha256Pieces(1 << 40))),
            ("sha256-pieces=16777216", HashChoice::Of(Algorithm::Sha256Pieces(16 << 20))),
        ];
        for (word, choice) in expected {
            assert_eq!(parse(word), Ok(choice), "{word}");
        }
        for word in ["", "SHA1", "sha256-pieces", "blake3=64MiB", "none=1"] {
            assert!(parse(word).unwrap_err().contains("blake3, sha256, md5, sha256-pieces=SIZE and none"), "{word}");
        }
        for (size, words) in [
            ("", "is no size"),
            ("many", "is no size"),
            ("-64MiB", "is no size"),
            ("0", "at least 16777216 bytes"),
            ("16777215", "at least 16777216 bytes"),
            ("1KiB", "at least 16777216 bytes"),
        ] {
            assert!(parse(&format!("sha256-pieces={size}")).unwrap_err().contains(words), "{size}");
        }
    }
}
