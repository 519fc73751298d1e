//! What an earlier run left in the output folder: told by its content, and removed file by file.
//!
//! `--overwrite` must never cost anybody a file of their own, so only names that we write are
//! removed, only where a `recovery.json` of ours says whose the folder is, and a stranger among
//! them is a reason to refuse.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::error::OutputError;
use super::folder::STAGING;
use super::plan::WeightFile;

/// The document that says that the output is complete.
pub(super) const RECOVERY: &str = "recovery.json";
/// The folder of the models.
pub(super) const MODELS: &str = "models";
/// Files that we write beside `recovery.json`.
const FILES: [&str; 3] = ["manifest.json", "tensors.safetensors", "tensors.json"];
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

impl Earlier {
    /// What an earlier run left in `folder`, which is not empty.
    pub(super) fn find(folder: &Path) -> Result<Self, OutputError> {
        let names = entries(folder)?;
        if names.iter().all(|name| name == STAGING) {
            // Interrupted before it had written anything in its place.
            return Ok(Self::default());
        }
        if !is_ours(&folder.join(RECOVERY)) {
            return Err(OutputError::NotOurs(folder.to_owned()));
        }
        // The sign of completeness goes first.
        let mut earlier = Self { files: vec![folder.join(RECOVERY)], folders: Vec::new() };
        for path in FILES.map(|name| folder.join(name)) {
            match (is_file(&path), fs::symlink_metadata(&path).is_ok()) {
                (true, _) => earlier.files.push(path),
                (false, true) => return Err(OutputError::Foreign(path)),
                (false, false) => {}
            }
        }
        let models = folder.join(MODELS);
        if fs::symlink_metadata(&models).is_ok() {
            for model in entries(&models)? {
                earlier.model(&models.join(model))?;
            }
            earlier.folders.push(models);
        }
        Ok(earlier)
    }

    fn model(&mut self, folder: &Path) -> Result<(), OutputError> {
        let id = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_id = id.strip_prefix('m').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        if !is_id || !is_folder(folder) {
            return Err(OutputError::Foreign(folder.to_owned()));
        }
        for name in entries(folder)? {
            let path = folder.join(&name);
            let weights = WeightFile::ALL.map(WeightFile::name);
            if (MODEL_FILES.contains(&name.as_str()) || weights.contains(&name.as_str())) && is_file(&path) {
                self.files.push(path);
            } else if name == PYCACHE && is_folder(&path) {
                for compiled in entries(&path)? {
                    let file = path.join(&compiled);
                    if !compiled.ends_with(".pyc") || !is_file(&file) {
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

/// Whether the file begins as our document does, whatever its blanks.
fn is_ours(path: &Path) -> bool {
    let read = || -> io::Result<String> {
        let mut start = Vec::new();
        fs::File::open(path)?.take(256).read_to_end(&mut start)?;
        Ok(start.into_iter().filter(|byte| byte.is_ascii_graphic()).map(char::from).collect())
    };
    is_file(path)
        && read().is_ok_and(|start| {
            start.starts_with("{\"schema_version\":") && start.contains(",\"tool\":\"tensorcarve\",")
        })
}
