//! What is looked for, as data: structures, needles, page-table rules and struct layouts.
//!
//! The files under `signatures/` are built in; a user's folder adds to them, and replaces what has
//! the same name. `signatures/README.md` explains every key. How things are searched is the
//! business of [`crate::scan`].
//!
//! ```
//! use tensorcarve::signature::Signatures;
//!
//! let signatures = Signatures::load(None)?;
//! let index = signatures.index_of("cpython.type").unwrap();
//! assert_eq!(signatures.name(index), Some("cpython.type"));
//! # Ok::<(), tensorcarve::signature::SignatureError>(())
//! ```

mod builtin;
mod error;
mod folder;
mod layout;
mod mmu;
mod needle;
mod number;
mod structure;

use std::path::Path;

use serde::{Deserialize, Serialize};

use error::{Location, Text};
use layout::{RawLayout, Unresolved};
use mmu::RawMmu;
use needle::RawNeedle;
use structure::RawStructure;

pub use error::{SignatureError, UnknownSignature};
pub use layout::{FieldEntry, Layout};
pub use mmu::{AbsentEntries, Leaf, Mmu, MmuLevel, SpecialTypes, SwapForm};
pub(crate) use mmu::{KernelFacts, SwapSlot};
pub use needle::Needle;
pub use structure::{Field, KERNEL_POINTER_MIN, Structure, Test, USER_POINTER_MAX, USER_POINTER_MIN, is_user_pointer};

/// A set of signatures, checked and ready for a scan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Signatures {
    structures: Vec<Structure>,
    needles: Vec<Needle>,
    mmu: Option<Mmu>,
    /// Those who search memory need none.
    #[serde(skip)]
    layouts: Vec<Layout>,
}

/// One signature, by the index that hits carry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Signature<'a> {
    /// A structure.
    Structure(&'a Structure),
    /// A needle.
    Needle(&'a Needle),
}

impl Signatures {
    /// The built-in signatures, and those of the files (`*.toml`) in `folder` and in the folders right below it. It may be a file as well.
    ///
    /// A structure, needle or layout of the folder replaces the built-in one of the same name
    /// (family and version for layouts); an `[mmu]` replaces the built-in one.
    pub fn load(folder: Option<&Path>) -> Result<Self, SignatureError> {
        let mut collection = Collection::default();
        for (file, text) in builtin::SIGNATURES.iter().chain(builtin::LAYOUTS) {
            collection.add(Text { file, text })?;
        }
        if let Some(folder) = folder {
            collection.next_origin();
            for (path, text) in folder::read(folder)? {
                collection.add(Text { file: &path, text: &text })?;
            }
        }
        collection.finish()
    }

    /// The signatures of these files alone, given as name (for messages) and text.
    pub fn from_texts<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, SignatureError> {
        let mut collection = Collection::default();
        for (file, text) in files {
            collection.add(Text { file, text })?;
        }
        collection.finish()
    }

    /// The structures; the position is the index of the signature.
    pub fn structures(&self) -> &[Structure] {
        &self.structures
    }

    /// The needles; their indices follow those of the structures.
    pub fn needles(&self) -> &[Needle] {
        &self.needles
    }

    /// The rules by which frames are typed as page tables.
    pub fn mmu(&self) -> Option<&Mmu> {
        self.mmu.as_ref()
    }

    /// These signatures without all that is not a rule of page tables.
    pub fn mmu_only(&self) -> Self {
        Self { mmu: self.mmu.clone(), ..Self::default() }
    }

    /// These signatures with other rules of page tables.
    pub fn with_mmu(&self, mmu: Mmu) -> Self {
        Self { mmu: Some(mmu), ..self.clone() }
    }

    /// These structures and needles without all others, and without the rules of page tables.
    ///
    /// # Errors
    /// One of the names is none of ours.
    pub fn only(&self, names: &[String]) -> Result<Self, UnknownSignature> {
        if let Some(unknown) = names.iter().find(|name| self.index_of(name).is_none()) {
            let known = (0..).map_while(|index| self.name(index)).map(str::to_owned).collect();
            return Err(UnknownSignature { name: unknown.clone(), known });
        }
        let structures = self.structures.iter().filter(|structure| names.contains(&structure.name));
        let needles = self.needles.iter().filter(|needle| names.contains(&needle.name));
        Ok(Self { structures: structures.cloned().collect(), needles: needles.cloned().collect(), ..Self::default() })
    }

    /// The layouts of a family, sorted by version as text.
    pub fn layouts(&self, family: &str) -> impl Iterator<Item = &Layout> {
        self.layouts.iter().filter(move |layout| layout.family == family)
    }

    /// The signature with that index.
    pub fn get(&self, index: u16) -> Option<Signature<'_>> {
        let index = usize::from(index);
        let needle = || self.needles.get(index - self.structures.len()).map(Signature::Needle);
        self.structures.get(index).map(Signature::Structure).or_else(needle)
    }

    /// The name of the signature with that index.
    pub fn name(&self, index: u16) -> Option<&str> {
        self.get(index).map(|signature| match signature {
            Signature::Structure(structure) => structure.name.as_str(),
            Signature::Needle(needle) => needle.name.as_str(),
        })
    }

    /// The index of the signature of that name, which its hits carry.
    pub fn index_of(&self, name: &str) -> Option<u16> {
        let names = self.structures.iter().map(|s| &s.name).chain(self.needles.iter().map(|n| &n.name));
        names.zip(0..).find_map(|(have, index)| (have == name).then_some(index))
    }
}

/// One signature file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    structure: Vec<RawStructure>,
    #[serde(default)]
    needle: Vec<RawNeedle>,
    mmu: Option<RawMmu>,
    layout: Option<RawLayout>,
}

/// Something of a file, with where it stands and which origin it is from.
struct Sourced<T> {
    item: T,
    location: Location,
    origin: u32,
}

/// Signatures as they come in, file by file.
#[derive(Default)]
struct Collection {
    /// Names are unique within an origin; a later origin replaces what an earlier one said.
    origin: u32,
    structures: Vec<Sourced<Structure>>,
    needles: Vec<Sourced<Needle>>,
    mmu: Option<Sourced<Mmu>>,
    layouts: Vec<Sourced<Unresolved>>,
}

impl Collection {
    fn next_origin(&mut self) {
        self.origin += 1;
    }

    fn add(&mut self, text: Text<'_>) -> Result<(), SignatureError> {
        let raw: RawFile = toml::from_str(text.text)
            .map_err(|error| text.error(error.span().unwrap_or(0..0), error.message().trim_end()))?;
        let origin = self.origin;
        for structure in raw.structure {
            let (item, location) = structure.check(text)?;
            self.check_other_kind(&item.name, &location, self.needles.iter().map(|n| (&n.item.name, &n.location)))?;
            insert(&mut self.structures, Sourced { item, location, origin }, |s| s.name.clone())?;
        }
        for needle in raw.needle {
            let (item, location) = needle.check(text)?;
            let structures = self.structures.iter().map(|s| (&s.item.name, &s.location));
            self.check_other_kind(&item.name, &location, structures)?;
            insert(&mut self.needles, Sourced { item, location, origin }, |n| n.name.clone())?;
        }
        if let Some(mmu) = raw.mmu {
            let location = text.at(mmu.name.span());
            if let Some(earlier) = self.mmu.as_ref().filter(|earlier| earlier.origin == origin) {
                return Err(location.error(format!("page-table rules are also given in {}", earlier.location.short())));
            }
            self.mmu = Some(Sourced { item: mmu.check(text)?, location, origin });
        }
        if let Some(layout) = raw.layout {
            let item = layout.check(text)?;
            let location = item.location.clone();
            insert(&mut self.layouts, Sourced { item, location, origin }, Unresolved::key)?;
        }
        Ok(())
    }

    /// Structures and needles share their names: a hit is told by one name.
    fn check_other_kind<'a>(
        &self,
        name: &str,
        location: &Location,
        mut others: impl Iterator<Item = (&'a String, &'a Location)>,
    ) -> Result<(), SignatureError> {
        match others.find(|(other, _)| *other == name) {
            Some((_, other)) => {
                Err(location.error(format!("`{name}` is the name of a signature of another kind in {}", other.short())))
            }
            None => Ok(()),
        }
    }

    fn finish(self) -> Result<Signatures, SignatureError> {
        // Indices of signatures have 16 bits.
        let count = self.structures.len() + self.needles.len();
        if let Some(last) = self.needles.last().map(|n| &n.location).or(self.structures.last().map(|s| &s.location))
            && u16::try_from(count).is_err()
        {
            return Err(last.error(format!("{count} signatures are more than the maximum of {}", u16::MAX)));
        }
        Ok(Signatures {
            structures: self.structures.into_iter().map(|s| s.item).collect(),
            needles: self.needles.into_iter().map(|n| n.item).collect(),
            mmu: self.mmu.map(|m| m.item),
            layouts: layout::resolve(self.layouts.into_iter().map(|l| l.item).collect())?,
        })
    }
}

/// Adds an item, or puts it in the place of the one that it replaces.
fn insert<T, K: PartialEq + std::fmt::Debug>(
    items: &mut Vec<Sourced<T>>,
    new: Sourced<T>,
    key: impl Fn(&T) -> K,
) -> Result<(), SignatureError> {
    match items.iter_mut().find(|have| key(&have.item) == key(&new.item)) {
        Some(have) if have.origin == new.origin => {
            let reason = format!("{:?} is also given in {}", key(&new.item), have.location.short());
            Err(new.location.error(reason))
        }
        Some(have) => {
            *have = new;
            Ok(())
        }
        None => {
            items.push(new);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
