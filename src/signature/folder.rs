//! A user's signature files.

use std::path::{Path, PathBuf};

use super::error::SignatureError;

/// Name and text of a file or, of a folder, of the `.toml` files in it and in the folders right below it, in the order of their paths.
pub(super) fn read(folder: &Path) -> Result<Vec<(String, String)>, SignatureError> {
    let mut paths = Vec::new();
    let entries_or_file = if folder.is_file() { vec![folder.to_owned()] } else { entries(folder)? };
    for path in entries_or_file {
        if path.is_dir() {
            paths.extend(entries(&path)?.into_iter().filter(|below| is_signature_file(below)));
        } else if is_signature_file(&path) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(SignatureError::Empty(folder.to_owned()));
    }
    paths
        .into_iter()
        .map(|path| match std::fs::read_to_string(&path) {
            Ok(text) => Ok((path.display().to_string(), text)),
            Err(source) => Err(SignatureError::Unreadable { path, source }),
        })
        .collect()
}

fn is_signature_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml") && path.is_file()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, SignatureError> {
    let unreadable = |source| SignatureError::Unreadable { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    paths.sort();
    Ok(paths)
}
