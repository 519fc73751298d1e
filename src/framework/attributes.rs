//! The attributes of tensor objects: the tensors inside them, and the values that describe these.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::describe::Describer;
use super::{Header, Reader};
use crate::addr::VirtAddr;
use crate::cpython::{Builtins, Holders, Objects, Shape, Step};
use crate::model::{Described, Elsewhere, Inner, Model, NamedTensor, StandaloneTensor, TensorKind, is_wrapper};
use crate::tensor::{Form, TensorInfo};

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
    readers: &'h [Box<dyn Reader + 'a>],
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
pub(super) fn attach_to_models<'a>(
    models: &mut [Model],
    objects: Objects<'a>,
    builtins: &Builtins,
    holders: &mut Holders<'a>,
    readers: &[Box<dyn Reader + 'a>],
) {
    let all: Vec<&NamedTensor> = models.iter().flat_map(Model::all_tensors).collect();
    let mut found = find(&all, &all, objects, builtins, holders, readers);
    for tensor in models.iter_mut().flat_map(Model::all_tensors_mut) {
        if let Some(Found { inner, elsewhere, attributes }) = found.remove(&tensor.object) {
            (tensor.inner, tensor.elsewhere, tensor.attributes) = (inner, elsewhere, attributes);
        }
    }
    // Other names of the same tensor refer to what the first one has.
    let elsewhere = |inner: &Inner| {
        let shape = inner.shape()?.to_vec();
        Some(Elsewhere { name: inner.tensor.name.clone(), path: inner.path.clone(), shape })
    };
    let of_shells = models.iter().flat_map(Model::all_tensors).filter(|tensor| tensor.is_shell());
    let of_shells = of_shells.filter(|tensor| !tensor.inner.is_empty());
    let by_object: BTreeMap<VirtAddr, Vec<Elsewhere>> =
        of_shells.map(|tensor| (tensor.object, tensor.inner.iter().filter_map(elsewhere).collect())).collect();
    for tensor in models.iter_mut().flat_map(Model::all_tensors_mut).filter(|tensor| tensor.inner.is_empty()) {
        if let Some(elsewhere) = by_object.get(&tensor.object) {
            tensor.elsewhere.clone_from(elsewhere);
        }
    }
}

/// Describes the attributes of tensors outside any model; the tensors inside them are listed separately.
pub(super) fn attach_to_standalone<'a>(
    standalone: &mut [StandaloneTensor],
    models: &[Model],
    objects: Objects<'a>,
    builtins: &Builtins,
    holders: &mut Holders<'a>,
    readers: &[Box<dyn Reader + 'a>],
) {
    let tensors: Vec<&NamedTensor> = standalone.iter().map(|found| &found.tensor).collect();
    let of_models = models.iter().flat_map(Model::all_tensors);
    let listed =
        of_models.flat_map(|tensor| std::iter::once(tensor).chain(tensor.inner.iter().map(|inner| &inner.tensor)));
    let listed: Vec<&NamedTensor> = tensors.iter().copied().chain(listed).collect();
    let mut found = find(&tensors, &listed, objects, builtins, holders, readers);
    for tensor in standalone.iter_mut().map(|found| &mut found.tensor) {
        if let Some(Found { elsewhere, attributes, .. }) = found.remove(&tensor.object) {
            (tensor.elsewhere, tensor.attributes) = (elsewhere, attributes);
        }
    }
}

/// What is found by the attributes of tensors, by their objects; `listed` are all that have a name.
fn find<'a>(
    tensors: &[&NamedTensor],
    listed: &[&NamedTensor],
    objects: Objects<'a>,
    builtins: &Builtins,
    holders: &mut Holders<'a>,
    readers: &[Box<dyn Reader + 'a>],
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
        let parts = info.form.parts().into_iter().map(|(_, part)| part.header);
        parts.chain([info.header]).collect::<Vec<_>>()
    });
    let impls = impls.collect();
    let mut walk =
        Walk { objects, holders, readers, owners, named, impls, seen: HashSet::new(), left: MAX_ALL_OBJECTS };
    walk.run();
    let Walk { mut owners, mut named, holders, .. } = walk;
    for Owner { found, .. } in &owners {
        named.extend(found.inner.iter().map(|inner| (inner.tensor.object, inner.tensor.name.clone())));
    }
    let tensor_types: BTreeSet<VirtAddr> = readers.iter().flat_map(|reader| reader.tensor_types()).copied().collect();
    let mut describer = Describer::new(objects, builtins, holders, &tensor_types, &named);
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
        let reader = self.readers.iter().find(|reader| reader.tensor_types().contains(&type_object));
        let holds = from.depth + 1 < MAX_DEPTH && self.holders.kind(object).is_some();
        if reader.is_none() && !holds {
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
            if let Some(Ok(Header::Tensor(info))) = reader.and_then(|reader| reader.read_part(object))
                && info.numel() > 0
                && object != owner.object
                && owner.info.as_ref().is_some_and(|info| is_wrapper(info) || info.numel() == 0)
                && owner.found.elsewhere.len() < MAX_PARTS
            {
                owner.found.elsewhere.push(Elsewhere { name: name.clone(), path, shape: info.shape });
            }
            return None;
        }
        if !self.seen.insert(object) {
            return None;
        }
        let read = reader.filter(|_| owner.found.inner.len() < MAX_PARTS).and_then(|reader| reader.read_part(object));
        let name = || format!("{}.{path}", owner.name);
        match read {
            Some(Ok(Header::Tensor(info))) => {
                let of_owner = owner.info.as_ref().filter(|of_owner| of_owner.numel() > 0 && of_owner.data.0 != 0);
                let shares_storage = of_owner.is_some_and(|of_owner| of_owner.storage == info.storage);
                let is_listed = self.impls.contains(&info.header) || shares_storage;
                // What has no elements of its own is looked into, and is no part.
                let is_shell = is_wrapper(&info) || info.numel() == 0 || info.form == Form::Short;
                if !is_listed && !is_shell {
                    self.impls.insert(info.header);
                    let tensor = NamedTensor::new(name(), owner.kind, object, Ok(info));
                    owner.found.inner.extend(with_parts(&path, tensor));
                }
            }
            Some(Ok(Header::Array(array))) => {
                let tensor = NamedTensor { kind: owner.kind, ..NamedTensor::array(name(), object) };
                owner.found.inner.push(Inner { path: path.clone(), tensor, array: Some(array) });
            }
            Some(Err(problem)) => {
                let tensor = NamedTensor::new(name(), owner.kind, object, Err(problem));
                owner.found.inner.push(Inner { path: path.clone(), tensor, array: None });
            }
            None => {}
        }
        holds.then(|| Node { object, owner: from.owner, path, depth: from.depth + 1 })
    }
}

/// A tensor inside another one and the parts that it consists of itself, each on its own.
fn with_parts(path: &str, mut tensor: NamedTensor) -> Vec<Inner> {
    let parts = std::mem::take(&mut tensor.parts);
    let name_len = tensor.name.len();
    let part = |part: NamedTensor| {
        let path = format!("{path}{}", part.name.get(name_len..).unwrap_or_default());
        Inner { path, tensor: part, array: None }
    };
    let parts: Vec<Inner> = parts.into_iter().map(part).collect();
    let whole = Inner { path: path.to_owned(), tensor, array: None };
    // A sparse tensor is its parts.
    if whole.tensor.elements().is_none() && !parts.is_empty() {
        return parts;
    }
    std::iter::once(whole).chain(parts).collect()
}
