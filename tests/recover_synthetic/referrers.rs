//! Ways to tensors of no model that go through objects of all kinds.

use tensorcarve::addr::VirtAddr;
use tensorcarve::model::Referrer;
use tensorcarve::recover::Recovery;

use super::synthetic::{CPYTHONS, Keeping, Makers, ModuleSpec, Options, Placed, Tensor, dump, recover, torch};

/// What refers to a tensor.
fn referrers<'a>(recovery: &'a Recovery, tensor: &Placed) -> &'a [Referrer] {
    let others = recovery.processes.iter().flat_map(|process| &process.standalone.found);
    let mut found = others.filter(|other| other.tensor.object == VirtAddr(tensor.object));
    &found.next().unwrap_or_else(|| panic!("{:#x} is not listed", tensor.object)).referrers
}

fn global(path: &str) -> Referrer {
    Referrer::Global { path: path.to_owned() }
}

#[test]
fn ways_lead_through_objects_of_all_kinds() {
    for cpython in CPYTHONS {
        let torch = torch(cpython, "2.6", Options::default());
        let python = &torch.python;
        let makers = Makers::new(python);
        let new = || torch.tensor(&Tensor::f32(&[3]));
        let [kept, slotted, closed, called, queued, bound, ordered, inner] = [(); 8].map(|()| new());
        let type_ = python.builtin.type_;
        let class = |name: &str, base: u64| python.class(type_, "lab", name, base, Keeping::of(cpython)[0]);
        let keeping = class("Keeper", python.builtin.object);
        let with_slots = python.class_with_slots(
            type_,
            ("lab", "Slotted"),
            python.builtin.object,
            Keeping::Dict,
            &["first", "held"],
        );
        let slots = python.object(with_slots, 96);
        let offset = python.at("object.sizeof") + 16 + 8;
        python.process.put(slots + offset, slotted.object);
        let hook = python.instance(keeping, &[("weights_map", python.dict(&[("0.weight", kept.object)]))]);
        let function = makers.function(&[python.int(1), closed.object]);
        let partial = makers.partial(makers.function(&[]), &[python.int(7)], &[("weight", called.object)]);
        let many: Vec<u64> =
            (0..100).map(|number| if number == 90 { queued.object } else { python.int(number) }).collect();
        let holder = python.instance(keeping, &[("tensor", bound.object)]);
        let ordered_dict = class("OrderedDict", python.builtin.dict);
        let plain = python.dict(&[("k", ordered.object)]);
        let subclassed = python.object(ordered_dict, 96);
        for key in ["dict.ma_used", "dict.ma_keys", "dict.ma_values"] {
            python.put(subclassed, key, python.get(plain, key));
        }
        torch.set_attributes(&kept, &[("inner", inner.object)]);
        let weight = torch.parameter(&[2]);
        let spec = ModuleSpec {
            parameters: vec![("weight", Some(&weight))],
            attributes: vec![("_hf_hook", hook)],
            ..ModuleSpec::default()
        };
        let module = torch.module(torch.module_type("__main__", "Net"), &spec);
        let names = [
            ("slots", slots),
            ("function", function),
            ("partial", partial),
            ("queue", makers.deque(&many)),
            ("method", makers.method(holder)),
            ("ordered", subclassed),
            ("far", python.instance(keeping, &[("hook", hook)])),
        ];
        python.module("__main__", &names);
        let recovery = recover(&dump(&python.process));
        assert_eq!(recovery.warnings, []);
        let of_module = |path: &str| Referrer::Module { object: VirtAddr(module), path: path.to_owned() };
        let found = |tensor: &Placed| referrers(&recovery, tensor);
        assert_eq!(found(&kept), [of_module("_hf_hook.weights_map[\"0.weight\"]")], "{cpython}");
        assert_eq!(found(&inner), [of_module("_hf_hook.weights_map[\"0.weight\"].inner")]);
        assert_eq!(found(&slotted), [global("__main__.slots.held")], "{cpython}");
        assert_eq!(found(&closed), [global("__main__.function.__closure__[1].cell_contents")]);
        assert_eq!(found(&called), [global("__main__.partial.keywords[\"weight\"]")]);
        assert_eq!(found(&queued), [global("__main__.queue[90]")]);
        assert_eq!(found(&bound), [global("__main__.method.__self__.tensor")]);
        assert_eq!(found(&ordered), [global("__main__.ordered[\"k\"]")]);
    }
}

#[test]
fn the_shortest_way_wins_and_rings_end() {
    let torch = torch("3.12", "2.6", Options::default());
    let python = &torch.python;
    let class = python.class(python.builtin.type_, "lab", "Link", python.builtin.object, Keeping::Dict);
    let tensor = torch.tensor(&Tensor::f32(&[3]));
    torch.small_model("Net", &[2]);
    // Each link leads to the next and to the one before; the last holds the tensor.
    let links: Vec<u64> = (0..6).map(|_| python.instance(class, &[])).collect();
    let at = python.get(class, "type.tp_dictoffset");
    for (place, link) in links.iter().enumerate() {
        let before = links[place.saturating_sub(1)];
        let next = links.get(place + 1).copied().unwrap_or(tensor.object);
        python.process.put(link + at, python.dict(&[("back", before), ("next", next)]));
    }
    let names = [("a", links[0]), ("b", links[4])];
    python.module("__main__", &names);
    let recovery = recover(&dump(&python.process));
    assert_eq!(referrers(&recovery, &tensor), [global("__main__.b.next.next")]);
}

#[test]
fn a_class_may_be_called_otherwise_than_it_was_made() {
    for cpython in CPYTHONS {
        let torch = torch(cpython, "2.6", Options::default());
        let class = torch.module_type("torch.fx.graph_module", "GraphModule.__new__.<locals>.GraphModuleImpl");
        torch.python.put(class, "heap_type.ht_name", torch.python.str("Net"));
        let weight = torch.parameter(&[2]);
        let parameters = vec![("weight", Some(&weight))];
        torch.module(class, &ModuleSpec { parameters, ..ModuleSpec::default() });
        let recovery = recover(&dump(&torch.python.process));
        let model = super::only_model(&recovery);
        assert_eq!(
            model.class.as_deref(),
            Some("torch.fx.graph_module.GraphModule.__new__.<locals>.GraphModuleImpl"),
            "{cpython}"
        );
    }
}
