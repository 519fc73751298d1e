//! Keys in the weight files: a tensor's name, or a name made from it if that is reserved or taken.

use std::collections::{HashMap, HashSet};

use super::assignment::Assignment;
use crate::model::TensorKind;

/// The key that safetensors reserves.
const RESERVED: &str = "__metadata__";

/// Gives every entry a key that is unique among entries of its kind. Unused names are assigned first, then parts of
/// tensors, so that no generated key takes a real name. The rest become `name~2`, `name~3`, ….
pub(super) fn assign(assignments: &mut [Assignment<'_>]) {
    let mut taken: HashSet<(TensorKind, String)> = HashSet::new();
    let mut rest: Vec<(usize, usize)> = Vec::new();
    for of_parts in [false, true] {
        for (index, tensor) in assignments.iter().enumerate() {
            for (place, entry) in tensor.entries.iter().enumerate() {
                let is_part = entry.name != tensor.tensor.name;
                let key = (scope(tensor.tensor.kind), entry.name.clone());
                if is_part == of_parts && (entry.name == RESERVED || !taken.insert(key)) {
                    rest.push((index, place));
                }
            }
        }
    }
    let mut last: HashMap<(TensorKind, String), u64> = HashMap::new();
    for (index, place) in rest {
        let Some(tensor) = assignments.get_mut(index) else { continue };
        let kind = scope(tensor.tensor.kind);
        let Some(entry) = tensor.entries.get_mut(place) else { continue };
        let number = last.entry((kind, entry.name.clone())).or_insert(1);
        loop {
            *number += 1;
            let key = format!("{}~{number}", entry.name);
            if taken.insert((kind, key.clone())) {
                entry.key = key;
                break;
            }
        }
    }
}

/// Parameters and buffers share their names, whatever file they go to.
fn scope(kind: TensorKind) -> TensorKind {
    if kind == TensorKind::Buffer { TensorKind::Parameter } else { kind }
}

/// Bytes of a text as JSON, quotes included.
pub(super) fn json_len(text: &str) -> u64 {
    let len = |byte: u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    2 + text.bytes().map(len).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_is_that_of_the_json() {
        for text in ["", "plain", "\"\\\n\r\t\u{8}\u{c}\u{0}\u{1b}\u{7f}", "gr\u{f6}\u{df}e \u{1f600}"] {
            assert_eq!(json_len(text), serde_json::to_string(text).unwrap().len() as u64, "{text:?}");
        }
    }
}
