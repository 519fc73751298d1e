//! Tensors that belong to no model, and what refers to them.

use tensorcarve::addr::VirtAddr;
use tensorcarve::model::{Reading, Referrer, StandaloneTensor, Status, TensorKind};
use tensorcarve::recover::Recovery;

use super::synthetic::{CPYTHONS, ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, sha256, torch};
use super::{assert_whole, only_model};

fn others(recovery: &Recovery) -> Vec<&StandaloneTensor> {
    recovery.processes.iter().flat_map(|process| &process.standalone.found).collect()
}

fn find<'a>(recovery: &'a Recovery, truth: &Placed) -> &'a StandaloneTensor {
    let mut found = others(recovery).into_iter().filter(|other| other.tensor.object == VirtAddr(truth.object));
    let first = found.next().unwrap_or_else(|| panic!("{:#x} is not listed", truth.object));
    assert!(found.next().is_none(), "{:#x} is listed twice", truth.object);
    first
}

/// Whole, and referred to by exactly this.
fn assert_other(torch: &Torch, recovery: &Recovery, truth: &Placed, referrers: &[Referrer]) {
    let other = find(recovery, truth);
    assert_whole(torch, &other.tensor, truth);
    assert_eq!(other.tensor.kind, TensorKind::Other);
    let root = torch.python.process.machine.borrow().root(torch.python.process.space);
    assert_eq!(other.tensor.name, format!("{root}.{:#x}", truth.object));
    assert_eq!(other.referrers, referrers);
    assert!(other.array.is_none() && !other.is_left_out);
}

fn global(path: &str) -> Referrer {
    Referrer::Global { path: path.to_owned() }
}

#[test]
fn whatever_refers_to_them_is_said() {
    for (cpython, pytorch) in
        CPYTHONS.iter().map(|cpython| (*cpython, "2.6")).chain(PYTORCHES.iter().map(|pytorch| ("3.12", *pytorch)))
    {
        let torch = torch(cpython, pytorch, Options::default());
        let python = &torch.python;
        let new = |shape: &[u64]| torch.tensor(&Tensor::f32(shape));
        let (orphan, plain, listed, keyed, deep) = (new(&[2000]), new(&[3]), new(&[4]), new(&[5]), new(&[6]));
        let (batch, both) = (torch.tensor(&Tensor::new("Long", &[7])), new(&[2, 2]));
        let weight = torch.parameter(&[8, 8]);
        let gradient = torch.tensor(&Tensor::f32(&[8, 8]));
        torch.set_grad(&weight, gradient.tensor_impl);
        let cache = python.dict(&[("größe", python.tuple(&[python.int(1), keyed.object]))]);
        let layer = ModuleSpec {
            parameters: vec![("weight", Some(&weight))],
            attributes: vec![
                ("scale", plain.object),
                ("history", python.list(&[both.object, weight.object, listed.object])),
                ("_cache", cache),
                ("alias", weight.object),
            ],
            ..ModuleSpec::default()
        };
        let module = torch.module(torch.module_type("__main__", "Layer"), &layer);
        let numbered = python.general_dict(&[(python.int(-3), python.list(&[deep.object]))]);
        let names = [("batch", batch.object), ("both", both.object), ("numbered", numbered), ("weight", weight.object)];
        python.module("__main__", &names);
        let recovery = recover(&dump(&python.process));
        only_model(&recovery);
        assert_eq!(recovery.warnings, []);
        assert_eq!(others(&recovery).len(), 7, "{cpython} {pytorch}");
        let attribute = |path: &str| Referrer::Module { object: VirtAddr(module), path: path.to_owned() };
        assert_other(&torch, &recovery, &orphan, &[]);
        assert_other(&torch, &recovery, &plain, &[attribute("scale")]);
        assert_other(&torch, &recovery, &listed, &[attribute("history[2]")]);
        assert_other(&torch, &recovery, &keyed, &[attribute("_cache[\"größe\"][1]")]);
        assert_other(&torch, &recovery, &deep, &[global("__main__.numbered[-3][0]")]);
        assert_other(&torch, &recovery, &batch, &[global("__main__.batch")]);
        // The shortest way comes first.
        assert_other(&torch, &recovery, &both, &[global("__main__.both"), attribute("history[0]")]);
        assert_eq!(find(&recovery, &plain).tensor.class.as_deref(), Some("torch.Tensor"));
    }
}

#[test]
fn tensors_of_a_process_without_modules() {
    for pytorch in PYTORCHES {
        let torch = torch("3.11", pytorch, Options::default());
        let python = &torch.python;
        // A class of the user's own, and a gradient that Python has never seen.
        let class =
            python.class(python.builtin.type_, "lab", "Tagged", torch.tensor_class, super::synthetic::Keeping::Dict);
        let tagged = torch.numbers.tensor(python, class, &Tensor::f32(&[9]).learned(), None);
        let gradient = torch.tensor(&Tensor::f32(&[9]).strided(&[1]));
        python.process.put(gradient.tensor_impl + torch.numbers.at("tensor.pyobj"), 0);
        torch.set_grad(&tagged, gradient.tensor_impl);
        let recovery = recover(&dump(&python.process));
        let (layout, next) = recovery.processes[0].facts.torch.as_ref().unwrap().layout.as_ref().unwrap();
        assert_eq!(layout.version, pytorch, "{layout:?}, {next:?}");
        assert!(recovery.processes[0].models.is_empty());
        let [first, second] = others(&recovery)[..] else { panic!("{:#?}", others(&recovery)) };
        assert_eq!(
            (first.tensor.object, first.tensor.info.as_ref().unwrap().header.0),
            (VirtAddr(0), gradient.tensor_impl)
        );
        assert_eq!(first.tensor.sha256.as_deref(), Some(sha256(&gradient.logical).as_str()));
        assert_eq!(first.referrers, [Referrer::GradientOf { object: VirtAddr(tagged.object) }]);
        assert_whole(&torch, &second.tensor, &tagged);
        assert_eq!(second.tensor.class.as_deref(), Some("lab.Tagged"));
    }
}

#[test]
fn a_tensor_whose_header_is_gone_is_listed_if_something_refers_to_it() {
    let torch = torch("3.10", "1.13", Options::default());
    let python = &torch.python;
    let (named, orphan, torn) = (torch.parameter(&[4]), torch.parameter(&[4]), torch.parameter(&[2048]));
    for tensor in [&named, &orphan] {
        python.process.put(tensor.object + torch.numbers.at("thp.tensor_impl_pointer"), 0x7f77_0000_0000);
    }
    torch.small_model("Net", &[3]);
    python.process.machine.borrow_mut().lose(python.process.space, torn.base + 0x1000);
    python.module("__main__", &[("named", named.object)]);
    let recovery = recover(&dump(&python.process));
    assert_eq!(others(&recovery).len(), 2);
    let found = find(&recovery, &named);
    assert_eq!((found.tensor.status, found.referrers.as_slice()), (Status::Missing, &[global("__main__.named")][..]));
    assert!(found.tensor.problem.as_ref().unwrap().message.contains("was never touched"), "{:?}", found.tensor.problem);
    let found = &find(&recovery, &torn).tensor;
    assert_eq!((found.status, found.holes.len()), (Status::Partial, 1));
}

#[test]
fn forked_processes_list_a_tensor_once_unless_it_changed() {
    let torch = torch("3.12", "2.6", Options::default());
    let python = &torch.python;
    let (same, changed) = (torch.tensor(&Tensor::f32(&[2000])), torch.tensor(&Tensor::f32(&[2000])));
    let child = {
        let mut machine = python.process.machine.borrow_mut();
        let child = machine.fork(python.process.space);
        machine.copy_on_write(child, changed.base + 0x1000);
        machine.write(child, changed.base + 0x1000, b"changed!");
        child
    };
    let recovery = recover(&dump(&python.process));
    assert_eq!(find(&recovery, &same).sightings.len(), 2);
    let found: Vec<_> = others(&recovery).into_iter().filter(|other| other.tensor.object.0 == changed.object).collect();
    let [first, second] = found[..] else { panic!("{found:#?}") };
    assert_ne!(first.tensor.sha256, second.tensor.sha256);
    assert_ne!(first.tensor.name, second.tensor.name);
    let mut roots = [first, second].map(|other| other.sightings[0].root.unwrap());
    roots.sort_unstable();
    let mut wanted = [python.process.space, child].map(|space| python.process.machine.borrow().root(space));
    wanted.sort_unstable();
    assert_eq!(roots, wanted);
}

#[test]
fn tensors_that_repeat_themselves_are_read_once() {
    let torch = torch("3.13", "2.14", Options::default());
    let one = torch.tensor(&Tensor::f32(&[1000]));
    let claims: Vec<Placed> =
        (1..=8).map(|i| torch.view(&Tensor::f32(&[1000 * i, 1000]).strided(&[0, 1]), &one)).collect();
    let recovery = recover(&dump(&torch.python.process));
    assert_eq!(recovery.warnings, []);
    assert_whole(&torch, &find(&recovery, &one).tensor, &one);
    for claim in &claims {
        let found = &find(&recovery, claim).tensor;
        assert!(matches!(&found.reading, Reading::Storage(stored) if stored.elements.numel() == 1000), "{found:?}");
        assert_eq!(found.status, Status::Complete);
        assert_eq!(found.sha256.as_deref(), Some(sha256(&one.logical).as_str()));
    }
}

#[test]
fn tensors_of_no_model_are_not_written_without_end() {
    let torch = torch("3.13", "2.14", Options::default());
    let one = torch.tensor(&Tensor::f32(&[200_000]));
    let claims: Vec<Placed> = (1..=8).map(|i| torch.view(&Tensor::f32(&[200_000 - i]).strided(&[1]), &one)).collect();
    let dump = dump(&torch.python.process);
    let recovery = recover(&dump);
    assert_whole(&torch, &find(&recovery, &one).tensor, &one);
    let lens: Vec<u64> = others(&recovery)
        .iter()
        .filter(|other| other.tensor.status == Status::Complete)
        .map(|other| other.tensor.info.as_ref().unwrap().byte_len())
        .collect();
    assert!(lens.iter().sum::<u64>() <= dump.memory.size(), "{lens:?} of {}", dump.memory.size());
    let left_out: Vec<_> = claims.iter().filter(|claim| find(&recovery, claim).is_left_out).collect();
    assert!(!left_out.is_empty());
    for claim in &left_out {
        let found = find(&recovery, claim);
        assert_eq!((found.tensor.status, &found.tensor.sha256), (Status::Missing, &None));
        assert!(found.tensor.problem.as_ref().unwrap().message.contains("left out"));
    }
    let warning = format!("{} tensors and arrays", left_out.len());
    assert!(recovery.warnings.iter().any(|said| said.message.contains(&warning)), "{:?}", recovery.warnings);
}
