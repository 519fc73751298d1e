//! Progress of long work.

/// A part of the work, for progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Unpacking a compressed dump.
    Unpack,
    /// The one pass over all memory.
    Scan,
    /// Page-table roots and address spaces.
    Paging,
    /// The kernel's records of processes.
    Linux,
    /// Interpreters, types and modules.
    Cpython,
    /// Headers of tensors, and hashes of their bytes.
    Tensors,
    /// Writing the output folder.
    Write,
    /// Hashes of the dump itself.
    Hash,
}

impl Phase {
    /// Its name, for people and for the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unpack => "unpack",
            Self::Scan => "scan",
            Self::Paging => "paging",
            Self::Linux => "linux",
            Self::Cpython => "cpython",
            Self::Tensors => "tensors",
            Self::Write => "write",
            Self::Hash => "hash",
        }
    }
}

/// Receives progress; called from several threads.
pub trait Observer: Sync {
    /// A phase begins; `total` is its size in bytes, or 0 if unknown.
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
