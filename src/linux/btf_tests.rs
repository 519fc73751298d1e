use proptest::prelude::*;

use super::*;
use crate::addr::FileOffset;
use crate::dump::MemoryRange;

/// Builds a BTF.
#[derive(Default)]
pub(super) struct Builder {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Builder {
    fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0] }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        words.iter().for_each(|word| self.types.extend(word.to_le_bytes()));
    }

    fn add(&mut self, name: &str, info: u32, size_or_type: u32, more: &[u32]) {
        let name = self.string(name);
        self.words(&[name, info, size_or_type]);
        self.words(more);
    }

    /// A structure or union; members are name, type and offset in bits.
    fn structure(&mut self, name: &str, kind: u32, has_bit_fields: bool, size: u32, members: &[(&str, u32, u32)]) {
        let members: Vec<u32> = members.iter().flat_map(|(name, of, bits)| [self.string(name), *of, *bits]).collect();
        let info = kind << 24 | u32::from(has_bit_fields) << 31 | (members.len() as u32 / 3);
        self.add(name, info, size, &members);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [HEADER, 0, types, types, strings] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// 1 `int`, 2 `task_struct`, 3 a union without a name, 4 `const` of 5, 5 a structure, 6 and 7 the other two, 8 `int[5]`,
/// 9 a structure that holds itself.
fn sample() -> Builder {
    let mut btf = Builder::new();
    btf.add("int", kind::INT << 24, 4, &[32]);
    let members = [("state", 1, 0), ("", 3, 64), ("flag", 1, 1 << 24 | 129), ("thread", 4, 192), ("pids", 8, 256)];
    btf.structure("task_struct", kind::STRUCT, true, 64, &members);
    btf.structure("", kind::UNION, false, 8, &[("other", 1, 0), ("pid", 1, 32)]);
    btf.add("", kind::CONST << 24, 5, &[]);
    btf.structure("thread_struct", kind::STRUCT, false, 8, &[("sp", 1, 0), ("fsbase", 1, 32)]);
    btf.structure("mm_struct", kind::STRUCT, false, 8, &[("pgd", 1, 0)]);
    btf.structure("vm_area_struct", kind::STRUCT, false, 8, &[("vm_start", 1, 0)]);
    btf.add("", kind::ARRAY << 24, 0, &[1, 1, 5]);
    btf.structure("circle", kind::STRUCT, false, 8, &[("", 9, 0)]);
    btf
}

fn memory(bytes: Vec<u8>) -> PhysicalMemory {
    let range =
        MemoryRange { start: PhysAddr(0x1000), end: PhysAddr(0x1000 + bytes.len() as u64), offset: FileOffset(0) };
    PhysicalMemory::owned(bytes, vec![range]).unwrap()
}

#[test]
fn members_are_found_by_name_wherever_they_are_nested() {
    let memory = memory(sample().bytes());
    let btf = Btf::at(&memory, PhysAddr(0x1000)).unwrap();
    let task = btf.structure("task_struct").unwrap();
    let offset = |path: &str| btf.member(task, path).map(|member| member.offset);
    let paths = ["state", "pid", "thread", "thread.fsbase", "pids", "flag", "none", "thread.none", "state.none"];
    assert_eq!(paths.map(offset), [Some(0), Some(12), Some(24), Some(28), Some(32), None, None, None, None]);
    assert_eq!((btf.size(task), btf.size(btf.member(task, "pids").unwrap().type_id)), (Some(64), Some(20)));
    assert_eq!(btf.elements(btf.member(task, "pids").unwrap().type_id), Some(5));
    assert_eq!(btf.structure("int"), None, "it is no structure");
    assert_eq!(btf.structure("ask_struct"), None, "a part of a name");
    assert_eq!(btf.member(btf.structure("circle").unwrap(), "x"), None);
}

#[test]
fn what_is_cut_off_or_lies_is_no_btf() {
    let whole = sample().bytes();
    assert!(Btf::at(&memory(whole.clone()), PhysAddr(0x1000)).is_some());
    for len in 0..whole.len() {
        assert!(Btf::at(&memory(whole[..len].to_vec()), PhysAddr(0x1000)).is_none(), "{len}");
    }
    // Header length, lengths of types and strings, the kind of the first type, its number of members.
    for (at, value) in [(4, 8), (4, 1 << 30), (12, 8), (12, u32::MAX), (20, 3), (20, u32::MAX), (28, 77 << 24), (28, 0)]
    {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        assert!(Btf::at(&memory(bytes), PhysAddr(0x1000)).is_none(), "{at} {value:#x}");
    }
}

proptest! {
    #[test]
    fn any_byte_may_be_anything(at in 0..400usize, value: u8, path in "(state|pid|thread.fsbase|circle)") {
        let mut bytes = sample().bytes();
        let len = bytes.len();
        bytes[at % len] = value;
        let memory = memory(bytes);
        if let Some(btf) = Btf::at(&memory, PhysAddr(0x1000)) {
            for name in ["task_struct", "circle", "mm_struct"] {
                if let Some(found) = btf.structure(name) {
                    let _ = (btf.member(found, &path), btf.size(found), btf.elements(found));
                }
            }
        }
    }
}
