//! The main job: from a dump to the models in it.

mod pythons;

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::{self, Builtins, Holders, Interpreter, LayoutScore, LayoutSource, Modules};
use crate::digest::{self, Target};
use crate::dump::{Addresses, Dump, DumpError, PhysicalMemory, ProcessImage};
use crate::mapped;
use crate::model::{self, Model, Others, Sighting};
use crate::other_pythons::OtherPython;
use crate::paging::{AddressSpace, Discovery};
use crate::scan::Backend;
use crate::signature::{Mmu, Signatures};
use crate::tensor::{self, TensorScore};

pub use pythons::{Pythons, View};

/// Tensors that choose the layout where there is no module.
const TENSOR_SAMPLE: usize = 1 << 10;
/// Everything that was found in a dump.
pub struct Recovery {
    /// The memory that was searched: that of the dump, with the addresses that were used.
    pub memory: PhysicalMemory,
    /// The address spaces, and how they were found.
    pub discovery: Discovery,
    /// The interpreters, each with its models.
    pub processes: Vec<Process>,
    /// Pythons that run and are not read.
    pub other_pythons: Vec<OtherPython>,
    /// What an analyst should know, in words.
    pub warnings: Vec<String>,
}

/// A Python process.
pub struct Process {
    /// Root of its address space; `None` where the dump is its image and has no page tables.
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
    /// PyTorch's version as `torch.version` says; `None` if it is not imported, or can't be read.
    pub torch_version: Option<String>,
    /// Whether PyTorch is imported: its version or its module class was found.
    pub has_torch: bool,
    /// Layout that reads its tensors, with score and runner-up; `None` where no tensor was read.
    pub torch_layout: Option<(TensorScore, Option<TensorScore>)>,
    /// First of the releases by which its tensors' dispatch keys are read; `None` where that is not known.
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

impl Process {
    /// Its address space in the memory that was searched.
    pub fn space<'a>(&self, memory: &'a PhysicalMemory, mmu: &'a Mmu) -> AddressSpace<'a> {
        match (self.root, self.levels) {
            (Some(root), Some(levels)) => AddressSpace::new(memory, mmu, root, levels),
            _ => AddressSpace::of_image(memory),
        }
    }
}

/// A part of the work, for progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Unpacking a compressed dump.
    Unpack,
    /// The one pass over all memory.
    Scan,
    /// Page-table roots and address spaces.
    Paging,
    /// Interpreters, types and modules.
    Cpython,
    /// Headers of tensors, and hashes of their bytes.
    Tensors,
    /// Writing the output folder.
    Write,
}

/// Is told how the work goes; called from several threads.
pub trait Observer: Sync {
    /// A phase begins; `total` is its size in bytes, 0 where it is not known.
    fn begin(&self, phase: Phase, total: u64);
    /// That many bytes more are done.
    fn advance(&self, bytes: u64);
}

/// An observer that does nothing.
pub struct Silent;

impl Observer for Silent {
    fn begin(&self, _phase: Phase, _total: u64) {}
    fn advance(&self, _bytes: u64) {}
}

/// Why a dump could not be searched: the signatures lack what the work needs, or the dump can't be read any more.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// No rules of page tables.
    #[error("the signatures have no [mmu]: no page table can be read without its rules")]
    NoMmu,
    /// No signature of the interpreter.
    #[error("the signatures have no structure cpython.type: no interpreter can be found without it")]
    NoTypeSignature,
    /// A CPython layout lacks a number.
    #[error(transparent)]
    PythonLayout(#[from] cpython::MissingField),
    /// A PyTorch layout lacks a number or a table.
    #[error(transparent)]
    TorchLayout(#[from] tensor::LayoutError),
    /// The file of the dump changed, or a part of it could not be read.
    #[error(transparent)]
    Input(#[from] DumpError),
}

/// Finds the models in a dump.
///
/// # Errors
/// The signatures lack what the work needs, or the dump changed meanwhile; a dump with nothing in it is no error.
pub fn recover(
    dump: &Dump,
    signatures: &Signatures,
    backend: Backend,
    observer: &dyn Observer,
) -> Result<Recovery, RecoverError> {
    let python_layouts = cpython::layouts(signatures)?;
    let torch_layouts = tensor::layouts(signatures)?;
    let key_tables = tensor::key_tables(signatures)?;
    let array_layouts = tensor::array_layouts(signatures)?;
    let script_layouts = model::ScriptLayouts::new(signatures)?;

    let view = View::new(dump, signatures, backend, observer)?;
    let Pythons { interpreters, other_pythons, warnings, .. } =
        view.pythons(signatures, backend, observer, |interpreter| {
            let types = WantedTypes::new(interpreter, &interpreter.modules(&interpreter.module_types()));
            let all = [types.python, types.torch, types.optimizers, types.tensors, types.arrays, types.scripts];
            all.into_iter().flatten().collect()
        })?;
    let mut warnings = [view.warnings.clone(), warnings].concat();
    let memory = &view.memory;
    let plain_header = python_layouts.iter().map(|layout| layout.object_size).min().unwrap_or_default();
    let mut processes: Vec<Process> = interpreters
        .par_iter()
        .map(|interpreter| {
            // PyTorch's objects begin with the header that all objects have; its numbers are for the plain one.
            let mut torch_layouts = torch_layouts.clone();
            let grown = interpreter.layout.object_size.wrapping_sub(plain_header);
            torch_layouts.iter_mut().for_each(|layout| layout.offsets.impl_pointer += grown);
            describe(interpreter, (&torch_layouts, &key_tables), &array_layouts, &script_layouts)
        })
        .collect();
    if let Addresses::Virtual(ProcessImage { pid, comm }) = &dump.addresses {
        for process in &mut processes {
            (process.pid, process.comm) = (*pid, comm.clone());
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
    digest::tensors(targets.zip(interpreters.iter().map(|interpreter| interpreter.space())), memory.size(), observer);
    memory.check()?;
    join_sightings(&mut processes);
    join_others(&mut processes);
    warnings.extend(processes.iter_mut().flat_map(|process| std::mem::take(&mut process.others.warnings)));
    warnings.extend(mapped::sentences(memory, &processes));
    let (memory, discovery) = (memory.clone(), view.discovery.clone());
    Ok(Recovery { memory, discovery, processes, other_pythons, warnings })
}

/// The types of an interpreter whose instances are looked for.
struct WantedTypes {
    /// Those that could be `module`, what `import` makes.
    python: BTreeSet<VirtAddr>,
    /// `torch.nn.Module` and all that derive from it.
    torch: BTreeSet<VirtAddr>,
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
    fn new(interpreter: &Interpreter<'_>, modules: &Modules) -> Self {
        Self {
            python: interpreter.module_types(),
            torch: model::module_types(interpreter),
            optimizers: model::optimizer_types(interpreter),
            tensors: model::tensor_types(interpreter, modules),
            arrays: model::array_types(interpreter, modules),
            scripts: model::script_types(interpreter),
        }
    }
}

/// What one interpreter holds; the bytes of tensors are not looked at yet.
fn describe(
    interpreter: &Interpreter<'_>,
    (torch_layouts, key_tables): (&[tensor::Layout], &[tensor::KeyTable]),
    array_layouts: &[tensor::ArrayLayout],
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
    let sample = tensor::Sample { tensors: &tensors, others: &others, headers: scripts.headers(), version: release };
    let chosen = tensor::choose(torch_layouts, &objects, &sample).map(|(layout, best, next)| {
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

/// Says so if no table reads the tensors of a process, or if several do and disagree.
fn without_table(process: &Process) -> Option<String> {
    let place = process.type_object.0;
    let Some((score, _)) = &process.torch_layout else {
        let tensors: usize = process.models.iter().map(|model| model.tensors.len()).sum();
        return (tensors > 0).then(|| {
            format!(
                "the PyTorch of the process with `type` at {place} has no layout file, and none could be inferred from its {tensors} tensors"
            )
        });
    };
    let TensorScore { readable, tried, others, version, inferred, changes, rivals, .. } = score;
    if *inferred {
        return Some(format!(
            "the PyTorch of the process with `type` at {place} has no layout file: one was inferred from that of {version} with {} numbers changed, which reads {readable} of {tried} tensors; recovery.json lists them",
            changes.len()
        ));
    }
    if !rivals.is_empty() {
        return Some(format!(
            "the layouts of PyTorch {version} and {} fit the tensors of the process with `type` at {place} equally well: what they read differently is left out",
            rivals.join(" and ")
        ));
    }
    (*readable + *others == 0 && *tried > 0).then(|| {
        format!(
            "no layout file reads any of the {tried} tensors of the process with `type` at {place}, and they are too few or too damaged to infer a layout from; what is said of each is by the layout {version}, the nearest to the version that its PyTorch gives"
        )
    })
}

/// Says so if the layout of an interpreter is no known one.
fn inferred_python(process: &Process) -> Option<String> {
    let LayoutScore { version, source, changes, readable, sampled, .. } = &process.python_layout.0;
    (*source == LayoutSource::Inferred).then(|| {
        format!(
            "the CPython whose `type` is at {} has no layout file: one was inferred from that of {version} with {} numbers changed, which reads {readable} of {sampled} classes; recovery.json lists them",
            process.type_object.0,
            changes.len()
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
