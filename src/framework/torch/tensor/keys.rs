//! Dispatch keys: a set of bits in a `TensorImpl` that says how PyTorch handles the tensor, and so what its bytes mean.
//! The numbers of the keys change from release to release. The tensors of a process decide which table applies.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Deserialize;

use super::layout::Layout;
use crate::addr::VirtAddr;
use crate::cpython::UNREADABLE;
use crate::layout::{LayoutError, Ranking, release, table};
use crate::paging::VirtualMemory;
use crate::signature;
use crate::tensor::{Flips, Form, Obstacle, ScalarType, TensorInfo};

/// The family of the layout files that number the keys.
const FAMILY: &str = "torch-keys";
/// Maximum number of tensors that vote for a table.
const MAX_VOTERS: usize = 1 << 10;
/// Where the set is looked for in an inferred layout: bytes behind the type of the elements, the usual one first.
const KEY_SET_OFFSETS: [i64; 4] = [8, 16, 0, 24];

/// Types of safetensors in which the highest bit of a number is its sign, and nothing else.
const REAL: [&str; 4] = ["F16", "BF16", "F32", "F64"];
/// The complex type of safetensors; an element is two numbers.
const COMPLEX: &str = "C64";
/// The method of complex tensors that gives the two numbers of each element.
const VIEW_AS_REAL: &str = "view_as_real";

/// What a key says about the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Meaning {
    /// Nothing.
    Plain,
    /// They are the complex conjugates of what lies in the storage.
    Conjugate,
    /// They are the negatives of it.
    Negative,
    /// They are integers that stand for real numbers.
    Quantized,
    /// They are in separate tensors.
    Sparse,
    /// They belong to several tensors of different shapes.
    Nested,
    /// The tensor's class handles it in Python, and it may have no elements of its own.
    Python,
}

/// What the elements of a tensor are, by the keys that an ordinary tensor does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// The names of those keys, in the order of their bits; a key without a name is `bit 57`.
    unusual: Vec<String>,
    /// The elements are the complex conjugates of what lies in the storage (`is_conj()`).
    conjugate: bool,
    /// The elements are the negatives of what lies in the storage (`is_neg()`).
    negative: bool,
    /// The tensor's class handles it in Python (`__torch_dispatch__`).
    pub(super) python: bool,
    /// Its form is named by a key.
    quantized: bool,
    sparse: bool,
    pub(super) nested: bool,
    /// Names of keys that could mean anything.
    unknown: Vec<String>,
    /// The set is not in the dump.
    is_unreadable: bool,
}

/// The dispatch keys of one or several releases.
#[derive(Clone, Debug)]
pub struct KeyTable {
    /// The first of the releases.
    pub version: String,
    releases: Vec<String>,
    /// The names, by bit.
    bits: Vec<String>,
    means: BTreeMap<String, Meaning>,
    /// The sets of ordinary tensors in the computer's own memory.
    ordinary: Vec<u64>,
}

impl KeyTable {
    fn new(layout: &signature::Layout) -> Result<Self, LayoutError> {
        let bits: Vec<String> = table(layout, "bits")?;
        let error = |table, reason| LayoutError::Table { version: layout.version.clone(), table, reason };
        if bits.len() > u64::BITS as usize {
            return Err(error("bits", format!("{} names for 64 bits", bits.len())));
        }
        let named: BTreeMap<Meaning, Vec<String>> = table(layout, "means")?;
        let means = named.into_iter().flat_map(|(meaning, names)| names.into_iter().map(move |name| (name, meaning)));
        let (version, releases) = (layout.version.clone(), table(layout, "releases")?);
        let mut keys = Self { version, releases, bits, means: means.collect(), ordinary: Vec::new() };
        let sets: Vec<Vec<String>> = table(layout, "ordinary")?;
        for names in &sets {
            let set = keys.set(names.iter().map(String::as_str));
            keys.ordinary.push(set.ok_or_else(|| error("ordinary", format!("one of {names:?} is not a key")))?);
        }
        Ok(keys)
    }

    /// The set of the keys of those names; `None` if one is no key of the release.
    pub fn set<'n>(&self, mut names: impl Iterator<Item = &'n str>) -> Option<u64> {
        names.try_fold(0, |set, name| Some(set | 1 << self.bits.iter().position(|bit| bit == name)?))
    }

    /// The same without the names of the keys that mean something else by one of these tables.
    fn without_disagreement<'t>(&self, rivals: impl Iterator<Item = &'t Self>) -> Self {
        let mut agreed = self.clone();
        for rival in rivals {
            for ((bit, name), meant) in agreed.bits.iter_mut().enumerate().zip(&self.bits) {
                let other = rival.bits.get(bit).map_or("nothing", String::as_str);
                let is_listed = name.split(" or ").any(|listed| listed == other);
                if self.means.get(meant) != rival.means.get(other) && !is_listed {
                    *name = format!("{name} or {other}");
                }
            }
        }
        agreed
    }

    /// The sets that ordinary tensors in the computer's own memory have, the most frequent first.
    pub fn ordinary(&self) -> &[u64] {
        &self.ordinary
    }

    /// What a set of keys says.
    fn read(&self, set: u64) -> Keys {
        let mut keys = Keys::default();
        if self.ordinary.contains(&set) {
            return keys;
        }
        for bit in (0..u64::BITS).filter(|bit| set >> bit & 1 == 1) {
            let name = self.bits.get(bit as usize).cloned().unwrap_or_else(|| format!("bit {bit}"));
            match self.means.get(&name) {
                Some(Meaning::Plain) => continue,
                Some(Meaning::Conjugate) => keys.conjugate = true,
                Some(Meaning::Negative) => keys.negative = true,
                Some(Meaning::Quantized) => keys.quantized = true,
                Some(Meaning::Sparse) => keys.sparse = true,
                Some(Meaning::Nested) => keys.nested = true,
                Some(Meaning::Python) => keys.python = true,
                None => keys.unknown.push(name.clone()),
            }
            keys.unusual.push(name);
        }
        keys
    }
}

/// All tables of dispatch keys of a set of signatures, the oldest release first.
///
/// # Errors
/// A table is missing, or has another form.
pub fn key_tables(signatures: &signature::Signatures) -> Result<Vec<KeyTable>, LayoutError> {
    let mut tables = signatures.layouts(FAMILY).map(KeyTable::new).collect::<Result<Vec<_>, _>>()?;
    tables.sort_by_key(|table| release(&table.version));
    Ok(tables)
}

impl Layout {
    /// The same layout with the keys of its release: the table by which most of the `TensorImpl`s have the set of an ordinary
    /// one. Among equals it is the one of PyTorch's own `version` (`1.13.1`), else the newest. No table if no tensor votes for
    /// one, unless the release is known and the layout is not a guess: then what keys mean stays unknown, and is not asked.
    #[must_use]
    pub fn with_keys(
        mut self,
        tables: &[KeyTable],
        memory: &dyn VirtualMemory,
        impls: &[VirtAddr],
        version: Option<&str>,
        is_inferred: bool,
    ) -> Self {
        let votes = |table: &KeyTable, at: i64| {
            let sets = impls.iter().take(MAX_VOTERS).filter_map(|tensor| memory.word(*tensor, at).ok());
            sets.filter(|set| table.ordinary.contains(set)).count()
        };
        let own = version.and_then(release);
        let of_release = |table: &KeyTable| own.is_some() && table.releases.iter().any(|known| release(known) == own);
        let word = self.dtype.offset() & !7;
        let offsets: Vec<i64> = match self.offsets.key_set {
            Some(at) if !is_inferred => vec![at],
            _ => KEY_SET_OFFSETS.iter().map(|offset| word + offset).collect(),
        };
        let candidates = offsets.iter().enumerate().flat_map(|(order, at)| {
            let newest_first = tables.iter().rev();
            newest_first.map(move |table| ((votes(table, *at), of_release(table), Reverse(order)), (*at, table)))
        });
        let ranking: Ranking<_, (i64, &KeyTable)> = candidates.collect();
        let known = ranking.best().filter(|((votes, of_release, _), _)| *votes > 0 || (*of_release && !is_inferred));
        if let Some(((_, of_release, _), (at, table))) = known {
            let oldest_first = ranking.rivals().rev().map(|(_, rival)| *rival);
            self.offsets.key_set = Some(*at);
            self.keys = Some(table.without_disagreement(oldest_first.filter(|_| !of_release)));
        }
        // What they read is held against what this one reads.
        for beside in self.rivals.iter_mut().chain(self.table.as_deref_mut()) {
            beside.keys.clone_from(&self.keys);
        }
        self
    }
}

impl Layout {
    /// The keys of a tensor; none where it is not known what they mean.
    pub(super) fn read_keys(&self, memory: &dyn VirtualMemory, tensor: VirtAddr) -> Keys {
        let Some((at, table)) = self.offsets.key_set.zip(self.keys.as_ref()) else {
            return Keys::default();
        };
        match memory.word(tensor, at) {
            Ok(set) => table.read(set),
            Err(_) => Keys { unusual: vec![UNREADABLE.to_owned()], is_unreadable: true, ..Keys::default() },
        }
    }
}

impl Keys {
    /// A tensor with what its keys say of it: which bits of its elements are flipped, and why its bytes may mean
    /// something else.
    pub(super) fn applied_to(&self, info: TensorInfo) -> TensorInfo {
        let flips = self.flips(&info.dtype).unwrap_or_default();
        TensorInfo { flips, dispatch_keys: self.unusual.clone(), doubt: self.doubt(&info), ..info }
    }

    /// The bits of each element of that type that its value has flipped; `None` if it is not known how the type is negated.
    fn flips(&self, dtype: &ScalarType) -> Option<Flips> {
        if !self.conjugate && !self.negative {
            return Some(Flips::default());
        }
        let Signs { real, imaginary } = Signs::of(dtype)?;
        // A complex number is conjugated by its imaginary part, a real one is its own conjugate.
        let conjugated = if self.conjugate { imaginary } else { 0 };
        let negated = if self.negative { real | imaginary } else { 0 };
        Some(Flips(conjugated ^ negated))
    }

    /// Why the bytes of a tensor with these keys may not be its elements; `None` if nothing says so.
    fn doubt(&self, of: &TensorInfo) -> Option<Obstacle> {
        if self.is_unreadable {
            return Some(Obstacle::UnreadableKeys);
        }
        if !self.unknown.is_empty() {
            return Some(Obstacle::UnknownKeys(self.unknown.clone()));
        }
        if self.python && of.data.0 == 0 && of.form != Form::Nested(None) {
            return Some(Obstacle::PythonDispatch);
        }
        if matches!(of.form, Form::Nested(None) | Form::Short) {
            return None;
        }
        let is_lazy = self.conjugate || self.negative;
        if !self.allow(&of.form) || (is_lazy && of.form != Form::Strided) {
            return Some(Obstacle::OtherForm { keys: self.unusual.clone(), form: of.form.name() });
        }
        (is_lazy && self.flips(&of.dtype).is_none()).then(|| Obstacle::LazyView(of.dtype.name.clone()))
    }

    /// Whether a form is the one that they name, if they name any.
    fn allow(&self, form: &Form) -> bool {
        match form {
            Form::Strided => !self.sparse && !self.nested && !self.quantized,
            Form::Quantized(_) => !self.sparse && !self.nested,
            Form::Sparse(_) => !self.nested && !self.quantized,
            Form::Nested(_) => !self.sparse && !self.quantized,
            Form::Short | Form::Opaque => true,
        }
    }
}

/// The bits that are the signs of the numbers in one element, as a little-endian integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signs {
    /// That of the number, or of the real part.
    real: u128,
    /// That of the imaginary part; zero without one.
    imaginary: u128,
}

impl Signs {
    /// Those of a type; `None` for types whose negative is not told by one bit of each number.
    fn of(dtype: &ScalarType) -> Option<Self> {
        let is_complex = dtype.label() == COMPLEX || dtype.raw.as_ref().is_some_and(|raw| raw.name == VIEW_AS_REAL);
        let size = usize::try_from(dtype.size).ok().filter(|size| *size <= size_of::<u128>() && *size > 0)?;
        let top = |bytes: usize| 1u128 << (8 * bytes - 1);
        if is_complex {
            return Some(Self { real: top(size / 2), imaginary: top(size) });
        }
        REAL.contains(&dtype.label()).then(|| Self { real: top(size), imaginary: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Vec<KeyTable> {
        key_tables(&signature::Signatures::load(None).unwrap()).unwrap()
    }

    fn set(table: &KeyTable, names: &[&str]) -> u64 {
        table.set(names.iter().copied()).unwrap()
    }

    #[test]
    fn ordinary_sets_are_those_of_real_processes() {
        // As torch._C._dispatch_keys(torch.randn(2)).raw_repr() gives them, or the word in a core of that release.
        let real = [("2.6", 0x128_0000_8001u64)];
        for (version, word) in real {
            let table = tables().into_iter().find(|table| table.releases.contains(&version.to_owned())).unwrap();
            assert!(table.ordinary.contains(&word), "{version}");
            assert_eq!(table.read(word), Keys::default());
        }
    }

    #[test]
    fn what_releases_with_the_same_ordinary_tensor_disagree_about_is_unknown() {
        let tables = tables();
        let table = |version: &str| tables.iter().find(|table| table.version == version).unwrap();
        let (old, new) = (table("1.10"), table("1.11"));
        assert_eq!(old.ordinary, new.ordinary);
        let lazy = set(old, &["Conjugate"]);
        assert!(old.read(lazy).conjugate && new.read(lazy).negative);
        let undecided = new.without_disagreement([old, new].into_iter());
        let keys = undecided.read(old.ordinary[0] | lazy);
        assert_eq!(
            (keys.unknown, keys.conjugate, keys.negative),
            (vec!["Negative or Conjugate".to_owned()], false, false)
        );
        assert_eq!(undecided.read(old.ordinary[0]), Keys::default());
    }

    #[test]
    fn keys_without_a_meaning_are_named() {
        for table in tables() {
            let ordinary = *table.ordinary.first().unwrap();
            assert_eq!(table.read(ordinary | 1 << 63).unknown, ["bit 63"], "{}", table.version);
            let batched = table.read(ordinary | set(&table, &["Batched"]));
            assert_eq!((batched.unknown, batched.python), (vec!["Batched".to_owned()], false));
            if table.bits.iter().any(|bit| bit == "Conjugate") {
                let keys = table.read(ordinary | set(&table, &["Conjugate", "Negative"]));
                assert_eq!((keys.conjugate, keys.negative, keys.unknown.len()), (true, true, 0));
                assert_eq!(keys.unusual, ["Conjugate", "Negative"]);
            }
        }
    }
}
