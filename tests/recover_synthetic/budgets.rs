//! Objects that would give names, text or bytes without end: what else there is still comes out whole.

use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::Value;
use tensorcarve::diagnostic::Code;
use tensorcarve::model::{Model, Reading, Status};
use tensorcarve::recover::Recovery;

use super::synthetic::{ModuleSpec, Options, Placed, Tensor, Torch, dump, recover, sha256, torch};
use super::{assert_whole, only_model, tensor};

/// The model whose root is at an address.
fn model_at(recovery: &Recovery, root: u64) -> &Model {
    let mut models = recovery.processes.iter().flat_map(|process| &process.models);
    models.find(|model| model.object == VirtAddr(root)).unwrap()
}

fn holder(torch: &Torch, spec: &ModuleSpec<'_>) -> u64 {
    torch.module(torch.module_type("__main__", "Holder"), spec)
}

#[test]
fn a_tree_of_shared_modules_hides_no_other_model() {
    let torch = torch("3.11", "1.13", Options::default());
    let small = |count: u64| -> Vec<(u64, Placed)> { (0..count).map(|_| torch.small_model("Net", &[3])).collect() };
    let before = small(3);
    let weight = torch.parameter(&[2]);
    let mut level = holder(&torch, &ModuleSpec { parameters: vec![("w", Some(&weight))], ..ModuleSpec::default() });
    for _ in 0..40 {
        level = holder(&torch, &ModuleSpec { children: vec![("a", level), ("b", level)], ..ModuleSpec::default() });
    }
    // What comes behind the shared modules in the same tree is listed as well.
    let (last, own) = torch.small_model("Last", &[4]);
    let root = holder(&torch, &ModuleSpec { children: vec![("x", level), ("last", last)], ..ModuleSpec::default() });
    let after = small(3);
    let recovery = recover(&dump(&torch.python.process));
    for (object, weight) in before.iter().chain(&after) {
        let model = model_at(&recovery, *object);
        assert_eq!(model.problems, []);
        assert_whole(&torch, &model.tensors[0], weight);
    }
    let model = model_at(&recovery, root);
    assert_whole(&torch, tensor(model, "last.weight"), &own);
    assert!(model.tensors.len() > 2 && model.tensors.len() < 1 << 17, "{}", model.tensors.len());
    assert!(model.tensors.iter().all(|tensor| tensor.status == Status::Complete));
    let [problem] = &model.problems[..] else { panic!("{:?}", model.problems) };
    assert!(problem.code == Code::PartsLeftOut && problem.message.contains("further names"), "{problem}");
}

#[test]
fn long_names_and_texts_are_cut_and_their_length_is_said() {
    let torch = torch("3.12", "2.6", Options::default());
    let python = &torch.python;
    let (long, longer) = ("k".repeat(5000), "x".repeat(100_000));
    let (a, b) = (torch.parameter(&[3]), torch.parameter(&[4]));
    let note = python.str(&longer);
    let short = python.str(&"y".repeat(5000));
    let child = holder(
        &torch,
        &ModuleSpec {
            parameters: vec![(&long, Some(&a))],
            attributes: vec![("note", note), ("short", short)],
            ..ModuleSpec::default()
        },
    );
    let root = holder(
        &torch,
        &ModuleSpec {
            parameters: vec![("b", Some(&b))],
            children: vec![(&long, child), ("c", child)],
            attributes: vec![("many", python.tuple(&[note, short, note]))],
            ..ModuleSpec::default()
        },
    );
    let recovery = recover(&dump(&python.process));
    let model = only_model(&recovery);
    assert_eq!(model.object.0, root);
    let cut = format!("{}…[5000 characters]", "k".repeat(256));
    let names: Vec<&str> = model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["b", &format!("{cut}.{cut}"), &format!("c.{cut}")]);
    assert_whole(&torch, &model.tensors[1], &a);
    let text = |text: &str| Value::Str(text.to_owned());
    let of_note = format!("{}…[100000 characters]", "x".repeat(256));
    let find = |module: usize, name: &str| {
        model.modules[module]
            .hyperparameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .unwrap()
    };
    assert_eq!(find(0, "many"), Value::Tuple(vec![text(&of_note), text(&"y".repeat(5000)), text(&of_note)]));
    assert_eq!((find(1, "note"), find(1, "short")), (text(&of_note), text(&"y".repeat(5000))));
    assert_eq!(find(2, "short"), find(1, "short"));
    assert_eq!(model.problems, []);
}

#[test]
fn elements_that_share_their_bytes_are_written_once() {
    let torch = torch("3.11", "1.13", Options::default());
    let row = torch.parameter(&[2000]);
    let view = |shape: &[u64], stride: &[u64]| torch.view(&Tensor::f32(shape).strided(stride), &row);
    let (wide, narrow) = (view(&[1000, 2000], &[0, 1]), view(&[3, 2000], &[0, 1]));
    let windows = view(&[1000, 1001], &[1, 1]);
    let buffers = vec![("wide", Some(&wide)), ("narrow", Some(&narrow)), ("windows", Some(&windows))];
    holder(&torch, &ModuleSpec { parameters: vec![("row", Some(&row))], buffers, ..ModuleSpec::default() });
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!(model.problems, []);
    assert_whole(&torch, tensor(model, "row"), &row);
    assert_whole(&torch, tensor(model, "narrow"), &narrow);
    assert_eq!(tensor(model, "narrow").reading, Reading::Elements);
    for (name, shape, stride) in [("wide", vec![1, 2000], vec![0, 1]), ("windows", vec![2000], vec![1, 1])] {
        let found = tensor(model, name);
        let Reading::Storage(stored) = &found.reading else { panic!("{found:?}") };
        assert_eq!((&stored.elements.shape, stored.offset, &stored.stride), (&shape, 0, &stride), "{name}");
        assert_eq!(found.status, Status::Complete);
        assert_eq!(found.sha256.as_deref(), Some(sha256(&row.logical).as_str()));
    }
}

#[test]
fn models_that_claim_more_than_the_dump_leave_the_others_whole() {
    let torch = torch("3.11", "2.6", Options::default());
    let (good, weight) = torch.small_model("Net", &[100]);
    let base = torch.parameter(&[200_000]);
    // None of them repeats its own bytes, and together they are far more than the dump.
    let views: Vec<(String, Placed)> = (0..40u64)
        .map(|i| (format!("v{i}"), torch.view(&Tensor::f32(&[200_000 - 100 * i]).strided(&[1]), &base)))
        .collect();
    let parameters = views.iter().map(|(name, view)| (name.as_str(), Some(view))).collect();
    let root = holder(&torch, &ModuleSpec { parameters, ..ModuleSpec::default() });
    let dump = dump(&torch.python.process);
    let recovery = recover(&dump);
    assert_whole(&torch, &model_at(&recovery, good).tensors[0], &weight);
    let model = model_at(&recovery, root);
    let (whole, left_out): (Vec<_>, Vec<_>) = model.tensors.iter().partition(|t| t.status == Status::Complete);
    let bytes: u64 = whole.iter().map(|tensor| tensor.info.as_ref().unwrap().byte_len()).sum();
    assert!(bytes <= 4 * dump.memory.size() && !whole.is_empty() && !left_out.is_empty(), "{bytes}");
    for tensor in left_out {
        assert_eq!((tensor.status, &tensor.reading), (Status::Missing, &Reading::LeftOut));
        assert!(tensor.problem.as_ref().unwrap().message.contains("left out"), "{tensor:?}");
    }
}

#[test]
fn lists_that_share_empty_elements_count_for_each() {
    let torch = torch("3.11", "2.6", Options { frames: 8192, ..Options::default() });
    let python = &torch.python;
    let (_, weight) = torch.small_model("Net", &[3]);
    let kept = torch.parameter(&[2]);
    // 2^19 elements that are null, in sixteen lists.
    let shared = python.process.words(&vec![0; 1 << 19]);
    let list = || {
        let list = python.list(&[]);
        python.put(list, "list.ob_size", 1 << 19);
        python.put(list, "list.ob_item", shared);
        list
    };
    let lists: Vec<(String, u64)> = (0..16).map(|number| (format!("l{number}"), list())).collect();
    let mut names: Vec<(&str, u64)> = vec![("kept", kept.object)];
    names.extend(lists.iter().map(|(name, list)| (name.as_str(), *list)));
    python.module("__main__", &names);
    let recovery = recover(&dump(&python.process));
    assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
    assert!(
        recovery.warnings.iter().any(|warning| warning.message.contains("too many values")),
        "{:?}",
        recovery.warnings
    );
    assert_eq!(recovery.processes[0].standalone.found.len(), 1);
}

#[test]
fn one_tensor_under_very_many_names_is_listed_under_some() {
    let torch = torch("3.11", "2.6", Options { frames: 8192, ..Options::default() });
    let weight = torch.parameter(&[3]);
    let names: Vec<String> = (0..70_000).map(|number| format!("p{number}")).collect();
    let parameters = names.iter().map(|name| (name.as_str(), Some(&weight))).collect();
    holder(&torch, &ModuleSpec { parameters, ..ModuleSpec::default() });
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_whole(&torch, &model.tensors[0], &weight);
    assert!((60_000..66_000).contains(&model.tensors.len()), "{}", model.tensors.len());
    assert!(model.problems[0].message.contains("further names left out"), "{:?}", model.problems);
}
