//! What an analyst gets: the output folder, and the same as text.
//!
//! ```text
//! OUT/recovery.json                    everything found; the same bytes for the same input
//!     manifest.json                    how it came about: tool, arguments, host, times, hash of the input, sizes of the files
//!     models/m0/model.safetensors      complete tensors under their state_dict names
//!               partial.safetensors    tensors with holes, which are zeros there; only if there are any
//!               buffers.safetensors    buffers that state_dict leaves out; only if there are any
//!               grads.safetensors      gradients under their parameters' names; only if there are any
//!               optimizer.safetensors  what optimizers keep, as <parameter>.<key>; only if there is any
//!               parts.safetensors      parts of tensors that safetensors has no type for; only if there are any
//!               partial_grads.safetensors, partial_optimizer.safetensors    the same, with holes
//!               model.json             the tree of modules
//!               load.py                builds the modules with PyTorch's classes and loads the weights
//!     tensors.json                     tensors and NumPy arrays that belong to no model, and what refers to them
//!     tensors.safetensors              their bytes; partial_tensors.safetensors: with holes; only if there are any
//! ```
//!
//! Nothing that a dump says becomes a path or code: models are numbered by us, names are data.

mod assignment;
mod document;
mod earlier;
mod error;
mod file;
mod folder;
mod json;
mod keys;
mod lines;
mod manifest;
mod memory;
mod model;
mod process;
mod space;
mod standalone;
mod table;
mod tensor;
mod time;
mod tree;
mod weights;

pub use document::print_json;
pub use error::OutputError;
pub use file::NewFile;
pub use folder::{Cleanup, OutputFolder};
pub use lines::{print_csv, print_jsonl};
pub use manifest::{Division, FileHash, PieceHash, Run, WorkerShare};
pub use standalone::FILE as STANDALONE;
pub use table::{columns, human_bytes, models_table, process_name};
pub use time::rfc3339;

pub use crate::words::printable;

use std::path::Path;

use assignment::{Assignment, WeightFile};
use weights::Place;

use crate::case;
use crate::diagnostic::Diagnostic;
use crate::dump::Dump;
use crate::model::{Model, Status};
use crate::paging::VirtualMemory;
use crate::progress::{Observer, Phase, Silent};
use crate::recover::{Process, Recovery};

/// Version of the form of our documents.
pub const SCHEMA_VERSION: u32 = 1;
/// Our name in them.
const TOOL: &str = "tensorcarve";
/// The program that loads a model; the same for all, it reads `model.json` beside it.
const LOADER: &str = include_str!("load.py");

/// Writes everything that was found, and completes the folder.
///
/// `run` is called when all but the manifest is written, so that it can tell the time that took.
///
/// # Errors
/// A file could not be written, or the dump changed meanwhile; the folder is then as it was before.
pub fn write(
    folder: OutputFolder,
    dump: &Dump,
    recovery: &Recovery,
    observer: &dyn Observer,
    run: impl FnOnce() -> Run,
) -> Result<(), OutputError> {
    let written = write_all(&folder, dump, recovery, observer, run);
    // Before any other error, which it explains, and before anything is in its place.
    dump.memory.check()?;
    written?;
    folder.finish()
}

/// Writes all files aside.
fn write_all(
    folder: &OutputFolder,
    dump: &Dump,
    recovery: &Recovery,
    observer: &dyn Observer,
    run: impl FnOnce() -> Run,
) -> Result<(), OutputError> {
    let models =
        || recovery.processes.iter().flat_map(|process| process.models.iter().map(move |model| (process, model)));
    let standalone = standalone::assignments(recovery);
    let of_models = models().map(|(_, model)| weights::size(&assignment::assign_model(model)));
    let total = of_models.fold(weights::size(&standalone), u64::saturating_add);
    observer.begin(Phase::Write, total);
    folder.reserve(total)?;
    for (process, model) in models() {
        write_model(folder, recovery, (process, model), observer)?;
    }
    if !standalone.is_empty() {
        let spaces = standalone::all(recovery).map(|(process, _)| &process.space as _);
        let here: Vec<(&Assignment<'_>, &dyn VirtualMemory)> = standalone.iter().zip(spaces).collect();
        weights::write(folder, &Place::Top, &WeightFile::OF_STANDALONE, &here, observer)?;
        folder.json(
            standalone::FILE,
            standalone::DEPTH,
            &standalone::StandaloneDocument::new(recovery, &standalone),
        )?;
    }
    folder.json(earlier::RECOVERY, document::DEPTH, &document::Document::new(dump, recovery))?;
    let run = run();
    folder.json(earlier::MANIFEST, 2, &manifest::Manifest::new(dump, recovery, &run, folder.written()?))
}

/// Writes the files of one model.
fn write_model(
    folder: &OutputFolder,
    recovery: &Recovery,
    (process, model): (&Process, &Model),
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let assignments = assignment::assign_model(model);
    let here: Vec<(&Assignment<'_>, &dyn VirtualMemory)> =
        assignments.iter().map(|assignment| (assignment, &process.space as _)).collect();
    weights::write(folder, &Place::Model(&model.id), &WeightFile::OF_MODEL, &here, observer)?;
    let held = standalone::held_by(recovery, model);
    folder.json(&format!("{}/model.json", model_dir(model)), 3, &tree::TreeDocument::new(model, &held))?;
    let mut loader = folder.file(&format!("{}/load.py", model_dir(model)))?;
    loader.write(LOADER.as_bytes())?;
    loader.close()
}

impl case::Model {
    /// Writes what `recover` writes of a model to a folder, which must be empty or not exist.
    ///
    /// # Errors
    /// A file could not be written, or the dump changed meanwhile; the folder is then as it was before.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), OutputError> {
        let folder = OutputFolder::create(folder.as_ref(), false)?;
        let written = write_model(&folder, self.recovery(), (self.process(), self.data()), &Silent);
        self.case().dump().memory.check()?;
        written?;
        folder.finish()
    }
}

/// Whether all of every model that was found could be read.
pub fn is_whole(recovery: &Recovery) -> bool {
    let of = |is_wanted: fn(&Process) -> bool| {
        recovery.processes.iter().filter(move |process| is_wanted(process)).flat_map(|process| &process.models)
    };
    // What is left of ended processes is an addition, if there is anything else.
    let mut living = of(|process| !process.space.is_freed()).peekable();
    if living.peek().is_some() { living.all(model::is_whole) } else { of(|_| true).all(model::is_whole) }
}

/// Whether `load.py` of a model can load all weights without `--partial`.
pub fn is_loadable(model: &Model) -> bool {
    let assignments = assignment::assign_model(model);
    let mut tensors = assignments.iter().take(model.tensors.len());
    model.problems.is_empty() && tensors.all(|assignment| assignment.status() == Status::Complete)
}

/// The folder of a model within the output folder.
pub fn model_dir(model: &Model) -> String {
    model_folder(&model.id)
}

fn model_folder(id: &str) -> String {
    format!("{}/{id}", earlier::MODELS)
}

/// All that an analyst should know.
pub fn warnings<'a>(dump: &'a Dump, recovery: &'a Recovery) -> impl Iterator<Item = &'a Diagnostic> {
    let all = [&dump.warnings, &recovery.discovery.warnings, &recovery.warnings];
    all.into_iter().flatten()
}
