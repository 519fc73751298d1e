//! `tensors.json`: tensors and NumPy arrays that belong to no model, with what refers to them.

use std::collections::HashMap;

use serde::Serialize;

use super::assignment::{Assignment, assign_standalone};
use super::tensor::TensorRow;
use super::{SCHEMA_VERSION, TOOL};
use crate::addr::{PhysAddr, VirtAddr};
use crate::model::{Model, Referrer, Sighting, StandaloneTensor};
use crate::recover::{Process, Recovery};
use crate::tensor::ArrayField;

/// Name of the document.
pub const FILE: &str = "tensors.json";
/// Nesting down to which it is indented: a tensor is one line.
pub(super) const DEPTH: usize = 2;

/// All tensors and arrays of no model, with the process that each is listed with.
pub(super) fn all(recovery: &Recovery) -> impl Iterator<Item = (&Process, &StandaloneTensor)> {
    recovery.processes.iter().flat_map(|process| process.standalone.found.iter().map(move |found| (process, found)))
}

/// What is written of each, in the same order.
pub(super) fn assignments(recovery: &Recovery) -> Vec<Assignment<'_>> {
    assign_standalone(all(recovery).map(|(_, found)| found))
}

/// The document.
#[derive(Serialize)]
pub(super) struct StandaloneDocument<'a> {
    schema_version: u32,
    tool: &'static str,
    tensors: Vec<StandaloneRow<'a>>,
    arrays: Vec<ArrayRow<'a>>,
}

#[derive(Serialize)]
struct StandaloneRow<'a> {
    #[serde(flatten)]
    tensor: TensorRow<'a>,
    storage: Option<VirtAddr>,
    #[serde(flatten)]
    place: PlaceRow<'a>,
}

#[derive(Serialize)]
struct PlaceRow<'a> {
    root: Option<PhysAddr>,
    referrers: Vec<String>,
    sightings: &'a [Sighting],
}

#[derive(Serialize)]
struct ArrayRow<'a> {
    #[serde(flatten)]
    tensor: TensorRow<'a>,
    /// `dtype.str`: byte order, kind, size.
    numpy_dtype: &'a str,
    fields: &'a [ArrayField],
    /// In bytes, as NumPy has them.
    strides: &'a [i64],
    base: Option<VirtAddr>,
    #[serde(flatten)]
    place: PlaceRow<'a>,
}

impl<'a> StandaloneDocument<'a> {
    pub(super) fn new(recovery: &'a Recovery, assignments: &[Assignment<'a>]) -> Self {
        let names = ModuleNames::new(recovery);
        let (mut tensors, mut arrays) = (Vec::new(), Vec::new());
        for ((process, found), assignment) in all(recovery).zip(assignments) {
            let tensor = TensorRow::new(assignment);
            let referrers = found.referrers.iter().map(|referrer| names.describe(process.root(), referrer)).collect();
            let place = PlaceRow { root: process.root(), referrers, sightings: &found.sightings };
            match &found.array {
                Some(array) => arrays.push(ArrayRow {
                    tensor: tensor.of_array(array),
                    numpy_dtype: &array.dtype.name,
                    fields: &array.fields,
                    strides: &array.strides,
                    base: array.base,
                    place,
                }),
                None => {
                    let storage = found.tensor.info.as_ref().map(|info| info.storage);
                    tensors.push(StandaloneRow { tensor, storage: storage.filter(|storage| storage.0 != 0), place });
                }
            }
        }
        Self { schema_version: SCHEMA_VERSION, tool: TOOL, tensors, arrays }
    }
}

/// Names of the modules of all models, by the address space and the object.
struct ModuleNames<'a>(HashMap<(Option<PhysAddr>, VirtAddr), (&'a str, &'a str)>);

impl<'a> ModuleNames<'a> {
    fn new(recovery: &'a Recovery) -> Self {
        let mut names = HashMap::new();
        for model in recovery.processes.iter().flat_map(|process| &process.models) {
            for sighting in &model.sightings {
                for module in &model.modules {
                    names.entry((sighting.root, module.object)).or_insert((model.id.as_str(), module.name.as_str()));
                }
            }
        }
        Self(names)
    }

    /// A referrer in words: `m0: layer.cache[0]`, `__main__.batch`.
    fn describe(&self, root: Option<PhysAddr>, referrer: &Referrer) -> String {
        match referrer {
            Referrer::Module { object, path } => match self.0.get(&(root, *object)) {
                Some((model, "")) => format!("{model}: {path}"),
                Some((model, module)) => format!("{model}: {module}.{path}"),
                None => format!("module at {object}: {path}"),
            },
            Referrer::Global { path } => path.clone(),
            Referrer::GradientOf { object } => format!("gradient of {object}"),
        }
    }
}

/// A tensor that a module holds beside its parameters and buffers.
#[derive(Serialize)]
pub(super) struct HeldRow<'a> {
    /// Name of the attribute, with indices and keys.
    attribute: &'a str,
    /// Its name in `tensors.json`.
    name: &'a str,
}

/// Tensors and arrays that the modules of a model hold beside its parameters and buffers, by module.
pub(super) fn held_by<'a>(recovery: &'a Recovery, model: &Model) -> HashMap<VirtAddr, Vec<HeldRow<'a>>> {
    let is_here = |sighting: &Sighting| model.sightings.iter().any(|here| here.root == sighting.root);
    let mut held: HashMap<VirtAddr, Vec<HeldRow<'a>>> = HashMap::new();
    for (_, found) in all(recovery).filter(|(_, found)| found.sightings.iter().any(is_here)) {
        for referrer in &found.referrers {
            if let Referrer::Module { object, path } = referrer {
                held.entry(*object).or_default().push(HeldRow { attribute: path, name: &found.tensor.name });
            }
        }
    }
    held
}
