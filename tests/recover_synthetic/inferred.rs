//! PyTorch whose structures no table has: the tensors tell the layout, and the report says so.

use tensorcarve::cpython::LayoutSource;
use tensorcarve::diagnostic::Code;
use tensorcarve::recover::Recovery;

use super::inference::padded;
use super::synthetic::{
    Machine, ModuleSpec, Options, Placed, Process, Python, SIGNATURES, Tensor, Torch, dump, layout, recover, torch,
};
use super::{assert_whole, only_model};

/// PyTorch with other numbers than its version has.
fn patched(pytorch: &str, changes: &[(&str, i64)]) -> Torch {
    let mut torch = torch("3.11", pytorch, Options { frames: 2048, ..Options::default() });
    for (number, value) in changes {
        torch.numbers.0.fields.get_mut(*number).unwrap().value = *value;
    }
    torch
}

/// A model with tensors of some kinds, gradients included.
fn place(torch: &Torch) -> Vec<Placed> {
    let new = Tensor::new;
    let specs = [
        new("Float", &[6, 3, 5, 5]).learned(),
        new("Float", &[6]).learned(),
        new("Float", &[16, 6, 5, 5]).learned(),
        new("Half", &[120, 400]).learned(),
        new("Float", &[120]).learned(),
        new("Float", &[84, 120]).strided(&[1, 84]).learned(),
        new("Double", &[2, 1, 3, 2, 2, 2]).learned(),
        new("Float", &[6]),
        new("Long", &[]),
        new("Float", &[0, 3]),
    ];
    let mut placed: Vec<Placed> = specs.iter().map(|spec| torch.tensor(spec)).collect();
    placed.push(torch.view(&Tensor::new("Half", &[100]).at_offset(7), &placed[3]));
    for parameter in placed.iter().filter(|placed| placed.spec.requires_grad) {
        let grad = torch.tensor(&Tensor::new(parameter.spec.dtype, &parameter.spec.shape));
        torch.set_grad(parameter, grad.tensor_impl);
    }
    let names: Vec<String> = (0..placed.len()).map(|i| format!("t{i}")).collect();
    let held = names.iter().map(String::as_str).zip(placed.iter().map(Some));
    let (parameters, buffers) = held.partition(|(_, placed)| placed.is_some_and(|placed| placed.spec.requires_grad));
    torch.module(torch.module_type("__main__", "Net"), &ModuleSpec { parameters, buffers, ..ModuleSpec::default() });
    placed
}

/// Asserts that all came out as it was written, by inference, and that the numbers that were found are those that were made up.
fn assert_inferred(torch: &Torch, recovery: &Recovery, placed: &[Placed], changes: &[(&str, i64)]) {
    let process = &recovery.processes[0];
    let (layout, _) = process.facts.torch.as_ref().unwrap().layout.as_ref().unwrap();
    assert!(layout.inferred, "{layout:?}");
    assert_eq!((layout.readable, layout.tried), (placed.len(), placed.len()), "{layout:?}");
    let table = SIGNATURES.layouts("pytorch").find(|table| table.version == layout.version).unwrap();
    for (number, made_up) in changes.iter().filter(|(number, _)| *number != KEY_SET) {
        let found = layout.changes.iter().find(|change| change.number == *number).and_then(|change| change.to);
        // What no tensor tells apart is as in the table.
        assert_eq!(found.or(table.get(number)), Some(*made_up), "{number}: {layout:?}");
    }
    let model = only_model(recovery);
    assert_eq!(model.tensors.len(), placed.len());
    for found in &model.tensors {
        let index: usize = found.name[1..].parse().unwrap();
        assert_whole(torch, found, &placed[index]);
        assert!(found.inferred, "{found:?}");
    }
    let grads: Vec<_> =
        model.training.iter().map(|grad| (grad.status, grad.info.as_ref().unwrap().shape.clone())).collect();
    let learned = placed.iter().filter(|placed| placed.spec.requires_grad);
    assert_eq!(grads.len(), learned.count(), "{grads:?}");
    let warning = recovery.warnings.iter().find(|warning| warning.code == Code::InferredTensorLayout).unwrap();
    assert!(warning.message.contains(&format!("{} of {} tensors", placed.len(), placed.len())), "{warning}");
}

/// The dispatch keys have a vote of their own, after the layout is chosen.
const KEY_SET: &str = "tensor.key_set";

const SHIFTED: [(&str, i64); 14] = [
    (KEY_SET, 192),
    ("tensor.pyobj", 72),
    ("tensor.dim", 80),
    ("tensor.sizes_inline", 88),
    ("tensor.strides_inline", 128),
    ("tensor.out_of_line_pointer", 88),
    ("tensor.storage_offset", 168),
    ("tensor.numel", 176),
    ("tensor.dtype_index", 184),
    ("storage.data", 32),
    ("storage.size_bytes", 64),
    ("storage.device_type", 56),
    ("storage.device_index", 57),
    ("autograd.requires_grad", 152),
];

#[test]
fn shifted_fields_are_found() {
    for pytorch in ["1.13", "2.6", "2.6-old-abi", "2.14"] {
        let torch = patched(pytorch, &SHIFTED);
        let placed = place(&torch);
        assert_inferred(&torch, &recover(&dump(&torch.python.process)), &placed, &SHIFTED);
    }
}

#[test]
fn a_padded_python_with_shifted_tensors() {
    for version in ["3.8", "3.11", "3.13", "3.14"] {
        for bytes in [8, 16, 32] {
            let padded = padded(&layout(version), 2, bytes);
            let machine = Machine::new(Options { frames: 2048, ..Options::default() });
            let mut torch = Torch::new(Python::of_layout(Process::new(&machine), padded, None), "2.6");
            for (number, value) in SHIFTED {
                torch.numbers.0.fields.get_mut(number).unwrap().value = value;
            }
            let placed = place(&torch);
            let recovery = recover(&dump(&torch.python.process));
            assert_inferred(&torch, &recovery, &placed, &SHIFTED);
            let (python, _) = &recovery.processes[0].python.as_ref().unwrap().layout;
            assert_eq!(python.source, LayoutSource::Inferred, "{version} {bytes}: {python:?}");
            let inferred = recovery
                .warnings
                .iter()
                .filter(|warning| [Code::InferredPythonLayout, Code::InferredTensorLayout].contains(&warning.code));
            assert_eq!(inferred.count(), 2, "{version} {bytes}: {:?}", recovery.warnings);
        }
    }
}

#[test]
fn permuted_fields_are_found() {
    let permuted = [
        ("thp.tensor_impl_pointer", 48),
        ("tensor.numel", 24),
        ("tensor.autograd_meta", 32),
        ("tensor.dim", 40),
        ("tensor.strides_inline", 48),
        ("tensor.dtype_index", 88),
        ("tensor.sizes_inline", 96),
        ("tensor.out_of_line_pointer", 96),
        ("tensor.storage_offset", 144),
        ("tensor.pyobj", 152),
        ("tensor.storage_pointer", 200),
        ("storage.size_bytes", 16),
        ("storage.data", 40),
        ("storage.device_type", 32),
        ("storage.device_index", 33),
        ("autograd.grad", 96),
        ("autograd.grad_fn", 104),
        ("autograd.name", 64),
        ("autograd.requires_grad", 26),
    ];
    let torch = patched("2.6", &permuted);
    let placed = place(&torch);
    assert_inferred(&torch, &recover(&dump(&torch.python.process)), &placed, &permuted);
}

#[test]
fn vectors_of_sizes_are_found_where_they_moved() {
    let moved = [
        ("tensor.pyobj", 64),
        ("tensor.sizes_begin", 80),
        ("tensor.sizes_end", 88),
        ("tensor.strides_begin", 152),
        ("tensor.storage_offset", 216),
        ("tensor.numel", 224),
        ("tensor.type_meta_pointer", 232),
        (KEY_SET, 240),
    ];
    let torch = patched("1.7", &moved);
    let placed = place(&torch);
    assert_inferred(&torch, &recover(&dump(&torch.python.process)), &placed, &moved);
}

#[test]
fn autograd_data_that_moved_alone_leave_the_rest_to_the_table() {
    let moved =
        [("autograd.name", 24), ("autograd.grad", 56), ("autograd.grad_fn", 64), ("autograd.requires_grad", 160)];
    let torch = patched("2.6", &moved);
    let placed = place(&torch);
    let recovery = recover(&dump(&torch.python.process));
    let (layout, _) = recovery.processes[0].facts.torch.as_ref().unwrap().layout.as_ref().unwrap();
    assert!(
        layout.inferred && layout.changes.iter().all(|change| change.number.starts_with("autograd.")),
        "{layout:?}"
    );
    for found in &only_model(&recovery).tensors {
        let index: usize = found.name[1..].parse().unwrap();
        assert_whole(&torch, found, &placed[index]);
        // Its elements are where the table has them.
        assert!(!found.inferred, "{found:?}");
    }
}

#[test]
fn a_table_that_fits_stays_although_nothing_is_learned() {
    let torch = patched("2.6", &[]);
    // Frozen: there are autograd data, and no flag is set.
    let frozen: Vec<Placed> = [vec![3, 4], vec![5], vec![2, 2, 2]]
        .iter()
        .map(|shape| torch.tensor(&Tensor { grad_fn: true, ..Tensor::f32(shape) }))
        .collect();
    for placed in &frozen {
        let process = &torch.python.process;
        let meta = process.get(placed.tensor_impl + torch.numbers.at("tensor.autograd_meta"));
        process.put(meta + torch.numbers.at("autograd.grad_fn"), 0);
    }
    let parameters = ["a", "b", "c"].into_iter().zip(frozen.iter().map(Some)).collect();
    torch.module(torch.module_type("__main__", "Net"), &ModuleSpec { parameters, ..ModuleSpec::default() });
    let recovery = recover(&dump(&torch.python.process));
    let (layout, _) = recovery.processes[0].facts.torch.as_ref().unwrap().layout.as_ref().unwrap();
    assert_eq!((layout.inferred, layout.version.as_str()), (false, "2.6"), "{layout:?}");
    assert!(only_model(&recovery).tensors.iter().all(|tensor| !tensor.info.as_ref().unwrap().requires_grad));
}
