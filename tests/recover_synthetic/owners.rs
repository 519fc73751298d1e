//! Models that only C++ holds: no Python object leads to them or to their tensors.

use tensorcarve::addr::VirtAddr;
use tensorcarve::model::{Model, Module, TensorKind};
use tensorcarve::recover::Recovery;

use super::scripts::{MACHINES, unseen};
use super::synthetic::network::Dictionaries;
use super::synthetic::script::{BOOL, BUFFER, NONE, OBJECT, PARAMETER, REGULAR, Script, TENSOR};
use super::synthetic::{Options, Placed, Tensor, Torch, dump, recover, torch};
use super::{assert_whole, only_model};

const LONG: &str = "a_name_that_does_not_fit_into_a_string_object";

fn names(model: &Model) -> Vec<(&str, TensorKind, bool)> {
    model.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.kind, tensor.persistent)).collect()
}

fn modules(model: &Model) -> Vec<(&str, Option<&str>, Option<bool>, VirtAddr)> {
    let row = |module: &'_ Module| (module.training, module.object);
    let names = model.modules.iter().map(|module| (module.name.as_str(), module.class.as_deref()));
    names.zip(model.modules.iter().map(row)).map(|((name, class), (flag, at))| (name, class, flag, at)).collect()
}

/// Tensors that are found by their headers: with two counts, and a device of their own.
pub fn tensors(torch: &Torch, shapes: &[&[u64]]) -> Vec<Placed> {
    let tensor = |shape: &&[u64]| {
        let placed = unseen(torch, &Tensor::f32(shape).learned());
        let (process, at) = (&torch.python.process, |key: &str| placed.tensor_impl + torch.numbers.at(key));
        // Two words before the storage in old versions, two halves of one in others.
        let words: &[u64] =
            if at("tensor.storage_pointer") == placed.tensor_impl + 24 { &[1, 1] } else { &[1 << 32 | 1] };
        (placed.tensor_impl + 8..).step_by(8).zip(words).for_each(|(at, word)| process.put(at, *word));
        for (key, byte) in [("device_has_value", 1), ("device_type", 0), ("device_index", 0xff)] {
            process.write(at(&format!("tensor.{key}")), &[byte]);
        }
        placed
    };
    shapes.iter().map(tensor).collect()
}

/// That no model came out, but all tensors as tensors of no model.
fn assert_no_model(recovery: &Recovery, tensors: &[Placed]) {
    let [process] = recovery.processes.as_slice() else { panic!("{} processes", recovery.processes.len()) };
    assert_eq!(process.models.len(), 0, "{:#?}", process.models);
    let found = process.standalone.found.iter().filter_map(|found| found.tensor.info.as_ref()).map(|info| info.header);
    let found: Vec<VirtAddr> = found.collect();
    assert!(tensors.iter().all(|tensor| found.contains(&VirtAddr(tensor.tensor_impl))), "{found:?}");
}

#[test]
fn script_modules_are_found_from_their_tensors() {
    for (cpython, pytorch, abi, places) in MACHINES {
        let torch = torch(cpython, pytorch, Options::default());
        let script = Script::new(&torch, abi, places);
        let placed = tensors(&torch, &[&[4, 3], &[4], &[5], &[2, 2]]);
        let [weight, bias, scale, shift] = placed.as_slice() else { panic!() };
        let tensor = |tensor: &Placed| tensor.tensor_impl;
        let attributes = [
            ("weight", PARAMETER, TENSOR, tensor(weight)),
            (LONG, PARAMETER, TENSOR, tensor(bias)),
            ("training", REGULAR, BOOL, 0),
        ];
        let layer = script.object("__torch__.torch.nn.modules.linear.Linear", &attributes);
        let empty = script.object("__torch__.torch.nn.modules.ReLU", &[("training", REGULAR, BOOL, 1)]);
        let children = [("0", REGULAR, OBJECT, layer), ("1", REGULAR, OBJECT, empty), ("training", REGULAR, BOOL, 1)];
        let parts = script.object("__torch__.torch.nn.modules.container.Sequential", &children);
        let attributes = [
            ("training", REGULAR, BOOL, 1),
            ("_is_full_backward_hook", REGULAR, NONE, 0),
            ("scale", BUFFER, TENSOR, tensor(scale)),
            ("parts", REGULAR, OBJECT, parts),
            ("shift", REGULAR, TENSOR, tensor(shift)),
        ];
        let root = script.object("__torch__.Net", &attributes);
        // The `torch::jit::Module` on somebody's stack.
        torch.python.process.words(&[root]);
        // A stack that forgot nothing: a pointer into an object.
        torch.python.process.words(&[layer + 16, parts + 32]);
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_eq!((model.class.as_deref(), model.object), (Some("__torch__.Net"), VirtAddr(root)), "{pytorch}");
        let expected = [
            ("scale", TensorKind::Buffer, true),
            ("shift", TensorKind::Buffer, false),
            ("parts.0.weight", TensorKind::Parameter, true),
            (&format!("parts.0.{LONG}"), TensorKind::Parameter, true),
        ];
        assert_eq!(names(model), expected, "{pytorch}");
        for (found, truth) in model.tensors.iter().zip([scale, shift, weight, bias]) {
            assert_whole(&torch, found, truth);
        }
        let expected = [
            ("", Some("__torch__.Net"), Some(true), VirtAddr(root)),
            ("parts", Some("__torch__.torch.nn.modules.container.Sequential"), Some(true), VirtAddr(parts)),
            ("parts.0", Some("__torch__.torch.nn.modules.linear.Linear"), Some(false), VirtAddr(layer)),
            ("parts.1", Some("__torch__.torch.nn.modules.ReLU"), Some(true), VirtAddr(empty)),
        ];
        assert_eq!(modules(model), expected, "{pytorch}");
        assert_eq!(recovery.processes[0].standalone.found.len(), 0);
    }
}

#[test]
fn constants_of_frozen_modules_have_the_names_of_their_values() {
    for (cpython, pytorch, abi, places) in MACHINES {
        let torch = torch(cpython, pytorch, Options::default());
        let script = Script::new(&torch, abi, places);
        let placed = tensors(&torch, &[&[4, 3], &[4], &[5], &[6]]);
        let [weight, bias, folded, free] = placed.as_slice() else { panic!() };
        let constants = [
            ("self.fc.weight", weight.tensor_impl),
            ("self.fc.bias", bias.tensor_impl),
            ("", folded.tensor_impl),
            ("self.fc.weight", weight.tensor_impl),
        ];
        script.method("__torch__.Net", "forward", script.graph(&constants));
        // A copy of it that was optimized, in another order, and code that was loaded from a file.
        script.graph(&[constants[1], constants[0]]);
        script.method("__torch__.Loaded", "forward", script.graph(&[("", free.tensor_impl)]));
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_eq!(model.class.as_deref(), Some("__torch__.Net"), "{pytorch}");
        let names = model.tensors.iter().map(|tensor| tensor.name.as_str());
        assert_eq!(names.collect::<Vec<_>>(), ["fc.weight", "fc.bias", "constant102"], "{pytorch}");
        for (found, truth) in model.tensors.iter().zip([weight, bias, folded]) {
            assert_whole(&torch, found, truth);
        }
        let [left] = recovery.processes[0].standalone.found.as_slice() else { panic!() };
        assert_eq!(left.tensor.info.as_ref().unwrap().header, VirtAddr(free.tensor_impl));
    }
}

#[test]
fn a_chain_has_the_order_in_which_the_last_forward_pass_used_it() {
    const USED: [usize; 5] = [3, 0, 4, 1, 2];
    for (cpython, pytorch, abi, places) in MACHINES {
        let torch = torch(cpython, pytorch, Options::default());
        let (process, script) = (&torch.python.process, Script::new(&torch, abi, places));
        let placed = tensors(&torch, &[&[16, 16][..]; 5]);
        let [loss] = tensors(&torch, &[&[1]]).try_into().ok().unwrap();
        let graph = |tensor: &Placed| {
            process.get(tensor.tensor_impl + torch.numbers.at("tensor.autograd_meta"))
                + torch.numbers.at("autograd.grad_fn")
        };
        // The input needs no gradient; each weight is transposed before it is used.
        let mut last = 0;
        for (weight, number) in USED.iter().map(|weight| &placed[*weight]).zip((100..).step_by(2)) {
            let accumulator = script.autograd_node(u64::MAX, &[]);
            process.put(graph(weight) + 16, accumulator);
            let transposed = script.autograd_node(number, &[accumulator]);
            last = script.autograd_node(number + 1, &[last, transposed]);
        }
        process.put(graph(&loss), last);
        // A node whose edges lead to itself, and one that says that it has more edges than there are.
        let circle = script.autograd_node(200, &[0, 0]);
        let begin = process.get(circle + 96);
        [0, 24].iter().for_each(|edge| process.put(begin + edge, circle));
        process.put(graph(&placed[0]), circle);
        let endless = script.autograd_node(300, &[circle]);
        process.put(endless + 104, process.get(endless + 96) + (24 << 40));
        process.put(graph(&placed[1]), endless);
        let recovery = recover(&dump(process));
        let model = only_model(&recovery);
        let headers = model.tensors.iter().map(|tensor| tensor.info.as_ref().unwrap().header.0);
        let expected = USED.iter().map(|weight| placed[*weight].tensor_impl);
        assert!(headers.eq(expected), "{pytorch}: {:#?}", model.chain);
    }
}

#[test]
fn modules_of_cpp_are_found_from_their_tensors() {
    for (cpython, pytorch, abi, places) in MACHINES {
        let torch = torch(cpython, pytorch, Options::default());
        let script = Script::new(&torch, abi, places);
        let placed = tensors(&torch, &[&[4, 3], &[4], &[5], &[4, 3], &[4, 3], &[4, 3]]);
        let [weight, bias, mean, gradient, first, second] = placed.as_slice() else { panic!() };
        torch.set_grad(weight, gradient.tensor_impl);
        let undefined = torch.undefined_tensor();
        // Adam has a number before its tensors.
        script.state(weight.tensor_impl, &[3, first.tensor_impl, second.tensor_impl], abi == "old-abi");
        let layer = script.network(
            true,
            &Dictionaries {
                parameters: &[("weight", weight.tensor_impl), ("bias", bias.tensor_impl)],
                buffers: &[("running_mean", mean.tensor_impl), ("running_var", undefined)],
                ..Dictionaries::default()
            },
        );
        let empty = script.network(false, &Dictionaries::default());
        let parts =
            script.network(true, &Dictionaries { children: &[("0", layer), ("1", empty)], ..Dictionaries::default() });
        let root = script.network(
            false,
            &Dictionaries {
                parameters: &[(LONG, weight.tensor_impl)],
                children: &[("parts", parts)],
                ..Dictionaries::default()
            },
        );
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_eq!(model.object, VirtAddr(root), "{pytorch}");
        let expected = [
            (LONG, TensorKind::Parameter, true),
            ("parts.0.weight", TensorKind::Parameter, true),
            ("parts.0.bias", TensorKind::Parameter, true),
            ("parts.0.running_mean", TensorKind::Buffer, true),
        ];
        assert_eq!(names(model), expected, "{pytorch}");
        for (found, truth) in model.tensors.iter().zip([weight, weight, bias, mean]) {
            assert_whole(&torch, found, truth);
        }
        assert_eq!(model.tensors[1].same_as.as_deref(), Some(LONG));
        let expected = [
            ("", None, Some(false), VirtAddr(root)),
            ("parts", None, Some(true), VirtAddr(parts)),
            ("parts.0", None, Some(true), VirtAddr(layer)),
            ("parts.1", None, Some(false), VirtAddr(empty)),
        ];
        assert_eq!(modules(model), expected, "{pytorch}");
        assert_eq!(model.modules[2].unset, [("running_var".to_owned(), TensorKind::Buffer)]);
        let training: Vec<(&str, TensorKind)> =
            model.training.iter().map(|tensor| (tensor.name.as_str(), tensor.kind)).collect();
        let state = |index: u32| format!("{LONG}.state{index}");
        let expected =
            [(LONG, TensorKind::Gradient), (&state(0), TensorKind::Optimizer), (&state(1), TensorKind::Optimizer)];
        assert_eq!(training, expected, "{pytorch}");
        for (found, truth) in model.training.iter().zip([gradient, first, second]) {
            assert_whole(&torch, found, truth);
        }
        assert_eq!(recovery.processes[0].standalone.found.len(), 0);
    }
}

#[test]
fn modules_that_hold_each_other_are_no_models() {
    let torch = torch("3.12", "2.6", Options::default());
    let script = Script::new(&torch, "new-abi", [64, 80, 240]);
    let process = &torch.python.process;
    let placed = tensors(&torch, &[&[4, 3], &[7]]);
    let [weight, other] = placed.as_slice() else { panic!() };
    let parameters: &[_] = &[("weight", weight.tensor_impl)];
    let first = script.network(true, &Dictionaries { parameters, children: &[("next", 8)], ..Dictionaries::default() });
    let second = script.network(true, &Dictionaries { children: &[("next", first)], ..Dictionaries::default() });
    process.put(process.get(script.items(first, "children")) + 32, second);
    let attributes = [("weight", PARAMETER, TENSOR, other.tensor_impl), ("next", REGULAR, OBJECT, 8)];
    let object = script.object("__torch__.A", &attributes);
    let holder = script.object("__torch__.B", &[("next", REGULAR, OBJECT, object)]);
    process.put(process.get(object + 80) + 16, holder);
    assert_no_model(&recover(&dump(process)), &placed);
}

#[test]
fn dictionaries_that_contradict_themselves_are_none() {
    // What is changed: where, to what.
    type Change = fn(&Script<'_>, u64) -> (u64, u64);
    let changes: [Change; 6] = [
        |script, module| (script.items(module, "parameters") + 8, u64::MAX),
        |script, module| (script.items(module, "parameters") + 16, 0),
        // One element more than the index has.
        |script, module| (script.items(module, "parameters") - 56 + 24, 2),
        |script, module| (script.items(module, "children"), 8),
        // A name with a control character, one with a dot.
        |script, module| (script.torch.python.process.get(script.items(module, "parameters")) + 16, 0x0a61_6161),
        |script, module| (script.torch.python.process.get(script.items(module, "parameters")) + 16, 0x6161_612e),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let torch = torch("3.12", "2.6", Options::default());
        let script = Script::new(&torch, "new-abi", [64, 80, 240]);
        let placed = tensors(&torch, &[&[4, 3], &[7]]);
        let parameters: &[_] = &[("four", placed[0].tensor_impl)];
        let module = script.network(true, &Dictionaries { parameters, ..Dictionaries::default() });
        assert_eq!(recover(&dump(&torch.python.process)).processes[0].models.len(), 1, "{number}");
        let (at, word) = change(&script, module);
        torch.python.process.put(at, word);
        assert_no_model(&recover(&dump(&torch.python.process)), &placed);
    }
}
