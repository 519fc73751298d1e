//! Tensors that are more, or other, than elements at strides.

use tensorcarve::diagnostic::Code;
use tensorcarve::model::{NamedTensor, Status};
use tensorcarve::tensor::{Form, Quantizer, Sparse};

use super::synthetic::{ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, torch};
use super::{assert_whole, only_model, sha256, tensor};

fn hold(torch: &Torch, tensors: &[(&str, &Placed)]) {
    let buffers = tensors.iter().map(|(name, tensor)| (*name, Some(*tensor))).collect();
    // A model has ordinary tensors too: they tell the version.
    let weight = torch.parameter(&[3, 4]);
    let parameters = vec![("weight", Some(&weight))];
    torch.module(torch.module_type("__main__", "Holder"), &ModuleSpec { parameters, buffers, ..ModuleSpec::default() });
}

/// A quantizer of a scalar type, with three words.
fn quantizer(torch: &Torch, dtype: &str, words: [u64; 3]) -> u64 {
    let python = &torch.python;
    let object = python.process.alloc(96);
    python.process.put(object, 0x7f55_5555_2010);
    let index = torch.numbers.scalar_index(dtype) as u8;
    python.process.write(object + torch.numbers.at("quantizer.scalar_type"), &[index]);
    let first = torch.numbers.at("quantizer.scale");
    (first..).step_by(8).zip(words).for_each(|(at, word)| python.process.put(object + at, word));
    object
}

fn form(found: &NamedTensor) -> &Form {
    &found.info.as_ref().unwrap().form
}

/// The parts of a tensor are there, under its name and theirs.
fn assert_parts(torch: &Torch, found: &NamedTensor, parts: &[(&str, &Placed)]) {
    let names: Vec<_> = found.parts.iter().map(|part| part.name.clone()).collect();
    let wanted: Vec<_> = parts.iter().map(|(name, _)| format!("{}.{name}", found.name)).collect();
    assert_eq!(names, wanted);
    for (part, (_, truth)) in found.parts.iter().zip(parts) {
        assert_whole(torch, part, truth);
    }
}

#[test]
fn quantized_tensors_keep_their_integers_and_what_they_mean() {
    for pytorch in PYTORCHES {
        let torch = torch("3.11", pytorch, Options::default());
        let python = &torch.python;
        let made = |dtype, words: &[u64]| {
            let tensor = torch.tensor(&Tensor::new(dtype, &[2, 5]));
            torch.numbers.derive(python, &tensor, true, words);
            tensor
        };
        let scale = 0.05f64.to_bits();
        let one = made("QInt8", &[quantizer(&torch, "QInt8", [scale, (-7i64).cast_unsigned(), 0])]);
        let scales = torch.tensor(&Tensor::new("Double", &[5]));
        let zero_points = torch.tensor(&Tensor::new("Long", &[5]));
        let words = [scales.tensor_impl, zero_points.tensor_impl, 1];
        let several = made("QInt32", &[quantizer(&torch, "QInt32", words)]);
        // Its quantizer is of another type: what it means is not known.
        let odd = made("QUInt8", &[quantizer(&torch, "QInt8", [scale, 3, 0])]);
        hold(&torch, &[("one", &one), ("several", &several), ("odd", &odd)]);
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        for (name, truth) in [("one", &one), ("several", &several), ("odd", &odd)] {
            assert_whole(&torch, tensor(model, name), truth);
        }
        let per_tensor = Form::Quantized(Quantizer::PerTensor { scale: 0.05, zero_point: -7 });
        assert_eq!(*form(tensor(model, "one")), per_tensor, "{pytorch}");
        assert_eq!(*form(tensor(model, "odd")), Form::Quantized(Quantizer::Unknown));
        let found = tensor(model, "several");
        assert!(matches!(form(found), Form::Quantized(Quantizer::PerChannel { axis: 1, .. })), "{:?}", form(found));
        let parts = [("q_per_channel_scales", &scales), ("q_per_channel_zero_points", &zero_points)];
        assert_parts(&torch, found, &parts);
        assert!(tensor(model, "odd").parts.is_empty());
    }
}

#[test]
fn sparse_tensors_are_their_indices_and_values() {
    for pytorch in PYTORCHES {
        let torch = torch("3.13", pytorch, Options::default());
        let python = &torch.python;
        let made = |shape: &[u64], words: &[u64]| {
            let tensor = torch.tensor(&Tensor::f32(shape));
            torch.numbers.derive(python, &tensor, false, words);
            tensor
        };
        let new = |dtype, shape: &[u64]| torch.tensor(&Tensor::new(dtype, shape));
        let (indices, values) = (new("Long", &[2, 3]), new("Float", &[3, 4]));
        let coo = made(&[10, 20, 4], &[2, 1, indices.tensor_impl, values.tensor_impl, 1]);
        let (rows, columns, entries) = (new("Int", &[11]), new("Int", &[6]), new("Float", &[6]));
        let csr = made(&[10, 20], &[rows.tensor_impl, columns.tensor_impl, entries.tensor_impl, 2]);
        // Indices for another number of values: not taken for a part.
        let odd = made(&[10, 20, 4], &[2, 1, new("Long", &[2, 9]).tensor_impl, values.tensor_impl]);
        hold(&torch, &[("coo", &coo), ("csr", &csr), ("odd", &odd)]);
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        let found = tensor(model, "coo");
        assert!(matches!(form(found), Form::Sparse(Sparse::Coo { .. })), "{pytorch}: {:?}", found.problem);
        assert_parts(&torch, found, &[("indices", &indices), ("values", &values)]);
        assert_eq!((found.status, &found.problem, &found.sha256), (Status::Complete, &None, &None));
        let info = found.info.as_ref().unwrap();
        assert_eq!((info.shape.as_slice(), info.device.as_str()), (&[10, 20, 4][..], "cpu"));
        let found = tensor(model, "csr");
        assert!(matches!(form(found), Form::Sparse(Sparse::Compressed { .. })), "{:?}", form(found));
        let parts = [("compressed_indices", &rows), ("plain_indices", &columns), ("values", &entries)];
        assert_parts(&torch, found, &parts);
        let found = tensor(model, "odd");
        assert_eq!((found.status, found.parts.len()), (Status::Missing, 0));
        assert!(found.problem.is_some());
        // Parts are no tensors of their own.
        let others: Vec<_> = recovery.processes[0].standalone.found.iter().map(|other| other.tensor.object.0).collect();
        assert!(![&indices, &values, &rows, &columns, &entries].iter().any(|part| others.contains(&part.object)));
    }
}

#[test]
fn a_sparse_tensor_is_as_whole_as_its_parts() {
    let torch = torch("3.12", "2.6", Options::default());
    let python = &torch.python;
    let indices = torch.tensor(&Tensor::new("Long", &[1, 1024]));
    let values = torch.tensor(&Tensor::f32(&[1024]));
    let sparse = torch.tensor(&Tensor::f32(&[9999]));
    torch.numbers.derive(python, &sparse, false, &[1, 0, indices.tensor_impl, values.tensor_impl]);
    python.process.machine.borrow_mut().lose(python.process.space, values.base);
    hold(&torch, &[("sparse", &sparse)]);
    let recovery = recover(&dump(&python.process));
    let found = tensor(only_model(&recovery), "sparse");
    assert_eq!(found.status, Status::Partial);
    assert_eq!(found.parts.iter().map(|part| part.status).collect::<Vec<_>>(), [Status::Complete, Status::Partial]);
}

#[test]
fn a_tensor_without_a_storage_is_of_another_device() {
    for pytorch in PYTORCHES {
        let torch = torch("3.10", pytorch, Options::default());
        let python = &torch.python;
        let made = |device: u64| {
            let tensor = torch.tensor(&Tensor::f32(&[4, 4]));
            torch.numbers.derive(python, &tensor, false, &[0x7f55_5555_3010]);
            let at = tensor.tensor_impl + torch.numbers.at("tensor.device_type");
            python.process.write(at, &[device as u8]);
            python.process.write(tensor.tensor_impl + torch.numbers.at("tensor.device_index"), &[0]);
            tensor
        };
        let (xla, cpu) = (made(torch.numbers.device_index("xla")), made(torch.numbers.device_index("cpu")));
        hold(&torch, &[("xla", &xla), ("cpu", &cpu)]);
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        let found = tensor(model, "xla");
        assert_eq!((found.status, form(found), &found.sha256), (Status::Device, &Form::Opaque, &None));
        assert_eq!(found.info.as_ref().unwrap().device, "xla:0");
        let found = tensor(model, "cpu");
        assert_eq!((found.status, form(found)), (Status::Missing, &Form::Opaque));
        assert!(found.problem.as_ref().unwrap().message.contains("opaque"), "{:?}", found.problem);
    }
}

/// Every element as it is where its sign bits are flipped: `signs` are bytes of an element.
fn flipped(truth: &Placed, signs: &[usize]) -> Vec<u8> {
    let size = truth.element_size as usize;
    let flip = |(at, byte): (usize, &u8)| if signs.contains(&(at % size)) { byte ^ 0x80 } else { *byte };
    truth.logical.iter().enumerate().map(flip).collect()
}

/// Gives a tensor dispatch keys beside those that all have.
fn add_keys(torch: &Torch, tensor: &Placed, keys: &[&str]) {
    let at = tensor.tensor_impl + torch.numbers.at("tensor.key_set");
    torch.python.process.put(at, torch.numbers.key_set(keys));
}

#[test]
fn lazy_conjugate_and_negative_views_have_their_logical_values() {
    // Older ones have no such keys.
    for pytorch in PYTORCHES.into_iter().filter(|version| !["1.7", "1.8"].contains(&&version[..3])) {
        let torch = torch("3.11", pytorch, Options::default());
        let made = |tensor: Tensor, keys: &[&str]| {
            let tensor = torch.tensor(&tensor);
            add_keys(&torch, &tensor, keys);
            tensor
        };
        let transposed = Tensor { stride: vec![1, 5], ..Tensor::new("ComplexFloat", &[5, 4]) };
        let tensors = [
            ("conj", made(Tensor::new("ComplexFloat", &[4, 3]), &["Conjugate"]), vec![7]),
            ("adjoint", made(transposed, &["Conjugate"]), vec![7]),
            ("conj128", made(Tensor::new("ComplexDouble", &[9]), &["Conjugate"]), vec![15]),
            ("conj32", made(Tensor::new("ComplexHalf", &[2, 2]), &["Conjugate"]), vec![3]),
            // The imaginary part of a conjugate, every second number of its storage.
            ("neg", made(Tensor { stride: vec![2], ..Tensor::new("Float", &[6]) }, &["Negative"]), vec![3]),
            ("neg16", made(Tensor::new("BFloat16", &[7]), &["Negative"]), vec![1]),
            ("neg_complex", made(Tensor::new("ComplexFloat", &[3]), &["Negative"]), vec![3, 7]),
            ("both", made(Tensor::new("ComplexFloat", &[3]), &["Conjugate", "Negative"]), vec![3]),
            // A real number is its own conjugate.
            ("real", made(Tensor::new("Double", &[3]), &["Conjugate"]), vec![]),
        ];
        hold(&torch, &tensors.iter().map(|(name, truth, _)| (*name, truth)).collect::<Vec<_>>());
        let recovery = recover(&dump(&torch.python.process));
        assert_eq!(
            recovery.processes[0].facts.torch.as_ref().unwrap().dispatch_keys,
            Some(torch.numbers.keys().version),
            "{pytorch}"
        );
        let model = only_model(&recovery);
        for (name, truth, signs) in &tensors {
            let found = tensor(model, name);
            let expected = sha256(&flipped(truth, signs));
            assert_eq!((found.status, &found.problem), (Status::Complete, &None), "{pytorch}: {name}");
            assert_eq!(found.sha256.as_ref(), Some(&expected), "{pytorch}: {name}");
            assert!(!found.info.as_ref().unwrap().dispatch_keys.is_empty());
        }
        assert_eq!(tensor(model, "both").info.as_ref().unwrap().dispatch_keys, ["Conjugate", "Negative"]);
        assert!(tensor(model, "weight").info.as_ref().unwrap().dispatch_keys.is_empty());
    }
}

#[test]
fn a_tensor_under_keys_that_are_not_understood_is_not_complete() {
    for pytorch in ["1.7", "1.8", "1.13", "2.1", "2.6", "2.10", "2.14"] {
        let torch = torch("3.12", pytorch, Options::default());
        let made = |keys: &[&str]| {
            let tensor = torch.tensor(&Tensor::f32(&[2, 3]));
            add_keys(&torch, &tensor, keys);
            tensor
        };
        let (batched, plain) = (made(&["Batched"]), made(&["BackendSelect"]));
        let sparse = if torch.numbers.keys().set(["Sparse"].into_iter()).is_some() { "Sparse" } else { "SparseCPU" };
        let odd = made(&[sparse]);
        let new = made(&[]);
        let at = new.tensor_impl + torch.numbers.at("tensor.key_set");
        torch.python.process.put(at, torch.numbers.key_set(&[]) | 1 << 63);
        hold(&torch, &[("batched", &batched), ("plain", &plain), ("odd", &odd), ("new", &new)]);
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_whole(&torch, tensor(model, "plain"), &plain);
        for (name, key) in [("batched", "Batched"), ("odd", sparse), ("new", "bit 63")] {
            let found = tensor(model, name);
            assert_eq!((found.status, found.holes.bytes), (Status::Partial, 0), "{pytorch}: {name}");
            let problem = found.problem.as_ref().unwrap();
            assert!(problem.code == Code::DispatchKeys && problem.message.contains(key), "{pytorch}: {problem}");
        }
    }
}

#[test]
fn a_lazy_view_of_a_type_without_known_signs_is_not_complete() {
    let torch = torch("3.12", "2.6", Options::default());
    let integers = torch.tensor(&Tensor::new("Long", &[4]));
    add_keys(&torch, &integers, &["Negative"]);
    hold(&torch, &[("integers", &integers)]);
    let recovery = recover(&dump(&torch.python.process));
    let found = tensor(only_model(&recovery), "integers");
    assert_eq!(found.status, Status::Partial);
    assert!(found.problem.as_ref().unwrap().message.contains("Long"), "{:?}", found.problem);
}

#[test]
fn a_freed_storage_leaves_shape_and_type() {
    for pytorch in PYTORCHES {
        let torch = torch("3.11", pytorch, Options::default());
        let process = &torch.python.process;
        let bytes = torch.numbers.at("storage.size_bytes");
        let freed = torch.tensor(&Tensor::f32(&[8, 5]).learned());
        process.put(freed.storage + bytes, 0);
        process.put(freed.storage + torch.numbers.at("storage.data"), 0);
        let short = torch.tensor(&Tensor::new("Double", &[3, 5]));
        process.put(short.storage + bytes, 119);
        let empty = torch.tensor(&Tensor::f32(&[0, 4]));
        hold(&torch, &[("freed", &freed), ("short", &short), ("empty", &empty)]);
        let recovery = recover(&dump(process));
        let model = only_model(&recovery);
        for (name, shape, dtype, words) in
            [("freed", [8, 5], "F32", "freed or resized to 0 bytes"), ("short", [3, 5], "F64", "119 bytes")]
        {
            let found = tensor(model, name);
            let info = found.info.as_ref().unwrap();
            assert_eq!((found.status, &found.sha256, found.holes.bytes), (Status::Missing, &None, 0));
            assert_eq!((info.shape.as_slice(), info.stride.as_slice()), (&shape[..], &[5, 1][..]), "{pytorch}");
            assert_eq!((info.dtype.label(), info.device.as_str()), (dtype, "cpu"));
            let problem = found.problem.as_ref().unwrap();
            assert_eq!((problem.code, problem.address), (Code::ShortStorage, Some(info.header.into())));
            assert!(problem.message.contains(words), "{problem}");
        }
        assert_whole(&torch, tensor(model, "empty"), &empty);
    }
}

#[test]
fn a_nested_tensor_is_its_values_and_where_they_belong() {
    for pytorch in PYTORCHES.into_iter().filter(|version| !["1.7", "1.8"].contains(&&version[..3])) {
        let torch = torch("3.13", pytorch, Options::default());
        let python = &torch.python;
        let process = &python.process;
        // Two rows and four rows of three elements.
        let made = |derived: &[u64], keys: &[&str]| {
            let tensor = torch.tensor(&Tensor::f32(&[18]));
            torch.numbers.derive(python, &tensor, true, derived);
            add_keys(&torch, &tensor, &[&["NestedTensor"], keys].concat());
            // Its own sizes mean nothing.
            process.put(tensor.tensor_impl + torch.numbers.at("tensor.sizes_inline"), 0);
            process.put(tensor.tensor_impl + torch.numbers.at("tensor.numel"), 0);
            tensor
        };
        let table = || torch.tensor(&Tensor::new("Long", &[2, 2]));
        let (sizes, strides, offsets) = (table(), table(), torch.tensor(&Tensor::new("Long", &[2])));
        let new = made(&[sizes.tensor_impl, strides.tensor_impl, offsets.tensor_impl], &[]);
        let vector = process.words(&[0, 6]);
        let old = made(&[sizes.tensor_impl, strides.tensor_impl, vector, vector + 16, vector + 16], &[]);
        let odd = made(&[sizes.tensor_impl, offsets.tensor_impl], &[]);
        let jagged = made(&[], &["Python"]);
        hold(&torch, &[("new", &new), ("old", &old), ("odd", &odd), ("jagged", &jagged)]);
        let recovery = recover(&dump(process));
        let model = only_model(&recovery);
        let hash = |words: [u64; 2]| sha256(&words.map(u64::to_le_bytes).concat());
        for (name, truth, starts) in [("new", &new, sha256(&offsets.logical)), ("old", &old, hash([0, 6]))] {
            let found = tensor(model, name);
            assert_eq!((found.status, &found.problem, form(found).name()), (Status::Complete, &None, "nested"));
            let parts: Vec<_> = found.parts.iter().map(|part| (part.name.as_str(), part.sha256.clone())).collect();
            let expected = [
                ("values", sha256(&truth.logical)),
                ("nested_sizes", sha256(&sizes.logical)),
                ("nested_strides", sha256(&strides.logical)),
                ("storage_offsets", starts),
            ];
            let expected: Vec<_> = expected.map(|(part, hash)| (format!("{name}.{part}"), Some(hash))).into();
            let parts: Vec<_> = parts.into_iter().map(|(part, hash)| (part.to_owned(), hash)).collect();
            assert_eq!(parts, expected, "{pytorch}");
        }
        let found = tensor(model, "odd");
        assert_eq!((found.status, found.parts.len()), (Status::Missing, 0));
        let found = tensor(model, "jagged");
        assert_eq!((found.status, form(found).name()), (Status::Missing, "nested_jagged"));
        assert!(found.problem.as_ref().unwrap().message.contains("torch.jagged"), "{:?}", found.problem);
    }
}

#[test]
fn a_quantizer_that_refers_to_its_own_tensor_ends() {
    let torch = torch("3.12", "2.6", Options::default());
    let looped = torch.tensor(&Tensor::new("QInt8", &[4]));
    let words = [looped.tensor_impl, looped.tensor_impl, 0];
    torch.numbers.derive(&torch.python, &looped, true, &[quantizer(&torch, "QInt8", words)]);
    hold(&torch, &[("looped", &looped)]);
    let recovery = recover(&dump(&torch.python.process));
    assert_whole(&torch, tensor(only_model(&recovery), "looped"), &looped);
}
