//! Objects whose fields lie: counts, lengths, sizes and pointers that no live object has.

use std::collections::BTreeMap;

use tensorcarve::cpython::Value;
use tensorcarve::model::{NamedTensor, Status};
use tensorcarve::recover::Recovery;
use tensorcarve::tensor::TensorInfo;

use super::synthetic::{
    CPYTHONS, ModuleSpec, Options, PYTORCHES, Placed, Python, Random, Tensor, Torch, dump, recover, sha256, torch,
};
use super::{alone, bounded};

/// Values that break whoever trusts them.
const LIES: [u64; 14] = [
    0,
    1,
    7,
    255,
    1 << 22,
    (1 << 22) + 1,
    1 << 32,
    1 << 60,
    (1 << 60) + 1,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX - 1,
    u64::MAX,
];

fn tensors(recovery: &Recovery) -> impl Iterator<Item = &NamedTensor> {
    recovery.processes.iter().flat_map(|process| &process.models).flat_map(|model| &model.tensors)
}

fn assert_true(found: Option<&NamedTensor>, truth: &Placed, what: &str) {
    let found = found.unwrap_or_else(|| panic!("{what}: lost"));
    assert_eq!(found.status, Status::Complete, "{what}: {found:?}");
    assert_eq!(found.sha256.as_deref(), Some(sha256(&truth.logical).as_str()), "{what}");
}

/// Where a field lies, and how it is called.
type Fields = Vec<(String, u64)>;

/// A model with a sound sibling; the fields of the first that tests may change.
fn victim(torch: &Torch) -> (Placed, Placed, Fields) {
    let python = &torch.python;
    let (_, good) = torch.small_model("Good", &[50]);
    // More of them, as every model has: of two tensors one that lies would decide what layout reads them.
    (0..6).for_each(|_| drop(torch.small_model("More", &[50])));
    let bad = torch.parameter(&[2, 3]);
    let (int, float, text) = (python.int(1 << 40), python.float(0.5), python.str("text"));
    let (list, tuple) = (python.list(&[int, text]), python.tuple(&[int, float]));
    let set = python.set(&[python.str("weight")]);
    let parameters = python.dict(&[("weight", bad.object)]);
    let buffers = python.general_dict(&[(python.str("mean"), python.builtin.none)]);
    let class = torch.module_type("__main__", "Bad");
    let object = python.instance(
        class,
        &[
            ("_parameters", parameters),
            ("_buffers", buffers),
            ("_modules", python.dict(&[])),
            ("_non_persistent_buffers_set", set),
            ("int", int),
            ("text", text),
            ("list", list),
            ("tuple", tuple),
        ],
    );
    let at =
        |object: u64, key: &str| python.find(key).map(|offset| (key.to_owned(), object.wrapping_add_signed(offset)));
    let keys = python.get(parameters, "dict.ma_keys");
    let shared = python.get(class, "heap_type.ht_cached_keys");
    let mut fields: Fields = [
        at(int, if python.find("int.lv_tag").is_some() { "int.lv_tag" } else { "int.ob_size" }),
        at(int, "int.ob_digit"),
        at(text, "str.length"),
        at(text, "str.state"),
        at(list, "list.ob_size"),
        at(list, "list.ob_item"),
        at(tuple, "tuple.ob_size"),
        at(set, "set.used"),
        at(set, "set.mask"),
        at(set, "set.table"),
        at(parameters, "dict.ma_used"),
        at(parameters, "dict.ma_keys"),
        at(parameters, "dict.ma_values"),
        at(buffers, "dict.ma_used"),
        at(keys, "dict_keys.dk_size"),
        at(keys, "dict_keys.dk_log2_size"),
        at(keys, "dict_keys.dk_nentries"),
        at(shared, "dict_keys.dk_nentries"),
        at(shared, "dict_keys.dk_log2_size"),
        at(object, "object.ob_type"),
        at(class, "type.tp_mro"),
        at(class, "type.tp_base"),
        at(class, "type.tp_flags"),
        at(class, "type.tp_dict"),
        at(class, "type.tp_dictoffset"),
        at(class, "heap_type.ht_qualname"),
        at(class, "heap_type.ht_cached_keys"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let number = |key: &str| torch.numbers.at(key);
    let header = [
        "storage_pointer",
        "autograd_meta",
        "pyobj",
        "dim",
        "sizes_inline",
        "strides_inline",
        "storage_offset",
        "numel",
        "dtype_index",
    ];
    fields.extend(header.map(|field| (field.to_owned(), bad.tensor_impl + number(&format!("tensor.{field}")))));
    let storage = ["data", "size_bytes", "device_type"];
    fields.extend(storage.map(|field| (field.to_owned(), bad.storage + number(&format!("storage.{field}")))));
    (good, bad, fields)
}

/// The layouts that count a tensor's dimensions: all but those of 1.7, which come first.
const COUNTED: &[&str] = PYTORCHES.as_slice().split_at(2).1;

#[test]
fn a_lie_in_one_object_harms_no_other() {
    let _alone = alone();
    for (version, (cpython, pytorch)) in CPYTHONS.iter().zip(COUNTED.iter().cycle()).enumerate() {
        let torch = torch(cpython, pytorch, Options { frames: 400, ..Options::default() });
        let (good, bad, fields) = victim(&torch);
        let process = &torch.python.process;
        for (turn, (name, at)) in fields.iter().enumerate() {
            let truth = process.get(*at);
            let near = [*at, at - 16, truth ^ 1, truth.wrapping_add(1), truth.wrapping_sub(1)];
            // One lie in four, in builds without optimisation in ten; the other ones for the next field and the next Python.
            let step = if cfg!(debug_assertions) { 10 } else { 4 };
            for lie in LIES.into_iter().chain(near).skip((turn + version) % step).step_by(step) {
                process.put(*at, lie);
                let what = format!("CPython {cpython}: {name} = {lie:#x} instead of {truth:#x}");
                let dump = dump(process);
                let recovery = recover(&dump);
                let find = |class: &str| {
                    let models = recovery.processes.iter().flat_map(|process| &process.models);
                    models.filter(|model| model.class.as_deref() == Some(class)).flat_map(|model| &model.tensors).next()
                };
                assert_true(find("__main__.Good"), &good, &what);
                if let Some(found) = find("__main__.Bad")
                    && let (Status::Complete, Some(info)) = (found.status, &found.info)
                    && (&info.shape, &info.stride, info.storage_offset, info.data.0)
                        == (&bad.spec.shape, &bad.spec.stride, 0, bad.base)
                    && info.dtype.name == bad.spec.dtype
                {
                    assert_true(Some(found), &bad, &what);
                }
            }
            process.put(*at, truth);
        }
    }
}

#[test]
fn values_that_contain_themselves() {
    let _alone = alone();
    for cpython in ["3.8", "3.13"] {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let weight = torch.parameter(&[4]);
        let list = python.list(&[0; 512]);
        let tuple = python.tuple(&[0; 512]);
        // Each of the two holds itself and the other, 512 times: 512^depth values.
        let items = python.get(list, "list.ob_item");
        for i in 0..512 {
            python.process.put(items + 8 * i, if i % 2 == 0 { list } else { tuple });
            python.process.put(tuple + python.at("tuple.ob_item") + 8 * i, if i % 3 == 0 { tuple } else { list });
        }
        torch.module(
            torch.module_type("__main__", "Net"),
            &ModuleSpec {
                parameters: vec![("weight", Some(&weight))],
                attributes: vec![("list", list), ("tuple", tuple), ("int", python.int(5))],
                ..ModuleSpec::default()
            },
        );
        let dump = dump(&python.process);
        let recovery = bounded("values in themselves", || recover(&dump));
        assert_true(tensors(&recovery).next(), &weight, "values in themselves");
        let hyper = &recovery.processes[0].models[0].modules[0].hyperparameters;
        assert!(hyper.contains(&("int".to_owned(), Value::Int(5))), "{hyper:?}");
    }
}

/// Wide lists in wide lists: no cycle, and yet 4096^3 values.
#[test]
fn values_that_share_on_every_level() {
    let _alone = alone();
    let torch = torch("3.12", "2.6", Options::default());
    let python = &torch.python;
    let weight = torch.parameter(&[4]);
    let mut value = python.int(1);
    for _ in 0..3 {
        value = python.list(&[value; 4096]);
    }
    torch.module(
        torch.module_type("__main__", "Net"),
        &ModuleSpec {
            parameters: vec![("weight", Some(&weight))],
            attributes: vec![("value", value)],
            ..ModuleSpec::default()
        },
    );
    let dump = dump(&python.process);
    let recovery = bounded("shared values", || recover(&dump));
    assert_true(tensors(&recovery).next(), &weight, "shared values");
}

#[test]
fn tensors_that_claim_too_much() {
    let _alone = alone();
    let torch = torch("3.11", "2.6", Options::default());
    let huge = |shape: &[u64], stride: &[u64]| {
        let placed = torch.tensor(&Tensor::f32(&[4]));
        let put = |key: &str, word: u64| torch.python.process.put(placed.tensor_impl + torch.numbers.at(key), word);
        put("tensor.dim", shape.len() as u64);
        for (i, (size, stride)) in shape.iter().zip(stride).enumerate() {
            torch
                .python
                .process
                .put(placed.tensor_impl + torch.numbers.at("tensor.sizes_inline") + 8 * i as u64, *size);
            torch
                .python
                .process
                .put(placed.tensor_impl + torch.numbers.at("tensor.strides_inline") + 8 * i as u64, *stride);
        }
        put("tensor.numel", shape.iter().fold(1, |product: u64, size| product.wrapping_mul(*size)));
        placed
    };
    let placed = [
        huge(&[1 << 62], &[0]),
        huge(&[1 << 62], &[0]),
        huge(&[1 << 31, 1 << 31], &[0, 0]),
        huge(&[1 << 32, 1 << 32], &[0, 0]),
        huge(&[u64::MAX], &[0]),
        huge(&[u64::MAX - 3, 1], &[1, 1]),
        huge(&[2, 2], &[u64::MAX, 1]),
        huge(&[3], &[1 << 63]),
        huge(&[2], &[u64::MAX - 1]),
        huge(&[1 << 40, 0], &[1 << 40, 1 << 63]),
    ];
    let good = torch.tensor(&Tensor::f32(&[4]));
    let names: Vec<String> = (0..placed.len()).map(|i| format!("t{i}")).collect();
    let mut buffers: Vec<_> = names.iter().map(String::as_str).zip(placed.iter().map(Some)).collect();
    buffers.push(("good", Some(&good)));
    torch.module(torch.module_type("__main__", "Net"), &ModuleSpec { buffers, ..ModuleSpec::default() });
    let dump = dump(&torch.python.process);
    let recovery = bounded("huge tensors", || recover(&dump));
    let found: BTreeMap<&str, &NamedTensor> = tensors(&recovery).map(|tensor| (tensor.name.as_str(), tensor)).collect();
    assert_true(found.get("good").copied(), &good, "good");
    for name in &names[..names.len() - 1] {
        let tensor = found[name.as_str()];
        // One element under very many indices: what the storage holds is complete.
        let is_expanded = |info: &TensorInfo| info.stride.iter().all(|stride| *stride == 0);
        if tensor.status == Status::Complete {
            assert!(tensor.info.as_ref().is_some_and(is_expanded), "{tensor:?}");
        } else {
            assert_eq!((tensor.status, &tensor.sha256), (Status::Missing, &None), "{tensor:?}");
            assert!(tensor.problem.is_some());
        }
    }
}

#[test]
fn random_words_anywhere_in_the_heap() {
    let _alone = alone();
    let rounds = if cfg!(debug_assertions) { 60 } else { 240 };
    for (seed, cpython) in (0..).zip(CPYTHONS) {
        let torch =
            torch(cpython, COUNTED[seed as usize % COUNTED.len()], Options { frames: 400, seed, ..Options::default() });
        let (good, bad, fields) = victim(&torch);
        let python: &Python = &torch.python;
        let mut random = Random(seed);
        let first = python.builtin.type_;
        let last = fields.iter().map(|(_, at)| *at).max().unwrap();
        for _ in 0..rounds {
            let mut undo = Vec::new();
            for _ in 0..8 {
                let at = first + random.below((last - first) / 8) * 8;
                undo.push((at, python.process.get(at)));
                let lie = match random.below(3) {
                    0 => LIES[random.below(LIES.len() as u64) as usize],
                    // A pointer into the heap, to some object or between two.
                    1 => first + random.below((last - first) / 8) * 8,
                    _ => random.next() >> random.below(64),
                };
                python.process.put(at, lie);
            }
            let recovery = recover(&dump(&python.process));
            for tensor in tensors(&recovery).filter(|tensor| tensor.status == Status::Complete) {
                let truth = [&good, &bad].into_iter().find(|truth| truth.object == tensor.object.0);
                let (Some(truth), Some(info)) = (truth, &tensor.info) else { continue };
                let data = truth.base..truth.base + truth.logical.len() as u64;
                let is_hurt = undo.iter().any(|(at, _)| data.contains(at));
                let header = (&info.shape, &info.stride, info.data.0, &info.dtype.name[..]);
                if !is_hurt && header == (&truth.spec.shape, &truth.spec.stride, truth.base, truth.spec.dtype) {
                    assert_true(Some(tensor), truth, "random words");
                }
            }
            for (at, word) in undo.into_iter().rev() {
                python.process.put(at, word);
            }
        }
    }
}

/// Tuples that overlap cost the dump nothing: the resolution orders of all types together would be many times its size.
#[test]
fn long_resolution_orders_are_neither_kept_nor_needed() {
    const TYPES: u64 = 300;
    const ITEMS: u64 = 100_000;
    const APART: u64 = 64;
    let _alone = alone();
    let torch = torch("3.11", "2.6", Options { frames: 2048, ..Options::default() });
    let python = &torch.python;
    let (root, truth) = torch.small_model("Net", &[3, 4]);
    let area = python.process.alloc(8 * ITEMS + APART * (TYPES + 1));
    let own = python.get(root, "object.ob_type");
    let liars = (0..TYPES).map(|index| torch.derived("__main__", &format!("Liar{index}"), torch.module_class));
    for (class, order) in std::iter::once(own).chain(liars).zip((area..).step_by(APART as usize)) {
        python.put(order, "object.ob_refcnt", 1);
        python.put(order, "object.ob_type", python.builtin.tuple);
        python.put(order, "tuple.ob_size", ITEMS);
        for (place, item) in (0..).step_by(8).zip([class, torch.module_class, python.builtin.object]) {
            python.process.put(order + python.at("tuple.ob_item") + place, item);
        }
        python.put(class, "type.tp_mro", order);
    }
    let recovery = bounded("long orders", || recover(&dump(&python.process)));
    // The model is known by the bases of its class, whose order is as long.
    let model = &recovery.processes[0].models[0];
    assert_eq!((model.object.0, model.class.as_deref()), (root, Some("__main__.Net")));
    assert_eq!(model.tensors[0].sha256.as_deref(), Some(sha256(&truth.logical).as_str()));
}

/// One dictionary under many modules costs the dump a pointer for each of them.
#[test]
fn a_dictionary_of_many_modules_is_read_once() {
    let _alone = alone();
    let torch = torch("3.11", "2.6", Options { frames: 8192, ..Options::default() });
    let python = &torch.python;
    let (root, _) = torch.small_model("Net", &[3, 4]);
    let mut names = vec![("n", python.builtin.none); 50_000];
    names.push(("__name__", python.str("many")));
    let dict = python.dict(&names);
    for _ in 0..20_000 {
        let module = python.object(python.builtin.module, 72);
        python.put(module, "module.md_dict", dict);
    }
    let recovery = bounded("modules with one dictionary", || recover(&dump(&python.process)));
    assert_eq!(recovery.processes[0].models[0].object.0, root);
}
