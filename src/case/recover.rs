//! The stage that finds the models of a dump, and the bytes of their tensors.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::headers::{self, HeaderComparison};
use super::{CaseError, Pythons, Spaces};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::cpython::{self, Interpreter, LayoutScore, LayoutSource};
use crate::diagnostic::{Address, Code, Diagnostic};
use crate::digest::{self, Target};
use crate::dump::{Addresses, Dump, PhysicalMemory, ProcessImage};
use crate::framework::{Facts, Findings, Frameworks, ImportedFramework};
use crate::linux::Machine;
use crate::mapped;
use crate::model::{self, Model, Sighting, StandaloneTensor, StandaloneTensors};
use crate::other_pythons::OtherPython;
use crate::paging::{AddressSpace, Discovery, SpaceKind};
use crate::progress::Observer;
use crate::scan::Backend;
use crate::signature::{Mmu, Signatures};
use crate::words::counted;

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
    pub warnings: Vec<Diagnostic>,
}

impl Recovery {
    /// The bytes of the processes' memory that are on a swap device and not in the dump. Shared memory counts in each process.
    pub fn swapped_bytes(&self) -> u64 {
        let mut budget = self.memory.size() / FRAME_SIZE;
        let of_processes = self.discovery.spaces.iter().filter(|space| space.kind == SpaceKind::Process);
        let swapped = of_processes.map_while(|space| {
            let space = AddressSpace::new(&self.memory, &self.mmu, space.root, space.levels);
            Some(space.residency(VirtAddr(0), VirtAddr(u64::MAX), &mut budget)?.swapped)
        });
        swapped.fold(0, u64::saturating_add)
    }
}

/// A process with Python, or with tensors that were found by their headers.
pub struct Process {
    /// Its memory, of which [`AddressSpace::is_freed`] says whether the process has ended.
    pub space: AddressSpace,
    /// Its id, where the dump says it.
    pub pid: Option<u32>,
    /// Its command's name, where the dump says it.
    pub comm: Option<String>,
    /// The Python that runs in it; `None` where none was found, or it can't be read.
    pub python: Option<PythonProcess>,
    /// The machine-learning frameworks that it has imported, by name.
    pub frameworks: Vec<ImportedFramework>,
    /// What those that are read say of themselves, and how their tensors were read.
    pub facts: Facts,
    /// Modules of networks that are alive in it.
    pub module_count: usize,
    /// Its models; one that several processes share is listed with the first of them.
    pub models: Vec<Model>,
    /// Models that are listed with another process and seen here as well.
    pub shared_models: Vec<String>,
    /// Its tensors and arrays that belong to no model; one that several processes share is listed with the first.
    pub standalone: StandaloneTensors,
    /// How the tensors that its headers give compare with those that Python leads to; `None` where no header was found.
    pub headers: Option<HeaderComparison>,
}

/// The Python of a process.
#[derive(Clone, Debug)]
pub struct PythonProcess {
    /// Address of `type`, and its physical address where addresses have one.
    pub type_object: (VirtAddr, Option<PhysAddr>),
    /// The version that its `sys.version` says; `None` if that can't be read.
    pub version: Option<String>,
    /// Layout that reads its objects, with score and runner-up.
    pub layout: (LayoutScore, Option<LayoutScore>),
    /// Type objects in it.
    pub type_count: usize,
}

impl Process {
    /// A process of which only its address space is known.
    pub(super) fn new(space: AddressSpace) -> Self {
        Self {
            space,
            pid: None,
            comm: None,
            python: None,
            frameworks: Vec::new(),
            facts: Facts::default(),
            module_count: 0,
            models: Vec::new(),
            shared_models: Vec::new(),
            standalone: StandaloneTensors::default(),
            headers: None,
        }
    }

    /// What warnings call it, and an address of it.
    fn in_words(&self) -> (String, Option<Address>) {
        match (&self.python, self.root()) {
            (Some(python), _) => {
                let at = python.type_object.0;
                (format!("the process with `type` at {at}"), Some(at.into()))
            }
            (None, Some(root)) => (format!("the process with the page tables at {root}"), Some(root.into())),
            (None, None) if self.space.is_freed() => ("a process that has ended".to_owned(), None),
            (None, None) => ("the process".to_owned(), None),
        }
    }

    /// The root of its page tables; `None` in the image of a process, and if it has ended.
    pub fn root(&self) -> Option<PhysAddr> {
        self.space.root()
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
    let frameworks = Frameworks::new(signatures)?;
    let wanted = |interpreter: &Interpreter| frameworks.wanted_types(interpreter);
    let pythons = Pythons::find(&spaces, signatures, backend, wanted, observer)?;
    models(dump, signatures, &frameworks, (&spaces, None, Some(&pythons)), backend, observer)
}

/// The models of interpreters that were found with [`Frameworks::wanted_types`], and those of tensors that have no other owner.
///
/// # Errors
/// The dump can no longer be read.
pub(crate) fn models(
    dump: &Dump,
    signatures: &Signatures,
    frameworks: &Frameworks,
    (spaces, machine, pythons): (&Spaces, Option<&Machine>, Option<&Pythons>),
    backend: Backend,
    observer: &dyn Observer,
) -> Result<Recovery, CaseError> {
    let memory: &PhysicalMemory = &spaces.memory;
    let of_pythons = pythons.iter().flat_map(|pythons| &pythons.warnings);
    let mut warnings: Vec<Diagnostic> = spaces.warnings.iter().chain(of_pythons).cloned().collect();
    let mut processes = pythons.map(|pythons| self::processes(frameworks, pythons)).unwrap_or_default();
    headers::add(&mut processes, frameworks, spaces, signatures, backend);
    if let Addresses::Virtual(ProcessImage { pid, comm, .. }) = &dump.addresses {
        for process in &mut processes {
            (process.pid, process.comm) = (*pid, comm.clone());
        }
    }
    for process in &mut processes {
        let Some((machine, root)) = machine.zip(process.root()) else { continue };
        if let Some(task) = spaces.process_of(machine, root) {
            (process.pid, process.comm) = (Some(task.pid()), Some(task.comm().to_owned()));
        }
    }
    warnings.extend(processes.iter().filter_map(inferred_python));
    warnings.extend(processes.iter().filter_map(|process| {
        let tensors = process.models.iter().map(|model| model.tensors.len()).sum();
        let (name, address) = process.in_words();
        process.facts.warnings((&name, address), tensors)
    }));
    let standalone = processes.iter_mut().flat_map(|process| &mut process.standalone.found);
    warnings.extend(model::limit(standalone, memory.size()));
    model::limit_models(processes.iter_mut().flat_map(|process| &mut process.models), memory.size());

    let count = processes.iter().map(|process| process.models.len()).sum();
    let spaces_of_them: Vec<AddressSpace> = processes.iter().map(|process| process.space.clone()).collect();
    let targets = processes.iter_mut().map(|process| {
        let models = process.models.iter_mut().flat_map(|model| Target::of_model(model, count));
        models.chain(Target::standalone(&mut process.standalone.found)).collect()
    });
    digest::tensors(targets.zip(spaces_of_them), memory.size(), observer);
    memory.check()?;
    join_sightings(&mut processes);
    join_standalone(&mut processes);
    warnings.extend(processes.iter_mut().flat_map(|process| std::mem::take(&mut process.standalone.warnings)));
    warnings.extend(processes.iter().flat_map(|process| {
        let standalone = process.standalone.found.iter().map(|found| &found.tensor);
        mapped::warnings(memory, &process.models, standalone)
    }));
    Ok(Recovery {
        memory: Arc::clone(&spaces.memory),
        mmu: Arc::clone(&spaces.mmu),
        discovery: spaces.discovery.clone(),
        processes,
        other_pythons: pythons.map(|pythons| pythons.others.clone()).unwrap_or_default(),
        warnings,
    })
}

/// What each interpreter holds; the bytes of tensors are not read.
pub(crate) fn processes(frameworks: &Frameworks, pythons: &Pythons) -> Vec<Process> {
    let plain_header = pythons.layouts.iter().map(|layout| layout.object_size).min().unwrap_or_default();
    let interpreters = pythons.interpreters.par_iter();
    interpreters.map(|interpreter| describe(interpreter, frameworks, plain_header)).collect()
}

/// What one interpreter holds; the bytes of tensors are not looked at yet.
fn describe(interpreter: &Interpreter, frameworks: &Frameworks, plain_header: i64) -> Process {
    let modules = interpreter.modules(&interpreter.module_types());
    let Findings { imported, facts, module_count, models, standalone } =
        frameworks.read(interpreter, &modules, plain_header);
    let type_at = interpreter.space().translate(interpreter.type_object).ok().map(|found| found.pa);
    let type_object = (interpreter.type_object, type_at.filter(|_| interpreter.space().root().is_some()));
    let python = PythonProcess {
        type_object,
        version: cpython::python_version(&interpreter.objects(), &modules),
        layout: interpreter.scores.clone(),
        type_count: interpreter.types.len(),
    };
    Process {
        python: Some(python),
        frameworks: imported,
        facts,
        module_count,
        models,
        standalone,
        ..Process::new(interpreter.space().clone())
    }
}

/// Says so if the layout of an interpreter is no known one.
fn inferred_python(process: &Process) -> Option<Diagnostic> {
    let python = process.python.as_ref()?;
    let LayoutScore { version, source, changes, readable, sampled, .. } = &python.layout.0;
    (*source == LayoutSource::Inferred).then(|| {
        let message = format!(
            "no layout file fits the CPython with `type` at {}: a layout inferred from the one for {version} ({} \
             changed) reads {readable} of {sampled} classes; recovery.json lists the changes",
            python.type_object.0,
            counted(changes.len(), "number", "numbers")
        );
        Diagnostic::new(Code::InferredPythonLayout, Some(python.type_object.0.into()), message)
    })
}

/// Lists a model that several processes hold at the same address with the same bytes, as after a
/// fork, once, and numbers the models.
fn join_sightings(processes: &mut [Process]) {
    // Not the names of classes or modules: what counts is that it is the same object with the same data.
    type Key = (VirtAddr, Option<String>, Vec<(String, Option<String>)>);
    let mut known: BTreeMap<Key, (usize, usize)> = BTreeMap::new();
    let mut sightings: BTreeMap<(usize, usize), Vec<Sighting>> = BTreeMap::new();
    let mut shared: Vec<(usize, (usize, usize))> = Vec::new();
    for (index, process) in processes.iter_mut().enumerate() {
        let mut first_seen: Vec<Model> = Vec::new();
        for model in std::mem::take(&mut process.models) {
            let bytes = model.all_tensors().map(|tensor| (tensor.name.clone(), tensor.sha256.clone())).collect();
            let here = (index, first_seen.len());
            let first = *known.entry((model.object, model.class.clone(), bytes)).or_insert(here);
            sightings.entry(first).or_default().push(Sighting { root: process.root(), object: model.object });
            if first == here {
                first_seen.push(model);
            } else {
                shared.push((index, first));
            }
        }
        process.models = first_seen;
    }
    let mut number = 0;
    let mut ids = BTreeMap::new();
    for (index, process) in processes.iter_mut().enumerate() {
        for (position, model) in process.models.iter_mut().enumerate() {
            model.id = format!("m{number}");
            model.sightings = sightings.remove(&(index, position)).unwrap_or_default();
            ids.insert((index, position), model.id.clone());
            number += 1;
        }
    }
    for (index, first) in shared {
        if let (Some(process), Some(id)) = (processes.get_mut(index), ids.get(&first)) {
            process.shared_models.push(id.clone());
        }
    }
}

/// Lists a tensor or an array that several processes hold at the same address with the same bytes once.
fn join_standalone(processes: &mut [Process]) {
    type Key = (VirtAddr, Option<VirtAddr>, Vec<u64>, Option<String>);
    let mut known: BTreeMap<Key, Vec<Sighting>> = BTreeMap::new();
    let key = |found: &StandaloneTensor| -> Key {
        let info = found.tensor.info.as_ref();
        let shape = info.map(|info| &info.shape).or(found.array.as_ref().map(|array| &array.shape));
        let header = info.map(|info| info.header);
        (found.tensor.object, header, shape.cloned().unwrap_or_default(), found.tensor.sha256.clone())
    };
    for process in processes.iter_mut() {
        let root = process.root();
        process.standalone.found.retain(|found| {
            let sighting = Sighting { root, object: found.tensor.object };
            let sightings = known.entry(key(found)).or_default();
            sightings.push(sighting);
            sightings.len() == 1
        });
    }
    for found in processes.iter_mut().flat_map(|process| &mut process.standalone.found) {
        found.sightings = known.remove(&key(found)).unwrap_or_default();
    }
}
