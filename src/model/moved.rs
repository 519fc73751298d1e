//! Weights that were moved out of their module: the module keeps an empty tensor, or one on `meta`, and a mapping
//! elsewhere has the values under the tensor's name.

use std::collections::BTreeMap;

use super::inner::META;
use super::{Elsewhere, Model, NamedTensor, Referrer, StandaloneTensor};
use crate::addr::VirtAddr;
use crate::tensor::TensorInfo;

/// Maximum number of candidates listed for one tensor; more would not help.
const MAX_CANDIDATES: usize = 4;

/// A tensor outside any model, under the last name in its path.
struct Kept<'o> {
    name: &'o str,
    info: &'o TensorInfo,
    referrer: &'o Referrer,
}

/// Finds the values of tensors without values among the tensors outside any model, by name, type and shape.
pub(crate) fn find_moved(models: &mut [Model], others: &[StandaloneTensor]) {
    let mut by_key: BTreeMap<String, Vec<Kept<'_>>> = BTreeMap::new();
    for other in others {
        let Some(info) = other.tensor.info.as_ref().filter(|info| info.device != META && info.numel() > 0) else {
            continue;
        };
        for referrer in &other.referrers {
            if let Some(key) = referrer.last_name() {
                let last = key.rsplit('.').next().unwrap_or(key).to_owned();
                by_key.entry(last).or_default().push(Kept { name: &other.tensor.name, info, referrer });
            }
        }
    }
    if by_key.is_empty() {
        return;
    }
    for model in models {
        let names: BTreeMap<VirtAddr, &str> =
            model.modules.iter().rev().map(|module| (module.object, module.name.as_str())).collect();
        for tensor in &mut model.tensors {
            let last = tensor.name.rsplit('.').next().unwrap_or(&tensor.name);
            if let Some(kept) = by_key.get(last).filter(|_| is_empty(tensor)) {
                tensor.elsewhere = candidates(tensor, kept, &names);
            }
        }
    }
}

/// Whether a tensor has no values, and no attribute is known to have them.
fn is_empty(tensor: &NamedTensor) -> bool {
    let is_empty = tensor.info.as_ref().is_some_and(|info| info.device == META || info.numel() == 0);
    is_empty && tensor.inner.is_empty() && tensor.elsewhere.is_empty()
}

/// The tensors whose names agree most with that of a tensor.
fn candidates(tensor: &NamedTensor, kept: &[Kept<'_>], names: &BTreeMap<VirtAddr, &str>) -> Vec<Elsewhere> {
    let Some(info) = &tensor.info else { return Vec::new() };
    let owner = tensor.name.rsplit_once('.').map_or("", |(owner, _)| owner);
    let agreement = |kept: &Kept<'_>| {
        // One that was made empty has no shape to compare: there the whole name has to be the same.
        let fits = if info.numel() == 0 { kept.key() == tensor.name } else { kept.info.shape == info.shape };
        if !fits || kept.info.dtype != info.dtype {
            return 0;
        }
        let parts = common_end(&tensor.name, kept.key());
        let whole = parts == tensor.name.split('.').count() || parts == kept.key().split('.').count();
        // A short name agrees with many tensors: of its own module's it is evidence.
        let is_own = matches!(kept.referrer, Referrer::Module { object, .. } if names.get(object) == Some(&owner));
        if whole && (is_own || parts > 1 || parts == tensor.name.split('.').count()) { parts } else { 0 }
    };
    let best = kept.iter().map(agreement).max().filter(|best| *best > 0);
    let mut candidates: Vec<Elsewhere> = Vec::new();
    for kept in kept.iter().filter(|kept| Some(agreement(kept)) == best) {
        if candidates.len() < MAX_CANDIDATES && !candidates.iter().any(|known| known.name == kept.name) {
            let path = kept.referrer.in_words(names);
            candidates.push(Elsewhere { name: kept.name.to_owned(), path, shape: kept.info.shape.clone() });
        }
    }
    candidates
}

impl Kept<'_> {
    fn key(&self) -> &str {
        self.referrer.last_name().unwrap_or_default()
    }
}

/// How many parts of two dotted names are the same, from the end on.
fn common_end(one: &str, other: &str) -> usize {
    one.rsplit('.').zip(other.rsplit('.')).take_while(|(one, other)| one == other).count()
}

impl Referrer {
    /// The last name or key in the path; `None` if the path ends with an index.
    fn last_name(&self) -> Option<&str> {
        let (Self::Module { path, .. } | Self::Global { path }) = self else { return None };
        match path.strip_suffix("\"]") {
            Some(path) => path.rsplit("[\"").next(),
            None => path.rsplit('.').next().filter(|name| !name.ends_with(']')),
        }
    }

    /// The path from the root of a model with modules of these names, or from where else it begins.
    fn in_words(&self, names: &BTreeMap<VirtAddr, &str>) -> String {
        match self {
            Self::Module { object, path } => match names.get(object) {
                Some(&"") => path.clone(),
                Some(module) => format!("{module}.{path}"),
                None => format!("module at {object}: {path}"),
            },
            Self::Global { path } => path.clone(),
            Self::GradientOf { object } => format!("gradient of {object}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_of_a_way() {
        let last = |path: &str| Referrer::Global { path: path.to_owned() }.last_name().map(str::to_owned);
        assert_eq!(last("__main__.ep._state_dict[\"a.weight\"]").as_deref(), Some("a.weight"));
        assert_eq!(last("__main__.held[\"x\"].weight").as_deref(), Some("weight"));
        assert_eq!(last("__main__.batches[3]"), None);
    }

    #[test]
    fn names_agree_from_their_end_on() {
        assert_eq!(common_end("0.weight", "0.weight"), 2);
        assert_eq!(common_end("encoder.0.weight", "0.weight"), 2);
        assert_eq!(common_end("1.weight", "0.weight"), 1);
        assert_eq!(common_end("bias", "weight"), 0);
    }
}
