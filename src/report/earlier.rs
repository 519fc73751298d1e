//! What an earlier run left in the output folder: known by its manifest, and removed file by file.
//!
//! `--overwrite` must never cost anybody a file of their own. Only files that the manifest of the earlier run lists are removed,
//! only if they have names that we give and the size that they were written with. Any other file is a reason to refuse.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::assignment::WeightFile;
use super::error::OutputError;
use super::folder::STAGING;
use super::standalone;

/// The document that says that the output is complete.
pub(super) const RECOVERY: &str = "recovery.json";
/// The document that says how the output came about, and what belongs to it.
pub(super) const MANIFEST: &str = "manifest.json";
/// The folder of the models.
pub(super) const MODELS: &str = "models";
/// Files that we write per model, beside those of weights.
const MODEL_FILES: [&str; 2] = ["model.json", "load.py"];
/// What Python leaves when `load.py` is imported.
const PYCACHE: &str = "__pycache__";

/// What there is to remove, in this order.
#[derive(Default)]
pub(super) struct Earlier {
    files: Vec<PathBuf>,
    /// Inner ones first.
    folders: Vec<PathBuf>,
}

/// What is read of the manifest of an earlier run.
#[derive(Deserialize)]
struct Listed {
    tool: String,
    /// Files by their path in the folder, with their sizes in bytes.
    output: BTreeMap<String, u64>,
}

impl Earlier {
    /// What an earlier run left in `folder`, which is not empty.
    pub(super) fn find(folder: &Path) -> Result<Self, OutputError> {
        let names = entries(folder)?;
        if names.iter().all(|name| name == STAGING) {
            // Interrupted before it had written anything in its place.
            return Ok(Self::default());
        }
        let manifest = folder.join(MANIFEST);
        let listed = manifest_of(&manifest).ok_or_else(|| OutputError::NotOurs(folder.to_owned()))?;
        let is_listed = |path: &Path| {
            let relative = path.strip_prefix(folder).ok().and_then(Path::to_str);
            let size = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len());
            size.is_some() && relative.and_then(|relative| listed.output.get(relative)) == size.as_ref()
        };
        // The sign of completeness goes first; without the manifest, nothing would say whose the other files are.
        let mut earlier = Self::default();
        let weights = WeightFile::OF_STANDALONE.map(WeightFile::name);
        for name in names.iter().filter(|name| *name != STAGING && *name != MANIFEST && *name != MODELS) {
            let path = folder.join(name);
            let is_our_name = [RECOVERY, standalone::FILE].contains(&name.as_str()) || weights.contains(&name.as_str());
            if !is_our_name || !is_listed(&path) {
                return Err(OutputError::Foreign(path));
            }
            earlier.files.push(path);
        }
        earlier.files.sort_by_key(|path| !path.ends_with(RECOVERY));
        let models = folder.join(MODELS);
        if names.iter().any(|name| name == MODELS) {
            for model in entries(&models)? {
                earlier.model(&models.join(model), &is_listed)?;
            }
            earlier.folders.push(models);
        }
        earlier.files.push(manifest);
        Ok(earlier)
    }

    fn model(&mut self, folder: &Path, is_listed: &dyn Fn(&Path) -> bool) -> Result<(), OutputError> {
        let id = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_id = id.strip_prefix('m').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let names = if is_folder(folder) { entries(folder)? } else { Vec::new() };
        // Each model has files of ours; an empty folder is somebody else's.
        if !is_id || names.is_empty() {
            return Err(OutputError::Foreign(folder.to_owned()));
        }
        for name in names {
            let path = folder.join(&name);
            let weights = WeightFile::OF_MODEL.map(WeightFile::name);
            let is_our_name = MODEL_FILES.contains(&name.as_str()) || weights.contains(&name.as_str());
            if is_our_name && is_listed(&path) {
                self.files.push(path);
            } else if name == PYCACHE && is_folder(&path) {
                for compiled in entries(&path)? {
                    let file = path.join(&compiled);
                    let is_of_loader = compiled.starts_with("load.") && compiled.ends_with(".pyc");
                    if !is_of_loader || !is_file(&file) {
                        return Err(OutputError::Foreign(file));
                    }
                    self.files.push(file);
                }
                self.folders.push(path);
            } else {
                return Err(OutputError::Foreign(path));
            }
        }
        self.folders.push(folder.to_owned());
        Ok(())
    }

    pub(super) fn remove(&self) -> Result<(), OutputError> {
        for path in &self.files {
            fs::remove_file(path).map_err(|e| OutputError::io(path, "remove the file of an earlier run", e))?;
        }
        for path in &self.folders {
            fs::remove_dir(path).map_err(|e| OutputError::io(path, "remove the folder of an earlier run", e))?;
        }
        Ok(())
    }
}

/// All files below a folder by their path in it, with their sizes in bytes; what is neither file nor folder is left out.
pub(super) fn sizes(folder: &Path) -> Result<BTreeMap<String, u64>, OutputError> {
    let mut sizes = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(inner) = todo.pop() {
        for name in entries(&folder.join(&inner))? {
            let relative = if inner.is_empty() { name } else { format!("{inner}/{name}") };
            let path = folder.join(&relative);
            let metadata = fs::symlink_metadata(&path).map_err(|e| OutputError::io(&path, "read its size", e))?;
            if metadata.is_dir() {
                todo.push(relative);
            } else if metadata.is_file() {
                sizes.insert(relative, metadata.len());
            }
        }
    }
    Ok(sizes)
}

/// The names in a folder, sorted; a name that is no text is a stranger's.
pub(super) fn entries(folder: &Path) -> Result<Vec<String>, OutputError> {
    if !is_folder(folder) {
        return Err(OutputError::Foreign(folder.to_owned()));
    }
    let failed = |e| OutputError::io(folder, "list the folder", e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().into_string();
        names.push(name.map_err(|_| OutputError::Foreign(entry.path()))?);
    }
    names.sort();
    Ok(names)
}

// A link is neither: what it leads to is not ours to remove. The output folder itself may be one.
fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// The manifest of an earlier run, if it is one.
fn manifest_of(path: &Path) -> Option<Listed> {
    let file = is_file(path).then(|| File::open(path).ok()).flatten()?;
    let listed: Listed = serde_json::from_reader(BufReader::new(file)).ok()?;
    (listed.tool == super::TOOL && listed.output.contains_key(RECOVERY)).then_some(listed)
}
