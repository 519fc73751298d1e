//! The main job: from a dump to the models in it.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::cpython::{
    self, Builtins, Candidate, Holders, Interpreter, LayoutScore, LayoutSource, Modules, Sweeper, UnsoundOffset,
};
use crate::digest::{self, Target};
use crate::dump::{Addresses, Dump, DumpError, Format, PhysicalMemory, ProcessImage};
use crate::linux::{self, Machine};
use crate::mapped;
use crate::model::{self, Model, Others, Sighting};
use crate::other_pythons::{self, OtherPython};
use crate::paging::{self, AddressSpace, Discovery, Placement, SpaceKind};
use crate::scan::{self, Backend, FrameClasses, Hit, ScanResult, ZERO_FRAME};
use crate::signature::{Mmu, Signatures};
use crate::tensor::{self, TensorScore};

/// The signatures of CPython's `type` object, or what their names begin with, and of the cookie before what it tells.
const TYPE_SIGNATURE: &str = "cpython.type";
const DEBUG_OFFSETS: &str = "cpython.debug_offsets";
/// The signature of the name of a module that every PyPy has.
const PYPY_NAME: &str = "pypy.module_name";
/// Page tables and mappings of a space per frame of the dump, and at least, before it is taken for hostile.
const MAPPINGS_PER_FRAME: u64 = 4;
const MIN_MAPPINGS: u64 = 1 << 16;
/// Tensors that choose the layout where there is no module.
const TENSOR_SAMPLE: usize = 1 << 10;
/// What is wrong with a file without headers that can't be placed.
const UNPLACED: &str = "more than half of the page tables' targets lie outside of the file: it was written without the holes between the ranges of memory, or cut off; take it in LiME or ELF format, or with the holes as zeros";

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
    /// Its id, where the dump says it or the kernel's memory does.
    pub pid: Option<u32>,
    /// Its command's name, likewise.
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
    #[error("the signatures have no structure {TYPE_SIGNATURE}: no interpreter can be found without it")]
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
    let mmu = signatures.mmu().ok_or(RecoverError::NoMmu)?;
    signatures.index_of(TYPE_SIGNATURE).ok_or(RecoverError::NoTypeSignature)?;
    let python_layouts = cpython::layouts(signatures)?;
    let torch_layouts = tensor::layouts(signatures)?;
    let key_tables = tensor::key_tables(signatures)?;
    let array_layouts = tensor::array_layouts(signatures)?;
    let script_layouts = model::ScriptLayouts::new(signatures)?;

    let View { memory, found, discovery, mut warnings } = View::new(dump, mmu, signatures, backend, observer);
    let (memory, mmu) = (&memory, &discovery.rules(mmu));
    memory.check()?;

    observer.begin(Phase::Cpython, 0);
    let spaces: Vec<AddressSpace<'_>> = match &dump.addresses {
        Addresses::Physical => {
            discovery.spaces.iter().map(|space| AddressSpace::new(memory, mmu, space.root, space.levels)).collect()
        }
        Addresses::Virtual(_) => vec![AddressSpace::of_image(memory)],
    };
    let hits = |is_wanted: &dyn Fn(&str) -> bool| -> Vec<Hit> {
        let hits = found.hits.iter().filter(|hit| signatures.name(hit.signature).is_some_and(is_wanted));
        hits.copied().collect()
    };
    let types = hits(&|name| name.starts_with(TYPE_SIGNATURE));
    let mut candidates = cpython::candidates(memory, &types, &spaces, &python_layouts);
    let limit = MAPPINGS_PER_FRAME * found.frames.len() as u64 + MIN_MAPPINGS;
    let mut other_pythons = other_pythons::python2(&mut candidates, signatures, limit);
    let of_processes = discovery.spaces.iter().zip(&spaces).filter(|(found, _)| found.kind == SpaceKind::Process);
    let process_spaces: Vec<AddressSpace<'_>> = match &dump.addresses {
        Addresses::Physical => of_processes.map(|(_, space)| *space).collect(),
        Addresses::Virtual(_) => spaces.clone(),
    };
    other_pythons.extend(other_pythons::pypys(&process_spaces, &hits(&|name| name == PYPY_NAME), limit));
    let searched = memory.searchable();
    let (sweeper, left_out) = Sweeper::new(&searched, backend, &candidates, limit);
    for root in left_out.into_iter().filter_map(|index| candidates.get(index)?.space.root()) {
        warnings.push(format!("the page tables under {root} map more than the dump can hold: left out"));
    }
    let unsound = cpython::ask(&mut candidates, &hits(&|name| name == DEBUG_OFFSETS), &sweeper, signatures);
    warnings
        .extend(unsound.into_iter().filter_map(|(index, found)| Some(unsound_offsets(candidates.get(index)?, &found))));
    let (interpreters, unread) = cpython::interpreters(&candidates, &python_layouts, &sweeper, |interpreter| {
        let types = WantedTypes::new(interpreter, &interpreter.modules(&interpreter.module_types()));
        let all = [types.python, types.torch, types.optimizers, types.tensors, types.arrays, types.scripts];
        all.into_iter().flatten().collect()
    });
    let unreadable = unread.into_iter().filter_map(|index| candidates.get(index)).map(OtherPython::unreadable);
    // What looks like CPython in a process of PyPy is its imitation of CPython's C API.
    let unreadable: Vec<OtherPython> =
        unreadable.filter(|found| other_pythons.iter().all(|other| other.root != found.root)).collect();
    other_pythons.extend(unreadable);
    warnings.extend(other_pythons.iter().map(OtherPython::warning));
    memory.check()?;
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
    } else if !processes.is_empty()
        && let Ok(machine) = Machine::find(memory, mmu, &discovery, &btf_hits(&found, signatures), backend)
    {
        for process in &mut processes {
            if let Some(found) = process.root.and_then(|root| machine.process_of(root)) {
                (process.pid, process.comm) = (Some(found.pid()), Some(found.comm().to_owned()));
            }
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
    Ok(Recovery { memory: memory.clone(), discovery, processes, other_pythons, warnings })
}

/// Memory with the addresses that are used, and what was found in it at first.
pub struct View {
    /// That of the dump; of a file without headers with the addresses that its page tables give.
    pub memory: PhysicalMemory,
    /// What the one pass found.
    pub found: ScanResult,
    /// The address spaces; none in the image of a process.
    pub discovery: Discovery,
    /// What an analyst should know, in words.
    pub warnings: Vec<String>,
}

impl View {
    /// Scans a dump and finds its address spaces.
    pub fn new(dump: &Dump, mmu: &Mmu, signatures: &Signatures, backend: Backend, observer: &dyn Observer) -> Self {
        match &dump.addresses {
            Addresses::Physical => of_machine(dump, mmu, signatures, backend, observer),
            Addresses::Virtual(_) => Self {
                found: one_pass(&dump.memory.searchable(), signatures, backend, observer),
                memory: dump.memory.clone(),
                discovery: Discovery::default(),
                warnings: Vec::new(),
            },
        }
    }
}

/// Physical addresses at which the kernel's own type information may begin.
pub fn btf_hits(found: &ScanResult, signatures: &Signatures) -> Vec<PhysAddr> {
    let index = signatures.index_of(linux::BTF_SIGNATURE);
    found.hits.iter().filter(|hit| Some(hit.signature) == index).map(|hit| hit.address).collect()
}

/// Looks at the dump of a machine; where it is a file without headers, finds out the addresses first.
fn of_machine(dump: &Dump, mmu: &Mmu, signatures: &Signatures, backend: Backend, observer: &dyn Observer) -> View {
    let look = |memory: &PhysicalMemory| {
        let mut found = one_pass(memory, signatures, backend, observer);
        observer.begin(Phase::Paging, 0);
        let classes = std::mem::take(&mut found.frames);
        let (classes, discovery) = paging::find_spaces(memory, signatures, mmu, classes, backend);
        found.frames = classes;
        (found, discovery)
    };
    let mut memory = dump.memory.clone();
    let mut warnings = Vec::new();
    let (mut found, mut discovery) = look(&memory);
    // What lies above a hole that ends at 4 GiB has bit 32 set, which looks like encryption: the better reading counts.
    if dump.format == Format::Raw && (discovery.encryption_bit.is_some() || !discovery.is_convincing()) {
        match paging::place(&memory, signatures, backend, &discovery) {
            Placement::AsItIs => {}
            Placement::Ranges(ranges) => {
                if let Ok(placed) = memory.with_ranges(ranges) {
                    memory = placed;
                    (found, discovery) = look(&memory);
                    warnings.push(placed_file(&memory));
                }
            }
            Placement::Unknown => {
                discovery.is_unplaced = true;
                warnings.push(UNPLACED.to_owned());
            }
        }
    }
    warnings.extend(zeros(&memory, &found.frames));
    View { memory, found, discovery, warnings }
}

/// Says where the ranges of a file without headers lie.
fn placed_file(memory: &PhysicalMemory) -> String {
    let ranges = memory.ranges().iter();
    let ranges: Vec<String> =
        ranges.map(|range| format!("{} to {} from offset {} on", range.start, range.end, range.offset)).collect();
    format!(
        "offsets in the file are not physical addresses: memory was written without its holes; by its page tables the file holds {}; the rest is left out",
        ranges.join(", and ")
    )
}

/// The one pass over memory.
fn one_pass(memory: &PhysicalMemory, signatures: &Signatures, backend: Backend, observer: &dyn Observer) -> ScanResult {
    observer.begin(Phase::Scan, memory.size());
    scan::scan(memory, signatures, backend, &|bytes| observer.advance(bytes))
}

/// Says so if most of the dump is one run of zeros: a capture that gave up looks like that.
fn zeros(memory: &PhysicalMemory, frames: &FrameClasses) -> Option<String> {
    let mut longest = PhysAddr(0)..PhysAddr(0);
    let mut run = longest.clone();
    for (frame, _) in frames.with(ZERO_FRAME) {
        if frame != run.end {
            run.start = frame;
        }
        run.end = PhysAddr(frame.0 + FRAME_SIZE);
        if run.end.0 - run.start.0 > longest.end.0 - longest.start.0 {
            longest = run.clone();
        }
    }
    let len = longest.end.0 - longest.start.0;
    (len > memory.size() / 2).then(|| {
        format!(
            "{} to {} ({} of {} MiB) holds nothing but zeros: free memory, or a capture that gave up (LiME writes zeros when a page takes longer than its `timeout`; `timeout=0` waits)",
            longest.start,
            longest.end,
            len >> 20,
            memory.size() >> 20
        )
    })
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

/// Says that what an interpreter tells of itself contradicts itself.
fn unsound_offsets(candidate: &Candidate<'_>, (address, reason): &(VirtAddr, UnsoundOffset)) -> String {
    format!(
        "the CPython whose `type` is at {} is read without its own _Py_DebugOffsets at {address}: in them {reason}",
        candidate.type_object
    )
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
