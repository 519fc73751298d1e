//! Tests of what other files are named.

use super::*;

fn message(bytes: &[u8]) -> String {
    let mut sample = bytes.to_vec();
    sample.resize(sample.len().max(8192), 0);
    refusal(&sample).map(|refusal| format!("{refusal}; {}", refusal.hint())).unwrap_or_default()
}

fn assert_named(bytes: &[u8], words: &[&str]) {
    let message = message(bytes);
    words.iter().for_each(|word| assert!(message.contains(word), "no {word:?} in: {message:?}"));
}

/// A sample with bytes at an offset.
fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut sample = vec![0; offset];
    sample.extend(bytes);
    sample
}

#[test]
fn each_mark_is_named_with_what_to_do() {
    for (offset, mark, what, remedy) in OTHER_DUMPS.iter().chain(NO_DUMPS) {
        assert_named(&at(*offset, mark), &[what, remedy]);
    }
    for (offset, mark, what) in ARCHIVES {
        assert_named(&at(*offset, mark), &[what, "unpack it first"]);
    }
}

#[test]
fn a_minidump_is_named_by_its_system() {
    let minidump = |streams: &[(u32, u32)]| {
        let mut file = b"MDMP\x93\xa7\0\0".to_vec();
        let data = 32 + 12 * streams.len() as u32;
        file.extend([streams.len() as u32, 32, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
        for (index, (kind, _)) in streams.iter().enumerate() {
            file.extend([*kind, 56, data + 56 * index as u32].map(u32::to_le_bytes).concat());
        }
        for (_, platform) in streams {
            file.extend(at(20, &platform.to_le_bytes()));
            file.extend([0; 32]);
        }
        file
    };
    assert_named(&minidump(&[(3, 0), (7, 0x8201)]), &["a process on Linux", "gcore"]);
    assert_named(&minidump(&[(3, 0), (0x4767_0009, 0)]), &["a process on Linux", "gcore"]);
    assert_named(&minidump(&[(7, 2)]), &["a Windows minidump", "Linux machines"]);
    assert_named(&minidump(&[(7, 0x8101)]), &["macOS"]);
    for unknown in [minidump(&[]), minidump(&[(7, 77)]), minidump(&[(u32::MAX, 0)])] {
        assert_named(&unknown, &["a minidump (from Crashpad, Breakpad or Windows)", "gcore"]);
    }
    // Wild offsets and counts.
    assert_named(b"MDMP\x93\xa7\0\0\xff\xff\xff\xff\xff\xff\xff\xff", &["a minidump"]);
}

#[test]
fn a_part_of_a_kdump_file_is_named() {
    let kdump = |split: u32| {
        let mut file = b"KDUMP   \x06\0\0\0".to_vec();
        file.resize(4096, 0);
        file[428..432].copy_from_slice(&4096u32.to_le_bytes());
        file.extend(at(12, &split.to_le_bytes()));
        file.extend([0x8000u64, 0x1_0000_0000].map(u64::to_le_bytes).concat());
        file
    };
    assert_named(&kdump(1), &["one part", "0x8000 to 0x100000000", "--split", "ELF"]);
    assert_named(&kdump(0), &["a compressed kdump file"]);
    assert_named(b"KDUMP   \x06\0\0\0", &["a compressed kdump file"]);
}

#[test]
fn weights_are_no_memory() {
    let entry = |name: &str| [b"PK\x03\x04", &[0; 26][..], name.as_bytes(), b"\x80\x02"].concat();
    assert_named(&entry("archive/data.pkl"), &["a PyTorch checkpoint", "pass a dump"]);
    assert_named(&entry("arr_0.npyPK"), &["NumPy"]);
    assert_named(&entry("container.description"), &["AFF4"]);
    assert_named(&entry("memory.lime"), &["a zip archive"]);
    let header = b"{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
    assert_named(&[&(header.len() as u64).to_le_bytes(), &header[..]].concat(), &["a safetensors file"]);
    assert_named(b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", &["a pickle"]);
}

#[test]
fn what_memory_could_begin_with_is_not_refused() {
    for start in [&b"{\"\0\0\0"[..], b"\x80\x04\x95", b"\x02\0\0\0\0\0\0\0{\"", b"PK\x01\x02", b"MDMP"] {
        assert_eq!(message(start), "", "{start:x?}");
    }
}
