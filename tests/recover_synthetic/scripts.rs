//! C++ objects that Python holds through `torch.ScriptObject`: packed parameters, script modules.

use tensorcarve::addr::VirtAddr;
use tensorcarve::model::{Status, TensorKind};
use tensorcarve::report;
use tensorcarve::tensor::{Form, Quantizer};

use super::synthetic::script::{BOOL, BUFFER, Blocks, CAPSULE, NONE, OBJECT, PARAMETER, REGULAR, Script, TENSOR};
use super::synthetic::{ModuleSpec, Options, Placed, Tensor, Torch, dump, recover, sha256, torch};
use super::{Truth, assert_whole, only_model, tensor};

/// Python, PyTorch, string ABI, and where objects keep class and slots and classes keep their attributes.
pub const MACHINES: [(&str, &str, &str, [u64; 3]); 4] = [
    ("3.11", "1.13", "new-abi", [72, 88, 232]),
    ("3.12", "2.6-old-abi", "old-abi", [64, 80, 152]),
    ("3.13", "2.6", "new-abi", [64, 80, 240]),
    ("3.8", "1.8-old-abi", "old-abi", [72, 88, 160]),
];
const PACKED_CLASS: &str = "__torch__.torch.classes.quantized.LinearPackedParamsBase";

/// A tensor that Python has never seen.
pub fn unseen(torch: &Torch, spec: &Tensor) -> Placed {
    let placed = torch.tensor(spec);
    torch.python.process.put(placed.tensor_impl + torch.numbers.at("tensor.pyobj"), 0);
    Placed { object: 0, ..placed }
}

/// A model whose layer `fc1` holds a script object, as quantized layers do; `None` for its attribute is the object.
fn quantized(torch: &Torch, weight: &Placed, packed: u64) {
    let spec = ModuleSpec { attributes: vec![("_packed_params", packed)], ..ModuleSpec::default() };
    let params = torch.module(torch.module_type("torch.ao.nn.quantized", "LinearPackedParams"), &spec);
    let spec = ModuleSpec { children: vec![("_packed_params", params)], ..ModuleSpec::default() };
    let linear = torch.module(torch.module_type("torch.ao.nn.quantized.dynamic", "Linear"), &spec);
    let parameters = vec![("weight", Some(weight))];
    let net = ModuleSpec { parameters, children: vec![("fc1", linear)], ..ModuleSpec::default() };
    torch.module(torch.module_type("__main__", "Net"), &net);
}

#[test]
fn packed_weights_are_read_from_the_tensors_beside_them() {
    for (cpython, pytorch, abi, places) in MACHINES {
        let torch = torch(cpython, pytorch, Options::default());
        let python = &torch.python;
        let script = Script::new(&torch, abi, places);
        let embedded = torch.parameter(&[5, 6]);
        let weight = unseen(&torch, &Tensor::new("QInt8", &[12, 7]));
        let numbers =
            ["scalar_type", "scale", "zero_point"].map(|name| torch.numbers.0.get(&format!("quantizer.{name}")));
        let quantizer = python.process.alloc(128);
        for (at, word) in numbers.into_iter().zip([torch.numbers.scalar_index("QInt8"), 0.5f64.to_bits(), 3]) {
            python.process.put(quantizer + at.unwrap().cast_unsigned(), word);
        }
        torch.numbers.derive(python, &weight, true, &[quantizer]);
        let bias = unseen(&torch, &Tensor::f32(&[12]));
        let holder = script.holder(&[0, weight.tensor_impl, 1, bias.tensor_impl]);
        quantized(&torch, &embedded, script.wrapper(script.capsule(PACKED_CLASS, holder), false));
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        assert_whole(&torch, tensor(model, "weight"), &embedded);
        let found = tensor(model, "fc1._packed_params._packed_params");
        assert_whole(&torch, found, &weight);
        assert!(found.persistent);
        let form = &found.info.as_ref().unwrap().form;
        assert_eq!(*form, Form::Quantized(Quantizer::PerTensor { scale: 0.5, zero_point: 3 }), "{pytorch}");
        assert_eq!(found.parts.len(), 1, "{pytorch}");
        assert_eq!(found.parts[0].name, "fc1._packed_params._packed_params.bias");
        assert_whole(&torch, &found.parts[0], &bias);
        assert!(report::is_whole(&recovery));
    }
}

#[test]
fn packed_matrices_are_put_in_order() {
    for (version, count) in [("2020", 1), ("2021", 1), ("2021", 11)] {
        let torch = torch("3.12", "2.6-old-abi", Options::default());
        let python = &torch.python;
        let script = Script::new(&torch, "old-abi", [64, 80, 152]);
        let embedded = torch.parameter(&[5, 6]);
        let blocks = Blocks { outputs: 11, inputs: 21, rows: 8, columns: 3, side_by_side: 4 };
        let weight: Vec<u8> = (0..11 * 21u32).map(|i| (i * 7 + i / 21) as u8).collect();
        let matrix = script.matrix(version, &blocks, &weight);
        let bias = unseen(&torch, &Tensor::f32(&[11]));
        let scales: Vec<u8> = (1..=count).flat_map(|i| (i as f32 / 64.0).to_le_bytes()).collect();
        let points: Vec<u8> = (1..=count).flat_map(|i: i32| (-i).to_le_bytes()).collect();
        let vectors = [&[0; 44], scales.as_slice(), &points].map(|bytes| script.vector_words(bytes));
        let words = [&[matrix, bias.tensor_impl, 1][..], &vectors.concat(), &[2]].concat();
        quantized(&torch, &embedded, script.wrapper(script.capsule(PACKED_CLASS, script.holder(&words)), false));
        let recovery = recover(&dump(&python.process));
        let found = tensor(only_model(&recovery), "fc1._packed_params._packed_params");
        let info = found.info.as_ref().unwrap();
        assert_eq!((found.status, &found.problem), (Status::Complete, &None));
        assert_eq!((info.shape.as_slice(), info.dtype.label()), (&[11, 21][..], "QInt8"));
        assert_eq!(found.sha256, Some(sha256(&weight)), "{version}");
        let part = |name: &str| found.parts.iter().find(|part| part.name.ends_with(name)).unwrap();
        assert_whole(&torch, part(".bias"), &bias);
        match (&info.form, count) {
            (Form::Quantized(quantizer), 1) => {
                assert_eq!(*quantizer, Quantizer::PerTensor { scale: 1.0 / 64.0, zero_point: -1 });
            }
            (Form::Quantized(Quantizer::PerChannel { axis: 0, .. }), _) => {
                assert_eq!(part(".q_per_channel_scales").sha256, Some(sha256(&scales)));
                assert_eq!(part(".q_per_channel_zero_points").sha256, Some(sha256(&points)));
            }
            (form, _) => panic!("{form:?}"),
        }
        assert!(report::is_whole(&recovery));
    }
}

#[test]
fn packed_weights_that_are_not_read_are_missing_not_forgotten() {
    let torch = torch("3.11", "1.13", Options::default());
    let python = &torch.python;
    let script = Script::new(&torch, "new-abi", [72, 88, 232]);
    let embedded = torch.parameter(&[5, 6]);
    // One number of the matrix contradicts the others: it is none.
    let blocks = Blocks { outputs: 4, inputs: 8, rows: 8, columns: 4, side_by_side: 4 };
    let matrix = script.matrix("2021", &blocks, &[1; 32]);
    python.process.write(matrix + 16, &9u32.to_le_bytes());
    let bias = unseen(&torch, &Tensor::f32(&[4]));
    let holder = script.holder(&[matrix, bias.tensor_impl]);
    let packed = script.wrapper(script.capsule(PACKED_CLASS, holder), false);
    quantized(&torch, &embedded, packed);
    let recovery = recover(&dump(&python.process));
    let model = only_model(&recovery);
    assert_whole(&torch, tensor(model, "weight"), &embedded);
    let found = tensor(model, "fc1._packed_params._packed_params");
    assert_eq!((found.status, found.persistent, found.object), (Status::Missing, true, VirtAddr(packed)));
    let problem = &found.problem.as_ref().unwrap().message;
    assert!(problem.contains("LinearPackedParamsBase"), "{problem}");
    assert_whole(&torch, &found.parts[0], &bias);
    assert!(!report::is_whole(&recovery));
}

#[test]
fn a_bias_that_is_lost_is_said() {
    // A layer without a bias: what an empty `std::optional` holds is no pointer.
    for (engaged, is_whole) in [(0, true), (1, false)] {
        let torch = torch("3.12", "2.6-old-abi", Options::default());
        let python = &torch.python;
        let script = Script::new(&torch, "old-abi", [64, 80, 152]);
        let embedded = torch.parameter(&[5, 6]);
        let blocks = Blocks { outputs: 4, inputs: 8, rows: 8, columns: 4, side_by_side: 4 };
        let matrix = script.matrix("2021", &blocks, &[1; 32]);
        let vectors = [&[0; 16], &0.5f32.to_le_bytes()[..], &[0; 4]].map(|bytes| script.vector_words(bytes));
        let words = [&[matrix, 0x7f66_0000_0000, engaged][..], &vectors.concat(), &[2]].concat();
        quantized(&torch, &embedded, script.wrapper(script.capsule(PACKED_CLASS, script.holder(&words)), false));
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        assert_eq!(tensor(model, "fc1._packed_params._packed_params").status, Status::Complete);
        let lost = model.tensors.iter().find(|tensor| tensor.name.ends_with("_packed_params.unreadable"));
        assert_eq!(lost.is_none(), is_whole);
        assert!(lost.is_none_or(|lost| lost.problem.as_ref().unwrap().message.contains("bias")), "{lost:?}");
        assert_eq!(report::is_whole(&recovery), is_whole);
    }
}

#[test]
fn a_packed_object_that_is_lost_is_said() {
    let torch = torch("3.11", "1.13", Options::default());
    let script = Script::new(&torch, "new-abi", [72, 88, 232]);
    let embedded = torch.parameter(&[5, 6]);
    quantized(&torch, &embedded, script.wrapper(0x7f66_0000_0000, false));
    let recovery = recover(&dump(&torch.python.process));
    let found = tensor(only_model(&recovery), "fc1._packed_params._packed_params");
    assert_eq!(found.status, Status::Missing);
    assert!(found.problem.as_ref().unwrap().message.contains("torch.ScriptObject"), "{:?}", found.problem);
    assert!(!report::is_whole(&recovery));
}

/// A script module with all that one can have; its Python object, and its tensors by name.
fn net(script: &Script<'_>) -> (u64, Truth) {
    let torch = script.torch;
    let new = |shape: &[u64]| unseen(torch, &Tensor::f32(shape).learned());
    let (weight, bias, mean, cache) = (new(&[4, 3]), new(&[4]), unseen(torch, &Tensor::f32(&[4])), new(&[2]));
    let undefined = torch.undefined_tensor();
    let linear = script.object(
        "__torch__.torch.nn.modules.linear.Linear",
        &[
            ("weight", PARAMETER, TENSOR, weight.tensor_impl),
            ("bias", PARAMETER, TENSOR, bias.tensor_impl),
            ("training", REGULAR, BOOL, 0x7f00_0000_0000),
        ],
    );
    let norm = script.object(
        "__torch__.Norm",
        &[
            ("weight", PARAMETER, NONE, 0),
            ("running_mean", BUFFER, TENSOR, mean.tensor_impl),
            ("nothing", BUFFER, TENSOR, undefined),
            ("tied", PARAMETER, TENSOR, weight.tensor_impl),
            ("training", REGULAR, BOOL, 1),
        ],
    );
    let root = script.object(
        "__torch__.___torch_mangle_3.Net",
        &[
            ("training", REGULAR, BOOL, 0),
            ("cache", REGULAR, TENSOR, cache.tensor_impl),
            ("head", REGULAR, OBJECT, linear),
            ("norm", REGULAR, OBJECT, norm),
        ],
    );
    // Python has objects for the modules below, too.
    script.wrapper(linear, true);
    let truth = vec![
        ("cache", TensorKind::Buffer, false, cache),
        ("head.weight", TensorKind::Parameter, true, weight.clone()),
        ("head.bias", TensorKind::Parameter, true, bias),
        ("norm.tied", TensorKind::Parameter, true, weight),
        ("norm.running_mean", TensorKind::Buffer, true, mean),
    ];
    (script.wrapper(root, true), truth)
}

/// The Python module of a script module: it has none of a module's dictionaries.
fn recursive_script_module(torch: &Torch, wrapper: u64) -> u64 {
    let class = torch.module_type("torch.jit._script", "RecursiveScriptModule");
    torch.python.instance(class, &[("_c", wrapper), ("_initializing", torch.python.bool(false))])
}

#[test]
fn script_modules_are_models() {
    for (cpython, pytorch, abi, places) in MACHINES {
        let torch = torch(cpython, pytorch, Options::default());
        let script = Script::new(&torch, abi, places);
        let (wrapper, truth) = net(&script);
        let module = recursive_script_module(&torch, wrapper);
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_eq!(
            (model.class.as_deref(), model.object.0),
            (Some("__torch__.___torch_mangle_3.Net"), module),
            "{pytorch}"
        );
        let names: Vec<&str> = model.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, truth.iter().map(|(name, ..)| *name).collect::<Vec<_>>(), "{pytorch}");
        for (name, kind, persistent, placed) in &truth {
            let found = tensor(model, name);
            assert_whole(&torch, found, placed);
            assert_eq!((found.kind, found.persistent), (*kind, *persistent), "{name}");
        }
        assert_eq!(tensor(model, "norm.tied").same_as.as_deref(), Some("head.weight"));
        let modules: Vec<(&str, Option<bool>)> =
            model.modules.iter().map(|module| (module.name.as_str(), module.training)).collect();
        assert_eq!(modules, [("", Some(false)), ("head", Some(false)), ("norm", Some(true))]);
        assert_eq!(model.modules[2].unset, [("weight".to_owned(), TensorKind::Parameter)]);
        assert!(report::is_whole(&recovery), "{:?}", model.problems);
    }
}

#[test]
fn a_module_of_python_holds_a_script_module() {
    let torch = torch("3.11", "1.13", Options::default());
    let script = Script::new(&torch, "new-abi", [72, 88, 232]);
    let (wrapper, truth) = net(&script);
    let inner = recursive_script_module(&torch, wrapper);
    let bias = torch.parameter(&[9]);
    let spec = ModuleSpec {
        parameters: vec![("bias", Some(&bias))],
        children: vec![("inner", inner)],
        ..ModuleSpec::default()
    };
    torch.module(torch.module_type("__main__", "Outer"), &spec);
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!(model.class.as_deref(), Some("__main__.Outer"));
    assert_whole(&torch, tensor(model, "bias"), &bias);
    for (name, .., placed) in &truth {
        assert_whole(&torch, tensor(model, &format!("inner.{name}")), placed);
    }
    assert!(report::is_whole(&recovery), "{:?}", model.problems);
}

#[test]
fn script_modules_that_are_not_read_are_said() {
    let torch = torch("3.11", "1.13", Options::default());
    let script = Script::new(&torch, "new-abi", [72, 88, 232]);
    // Their C++ objects are lost; a pointer to the class that no module holds counts for nothing.
    let wrappers = [0, 0, 0].map(|_| script.wrapper(0x7f66_0000_0000, true));
    wrappers.iter().take(2).for_each(|wrapper| _ = recursive_script_module(&torch, *wrapper));
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!((model.class.as_deref(), model.object), (Some("torch.ScriptModule"), VirtAddr(wrappers[0])));
    assert!(model.problems[0].message.starts_with("2 script modules"), "{:?}", model.problems);
    assert!(!report::is_whole(&recovery));
}

#[test]
fn a_frozen_script_module_is_no_whole_model() {
    let torch = torch("3.11", "1.13", Options::default());
    let script = Script::new(&torch, "new-abi", [72, 88, 232]);
    let plain = script.object("__torch__.Plain", &[("training", REGULAR, BOOL, 1)]);
    let frozen = script.object("__torch__.Frozen", &[("scale", REGULAR, CAPSULE, 3)]);
    let [_, frozen] = [plain, frozen].map(|object| recursive_script_module(&torch, script.wrapper(object, true)));
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!((model.class.as_deref(), model.object.0), (Some("__torch__.Frozen"), frozen));
    assert!(model.problems[0].message.contains("frozen"), "{:?}", model.problems);
}

#[test]
fn a_frozen_script_module_has_the_constants_of_its_code() {
    let torch = torch("3.11", "1.13", Options::default());
    let script = Script::new(&torch, "new-abi", [72, 88, 232]);
    let frozen = script.object("__torch__.Frozen", &[("scale", REGULAR, CAPSULE, 3)]);
    let frozen = recursive_script_module(&torch, script.wrapper(frozen, true));
    let placed = super::owners::tensors(&torch, &[&[4, 3], &[4]]);
    let names = ["self.fc.weight", "self.fc.bias"].into_iter();
    let constants: Vec<_> = names.zip(placed.iter().map(|placed| placed.tensor_impl)).collect();
    script.method("__torch__.Frozen", "forward", script.graph(&constants));
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!((model.class.as_deref(), model.object.0), (Some("__torch__.Frozen"), frozen));
    assert_whole(&torch, tensor(model, "fc.weight"), &placed[0]);
    assert_whole(&torch, tensor(model, "fc.bias"), &placed[1]);
    assert_eq!(model.modules[0].parameters, ["fc.bias", "fc.weight"]);
    assert_eq!(model.problems, []);
}
