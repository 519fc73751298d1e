//! What is looked for: patterns for all peers from one list, and where they are by the plainest means.

use memchr::memmem;

/// Where something was found: its offset, and the number of the pattern.
pub type Hit = (usize, usize);

pub const FRAME: usize = 4096;
/// Bytes of the six fields of `cpython.type`.
pub const TYPE_SIZE: usize = 48;
/// Its rarest field, `tp_itemsize` = 40, and where it lies: what searchers for bytes look for first.
const ITEMSIZE: [u8; 8] = 40u64.to_le_bytes();
const ITEMSIZE_AT: usize = 0x28;
/// The structure from its second field on, as far as a regular expression over bytes can say it: neither where it
/// lies in its frame nor that a field points to it.
pub const TYPE_REGEX: &str = r".{7}\x00.[\x00-\x10]\x00{6}.{7}\x00.[\x02-\x10]\x00{6}\x28\x00{7}";
/// Where a match of the expression begins in the structure, and how long it is.
const REGEX_AT: usize = 8;
pub const REGEX_LENGTH: usize = TYPE_SIZE - REGEX_AT;

/// The structure of `cpython.toml`, without the needle that follows it there.
pub fn type_signature() -> &'static str {
    let file = include_str!("../../../signatures/cpython.toml");
    file.split_once("[[needle]]").map_or(file, |(structure, _)| structure)
}

/// The list that all needles are from.
pub fn needle_list() -> Vec<Vec<u8>> {
    let lines = include_str!("../../needles.txt").lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| bytes_of_hex(line).unwrap_or_else(|| panic!("needles.txt: {line}"))).collect()
}

fn bytes_of_hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok());
    pairs.collect()
}

/// One task for all peers.
pub enum Job {
    /// Every occurrence of these bytes.
    Needles(Vec<Vec<u8>>),
    /// Every `type` object of CPython that lies in one frame; peers get a pattern for all that a pattern can say.
    TypeByRule,
    /// The same hits, found by hand: peers get the eight bytes of the rarest field, and the program does the rest.
    TypeByField,
}

impl Job {
    pub fn all() -> Vec<Self> {
        let list = needle_list();
        let needles = [1, 20, 200].map(|count| Self::Needles(list[..count].to_vec()));
        needles.into_iter().chain([Self::TypeByRule, Self::TypeByField]).collect()
    }

    pub fn name(&self) -> String {
        match self {
            Self::Needles(needles) => format!("needles-{}", needles.len()),
            Self::TypeByRule => "type-by-rule".to_owned(),
            Self::TypeByField => "type-by-field".to_owned(),
        }
    }

    /// What a peer must find, sorted: every place is looked at, one pattern after the other.
    pub fn expected(&self, bytes: &[u8]) -> Vec<Hit> {
        let mut hits: Vec<Hit> = match self {
            Self::Needles(needles) => needles.iter().zip(0..).flat_map(|(n, id)| occurrences(bytes, n, id)).collect(),
            Self::TypeByRule | Self::TypeByField => {
                (0..bytes.len()).step_by(8).filter(|&at| is_type(bytes, at)).map(|at| (at, 0)).collect()
            }
        };
        hits.sort_unstable();
        hits
    }

    /// The hits behind a match that begins at `at`: all needles there, or the structure around it, if it is one.
    pub fn hits_at<'a>(&'a self, bytes: &'a [u8], at: usize) -> impl Iterator<Item = Hit> + 'a {
        let (needles, base) = match self {
            Self::Needles(needles) => (needles.as_slice(), None),
            Self::TypeByRule => (&[][..], at.checked_sub(REGEX_AT)),
            Self::TypeByField => (&[][..], at.checked_sub(ITEMSIZE_AT)),
        };
        let base = base.filter(|&base| is_type(bytes, base));
        let here = move |needle: &[u8]| bytes[at..].starts_with(needle);
        let needles = needles.iter().zip(0..).filter(move |(needle, _)| here(needle));
        needles.map(move |(_, id)| (at, id)).chain(base.map(|base| (base, 0)))
    }

    /// The byte strings to search for; none where the job is a pattern.
    pub fn literals(&self) -> Option<Vec<&[u8]>> {
        match self {
            Self::Needles(needles) => Some(needles.iter().map(Vec::as_slice).collect()),
            Self::TypeByRule => None,
            Self::TypeByField => Some(vec![&ITEMSIZE]),
        }
    }

    /// Regular expressions for the job; a dot is any byte.
    pub fn expressions(&self) -> Vec<String> {
        let escaped = |literal: &[u8]| literal.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        let literals = self.literals().map(|literals| literals.into_iter().map(escaped).collect());
        literals.unwrap_or_else(|| vec![TYPE_REGEX.to_owned()])
    }
}

/// All occurrences, overlapping ones included.
fn occurrences(bytes: &[u8], needle: &[u8], id: usize) -> Vec<Hit> {
    let finder = memmem::Finder::new(needle);
    let mut from = 0;
    let next = || {
        let at = from + finder.find(&bytes[from..])?;
        from = at + 1;
        Some((at, id))
    };
    std::iter::from_fn(next).collect()
}

/// Whether the six fields of `cpython.type` (see signatures/cpython.toml) hold at `at`, in one frame.
pub fn is_type(bytes: &[u8], at: usize) -> bool {
    if !at.is_multiple_of(8) || at % FRAME + TYPE_SIZE > FRAME || at + TYPE_SIZE > bytes.len() {
        return false;
    }
    let word = |n: usize| bytes[at + n * 8..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let user_pointer = |value| (0x1000..=0xff_ffff_ffff_ffff).contains(&value);
    word(5) == 40
        && (512..=4096).contains(&word(4))
        && user_pointer(word(3))
        && word(2) <= 4096
        && user_pointer(word(1))
        && word(1) % FRAME as u64 == (at % FRAME) as u64
        && word(0) != 0
}
