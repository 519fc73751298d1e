//! Tensors and arrays that belong to no model: activations, attributes, elements of lists, orphans.

use super::{NamedTensor, Reading, Referrer, Sighting};
use crate::diagnostic::Diagnostic;
use crate::tensor::{ArrayInfo, Elements};

/// A tensor or an array that belongs to no model.
#[derive(Clone, Debug)]
pub struct StandaloneTensor {
    /// Its bytes, and for a tensor its headers. The name is `<root of the process>.<address of the object>`,
    /// in the image of a process the address alone.
    pub tensor: NamedTensor,
    /// The headers of an array.
    pub array: Option<ArrayInfo>,
    /// What refers to it, as far as that was looked for.
    pub referrers: Vec<Referrer>,
    /// Every address space in which this very object was found: more than one after a fork.
    pub sightings: Vec<Sighting>,
    /// Whether its bytes are left out, because all together are more than a dump can hold.
    pub is_left_out: bool,
}

impl StandaloneTensor {
    pub(crate) fn new(tensor: NamedTensor) -> Self {
        Self { tensor, array: None, referrers: Vec::new(), sightings: Vec::new(), is_left_out: false }
    }

    /// Where its elements lie, if they are to be read.
    pub(crate) fn elements(&self) -> Option<Elements> {
        match (&self.array, &self.tensor.reading) {
            _ if self.is_left_out => None,
            (Some(array), Reading::Elements) => array.elements(),
            _ => self.tensor.elements(),
        }
    }
}

/// What one process holds beside its models.
#[derive(Clone, Debug, Default)]
pub struct StandaloneTensors {
    /// Tensors first, then arrays, each in the order of their addresses.
    pub found: Vec<StandaloneTensor>,
    /// What was left out.
    pub warnings: Vec<Diagnostic>,
}

impl StandaloneTensors {
    /// Puts them in their order.
    pub(crate) fn sort(&mut self) {
        self.found.sort_by_key(|found| (found.array.is_some(), found.tensor.object, found.tensor.name.clone()));
    }
}
