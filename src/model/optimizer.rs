//! Optimizers, as far as they concern a model.

use crate::addr::VirtAddr;
use crate::cpython::Value;
use crate::diagnostic::Diagnostic;

/// An optimizer object, as far as it concerns one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// `__module__.__qualname__` of its class.
    pub class: String,
    /// The Python object.
    pub object: VirtAddr,
    /// `param_groups`.
    pub groups: Vec<ParamGroup>,
    /// State that is no tensor, as `(parameter, key, value)`: `step` of older versions.
    pub state: Vec<(String, String, Value)>,
    /// Parts that could not be read.
    pub problems: Vec<Diagnostic>,
}

/// A group of parameters with their settings.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamGroup {
    /// Names of those parameters that are the model's.
    pub parameters: Vec<String>,
    /// How many are not.
    pub others: usize,
    /// Learning rate and other plain settings.
    pub settings: Vec<(String, Value)>,
}
