//! What could not be read of a model or an optimizer, or was left out.

use super::MAX_OPTIMIZERS;
use super::extra::Extra;
use crate::addr::VirtAddr;
use crate::cpython::ObjectError;
use crate::diagnostic::{Code, Diagnostic};
use crate::words::counted;

/// What could not be read of a model or an optimizer, or was left out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Problem {
    /// The root of a model.
    #[error("this module can't be read: {error}")]
    UnreadableRoot { object: VirtAddr, error: ObjectError },
    #[error("the module {name:?} at {object} could not be read: {error}")]
    UnreadableModule { name: String, object: VirtAddr, error: ObjectError },
    #[error("the module {name:?} at {object} could not be read: it is not a module object")]
    NoModule { name: String, object: VirtAddr },
    #[error("the module {name:?} at {object} is left out: modules are nested too deeply or contain each other")]
    NestedTooDeeply { name: String, object: VirtAddr },
    #[error(
        "the module {name:?} at {object} is known by its dictionaries alone: its class {class} at {class_object} can't \
         be read: {error}"
    )]
    UnreadableClass { name: String, object: VirtAddr, class: String, class_object: VirtAddr, error: ObjectError },
    #[error(
        "{} of parameters, buffers or children of the module {module:?} could not be read",
        counted(*count, "name", "names")
    )]
    UnreadableNames { module: String, object: VirtAddr, count: usize },
    #[error(
        "left out: {} of the module {module:?}, because all modules together have too many",
        counted(*count, "entry", "entries")
    )]
    EntriesLeftOut { module: String, object: VirtAddr, count: usize },
    #[error("the name of the object at {object} is left out: it is {len} bytes long")]
    NameTooLong { object: VirtAddr, len: usize },
    #[error(
        "{} left out: too many names for shared modules and tensors",
        counted(*.0, "further name", "further names")
    )]
    NamesLeftOut(usize),
    #[error("{} listed again without attributes, which are too long", counted(*.0, "module", "modules"))]
    AttributesLeftOut(usize),
    #[error("{} left out", counted(*.0, "more problem", "more problems"))]
    ProblemsLeftOut(usize),
    /// `state_dict()` of this module, and of so many others, may have more entries.
    #[error("{}", extra.describe(module, *others))]
    StateDict { extra: Extra, module: String, others: usize },

    #[error("its parameters are held by more optimizers than the {MAX_OPTIMIZERS} that are listed")]
    OptimizersLeftOut,
    #[error("its state could not be read: {error}")]
    UnreadableState { object: VirtAddr, error: ObjectError },
    #[error("the state of {parameter:?} could not be read: {error}")]
    UnreadableStateOf { parameter: String, object: VirtAddr, error: ObjectError },
    #[error(
        "left out of its state: {} beyond the limits on number, depth and length of text",
        counted(*.0, "value", "values")
    )]
    ValuesLeftOut(usize),
}

impl From<Problem> for Diagnostic {
    fn from(problem: Problem) -> Self {
        let (code, address) = match &problem {
            Problem::UnreadableRoot { object, .. }
            | Problem::UnreadableModule { object, .. }
            | Problem::NoModule { object, .. } => (Code::UnreadableModule, Some(*object)),
            Problem::UnreadableClass { class_object, .. } => (Code::UnreadableClass, Some(*class_object)),
            Problem::UnreadableNames { object, .. } => (Code::UnreadableNames, Some(*object)),
            Problem::NestedTooDeeply { object, .. }
            | Problem::EntriesLeftOut { object, .. }
            | Problem::NameTooLong { object, .. } => (Code::PartsLeftOut, Some(*object)),
            Problem::NamesLeftOut(_)
            | Problem::AttributesLeftOut(_)
            | Problem::ProblemsLeftOut(_)
            | Problem::OptimizersLeftOut
            | Problem::ValuesLeftOut(_) => (Code::PartsLeftOut, None),
            Problem::StateDict { .. } => (Code::StateDict, None),
            Problem::UnreadableState { object, .. } | Problem::UnreadableStateOf { object, .. } => {
                (Code::UnreadableState, Some(*object))
            }
        };
        Self::new(code, address.map(Into::into), problem.to_string())
    }
}
