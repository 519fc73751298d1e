//! Files of weights: the header first, then all tensors beside each other from the dump, hashed on their way.

use std::collections::HashMap;
use std::fmt::Write;

use rayon::prelude::*;
use safetensors::tensor::{Dtype, Metadata, TensorInfo as Entry};
use sha2::{Digest, Sha256};

use super::error::OutputError;
use super::folder::{OutputFile, OutputFolder};
use super::plan::{Placed, WeightFile, dtype, plan};
use super::rows::weight_files;
use crate::model::{Model, NamedTensor, Status};
use crate::paging::VirtualMemory;
use crate::recover::Observer;
use crate::tensor::{TensorInfo, TooLarge, gather};

/// The header's length is a multiple of this, so that the data are aligned.
const ALIGNMENT: usize = 8;

/// Bytes that the files of weights of a model take, but for their headers.
pub(super) fn size(model: &Model) -> u64 {
    let placed = plan(model).into_iter().filter(|(_, placed)| matches!(placed, Placed::In(_)));
    let sizes = placed.filter_map(|(tensor, _)| tensor.info.as_ref().map(TensorInfo::byte_len));
    sizes.fold(0, u64::saturating_add)
}

/// Writes all files of weights of a model.
pub(super) fn write(
    folder: &OutputFolder,
    model: &Model,
    memory: &dyn VirtualMemory,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    for file in weight_files(model) {
        write_file(folder, model, file, memory, observer)?;
    }
    Ok(())
}

fn write_file(
    folder: &OutputFolder,
    model: &Model,
    which: WeightFile,
    memory: &dyn VirtualMemory,
    observer: &dyn Observer,
) -> Result<(), OutputError> {
    let mut tensors: Vec<(&NamedTensor, &TensorInfo, Dtype)> = plan(model)
        .into_iter()
        .filter(|(_, placed)| *placed == Placed::In(which))
        .filter_map(|(tensor, _)| {
            let info = tensor.info.as_ref()?;
            Some((tensor, info, dtype(&info.dtype)?))
        })
        .collect();
    // The order of state_dict(), but large types first, as the format's own writer does it: then
    // each tensor is aligned to its elements.
    tensors.sort_by_key(|(.., dtype)| std::cmp::Reverse(dtype.bitsize()));
    let mut file = folder.file(&format!("{}/{}", super::model_dir(model), which.name()))?;
    let header = header(&tensors)
        .map_err(|reason| OutputError::Header { path: file.path().to_owned(), reason: reason.to_string() })?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    let mut next = (size_of::<u64>() + header.len()) as u64;
    let places = tensors.iter().map(|(tensor, info, _)| {
        let place = next;
        next += info.byte_len();
        (*tensor, *info, place)
    });
    let places: Vec<(&NamedTensor, &TensorInfo, u64)> = places.collect();
    places.into_par_iter().try_for_each(|(tensor, info, place)| {
        let (digest, is_whole) = copy(info, memory, &file, place, observer)?;
        let is_same = tensor.sha256.as_ref().is_none_or(|expected| *expected == digest);
        if is_same && is_whole == (tensor.status == Status::Complete) {
            return Ok(());
        }
        Err(OutputError::Changed { model: model.id.clone(), tensor: tensor.name.clone() })
    })?;
    file.close()
}

fn header(tensors: &[(&NamedTensor, &TensorInfo, Dtype)]) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut end = 0usize;
    let mut entries = Vec::with_capacity(tensors.len());
    for (tensor, info, dtype) in tensors {
        let start = end;
        end = usize::try_from(info.byte_len())
            .ok()
            .and_then(|len| start.checked_add(len))
            .ok_or(safetensors::SafeTensorError::ValidationOverflow)?;
        let shape = info.shape.iter().map(|size| *size as usize).collect();
        entries.push((tensor.name.clone(), Entry { dtype: *dtype, shape, data_offsets: (start, end) }));
    }
    // What the transformers library asks for before it takes a file for weights of PyTorch.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(about), entries)?)?;
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
    info: &TensorInfo,
    memory: &dyn VirtualMemory,
    file: &OutputFile,
    mut place: u64,
    observer: &dyn Observer,
) -> Result<(String, bool), OutputError> {
    let mut hasher = Sha256::new();
    // No limit: only what has been gathered once before, with a limit, is written.
    let copied = gather(memory, info, u64::MAX, |bytes| {
        hasher.update(bytes);
        observer.advance(bytes.len() as u64);
        file.write_at(bytes, place).map_err(Stop::Output)?;
        place += bytes.len() as u64;
        Ok(())
    });
    match copied {
        Ok(holes) => Ok((hex(&hasher.finalize()), holes.is_empty())),
        Err(Stop::TooLarge(error)) => {
            Err(OutputError::Header { path: file.path().to_owned(), reason: error.to_string() })
        }
        Err(Stop::Output(error)) => Err(error),
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
