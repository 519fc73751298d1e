//! Images of one process: cores, and copies of its memory made with a maps file.

use std::fs;

use tensorcarve::dump::{self, Dump, OpenOptions};
use tensorcarve::model::Status;

use super::synthetic::{CPYTHONS, ModuleSpec, Options, Process, Tensor, Torch, recover, torch};
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
fn core(process: &Process, flags: u32) -> Dump {
    let mut info = [0; 136];
    info[24..28].copy_from_slice(&4321u32.to_le_bytes());
    info[40..47].copy_from_slice(b"python3");
    let note = |kind: u32, desc: &[u8]| {
        let head = [5, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
        [&head[..], b"CORE\0\0\0\0", desc].concat()
    };
    let notes = [note(3, &info), note(6, &[0; 32])].concat();
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
            assert_eq!((found.root, found.levels, found.type_object.1), (None, None, None));
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
    let [hole] = tensor.holes.as_slice() else { panic!("{:?}", tensor.holes) };
    assert_eq!((hole.start, hole.end, hole.address.0), (0x1000, 0x2000, base + 0x1000));
    assert!(hole.reason.contains("not in the image of the process"), "{}", hole.reason);
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
