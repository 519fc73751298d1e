//! Chains of layers: as documents, and built again by `load.py`.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tensorcarve::Case;
use tensorcarve::chain::{Item, assemble};
use tensorcarve::dump::Dump;
use tensorcarve::model::{Model, NamedTensor, Status, TensorKind};
use tensorcarve::recover::Recovery;
use tensorcarve::report;
use tensorcarve::tensor::TensorInfo;

use super::fixture::{Quiet, Victim, contiguous, f32_bytes, run, scalar};
use super::load::{python, python_with_torch, text};
use super::{tree, write};

/// The chain of the tensors of a model, which keep what is known of their bytes.
fn chain_of(model: &Model) -> Model {
    let info = |tensor: &NamedTensor| tensor.info.clone().unwrap();
    let tensors: Vec<&NamedTensor> = model.all_tensors().collect();
    let gradient =
        |name: &str| tensors.iter().position(|tensor| tensor.kind == TensorKind::Gradient && tensor.name == name);
    let item = |tensor: &&NamedTensor| Item {
        info: TensorInfo { object: tensorcarve::addr::VirtAddr(0), ..info(tensor) },
        gradient: gradient(&tensor.name).filter(|_| tensor.kind == TensorKind::Parameter),
        last_use: None,
    };
    let items: Vec<Item> = tensors.iter().map(item).collect();
    let chains = assemble(&items);
    assert_eq!(chains.len(), 1, "{chains:#?}");
    let mut found = Model::of_chain(&chains[0], &items);
    (found.id, found.sightings) = (model.id.clone(), model.sightings.clone());
    for tensor in found.tensors.iter_mut().chain(&mut found.training) {
        let header = info(tensor).header;
        let known = tensors.iter().find(|known| info(known).header == header).unwrap();
        (tensor.status, tensor.holes, tensor.sha256) = (known.status, known.holes.clone(), known.sha256.clone());
    }
    found
}

/// Two convolutions and two linear layers, each with the position of its values in their names' order.
fn victim() -> Victim {
    let ramp = |count: u64| (0..count).map(|value| value as f32 / 16.0 - 0.5).collect::<Vec<f32>>();
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", None), vec![]);
    for (name, shape) in [("a", &[2, 1, 3, 3][..]), ("b", &[3, 2, 3, 3]), ("c", &[4, 12]), ("d", &[2, 4])] {
        victim.parameter(name, shape, &ramp(shape.iter().product()));
        victim.parameter(&format!("{name}_bias"), &shape[..1], &ramp(shape[0]));
    }
    let float = || scalar("Float", 4, Some("F32"));
    victim.strided("d", TensorKind::Gradient, float(), (&[2, 4], &[4, 1]), &f32_bytes(&ramp(8)));
    for shape in [&[2, 1, 3, 3][..], &[3, 2, 3, 3], &[4, 12], &[2, 4]] {
        let bytes = f32_bytes(&ramp(shape.iter().product()));
        victim.strided("momentum", TensorKind::Optimizer, float(), (shape, &contiguous(shape)), &bytes);
    }
    victim
}

fn finish(victim: Victim) -> (Dump, Recovery) {
    let (dump, mut recovery) = victim.finish();
    recovery.processes[0].models[0] = chain_of(&recovery.processes[0].models[0]);
    (dump, recovery)
}

#[test]
fn a_chain_is_listed_without_a_class_and_with_what_speaks_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let found = finish(victim());
    write(dir.path(), false, &found).unwrap();
    let recovery = super::json(dir.path().join("recovery.json"));
    let row = &recovery["processes"][0]["models"][0];
    assert_eq!((&row["kind"], &row["class"]), (&json!("chain"), &json!(null)));
    assert_eq!((&row["chain"]["layers"], &row["totals"]["complete"]), (&json!(4), &json!(8)));
    let model = super::json(dir.path().join("models/m0/model.json"));
    assert_eq!((&model["kind"], &model["class"], &model["modules"]), (&json!("chain"), &json!(null), &json!([])));
    let chain = &model["chain"];
    let first = json!({"name": "layer0", "kind": "conv2d", "inputs": 1, "outputs": 2, "kernel": [3, 3], "groups": 1,
                       "around": null, "tensors": {"bias": "layer0.bias", "weight": "layer0.weight"}});
    assert_eq!(chain["layers"][0], first);
    assert_eq!((&chain["links"][1]["from"], &chain["links"][1]["to"]), (&json!("layer1"), &json!("layer2")));
    assert_eq!(chain["links"][1]["evidence"][0], json!({"kind": "flatten", "channels": 3, "positions": 4}));
    let score = chain["score"].as_f64().unwrap();
    assert!(score > 0.5 && score < 1.0 && row["chain"]["score"] == chain["score"], "{chain}");
    let names = |rows: &str| -> Vec<String> {
        model[rows].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("tensors")[4..], ["layer2.weight", "layer2.bias", "layer3.weight", "layer3.bias"]);
    let kept = ["layer0.weight.state0", "layer1.weight.state0", "layer2.weight.state0", "layer3.weight"];
    assert_eq!(names("training"), [&kept[..], &["layer3.weight.state0"]].concat());
    let table = report::models_table(&found.1);
    assert!(table.contains(&format!("chain of 4 layers (score {score:.2})")), "{table}");
    let mut lines = Vec::new();
    report::print_csv(&mut lines, &found.1).unwrap();
    assert!(String::from_utf8(lines).unwrap().contains(",m0,,layer0.weight,parameter,"));
    // A module says what it is as well.
    write(dir.path(), true, &victim().finish()).unwrap();
    let model = super::json(dir.path().join("models/m0/model.json"));
    assert_eq!((&model["kind"], model.get("chain")), (&json!("module"), None));
}

const CHECKS: &str = r#"
import torch
from load import load
x = torch.arange(2 * 14 * 14.).reshape(2, 1, 14, 14) / 100
F = torch.nn.functional
net = load(input="1x14x14")
w = {key: value for key, value in net.state_dict().items()}
assert sorted(w) == sorted("layer%d.%s" % (n, own) for n in range(4) for own in ("weight", "bias")), sorted(w)
assert w["layer3.weight"].flatten().tolist() == [i / 16 - 0.5 for i in range(8)]

def truth(x, act, pool):
    for n in (0, 1):
        x = pool(act(F.conv2d(x, w["layer%d.weight" % n], w["layer%d.bias" % n])))
    x = act(F.linear(x.flatten(1), w["layer2.weight"], w["layer2.bias"]))
    return F.linear(x, w["layer3.weight"], w["layer3.bias"])

def same(net, act, pool, x=x):
    with torch.no_grad():
        return torch.allclose(net(x), truth(x, act, pool), atol=1e-6)

two = lambda x: F.max_pool2d(x, 2)
assert same(net, torch.relu, two), net
assert same(load(pool="max2"), torch.relu, two)
assert same(load(pool={"layer0": "avg2", "layer1": "avg2"}, activation="tanh"), torch.tanh, lambda x: F.avg_pool2d(x, 2))
assert same(load(input=(1, 6, 6), pool="none"), torch.relu, lambda x: x, x[:, :, :6, :6])
assert not same(net, torch.tanh, two)
assert [type(m).__name__ for m in load()][4:6] == ["AdaptiveAvgPool2d", "Flatten"] and load()(x).shape == (2, 2)
assert load(stride="layer0=2", input="1x13x13").layer0.stride == (2, 2)
for wrong in ({"input": "1x3x3"}, {"input": "x"}, {"pool": "large"}, {"activation": "loud"}, {"stride": "-1"}, {"depth": 1}):
    try:
        load(**wrong)
    except RuntimeError as error:
        assert str(error), wrong
    else:
        raise AssertionError(wrong)
print("checks passed")
"#;

#[test]
fn a_chain_is_built_with_what_the_user_chooses() {
    let Some(interpreter) = python_with_torch() else { return };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &finish(victim())).unwrap();
    let folder = dir.path().join("models/m0");
    let output = python(interpreter, &folder, &["-c", CHECKS]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
    let output = python(interpreter, &folder, &["load.py", "--input", "1x14x14", "--activation=tanh"]);
    let shown = text(&output);
    assert!(output.status.success() && shown.contains("all keys matched"), "{shown}");
    assert!(shown.contains("chain of 4 layers, a guess with score") && shown.contains("Tanh"), "{shown}");
    let output = python(interpreter, &folder, &["load.py", "--input", "1x3x3"]);
    assert!(!output.status.success() && text(&output).contains("choose --pool"), "{}", text(&output));
    // A tensor that is gone.
    let mut found = finish(victim());
    let tensor = &mut found.1.processes[0].models[0].tensors[2];
    (tensor.status, tensor.sha256) = (Status::Missing, None);
    write(dir.path(), true, &found).unwrap();
    let output = python(interpreter, &folder, &["load.py"]);
    assert!(!output.status.success() && text(&output).contains("layer1.weight (missing)"), "{}", text(&output));
    let check = "from load import load; net = load(partial=True); assert net.layer1.weight.isnan().all()";
    let output = python(interpreter, &folder, &["-c", check]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn a_residual_block_is_built_with_its_shortcut() {
    let Some(interpreter) = python_with_torch() else { return };
    let ramp = |count: u64| (0..count).map(|value| (value % 7) as f32 / 8.0 - 0.25).collect::<Vec<f32>>();
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", None), vec![]);
    for (name, shape) in
        [("a", &[4, 3, 3, 3][..]), ("b", &[6, 4, 3, 3]), ("c", &[6, 6, 3, 3]), ("d", &[6, 4, 1, 1]), ("e", &[5, 6])]
    {
        victim.parameter(name, shape, &ramp(shape.iter().product()));
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &finish(victim)).unwrap();
    let check = "import torch; from load import load; net = load(stride='layer1=2,layer3=2', padding='layer0=1')\n\
                 F = torch.nn.functional; x = torch.arange(3 * 64.).reshape(1, 3, 8, 8) / 64\n\
                 b = net.layer1_block; s = b.shortcut; w = [net.layer0, b.block.layer1, b.block.layer2, s.layer3, net.layer4]\n\
                 w = [m.weight for m in w]\n\
                 y = torch.relu(F.conv2d(x, w[0], padding=1)); z = torch.relu(F.conv2d(y, w[1], stride=2, padding=1))\n\
                 z = torch.relu(F.conv2d(z, w[2], padding=1)) + F.conv2d(y, w[3], stride=2)\n\
                 assert torch.allclose(net(x), F.linear(z.mean((2, 3)), w[4]), atol=1e-4)\n\
                 print('checks passed')";
    let output = python(interpreter, &dir.path().join("models/m0"), &["-c", check]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
}

#[test]
fn the_chain_of_the_shipped_dump_computes_what_the_victim_computed() {
    let path = Path::new("tests/data/cifar10-pdb.lime.zst");
    let case = Case::open(path).unwrap();
    let recovery = case.recovery().unwrap();
    let victim = recovery.processes.iter().position(|process| !process.models.is_empty()).unwrap();
    let model = chain_of(&recovery.processes[victim].models[0]);
    drop(case);
    let mut recovery = Arc::into_inner(recovery).unwrap();
    recovery.processes[victim].models[0] = model;
    let dir = tempfile::tempdir().unwrap();
    let folder = report::OutputFolder::create(dir.path(), false).unwrap();
    let dump = Case::open(path).unwrap();
    report::write(folder, dump.dump(), &recovery, &Quiet, run).unwrap();
    let model = dir.path().join("models/m0");
    let bytes = fs::read(model.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let truth = super::json("tests/data/cifar10-pdb.truth.json".into());
    let truth = &truth["processes"][0]["state_dict"];
    let names = ["conv1", "conv2", "fc1", "fc2", "fc3"].into_iter().enumerate();
    for (number, name) in
        names.flat_map(|(number, name)| ["weight", "bias"].map(|own| (number, format!("{name}.{own}"))))
    {
        let own = name.split('.').next_back().unwrap();
        let found = tensors.tensor(&format!("layer{number}.{own}")).unwrap();
        let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(found.data()));
        assert_eq!(json!(sha256), truth[name.as_str()]["sha256"], "{name}");
    }
    assert!(tree(&model).contains_key(&model.join("optimizer.safetensors")));
    let Some(interpreter) = python_with_torch() else { return };
    let truth = fs::canonicalize("tests/data/cifar10-pdb.truth.json").unwrap();
    let check = "import json, sys, torch; from load import load\n\
                 said = json.load(open(sys.argv[1]))['processes'][0]\n\
                 for choices in ({'pool': 'max2'}, {'input': '3x32x32'}):\n\
                 \u{20}   out = load(**choices)(torch.tensor(said['probe']))\n\
                 \u{20}   assert (out - torch.tensor(said['probe_out'])).abs().max().item() < 1e-5\n\
                 print('checks passed')";
    let output = python(interpreter, &model, &["-c", check, &truth.to_string_lossy()]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
}
