//! Room on the disk of the output folder.

use std::io;
use std::path::Path;

use super::error::OutputError;

/// Bytes that this user may still write to the file system of `folder`.
pub(super) fn free(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Checks that there is room for that many bytes more in the file system of `folder`; `path` is what they are for.
pub(super) fn reserve(folder: &Path, path: &Path, need: u64) -> Result<(), OutputError> {
    match free(folder) {
        Ok(free) if free < need => {
            Err(OutputError::NoSpace { path: path.to_owned(), need: Some(need), free: Some(free) })
        }
        _ => Ok(()),
    }
}
