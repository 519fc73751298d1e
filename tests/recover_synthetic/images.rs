//! Images of one process: cores, and copies of its memory made with a maps file.

use std::fs;

use tensorcarve::dump::{self, Dump, MappedFiles, OpenOptions};
use tensorcarve::model::Status;
use tensorcarve::tensor::Source;

use super::synthetic::{CPYTHONS, ModuleSpec, Options, Process, Tensor, Torch, recover, sha256, torch};
use super::{assert_model, assert_whole, model, only_model};

/// What a segment or a mapping may be used for, in the bits of an ELF segment.
const EXECUTE: u32 = 1;
const WRITE: u32 = 2;
const READ: u32 = 4;

fn opened(name: &str, bytes: &[u8], maps: Option<&str>) -> Dump {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let maps = maps.map(|text| {
        let path = dir.path().join("maps");
        fs::write(&path, text).unwrap();
        path
    });
    dump::open(&path, &OpenOptions { maps, ..OpenOptions::default() }, &|_, _| ()).unwrap()
}

/// The core of a process, as the kernel writes it: notes first, reservations without a byte.
pub fn core(process: &Process, flags: u32) -> Dump {
    core_with_files(process, flags, &[])
}

/// The same with a list of mapped files: addresses, offset in pages, path.
fn core_with_files(process: &Process, flags: u32, files: &[(u64, u64, u64, &str)]) -> Dump {
    let mut info = [0; 136];
    info[24..28].copy_from_slice(&4321u32.to_le_bytes());
    info[40..47].copy_from_slice(b"python3");
    let note = |kind: u32, desc: &[u8]| {
        let head = [5, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
        [&head[..], b"CORE\0\0\0\0", desc].concat()
    };
    let mut list = [files.len() as u64, 0x1000].map(u64::to_le_bytes).concat();
    list.extend(files.iter().flat_map(|(start, end, page, _)| [*start, *end, *page].map(u64::to_le_bytes).concat()));
    list.extend(files.iter().flat_map(|(.., path)| [path.as_bytes(), b"\0"].concat()));
    list.resize(list.len().next_multiple_of(4), 0);
    let notes = [note(3, &info), note(6, &[0; 32]), note(0x4649_4c45, &list)].concat();
    let runs = process.machine.borrow().image(process.space);
    let reserved = process.reserve(1 << 26, 4096);
    // Type, flags, address, bytes in the file, bytes in memory.
    let mut segments = vec![(4, 0, 0, notes, 0), (1, 0, reserved, Vec::new(), 1 << 26)];
    segments.extend(runs.into_iter().map(|(va, bytes)| (1, flags, va, bytes.clone(), bytes.len() as u64)));
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([4, 62, 1, 0].map(u16::to_le_bytes).concat());
    file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 64, 56, segments.len() as u16, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut offset = 64 + 56 * segments.len() as u64;
    for (kind, flags, va, bytes, memory) in &segments {
        file.extend([*kind, *flags].map(u32::to_le_bytes).concat());
        file.extend([offset, *va, 0, bytes.len() as u64, *memory, 4].map(u64::to_le_bytes).concat());
        offset += bytes.len() as u64;
    }
    segments.iter().for_each(|(.., bytes, _)| file.extend(bytes));
    opened("core", &file, None)
}

/// A copy of the readable mappings of a process, with a maps file that lists others as well.
fn copy(process: &Process) -> Dump {
    let runs = process.machine.borrow().image(process.space);
    let mut maps = String::from("00400000-00800000 ---p 00000000 00:00 0\n");
    for (va, bytes) in &runs {
        maps += &format!("{va:012x}-{:012x} rw-p 00000000 00:00 0\n", va + bytes.len() as u64);
    }
    maps += "7ffff3a70000-7ffff3a74000 r--p 00000000 00:00 0                          [vvar]\n";
    maps += "ffffffffff600000-ffffffffff601000 r-xp 00000000 00:00 0                  [vsyscall]\n";
    let bytes: Vec<u8> = runs.into_iter().flat_map(|(_, bytes)| bytes).collect();
    opened("mem", &bytes, Some(&maps))
}

/// Makes the names of all types that are part of the executable unreadable, as its read-only pages are not in a core.
fn lose_static_names(torch: &Torch) {
    let python = &torch.python;
    let b = &python.builtin;
    let nowhere = python.process.reserve(4096, 4096);
    for type_object in [b.object, b.type_, b.str_, b.int, b.bool_, b.float, b.tuple, b.list, b.dict] {
        python.process.put(type_object + python.at("type.tp_name"), nowhere);
    }
}

#[test]
fn every_python_in_the_image_of_its_process() {
    for cpython in CPYTHONS {
        let torch = torch(cpython, "2.6", Options::default());
        let (root, truth) = model(&torch);
        lose_static_names(&torch);
        let process = &torch.python.process;
        for (dump, known) in [(core(process, READ | WRITE), true), (copy(process), false)] {
            assert!(dump.warnings.is_empty() && !dump.damaged, "{:?}", dump.warnings);
            let recovery = recover(&dump);
            assert_model(&torch, root, &truth, &recovery);
            let found = &recovery.processes[0];
            assert_eq!(
                (found.root(), found.space.levels(), found.python.as_ref().unwrap().type_object.1),
                (None, None, None)
            );
            assert_eq!(
                (found.pid, found.comm.as_deref()),
                if known { (Some(4321), Some("python3")) } else { (None, None) }
            );
        }
    }
}

#[test]
fn what_the_image_lacks_is_a_hole() {
    let torch = torch("3.12", "2.6", Options::default());
    let process = &torch.python.process;
    let base = process.alloc_pages(0x4000);
    let weight = torch.tensor_at(&Tensor::f32(&[0x1000]), base);
    let parameters = vec![("weight", Some(&weight))];
    let net = torch.module_type("__main__", "Net");
    let root = torch.module(net, &ModuleSpec { parameters, ..ModuleSpec::default() });
    process.machine.borrow_mut().lose(process.space, base + 0x1000);
    let recovery = recover(&core(process, READ | WRITE));
    let model = only_model(&recovery);
    assert_eq!(model.object.0, root);
    let tensor = &model.tensors[0];
    assert_eq!(tensor.status, Status::Partial);
    let [hole] = &tensor.holes[..] else { panic!("{:?}", tensor.holes) };
    assert_eq!((hole.start, hole.end, hole.address.0), (0x1000, 0x2000, base + 0x1000));
    assert!(hole.reason.contains("not in the process image"), "{}", hole.reason);
}

#[test]
fn weights_in_a_mapped_file_are_named_and_can_be_filled() {
    let torch = torch("3.12", "2.6", Options::default());
    let process = &torch.python.process;
    let base = process.alloc_pages(0x6000);
    // From the middle of the first page on; a transposed one; and one whose page the process has changed.
    let plain = torch.tensor_at(&Tensor::f32(&[0x500]), base + 0x800);
    let transposed = torch.tensor_at(&Tensor { stride: vec![1, 8], ..Tensor::f32(&[8, 4]) }, base + 0x3000);
    let changed = torch.tensor_at(&Tensor::f32(&[0x500]), base + 0x4000);
    let parameters = vec![("plain", Some(&plain)), ("transposed", Some(&transposed)), ("changed", Some(&changed))];
    let net = torch.module_type("__main__", "Net");
    torch.module(net, &ModuleSpec { parameters, ..ModuleSpec::default() });
    // The file begins three pages before the mapping. Of its last but one page it has something else.
    let bytes = process.machine.borrow().read(process.space, base, 0x6000);
    let mut file = [vec![0xcc; 0x3000], bytes].concat();
    file[0x7000..0x8000].fill(0xdd);
    for page in [0, 1, 2, 3, 5] {
        process.machine.borrow_mut().lose(process.space, base + page * 0x1000);
    }
    let mapped = [(base, base + 0x6000, 3, "/models/net.safetensors")];
    let mut dump = core_with_files(process, READ | WRITE, &mapped);
    let recovery = recover(&dump);
    let tensors = &only_model(&recovery).tensors;
    let statuses: Vec<Status> = tensors.iter().map(|tensor| tensor.status).collect();
    assert_eq!(statuses, [Status::Missing, Status::Missing, Status::Partial]);
    let [hole] = &tensors[0].holes[..] else { panic!("{:?}", tensors[0].holes) };
    let reason = "it lies in the mapped file /models/net.safetensors at offset 0x3800, which cores leave out";
    assert_eq!((hole.start, hole.end, hole.reason.as_str()), (0, 0x1400, reason));
    let warning = recovery.warnings.iter().find(|said| said.message.contains("/models/net.safetensors")).unwrap();
    let advice = "m0: 3 tensors lie in the mapped file /models/net.safetensors from offset 0x3800 on, which cores leave out; \
                  set coredump_filter to 0x7f before the capture, copy /proc/PID/mem instead, or pass the file with `--file PATH`";
    assert_eq!(warning.to_string(), advice);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.safetensors");
    fs::write(&path, &file).unwrap();
    dump.fill(&MappedFiles { files: vec![path], sysroot: None }).unwrap();
    let recovery = recover(&dump);
    let tensors = &only_model(&recovery).tensors;
    for (tensor, truth) in tensors.iter().zip([&plain, &transposed, &changed]) {
        assert_whole(&torch, tensor, truth);
    }
    let places = |index: usize| {
        let sources: &[Source] = &tensors[index].sources;
        sources.iter().map(|it| (it.start, it.end, it.offset.0, it.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(places(0), [(Some(0), Some(0x1400), 0x3800, 0x1400)]);
    assert_eq!(places(1), [(None, None, 0x6000, 0x80)]);
    assert_eq!(places(2), [(Some(0x1000), Some(0x1400), 0x8000, 0x400)]);
    assert!(tensors.iter().flat_map(|tensor| &tensor.sources).all(|it| it.sha256 == sha256(&file)));
    let warning =
        recovery.warnings.iter().find(|said| said.message.contains("m0: 3 tensors were filled from")).unwrap();
    assert!(
        warning.message.contains(&sha256(&file)) && warning.message.contains("nothing to check it against"),
        "{warning}"
    );
}

#[test]
fn objects_are_looked_for_in_data_alone() {
    let torch = torch("3.11", "1.13", Options::default());
    let (_, weight) = torch.small_model("Net", &[3, 4]);
    let process = &torch.python.process;
    // Memory of a compiler at run time: written and executed.
    let recovery = recover(&core(process, READ | WRITE | EXECUTE));
    assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
    let code = recover(&core(process, READ | EXECUTE));
    assert!(code.processes.iter().all(|process| process.models.is_empty()));
}
