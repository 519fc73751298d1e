//! Which layout reads a process: damage to a few headers, versions, and evidence that does not decide.

use tensorcarve::addr::VirtAddr;
use tensorcarve::diagnostic::Code;
use tensorcarve::framework::torch::TensorScore;
use tensorcarve::model::Status;
use tensorcarve::recover::Recovery;

use super::synthetic::{ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, release, sha256, torch};
use super::{assert_whole, only_model};

/// What a damaged offset in a storage looks like: far outside of it.
const FAR: u64 = 1 << 62;

fn hold(torch: &Torch, tensors: &[&Placed]) {
    let names: Vec<String> = (0..tensors.len()).map(|i| format!("t{i}")).collect();
    let buffers = names.iter().map(String::as_str).zip(tensors.iter().map(|tensor| Some(*tensor))).collect();
    torch.module(torch.module_type("__main__", "Net"), &ModuleSpec { buffers, ..ModuleSpec::default() });
}

fn layout(recovery: &Recovery) -> &TensorScore {
    &recovery.processes[0].facts.torch.as_ref().unwrap().layout.as_ref().unwrap().0
}

/// PyTorch gives another version of itself: of two modules of one name the one with more in it counts.
fn claim(torch: &Torch, version: &str) {
    let python = &torch.python;
    let none = python.builtin.none;
    let names = [("__version__", python.str(version)), ("debug", none), ("cuda", none), ("git_version", none)];
    python.module("torch.version", &names);
}

#[test]
fn a_damaged_header_among_few_costs_one_tensor() {
    for pytorch in PYTORCHES {
        let torch = torch("3.11", pytorch, Options { frames: 512, ..Options::default() });
        let flat = torch.tensor(&Tensor::f32(&[700]));
        let slice = |offset| torch.view(&Tensor::f32(&[10]).at_offset(offset).learned(), &flat);
        let (a, b) = (slice(10), slice(30));
        let damaged = torch.parameter(&[2]);
        torch.python.process.put(damaged.tensor_impl + torch.numbers.at("tensor.storage_offset"), FAR);
        hold(&torch, &[&a, &b, &damaged]);
        let recovery = recover(&dump(&torch.python.process));
        assert_eq!((layout(&recovery).version.as_str(), layout(&recovery).inferred), (pytorch, false));
        let model = only_model(&recovery);
        assert_whole(&torch, &model.tensors[0], &a);
        assert_whole(&torch, &model.tensors[1], &b);
        assert_eq!(model.tensors[2].status, Status::Missing);
        let problem = &model.tensors[2].problem.as_ref().unwrap().message;
        assert!(problem.contains("too small for its elements") && problem.contains(&FAR.to_string()), "{problem}");
    }
}

#[test]
fn where_all_are_damaged_each_says_what_is_wrong() {
    let torch = torch("3.11", "1.13", Options::default());
    let all: Vec<Placed> = (2..7).map(|n| torch.parameter(&[n])).collect();
    for placed in &all {
        torch.python.process.put(placed.tensor_impl + torch.numbers.at("tensor.storage_offset"), FAR);
    }
    hold(&torch, &all.iter().collect::<Vec<_>>());
    let recovery = recover(&dump(&torch.python.process));
    let TensorScore { version, readable, inferred, .. } = layout(&recovery);
    assert_eq!((version.as_str(), *readable, *inferred), ("1.13", 0, false));
    assert!(recovery.warnings.iter().any(|warning| warning.message.contains("reads any of the 5 tensors")));
    for found in &only_model(&recovery).tensors {
        assert_eq!(found.status, Status::Missing);
        assert!(found.problem.as_ref().unwrap().message.contains(&FAR.to_string()), "{found:?}");
    }
}

#[test]
fn frozen_tensors_keep_the_layout_of_their_version() {
    for pytorch in PYTORCHES {
        let torch = torch("3.11", pytorch, Options { frames: 512, ..Options::default() });
        let flat = torch.tensor(&Tensor::f32(&[50]));
        // A view has autograd data, and no gradient is recorded for it.
        let view = torch.view(&Tensor { grad_fn: true, ..Tensor::f32(&[10]).at_offset(10) }, &flat);
        let meta = torch.python.process.get(view.tensor_impl + torch.numbers.at("tensor.autograd_meta"));
        torch.python.process.put(meta + torch.numbers.at("autograd.grad_fn"), 0);
        let plain = torch.tensor(&Tensor::f32(&[2, 3]));
        hold(&torch, &[&view, &plain]);
        let recovery = recover(&dump(&torch.python.process));
        assert_eq!((layout(&recovery).version.as_str(), layout(&recovery).inferred), (pytorch, false));
        for (found, truth) in only_model(&recovery).tensors.iter().zip([&view, &plain]) {
            assert_eq!((found.status, found.inferred), (Status::Complete, false));
            assert_eq!(found.sha256.as_deref(), Some(sha256(&truth.logical).as_str()));
            assert!(!found.info.as_ref().unwrap().requires_grad);
        }
        assert_eq!(recovery.warnings, []);
    }
}

#[test]
fn without_autograd_data_the_version_decides() {
    for (pytorch, version) in [("1.13", "1.13.0a0"), ("2.1", "2.2.1+cu121"), ("2.6", "2.8.0"), ("2.14", "2.15.0+cpu")] {
        let torch = torch("3.11", pytorch, Options::default());
        claim(&torch, version);
        let plain = torch.tensor(&Tensor::f32(&[2, 3]));
        hold(&torch, &[&plain]);
        let recovery = recover(&dump(&torch.python.process));
        assert_eq!(recovery.processes[0].facts.torch.as_ref().unwrap().version.as_deref(), Some(version));
        assert_eq!(layout(&recovery).version, pytorch);
        assert_whole(&torch, &only_model(&recovery).tensors[0], &plain);
    }
}

#[test]
fn a_version_that_is_not_true_forces_nothing() {
    for (pytorch, claimed) in [("2.6", "1.13.0"), ("1.7", "2.14.1"), ("2.1", "1.13.1"), ("1.13", "?"), ("2.10", "99.9")]
    {
        let torch = torch("3.11", pytorch, Options::default());
        claim(&torch, claimed);
        let all: Vec<Placed> = (1..8).map(|n| torch.parameter(&[n, 2])).collect();
        hold(&torch, &all.iter().collect::<Vec<_>>());
        let recovery = recover(&dump(&torch.python.process));
        assert_eq!(recovery.processes[0].facts.torch.as_ref().unwrap().version.as_deref(), Some(claimed));
        assert_eq!(release(&layout(&recovery).version), pytorch, "{claimed}");
        for (found, truth) in only_model(&recovery).tensors.iter().zip(&all) {
            assert_whole(&torch, found, truth);
        }
    }
}

#[test]
fn what_two_layouts_read_differently_is_left_out() {
    let torch = torch("3.11", "2.10", Options::default());
    let empty = torch.tensor(&Tensor::f32(&[0, 3]));
    // By the layout 1.8 its storage is where its autograd data are, of which it has none; its device is the CPU.
    torch.python.process.write(empty.tensor_impl + torch.numbers.at("tensor.device_type"), &[0, 0]);
    hold(&torch, &[&empty]);
    let recovery = recover(&dump(&torch.python.process));
    assert_eq!(layout(&recovery).version, "2.10");
    assert_whole(&torch, &only_model(&recovery).tensors[0], &empty);
    claim(&torch, "unknown");
    let recovery = recover(&dump(&torch.python.process));
    assert!(!layout(&recovery).rivals.is_empty(), "{:?}", layout(&recovery));
    let found = &only_model(&recovery).tensors[0];
    assert_eq!(found.status, Status::Missing);
    assert!(found.problem.as_ref().unwrap().message.contains("fit the process equally well"), "{found:?}");
    assert!(recovery.warnings.iter().any(|warning| warning.code == Code::UndecidedLayout), "{:?}", recovery.warnings);
}

#[test]
fn a_tensor_and_its_storage_are_on_one_device() {
    for pytorch in ["1.8", "2.6", "2.14"] {
        let torch = torch("3.11", pytorch, Options::default());
        let (whole, moved) = (torch.parameter(&[3]), torch.parameter(&[4]));
        for (placed, device) in [(&whole, "cpu"), (&moved, "cuda")] {
            let device = torch.numbers.device_index(device) as u8;
            let put = |key: &str, byte| {
                torch.python.process.write(placed.tensor_impl + torch.numbers.at(key), &[byte]);
            };
            put("tensor.device_has_value", 1);
            put("tensor.device_type", device);
        }
        hold(&torch, &[&whole, &moved]);
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_whole(&torch, &model.tensors[0], &whole);
        assert_eq!(model.tensors[1].status, Status::Missing);
        let problem = &model.tensors[1].problem.as_ref().unwrap().message;
        assert!(problem.contains("its TensorImpl is on the device cuda, but its storage is on cpu"), "{problem}");
    }
}

#[test]
fn an_entry_that_points_at_another_header_is_no_tensor() {
    let torch = torch("3.11", "1.13", Options::default());
    let (first, second) = (torch.parameter(&[5]), torch.parameter(&[6]));
    // What the dictionary holds in its place is the `TensorImpl` of the other.
    let stray = Placed { object: first.tensor_impl, ..second.clone() };
    for order in [[&first, &stray, &second], [&stray, &second, &first]] {
        hold(&torch, &order);
    }
    let recovery = recover(&dump(&torch.python.process));
    let tensors: Vec<_> =
        recovery.processes.iter().flat_map(|process| &process.models).flat_map(|model| &model.tensors).collect();
    assert_eq!(tensors.len(), 6);
    for found in tensors {
        if found.object == VirtAddr(stray.object) {
            assert_eq!((found.status, &found.sha256), (Status::Missing, &None), "{found:?}");
            assert!(found.problem.is_some());
        } else {
            let truth = if found.object == VirtAddr(first.object) { &first } else { &second };
            assert_whole(&torch, found, truth);
        }
    }
}
