//! What a case holds, one thing at a time: each knows its case, so that it can be asked further.

use std::sync::Arc;

use super::recover::{self, Recovery};
use super::{Case, CaseError};
use crate::addr::PhysAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::model::{self, NamedTensor, Status};
use crate::paging::AddressSpace;
use crate::tensor::{self, Holes, TooLarge};

/// A process: an address space, and what is known of it.
#[derive(Clone)]
pub struct Process {
    case: Case,
    space: AddressSpace,
}

/// A network that was found, in one process.
#[derive(Clone)]
pub struct Model {
    case: Case,
    recovery: Arc<Recovery>,
    /// The index of its process, and its own within that process.
    indices: (usize, usize),
}

/// A tensor of a network.
#[derive(Clone)]
pub struct Tensor {
    model: Model,
    /// Among those of the modules, and then those that training left.
    index: usize,
}

/// Why the bytes of a tensor can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BytesError {
    /// It could not be read whole.
    #[error("the tensor {name} is not complete: {problem}")]
    NotComplete {
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        problem: Diagnostic,
    },
    /// It claims more bytes than the dump has.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl Case {
    /// The processes: of a machine one for each address space whose user half maps pages.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn processes(&self) -> Result<Vec<Process>, CaseError> {
        let spaces = self.spaces()?.of_processes();
        Ok(spaces.into_iter().map(|space| Process { case: self.clone(), space }).collect())
    }

    /// All networks, in the order of the report: those of ended processes as well, which [`Case::processes`] does not list.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn models(&self) -> Result<Vec<Model>, CaseError> {
        let recovery = self.recovery()?;
        let of_process = |(index, process): (usize, &recover::Process)| {
            (0..process.models.len()).map(move |model| (index, model)).collect::<Vec<_>>()
        };
        let indices = recovery.processes.iter().enumerate().flat_map(of_process);
        let model = |indices| Model { case: self.clone(), recovery: Arc::clone(&recovery), indices };
        Ok(indices.map(model).collect())
    }
}

impl Process {
    /// The case that it belongs to.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// Its address space.
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// The root of its page tables; `None` in the image of a process.
    pub fn root(&self) -> Option<PhysAddr> {
        self.space.root()
    }

    /// Its networks. One that several processes share, as after a fork, is listed with the first of them.
    ///
    /// # Errors
    /// As for [`Case::spaces`].
    pub fn models(&self) -> Result<Vec<Model>, CaseError> {
        let mut models = self.case.models()?;
        models.retain(|model| !model.process().space.is_freed() && model.process().root() == self.root());
        Ok(models)
    }
}

impl Model {
    /// The case that it belongs to.
    pub fn case(&self) -> &Case {
        &self.case
    }

    /// The recovery that it is a part of.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The process that it was found in first.
    pub fn process(&self) -> &recover::Process {
        #[expect(clippy::indexing_slicing, reason = "the index is from this list, which does not change")]
        &self.recovery.processes[self.indices.0]
    }

    /// All that is known of it.
    pub fn data(&self) -> &model::Model {
        #[expect(clippy::indexing_slicing, reason = "the index is from this list, which does not change")]
        &self.process().models[self.indices.1]
    }

    /// `m0`, `m1`, … as in the output folder.
    pub fn id(&self) -> &str {
        &self.data().id
    }

    /// `__module__.__qualname__` of its class; `None` for a chain of layers that no module holds.
    pub fn class(&self) -> Option<&str> {
        self.data().class.as_deref()
    }

    /// The tensors of its modules, in the order of `state_dict()`.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> {
        (0..self.data().tensors.len()).map(|index| Tensor { model: self.clone(), index })
    }

    /// What training left: gradients, and what optimizers keep.
    pub fn training(&self) -> impl Iterator<Item = Tensor> {
        let first = self.data().tensors.len();
        (first..first + self.data().training.len()).map(|index| Tensor { model: self.clone(), index })
    }
}

impl Tensor {
    /// All that is known of it.
    pub fn data(&self) -> &NamedTensor {
        let model::Model { tensors, training, .. } = self.model.data();
        #[expect(clippy::indexing_slicing, reason = "the index is from these lists, which do not change")]
        match self.index.checked_sub(tensors.len()) {
            None => &tensors[self.index],
            Some(index) => &training[index],
        }
    }

    /// Its name in `state_dict()`.
    pub fn name(&self) -> &str {
        &self.data().name
    }

    /// Its dimensions; `None` if its headers can't be read.
    pub fn shape(&self) -> Option<&[u64]> {
        self.data().info.as_ref().map(|info| info.shape.as_slice())
    }

    /// The name of its type in safetensors; `None` if its headers can't be read.
    pub fn dtype(&self) -> Option<&str> {
        self.data().info.as_ref().map(|info| info.dtype.label())
    }

    /// How much of it is there.
    pub fn status(&self) -> Status {
        self.data().status
    }

    /// Its bytes in row-major order, as `tensor.contiguous()` would hold them.
    ///
    /// # Errors
    /// A byte of it is missing: see [`Tensor::bytes_with_holes`].
    pub fn bytes(&self) -> Result<Vec<u8>, BytesError> {
        let (bytes, holes) = self.bytes_with_holes()?;
        match holes.bytes {
            0 if self.status() == Status::Complete => Ok(bytes),
            missing => {
                let message = format!("{missing} of its {} bytes are not in the dump", bytes.len());
                Err(self.not_complete(Code::MissingBytes, message))
            }
        }
    }

    /// The same with what is missing, whose bytes are zeros.
    ///
    /// # Errors
    /// Where its bytes lie is not known.
    pub fn bytes_with_holes(&self) -> Result<(Vec<u8>, Holes), BytesError> {
        let Some(elements) = self.data().elements() else {
            return Err(self.not_complete(Code::UnknownElements, "where its bytes lie is not known"));
        };
        let recovery = self.model.recovery();
        let space = &self.model.process().space;
        let mut bytes = Vec::new();
        let holes = tensor::gather::<TooLarge>(space, &elements, recovery.memory.size(), |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok((bytes, holes))
    }

    /// The error that states the tensor's own problem, or this one if it has none.
    fn not_complete(&self, code: Code, message: impl Into<String>) -> BytesError {
        let data = self.data();
        let problem = data.problem.clone().unwrap_or_else(|| data.diagnostic(code, message));
        BytesError::NotComplete { name: data.name.clone(), problem }
    }
}
