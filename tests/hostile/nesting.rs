//! Modules that nest deeply, or share on every level.

use super::synthetic::{ModuleSpec, Options, Torch, dump, recover, torch};
use super::{alone, bounded};

#[test]
fn modules_that_share_on_every_level() {
    let _alone = alone();
    let torch = torch("3.11", "2.6", Options { frames: 2048, ..Options::default() });
    let sequential = torch.layer("container", "Sequential");
    // Large, and hashed under each of its names?
    let weight = torch.parameter(&[200_000]);
    let mut module =
        torch.module(sequential, &ModuleSpec { parameters: vec![("weight", Some(&weight))], ..ModuleSpec::default() });
    for _ in 0..60 {
        let children = vec![("a", module), ("b", module)];
        module = torch.module(sequential, &ModuleSpec { children, ..ModuleSpec::default() });
    }
    let dump = dump(&torch.python.process);
    let recovery = bounded("2^60 places", || recover(&dump));
    let model = &recovery.processes[0].models[0];
    assert!(model.problems.iter().any(|problem| problem.message.contains("too many names")), "{:?}", model.problems);
    assert!(model.problems.len() < 1000);
}

/// A chain of modules, as little as can be, so that a million fit.
fn chain(torch: &Torch, length: u64) -> u64 {
    let python = &torch.python;
    let empty = python.dict(&[]);
    let weight = torch.parameter(&[3]);
    let parameters = python.dict(&[("weight", weight.object)]);
    let class = torch.layer("container", "Sequential");
    let mut module = 0;
    for _ in 0..length {
        let children = if module == 0 { empty } else { python.dict(&[("0", module)]) };
        module = python.instance(class, &[("_parameters", parameters), ("_buffers", empty), ("_modules", children)]);
    }
    module
}

#[test]
fn modules_that_nest_deeply() {
    let _alone = alone();
    let torch = torch("3.8", "2.6", Options { frames: 12_000, ..Options::default() });
    chain(&torch, 30_000);
    let dump = dump(&torch.python.process);
    let recovery = bounded("deep nesting", || recover(&dump));
    let model = &recovery.processes[0].models[0];
    assert_eq!(recovery.processes[0].models.len(), 1);
    assert!(model.tensors.len() >= 100);
    assert!(
        model.problems.iter().any(|problem| problem.message.contains("nested too deeply")),
        "{:?}",
        model.problems.first()
    );
}

#[test]
fn many_models_that_share_one_large_module() {
    let _alone = alone();
    // Each of the roots would list all modules below.
    let torch = torch("3.13", "2.6", Options { frames: 6000, ..Options::default() });
    let sequential = torch.layer("container", "Sequential");
    let weight = torch.parameter(&[16]);
    let leaf =
        torch.module(sequential, &ModuleSpec { parameters: vec![("weight", Some(&weight))], ..ModuleSpec::default() });
    let mut module = leaf;
    for _ in 0..8 {
        let children = vec![("a", module), ("b", module), ("c", module), ("d", module)];
        module = torch.module(sequential, &ModuleSpec { children, ..ModuleSpec::default() });
    }
    for _ in 0..300 {
        torch.module(sequential, &ModuleSpec { children: vec![("all", module)], ..ModuleSpec::default() });
    }
    let dump = dump(&torch.python.process);
    bounded("300 roots over 4^8 places", || recover(&dump));
}
