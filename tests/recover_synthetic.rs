//! Recovery from dumps that are made up: every byte of the result is known beforehand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may simply fail"
)]

mod synthetic;

#[path = "recover_synthetic/arrays.rs"]
mod arrays;
#[path = "recover_synthetic/attributes.rs"]
mod attributes;
#[path = "recover_synthetic/budgets.rs"]
mod budgets;
#[path = "recover_synthetic/choice.rs"]
mod choice;
#[path = "recover_synthetic/ended.rs"]
mod ended;
#[path = "recover_synthetic/forms.rs"]
mod forms;
#[path = "recover_synthetic/freed.rs"]
mod freed;
#[path = "recover_synthetic/hidden.rs"]
mod hidden;
#[path = "recover_synthetic/images.rs"]
mod images;
#[path = "recover_synthetic/inference.rs"]
mod inference;
#[path = "recover_synthetic/inferred.rs"]
mod inferred;
#[path = "recover_synthetic/machines.rs"]
mod machines;
#[path = "recover_synthetic/modules.rs"]
mod modules;
#[path = "recover_synthetic/other_pythons.rs"]
mod other_pythons;
#[path = "recover_synthetic/others.rs"]
mod others;
#[path = "recover_synthetic/owners.rs"]
mod owners;
#[path = "recover_synthetic/referrers.rs"]
mod referrers;
#[path = "recover_synthetic/scripts.rs"]
mod scripts;
#[path = "recover_synthetic/tensors.rs"]
mod tensors;
#[path = "recover_synthetic/training.rs"]
mod training;

use synthetic::{
    CPYTHONS, ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, release, sha256, torch,
};
use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::{LayoutSource, Value};
use tensorcarve::model::{Model, NamedTensor, Status, TensorKind};
use tensorcarve::recover::Recovery;

/// What a model holds: name, kind, whether `state_dict()` lists it, and the tensor.
type Truth = Vec<(&'static str, TensorKind, bool, Placed)>;

fn only_model(recovery: &Recovery) -> &Model {
    let models: Vec<&Model> = recovery.processes.iter().flat_map(|process| &process.models).collect();
    assert_eq!(models.len(), 1, "{models:#?}");
    models[0]
}

fn tensor<'a>(model: &'a Model, name: &str) -> &'a NamedTensor {
    model.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("no {name} in {model:#?}"))
}

/// Asserts that a tensor came out as it was written, in every respect.
fn assert_whole(torch: &Torch, found: &NamedTensor, truth: &Placed) {
    let name = &found.name;
    assert_eq!(found.problem, None, "{name}");
    assert_eq!(found.status, Status::Complete, "{name}");
    assert!(found.holes.is_empty(), "{name}");
    assert_headers(torch, found, truth);
    assert_eq!(found.sha256.as_deref(), Some(sha256(&truth.logical).as_str()), "{name}");
}

fn assert_headers(torch: &Torch, found: &NamedTensor, truth: &Placed) {
    let info = found.info.as_ref().unwrap();
    assert_eq!(info.shape, truth.spec.shape);
    assert_eq!(info.stride, truth.spec.stride);
    assert_eq!(info.storage_offset, truth.spec.offset);
    assert_eq!(info.dtype.label(), torch.numbers.label(truth.spec.dtype));
    assert_eq!(info.requires_grad, truth.spec.requires_grad || truth.spec.grad_fn);
    assert_eq!((info.object, info.storage), (VirtAddr(truth.object), VirtAddr(truth.storage)));
    let device = match truth.spec.device_index {
        -1 => truth.spec.device.to_owned(),
        index => format!("{}:{index}", truth.spec.device),
    };
    assert_eq!(info.device, device);
}

/// A model with most of what a model can have, and what must come out: its tensors in order.
fn model(torch: &Torch) -> (u64, Truth) {
    let python = &torch.python;
    let conv_class = torch.layer("conv", "Conv2d");
    let norm_class = torch.layer("batchnorm", "BatchNorm2d");
    let linear_class = torch.layer("linear", "Linear");
    let sequential = torch.layer("container", "Sequential");
    let pool_class = torch.layer("pooling", "MaxPool2d");
    let net = torch.module_type("__main__", "main.<locals>.Net");

    let conv_weight = torch.parameter(&[6, 3, 5, 5]);
    let conv = torch.module(
        conv_class,
        &ModuleSpec {
            parameters: vec![("weight", Some(&conv_weight)), ("bias", None)],
            attributes: vec![
                ("in_channels", python.int(3)),
                ("kernel_size", python.tuple(&[python.int(5), python.int(5)])),
                ("padding_mode", python.str("zeros")),
                ("bias_value", python.builtin.none),
            ],
            ..ModuleSpec::default()
        },
    );
    let (gamma, beta) = (torch.parameter(&[6]), torch.parameter(&[6]));
    let (mean, scratch) = (torch.tensor(&Tensor::f32(&[6])), torch.tensor(&Tensor::new("Bool", &[7])));
    let batches = torch.tensor(&Tensor::new("Long", &[]));
    let norm = torch.module(
        norm_class,
        &ModuleSpec {
            parameters: vec![("weight", Some(&gamma)), ("bias", Some(&beta))],
            buffers: vec![
                ("running_mean", Some(&mean)),
                ("num_batches_tracked", Some(&batches)),
                ("scratch", Some(&scratch)),
                ("absent", None),
            ],
            non_persistent: vec!["scratch"],
            attributes: vec![
                ("eps", python.float(1e-5)),
                ("momentum", python.float(-0.1)),
                ("affine", python.bool(true)),
            ],
            in_use: true,
            ..ModuleSpec::default()
        },
    );
    let pool = torch.module(
        pool_class,
        &ModuleSpec {
            attributes: vec![
                ("stride", python.int(-2)),
                ("big", python.int(1 << 100)),
                ("sizes", python.list(&[python.int(0), python.bool(false)])),
            ],
            ..ModuleSpec::default()
        },
    );
    let features = torch.module(
        sequential,
        &ModuleSpec { children: vec![("0", conv), ("1", norm), ("2", pool)], ..ModuleSpec::default() },
    );
    // Larger than a page, so that its frames lie here and there.
    let head_weight = torch.parameter(&[70, 84]);
    let head = torch.module(
        linear_class,
        &ModuleSpec { parameters: vec![("weight", Some(&head_weight))], ..ModuleSpec::default() },
    );
    let root = torch.module(
        net,
        &ModuleSpec {
            children: vec![("features", features), ("head", head)],
            attributes: vec![("größe", python.str("λ→😀")), ("näme", python.str("é"))],
            ..ModuleSpec::default()
        },
    );
    use TensorKind::{Buffer, Parameter};
    (
        root,
        vec![
            ("features.0.weight", Parameter, true, conv_weight),
            ("features.1.weight", Parameter, true, gamma),
            ("features.1.bias", Parameter, true, beta),
            ("features.1.running_mean", Buffer, true, mean),
            ("features.1.num_batches_tracked", Buffer, true, batches),
            ("features.1.scratch", Buffer, false, scratch),
            ("head.weight", Parameter, true, head_weight),
        ],
    )
}

/// Asserts that [`model`] came out of a dump as it was written, and nothing else did.
fn assert_model(torch: &Torch, root: u64, truth: &Truth, recovery: &Recovery) {
    let [process] = recovery.processes.as_slice() else { panic!("{} processes", recovery.processes.len()) };
    let is_inferred = process.python.as_ref().unwrap().layout.0.source == LayoutSource::Inferred;
    assert_eq!(recovery.warnings.len(), usize::from(is_inferred), "{:#?}", recovery.warnings);
    let root_table = torch.python.process.machine.borrow().root(torch.python.process.space);
    assert_eq!(process.root(), (!recovery.discovery.spaces.is_empty()).then_some(root_table));
    assert_eq!(process.python.as_ref().unwrap().type_object.0, VirtAddr(torch.python.builtin.type_));
    assert_eq!(
        process.python.as_ref().unwrap().version.as_deref(),
        Some(format!("{}.7", release(&torch.python.layout.version)).as_str())
    );
    assert!(process.facts.torch.is_some());
    let release = torch.numbers.0.version.split('-').next().unwrap();
    assert_eq!(process.facts.torch.as_ref().unwrap().version.as_deref(), Some(format!("{release}.0+cpu").as_str()));
    let (layout, _) = process.facts.torch.as_ref().unwrap().layout.as_ref().unwrap();
    assert_eq!(layout.version, torch.numbers.0.version);
    assert_eq!((layout.readable, layout.tried), (truth.len(), truth.len()));
    let model = only_model(recovery);
    assert_eq!(model.problems, []);
    assert_eq!(
        (model.id.as_str(), model.class.as_deref(), model.object),
        ("m0", Some("__main__.main.<locals>.Net"), VirtAddr(root))
    );
    assert_eq!(model.sightings.len(), 1);
    let names: Vec<_> = model.tensors.iter().map(|t| (t.name.as_str(), t.kind, t.persistent)).collect();
    let wanted: Vec<_> = truth.iter().map(|(name, kind, persistent, _)| (*name, *kind, *persistent)).collect();
    assert_eq!(names, wanted);
    for (found, (.., placed)) in model.tensors.iter().zip(truth) {
        assert_whole(torch, found, placed);
        assert_eq!(found.same_as, None);
    }
    let modules: Vec<_> =
        model.modules.iter().map(|m| (m.name.as_str(), m.class.as_deref().unwrap(), m.training)).collect();
    assert_eq!(
        modules,
        [
            ("", "__main__.main.<locals>.Net", Some(true)),
            ("features", "torch.nn.modules.container.Sequential", Some(true)),
            ("features.0", "torch.nn.modules.conv.Conv2d", Some(true)),
            ("features.1", "torch.nn.modules.batchnorm.BatchNorm2d", Some(false)),
            ("features.2", "torch.nn.modules.pooling.MaxPool2d", Some(true)),
            ("head", "torch.nn.modules.linear.Linear", Some(true)),
        ]
    );
    let hyper = |index: usize| {
        model.modules[index].hyperparameters.iter().filter(|(name, _)| name != "training").cloned().collect::<Vec<_>>()
    };
    let named = |name: &str, value: Value| (name.to_owned(), value);
    let int = Value::Int;
    let text = |text: &str| Value::Str(text.to_owned());
    assert_eq!(hyper(0), [named("größe", text("λ→😀")), named("näme", text("é"))]);
    assert_eq!(hyper(1), []);
    assert_eq!(
        hyper(2),
        [
            named("in_channels", int(3)),
            named("kernel_size", Value::Tuple(vec![int(5), int(5)])),
            named("padding_mode", text("zeros")),
            named("bias_value", Value::None),
        ]
    );
    assert_eq!(
        hyper(3),
        [named("eps", Value::Float(1e-5)), named("momentum", Value::Float(-0.1)), named("affine", Value::Bool(true))]
    );
    assert_eq!(
        hyper(4),
        [
            named("stride", int(-2)),
            named("big", int(1 << 100)),
            named("sizes", Value::List(vec![int(0), Value::Bool(false)])),
        ]
    );
    assert_eq!(model.modules[2].unset, [("bias".to_owned(), TensorKind::Parameter)]);
    assert_eq!(model.modules[3].unset, [("absent".to_owned(), TensorKind::Buffer)]);
    assert_eq!(model.modules[0].framework_class.as_deref(), Some("torch.nn.modules.module.Module"));
    assert_eq!(model.modules[2].framework_class, None);
}

#[test]
fn every_python_with_every_pytorch() {
    for cpython in CPYTHONS {
        for pytorch in PYTORCHES {
            let torch = torch(cpython, pytorch, Options::default());
            let (root, truth) = model(&torch);
            let recovery = recover(&dump(&torch.python.process));
            assert_model(&torch, root, &truth, &recovery);
            let (layout, _) = &recovery.processes[0].python.as_ref().unwrap().layout;
            assert_eq!((layout.version.as_str(), layout.source), (cpython, LayoutSource::Table));
            assert_eq!(layout.changes, []);
        }
    }
}
