//! The attributes of tensor objects: the tensors inside them, and the values that describe these.
//!
//! A wrapper (`DTensor`, torchao, bitsandbytes) has a shape but no elements of its own: these are in tensors in its
//! attributes, or in attributes of those. A placeholder is empty, and an attribute holds its elements.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use serde::Serialize;

use super::described::{Described, Describer};
use super::{Model, NamedTensor, Other, Reading, Status, TensorKind};
use crate::addr::VirtAddr;
use crate::cpython::{Builtins, Holders, Objects, Shape, Step};
use crate::framework::numpy::ArrayReader;
use crate::framework::torch::{Layout, TensorError};
use crate::tensor::{ArrayInfo, Elements, Form, Holes, TensorInfo};

/// The device that has no memory.
pub(super) const META: &str = "meta";
/// How many objects may lie between a tensor and one inside it.
const MAX_DEPTH: usize = 4;
/// Tensors and arrays inside one tensor that are listed as its parts.
const MAX_PARTS: usize = 64;
/// Objects that are looked into for one tensor, what each of them holds, and the same for all tensors of a process.
const MAX_OBJECTS: usize = 256;
const MAX_ITEMS: usize = 256;
const MAX_ALL_OBJECTS: usize = 1 << 18;
/// The longest name of a part, in bytes.
const MAX_NAME: usize = 1024;
/// Maximum number of tensors that a sentence names.
const MAX_SHOWN: usize = 3;

/// A tensor or an array inside a tensor.
#[derive(Clone, Debug)]
pub struct Inner {
    /// The path to it: `_local_tensor`, `quant_state.absmax`.
    pub path: String,
    /// Its bytes, and for a tensor its headers; its name is that of the tensor that it is inside, and the path.
    pub tensor: NamedTensor,
    /// The headers of an array.
    pub array: Option<ArrayInfo>,
}

/// A tensor that is listed under a name of its own and has the elements of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// Its name in `tensors.json`, or in a model.
    pub name: String,
    /// The path to it, from the tensor itself or from a module.
    pub path: String,
    /// Elements along each dimension.
    pub shape: Vec<u64>,
}

/// Why the elements of a tensor are not in its own storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shell {
    /// It has a shape but a null data pointer.
    Wrapper,
    /// It has no elements; another object has them.
    Placeholder,
}

impl Inner {
    /// Where its elements lie.
    pub(crate) fn elements(&self) -> Option<Elements> {
        match (&self.array, &self.tensor.reading) {
            (Some(array), Reading::Elements) => array.elements(),
            _ => self.tensor.elements(),
        }
    }

    /// Elements along each dimension, as far as they are known.
    pub(crate) fn shape(&self) -> Option<&[u64]> {
        let of_tensor = self.tensor.info.as_ref().map(|info| info.shape.as_slice());
        self.array.as_ref().map(|array| array.shape.as_slice()).or(of_tensor)
    }
}

impl NamedTensor {
    fn shell(&self) -> Option<Shell> {
        let info = self.info.as_ref()?;
        if is_wrapper(info) {
            return Some(Shell::Wrapper);
        }
        let has_elements = |shape: &[u64]| !shape.contains(&0);
        let is_elsewhere = self.inner.iter().filter_map(Inner::shape).any(has_elements)
            || self.elsewhere.iter().any(|other| has_elements(&other.shape));
        // Freed ones, and nested ones whose values are in attributes.
        if is_elsewhere && matches!(info.form, Form::Short | Form::Nested(None)) {
            return Some(Shell::Wrapper);
        }
        (info.numel() == 0 && is_elsewhere).then_some(Shell::Placeholder)
    }

    /// Whether its elements, if there are any, are not in its own storage.
    pub(super) fn is_shell(&self) -> bool {
        self.shell().is_some()
    }

    /// For a tensor without elements of its own, says where they are and how many of them are there. Such a tensor is
    /// never complete, because only the class's code says how it uses its tensors.
    pub(crate) fn judge_shell(&mut self) {
        let shell = self.shell();
        let is_moved = self.info.as_ref().is_some_and(|info| info.device == META) && !self.elsewhere.is_empty();
        if shell.is_none() && !is_moved {
            return;
        }
        let mut places: Vec<String> =
            self.inner.iter().filter(|inner| inner.tensor.info.is_some() || inner.array.is_some()).map(place).collect();
        let listed = |other: &Elsewhere| format!("{} {:?} (listed as {})", other.path, other.shape, other.name);
        places.extend(self.elsewhere.iter().map(listed));
        let count = places.len();
        let mut places = places.into_iter().take(MAX_SHOWN).collect::<Vec<_>>().join(", ");
        if count > MAX_SHOWN {
            places.push_str(&format!(" and {} more", count - MAX_SHOWN));
        }
        let class = self.class.as_deref().unwrap_or("it");
        if count == 0 {
            self.problem.get_or_insert_with(|| {
                format!(
                    "its data pointer is null, and none of its attributes holds a tensor: it is unknown where \
                         {class} keeps its elements"
                )
            });
            return;
        }
        let problem = match shell {
            Some(Shell::Wrapper) => format!("{class} keeps its elements in {places}"),
            Some(Shell::Placeholder) => format!("it is a placeholder without elements; they are in {places}"),
            None => format!("it is on the meta device, so it has a shape but no data; the weights are in {places}"),
        };
        let has_bytes = |inner: &Inner| matches!(inner.tensor.status, Status::Complete | Status::Partial);
        let is_device = |inner: &Inner| inner.tensor.status == Status::Device;
        match shell {
            None => {}
            Some(_) if self.inner.iter().any(has_bytes) => self.status = Status::Partial,
            Some(_) if self.inner.iter().any(is_device) => self.status = Status::Device,
            Some(_) => self.status = Status::Missing,
        }
        self.problem = Some(problem);
        self.holes = Holes::default();
        self.sha256 = None;
    }
}

/// Whether a tensor has a shape but no elements, because its storage has no address.
pub(super) fn is_wrapper(info: &TensorInfo) -> bool {
    let is_dense = matches!(info.form, Form::Strided | Form::Quantized(_));
    is_dense && info.data.0 == 0 && info.numel() > 0 && info.device != META
}

fn place(inner: &Inner) -> String {
    let shape = inner.shape().unwrap_or_default();
    match inner.tensor.status {
        Status::Complete | Status::Partial => format!("{} {shape:?} (written as {})", inner.path, inner.tensor.name),
        Status::Missing => format!("{} {shape:?} (missing)", inner.path),
        Status::Device => format!("{} {shape:?} (on a device)", inner.path),
    }
}

/// What is needed to read tensors and arrays inside others.
#[derive(Clone, Copy)]
pub struct Types<'a> {
    /// The types whose instances are tensors, and the layout that reads them.
    pub tensors: (&'a BTreeSet<VirtAddr>, Option<&'a Layout>),
    /// The same of arrays.
    pub arrays: (&'a BTreeSet<VirtAddr>, Option<&'a ArrayReader<'a>>),
}

/// A tensor that is looked into.
struct Owner {
    object: VirtAddr,
    name: String,
    kind: TensorKind,
    info: Option<TensorInfo>,
    found: Found,
    /// Objects that may still be looked into.
    left: usize,
}

/// An object on a way from an owner.
struct Node {
    object: VirtAddr,
    owner: usize,
    path: String,
    depth: usize,
}

struct Walk<'h, 'a> {
    objects: Objects<'a>,
    holders: &'h mut Holders<'a>,
    types: Types<'a>,
    owners: Vec<Owner>,
    /// Objects that are tensors with a name of their own, and the `TensorImpl`s of all that are listed.
    named: BTreeMap<VirtAddr, String>,
    impls: HashSet<VirtAddr>,
    seen: HashSet<VirtAddr>,
    left: usize,
}

/// What was found of the attributes of a tensor.
#[derive(Default)]
struct Found {
    inner: Vec<Inner>,
    elsewhere: Vec<Elsewhere>,
    attributes: Vec<(String, Described)>,
}

/// Gives each tensor of the models the tensors and arrays inside it, and a description of its attributes. A tensor
/// inside several others is listed with the one with the shortest path.
pub(crate) fn attach_attributes<'a>(
    models: &mut [Model],
    objects: Objects<'a>,
    builtins: &Builtins,
    holders: &mut Holders<'a>,
    types: Types<'a>,
) {
    let all: Vec<&NamedTensor> = models.iter().flat_map(Model::all_tensors).collect();
    let mut found = look(&all, &all, objects, builtins, holders, types);
    for tensor in models.iter_mut().flat_map(Model::all_tensors_mut) {
        if let Some(Found { inner, elsewhere, attributes }) = found.remove(&tensor.object) {
            (tensor.inner, tensor.elsewhere, tensor.attributes) = (inner, elsewhere, attributes);
        }
    }
    // Other names of the same tensor refer to what the first one has.
    let place = |inner: &Inner| {
        let shape = inner.shape()?.to_vec();
        Some(Elsewhere { name: inner.tensor.name.clone(), path: inner.path.clone(), shape })
    };
    let of_shells = models.iter().flat_map(Model::all_tensors).filter(|tensor| tensor.is_shell());
    let of_shells = of_shells.filter(|tensor| !tensor.inner.is_empty());
    let places: BTreeMap<VirtAddr, Vec<Elsewhere>> =
        of_shells.map(|tensor| (tensor.object, tensor.inner.iter().filter_map(place).collect())).collect();
    for tensor in models.iter_mut().flat_map(Model::all_tensors_mut).filter(|tensor| tensor.inner.is_empty()) {
        if let Some(places) = places.get(&tensor.object) {
            tensor.elsewhere.clone_from(places);
        }
    }
}

/// Describes the attributes of tensors outside any model; the tensors inside them are listed separately.
pub(super) fn attach_to_others<'a>(
    others: &mut [Other],
    models: &[Model],
    objects: Objects<'a>,
    builtins: &Builtins,
    holders: &mut Holders<'a>,
    types: Types<'a>,
) {
    let own: Vec<&NamedTensor> = others.iter().map(|other| &other.tensor).collect();
    let of_models = models.iter().flat_map(Model::all_tensors);
    let listed =
        of_models.flat_map(|tensor| std::iter::once(tensor).chain(tensor.inner.iter().map(|inner| &inner.tensor)));
    let listed: Vec<&NamedTensor> = own.iter().copied().chain(listed).collect();
    let mut found = look(&own, &listed, objects, builtins, holders, types);
    for tensor in others.iter_mut().map(|other| &mut other.tensor) {
        if let Some(Found { elsewhere, attributes, .. }) = found.remove(&tensor.object) {
            (tensor.elsewhere, tensor.attributes) = (elsewhere, attributes);
        }
    }
}

/// What is found by the attributes of tensors, by their objects; `listed` are all that have a name.
fn look<'a>(
    tensors: &[&NamedTensor],
    listed: &[&NamedTensor],
    objects: Objects<'a>,
    builtins: &Builtins,
    holders: &mut Holders<'a>,
    types: Types<'a>,
) -> BTreeMap<VirtAddr, Found> {
    let mut named: BTreeMap<VirtAddr, String> = BTreeMap::new();
    for tensor in listed.iter().filter(|tensor| tensor.object.0 != 0) {
        named.entry(tensor.object).or_insert_with(|| tensor.name.clone());
    }
    let mut known = HashSet::new();
    let first = tensors.iter().filter(|tensor| tensor.object.0 != 0 && known.insert(tensor.object));
    let owner = |tensor: &&NamedTensor| Owner {
        object: tensor.object,
        name: tensor.name.clone(),
        kind: tensor.kind,
        info: tensor.info.clone(),
        found: Found::default(),
        left: MAX_OBJECTS,
    };
    let owners = first.map(owner).collect();
    let infos = listed.iter().filter_map(|tensor| tensor.info.as_ref());
    let impls = infos.flat_map(|info| {
        let parts = info.form.parts().into_iter().map(|(_, part)| part.tensor_impl);
        parts.chain([info.tensor_impl]).collect::<Vec<_>>()
    });
    let impls = impls.collect();
    let mut walk = Walk { objects, holders, types, owners, named, impls, seen: HashSet::new(), left: MAX_ALL_OBJECTS };
    walk.run();
    let Walk { mut owners, mut named, holders, .. } = walk;
    for Owner { found, .. } in &owners {
        named.extend(found.inner.iter().map(|inner| (inner.tensor.object, inner.tensor.name.clone())));
    }
    let mut describer = Describer::new(objects, builtins, holders, types.tensors.0, &named);
    for Owner { object, found, .. } in &mut owners {
        found.attributes = describer.attributes(*object);
    }
    let has_any = |found: &Found| !(found.inner.is_empty() && found.attributes.is_empty());
    owners.into_iter().filter(|owner| has_any(&owner.found)).map(|owner| (owner.object, owner.found)).collect()
}

impl Walk<'_, '_> {
    fn run(&mut self) {
        self.seen.extend(self.named.keys());
        let start = |(owner, Owner { object, .. }): (usize, &Owner)| Node {
            object: *object,
            owner,
            path: String::new(),
            depth: 0,
        };
        let mut queue: VecDeque<Node> = self.owners.iter().enumerate().map(start).collect();
        while let Some(node) = queue.pop_front() {
            let Some(kind) = self.holders.kind(node.object) else { continue };
            let is_plain = matches!(kind.shape, Shape::Plain | Shape::List | Shape::Tuple | Shape::Dict);
            if !is_plain || !self.take(node.owner) {
                continue;
            }
            for (step, object) in self.holders.held(node.object, &kind, MAX_ITEMS).into_iter().take(MAX_ITEMS) {
                if let Some(next) = self.visit(&node, step, object) {
                    queue.push_back(next);
                }
            }
        }
    }

    /// Counts a visited object; `false` if the limit is reached.
    fn take(&mut self, owner: usize) -> bool {
        let Some(owner) = self.owners.get_mut(owner) else { return false };
        let (Some(left), Some(all)) = (owner.left.checked_sub(1), self.left.checked_sub(1)) else { return false };
        (owner.left, self.left) = (left, all);
        true
    }

    /// Records what an object holds; returns it if it should be visited.
    fn visit(&mut self, from: &Node, step: Step, object: VirtAddr) -> Option<Node> {
        let type_object = self.objects.type_of(object).ok()?;
        let is_tensor = self.types.tensors.0.contains(&type_object);
        let is_array = self.types.arrays.0.contains(&type_object);
        let holds = from.depth + 1 < MAX_DEPTH && self.holders.kind(object).is_some();
        if !is_tensor && !is_array && !holds {
            return None;
        }
        let name = self.holders.name(step)?;
        let path = if from.path.is_empty() { name } else { format!("{}.{name}", from.path) };
        let owner = self.owners.get_mut(from.owner)?;
        if owner.name.len() + path.len() > MAX_NAME {
            return None;
        }
        if let Some(name) = self.named.get(&object) {
            // It has a name of its own, and here it may be all that there is.
            let layout = self.types.tensors.1?;
            if let Ok(info) = layout.read(&self.objects, object)
                && info.numel() > 0
                && object != owner.object
                && owner.info.as_ref().is_some_and(|own| is_wrapper(own) || own.numel() == 0)
                && owner.found.elsewhere.len() < MAX_PARTS
            {
                owner.found.elsewhere.push(Elsewhere { name: name.clone(), path, shape: info.shape });
            }
            return None;
        }
        if !self.seen.insert(object) {
            return None;
        }
        if is_tensor {
            let layout = self.types.tensors.1?;
            let read = layout.read(&self.objects, object);
            let is_own = read.as_ref().is_ok_and(|info| {
                let own = owner.info.as_ref().filter(|own| own.numel() > 0 && own.data.0 != 0);
                self.impls.contains(&info.tensor_impl) || own.is_some_and(|own| own.storage == info.storage)
            });
            // What has no elements of its own is looked into, and is no part.
            let is_shell = match &read {
                Ok(info) => is_wrapper(info) || info.numel() == 0 || info.form == Form::Short,
                Err(error) => matches!(error, TensorError::Contradiction { .. }),
            };
            if !is_own && !is_shell && owner.found.inner.len() < MAX_PARTS {
                if let Ok(info) = &read {
                    self.impls.insert(info.tensor_impl);
                }
                let name = format!("{}.{path}", owner.name);
                let read = read.map_err(|error| error.to_string());
                owner.found.inner.extend(with_parts(&path, NamedTensor::new(name, owner.kind, object, read)));
            }
        } else if is_array
            && let Some(Ok(info)) = self.types.arrays.1.map(|layout| layout.read(&self.objects, object))
            && info.elements().is_some()
            && owner.found.inner.len() < MAX_PARTS
        {
            let name = format!("{}.{path}", owner.name);
            let tensor = NamedTensor { kind: owner.kind, ..NamedTensor::array(name, object) };
            owner.found.inner.push(Inner { path: path.clone(), tensor, array: Some(info) });
        }
        holds.then(|| Node { object, owner: from.owner, path, depth: from.depth + 1 })
    }
}

/// A tensor inside another one and the parts that it consists of itself, each on its own.
fn with_parts(path: &str, mut tensor: NamedTensor) -> Vec<Inner> {
    let parts = std::mem::take(&mut tensor.parts);
    let whole = tensor.name.len();
    let part = |part: NamedTensor| {
        let path = format!("{path}{}", part.name.get(whole..).unwrap_or_default());
        Inner { path, tensor: part, array: None }
    };
    let parts: Vec<Inner> = parts.into_iter().map(part).collect();
    let own = Inner { path: path.to_owned(), tensor, array: None };
    // A sparse tensor is its parts.
    if own.tensor.elements().is_none() && !parts.is_empty() {
        return parts;
    }
    std::iter::once(own).chain(parts).collect()
}
