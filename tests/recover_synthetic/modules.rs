//! Modules: where their attributes are kept, how they hold each other, which are models at all.

use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::Value;
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::model::Status;
use tensorcarve::recover::Recovery;

use super::synthetic::{
    CPYTHONS, Keeping, Machine, ModuleSpec, Options, Process, Python, Tensor, Torch, dump, recover, torch,
};
use super::{assert_model, assert_whole, model, only_model};

fn models(recovery: &Recovery) -> usize {
    recovery.processes.iter().map(|process| process.models.len()).sum()
}

#[test]
fn attributes_are_read_wherever_a_version_keeps_them() {
    for cpython in CPYTHONS {
        for &keeping in Keeping::of(cpython) {
            let machine = Machine::new(Options::default());
            let torch = Torch::keeping(Python::new(Process::new(&machine), cpython), "2.6", keeping);
            let (root, truth) = model(&torch);
            assert_model(&torch, root, &truth, &recover(&dump(&torch.python.process)));
        }
    }
}

#[test]
fn dictionaries_of_every_form_hold_parameters() {
    for cpython in CPYTHONS {
        let torch = torch(cpython, "1.13", Options::default());
        let python = &torch.python;
        let (a, b) = (torch.parameter(&[3]), torch.parameter(&[4]));
        // A key that is no string makes a table general; strings of another form are keys all the same.
        let general = python.general_dict(&[
            (python.str("a"), a.object),
            (python.int(7), python.int(8)),
            (python.legacy_str("long_name_of_b"), b.object),
        ]);
        let many: Vec<String> = (0..300).map(|i| format!("{i}")).collect();
        let unset: Vec<(&str, u64)> = many.iter().map(|name| (name.as_str(), python.builtin.none)).collect();
        python.instance(
            torch.module_type("__main__", "Net"),
            &[
                ("_parameters", general),
                // Indices of two bytes.
                ("_buffers", python.dict(&unset)),
                ("_modules", python.dict(&[])),
                ("training", python.bool(false)),
            ],
        );
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        // What stands under the key that is no string is listed, too.
        let [found_a, other, found_b] = &model.tensors[..] else { panic!("CPython {cpython}: {:?}", model.tensors) };
        assert_eq!((found_a.name.as_str(), found_b.name.as_str()), ("a", "long_name_of_b"), "CPython {cpython}");
        assert!(other.name.starts_with("?0x") && other.status == Status::Missing, "CPython {cpython}: {other:?}");
        assert_whole(&torch, found_a, &a);
        assert_whole(&torch, found_b, &b);
        assert_eq!(model.modules[0].unset.len(), 300);
    }
}

#[test]
fn a_parameter_whose_name_is_lost_is_kept_and_said() {
    for cpython in CPYTHONS {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let process = &python.process;
        let (named, nameless) = (torch.parameter(&[3]), torch.parameter(&[4]));
        // The string lies in a page of its own, which gets lost.
        let name = process.alloc_pages(0x1000);
        process.write(name, &process.read(python.str("weight"), 64));
        process.machine.borrow_mut().lose(process.space, name);
        python.instance(
            torch.module_type("__main__", "Net"),
            &[
                ("_parameters", python.general_dict(&[(python.str("bias"), named.object), (name, nameless.object)])),
                ("_buffers", python.dict(&[])),
                ("_modules", python.dict(&[])),
            ],
        );
        let recovery = recover(&dump(process));
        let model = only_model(&recovery);
        let names: Vec<_> = model.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        assert_eq!(names, ["bias".to_owned(), format!("?{name:#x}")], "CPython {cpython}");
        assert_whole(&torch, &model.tensors[1], &nameless);
        assert_eq!(model.problems.len(), 1, "{:?}", model.problems);
    }
}

#[test]
fn a_shared_module_is_listed_at_every_place() {
    let torch = torch("3.11", "2.6", Options::default());
    let weight = torch.parameter(&[5]);
    let tied = torch.parameter(&[6]);
    let linear = torch.layer("linear", "Linear");
    let shared =
        torch.module(linear, &ModuleSpec { parameters: vec![("weight", Some(&weight))], ..ModuleSpec::default() });
    let inner = torch.module(
        torch.layer("container", "ModuleDict"),
        &ModuleSpec { children: vec![("x", shared)], parameters: vec![("tied", Some(&tied))], ..ModuleSpec::default() },
    );
    let none = torch.python.builtin.none;
    torch.module(
        torch.module_type("__main__", "Net"),
        &ModuleSpec {
            parameters: vec![("own", Some(&tied))],
            children: vec![("first", shared), ("nothing", none), ("second", shared), ("inner", inner)],
            ..ModuleSpec::default()
        },
    );
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!(model.problems, []);
    let names: Vec<_> = model.tensors.iter().map(|t| (t.name.as_str(), t.same_as.as_deref())).collect();
    assert_eq!(
        names,
        [
            ("own", None),
            ("first.weight", None),
            ("second.weight", Some("first.weight")),
            ("inner.tied", Some("own")),
            ("inner.x.weight", Some("first.weight")),
        ]
    );
    assert!(model.tensors.iter().all(|tensor| tensor.status == Status::Complete));
    let modules: Vec<_> = model.modules.iter().map(|module| module.name.as_str()).collect();
    assert_eq!(modules, ["", "first", "second", "inner", "inner.x"]);
    assert_eq!(model.modules[1].object, model.modules[2].object);
}

#[test]
fn containers_nest() {
    let torch = torch("3.12", "2.6", Options { frames: 2048, ..Options::default() });
    let sequential = torch.layer("container", "Sequential");
    let weight = torch.parameter(&[5]);
    let mut module =
        torch.module(sequential, &ModuleSpec { parameters: vec![("weight", Some(&weight))], ..ModuleSpec::default() });
    for _ in 0..100 {
        module = torch.module(sequential, &ModuleSpec { children: vec![("0", module)], ..ModuleSpec::default() });
    }
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!(model.tensors.len(), 1);
    assert_eq!(model.tensors[0].name, "0.".repeat(100) + "weight");
    assert_eq!(model.modules.len(), 101);
    assert_whole(&torch, &model.tensors[0], &weight);
}

#[test]
fn what_is_no_model() {
    let torch = torch("3.13", "2.6", Options::default());
    let python = &torch.python;
    // Modules without any tensor.
    let relu = torch.module(torch.layer("activation", "ReLU"), &ModuleSpec::default());
    torch.module(
        torch.layer("container", "Sequential"),
        &ModuleSpec { children: vec![("0", relu)], parameters: vec![("unset", None)], ..ModuleSpec::default() },
    );
    // Freed modules: the count is gone, or in its place is a pointer to the next free block.
    for count in [0, 0x7f12_3456_7890] {
        let (freed, _) = torch.small_model("Freed", &[3]);
        python.put(freed, "object.ob_refcnt", count);
    }
    // Not derived from Module, though it looks like one.
    let weight = torch.parameter(&[3]);
    let class =
        python.class(python.builtin.type_, "torch.nn.modules", "Module", python.builtin.object, Keeping::Values);
    torch.module(class, &ModuleSpec { parameters: vec![("weight", Some(&weight))], ..ModuleSpec::default() });
    // Derived, but __init__ has not run.
    python.instance(torch.module_type("__main__", "Raw"), &[("training", python.bool(true))]);
    let recovery = recover(&dump(&python.process));
    assert_eq!(recovery.processes.len(), 1);
    assert!(recovery.processes[0].facts.torch.is_some());
    assert_eq!(models(&recovery), 0);
}

#[test]
fn modules_that_hold_each_other_come_to_an_end() {
    for cpython in ["3.8", "3.11"] {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let (a, b, c) = (torch.parameter(&[3]), torch.parameter(&[3]), torch.parameter(&[3]));
        let class = torch.module_type("__main__", "Ring");
        let ring = |weight, child| {
            let children = python.dict(&[("next", child)]);
            let module = python.instance(
                class,
                &[
                    ("_parameters", python.dict(&[("weight", weight)])),
                    ("_buffers", python.dict(&[])),
                    ("_modules", children),
                ],
            );
            (module, children)
        };
        let (first, children) = ring(a.object, 0);
        let (second, _) = ring(b.object, first);
        let (third, _) = ring(c.object, second);
        // Closes the ring: the only value of the dictionary is the last word that holds the placeholder.
        close(python, children, third);
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        assert_eq!(model.tensors.len(), 3, "{:?}", model.tensors);
        assert_eq!(model.problems.len(), 1);
        assert!(model.problems[0].message.contains("contain each other"), "{:?}", model.problems);
        assert_eq!(model.modules[0].hyperparameters, [] as [(String, Value); 0]);
    }
}

/// Sets the value of the key `next`, the second entry of a table whose first was deleted.
fn close(python: &Python, dict: u64, value: u64) {
    let keys = python.get(dict, "dict.ma_keys");
    let entry =
        if python.find("dict_unicode_entry.sizeof").is_some() { "dict_unicode_entry" } else { "dict_key_entry" };
    let entries = keys + python.at("dict_keys.dk_indices") + 8;
    let second = entries + python.at(&format!("{entry}.sizeof"));
    python.process.put(second + python.at(&format!("{entry}.me_value")), value);
}

#[test]
fn modules_are_known_by_their_heirs_where_the_base_class_is_missing() {
    for cpython in ["3.9", "3.11", "3.13"] {
        let torch = torch(cpython, "2.6", Options::default());
        for layer in ["Linear", "Bilinear", "Identity"] {
            torch.layer("linear", layer);
        }
        let (root, truth) = torch.small_model("Net", &[3, 4]);
        // As a page of other bytes would read: no live type.
        torch.python.put(torch.module_class, "object.ob_refcnt", 0);
        torch.python.put(torch.module_class, "type.tp_mro", 0);
        let process = &torch.python.process;
        let recovery = recover(&dump(process));
        let model = only_model(&recovery);
        assert_eq!(model.object.0, root, "{cpython}");
        assert_whole(&torch, &model.tensors[0], &truth);
    }
}

/// A function of that name whose code has these names and constants; as far as the recovery looks at one.
fn function(torch: &Torch, name: &str, names: &[&str], constants: &[u64]) -> u64 {
    let python = &torch.python;
    let strings: Vec<u64> = names.iter().map(|name| python.str(name)).collect();
    let code = python.object(python.builtin.object, 128);
    // Names of variables follow; they say nothing.
    let variables = python.tuple(&[python.str("self"), python.str("destination")]);
    let parts = [python.tuple(constants), python.tuple(&strings), variables, python.str(name)];
    for (at, word) in (48..).step_by(8).zip(parts) {
        python.process.put(code + at, word);
    }
    let function = python.object(python.builtin.object, 96);
    python.process.put(function + 40, code);
    function
}

/// Adds methods to a class.
fn define(torch: &Torch, class: u64, methods: &[(&str, u64)]) {
    let python = &torch.python;
    let own = [("__module__", python.str("__main__")), ("__doc__", python.builtin.none)];
    python.put(class, "type.tp_dict", python.dict(&[&own, methods].concat()));
}

#[test]
fn a_state_dict_that_may_hold_more_is_said() {
    // Before 1.10, PyTorch does not call `get_extra_state()`.
    let cases = CPYTHONS.into_iter().map(|cpython| (cpython, true)).chain([(CPYTHONS[0], false)]);
    for (cpython, has_extra_state) in cases {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let none = python.builtin.none;
        // What the base class has, all modules have.
        let methods = ["_save_to_state_dict", "state_dict", "get_extra_state"];
        let methods = if has_extra_state { &methods[..] } else { &methods[..2] };
        let module = ("__module__", python.str("torch.nn.modules.module"));
        let methods = methods.iter().map(|name| (*name, function(&torch, name, &["copy"], &[])));
        let names: Vec<(&str, u64)> = [module].into_iter().chain(methods).collect();
        python.put(torch.module_class, "type.tp_dict", python.dict(&names));
        let with_extra = torch.module_type("__main__", "WithExtra");
        define(&torch, with_extra, &[("get_extra_state", function(&torch, "get_extra_state", &["history"], &[]))]);
        let heir = torch.derived("__main__", "Heir", with_extra);
        // It saves its buffer once more, and what a class above it saves.
        let harmless = torch.module_type("__main__", "Harmless");
        let save = "_save_to_state_dict";
        let code = function(&torch, save, &["super", "Harmless", save, "scale"], &[none, python.str("scale")]);
        define(&torch, harmless, &[(save, code)]);
        let packed = torch.module_type("__main__", "Packed");
        let code = function(&torch, save, &["super", save, "_packed"], &[python.str("a sentence of a docstring")]);
        define(&torch, packed, &[(save, code)]);
        let plain = torch.module_type("__main__", "Plain");
        let scale = torch.tensor(&Tensor::f32(&[1]));
        let made = |class, attributes: Vec<(&str, u64)>| {
            let parameters = vec![("scale", Some(&scale))];
            torch.module(class, &ModuleSpec { parameters, attributes, ..ModuleSpec::default() })
        };
        let hooked = made(plain, vec![("_state_dict_hooks", python.dict(&[("0", none)]))]);
        let children = vec![
            ("first", made(with_extra, vec![])),
            ("second", made(with_extra, vec![])),
            ("heir", made(heir, vec![])),
            ("harmless", made(harmless, vec![])),
            ("packed", made(packed, vec![])),
            ("plain", made(plain, vec![("_state_dict_hooks", python.dict(&[]))])),
            ("hooked", hooked),
            ("patched", made(plain, vec![("state_dict", python.tuple(&[]))])),
        ];
        torch.module(torch.module_type("__main__", "Net"), &ModuleSpec { children, ..ModuleSpec::default() });
        let recovery = recover(&dump(&python.process));
        let problems = &only_model(&recovery).problems;
        assert!(problems.iter().all(|problem| problem.code == Code::StateDict), "{problems:?}");
        let problems: Vec<String> = problems.iter().map(Diagnostic::to_string).collect();
        let problems = problems.join("\n");
        let mut expected = vec![
            "\"first\" has an entry \"first._extra_state\" from get_extra_state() of the class __main__.WithExtra, \
             which is not recovered (the same holds for 2 other modules)",
            "\"patched\" has its own state_dict()",
            "__main__.Packed of the module \"packed\" overrides _save_to_state_dict() (its code uses super, \
             _save_to_state_dict, _packed)",
            "\"hooked\" has 1 hook on state_dict()",
        ];
        if !has_extra_state {
            expected.remove(0);
        }
        assert_eq!(problems.lines().count(), expected.len(), "CPython {cpython}: {problems}");
        for words in expected {
            assert!(problems.contains(words), "CPython {cpython}: {words} is not in {problems}");
        }
    }
}

#[test]
fn a_damaged_module_is_a_model_that_says_so() {
    for cpython in ["3.8", "3.11", "3.13"] {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let (good, weight) = torch.small_model("Good", &[3]);
        let lost = torch.parameter(&[4]);
        let parameters = python.dict(&[("weight", lost.object)]);
        python.process.put(parameters + python.at("dict.ma_used"), 1 << 62);
        let bad = python.instance(
            torch.module_type("__main__", "Bad"),
            &[("_parameters", parameters), ("_buffers", python.dict(&[])), ("_modules", python.dict(&[]))],
        );
        let recovery = recover(&dump(&python.process));
        let find = |object: u64| {
            let mut models = recovery.processes.iter().flat_map(|process| &process.models);
            models.find(|model| model.object.0 == object)
        };
        assert_whole(&torch, &find(good).unwrap().tensors[0], &weight);
        let found = find(bad).unwrap();
        assert_eq!((found.class.as_deref(), found.tensors.len()), (Some("__main__.Bad"), 0), "CPython {cpython}");
        assert!(found.problems[0].message.contains("can't be read"), "{:?}", found.problems);
        assert!(!tensorcarve::report::is_whole(&recovery));
    }
}

#[test]
fn modules_of_a_class_that_cannot_be_read_are_known_by_their_dictionaries() {
    type Damage = fn(&Python, u64, u64);
    let damages: [(&str, Damage); 6] = [
        // The base is gone from the order: the class itself stands there twice.
        ("order", |python, class, base| {
            let order = python.get(class, "type.tp_mro") + python.at("tuple.ob_item");
            assert_eq!(python.process.get(order + 8), base);
            python.process.put(order + 8, class);
        }),
        ("no order, a cycle of bases", |python, class, _| {
            python.put(class, "type.tp_mro", 0);
            python.put(class, "type.tp_base", class);
        }),
        ("order of another", |python, class, base| {
            python.put(class, "type.tp_mro", python.get(base, "type.tp_mro"));
        }),
        ("no base", |python, class, _| python.put(class, "type.tp_base", 0)),
        ("base of another", |python, class, _| python.put(class, "type.tp_base", python.builtin.none)),
        ("freed", |python, class, _| {
            python.set_references(class, 0);
            if python.find("object.ob_ref_shared").is_some() {
                python.put(class, "object.ob_ref_shared", 0);
            }
        }),
    ];
    for cpython in CPYTHONS {
        for (what, damage) in &damages {
            let torch = torch(cpython, "2.6", Options::default());
            let python = &torch.python;
            let (good, weight) = torch.small_model("Good", &[3]);
            let (bad, lost) = torch.small_model("Bad", &[4]);
            let class = python.get(bad, "object.ob_type");
            damage(python, class, python.get(class, "type.tp_base"));
            let recovery = recover(&dump(&python.process));
            let find = |object: u64| {
                let mut models = recovery.processes.iter().flat_map(|process| &process.models);
                models.find(|model| model.object.0 == object)
            };
            let good = find(good).unwrap();
            assert_whole(&torch, &good.tensors[0], &weight);
            assert_eq!(good.problems, [], "CPython {cpython}, {what}");
            let found = find(bad).unwrap_or_else(|| panic!("CPython {cpython}, {what}: nothing is said"));
            assert_eq!(
                (found.class.as_deref(), found.tensors.len()),
                (Some("__main__.Bad"), 1),
                "CPython {cpython}, {what}"
            );
            assert_whole(&torch, &found.tensors[0], &lost);
            let is_said = |problem: &Diagnostic| {
                (problem.code, problem.address) == (Code::UnreadableClass, Some(VirtAddr(class).into()))
                    && problem.message.contains(&format!("{class:#x} can't be read"))
            };
            assert!(found.problems.iter().any(is_said), "CPython {cpython}, {what}: {:?}", found.problems);
            assert!(!tensorcarve::report::is_whole(&recovery));
        }
    }
}

#[test]
fn modules_whose_class_does_not_say_where_their_attributes_are_are_said() {
    for cpython in CPYTHONS {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let (bad, _) = torch.small_model("Bad", &[4]);
        let class = python.get(bad, "object.ob_type");
        let flags = python.get(class, "type.tp_flags");
        let managed = ["tp_flags.MANAGED_DICT", "tp_flags.INLINE_VALUES"];
        let managed =
            managed.iter().filter_map(|flag| python.find(flag)).fold(0, |all, flag| all | flag.cast_unsigned());
        python.put(class, "type.tp_flags", flags & !managed);
        python.put(class, "type.tp_dictoffset", 0);
        let recovery = recover(&dump(&python.process));
        let model = only_model(&recovery);
        assert_eq!((model.object.0, model.class.as_deref()), (bad, Some("__main__.Bad")), "CPython {cpython}");
        let [problem] = &model.problems[..] else { panic!("{:?}", model.problems) };
        assert_eq!((problem.code, problem.address), (Code::UnreadableModule, Some(VirtAddr(bad).into())));
        assert!(problem.message.contains("can't be read"), "{problem}");
    }
}

#[test]
fn a_model_whose_only_tensor_is_nested_too_deeply_is_said() {
    let torch = torch("3.11", "2.6", Options::default());
    let (mut module, _) = torch.small_model("Bottom", &[3]);
    let class = torch.module_type("__main__", "Level");
    for _ in 0..300 {
        module = torch.module(class, &ModuleSpec { children: vec![("below", module)], ..ModuleSpec::default() });
    }
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    assert_eq!((model.object.0, model.tensors.len()), (module, 0));
    assert!(model.problems[0].message.contains("nested too deeply"), "{:?}", model.problems);
    assert!(!tensorcarve::report::is_whole(&recovery));
}
