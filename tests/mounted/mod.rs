//! A small file system in memory, for a disk that is full or read-only; only root may mount one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Mounted until it is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts one at a folder; without the right to do so says that the test is skipped.
    pub fn new(at: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        match Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output() {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            _ => {
                eprintln!("skipped: mounting a file system needs root");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().unwrap();
    }
}
