//! What refers to a tensor.

use crate::addr::VirtAddr;

/// A place that refers to a tensor or an array.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Referrer {
    /// An attribute of a `torch.nn.Module`, or something in it.
    Module {
        /// The module.
        object: VirtAddr,
        /// The path from the module: `cache['k'][0]`, `hook.weights["0.weight"]`.
        path: String,
    },
    /// A name of an imported Python module, or something in it.
    Global {
        /// The module's `__name__`, the name, attributes, indices and keys: `__main__.batches[0]`.
        path: String,
    },
    /// It is the gradient of a tensor of no model.
    GradientOf {
        /// The Python object of that tensor.
        object: VirtAddr,
    },
}
