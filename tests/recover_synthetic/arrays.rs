//! NumPy arrays: types, strides, bases, and what is no array.

use std::cell::RefCell;
use std::rc::Rc;

use tensorcarve::addr::VirtAddr;
use tensorcarve::model::{Referrer, StandaloneTensor, Status};
use tensorcarve::recover::Recovery;

use super::synthetic::{Array, CPYTHONS, Keeping, Machine, Numpy, Options, Process, Python, dump, recover, sha256};

const FLOAT: (char, char, u64) = ('<', 'f', 4);

/// An interpreter with a class in it.
fn python(machine: &Rc<RefCell<Machine>>, cpython: &str) -> Python {
    let python = Python::new(Process::new(machine), cpython);
    python.class(python.builtin.type_, "lab", "Class", python.builtin.object, Keeping::Dict);
    python
}

fn array(recovery: &Recovery, object: u64) -> &StandaloneTensor {
    let mut arrays = recovery.processes.iter().flat_map(|process| &process.standalone.found);
    arrays.find(|other| other.tensor.object == VirtAddr(object)).unwrap_or_else(|| panic!("no {object:#x}"))
}

fn spec<'a>(dtype: (char, char, u64), shape: &'a [u64], strides: &'a [i64], data: u64) -> Array<'a> {
    Array { dtype, shape, strides, data, base: 0, is_contiguous: false, fields: Vec::new() }
}

#[test]
fn arrays_of_every_python_and_numpy() {
    for (cpython, version) in CPYTHONS.iter().flat_map(|cpython| [(*cpython, "1"), (*cpython, "2")]) {
        let machine = Machine::new(Options::default());
        let python = python(&machine, cpython);
        let numpy = Numpy::new(&python, version);
        let data = python.process.alloc_pages(0x4000);
        let noise: Vec<u8> = (0..0x4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        python.process.write(data, &noise);
        let at = |offset: usize, size: usize| &noise[offset..offset + size];
        let make = |spec: &Array<'_>| numpy.array(&python, numpy.array_class, spec);
        let contiguous =
            |dtype, shape, strides, data| Array { is_contiguous: true, ..spec(dtype, shape, strides, data) };
        let matrix = make(&contiguous(FLOAT, &[20, 30], &[120, 4], data));
        let backwards = make(&Array { base: matrix, ..spec(FLOAT, &[3, 30], &[-120, 4], data + 19 * 120) });
        let scalar = make(&contiguous(('=', 'i', 8), &[], &[], data + 8));
        let empty = make(&contiguous(('|', 'b', 1), &[0, 5], &[5, 1], 0));
        let bool_ = make(&contiguous(('|', 'b', 1), &[5], &[1], data + 3));
        let swapped = make(&contiguous(('>', 'u', 2), &[6], &[2], data));
        let text = make(&contiguous(('<', 'U', 12), &[2], &[12], data + 4));
        let complex = make(&contiguous(('<', 'c', 16), &[2], &[16], data + 16));
        let pointers = make(&contiguous(('|', 'O', 8), &[4], &[8], data));
        let fields = vec![
            ("x", numpy.dtype(&python, ('<', 'f', 8), &[]), 0),
            ("näme", numpy.dtype(&python, ('<', 'U', 8), &[]), 8),
        ];
        let table = make(&Array { fields, ..contiguous(('|', 'V', 16), &[3], &[16], data + 32) });
        // It says that it is contiguous, and is not.
        let wrong = make(&contiguous(FLOAT, &[3, 3], &[4, 4], data));
        let unknown = make(&contiguous(('<', 'x', 4), &[3], &[4], data));
        python.module("__main__", &[("tables", python.list(&[python.int(1), table]))]);

        let recovery = recover(&dump(&python.process));
        let [process] = recovery.processes.as_slice() else { panic!() };
        assert_eq!(recovery.warnings, []);
        let score = process.facts.numpy.as_ref().unwrap();
        assert_eq!((score.version.as_str(), score.readable), (version, 10), "{cpython}");
        assert_eq!(process.standalone.found.len(), 10, "{cpython} {version}");
        let names: Vec<VirtAddr> = process.standalone.found.iter().map(|other| other.tensor.object).collect();
        assert!(!names.contains(&VirtAddr(wrong)) && !names.contains(&VirtAddr(unknown)));

        let rows = |row: usize| at(row * 120, 120).to_vec();
        let expected: [(u64, &str, Option<&str>, Vec<u8>); 9] = [
            (matrix, "<f4", Some("F32"), at(0, 2400).to_vec()),
            (backwards, "<f4", Some("F32"), [rows(19), rows(18), rows(17)].concat()),
            (scalar, "<i8", Some("I64"), at(8, 8).to_vec()),
            (empty, "|b1", Some("BOOL"), Vec::new()),
            (bool_, "|b1", Some("BOOL"), at(3, 5).to_vec()),
            (swapped, ">u2", None, at(0, 12).to_vec()),
            (text, "<U3", None, at(4, 24).to_vec()),
            (complex, "<c16", None, at(16, 32).to_vec()),
            (table, "|V16", None, at(32, 48).to_vec()),
        ];
        for (object, name, safetensors, bytes) in expected {
            let found = array(&recovery, object);
            let info = found.array.as_ref().unwrap();
            assert_eq!((info.dtype.name.as_str(), info.dtype.safetensors.as_deref()), (name, safetensors));
            assert_eq!((found.tensor.status, &found.tensor.problem), (Status::Complete, &None), "{name}");
            assert_eq!(found.tensor.sha256.as_deref(), Some(sha256(&bytes).as_str()), "{name} {cpython} {version}");
        }
        let found = array(&recovery, backwards).array.as_ref().unwrap();
        assert_eq!((&found.shape, &found.strides), (&vec![3, 30], &vec![-120, 4]));
        assert_eq!((found.base, found.data), (Some(VirtAddr(matrix)), VirtAddr(data + 19 * 120)));
        let found = array(&recovery, pointers);
        assert_eq!((found.tensor.status, &found.tensor.sha256), (Status::Missing, &None));
        assert!(found.tensor.problem.as_ref().unwrap().message.contains("pointers to Python objects"));
        let found = array(&recovery, table);
        assert_eq!(found.referrers, [Referrer::Global { path: "__main__.tables[1]".to_owned() }]);
        let fields: Vec<_> = found.array.as_ref().unwrap().fields.iter().collect();
        let named: Vec<_> = fields.iter().map(|f| (f.name.as_str(), f.dtype.as_str(), f.offset)).collect();
        assert_eq!(named, [("x", "<f8", 0), ("näme", "<U2", 8)]);
    }
}

#[test]
fn what_is_missing_of_an_array_is_a_hole() {
    let machine = Machine::new(Options::default());
    let python = python(&machine, "3.12");
    let numpy = Numpy::new(&python, "2");
    let data = python.process.alloc_pages(0x4000);
    let columns = spec(('<', 'f', 8), &[4, 512], &[8, 32], data);
    let object = numpy.array(&python, numpy.array_class, &columns);
    machine.borrow_mut().lose(python.process.space, data + 0x1000);
    let recovery = recover(&dump(&python.process));
    let found = array(&recovery, object);
    assert_eq!(found.tensor.status, Status::Partial);
    let mut holes: Vec<(u64, u64)> = Vec::new();
    for hole in &found.tensor.holes {
        match holes.last_mut() {
            Some(last) if last.1 == hole.start => last.1 = hole.end,
            _ => holes.push((hole.start, hole.end)),
        }
    }
    // A quarter of each of the four rows, which lie beside each other.
    let row = |row: u64| (row * 4096 + 1024, row * 4096 + 2048);
    assert_eq!(holes, [row(0), row(1), row(2), row(3)]);
}

#[test]
fn an_element_of_a_number_has_a_size() {
    for version in ["1", "2"] {
        let machine = Machine::new(Options::default());
        let python = python(&machine, "3.11");
        let numpy = Numpy::new(&python, version);
        let data = python.process.alloc(64);
        let scalars: Vec<u64> = (0..3)
            .map(|i| numpy.array(&python, numpy.array_class, &spec(('<', 'f', 8), &[], &[], data + 8 * i)))
            .collect();
        scalars.iter().for_each(|object| numpy.clear_other_sizes(&python, *object));
        let recovery = recover(&dump(&python.process));
        let score = recovery.processes[0].facts.numpy.as_ref().unwrap();
        assert_eq!((score.version.as_str(), score.readable, score.rivals.len()), (version, 3, 0));
        for (i, object) in (0..).zip(scalars) {
            let found = array(&recovery, object);
            assert_eq!((found.tensor.status, found.array.as_ref().unwrap().dtype.size), (Status::Complete, 8));
            let bytes = python.process.read(data + 8 * i, 8);
            assert_eq!(found.tensor.sha256.as_deref(), Some(sha256(&bytes).as_str()));
        }
    }
}

#[test]
fn a_tie_between_layouts_is_decided_by_the_version_or_said() {
    for version in ["1", "2"] {
        for release in [None, Some(format!("{version}.26.4"))] {
            let machine = Machine::new(Options::default());
            let python = python(&machine, "3.11");
            let numpy = Numpy::new(&python, version);
            if let Some(release) = &release {
                python.module("numpy.version", &[("version", python.str(release))]);
            }
            let data = python.process.alloc(64);
            // Text may have no characters: by the other layout it has none.
            let text = numpy.array(&python, numpy.array_class, &spec(('<', 'U', 8), &[], &[], data));
            numpy.clear_other_sizes(&python, text);
            let recovery = recover(&dump(&python.process));
            let found = array(&recovery, text);
            let score = recovery.processes[0].facts.numpy.as_ref().unwrap();
            if release.is_some() {
                assert_eq!((score.version.as_str(), score.rivals.len()), (version, 0));
                assert_eq!(found.tensor.status, Status::Complete);
                assert_eq!(found.tensor.sha256.as_deref(), Some(sha256(&python.process.read(data, 8)).as_str()));
            } else {
                assert_eq!(score.rivals.len(), 1);
                assert_eq!((found.tensor.status, &found.tensor.sha256), (Status::Missing, &None));
                assert!(found.tensor.problem.as_ref().unwrap().message.contains("equally well"));
                assert!(
                    recovery
                        .warnings
                        .iter()
                        .any(|warning| warning.message.contains("without type and bytes: 1 array of")),
                    "{recovery:?}",
                    recovery = recovery.warnings
                );
            }
        }
    }
}
