//! Tensors that are more, or other, than elements at strides.

use tensorcarve::model::{NamedTensor, Status};
use tensorcarve::tensor::{Form, Quantizer, Sparse};

use super::synthetic::{ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, torch};
use super::{assert_whole, only_model, tensor};

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
        let others: Vec<_> = recovery.processes[0].others.found.iter().map(|other| other.tensor.object.0).collect();
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
        assert!(found.problem.as_ref().unwrap().contains("opaque"), "{:?}", found.problem);
    }
}
