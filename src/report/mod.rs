//! What an analyst gets: the output folder, and the same as text.
//!
//! ```text
//! OUT/recovery.json                    everything found; the same bytes for the same input
//!     manifest.json                    how it came about: tool, arguments, host, times, hash of the input
//!     models/m0/model.safetensors      complete tensors under their state_dict names
//!               partial.safetensors    tensors with holes, which are zeros there; only if there are any
//!               buffers.safetensors    buffers that state_dict leaves out; only if there are any
//!               grads.safetensors      gradients under their parameters' names; only if there are any
//!               optimizer.safetensors  what optimizers keep, as <parameter>.<key>; only if there is any
//!               partial_grads.safetensors, partial_optimizer.safetensors    the same, with holes
//!               model.json             the tree of modules
//!               load.py                builds the modules with PyTorch's classes and loads the weights
//! ```
//!
//! Nothing that a dump says becomes a path or code: models are numbered by us, names are data.

mod document;
mod earlier;
mod error;
mod folder;
mod json;
mod lines;
mod manifest;
mod plan;
mod rows;
mod space;
mod table;
mod time;
mod tree;
mod weights;

pub use document::print_json;
pub use error::OutputError;
pub use folder::{Cleanup, OutputFolder};
pub use lines::{print_csv, print_jsonl};
pub use manifest::Run;
pub use table::{bytes_in_words, columns, models_table, printable, process_name};
pub use time::rfc3339;
pub use weights::hex;

use crate::dump::Dump;
use crate::model::Model;
use crate::recover::{Observer, Phase, Recovery};
use crate::signature::Mmu;

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
    mmu: &Mmu,
    recovery: &Recovery,
    observer: &dyn Observer,
    run: impl FnOnce() -> Run,
) -> Result<(), OutputError> {
    let models =
        || recovery.processes.iter().flat_map(|process| process.models.iter().map(move |model| (process, model)));
    let total = models().map(|(_, model)| weights::size(model)).fold(0, u64::saturating_add);
    observer.begin(Phase::Write, total);
    folder.reserve(total)?;
    for (process, model) in models() {
        let space = process.space(&recovery.memory, mmu);
        weights::write(&folder, model, &space, observer)?;
        folder.json(&format!("{}/model.json", model_dir(model)), 3, &tree::TreeDocument::new(model))?;
        let mut loader = folder.file(&format!("{}/load.py", model_dir(model)))?;
        loader.write(LOADER.as_bytes())?;
        loader.close()?;
    }
    folder.json(earlier::RECOVERY, document::DEPTH, &document::Document::new(dump, recovery))?;
    let run = run();
    folder.json("manifest.json", 2, &manifest::Manifest::new(dump, recovery, &run))?;
    folder.finish()
}

/// Whether all of every model that was found could be read.
pub fn is_whole(recovery: &Recovery) -> bool {
    recovery.processes.iter().flat_map(|process| &process.models).all(rows::is_whole)
}

/// The folder of a model within the output folder.
pub fn model_dir(model: &Model) -> String {
    format!("{}/{}", earlier::MODELS, model.id)
}

/// All that an analyst should know, in words.
pub fn warnings<'a>(dump: &'a Dump, recovery: &'a Recovery) -> impl Iterator<Item = &'a str> {
    let all = [&dump.warnings, &recovery.discovery.warnings, &recovery.warnings];
    all.into_iter().flatten().map(String::as_str)
}
