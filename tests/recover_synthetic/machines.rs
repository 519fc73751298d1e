//! Machines: levels of page tables, isolation, scattered frames, several processes, backends and threads.

use std::rc::Rc;

use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::model::Status;
use tensorcarve::paging::SpaceKind;
use tensorcarve::recover::Recovery;
use tensorcarve::scan::Backend;

use super::synthetic::{
    CPYTHONS, DirectMap, Keeping, Machine, Options, Process, Python, Tensor, Torch, dump, recover, recover_on, sha256,
    torch,
};
use super::{assert_model, assert_whole, model, only_model};

#[test]
fn levels_isolation_and_direct_maps() {
    for levels in [4, 5] {
        for kpti in [false, true] {
            for direct_map in [DirectMap::Pages2M, DirectMap::Pages1G] {
                let options = Options { levels, kpti, direct_map, ..Options::default() };
                let torch = torch("3.11", "2.6", options);
                let process = &torch.python.process;
                let stale = process.machine.borrow_mut().new_space();
                let (root, truth) = model(&torch);
                let recovery = recover(&dump(process));
                assert_model(&torch, root, &truth, &recovery);
                let machine = process.machine.borrow();
                let found = |root: u64| recovery.discovery.spaces.iter().find(|space| space.root.0 == root).unwrap();
                assert_eq!(recovery.discovery.spaces.len(), 3);
                assert!(recovery.discovery.spaces.iter().all(|space| space.levels == levels));
                assert_eq!(found(machine.kernel_root).kind, SpaceKind::Kernel);
                assert_eq!(found(machine.root(stale).0).kind, SpaceKind::Stale);
                let own = found(machine.root(process.space).0);
                assert_eq!(own.kind, SpaceKind::Process);
                assert_eq!(own.kpti_user_root.map(|twin| twin.0), kpti.then_some(own.root.0 + 0x1000));
            }
        }
    }
}

#[test]
fn the_type_object_may_cross_a_page_border_anywhere() {
    for (cpython, step) in [("3.11", 16), ("3.8", 112), ("3.13", 112)] {
        for cut in (16..840).step_by(step) {
            let machine = Machine::new(Options { frames: 300, seed: cut, ..Options::default() });
            let python = Python::with_type_cut(Process::new(&machine), cpython, Some(cut));
            let torch = Torch::new(python, "1.13");
            let (_, weight) = torch.small_model("Net", &[3, 4]);
            let recovery = recover(&dump(&torch.python.process));
            assert_eq!(recovery.processes.len(), 1, "CPython {cpython}, border after {cut} bytes");
            assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
        }
    }
}

#[test]
fn every_object_may_cross_a_page_border() {
    for (seed, cpython) in (0..).zip(CPYTHONS) {
        let machine = Machine::new(Options { frames: 4096, seed, ..Options::default() });
        let process = Process::new(&machine);
        process.scatter(true);
        let torch = Torch::new(Python::new(process, cpython), "2.6");
        let (root, truth) = model(&torch);
        assert_model(&torch, root, &truth, &recover(&dump(&torch.python.process)));
    }
}

#[test]
fn data_in_large_pages() {
    for levels in [4, 5] {
        let torch = torch("3.12", "2.6", Options { levels, huge_pages: 2, ..Options::default() });
        let process = &torch.python.process;
        let base = process.reserve(0x40_0000, 0x20_0000);
        for page in [base, base + 0x20_0000] {
            process.machine.borrow_mut().map_huge(process.space, page);
        }
        // Across the border of the two, which are neighbours in reverse.
        let spec = Tensor::f32(&[1024, 64]);
        let weight = torch.tensor_at(&spec, base + 0x20_0000 - 0x12340);
        let class = torch.module_type("__main__", "Net");
        let parameters = vec![("weight", Some(&weight))];
        torch.module(class, &super::ModuleSpec { parameters, ..Default::default() });
        let recovery = recover(&dump(process));
        assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
    }
}

/// What of a recovery has to be the same, however it was made.
fn outcome(recovery: &Recovery) -> String {
    let processes = recovery.processes.iter().map(|process| {
        let layouts =
            (&process.python.as_ref().unwrap().layout, process.facts.torch.as_ref().map(|torch| &torch.layout));
        let counts = (process.python.as_ref().unwrap().type_count, process.module_count);
        format!(
            "{:?} {layouts:?} {counts:?} {:?} {:?}\n",
            process.python.as_ref().unwrap().type_object,
            process.models,
            process.shared_models
        )
    });
    processes.collect::<String>() + &format!("{:?} {:?}", recovery.discovery.spaces, recovery.warnings)
}

#[test]
fn backends_and_threads_change_nothing() {
    let torch = torch("3.13", "2.14", Options { kpti: true, ..Options::default() });
    model(&torch);
    torch.small_model("Other", &[300, 17]);
    {
        let mut machine = torch.python.process.machine.borrow_mut();
        let child = machine.fork(torch.python.process.space);
        machine.copy_on_write(child, torch.python.builtin.type_);
    }
    let dump = dump(&torch.python.process);
    let wanted = outcome(&recover_on(&dump, Backend::Scalar));
    assert!(wanted.contains("head.weight"));
    for backend in Backend::available() {
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| outcome(&recover_on(&dump, backend))), wanted, "{backend}, {threads} threads");
        }
    }
}

#[test]
fn a_fork_with_the_same_frames_is_the_same_model() {
    let torch = torch("3.11", "2.6", Options::default());
    let (root, truth) = model(&torch);
    let process = &torch.python.process;
    let child = process.machine.borrow_mut().fork(process.space);
    // The child counted references: pages of its own, with other bytes that are no part of the model.
    process.machine.borrow_mut().copy_on_write(child, root);
    let count = root + torch.python.at("object.ob_refcnt");
    process.machine.borrow_mut().write(child, count, &9u64.to_le_bytes());
    let recovery = recover(&dump(process));
    let roots = [process.space, child].map(|space| process.machine.borrow().root(space));
    assert_eq!(recovery.processes.len(), 2);
    let model = only_model(&recovery);
    assert_eq!(model.tensors.len(), truth.len());
    let mut sightings: Vec<_> = model.sightings.iter().filter_map(|sighting| sighting.root).collect();
    sightings.sort_unstable();
    let mut wanted = roots.to_vec();
    wanted.sort_unstable();
    assert_eq!(sightings, wanted);
    let shared: Vec<_> = recovery.processes.iter().flat_map(|process| &process.shared_models).collect();
    assert_eq!(shared, ["m0"]);
}

#[test]
fn a_fork_that_went_on_learning_is_a_model_of_its_own() {
    let torch = torch("3.12", "1.13", Options::default());
    let (_, weight) = torch.small_model("Net", &[40, 40]);
    let process = &torch.python.process;
    let mut changed = weight.logical.clone();
    let child = {
        let mut machine = process.machine.borrow_mut();
        let child = machine.fork(process.space);
        machine.copy_on_write(child, weight.base + 0x1000);
        machine.write(child, weight.base + 0x1000, b"learned!");
        changed[0x1000..0x1008].copy_from_slice(b"learned!");
        child
    };
    let recovery = recover(&dump(process));
    for (space, bytes) in [(process.space, &weight.logical), (child, &changed)] {
        let root = process.machine.borrow().root(space);
        let found = recovery.processes.iter().find(|process| process.root() == Some(root)).unwrap();
        assert_eq!(found.models.len(), 1);
        let tensor = &found.models[0].tensors[0];
        assert_eq!(tensor.status, Status::Complete);
        assert_eq!(tensor.sha256.as_deref(), Some(sha256(bytes).as_str()));
    }
}

#[test]
fn a_python_without_pytorch_and_one_of_another_version() {
    let machine = Machine::new(Options { frames: 2048, ..Options::default() });
    let decoy = Python::new(Process::new(&machine), "3.9");
    let plain = decoy.class(decoy.builtin.type_, "__main__", "Module", decoy.builtin.object, Keeping::SplitDict);
    decoy.instance(plain, &[("_parameters", decoy.dict(&[])), ("training", decoy.bool(true))]);
    let torch = Torch::new(Python::new(Process::new(&machine), "3.13"), "2.14");
    let (_, weight) = torch.small_model("Net", &[8]);
    let old = Torch::new(Python::new(Process::new(&machine), "3.8"), "1.13-old-abi");
    let (_, old_weight) = old.small_model("Old", &[9]);
    let recovery = recover(&dump(&decoy.process));
    assert_eq!(recovery.processes.len(), 3);
    for (process, python, truth) in [
        (&decoy.process, "3.9.7", None),
        (&torch.python.process, "3.13.7", Some((&torch, &weight))),
        (&old.python.process, "3.8.7", Some((&old, &old_weight))),
    ] {
        let root = Rc::clone(&machine).borrow().root(process.space);
        let found = recovery.processes.iter().find(|process| process.root() == Some(root)).unwrap();
        assert_eq!(found.python.as_ref().unwrap().version.as_deref(), Some(python));
        assert_eq!(found.facts.torch.is_some(), truth.is_some());
        assert_eq!(found.models.len(), usize::from(truth.is_some()));
        if let Some((torch, weight)) = truth {
            assert_whole(torch, &found.models[0].tensors[0], weight);
        }
    }
}

#[test]
fn copies_of_a_root_are_one_process() {
    let torch = torch("3.11", "2.6", Options::default());
    let (root, weight) = torch.small_model("Net", &[3, 4]);
    let process = &torch.python.process;
    {
        let mut machine = process.machine.borrow_mut();
        let own = machine.root(process.space).0;
        for copy in 0..5 {
            let frame = machine.frame();
            for index in 0..512 {
                // Whether a page was accessed, and bits that the MMU ignores, do not matter.
                let entry = machine.word(own + index * 8);
                let ignored = if entry & 1 == 0 || index >= 256 { 0 } else { copy << 9 | 1 << 5 };
                machine.set(frame + index * 8, entry | ignored);
            }
        }
    }
    let recovery = recover(&dump(process));
    assert_eq!(recovery.processes.len(), 1);
    assert_eq!(only_model(&recovery).object.0, root);
    assert_whole(&torch, &only_model(&recovery).tensors[0], &weight);
    let is_said = |warning: &Diagnostic| warning.message.contains("5 page-table roots show the same user memory");
    assert!(recovery.warnings.iter().any(is_said), "{:?}", recovery.warnings);
}
