//! What refers to a tensor: attributes of modules, names of imported Python modules, and the containers in them.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::find::Graph;
use crate::addr::VirtAddr;
use crate::cpython::{Modules, Objects};

/// How deep lists, tuples and dictionaries may be nested.
const MAX_DEPTH: u32 = 4;
/// Values that are looked at, in all modules together.
const MAX_VALUES: usize = 1 << 22;
/// Referrers of one tensor that are listed.
const MAX_REFERRERS: usize = 16;
/// Elements of a container that are looked into, if they are containers themselves.
const MAX_NESTED: usize = 64;

/// A place that refers to a tensor or an array.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Referrer {
    /// An attribute of a `torch.nn.Module`, or something in it.
    Module {
        /// The module.
        object: VirtAddr,
        /// Name of the attribute, with indices and keys: `cache['k'][0]`.
        path: String,
    },
    /// A name of an imported Python module, or something in it.
    Global {
        /// The module's `__name__`, the name, indices and keys: `__main__.batches[0]`.
        path: String,
    },
    /// It is the gradient of a tensor of no model.
    GradientOf {
        /// The Python object of that tensor.
        object: VirtAddr,
    },
}

/// What a type is to the search.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    List,
    Tuple,
    Dict,
    No,
}

/// A step from a container to what it holds.
enum Step {
    Index(usize),
    Key(VirtAddr),
}

/// A search for the places that refer to certain objects.
pub(super) struct Search<'a> {
    objects: Objects<'a>,
    wanted: HashSet<VirtAddr>,
    types: HashMap<VirtAddr, Container>,
    /// Containers that hold nothing that is wanted, down to a depth.
    barren: HashSet<(VirtAddr, u32)>,
    /// The way from the place that is looked at to the current value.
    steps: Vec<Step>,
    found: BTreeMap<VirtAddr, Vec<Referrer>>,
    left: usize,
}

impl<'a> Search<'a> {
    /// Looks through the modules of both kinds for `wanted`; the referrers of each, and whether all was looked at.
    pub(super) fn run(
        objects: Objects<'a>,
        wanted: HashSet<VirtAddr>,
        graph: &Graph,
        modules: &Modules,
    ) -> (BTreeMap<VirtAddr, Vec<Referrer>>, bool) {
        let mut search = Self {
            objects,
            wanted,
            types: HashMap::new(),
            barren: HashSet::new(),
            steps: Vec::new(),
            found: BTreeMap::new(),
            left: MAX_VALUES,
        };
        for (object, module) in &graph.modules {
            for (name, value) in &module.objects {
                let referrer = |steps: String| Referrer::Module { object: *object, path: format!("{name}{steps}") };
                search.visit(*value, MAX_DEPTH, &referrer);
            }
        }
        for (module, dict) in modules {
            for (key, value) in objects.dict(*dict).unwrap_or_default() {
                let name = || objects.str(key).unwrap_or_else(|_| format!("[at {key}]"));
                let referrer = |steps: String| Referrer::Global { path: format!("{module}.{}{steps}", name()) };
                search.visit(value, MAX_DEPTH, &referrer);
            }
        }
        let is_whole = search.left > 0;
        (search.found, is_whole)
    }

    /// Notes a value that is wanted, and looks into a container; whether anything was found.
    fn visit(&mut self, value: VirtAddr, depth: u32, referrer: &dyn Fn(String) -> Referrer) -> bool {
        if self.wanted.contains(&value) {
            let path = self.path();
            let found = self.found.entry(value).or_default();
            if found.len() < MAX_REFERRERS {
                found.push(referrer(path));
            }
            return true;
        }
        let Some(below) = depth.checked_sub(1).filter(|_| !self.barren.contains(&(value, depth))) else { return false };
        let Some(left) = self.left.checked_sub(1) else { return false };
        self.left = left;
        let items: Vec<(Step, VirtAddr)> = match self.container(value) {
            Container::List => indexed(self.objects.list(value).unwrap_or_default()),
            Container::Tuple => indexed(self.objects.tuple(value).unwrap_or_default()),
            Container::Dict => {
                let items = self.objects.dict(value).unwrap_or_default().into_iter();
                items.map(|(key, item)| (Step::Key(key), item)).collect()
            }
            Container::No => return false,
        };
        let mut is_found = false;
        for (index, (step, item)) in items.into_iter().enumerate() {
            // Large tables are looked through for what is wanted, not for containers.
            let below = if index < MAX_NESTED { below } else { 0 };
            self.steps.push(step);
            is_found |= self.visit(item, below, referrer);
            self.steps.pop();
        }
        if !is_found {
            self.barren.insert((value, depth));
        }
        is_found
    }

    fn container(&mut self, object: VirtAddr) -> Container {
        let Ok(type_object) = self.objects.type_of(object) else { return Container::No };
        let objects = self.objects;
        *self.types.entry(type_object).or_insert_with(|| {
            let layout = objects.layout();
            let flags = objects.type_flags(type_object).unwrap_or_default();
            let kinds = [
                (layout.flag_list, Container::List),
                (layout.flag_tuple, Container::Tuple),
                (layout.flag_dict, Container::Dict),
            ];
            let kind = kinds.into_iter().find(|(flag, _)| flags & *flag as u64 != 0);
            kind.map_or(Container::No, |(_, kind)| kind)
        })
    }

    /// The steps as Python would write them; an address stands for a key that is neither text nor a number.
    fn path(&self) -> String {
        let key = |key: VirtAddr| match (self.objects.str(key), self.objects.int(key)) {
            (Ok(text), _) => format!("[{text:?}]"),
            (_, Ok(Some(number))) => format!("[{number}]"),
            _ => format!("[at {key}]"),
        };
        let steps = self.steps.iter().map(|step| match step {
            Step::Index(index) => format!("[{index}]"),
            Step::Key(object) => key(*object),
        });
        steps.collect()
    }
}

fn indexed(items: Vec<VirtAddr>) -> Vec<(Step, VirtAddr)> {
    items.into_iter().enumerate().map(|(index, item)| (Step::Index(index), item)).collect()
}
