//! The main job: from a dump to the models in it.

use crate::addr::{PhysAddr, VirtAddr};
use crate::cpython::LayoutScore;
use crate::dump::Dump;
use crate::model::Model;
use crate::paging::Discovery;
use crate::scan::Backend;
use crate::signature::Signatures;
use crate::tensor::TensorScore;

/// Everything that was found in a dump.
pub struct Recovery {
    /// The address spaces, and how they were found.
    pub discovery: Discovery,
    /// The interpreters, each with its models.
    pub processes: Vec<Process>,
    /// What an analyst should know, in words.
    pub warnings: Vec<String>,
}

/// A Python process.
pub struct Process {
    /// Root of its address space.
    pub root: PhysAddr,
    /// Levels of its page tables.
    pub levels: u8,
    /// Address of `type`, and its physical address.
    pub type_object: (VirtAddr, PhysAddr),
    /// The interpreter's version as its `sys.version` says; `None` if that can't be read.
    pub python_version: Option<String>,
    /// Layout that reads its objects, with score and runner-up.
    pub python_layout: (LayoutScore, Option<LayoutScore>),
    /// Type objects in it.
    pub type_count: usize,
    /// PyTorch's version as `torch.version` says; `None` if it is not imported, or can't be read.
    pub torch_version: Option<String>,
    /// Whether PyTorch's module class was found in it.
    pub has_torch: bool,
    /// Layout that reads its tensors, with score and runner-up; `None` where no tensor was read.
    pub torch_layout: Option<(TensorScore, Option<TensorScore>)>,
    /// Modules (`torch.nn.Module` instances) that are alive in it.
    pub module_count: usize,
    /// Its models; one that several processes share is listed with the first of them.
    pub models: Vec<Model>,
    /// Models that are listed with another process and seen here as well.
    pub shared_models: Vec<String>,
}

/// A part of the work, for progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Unpacking a compressed dump.
    Unpack,
    /// The one pass over all of physical memory.
    Scan,
    /// Page-table roots and address spaces.
    Paging,
    /// Interpreters, types and modules.
    Cpython,
    /// Headers of tensors, and hashes of their bytes.
    Tensors,
    /// Writing the output folder.
    Write,
}

/// Is told how the work goes; called from several threads.
pub trait Observer: Sync {
    /// A phase begins; `total` is its size in bytes, 0 where it is not known.
    fn begin(&self, phase: Phase, total: u64);
    /// That many bytes more are done.
    fn advance(&self, bytes: u64);
}

/// Why a dump could not be searched.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The signatures lack something.
    #[error("the signatures have no {0}")]
    Signatures(String),
}

/// Finds the models in a dump.
///
/// # Errors
/// The signatures lack what the work needs; a dump with nothing in it is no error.
pub fn recover(
    dump: &Dump,
    signatures: &Signatures,
    backend: Backend,
    observer: &dyn Observer,
) -> Result<Recovery, RecoverError> {
    let _ = (dump, signatures, backend, observer);
    Err(RecoverError::Signatures("implementation yet".to_owned()))
}
