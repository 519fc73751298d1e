//! Finds the tensors and arrays that belong to no model, and what refers to them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::attributes::attach_to_standalone;
use super::{Context, NetworkModule, Reader, referrers};
use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::{Holders, Interpreter};
use crate::diagnostic::{Code, Diagnostic};
use crate::model::{Model, StandaloneTensor, StandaloneTensors};
use crate::tensor::TensorInfo;

/// Objects of one process that are read.
const MAX_OBJECTS: usize = 1 << 18;

/// The name of a tensor or an array that belongs to no model: the root of its address space, if that has one, and its address.
pub(crate) fn name(root: Option<PhysAddr>, address: VirtAddr) -> String {
    root.map_or_else(|| address.to_string(), |root| format!("{root}.{address}"))
}

/// The tensors and arrays of one framework that belong to no model.
#[derive(Default)]
pub(super) struct Found {
    pub(super) readable: Vec<StandaloneTensor>,
    /// Most of these are no objects: any pointer to a type after a small number looks like one.
    pub(super) unreadable: Vec<StandaloneTensor>,
    /// What was left out.
    pub(super) warnings: Vec<Diagnostic>,
}

/// The tensors that are listed already.
pub(super) struct Listed {
    pub(super) objects: BTreeSet<VirtAddr>,
    impls: BTreeSet<VirtAddr>,
}

impl Listed {
    fn new(models: &[Model]) -> Self {
        let mut listed = Self { objects: BTreeSet::new(), impls: BTreeSet::new() };
        let all = models.iter().flat_map(Model::all_tensors);
        let all = all.flat_map(|tensor| tensor.inner.iter().map(|inner| &inner.tensor).chain([tensor]));
        for tensor in all {
            listed.objects.insert(tensor.object);
            if let Some(info) = &tensor.info {
                listed.add(info);
            }
        }
        listed
    }

    /// Adds a tensor and its parts; `false` if it is listed already.
    pub(super) fn add(&mut self, info: &TensorInfo) -> bool {
        for (_, part) in info.form.parts() {
            self.impls.insert(part.header);
        }
        self.impls.insert(info.header)
    }
}

/// Finds all tensors and arrays that are not part of `models`; their bytes are not looked at yet.
pub(super) fn find<'a>(
    context: Context<'a>,
    models: &[Model],
    readers: &[Box<dyn Reader + 'a>],
    (networks, packages): (&[NetworkModule<'_>], &[&'static str]),
    mut holders: Holders<'a>,
) -> StandaloneTensors {
    let mut all = StandaloneTensors::default();
    let mut unreadable = Vec::new();
    let mut listed = Listed::new(models);
    for reader in readers {
        let found = reader.standalone(&mut listed);
        all.found.extend(found.readable);
        unreadable.extend(found.unreadable);
        all.warnings.extend(found.warnings);
    }
    attach_to_standalone(&mut all.found, models, context.objects, context.builtins, &mut holders, readers);
    // What can't be read is an object if something refers to it.
    let wanted = all.found.iter().chain(&unreadable).map(|found| found.tensor.object);
    let wanted: HashSet<VirtAddr> = wanted.filter(|object| object.0 != 0).collect();
    if wanted.is_empty() {
        return all;
    }
    let referrers::Found { mut referrers, is_whole } =
        referrers::search(context.objects, holders, wanted, networks, (context.modules, packages));
    if !is_whole {
        let message = "the search for references to tensors and arrays stopped early: there are too many values";
        all.warnings.push(Diagnostic::new(Code::ReferencesLeftOut, None, message.to_owned()));
    }
    all.found.extend(unreadable.into_iter().filter(|found| referrers.contains_key(&found.tensor.object)));
    for found in &mut all.found {
        found.referrers.append(&mut referrers.remove(&found.tensor.object).unwrap_or_default());
    }
    all.sort();
    all
}

/// The live objects of those types, with the name of their class; as many as are read.
pub(super) fn instances(
    interpreter: &Interpreter,
    types: &BTreeSet<VirtAddr>,
    what: &str,
    warnings: &mut Vec<Diagnostic>,
) -> Vec<(VirtAddr, Option<String>)> {
    let objects = interpreter.objects();
    let mut all = BTreeMap::new();
    let mut left_out = 0;
    for type_object in types {
        let Some(instances) = interpreter.instances.get(type_object) else { continue };
        let class = objects.type_name(*type_object).ok();
        let room = MAX_OBJECTS - all.len().min(MAX_OBJECTS);
        left_out += instances.len().saturating_sub(room);
        all.extend(instances.iter().take(room).map(|object| (*object, class.clone())));
    }
    if left_out > 0 {
        let message = format!("{left_out} {what} outside any model are left out: at most {MAX_OBJECTS} are read");
        warnings.push(Diagnostic::new(Code::TensorsLeftOut, None, message));
    }
    all.into_iter().collect()
}
