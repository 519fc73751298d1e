//! `load.py`, run by a Python that has PyTorch; without one these tests say so and pass.

use std::path::Path;
use std::process::{Command, Output};

use tensorcarve::cpython::Value;
use tensorcarve::model::{Status, TensorKind};

use tensorcarve::tensor::{Form, Nested, Quantizer, Sparse};

use super::fixture::{Victim, f32_bytes, ints, raw, scalar};
use super::write;

/// Pythons that may have PyTorch: the user's, and the system's beside a virtual environment.
const PYTHONS: [&str; 2] = ["python3", "/usr/bin/python3"];

pub fn python_with_torch() -> Option<&'static str> {
    let has_torch = |python: &&str| {
        Command::new(python).args(["-c", "import torch"]).output().is_ok_and(|output| output.status.success())
    };
    let found = PYTHONS.into_iter().find(has_torch);
    if found.is_none() {
        eprintln!("skipped: no python3 with PyTorch (on Debian: apt install python3-torch)");
    }
    found
}

pub fn python(python: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(python).current_dir(folder).env("PYTHONDONTWRITEBYTECODE", "1").args(arguments).output().unwrap()
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Layers with attributes of every kind, and names that try to be more than names.
fn network() -> Victim {
    let ramp = |count: usize| (0..count).map(|i| i as f32 / 8.0 - 1.0).collect::<Vec<f32>>();
    let float = || scalar("Float", 4, Some("F32"));
    let mut victim = Victim::new("__main__.Net");
    victim.module(
        "",
        ("__main__.Net", Some("torch.nn.modules.module.Module")),
        vec![
            ("limit", Value::Float(f64::INFINITY)),
            ("huge", Value::Int(1 << 100)),
            ("forward", Value::Str("not code".to_owned())),
            ("__class__", Value::Str("not code".to_owned())),
            ("_parameters", Value::None),
        ],
    );
    victim.module(
        "conv",
        ("torch.nn.modules.conv.Conv2d", None),
        vec![
            ("in_channels", Value::Int(1)),
            ("out_channels", Value::Int(2)),
            ("kernel_size", ints(&[3, 3])),
            ("stride", ints(&[1, 1])),
            ("padding", ints(&[1, 1])),
            ("dilation", ints(&[1, 1])),
            ("transposed", Value::Bool(false)),
            ("output_padding", ints(&[0, 0])),
            ("groups", Value::Int(1)),
            ("padding_mode", Value::Str("zeros".to_owned())),
        ],
    );
    victim.private("_reversed_padding_repeated_twice", Value::List(vec![Value::Int(1); 4]));
    victim.parameter("weight", &[2, 1, 3, 3], &ramp(18));
    victim.model.modules.last_mut().unwrap().unset.push(("bias".to_owned(), TensorKind::Parameter));
    victim.module(
        "bn",
        ("torch.nn.modules.batchnorm.BatchNorm2d", None),
        vec![
            ("num_features", Value::Int(2)),
            ("eps", Value::Float(1e-5)),
            ("momentum", Value::Float(0.1)),
            ("affine", Value::Bool(true)),
            ("track_running_stats", Value::Bool(true)),
        ],
    );
    victim.parameter("weight", &[2], &[2.0, 3.0]);
    victim.parameter("bias", &[2], &[1.0, -1.0]);
    victim.buffer("running_mean", float(), &[2], &f32_bytes(&[0.5, 0.25]));
    victim.buffer("running_var", float(), &[2], &f32_bytes(&[4.0, 9.0]));
    victim.buffer("num_batches_tracked", scalar("Long", 8, Some("I64")), &[], &[5, 0, 0, 0, 0, 0, 0, 0]);
    victim.module("embed", ("torch.nn.modules.sparse.Embedding", None), vec![]);
    victim.parameter("weight", &[3, 4], &ramp(12));
    // Of the user's own class, and tied to the one before.
    victim.module("head", ("__main__.My Head", Some("torch.nn.modules.linear.Linear")), vec![]);
    victim.parameter("weight", &[3, 4], &ramp(12));
    victim.last().same_as = Some("embed.weight".to_owned());
    victim.parameter("bias", &[3], &[1.0, 2.0, 3.0]);
    // The same module in a second place.
    victim.module("again", ("__main__.My Head", Some("torch.nn.modules.linear.Linear")), vec![]);
    let [.., head, again] = &mut victim.model.modules[..] else { panic!() };
    again.object = head.object;
    victim.parameter("weight", &[3, 4], &ramp(12));
    victim.last().same_as = Some("embed.weight".to_owned());
    victim.parameter("bias", &[3], &[1.0, 2.0, 3.0]);
    victim.last().same_as = Some("head.bias".to_owned());
    victim.module(
        "rnn",
        ("torch.nn.modules.rnn.LSTM", None),
        vec![
            ("mode", Value::Str("LSTM".to_owned())),
            ("input_size", Value::Int(2)),
            ("hidden_size", Value::Int(1)),
            ("num_layers", Value::Int(1)),
            ("bias", Value::Bool(false)),
            ("batch_first", Value::Bool(false)),
            ("dropout", Value::Float(0.0)),
            ("bidirectional", Value::Bool(false)),
            ("proj_size", Value::Int(0)),
        ],
    );
    let names = ["weight_ih_l0", "weight_hh_l0"].map(|name| Value::Str(name.to_owned())).to_vec();
    victim.private("_all_weights", Value::List(vec![Value::List(names)]));
    victim.parameter("weight_ih_l0", &[4, 2], &ramp(8));
    victim.parameter("weight_hh_l0", &[4, 1], &ramp(4));
    victim.module("evil", ("os.system", Some("torch.nn.modules.__builtins__.eval")), vec![]);
    victim.strided(
        "__import__('os')\n\u{1b}[2J/x",
        TensorKind::Parameter,
        scalar("BFloat16", 2, Some("BF16")),
        (&[2], &[1]),
        &[0x80, 0x3f, 0, 0x40],
    );
    victim.buffer("mask", scalar("Bool", 1, Some("BOOL")), &[2], &[1, 0]);
    victim.last().persistent = false;
    victim.buffer("empty", float(), &[0, 3], &[]);
    victim
}

const CHECKS: &str = r#"
import torch
from load import load
net = load()
assert type(net).__name__ == "Net" and net.recovered_class == "__main__.Net"
assert net.limit == float("inf") and net.huge == 1 << 100
assert callable(net.forward) and net._parameters == {} and net.__class__ is type(net)
assert not any(module.training for module in net.modules())
assert type(net.conv) is torch.nn.Conv2d and net.conv.padding == (1, 1) and net.conv.bias is None

ramp = [i / 8 - 1 for i in range(18)]
x = torch.arange(20.).reshape(1, 1, 4, 5) / 10
y = net.conv(x)
for channel in range(2):
    for row in range(4):
        for column in range(5):
            total = 0.0
            for i in range(3):
                for j in range(3):
                    r, c = row + i - 1, column + j - 1
                    if 0 <= r < 4 and 0 <= c < 5:
                        total += ramp[9 * channel + 3 * i + j] * (5 * r + c) / 10
            assert abs(y[0, channel, row, column].item() - total) < 1e-5

z = net.bn(torch.ones(1, 2, 1, 1)).flatten().tolist()
assert abs(z[0] - (0.5 / (4 + 1e-5) ** 0.5 * 2 + 1)) < 1e-6 and abs(z[1] - (0.75 / (9 + 1e-5) ** 0.5 * 3 - 1)) < 1e-6
assert net.bn.num_batches_tracked.item() == 5

assert isinstance(net.head, torch.nn.Linear) and type(net.head).__name__ == "Unnamed"
assert net.head.weight is net.embed.weight
assert net.again is net.head
assert net.head(torch.tensor([1., 0., 0., 2.])).tolist() == [
    ramp[4 * i] + 2 * ramp[4 * i + 3] + bias for i, bias in enumerate([1, 2, 3])]

reference = torch.nn.LSTM(2, 1, bias=False)
reference.load_state_dict(net.rnn.state_dict())
step = torch.ones(3, 1, 2)
assert torch.equal(net.rnn(step)[0], reference(step)[0])

evil = net.evil
assert evil.recovered_class == "os.system" and type(evil).__mro__[1].__name__ == "Recovered"
(name, value), = evil._parameters.items()
assert value.dtype == torch.bfloat16 and value.tolist() == [1, 2] and value.requires_grad
assert evil.mask.tolist() == [True, False] and "evil.mask" not in net.state_dict()
assert evil.empty.shape == (0, 3) and "evil.empty" in net.state_dict()
assert len(net.state_dict()) == 15
print("checks passed")
"#;

#[test]
fn a_network_runs_again() {
    let Some(interpreter) = python_with_torch() else { return };
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &network().finish()).unwrap();
    let folder = dir.path().join("models/m0");
    let output = python(interpreter, &folder, &["-c", CHECKS]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
    let output = python(interpreter, &folder, &["load.py"]);
    let shown = text(&output);
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("all keys matched") && shown.contains("conv: torch.nn.modules.conv.Conv2d"), "{shown}");
    // 18 + 4 + 12 + 3 + 12 + 2; the tied weight counts once.
    assert!(shown.contains("51 parameters in 8 tensors"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
    assert!(!shown.contains("inferred"), "{shown}");
    let mut victim = network();
    victim.last().inferred = true;
    write(dir.path(), true, &victim.finish()).unwrap();
    let shown = text(&python(interpreter, &folder, &["load.py"]));
    assert!(shown.contains("no known PyTorch layout reads 1 of the"), "{shown}");
}

#[test]
fn what_is_not_complete_is_said() {
    let Some(interpreter) = python_with_torch() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut victim = network();
    victim.new_page();
    victim.lose_page_at(0x1000);
    victim.parameter("torn", &[1024], &[1.0; 1024]);
    victim.parameter("gone", &[4], &[0.0; 4]);
    victim.last().status = Status::Missing;
    victim.parameter("headless", &[4], &[0.0; 4]);
    (victim.last().status, victim.last().info) = (Status::Missing, None);
    write(dir.path(), false, &victim.finish()).unwrap();
    let folder = dir.path().join("models/m0");
    let refused = python(interpreter, &folder, &["load.py"]);
    let shown = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{shown}");
    assert!(shown.contains("evil.torn (partial), evil.gone (missing), evil.headless (missing)"), "{shown}");
    assert!(shown.contains("hint: python3 load.py --partial"), "{shown}");
    let check = "import torch; from load import load; net = load(partial=True)\n\
                 assert net.evil.torn[:1008].eq(1).all() and net.evil.torn[1008:].eq(0).all()\n\
                 assert net.evil.gone.isnan().all() and net.evil.headless is None\n\
                 assert net.conv.weight[0, 0, 0, 0] == -1";
    let output = python(interpreter, &folder, &["-c", check]);
    assert!(output.status.success(), "{}", text(&output));
    let output = python(interpreter, &folder, &["load.py", "--partial"]);
    assert!(output.status.success() && text(&output).contains("not complete: evil.torn"), "{}", text(&output));
}

/// Tensors that safetensors has no type or form for.
fn parts() -> Victim {
    let f64_bytes = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let i64_bytes = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (float, long) = (|| scalar("Float", 4, Some("F32")), || scalar("Long", 8, Some("I64")));
    let mut victim = Victim::new("__main__.Net");
    victim.module("", ("__main__.Net", Some("torch.nn.modules.module.Module")), vec![]);
    victim.parameter("weight", &[2], &[1.0, 2.0]);
    let complex = raw("ComplexDouble", 16, "view_as_real", "F64");
    // Stored by columns.
    let dims: (&[u64], &[u64]) = (&[2, 2], &[1, 2]);
    let values = f64_bytes(&[1., -1., 3., -3., 2., -2., 4., -4.]);
    victim.strided("phase", TensorKind::Parameter, complex, dims, &values);
    // Of a type that nobody wrote down how to take apart.
    victim.buffer("bytes", scalar("ComplexDouble", 16, None), &[1], &f64_bytes(&[0.5, 8.]));
    let int = |name: &str, size, safetensors: &str| raw(name, size, "int_repr", safetensors);
    victim.buffer("coarse", int("QInt8", 1, "I8"), &[3], &[0, 2, 0xff]);
    victim.form(Form::Quantized(Quantizer::PerTensor { scale: 0.5, zero_point: 1 }));
    victim.buffer("rows", int("QUInt8", 1, "U8"), &[2, 2], &[1, 2, 3, 4]);
    victim.buffer("scales", scalar("Double", 8, Some("F64")), &[2], &f64_bytes(&[1., 10.]));
    let scales = Box::new(victim.make_part("q_per_channel_scales"));
    victim.buffer("zero_points", long(), &[2], &i64_bytes(&[0, 1]));
    let zero_points = Box::new(victim.make_part("q_per_channel_zero_points"));
    victim.form(Form::Quantized(Quantizer::PerChannel { axis: 0, scales, zero_points }));
    victim.buffer("coo", float(), &[3, 4], &[]);
    victim.buffer("indices", long(), &[2, 2], &i64_bytes(&[0, 2, 1, 3]));
    let indices = Box::new(victim.make_part("indices"));
    victim.buffer("values", float(), &[2], &f32_bytes(&[7., 8.]));
    let values = Box::new(victim.make_part("values"));
    victim.form(Form::Sparse(Sparse::Coo { indices, values }));
    victim.buffer("csr", float(), &[2, 5], &[]);
    victim.buffer("rows", long(), &[3], &i64_bytes(&[0, 1, 3]));
    let compressed = Box::new(victim.make_part("compressed_indices"));
    victim.buffer("columns", long(), &[3], &i64_bytes(&[4, 0, 2]));
    let plain = Box::new(victim.make_part("plain_indices"));
    victim.buffer("values", float(), &[3], &f32_bytes(&[1., 2., 3.]));
    let values = Box::new(victim.make_part("values"));
    victim.form(Form::Sparse(Sparse::Compressed { compressed, plain, values }));
    victim.buffer("nested", float(), &[], &[0; 4]);
    victim.buffer("values", float(), &[6], &f32_bytes(&[1., 2., 3., 4., 5., 6.]));
    let values = victim.make_part("values");
    victim.buffer("sizes", long(), &[2, 2], &i64_bytes(&[1, 2, 2, 2]));
    let sizes = victim.make_part("nested_sizes");
    victim.buffer("strides", long(), &[2, 2], &i64_bytes(&[2, 1, 1, 2]));
    let strides = victim.make_part("nested_strides");
    victim.buffer("offsets", long(), &[2], &i64_bytes(&[4, 0]));
    let offsets = Some(victim.make_part("storage_offsets"));
    victim.form(Form::Nested(Some(Box::new(Nested { values, sizes, strides, offsets }))));
    // A class of PyTorch's that load.py has no layer for, and one that PyTorch has not.
    victim.module("plain", ("torch.nn.modules.module.Module", None), vec![]);
    victim.module("library", ("torch.utils.data.Dataset", None), vec![]);
    victim.module("odd", ("torch.nn.modules.linear.Lost", None), vec![]);
    victim
}

#[test]
fn tensors_are_made_again_from_their_parts() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &parts().finish()).unwrap();
    let folder = dir.path().join("models/m0");
    let names = |file: &str| {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        let mut names: Vec<String> =
            safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    };
    assert_eq!(names("model.safetensors"), ["weight"]);
    let expected = [
        "bytes.bytes",
        "coarse.int_repr",
        "coo.indices",
        "coo.values",
        "csr.compressed_indices",
        "csr.plain_indices",
        "csr.values",
        "nested.nested_sizes",
        "nested.nested_strides",
        "nested.storage_offsets",
        "nested.values",
        "phase.view_as_real",
        "rows.int_repr",
        "rows.q_per_channel_scales",
        "rows.q_per_channel_zero_points",
    ];
    assert_eq!(names("parts.safetensors"), expected);
    let Some(interpreter) = python_with_torch() else { return };
    let check = "import torch; from load import load; net = load()\n\
                 assert net.weight.tolist() == [1, 2]\n\
                 assert net.phase.tolist() == [[1-1j, 2-2j], [3-3j, 4-4j]] and net.phase.requires_grad\n\
                 assert net.bytes.dtype == torch.complex128 and net.bytes.tolist() == [0.5+8j]\n\
                 assert net.coarse.dequantize().tolist() == [-0.5, 0.5, -1]\n\
                 assert net.rows.dequantize().tolist() == [[1, 2], [20, 30]]\n\
                 assert net.coo.to_dense().tolist() == [[0, 7, 0, 0], [0, 0, 0, 0], [0, 0, 0, 8]]\n\
                 assert net.csr.to_dense().tolist() == [[0, 0, 0, 0, 1], [2, 0, 3, 0, 0]]\n\
                 assert len(net.state_dict()) == 8\n\
                 assert [part.tolist() for part in net.nested.unbind()] == [[[5, 6]], [[1, 3], [2, 4]]]\n\
                 print('checks passed')";
    let output = python(interpreter, &folder, &["-c", check]);
    assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
    let output = python(interpreter, &folder, &["load.py"]);
    let shown = text(&output);
    for line in [
        "all keys matched",
        "plain: torch.nn.modules.module.Module  (the base class of all modules, no forward())",
        "library: torch.utils.data.Dataset  (PyTorch's, but not a layer of torch.nn, no forward())",
        "odd: torch.nn.modules.linear.Lost  (not in this PyTorch, no forward())",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
}

/// Puts a wrong value in the place of each field of model.json that is read, one at a time.
const WRONG_FIELDS: &str = r#"
import copy, json, sys
import load
true = open("model.json").read()
fields = {"name", "class", "torch_class", "training", "hyper", "private", "python_types", "parameters", "buffers", "unset",
          "object", "dtype", "shape", "kind", "requires_grad", "persistent", "status", "file", "same_as", "problem", "parts", "form"}
def try_with(tree, place):
    with open("model.json", "w") as file:
        file.write(tree if isinstance(tree, str) else json.dumps(tree))
    try:
        for partial in (False, True):
            load.load(partial)
    except RuntimeError as error:
        refused.append((place, str(error)))
refused, tried = [], 0
for text in ("", "[", "[]", "null", "{}", '{"modules": 7, "tensors": []}', '{"modules": [3], "tensors": [[]]}', "[" * 100000):
    try_with(text, "model.json")
for kind in ("modules", "tensors"):
    for number, row in enumerate(json.loads(true)[kind]):
        # Rows of one form are alike.
        if number >= 3 and "parts" not in row:
            continue
        for field in sorted(fields & set(row) if number < 3 else {"form", "parts", "shape"} & set(row)):
            for wrong in (None, True, -1, 1e400, "x", "../x", [], [[]], ["x", -1], {}, {"name": "sparse_coo"}, [{"name": "x"}], ...):
                tree = json.loads(true)
                if wrong is ...:
                    del tree[kind][number][field]
                else:
                    tree[kind][number][field] = wrong
                try_with(tree, "%s[%d].%s" % (kind, number, field))
                tried += 1
open("model.json", "w").write(true)
load.load()
for place, message in refused:
    assert "model.json" in message or "not complete" in message.lower() or "two tensors of different sizes" in message \
        or "the dump has no values" in message, (place, message)
named = [place for place, message in refused if place.split(".")[-1] in message or place.split(".")[0] in message]
assert len(refused) > tried / 3 and len(named) > len(refused) * 3 / 4, (len(named), len(refused), tried)
print("checks passed", tried, len(refused), len(named))
"#;

#[test]
fn a_model_json_that_is_wrong_gives_an_error_that_names_the_field() {
    let Some(interpreter) = python_with_torch() else { return };
    for victim in [network(), parts()] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), false, &victim.finish()).unwrap();
        let output = python(interpreter, &dir.path().join("models/m0"), &["-c", WRONG_FIELDS]);
        assert!(output.status.success() && text(&output).contains("checks passed"), "{}", text(&output));
    }
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), false, &network().finish()).unwrap();
    let folder = dir.path().join("models/m0");
    let tree = std::fs::read_to_string(folder.join("model.json")).unwrap();
    std::fs::write(folder.join("model.json"), tree.replacen("\"parameters\": [", "\"parameters\": 7, \"x\": [", 1))
        .unwrap();
    let output = python(interpreter, &folder, &["load.py"]);
    let shown = text(&output);
    assert!(shown.contains("error: model.json: modules[0].parameters has a value of a wrong type"), "{shown}");
    assert!(!output.status.success() && !shown.contains("Traceback"), "{shown}");
}
