//! The bytes of all tensors, each read once: how much of it is there, and its hash.

use std::collections::BTreeMap;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::addr::{PhysAddr, VirtAddr};
use crate::model::{Model, NamedTensor, Status};
use crate::paging::AddressSpace;
use crate::recover::{Observer, Phase};
use crate::report;
use crate::tensor::{self, TensorInfo, TooLarge};

/// The device whose memory the dump holds, and the one that has none.
const CPU: &str = "cpu";
const META: &str = "meta";

/// A tensor under all its names.
struct Tensor<'t, 'a> {
    names: Vec<&'t mut NamedTensor>,
    space: AddressSpace<'a>,
}

/// Reads the tensors of the models of each space. A tensor of more bytes than `limit` is not read.
pub(crate) fn tensors<'t, 'a>(
    models: impl IntoIterator<Item = (&'t mut [Model], AddressSpace<'a>)>,
    limit: u64,
    observer: &dyn Observer,
) {
    let tensors = distinct(models, limit);
    let sizes = tensors.iter().filter_map(|tensor| Some(tensor.names.first()?.info.as_ref()?.byte_len()));
    observer.begin(Phase::Tensors, sizes.fold(0, u64::saturating_add));
    tensors.into_par_iter().for_each(|Tensor { mut names, space }| {
        let Some((first, others)) = names.split_first_mut() else { return };
        read(first, &space, limit, observer);
        for other in others {
            other.status = first.status;
            other.holes.clone_from(&first.holes);
            other.sha256.clone_from(&first.sha256);
            other.problem.clone_from(&first.problem);
        }
    });
}

/// Each tensor once, however many names it has, and in however many forked processes it lies in the same frames.
fn distinct<'t, 'a>(
    models: impl IntoIterator<Item = (&'t mut [Model], AddressSpace<'a>)>,
    limit: u64,
) -> Vec<Tensor<'t, 'a>> {
    let mut by_address: BTreeMap<(VirtAddr, VirtAddr), Vec<Tensor<'t, 'a>>> = BTreeMap::new();
    for (models, space) in models {
        let mut by_object: BTreeMap<VirtAddr, Vec<&mut NamedTensor>> = BTreeMap::new();
        for tensor in models.iter_mut().flat_map(Model::all_tensors_mut) {
            let object = tensor.info.as_ref().map_or(tensor.object, |info| info.tensor_impl);
            by_object.entry(object).or_default().push(tensor);
        }
        for (object, names) in by_object {
            let data = names.first().and_then(|name| name.info.as_ref()).map(|info| info.data).unwrap_or_default();
            by_address.entry((object, data)).or_default().push(Tensor { names, space });
        }
    }
    by_address.into_values().flat_map(|alike| if alike.len() > 1 { join(alike, limit) } else { alike }).collect()
}

/// Makes one of those tensors that have the same headers and lie in the same frames.
fn join<'t, 'a>(alike: Vec<Tensor<'t, 'a>>, limit: u64) -> Vec<Tensor<'t, 'a>> {
    let mut joined: Vec<(Option<Vec<PhysAddr>>, Tensor<'t, 'a>)> = Vec::new();
    for tensor in alike {
        let info = tensor.names.first().and_then(|name| name.info.as_ref());
        let places = info.and_then(|info| places(info, &tensor.space, limit));
        let same = joined.iter_mut().find(|(other_places, other)| {
            let other = other.names.first().and_then(|name| name.info.as_ref());
            places.is_some() && *other_places == places && other == info
        });
        match same {
            Some((_, same)) => same.names.extend(tensor.names),
            None => joined.push((places, tensor)),
        }
    }
    joined.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Where the pages of a tensor lie in physical memory; `None` if one of them is not there.
fn places(info: &TensorInfo, space: &AddressSpace<'_>, limit: u64) -> Option<Vec<PhysAddr>> {
    let end = info.data.checked_add(info.extent().filter(|bytes| *bytes <= limit)?)?;
    let mut places = Vec::new();
    let mut at = info.data;
    while at < end {
        let found = space.translate(at).ok()?;
        places.push(found.pa);
        at = at.checked_add(found.page_size - at.0 % found.page_size)?;
    }
    Some(places)
}

/// Reads all bytes of a tensor once: its status, holes and hash.
fn read(tensor: &mut NamedTensor, space: &AddressSpace<'_>, limit: u64, observer: &dyn Observer) {
    let Some(info) = &tensor.info else { return };
    match info.device.split(':').next() {
        Some(CPU) => {}
        Some(META) => {
            tensor.problem = Some("it is on the meta device: it has a shape and no data".to_owned());
            return;
        }
        _ => {
            tensor.status = Status::Device;
            return;
        }
    }
    let mut hash = Sha256::new();
    let result = tensor::gather::<TooLarge>(space, info, limit, |bytes| {
        hash.update(bytes);
        observer.advance(bytes.len() as u64);
        Ok(())
    });
    match result {
        Ok(holes) => {
            let missing: u64 = holes.iter().map(|hole| hole.end - hole.start).sum();
            tensor.status = match missing {
                0 => Status::Complete,
                missing if missing == info.byte_len() => Status::Missing,
                _ => Status::Partial,
            };
            tensor.holes = holes;
            tensor.sha256 = Some(report::hex(&hash.finalize()));
        }
        Err(error) => tensor.problem = Some(error.to_string()),
    }
}
