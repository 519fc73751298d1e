//! Tensors and NumPy arrays that belong to no model: activations, attributes, elements of lists, orphans.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::attributes::{Types, attach_to_others};
use super::find::Graph;
use super::referrers::{self, Referrer};
use super::{Model, NamedTensor, Reading, Sighting, TensorKind};
use crate::addr::VirtAddr;
use crate::cpython::{self, Builtins, Holders, Interpreter, Modules};
use crate::framework::numpy::{self, ArrayLayout, ArrayReader, ArrayScore};
use crate::tensor::{ArrayInfo, Elements, Form, TensorInfo};
use crate::words::counted;

/// Where the class of all tensors is defined, in every PyTorch: its `__module__` is set by hand.
const TENSOR_CLASS: (&str, &str) = ("torch", "Tensor");
/// The name of the class of arrays in the module that makes it public.
const ARRAY_CLASS: (&str, &str) = ("numpy", "ndarray");
/// Objects of one process that are read.
const MAX_OBJECTS: usize = 1 << 18;
/// Objects that are tried to choose a layout.
const SAMPLE: usize = 1 << 10;

/// A tensor or an array that belongs to no model.
#[derive(Clone, Debug)]
pub struct Other {
    /// Its bytes, and for a tensor its headers. The name is `<root of the process>.<address of the object>`,
    /// in the image of a process the address alone.
    pub tensor: NamedTensor,
    /// The headers of an array.
    pub array: Option<ArrayInfo>,
    /// What refers to it, as far as that was looked for.
    pub referrers: Vec<Referrer>,
    /// Every address space in which this very object was found: more than one after a fork.
    pub sightings: Vec<Sighting>,
    /// Whether its bytes are left out, because all together are more than a dump can hold.
    pub is_left_out: bool,
}

impl Other {
    fn new(tensor: NamedTensor) -> Self {
        Self { tensor, array: None, referrers: Vec::new(), sightings: Vec::new(), is_left_out: false }
    }

    /// Where its elements lie, if they are to be read.
    pub(crate) fn elements(&self) -> Option<Elements> {
        match (&self.array, &self.tensor.reading) {
            _ if self.is_left_out => None,
            (Some(array), Reading::Elements) => array.elements(),
            _ => self.tensor.elements(),
        }
    }
}

/// What one process holds beside its models.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Tensors first, then arrays, each in the order of their addresses.
    pub found: Vec<Other>,
    /// How well the layout of NumPy's arrays reads them.
    pub array_layout: Option<ArrayScore>,
    /// What was left out, in words.
    pub warnings: Vec<String>,
}

/// The types whose instances are arrays.
pub type ArrayTypes = BTreeSet<VirtAddr>;

/// The types whose instances are tensors: the base of `torch.Tensor` that is next to `object`, and all that
/// derive from it. `modules` are the imported ones.
pub fn tensor_types(interpreter: &Interpreter, modules: &Modules) -> BTreeSet<VirtAddr> {
    // Its type is a metaclass: nothing is known of it before the first sweep.
    if interpreter.instances.is_empty() {
        return BTreeSet::new();
    }
    let base = |address: &VirtAddr| match *interpreter.types.get(address)?.mro.as_slice() {
        [.., base, _] => Some(base),
        _ => None,
    };
    let (module, name) = TENSOR_CLASS;
    let found = attribute(interpreter, modules, TENSOR_CLASS)
        .map_or_else(|| interpreter.heap_type(module, name), |found| vec![found]);
    let bases: BTreeSet<VirtAddr> = found.iter().filter_map(base).collect();
    bases.into_iter().flat_map(|base| interpreter.subtypes(base)).collect()
}

/// What an imported module has under a name.
fn attribute(interpreter: &Interpreter, modules: &Modules, (module, name): (&str, &str)) -> Option<VirtAddr> {
    interpreter.objects().dict_item(*modules.get(module)?, name).ok().flatten()
}

/// The types whose instances are arrays: `numpy.ndarray` and all that derive from it. The name of a class that is
/// made in C is often gone; that of the module that holds it is not.
pub fn array_types(interpreter: &Interpreter, modules: &Modules) -> ArrayTypes {
    let base = attribute(interpreter, modules, ARRAY_CLASS);
    base.into_iter().flat_map(|base| interpreter.subtypes(base)).collect()
}

/// Finds all tensors and arrays that are not part of `models`; their bytes are not looked at yet.
pub(crate) fn others<'a>(
    interpreter: &'a Interpreter,
    (graph, models, modules): (&Graph, &[Model], &Modules),
    builtins: &Builtins,
    mut holders: Holders<'a>,
    types: Types<'a>,
) -> Others {
    let mut all = Others::default();
    let (tensors, layout) = types.tensors;
    let mut unreadable = Vec::new();
    let mut known = Known::new(models);
    let name = |address: VirtAddr| match interpreter.space().root() {
        Some(root) => format!("{root}.{address}"),
        None => address.to_string(),
    };
    if let Some(layout) = layout {
        let objects = interpreter.objects();
        for (object, class) in instances(interpreter, tensors, "tensors", &mut all.warnings) {
            if known.objects.contains(&object) {
                continue;
            }
            let read = layout.read_header(&objects, object).map_err(|error| error.to_string());
            let sound = read.as_ref().ok().filter(|info| info.form != Form::Short);
            if sound.is_some_and(|info| !known.add(info)) {
                continue;
            }
            let found = if sound.is_some() { &mut all.found } else { &mut unreadable };
            let tensor = NamedTensor::new(name(object), TensorKind::Other, object, read);
            found.push(Other::new(NamedTensor { class: class.clone(), ..tensor }));
        }
        let mut gradients = Vec::new();
        for of in all.found.iter().filter_map(|other| other.tensor.info.as_ref()) {
            if let Ok(Some(grad)) = layout.read_grad(&objects, of)
                && known.add(&grad)
            {
                let address = if grad.object.0 == 0 { grad.tensor_impl } else { grad.object };
                let tensor = NamedTensor::new(name(address), TensorKind::Other, grad.object, Ok(grad));
                let referrers = vec![Referrer::GradientOf { object: of.object }];
                gradients.push(Other { referrers, ..Other::new(tensor) });
            }
        }
        all.found.append(&mut gradients);
    }
    add_arrays(&mut all, interpreter, types.arrays, &known, name);
    let objects = holders.objects();
    attach_to_others(&mut all.found, models, objects, builtins, &mut holders, types);
    // Most of what can't be read is no object: any pointer to a type after a small number looks like one. What
    // something refers to is.
    let wanted = all.found.iter().chain(&unreadable).map(|other| other.tensor.object);
    let wanted: HashSet<VirtAddr> = wanted.filter(|object| object.0 != 0).collect();
    if wanted.is_empty() {
        return all;
    }
    let referrers::Found { mut referrers, is_whole } = referrers::search(objects, holders, wanted, graph, modules);
    if !is_whole {
        all.warnings.push(
            "the search for references to tensors and arrays stopped early: there are too many values".to_owned(),
        );
    }
    all.found.extend(unreadable.into_iter().filter(|other| referrers.contains_key(&other.tensor.object)));
    for other in &mut all.found {
        other.referrers.append(&mut referrers.remove(&other.tensor.object).unwrap_or_default());
    }
    all.found.sort_by_key(|other| (other.array.is_some(), other.tensor.object, other.tensor.name.clone()));
    all
}

/// The layout that reads the arrays of a process, and how well.
pub(crate) fn array_layout<'l>(
    interpreter: &Interpreter,
    modules: &Modules,
    types: &ArrayTypes,
    layouts: &'l [ArrayLayout],
) -> Option<ArrayReader<'l>> {
    let instances = types.iter().filter_map(|found| interpreter.instances.get(found)).flatten();
    let sample: BTreeSet<VirtAddr> = instances.copied().collect();
    let sample: Vec<VirtAddr> = sample.into_iter().take(SAMPLE).collect();
    let version = numpy_version(interpreter, modules);
    numpy::choose_array_layout(layouts, &interpreter.objects(), &sample, version.as_deref())
}

fn add_arrays(
    all: &mut Others,
    interpreter: &Interpreter,
    (types, reader): (&ArrayTypes, Option<&ArrayReader<'_>>),
    known: &Known,
    name: impl Fn(VirtAddr) -> String,
) {
    let objects = interpreter.objects();
    let Some(reader) = reader else { return };
    let versions = [std::slice::from_ref(&reader.score.version), &reader.score.rivals].concat().join(" and ");
    let undecided = format!(
        "the layouts for NumPy {versions} fit the process's arrays equally well, but read this one differently"
    );
    let mut undecided_count = 0;
    for (object, class) in instances(interpreter, types, "arrays", &mut all.warnings) {
        if !known.objects.contains(&object)
            && let Ok(info) = reader.read(&objects, object)
        {
            undecided_count += usize::from(info.is_undecided);
            let problem = match &info {
                info if info.is_undecided => Some(undecided.clone()),
                info if info.holds_objects => Some("its elements are pointers to Python objects".to_owned()),
                _ => None,
            };
            let tensor = NamedTensor { class, problem, ..NamedTensor::array(name(object), object) };
            all.found.push(Other { array: Some(info), ..Other::new(tensor) });
        }
    }
    if undecided_count > 0 {
        let (undecided, place) = (counted(undecided_count, "array", "arrays"), interpreter.type_object);
        all.warnings.push(format!(
            "listed without type and bytes: {undecided} of the process with `type` at {place}; the layouts for NumPy \
             {versions} fit its arrays equally well, and no NumPy version that decides between them could be read"
        ));
    }
    all.array_layout = Some(reader.score.clone());
}

/// NumPy's version as it says itself: `numpy.version.version`, or `numpy.__version__`.
fn numpy_version(interpreter: &Interpreter, modules: &Modules) -> Option<String> {
    let objects = interpreter.objects();
    let read = |module: &str, name: &str| cpython::attribute_str(&objects, *modules.get(module)?, name);
    read("numpy.version", "version").or_else(|| read(ARRAY_CLASS.0, "__version__"))
}

/// The live objects of those types, with the name of their class; as many as are read.
fn instances(
    interpreter: &Interpreter,
    types: &BTreeSet<VirtAddr>,
    what: &str,
    warnings: &mut Vec<String>,
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
        warnings.push(format!("{left_out} {what} outside any model are left out: at most {MAX_OBJECTS} are read"));
    }
    all.into_iter().collect()
}

/// The tensors that are listed elsewhere.
struct Known {
    objects: BTreeSet<VirtAddr>,
    impls: BTreeSet<VirtAddr>,
}

impl Known {
    fn new(models: &[Model]) -> Self {
        let mut known = Self { objects: BTreeSet::new(), impls: BTreeSet::new() };
        let all = models.iter().flat_map(Model::all_tensors);
        let all = all.flat_map(|tensor| tensor.inner.iter().map(|inner| &inner.tensor).chain([tensor]));
        for tensor in all {
            known.objects.insert(tensor.object);
            if let Some(info) = &tensor.info {
                known.add(info);
            }
        }
        known
    }

    /// Notes a tensor and its parts; `false` if it is known.
    fn add(&mut self, info: &TensorInfo) -> bool {
        for (_, part) in info.form.parts() {
            self.impls.insert(part.tensor_impl);
        }
        self.impls.insert(info.tensor_impl)
    }
}
