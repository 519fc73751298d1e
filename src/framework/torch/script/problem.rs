//! What could not be read of a script module, or was left out.

use super::object::ScriptError;
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::words::counted;

/// What could not be read of a script module, or was left out.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Problem {
    #[error("a script module at {object} is left out: it is nested too deeply")]
    NestedTooDeeply { object: VirtAddr },
    #[error("the script module {name:?} could not be read: {error}")]
    Unreadable { name: String, object: VirtAddr, error: ScriptError },
    #[error("the rest of it is left out: its modules or tensors have too many names")]
    NamesLeftOut,
    #[error("{} (TorchScript) found, whose tensors are not read", counted(*.0, "script module", "script modules"))]
    TensorsNotRead(usize),
    #[error(
        "it has no attributes with tensors: if the script module is frozen (torch.jit.freeze), its weights are \
         constants in its code, which have lost their names: they are in a chain, or outside the models"
    )]
    Frozen { object: VirtAddr },
}

impl From<Problem> for Diagnostic {
    fn from(problem: Problem) -> Self {
        let (code, address) = match &problem {
            Problem::NestedTooDeeply { object } => (Code::PartsLeftOut, Some(*object)),
            Problem::NamesLeftOut => (Code::PartsLeftOut, None),
            Problem::Unreadable { object, .. } => (Code::UnreadableModule, Some(*object)),
            Problem::TensorsNotRead(_) => (Code::UnreadableModule, None),
            Problem::Frozen { object } => (Code::FrozenModule, Some(*object)),
        };
        Self::new(code, address.map(Into::into), problem.to_string())
    }
}
