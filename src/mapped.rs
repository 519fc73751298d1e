//! Warnings about tensors whose bytes are in mapped files: which file, and how to get it, or where the bytes came from.

use std::collections::BTreeMap;
use std::path::Path;

use crate::addr::PhysAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::{Absence, FileMapping, FilledFile, PhysicalMemory};
use crate::model::{Model, NamedTensor};
use crate::words;

/// Maximum number of files per model that get a warning of their own.
const MAX_FILES: usize = 8;

/// Warnings about the tensors of each model of a process, and about its tensors outside any model, one per mapped file.
pub(crate) fn warnings<'t>(
    memory: &PhysicalMemory,
    models: &[Model],
    standalone: impl Iterator<Item = &'t NamedTensor>,
) -> Vec<Diagnostic> {
    // A machine has none; what its processes had mapped is in the page cache.
    if memory.mappings().files().is_empty() {
        return Vec::new();
    }
    let of_model = |model: &Model| of_tensors(memory, &model.id, "tensor", "tensors", model.all_tensors());
    let mut warnings: Vec<Diagnostic> = models.iter().flat_map(of_model).collect();
    warnings.extend(of_tensors(memory, "outside any model", "tensor or array", "tensors or arrays", standalone));
    warnings
}

fn of_tensors<'t>(
    memory: &PhysicalMemory,
    whose: &str,
    one: &str,
    many: &str,
    tensors: impl Iterator<Item = &'t NamedTensor>,
) -> Vec<Diagnostic> {
    let counted = |count: usize| format!("{whose}: {}", words::counted(count, one, many));
    let mut missing: BTreeMap<&Path, (usize, u64, &FileMapping)> = BTreeMap::new();
    let mut filled: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut all_missing, mut all_filled) = (0, 0);
    // A tensor under several names is one.
    for tensor in tensors.filter(|tensor| tensor.same_as.is_none()) {
        let whole_and_parts = || std::iter::once(tensor).chain(&tensor.parts);
        let mut lacks: BTreeMap<&Path, (u64, &FileMapping)> = BTreeMap::new();
        for hole in whole_and_parts().flat_map(|tensor| &tensor.holes) {
            let at = PhysAddr(hole.address.0);
            if let Absence::File(index) = memory.absence(at)
                && let Some(mapping) = memory.mappings().files().get(index)
            {
                let offset = mapping.offset_of(at);
                let (first, _) = lacks.entry(&mapping.path).or_insert((offset, mapping));
                *first = offset.min(*first);
            }
        }
        all_missing += usize::from(!lacks.is_empty());
        for (path, (offset, mapping)) in lacks {
            let (count, first, _) = missing.entry(path).or_insert((0, offset, mapping));
            *count += 1;
            *first = offset.min(*first);
        }
        let mut files: Vec<&str> =
            whole_and_parts().flat_map(|tensor| &tensor.sources).map(|source| source.file.as_str()).collect();
        files.sort_unstable();
        files.dedup();
        all_filled += usize::from(!files.is_empty());
        files.into_iter().for_each(|file| *filled.entry(file).or_default() += 1);
    }
    let mut warnings: Vec<Diagnostic> = Vec::new();
    let lie = |count: usize| format!("{} {}", counted(count), if count == 1 { "lies" } else { "lie" });
    let were = |count: usize| format!("{} {}", counted(count), if count == 1 { "was" } else { "were" });
    let files = missing.len();
    let mut missing = missing.into_values();
    if files > MAX_FILES {
        // PyTorch's shared memory has a file for each storage.
        if let Some((_, first, mapping)) = missing.next() {
            let what = lie(all_missing);
            let what = format!("{what} in {files} mapped files (the reason of each hole names its file); the first");
            warnings.push(memory.mappings().missing_bytes(&format!("{what} lies"), mapping, first));
        }
    } else {
        let warning = |(count, first, mapping)| memory.mappings().missing_bytes(&lie(count), mapping, first);
        warnings.extend(missing.map(warning));
    }
    if filled.len() > MAX_FILES {
        let files = filled.len();
        let message = format!(
            "{} filled from {files} files that were given for mapped files: recovery.json lists their hashes and how \
             many bytes of each could be checked",
            were(all_filled)
        );
        warnings.push(Diagnostic::new(Code::BytesFromFile, None, message));
        return warnings;
    }
    for (recorded, count) in filled {
        let given = memory.files().iter().find(|file| file.recorded.to_string_lossy() == recorded);
        warnings.extend(given.map(|file| from_file(&were(count), recorded, file)));
    }
    warnings
}

/// The note about tensors whose bytes are not from the dump.
fn from_file(what: &str, recorded: &str, file: &FilledFile) -> Diagnostic {
    let FilledFile { local, size, sha256, agreed, unmapped, .. } = file;
    let check = match agreed {
        0 => "the process image has nothing to check it against, so it may have changed since the capture".to_owned(),
        agreed => format!("{agreed} of its bytes are also in the process image and agree; the others can't be checked"),
    };
    let check = match unmapped {
        0 => check,
        more => format!("{check}; it is {more} bytes longer than the process had mapped"),
    };
    let local = local.display();
    let message = format!(
        "{what} filled from {local} ({size} bytes, SHA-256 {sha256}), given for the mapped file {recorded}: {check}"
    );
    Diagnostic::new(Code::BytesFromFile, None, message)
}
