//! Attributes of tensor objects: wrappers, placeholders, weights that were moved elsewhere.

use tensorcarve::addr::VirtAddr;
use tensorcarve::model::{Inner, NamedTensor, Status};

use super::synthetic::{Keeping, ModuleSpec, Options, Placed, Tensor, Torch, dump, recover, sha256, torch};
use super::{only_model, tensor};

const PAIRS: [(&str, &str); 4] = [("3.8", "1.13"), ("3.11", "1.13"), ("3.12", "2.6"), ("3.13-free-threaded", "2.6")];

fn hold(torch: &Torch, parameters: &[(&str, &Placed)]) -> u64 {
    let weight = torch.parameter(&[3, 4]);
    let mut all = vec![("plain", Some(&weight))];
    all.extend(parameters.iter().map(|(name, tensor)| (*name, Some(*tensor))));
    let spec = ModuleSpec { parameters: all, ..ModuleSpec::default() };
    torch.module(torch.module_type("__main__", "Net"), &spec)
}

/// Takes the address of the data from a tensor's storage, as wrappers have it.
fn hollow(torch: &Torch, tensor: &Placed) {
    torch.python.process.put(tensor.storage + torch.numbers.at("storage.data"), 0);
}

fn object(torch: &Torch, class: &str, attributes: &[(&str, u64)]) -> u64 {
    let b = &torch.python.builtin;
    let class = torch.python.class(b.type_, "lab", class, b.object, Keeping::Dict);
    torch.python.instance(class, attributes)
}

fn inner<'a>(found: &'a NamedTensor, path: &str) -> &'a Inner {
    found.inner.iter().find(|inner| inner.path == path).unwrap_or_else(|| panic!("{path} in {:?}", found.inner))
}

fn assert_inner(found: &NamedTensor, path: &str, truth: &Placed) {
    let Inner { tensor, .. } = inner(found, path);
    assert_eq!(tensor.name, format!("{}.{path}", found.name));
    assert_eq!((tensor.status, tensor.object), (Status::Complete, VirtAddr(truth.object)));
    assert_eq!(tensor.sha256.as_deref(), Some(sha256(&truth.logical).as_str()));
}

#[test]
fn a_wrapper_is_its_inner_tensors_and_never_complete() {
    for (cpython, pytorch) in PAIRS {
        let torch = torch(cpython, pytorch, Options::default());
        let python = &torch.python;
        let meta = python.get(torch.tensor_class, "object.ob_type");
        let slots = ["_local_tensor", "_spec"];
        let class = python.class_with_slots(meta, ("lab", "Sharded"), torch.tensor_class, Keeping::Dict, &slots);
        let wrapper = torch.numbers.tensor(python, class, &Tensor::f32(&[8, 4]), None);
        hollow(&torch, &wrapper);
        let (local, mesh) = (torch.tensor(&Tensor::f32(&[2, 4])), torch.tensor(&Tensor::new("Long", &[4])));
        let shard = object(&torch, "Shard", &[("dim", python.int(0))]);
        let of_mesh = object(&torch, "Mesh", &[("device_type", python.str("cpu")), ("mesh", mesh.object)]);
        let spec = object(&torch, "Spec", &[("mesh", of_mesh), ("placements", python.tuple(&[shard]))]);
        let first = python.get(torch.tensor_class, "type.tp_basicsize");
        python.process.put(wrapper.object + first, local.object);
        python.process.put(wrapper.object + first + 8, spec);
        hold(&torch, &[("weight", &wrapper)]);
        let recovery = recover(&dump(&python.process));
        let found = tensor(only_model(&recovery), "weight");
        assert_eq!((found.status, &found.sha256), (Status::Partial, &None), "{cpython} {pytorch}");
        assert_inner(found, "_local_tensor", &local);
        assert_inner(found, "_spec.mesh.mesh", &mesh);
        let problem = &found.problem.as_ref().unwrap().message;
        assert!(
            problem.starts_with(
                "lab.Sharded keeps its elements in _local_tensor [2, 4] (written as weight._local_tensor)"
            ),
            "{problem}"
        );
        let described = serde_json::to_value(tensorcarve::model::Named(&found.attributes)).unwrap();
        assert_eq!(described["_local_tensor"]["tensor"], "weight._local_tensor");
        let spec = &described["_spec"]["attributes"];
        assert_eq!(spec["placements"][0], serde_json::json!({"class": "lab.Shard", "attributes": {"dim": 0}}));
        assert_eq!(spec["mesh"]["attributes"]["device_type"], "cpu");
        assert!(recovery.processes[0].standalone.found.is_empty(), "parts are no tensors of their own");
    }
}

#[test]
fn a_wrapper_of_which_nothing_is_known_is_missing() {
    let torch = torch("3.12", "2.6", Options::default());
    let wrapper = torch.parameter(&[8, 4]);
    hollow(&torch, &wrapper);
    hold(&torch, &[("weight", &wrapper)]);
    let recovery = recover(&dump(&torch.python.process));
    let found = tensor(only_model(&recovery), "weight");
    assert_eq!((found.status, &found.sha256, found.holes.len()), (Status::Missing, &None, 0));
    assert!(found.problem.as_ref().unwrap().message.contains("its data pointer is null"), "{:?}", found.problem);
}

#[test]
fn a_placeholder_is_not_complete_and_an_empty_parameter_is() {
    for (cpython, pytorch) in PAIRS {
        let torch = torch(cpython, pytorch, Options::default());
        let python = &torch.python;
        let (placeholder, empty, noted) = (torch.parameter(&[0]), torch.parameter(&[0]), torch.parameter(&[0]));
        let partition = torch.tensor(&Tensor::f32(&[30]));
        let shape = python.tuple(&[python.int(6), python.int(5)]);
        torch.set_attributes(&placeholder, &[("ds_tensor", partition.object), ("ds_shape", shape)]);
        torch.set_attributes(&noted, &[("tag", python.str("empty by design"))]);
        hold(&torch, &[("placeholder", &placeholder), ("empty", &empty), ("noted", &noted)]);
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        let found = tensor(model, "placeholder");
        assert_eq!(found.status, Status::Partial, "{cpython} {pytorch}");
        assert_inner(found, "ds_tensor", &partition);
        let problem = &found.problem.as_ref().unwrap().message;
        assert!(problem.contains("ds_tensor [30] (written as placeholder.ds_tensor)"), "{problem}");
        let described = serde_json::to_value(tensorcarve::model::Named(&found.attributes)).unwrap();
        assert_eq!(described["ds_shape"], serde_json::json!([6, 5]));
        for name in ["empty", "noted"] {
            let found = tensor(model, name);
            assert_eq!((found.status, &found.problem), (Status::Complete, &None), "{name}");
        }
    }
}

#[test]
fn what_lies_in_attributes_is_a_part_once_and_by_the_shortest_way() {
    let torch = torch("3.11", "1.13", Options::default());
    let python = &torch.python;
    let (packed, other) = (torch.parameter(&[16, 1]), torch.parameter(&[4]));
    let [absmax, deep, shared] = [[2], [3], [5]].map(|shape| torch.tensor(&Tensor::f32(&shape)));
    let view = torch.view(&Tensor::f32(&[2]), &packed);
    let state2 = object(&torch, "State", &[("absmax", deep.object)]);
    let long = python.str(&"x".repeat(5000));
    let values = [("absmax", absmax.object), ("state2", state2), ("blocksize", python.int(64)), ("long", long)];
    let state = object(&torch, "QuantState", &values);
    let list = python.list(&[shared.object, other.object]);
    torch.set_attributes(&packed, &[("quant_state", state), ("view", view.object), ("list", list)]);
    torch.set_attributes(&other, &[("shared", shared.object), ("ring", packed.object)]);
    hold(&torch, &[("packed", &packed), ("other", &other)]);
    let recovery = recover(&dump(&python.process));
    let model = only_model(&recovery);
    let found = tensor(model, "packed");
    assert_eq!((found.status, &found.problem), (Status::Complete, &None));
    let paths: Vec<&str> = found.inner.iter().map(|inner| inner.path.as_str()).collect();
    assert_eq!(paths, ["quant_state.absmax", "quant_state.state2.absmax"]);
    assert_inner(found, "quant_state.absmax", &absmax);
    assert_inner(found, "quant_state.state2.absmax", &deep);
    let found_other = tensor(model, "other");
    assert_inner(found_other, "shared", &shared);
    let described = serde_json::to_value(tensorcarve::model::Named(&found.attributes)).unwrap();
    let state = &described["quant_state"]["attributes"];
    assert_eq!((&state["blocksize"], &state["long"]["left_out"]), (&64.into(), &"too long".into()));
    assert_eq!(described["list"][1]["tensor"], "other");
}

#[test]
fn weights_that_a_hook_keeps_in_a_map_are_named() {
    let torch = torch("3.12", "2.6", Options::default());
    let python = &torch.python;
    let made =
        |shape: &[u64]| torch.numbers.tensor(python, torch.parameter_class, &Tensor::f32(shape).on("meta", -1), None);
    let (first, second, alone) = (made(&[4, 2]), made(&[4, 2]), made(&[9]));
    let [value, other, transposed] = [[4, 2], [4, 2], [2, 4]].map(|shape| torch.tensor(&Tensor::f32(&shape)));
    let dataset = python.dict(&[("0.weight", value.object), ("1.weight", other.object), ("0.bias", transposed.object)]);
    let map = object(&torch, "PrefixedDataset", &[("dataset", dataset), ("prefix", python.str("0."))]);
    let hook = object(&torch, "Hook", &[("weights_map", map)]);
    let linear = torch.module_type("torch.nn.modules.linear", "Linear");
    let layer = |tensor: &Placed, attributes: Vec<(&'static str, u64)>| {
        let parameters = vec![("weight", Some(tensor))];
        torch.module(linear, &ModuleSpec { parameters, attributes, ..ModuleSpec::default() })
    };
    let (one, two) = (layer(&first, vec![("_hook", hook)]), layer(&second, Vec::new()));
    let plain = torch.parameter(&[2]);
    let spec = ModuleSpec {
        parameters: vec![("bias", Some(&alone)), ("plain", Some(&plain))],
        children: vec![("0", one), ("1", two)],
        ..ModuleSpec::default()
    };
    torch.module(torch.module_type("__main__", "Net"), &spec);
    let recovery = recover(&dump(&python.process));
    let model = only_model(&recovery);
    for (name, value) in [("0.weight", &value), ("1.weight", &other)] {
        let found = tensor(model, name);
        let [elsewhere] = found.elsewhere.as_slice() else { panic!("{name}: {:?}", found.elsewhere) };
        assert!(elsewhere.name.ends_with(&format!(".{:#x}", value.object)), "{elsewhere:?}");
        assert_eq!(elsewhere.path, format!("0._hook.weights_map.dataset[\"{name}\"]"));
        assert_eq!(found.status, Status::Device);
        assert!(found.problem.as_ref().unwrap().message.contains(&elsewhere.path), "{:?}", found.problem);
    }
    // Another shape is another tensor.
    assert_eq!(tensor(model, "bias").elsewhere, []);
}
