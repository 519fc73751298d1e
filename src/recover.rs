//! The main job: from a dump to the models in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;

use crate::addr::{PhysAddr, VirtAddr};
use crate::case::{CaseError, Pythons, Spaces};
use crate::cpython::{self, Builtins, Holders, Interpreter, LayoutScore, LayoutSource, Modules, Objects};
use crate::digest::{self, Target};
use crate::dump::{Addresses, Dump, PhysicalMemory, ProcessImage};
use crate::framework::torch::TensorScore;
use crate::framework::{numpy, torch};
use crate::linux::Machine;
use crate::mapped;
use crate::model::{self, Model, Others, Sighting};
use crate::other_pythons::OtherPython;
use crate::paging::{AddressSpace, Discovery};
use crate::progress::Observer;
use crate::scan::Backend;
use crate::signature::{Mmu, Signatures};
use crate::words::counted;

/// The modules by which machine-learning frameworks are imported, sorted.
const FRAMEWORKS: [&str; 11] = [
    "jax",
    "keras",
    "mxnet",
    "numpy",
    "onnxruntime",
    "paddle",
    "sklearn",
    "tensorflow",
    "torch",
    "transformers",
    "vllm",
];
/// Tensors that choose the layout where there is no module.
const TENSOR_SAMPLE: usize = 1 << 10;
/// Everything that was found in a dump.
pub struct Recovery {
    /// The memory that was searched: that of the dump, with the addresses that were used.
    pub memory: Arc<PhysicalMemory>,
    /// The rules by which its page tables are read.
    pub mmu: Arc<Mmu>,
    /// The address spaces, and how they were found.
    pub discovery: Discovery,
    /// The interpreters, each with its models.
    pub processes: Vec<Process>,
    /// Pythons that run but can't be read.
    pub other_pythons: Vec<OtherPython>,
    /// Warnings for the analyst.
    pub warnings: Vec<String>,
}

/// A Python process.
pub struct Process {
    /// Root of its address space; `None` if the dump is a process image, which has no page tables.
    pub root: Option<PhysAddr>,
    /// Levels of its page tables, where there are any.
    pub levels: Option<u8>,
    /// Its id, where the dump says it.
    pub pid: Option<u32>,
    /// Its command's name, where the dump says it.
    pub comm: Option<String>,
    /// Address of `type`, and its physical address where addresses have one.
    pub type_object: (VirtAddr, Option<PhysAddr>),
    /// The interpreter's version as its `sys.version` says; `None` if that can't be read.
    pub python_version: Option<String>,
    /// Layout that reads its objects, with score and runner-up.
    pub python_layout: (LayoutScore, Option<LayoutScore>),
    /// Type objects in it.
    pub type_count: usize,
    /// The machine-learning frameworks that it has imported, by name.
    pub frameworks: Vec<Framework>,
    /// PyTorch's version as `torch.version` says; `None` if it is not imported, or can't be read.
    pub torch_version: Option<String>,
    /// Whether PyTorch is imported: its version or its module class was found.
    pub has_torch: bool,
    /// Layout that reads its tensors, with score and runner-up; `None` where no tensor was read.
    pub torch_layout: Option<(TensorScore, Option<TensorScore>)>,
    /// The first release whose dispatch keys fit its tensors; `None` if unknown.
    pub torch_keys: Option<String>,
    /// Modules (`torch.nn.Module` instances) that are alive in it.
    pub module_count: usize,
    /// Its models; one that several processes share is listed with the first of them.
    pub models: Vec<Model>,
    /// Models that are listed with another process and seen here as well.
    pub shared_models: Vec<String>,
    /// Its tensors and arrays that belong to no model; one that several processes share is listed with the first.
    pub others: Others,
}

/// A machine-learning framework that a process has imported.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Framework {
    /// The name by which it is imported.
    pub name: String,
    /// Its version; `None` where that can't be read.
    pub version: Option<String>,
}

impl Process {
    /// Its address space in the memory that was searched.
    pub fn space(&self, memory: &Arc<PhysicalMemory>, mmu: &Arc<Mmu>) -> AddressSpace {
        match (self.root, self.levels) {
            (Some(root), Some(levels)) => AddressSpace::new(memory, mmu, root, levels),
            _ => AddressSpace::of_image(memory),
        }
    }
}

/// Finds the models in a dump.
///
/// # Errors
/// The signatures lack required entries, or the dump changed during the run. A dump without models is not an error.
pub fn recover(
    dump: &Dump,
    signatures: &Signatures,
    backend: Backend,
    observer: &dyn Observer,
) -> Result<Recovery, CaseError> {
    let spaces = Spaces::find(dump, signatures, backend, observer)?;
    let pythons = Pythons::find(&spaces, signatures, backend, wanted_types, observer)?;
    models(dump, signatures, (&spaces, None, &pythons), observer)
}

/// The types whose instances models are made of.
pub(crate) fn wanted_types(interpreter: &Interpreter) -> BTreeSet<VirtAddr> {
    let types = WantedTypes::new(interpreter, &interpreter.modules(&interpreter.module_types()));
    let all = [types.python, types.torch, types.unread, types.optimizers, types.tensors, types.arrays, types.scripts];
    all.into_iter().flatten().collect()
}

/// The models of interpreters that were found with [`wanted_types`].
///
/// # Errors
/// The signatures lack required entries, or the dump can no longer be read.
pub(crate) fn models(
    dump: &Dump,
    signatures: &Signatures,
    (spaces, machine, pythons): (&Spaces, Option<&Machine>, &Pythons),
    observer: &dyn Observer,
) -> Result<Recovery, CaseError> {
    let memory: &PhysicalMemory = &spaces.memory;
    let mut warnings: Vec<String> = spaces.warnings.iter().chain(&pythons.warnings).cloned().collect();
    let mut processes = self::processes(signatures, pythons)?;
    if let Addresses::Virtual(ProcessImage { pid, comm }) = &dump.addresses {
        for process in &mut processes {
            (process.pid, process.comm) = (*pid, comm.clone());
        }
    }
    for process in &mut processes {
        let Some((machine, root)) = machine.zip(process.root) else { continue };
        // Of several roots with the same memory, the kernel knows one.
        let same = || spaces.roots_of_same_memory(root).into_iter().find_map(|root| machine.process_of(root));
        if let Some(task) = machine.process_of(root).or_else(same) {
            (process.pid, process.comm) = (Some(task.pid()), Some(task.comm().to_owned()));
        }
    }
    warnings.extend(processes.iter().filter_map(inferred_python));
    warnings.extend(processes.iter().filter_map(without_table));
    let all_others = processes.iter_mut().flat_map(|process| &mut process.others.found);
    warnings.extend(model::limit(all_others, memory.size()));
    model::limit_models(processes.iter_mut().flat_map(|process| &mut process.models), memory.size());

    let count = processes.iter().map(|process| process.models.len()).sum();
    let targets = processes.iter_mut().map(|process| {
        let models = process.models.iter_mut().flat_map(|model| Target::of_model(model, count));
        models.chain(Target::others(&mut process.others.found)).collect()
    });
    let spaces_of_them = pythons.interpreters.iter().map(|interpreter| interpreter.space().clone());
    digest::tensors(targets.zip(spaces_of_them), memory.size(), observer);
    memory.check()?;
    join_sightings(&mut processes);
    join_others(&mut processes);
    warnings.extend(processes.iter_mut().flat_map(|process| std::mem::take(&mut process.others.warnings)));
    warnings.extend(mapped::sentences(memory, &processes));
    Ok(Recovery {
        memory: Arc::clone(&spaces.memory),
        mmu: Arc::clone(&spaces.mmu),
        discovery: spaces.discovery.clone(),
        processes,
        other_pythons: pythons.others.clone(),
        warnings,
    })
}

/// What each interpreter holds; the bytes of tensors are not read.
///
/// # Errors
/// The signatures lack required entries.
pub(crate) fn processes(signatures: &Signatures, pythons: &Pythons) -> Result<Vec<Process>, CaseError> {
    let torch_layouts = torch::layouts(signatures)?;
    let key_tables = torch::key_tables(signatures)?;
    let array_layouts = numpy::array_layouts(signatures)?;
    let script_layouts = model::ScriptLayouts::new(signatures)?;
    let plain_header = pythons.layouts.iter().map(|layout| layout.object_size).min().unwrap_or_default();
    let interpreters = pythons.interpreters.par_iter().map(|interpreter| {
        // PyTorch's objects begin with the header that all objects have; its numbers are for the plain one.
        let mut torch_layouts = torch_layouts.clone();
        let grown = interpreter.layout.object_size.wrapping_sub(plain_header);
        torch_layouts.iter_mut().for_each(|layout| layout.offsets.impl_pointer += grown);
        describe(interpreter, (&torch_layouts, &key_tables), &array_layouts, &script_layouts)
    });
    Ok(interpreters.collect())
}

/// The types of an interpreter whose instances are looked for.
struct WantedTypes {
    /// Those that could be `module`, what `import` makes.
    python: BTreeSet<VirtAddr>,
    /// `torch.nn.Module` and all that derive from it.
    torch: BTreeSet<VirtAddr>,
    /// Classes that can't be read: any of them could derive from `torch.nn.Module`.
    unread: BTreeSet<VirtAddr>,
    /// `torch.optim.Optimizer` and all that derive from it.
    optimizers: BTreeSet<VirtAddr>,
    /// `torch.Tensor`, the class below it, and all that derive from that.
    tensors: BTreeSet<VirtAddr>,
    /// `numpy.ndarray` and all that derive from it.
    arrays: BTreeSet<VirtAddr>,
    /// `torch.ScriptObject` and all that derive from it.
    scripts: BTreeSet<VirtAddr>,
}

impl WantedTypes {
    /// Those that are known by now; `modules` are the imported ones.
    fn new(interpreter: &Interpreter, modules: &Modules) -> Self {
        Self {
            python: interpreter.module_types(),
            torch: model::module_types(interpreter),
            unread: interpreter.unread_classes.clone(),
            optimizers: model::optimizer_types(interpreter),
            tensors: model::tensor_types(interpreter, modules),
            arrays: model::array_types(interpreter, modules),
            scripts: model::script_types(interpreter),
        }
    }
}

/// What one interpreter holds; the bytes of tensors are not looked at yet.
fn describe(
    interpreter: &Interpreter,
    (torch_layouts, key_tables): (&[torch::Layout], &[torch::KeyTable]),
    array_layouts: &[numpy::ArrayLayout],
    script_layouts: &model::ScriptLayouts,
) -> Process {
    let objects = interpreter.objects();
    let modules = interpreter.modules(&interpreter.module_types());
    let types = WantedTypes::new(interpreter, &modules);
    let builtins = Builtins::new(&objects, &modules);
    let graph = model::graph(interpreter, &builtins, &types.torch);
    let torch_version =
        modules.get("torch.version").and_then(|dict| cpython::attribute_str(&objects, *dict, "__version__"));
    let mut tensors: Vec<VirtAddr> = graph.tensors().into_iter().collect();
    let instances = types.tensors.iter().filter_map(|found| interpreter.instances.get(found)).flatten();
    let others: Vec<VirtAddr> = instances.copied().take(TENSOR_SAMPLE).collect();
    if tensors.is_empty() {
        // Any pointer to the type looks like an instance; what no layout reads decides nothing.
        let is_tensor = |at: &&VirtAddr| torch_layouts.iter().any(|layout| layout.read(&objects, **at).is_ok());
        tensors.extend(others.iter().filter(is_tensor));
    }
    let known: BTreeSet<VirtAddr> = tensors.iter().copied().collect();
    let others: Vec<VirtAddr> = others.into_iter().filter(|object| !known.contains(object)).collect();
    let release = torch_version.as_deref();
    let scripts = model::Scripts::find(interpreter, &types.scripts, script_layouts, &graph);
    let sample = torch::Sample { tensors: &tensors, others: &others, headers: scripts.headers(), version: release };
    let chosen = torch::choose(torch_layouts, &objects, &sample).map(|(layout, best, next)| {
        (layout.into_owned().with_keys(key_tables, &objects, &tensors, release, best.inferred), best, next)
    });
    let layout = chosen.as_ref().map(|(layout, ..)| layout);
    let scripts = scripts.with_layout(layout);
    let mut models = model::models(&graph, &scripts, &objects, layout);
    models.extend(scripts.models(&graph));
    model::attach_optimizers(&mut models, interpreter, &builtins, layout, &types.optimizers);
    let arrays = model::array_layout(interpreter, &modules, &types.arrays, array_layouts);
    let known = model::Types { tensors: (&types.tensors, layout), arrays: (&types.arrays, arrays.as_ref()) };
    let mut holders = Holders::new(objects, &modules, interpreter.module_types());
    model::attach_attributes(&mut models, objects, &builtins, &mut holders, known);
    let others = model::others(interpreter, (&graph, &models, &modules), &builtins, holders, known);
    model::find_moved(&mut models, &others.found);
    let type_at = interpreter.space().translate(interpreter.type_object).ok().map(|found| found.pa);
    let torch_keys = layout.and_then(|layout| layout.keys.as_ref()).map(|keys| keys.version.clone());
    Process {
        root: interpreter.space().root(),
        levels: interpreter.space().levels(),
        pid: None,
        comm: None,
        type_object: (interpreter.type_object, type_at.filter(|_| interpreter.space().root().is_some())),
        python_version: cpython::python_version(&objects, &modules),
        frameworks: frameworks(&objects, &modules),
        python_layout: interpreter.scores.clone(),
        type_count: interpreter.types.len(),
        has_torch: torch_version.is_some() || !types.torch.is_empty(),
        torch_version,
        torch_layout: chosen.map(|(_, best, next)| (best, next)),
        torch_keys,
        module_count: graph.modules.len(),
        models,
        shared_models: Vec::new(),
        others,
    }
}

/// The frameworks among the imported modules.
fn frameworks(objects: &Objects<'_>, modules: &Modules) -> Vec<Framework> {
    let version = |module: &str| cpython::attribute_str(objects, *modules.get(module)?, "__version__");
    let imported = FRAMEWORKS.iter().filter(|name| modules.contains_key(**name));
    // `torch.__version__` is an instance of a class of its own; `torch.version` has the plain string.
    let framework = |name: &&str| Framework {
        name: (*name).to_owned(),
        version: version(name).or_else(|| version(&format!("{name}.version"))),
    };
    imported.map(framework).collect()
}

/// A warning if no layout file reads the tensors of a process, or if several do and disagree.
fn without_table(process: &Process) -> Option<String> {
    let place = process.type_object.0;
    let Some((score, _)) = &process.torch_layout else {
        let tensors: usize = process.models.iter().map(|model| model.tensors.len()).sum();
        return (tensors > 0).then(|| {
            format!(
                "no layout file fits the PyTorch of the process with `type` at {place}, and none could be inferred \
                 from its {tensors} tensors"
            )
        });
    };
    let TensorScore { readable, tried, others, version, inferred, changes, rivals, .. } = score;
    if *inferred {
        return Some(format!(
            "no layout file fits the PyTorch of the process with `type` at {place}: a layout inferred from the one \
             for {version} ({} changed) reads {readable} of {tried} tensors; recovery.json lists the changes",
            counted(changes.len(), "number", "numbers")
        ));
    }
    if !rivals.is_empty() {
        return Some(format!(
            "the layouts for PyTorch {version} and {} fit the tensors of the process with `type` at {place} equally \
             well: what they read differently is left out",
            rivals.join(" and ")
        ));
    }
    (*readable + *others == 0 && *tried > 0).then(|| {
        format!(
            "no layout file reads any of the {tried} tensors of the process with `type` at {place}, and they are too \
             few or too damaged to infer a layout; each tensor's problem is stated according to the layout for \
             {version}, the nearest to its PyTorch version"
        )
    })
}

/// Says so if the layout of an interpreter is no known one.
fn inferred_python(process: &Process) -> Option<String> {
    let LayoutScore { version, source, changes, readable, sampled, .. } = &process.python_layout.0;
    (*source == LayoutSource::Inferred).then(|| {
        format!(
            "no layout file fits the CPython with `type` at {}: a layout inferred from the one for {version} ({} \
             changed) reads {readable} of {sampled} classes; recovery.json lists the changes",
            process.type_object.0,
            counted(changes.len(), "number", "numbers")
        )
    })
}

/// Lists a model that several processes hold in the same place with the same bytes, as after a
/// fork, once, and numbers the models.
fn join_sightings(processes: &mut [Process]) {
    // Not the names of classes or modules: what counts is that it is the same object with the same data.
    type Key = (VirtAddr, String, Vec<(String, Option<String>)>);
    let mut known: BTreeMap<Key, (usize, usize)> = BTreeMap::new();
    let mut sightings: BTreeMap<(usize, usize), Vec<Sighting>> = BTreeMap::new();
    let mut shared: Vec<(usize, (usize, usize))> = Vec::new();
    for (index, process) in processes.iter_mut().enumerate() {
        let mut own: Vec<Model> = Vec::new();
        for model in std::mem::take(&mut process.models) {
            let bytes = model.all_tensors().map(|tensor| (tensor.name.clone(), tensor.sha256.clone())).collect();
            let here = (index, own.len());
            let first = *known.entry((model.object, model.class.clone(), bytes)).or_insert(here);
            sightings.entry(first).or_default().push(Sighting { root: process.root, object: model.object });
            if first == here {
                own.push(model);
            } else {
                shared.push((index, first));
            }
        }
        process.models = own;
    }
    let mut number = 0;
    let mut ids = BTreeMap::new();
    for (index, process) in processes.iter_mut().enumerate() {
        for (place, model) in process.models.iter_mut().enumerate() {
            model.id = format!("m{number}");
            model.sightings = sightings.remove(&(index, place)).unwrap_or_default();
            ids.insert((index, place), model.id.clone());
            number += 1;
        }
    }
    for (index, first) in shared {
        if let (Some(process), Some(id)) = (processes.get_mut(index), ids.get(&first)) {
            process.shared_models.push(id.clone());
        }
    }
}

/// Lists a tensor or an array that several processes hold in the same place with the same bytes once.
fn join_others(processes: &mut [Process]) {
    type Key = (VirtAddr, Option<VirtAddr>, Vec<u64>, Option<String>);
    let mut known: BTreeMap<Key, Vec<Sighting>> = BTreeMap::new();
    let key = |other: &model::Other| -> Key {
        let info = other.tensor.info.as_ref();
        let shape = info.map(|info| &info.shape).or(other.array.as_ref().map(|array| &array.shape));
        let tensor_impl = info.map(|info| info.tensor_impl);
        (other.tensor.object, tensor_impl, shape.cloned().unwrap_or_default(), other.tensor.sha256.clone())
    };
    for process in processes.iter_mut() {
        process.others.found.retain(|other| {
            let sighting = Sighting { root: process.root, object: other.tensor.object };
            let sightings = known.entry(key(other)).or_default();
            sightings.push(sighting);
            sightings.len() == 1
        });
    }
    for other in processes.iter_mut().flat_map(|process| &mut process.others.found) {
        other.sightings = known.remove(&key(other)).unwrap_or_default();
    }
}
