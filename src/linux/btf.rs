//! BTF: the kernel's description of its own types, read from the dump.
//!
//! A header, then types one after another, then the strings that they name. Source: include/uapi/linux/btf.h and
//! Documentation/bpf/btf.rst (Linux 6.12). The kernel keeps the types of its core in its image, which is contiguous in
//! physical memory; each module has a small BTF of its own.

use std::collections::HashSet;

use memchr::memmem;

use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;

/// The magic, version 1 and no flags, little-endian.
const MAGIC: [u8; 4] = [0x9f, 0xeb, 0x01, 0x00];
/// Length of the header up to Linux 6.x. A later header may be longer; offsets count from its end.
const HEADER: u32 = 24;
const MAX_HEADER: u32 = 256;
/// Maximum size of the types, and of the strings. Those of the core kernel have 2 to 5 MiB.
const MAX_SECTION: u32 = 64 << 20;
/// Names of types that only the BTF of the core kernel has all of.
const CORE_TYPES: [&str; 3] = ["task_struct", "mm_struct", "vm_area_struct"];
/// Maximum number of nested modifiers and structures that are followed.
const MAX_DEPTH: usize = 32;
/// Maximum number of members that one look-up examines.
const MAX_MEMBERS: usize = 1 << 16;

/// Kinds of types (`BTF_KIND_*`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const POINTER: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const LAST: u32 = 19;
}

/// The number of a type: they count from 1, and 0 is `void`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TypeId(u32);

/// A BTF whose types were all read.
pub(super) struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// The offset of each type in `types`; the first type has number 1.
    starts: Vec<u32>,
}

/// The fields at the start of every type.
#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u32,
    /// Members, parameters or values.
    count: usize,
    /// Whether offsets of members hold the size of a bit field in their upper 8 bits.
    has_bit_fields: bool,
    /// A size in bytes, or the type that this one refers to.
    size_or_type: u32,
    /// The bytes after these fields.
    rest: &'a [u8],
}

/// A member of a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its offset in the structure, in bytes.
    pub(super) offset: u64,
    /// Its type.
    pub(super) type_id: TypeId,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

impl<'a> Btf<'a> {
    /// The BTF of the core kernel at `start`, if it is contiguous and consistent.
    pub(super) fn at(memory: &'a PhysicalMemory, start: PhysAddr) -> Option<Self> {
        let header = memory.bytes(start, u64::from(HEADER))?;
        if !header.starts_with(&MAGIC) {
            return None;
        }
        let [length, type_start, type_length, string_start, string_length] =
            [4, 8, 12, 16, 20].map(|at| u32_at(header, at).unwrap_or(u32::MAX));
        if !(HEADER..=MAX_HEADER).contains(&length) || type_length > MAX_SECTION || string_length > MAX_SECTION {
            return None;
        }
        let section = |offset: u32, len: u32| {
            let begin = start.checked_add(u64::from(length))?.checked_add(u64::from(offset))?;
            memory.bytes(begin, u64::from(len))
        };
        Self::new(section(type_start, type_length)?, section(string_start, string_length)?)
    }

    /// Reads the types; `None` if they are not those of a core kernel, or if the kind of one is unknown.
    fn new(types: &'a [u8], strings: &'a [u8]) -> Option<Self> {
        let mut btf = Self { types, strings, starts: Vec::new() };
        // This check is cheap and rejects most candidates.
        if !CORE_TYPES.iter().all(|name| btf.string_offset(name).is_some()) {
            return None;
        }
        let mut at = 0;
        while at < types.len() {
            let start = u32::try_from(at).ok()?;
            btf.starts.push(start);
            at = at.checked_add(Type::read(types, at)?.len()?)?;
        }
        let is_sound = at == types.len() && CORE_TYPES.iter().all(|name| btf.structure(name).is_some());
        is_sound.then_some(btf)
    }

    /// The offset of a string; each string occurs once.
    fn string_offset(&self, text: &str) -> Option<u32> {
        let wanted = [b"\0", text.as_bytes(), b"\0"].concat();
        let before = memmem::find(self.strings, &wanted)?;
        u32::try_from(before.checked_add(1)?).ok()
    }

    fn text_is(&self, offset: u32, text: &str) -> bool {
        let rest = self.strings.get(offset as usize..).and_then(|rest| rest.strip_prefix(text.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }

    fn get(&self, id: TypeId) -> Option<Type<'a>> {
        let start = self.starts.get(id.0.checked_sub(1)? as usize)?;
        Type::read(self.types, *start as usize)
    }

    /// The structure with that name.
    pub(super) fn structure(&self, name: &str) -> Option<TypeId> {
        let wanted = self.string_offset(name)?;
        let is_it = |start: &u32| {
            u32_at(self.types, *start as usize) == Some(wanted)
                && Type::read(self.types, *start as usize).is_some_and(|found| found.kind == kind::STRUCT)
        };
        let index = self.starts.iter().position(is_it)?;
        u32::try_from(index.checked_add(1)?).ok().map(TypeId)
    }

    /// The type without `typedef`, `const` and other modifiers.
    fn resolve(&self, mut id: TypeId) -> Option<Type<'a>> {
        for _ in 0..MAX_DEPTH {
            let found = self.get(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = TypeId(found.size_or_type);
                }
                _ => return Some(found),
            }
        }
        None
    }

    /// A member by its name, or by a path of names separated by points. Members of anonymous structures and unions are found as
    /// well.
    pub(super) fn member(&self, structure: TypeId, path: &str) -> Option<Member> {
        let mut found = Member { offset: 0, type_id: structure };
        for name in path.split('.') {
            let next = self.own_member(found.type_id, name, MAX_DEPTH, &mut MAX_MEMBERS.clone())?;
            found = Member { offset: found.offset.checked_add(next.offset)?, type_id: next.type_id };
        }
        Some(found)
    }

    fn own_member(&self, of: TypeId, name: &str, depth: usize, budget: &mut usize) -> Option<Member> {
        let structure = self.resolve(of)?;
        if !matches!(structure.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        let (members, _) = structure.rest.as_chunks::<12>();
        let mut anonymous = Vec::new();
        for member in members.iter().take(structure.count) {
            *budget = budget.checked_sub(1)?;
            let [name_at, type_id, bits] = [0, 4, 8].map(|at| u32_at(member, at).unwrap_or_default());
            let bits = if structure.has_bit_fields { bits & 0x00ff_ffff } else { bits };
            let found = Member { offset: u64::from(bits / 8), type_id: TypeId(type_id) };
            if name_at == 0 {
                anonymous.push(found);
            } else if self.text_is(name_at, name) {
                // A bit field that does not start at a byte has no offset in bytes.
                return bits.is_multiple_of(8).then_some(found);
            }
        }
        let depth = depth.checked_sub(1)?;
        anonymous.into_iter().find_map(|outer| {
            let inner = self.own_member(outer.type_id, name, depth, budget)?;
            Some(Member { offset: outer.offset.checked_add(inner.offset)?, ..inner })
        })
    }

    /// The size of a type in bytes.
    pub(super) fn size(&self, id: TypeId) -> Option<u64> {
        let mut count = 1u64;
        let mut id = id;
        let mut seen = HashSet::new();
        while seen.insert(id) && seen.len() < MAX_DEPTH {
            let found = self.resolve(id)?;
            match found.kind {
                kind::ARRAY => {
                    count = count.checked_mul(u64::from(u32_at(found.rest, 8)?))?;
                    id = TypeId(u32_at(found.rest, 0)?);
                }
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => {
                    return count.checked_mul(u64::from(found.size_or_type));
                }
                kind::POINTER => return count.checked_mul(8),
                _ => return None,
            }
        }
        None
    }

    /// The number of elements, if the type is an array.
    pub(super) fn elements(&self, id: TypeId) -> Option<u64> {
        let found = self.resolve(id)?;
        (found.kind == kind::ARRAY).then(|| u32_at(found.rest, 8).map(u64::from)).flatten()
    }
}

impl<'a> Type<'a> {
    fn read(types: &'a [u8], at: usize) -> Option<Self> {
        // The name comes first.
        let info = u32_at(types, at.checked_add(4)?)?;
        Some(Self {
            // Bits 16 to 23 and 29 to 30 are reserved and zero so far.
            kind: info >> 24 & 0x7f,
            count: (info & 0x00ff_ffff) as usize,
            has_bit_fields: info >> 31 != 0,
            size_or_type: u32_at(types, at.checked_add(8)?)?,
            rest: types.get(at.checked_add(12)?..)?,
        })
    }

    /// The size of the record of a type; `None` if its kind is not known, or if it is incomplete.
    fn len(&self) -> Option<usize> {
        let more = match self.kind {
            0 => return None,
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => self.count.checked_mul(12)?,
            kind::ENUM | kind::FUNC_PROTO => self.count.checked_mul(8)?,
            found if found <= kind::LAST => 0,
            _ => return None,
        };
        (more <= self.rest.len()).then_some(more.checked_add(12)?)
    }
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
