//! The bytes of all tensors and arrays, each read once: how much of it is there, and its hash.

use std::collections::BTreeMap;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::addr::{PhysAddr, VirtAddr};
use crate::diagnostic::Code;
use crate::model::{Model, NamedTensor, StandaloneTensor, Status};
use crate::paging::AddressSpace;
use crate::progress::{Observer, Phase};
use crate::tensor::{self, CPU, Elements, Form, TooLarge};

/// The device that has no memory.
const META: &str = "meta";

/// Maximum number of holes listed for all models together, and for the tensors outside any model of a process; and the
/// minimum per tensor.
const ALL_HOLES: usize = 1 << 18;
const MIN_HOLES: usize = 4;

/// One thing to read: where its elements lie, and what to fill in.
pub(crate) struct Target<'t> {
    tensor: &'t mut NamedTensor,
    elements: Option<Elements>,
    /// How many of its holes are listed.
    most_holes: usize,
}

impl<'t> Target<'t> {
    /// All tensors of a model, which is one of `models`.
    pub(crate) fn of_model(model: &'t mut Model, models: usize) -> impl Iterator<Item = Self> {
        let most_holes = holes_for(models.saturating_mul(model.all_tensors().count()));
        model.all_tensors_mut().map(move |tensor| Self { elements: tensor.elements(), tensor, most_holes })
    }

    /// The tensors and arrays of a process that are outside any model.
    pub(crate) fn standalone(all: &'t mut [StandaloneTensor]) -> impl Iterator<Item = Self> {
        let most_holes = holes_for(all.len());
        all.iter_mut().map(move |found| Self { elements: found.elements(), tensor: &mut found.tensor, most_holes })
    }

    /// What is read: equal for all names of one object, and different for two objects, whatever their addresses.
    fn key(&self) -> Key {
        let info = self.tensor.info.as_ref();
        Key {
            header: info.map(|info| info.header),
            object: info.map_or(self.tensor.object, |info| info.object),
            elements: self.elements.clone(),
        }
    }

    fn byte_len(&self) -> u64 {
        self.elements.as_ref().map_or(0, Elements::byte_len)
    }
}

/// How many holes are listed for each of that many tensors.
fn holes_for(tensors: usize) -> usize {
    (ALL_HOLES / tensors.max(1)).max(MIN_HOLES)
}

/// Identifies what is read. Addresses alone are not enough: a damaged dictionary entry may hold the address of another
/// tensor's `TensorImpl`, and an array may be at the address of a `TensorImpl`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Of a tensor whose headers were read.
    header: Option<VirtAddr>,
    object: VirtAddr,
    /// Where the bytes lie, if they are to be read.
    elements: Option<Elements>,
}

/// What is to be read once: a tensor under all its names.
struct SameElements<'t> {
    names: Vec<Target<'t>>,
    space: AddressSpace,
}

/// Reads the tensors and arrays of each space. One of more bytes than `limit` is not read.
pub(crate) fn tensors<'t>(
    spaces: impl IntoIterator<Item = (Vec<Target<'t>>, AddressSpace)>,
    limit: u64,
    observer: &dyn Observer,
) {
    let tensors = distinct(spaces, limit);
    let sizes = tensors.iter().filter_map(|alike| Some(alike.names.first()?.byte_len()));
    observer.begin(Phase::Tensors, sizes.fold(0, u64::saturating_add));
    tensors.into_par_iter().for_each(|SameElements { mut names, space }| {
        let Some((first, others)) = names.split_first_mut() else { return };
        read(first.tensor, first.elements.as_ref(), &space, (limit, first.most_holes), observer);
        for other in others {
            copy_findings(first.tensor, other.tensor);
        }
    });
}

fn copy_findings(from: &NamedTensor, to: &mut NamedTensor) {
    to.status = from.status;
    to.holes.clone_from(&from.holes);
    to.sources.clone_from(&from.sources);
    to.sha256.clone_from(&from.sha256);
    to.problem.clone_from(&from.problem);
    for (from, to) in from.parts.iter().zip(&mut to.parts) {
        copy_findings(from, to);
    }
}

/// Each tensor once, however many names it has, and in however many forked processes it lies in the same frames.
fn distinct<'t>(
    spaces: impl IntoIterator<Item = (Vec<Target<'t>>, AddressSpace)>,
    limit: u64,
) -> Vec<SameElements<'t>> {
    let mut by_key: BTreeMap<Key, Vec<SameElements<'t>>> = BTreeMap::new();
    for (targets, space) in spaces {
        // In one space the same addresses hold the same headers.
        let mut of_space: BTreeMap<Key, Vec<Target<'t>>> = BTreeMap::new();
        for target in targets {
            of_space.entry(target.key()).or_default().push(target);
        }
        for (key, names) in of_space {
            by_key.entry(key).or_default().push(SameElements { names, space: space.clone() });
        }
    }
    by_key.into_values().flat_map(|alike| if alike.len() > 1 { join(alike, limit) } else { alike }).collect()
}

/// Makes one of those tensors that have the same headers and lie in the same frames.
fn join<'t>(alike: Vec<SameElements<'t>>, limit: u64) -> Vec<SameElements<'t>> {
    let mut joined: Vec<(Option<Vec<PhysAddr>>, SameElements<'t>)> = Vec::new();
    for tensor in alike {
        let first = tensor.names.first();
        let frames = first.and_then(|first| frames(first.elements.as_ref()?, &tensor.space, limit));
        let same = joined.iter_mut().find(|(other_frames, other)| {
            let headers = |target: &Target<'t>| target.tensor.info.clone();
            frames.is_some() && *other_frames == frames && other.names.first().map(headers) == first.map(headers)
        });
        match same {
            Some((_, same)) => same.names.extend(tensor.names),
            None => joined.push((frames, tensor)),
        }
    }
    joined.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Where the pages of a tensor lie in physical memory; `None` if one of them is not there.
fn frames(elements: &Elements, space: &AddressSpace, limit: u64) -> Option<Vec<PhysAddr>> {
    let (mut at, end) = elements.span().filter(|(start, end)| end.0 - start.0 <= limit)?;
    let mut frames = Vec::new();
    while at < end {
        let found = space.translate(at).ok()?;
        frames.push(found.pa);
        at = at.checked_add(found.page_size - at.0 % found.page_size)?;
    }
    Some(frames)
}

/// Reads all bytes of a tensor and its parts once, for status, holes and hash. Reports bytes that are not the tensor's
/// elements.
fn read(
    tensor: &mut NamedTensor,
    elements: Option<&Elements>,
    space: &AddressSpace,
    limits: (u64, usize),
    observer: &dyn Observer,
) {
    for inner in &mut tensor.inner {
        let elements = inner.elements();
        read(&mut inner.tensor, elements.as_ref(), space, limits, observer);
    }
    read_bytes(tensor, elements, space, limits, observer);
    let info = tensor.info.as_ref().filter(|_| tensor.status != Status::Device);
    if let Some((info, obstacle)) = info.and_then(|info| Some((info, info.obstacle()?))) {
        if tensor.status == Status::Complete {
            tensor.status = if info.numel() == 0 { Status::Missing } else { Status::Partial };
        }
        tensor.problem = Some(obstacle.diagnostic(info.header));
    }
    tensor.judge_shell();
}

/// Reads all bytes of a tensor and its parts once.
fn read_bytes(
    tensor: &mut NamedTensor,
    elements: Option<&Elements>,
    space: &AddressSpace,
    (limit, most_holes): (u64, usize),
    observer: &dyn Observer,
) {
    match tensor.info.as_ref().and_then(|info| info.device.split(':').next()) {
        None | Some(CPU) => {}
        Some(device) => {
            tensor.status = Status::Device;
            if device == META {
                let message = "it is on the meta device, so it has a shape but no data";
                tensor.problem = Some(tensor.diagnostic(Code::MetaTensor, message));
            }
            return;
        }
    }
    for part in &mut tensor.parts {
        read(part, part.elements().as_ref(), space, (limit, most_holes), observer);
    }
    let Some(elements) = elements else {
        match tensor.info.as_ref().map(|info| &info.form) {
            Some(Form::Sparse(_) | Form::Nested(Some(_))) => tensor.status = joint_status(&tensor.parts),
            Some(Form::Opaque) => {
                let message = "it is opaque: it is unknown how its elements are stored";
                tensor.problem = Some(tensor.diagnostic(Code::UnknownElements, message));
            }
            // Left out, and it says why.
            Some(Form::Strided | Form::Quantized(_) | Form::Nested(None) | Form::Short) | None => {}
        }
        return;
    };
    let is_freed = tensor.info.as_ref().is_some_and(|info| info.freed.is_some());
    let mut hash = Sha256::new();
    let result = tensor::gather::<TooLarge>(space, elements, limit, |bytes| {
        hash.update(bytes);
        observer.advance(bytes.len() as u64);
        Ok(())
    });
    match result {
        Ok(holes) => {
            tensor.status = match holes.bytes {
                0 if space.is_freed() || is_freed => Status::Freed,
                0 => Status::Complete,
                missing if missing == elements.byte_len() => Status::Missing,
                _ => Status::Partial,
            };
            tensor.holes = holes.shortened(most_holes);
            tensor.sources = tensor::sources(space, elements);
            tensor.sha256 = Some(hex::encode(hash.finalize()));
        }
        Err(error) => tensor.problem = Some(tensor.diagnostic(Code::TooLarge, error.to_string())),
    }
}

/// How much of a tensor is there that consists of others.
fn joint_status(parts: &[NamedTensor]) -> Status {
    let all = |status| parts.iter().all(|part| part.status == status);
    let same = [Status::Complete, Status::Freed, Status::Missing].into_iter().find(|status| all(*status));
    same.unwrap_or(Status::Partial)
}
