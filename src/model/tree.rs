//! From modules to models: dotted names, in the order in which PyTorch itself gives them.

use std::collections::BTreeMap;

use super::find::{Graph, ModuleObject};
use super::{Model, Module, NamedTensor, Status, TensorKind};
use crate::addr::VirtAddr;
use crate::cpython::Objects;
use crate::tensor;

/// The most places that modules of one model may have: modules that are shared on every level of
/// a hostile tree would give 2^depth.
const MAX_PLACES: usize = 1 << 20;
/// The deepest nesting of modules.
const MAX_DEPTH: usize = 200;

/// Every root module that has a tensor anywhere below it, with all names; bytes are not looked at yet.
pub fn models(graph: &Graph, objects: &Objects<'_>, layout: Option<&tensor::Layout>) -> Vec<Model> {
    graph.roots().into_iter().filter_map(|root| model(graph, objects, layout, root)).collect()
}

fn model(graph: &Graph, objects: &Objects<'_>, layout: Option<&tensor::Layout>, root: VirtAddr) -> Option<Model> {
    let class = graph.modules.get(&root)?.class.clone();
    let mut walk = Walk {
        graph,
        objects,
        layout,
        modules: Vec::new(),
        tensors: Vec::new(),
        problems: Vec::new(),
        first_names: BTreeMap::new(),
        above: Vec::new(),
        places: 0,
    };
    walk.visit(root, "");
    let Walk { modules, tensors, problems, .. } = walk;
    let model = Model { id: String::new(), class, object: root, sightings: Vec::new(), modules, tensors, problems };
    (!model.tensors.is_empty()).then_some(model)
}

struct Walk<'a> {
    graph: &'a Graph,
    objects: &'a Objects<'a>,
    layout: Option<&'a tensor::Layout>,
    modules: Vec<Module>,
    tensors: Vec<NamedTensor>,
    problems: Vec<String>,
    /// The name under which each tensor came first.
    first_names: BTreeMap<VirtAddr, String>,
    /// The modules above the one that is visited.
    above: Vec<VirtAddr>,
    places: usize,
}

impl Walk<'_> {
    fn visit(&mut self, object: VirtAddr, name: &str) {
        self.places += 1;
        if self.places > MAX_PLACES || self.above.len() > MAX_DEPTH || self.above.contains(&object) {
            self.problems.push(format!("the module {name:?} at {object} is left out: modules nest without end"));
            return;
        }
        let Some(module) = self.graph.modules.get(&object) else {
            self.problems.push(format!("the module {name:?} at {object} could not be read"));
            return;
        };
        let own = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        self.modules.push(describe(module, object, name, own));
        for (key, tensor) in &module.parameters {
            if let Some(tensor) = tensor {
                self.add(own(key), *tensor, TensorKind::Parameter, true);
            }
        }
        for (key, tensor) in &module.buffers {
            if let Some(tensor) = tensor {
                self.add(own(key), *tensor, TensorKind::Buffer, !module.non_persistent.contains(key));
            }
        }
        self.above.push(object);
        for (key, child) in &module.children {
            if let Some(child) = child {
                self.visit(*child, &own(key));
            }
        }
        self.above.pop();
    }

    fn add(&mut self, name: String, object: VirtAddr, kind: TensorKind, persistent: bool) {
        let same_as = self.first_names.get(&object).cloned();
        self.first_names.entry(object).or_insert_with(|| name.clone());
        let read = match self.layout {
            Some(layout) => layout.read(self.objects, object).map_err(|error| error.to_string()),
            None => Err("no known layout reads the tensors of this PyTorch".to_owned()),
        };
        let (info, problem) = match read {
            Ok(info) => (Some(info), None),
            Err(problem) => (None, Some(problem)),
        };
        self.tensors.push(NamedTensor {
            name,
            kind,
            persistent,
            object,
            same_as,
            info,
            status: Status::Missing,
            holes: Vec::new(),
            sha256: None,
            problem,
        });
    }
}

fn describe(module: &ModuleObject, object: VirtAddr, name: &str, own: impl Fn(&str) -> String) -> Module {
    let set = |items: &[(String, Option<VirtAddr>)]| -> Vec<String> {
        items.iter().filter(|(_, tensor)| tensor.is_some()).map(|(key, _)| own(key)).collect()
    };
    let unset = |items: &[(String, Option<VirtAddr>)], kind| -> Vec<(String, TensorKind)> {
        items.iter().filter(|(_, tensor)| tensor.is_none()).map(|(key, _)| (key.clone(), kind)).collect()
    };
    let (private, hyper) = module.attributes.iter().cloned().partition(|(name, _)| name.starts_with('_'));
    let mut unset_names = unset(&module.parameters, TensorKind::Parameter);
    unset_names.extend(unset(&module.buffers, TensorKind::Buffer));
    Module {
        name: name.to_owned(),
        class: module.class.clone(),
        torch_class: module.torch_class.clone(),
        training: module.training,
        hyper,
        private,
        parameters: set(&module.parameters),
        buffers: set(&module.buffers),
        unset: unset_names,
        object,
    }
}
