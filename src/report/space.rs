//! Room on the disk of the output folder.

use std::io;
use std::path::Path;

/// Bytes that this user may still write to the file system of `folder`.
pub(super) fn free(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
