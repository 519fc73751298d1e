//! Files of weights: the header first, then all tensors beside each other from the dump, hashed on their way.

use std::collections::HashMap;

use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::assignment::{Assignment, Entry, WeightFile};
use super::error::OutputError;
use super::folder::{OutputFile, OutputFolder};
use crate::paging::VirtualMemory;
use crate::progress::Observer;
use crate::tensor::{Elements, TooLarge, gather};

/// The header's length is a multiple of this, so that the data are aligned.
const ALIGNMENT: usize = 8;

/// Bytes that the files of weights take, but for their headers.
pub(super) fn size(assignments: &[Assignment<'_>]) -> u64 {
    let entries = assignments.iter().flat_map(|assignment| &assignment.entries);
    entries.fold(0, |size, entry| size.saturating_add(entry.elements.byte_len()))
}

/// Writes those of the files that have any entries; each tensor comes with the memory that it lies in.
pub(super) fn write(
    folder: &OutputFolder,
    place: &Place<'_>,
    files: &[WeightFile],
    assignments: &[(&Assignment<'_>, &dyn VirtualMemory)],
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    for file in files {
        let mut entries = Vec::new();
        for (assignment, memory) in assignments {
            let of_file = assignment.entries.iter().filter(|entry| entry.file == *file);
            entries.extend(of_file.map(|entry| (entry, *memory)));
        }
        if !entries.is_empty() {
            write_file(folder, place, *file, entries, observer)?;
        }
    }
    Ok(())
}

fn write_file(
    folder: &OutputFolder,
    place: &Place<'_>,
    which: WeightFile,
    mut entries: Vec<(&Entry<'_>, &dyn VirtualMemory)>,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    // The order of state_dict(), but large types first, as the format's own writer does it: then
    // each tensor is aligned to its elements.
    entries.sort_by_key(|(entry, _)| std::cmp::Reverse(entry.dtype.bitsize()));
    let mut file = folder.file(&place.path(which))?;
    let header = header(&entries)
        .map_err(|reason| OutputError::Header { path: file.path().to_owned(), reason: reason.to_string() })?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut next = (size_of::<u64>() + header.len()) as u64;
    let placed = entries.into_iter().map(|(entry, memory)| {
        let at = next;
        next += entry.elements.byte_len();
        (entry, memory, at)
    });
    let placed: Vec<(&Entry<'_>, &dyn VirtualMemory, u64)> = placed.collect();
    placed.into_par_iter().try_for_each(|(entry, memory, at)| {
        let (digest, is_whole) = copy(&entry.elements, memory, &file, at, observer)?;
        let is_same = entry.tensor.sha256.as_ref().is_none_or(|expected| *expected == digest);
        if is_same && is_whole == (entry.tensor.holes.bytes == 0) {
            return Ok(());
        }
        Err(OutputError::Changed { model: place.name().to_owned(), tensor: entry.tensor.name.clone() })
    })?;
    file.close()
}

/// Where files of weights lie.
pub(super) enum Place<'a> {
    /// In the folder of the model with that id.
    Model(&'a str),
    /// Beside the folder of the models.
    Top,
}

impl Place<'_> {
    fn path(&self, file: WeightFile) -> String {
        match self {
            Self::Model(id) => format!("{}/{}", super::model_folder(id), file.name()),
            Self::Top => file.name().to_owned(),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Model(id) => id,
            Self::Top => "none",
        }
    }
}

fn header(entries: &[(&Entry<'_>, &dyn VirtualMemory)]) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut end = 0usize;
    let mut infos = Vec::with_capacity(entries.len());
    for (entry, _) in entries {
        let start = end;
        end = usize::try_from(entry.elements.byte_len())
            .ok()
            .and_then(|len| start.checked_add(len))
            .ok_or(safetensors::SafeTensorError::ValidationOverflow)?;
        let shape = entry.shape.iter().map(|size| *size as usize).collect();
        infos.push((entry.key.clone(), TensorInfo { dtype: entry.dtype, shape, data_offsets: (start, end) }));
    }
    // What the transformers library asks for before it takes a file for weights of PyTorch.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(about), infos)?)?;
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    Ok(header)
}

/// Why a tensor was not copied to its end.
enum Stop {
    TooLarge(TooLarge),
    Output(OutputError),
}

impl From<TooLarge> for Stop {
    fn from(error: TooLarge) -> Self {
        Self::TooLarge(error)
    }
}

/// Copies the bytes of a tensor to a place in the file; returns their hash, and whether there is no hole in them.
fn copy(
    elements: &Elements,
    memory: &dyn VirtualMemory,
    file: &OutputFile,
    mut place: u64,
    observer: &dyn Observer,
) -> Result<(String, bool), OutputError> {
    let mut hasher = Sha256::new();
    // No limit: only what has been gathered once before, with a limit, is written.
    let copied = gather(memory, elements, u64::MAX, |bytes| {
        hasher.update(bytes);
        observer.advance(bytes.len() as u64);
        file.write_at(bytes, place).map_err(Stop::Output)?;
        place += bytes.len() as u64;
        Ok(())
    });
    match copied {
        Ok(holes) => Ok((hex::encode(hasher.finalize()), holes.is_empty())),
        Err(Stop::TooLarge(error)) => {
            Err(OutputError::Header { path: file.path().to_owned(), reason: error.to_string() })
        }
        Err(Stop::Output(error)) => Err(error),
    }
}
