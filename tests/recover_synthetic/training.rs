//! What training leaves beside the weights: gradients, and what optimizers keep.

use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::Value;
use tensorcarve::model::{Model, NamedTensor, Status, TensorKind};

use super::synthetic::{
    CPYTHONS, Keeping, ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, torch,
};
use super::{assert_whole, only_model};

fn training<'a>(model: &'a Model, kind: TensorKind, name: &str) -> &'a NamedTensor {
    let mut named = model.training.iter().filter(|tensor| (tensor.kind, tensor.name.as_str()) == (kind, name));
    let found = named.next().unwrap_or_else(|| panic!("no {name} among {:?}", model.training));
    assert!(named.next().is_none(), "{name} is there twice");
    found
}

/// An optimizer object of a class that derives from `torch.optim.Optimizer` and is no PyTorch class.
fn optimizer(torch: &Torch, state: &[(u64, u64)], groups: &[u64]) -> u64 {
    let python = &torch.python;
    let b = python.builtin;
    let base = python.class(b.type_, "torch.optim.optimizer", "Optimizer", b.object, Keeping::Dict);
    let class = python.class(b.type_, "lab.tricks", "Lookahead", base, Keeping::Dict);
    python.instance(
        class,
        &[
            ("defaults", python.dict(&[("lr", python.float(9.0))])),
            ("state", python.general_dict(state)),
            ("param_groups", python.list(groups)),
        ],
    )
}

#[test]
fn gradients_and_optimizer_state_of_every_version() {
    for (cpython, pytorch) in
        CPYTHONS.iter().map(|cpython| (*cpython, "2.6")).chain(PYTORCHES.iter().map(|pytorch| ("3.12", *pytorch)))
    {
        let torch = torch(cpython, pytorch, Options::default());
        let python = &torch.python;
        let (weight, bias, frozen) = (torch.parameter(&[70, 30]), torch.parameter(&[70]), torch.parameter(&[3]));
        // One gradient is transposed and has no Python object, one is an object, one tensor has none.
        let weight_grad = torch.tensor(&Tensor::f32(&[70, 30]).strided(&[1, 70]));
        python.process.put(weight_grad.tensor_impl + torch.numbers.at("tensor.pyobj"), 0);
        let bias_grad = torch.tensor(&Tensor::f32(&[70]));
        // The mark of a tensor that owns its Python object.
        python.process.put(bias_grad.tensor_impl + torch.numbers.at("tensor.pyobj"), bias_grad.object | 1);
        torch.set_grad(&weight, weight_grad.tensor_impl);
        torch.set_grad(&bias, bias_grad.tensor_impl);
        torch.set_grad(&frozen, torch.undefined_tensor());
        let layer = ModuleSpec {
            // A tied weight has one gradient and one state, under its first name.
            parameters: vec![
                ("weight", Some(&weight)),
                ("tied", Some(&weight)),
                ("bias", Some(&bias)),
                ("frozen", Some(&frozen)),
            ],
            ..ModuleSpec::default()
        };
        torch.module(torch.module_type("__main__", "Net"), &layer);

        let momentum = torch.tensor(&Tensor::f32(&[70, 30]));
        let step = torch.tensor(&Tensor::new("Float", &[]));
        let history: Vec<Placed> = (0..2).map(|_| torch.tensor(&Tensor::new("Double", &[4]))).collect();
        let objects: Vec<u64> = history.iter().map(|tensor| tensor.object).collect();
        let of_weight = python.dict(&[("momentum_buffer", momentum.object), ("step", step.object)]);
        let of_bias = python.dict(&[
            ("step", python.int(12)),
            ("history", python.list(&objects)),
            ("closure", python.object(python.builtin.object, 16)),
        ]);
        let of_stranger = python.dict(&[("momentum_buffer", momentum.object)]);
        let stranger = torch.parameter(&[5]);
        let group = |parameters: &[&Placed], lr: f64| {
            let parameters: Vec<u64> = parameters.iter().map(|parameter| parameter.object).collect();
            python.dict(&[
                ("params", python.list(&parameters)),
                ("lr", python.float(lr)),
                ("betas", python.tuple(&[python.float(0.5), python.float(0.25)])),
                ("foreach", python.builtin.none),
            ])
        };
        let object = optimizer(
            &torch,
            &[(weight.object, of_weight), (bias.object, of_bias), (stranger.object, of_stranger)],
            &[group(&[&weight], 0.125), group(&[&bias, &stranger], 0.5)],
        );

        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        let found = |kind, name: &str| training(model, kind, name);
        let gradient = found(TensorKind::Gradient, "weight");
        assert_eq!(gradient.object, VirtAddr(0), "Python never saw it");
        assert_whole(&torch, gradient, &Placed { object: 0, ..weight_grad.clone() });
        assert_whole(&torch, found(TensorKind::Gradient, "bias"), &bias_grad);
        for (name, truth) in [
            ("weight.momentum_buffer", &momentum),
            ("weight.step", &step),
            ("bias.history.0", &history[0]),
            ("bias.history.1", &history[1]),
        ] {
            assert_whole(&torch, found(TensorKind::Optimizer, name), truth);
        }
        assert_eq!(model.training.len(), 6, "{:?}", model.training);
        let [optimizer] = model.optimizers.as_slice() else { panic!("{:?}", model.optimizers) };
        assert_eq!((optimizer.class.as_str(), optimizer.object), ("lab.tricks.Lookahead", VirtAddr(object)));
        assert_eq!(optimizer.state, [("bias".to_owned(), "step".to_owned(), Value::Int(12))]);
        assert_eq!(optimizer.problems, []);
        let groups: Vec<_> = optimizer.groups.iter().map(|group| (group.parameters.join(" "), group.others)).collect();
        assert_eq!(groups, [("weight".to_owned(), 0), ("bias".to_owned(), 1)]);
        let settings = |lr| {
            let betas = Value::Tuple(vec![Value::Float(0.5), Value::Float(0.25)]);
            [("lr", Value::Float(lr)), ("betas", betas), ("foreach", Value::None)].map(|(k, v)| (k.to_owned(), v))
        };
        assert_eq!(optimizer.groups[0].settings, settings(0.125));
        assert_eq!(optimizer.groups[1].settings, settings(0.5));
    }
}

#[test]
fn what_is_lost_of_training_is_said() {
    let torch = torch("3.11", "2.6", Options::default());
    let python = &torch.python;
    let process = &python.process;
    let (weight, bias) = (torch.parameter(&[4096]), torch.parameter(&[2]));
    let gradient = torch.tensor(&Tensor::f32(&[4096]));
    torch.set_grad(&weight, gradient.tensor_impl);
    // A pointer to nowhere, and a state whose dictionary is none.
    torch.set_grad(&bias, 0x10_0000);
    let parameters = vec![("weight", Some(&weight)), ("bias", Some(&bias))];
    torch.module(torch.module_type("__main__", "Net"), &ModuleSpec { parameters, ..ModuleSpec::default() });
    let mut deep = gradient.object;
    for _ in 0..6 {
        deep = python.list(&[deep]);
    }
    let state = [(weight.object, python.dict(&[("deep", deep)])), (bias.object, python.int(3))];
    let group = python.dict(&[("params", python.list(&[weight.object, bias.object]))]);
    optimizer(&torch, &state, &[group]);
    process.machine.borrow_mut().lose(process.space, (gradient.base & !0xfff) + 0x1000);

    let recovery = recover(&dump(process));
    let model = only_model(&recovery);
    assert_eq!(training(model, TensorKind::Gradient, "weight").status, Status::Partial);
    let lost = training(model, TensorKind::Gradient, "bias");
    assert!(lost.status == Status::Missing && lost.problem.is_some(), "{lost:?}");
    assert_eq!(model.training.len(), 2);
    let [optimizer] = model.optimizers.as_slice() else { panic!("{:?}", model.optimizers) };
    let problems = &optimizer.problems;
    assert!(problems.iter().any(|problem| problem.message.contains("\"bias\"")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.message.contains("1 value beyond the limits")), "{problems:?}");
}
