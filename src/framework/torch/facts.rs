//! What PyTorch says of itself, and how its tensors were read.

use super::tensor::TensorScore;
use crate::diagnostic::{Address, Code, Diagnostic};
use crate::words::counted;

/// What is known of the PyTorch of a process.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its version as `torch.version` says; `None` if that can't be read.
    pub version: Option<String>,
    /// Layout that reads its tensors, with score and runner-up; `None` where no tensor was read.
    pub layout: Option<(TensorScore, Option<TensorScore>)>,
    /// The first release whose dispatch keys fit its tensors; `None` if unknown.
    pub dispatch_keys: Option<String>,
}

impl Facts {
    /// A warning if no layout file reads the tensors of a process, or if several do and disagree. Its models have so many tensors.
    pub(in crate::framework) fn warning(
        &self,
        (process, place): (&str, Option<Address>),
        tensors: usize,
    ) -> Option<Diagnostic> {
        let warning = |code, message| Diagnostic::new(code, place, message);
        let Some((score, _)) = &self.layout else {
            return (tensors > 0).then(|| {
                let message = format!(
                    "no layout file fits the PyTorch of {process}, and none could be inferred \
                     from its {tensors} tensors"
                );
                warning(Code::NoTensorLayout, message)
            });
        };
        let TensorScore { readable, tried, standalone, version, inferred, changes, rivals, .. } = score;
        if *inferred {
            let message = format!(
                "no layout file fits the PyTorch of {process}: a layout inferred from the one \
                 for {version} ({} changed) reads {readable} of {tried} tensors; recovery.json lists the changes",
                counted(changes.len(), "number", "numbers")
            );
            return Some(warning(Code::InferredTensorLayout, message));
        }
        if !rivals.is_empty() {
            let message = format!(
                "the layouts for PyTorch {version} and {} fit the tensors of {process} \
                 equally well: what they read differently is left out",
                rivals.join(" and ")
            );
            return Some(warning(Code::UndecidedLayout, message));
        }
        (*readable + *standalone == 0 && *tried > 0).then(|| {
            let message = format!(
                "no layout file reads any of the {tried} tensors of {process}, and they are \
                 too few or too damaged to infer a layout; each tensor's problem is stated according to the layout for \
                 {version}, the nearest to its PyTorch version"
            );
            warning(Code::NoTensorLayout, message)
        })
    }
}
