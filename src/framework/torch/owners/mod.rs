//! Modules that C++ holds, found from their tensors: a program with LibTorch has no Python objects that lead to them.
//!
//! Every slot of memory that holds the address of a tensor's header is looked at. In the slots of a script object a tag
//! follows it; in the dictionary of a `torch::nn` module a name precedes it; the code of TorchScript has it as a constant. From there the ways lead up, sweep by sweep: from an
//! element to the vector that it is in, from the vector to the object, from the object to the elements that hold it in turn.
//! Virtual tables are not asked: what an object is, all its fields have to agree on.

mod constants;
mod networks;
mod objects;
mod states;

use std::collections::BTreeSet;

use super::script::ScriptLayouts;
use super::tensor::Layout;
use crate::addr::VirtAddr;
use crate::framework::Sweep;
use crate::model::Model;
use crate::paging::VirtualMemory;
use constants::Constants;
use networks::Networks;
use objects::ScriptObjects;
use states::States;

/// Sweeps of memory: two for each level of nested modules, and those that find the first ones.
const MAX_SWEEPS: usize = 64;
/// Addresses that one sweep looks for.
const MAX_WANTED: usize = 1 << 20;

/// A slot of memory, and the wanted address that it holds.
pub(super) type Hit = (VirtAddr, VirtAddr);

/// The models whose modules hold some of the tensors with the headers `free`; those of no module are in none. Constants of a model may
/// be any of the tensors with the headers `all`: a buffer that is one may have its Python object still.
///
/// `layout` is that of the tensors. `sweep` finds the aligned slots of the same memory that hold one of a set of addresses.
pub(super) fn models(
    memory: &dyn VirtualMemory,
    layout: &Layout,
    layouts: &ScriptLayouts,
    (free, all): (&BTreeSet<VirtAddr>, &BTreeSet<VirtAddr>),
    sweep: &Sweep<'_>,
) -> Vec<Model> {
    let mut objects = ScriptObjects::new(memory, &layouts.objects, free);
    let mut networks: Vec<Networks<'_>> =
        layouts.objects.iter().map(|numbers| Networks::new(memory, numbers, free)).collect();
    let mut constants: Vec<Constants<'_>> =
        layouts.objects.iter().map(|numbers| Constants::new(memory, numbers, all)).collect();
    let references = sweep(all);
    let mut follow = |hits: &[Hit]| {
        let mut wanted = objects.follow(hits);
        networks.iter_mut().for_each(|networks| wanted.append(&mut networks.follow(hits)));
        constants.iter_mut().for_each(|constants| wanted.append(&mut constants.follow(hits)));
        if let Some(first) = wanted.iter().nth(MAX_WANTED).copied() {
            _ = wanted.split_off(&first);
        }
        wanted
    };
    let mut wanted = follow(&references);
    for _ in 0..MAX_SWEEPS {
        if wanted.is_empty() {
            break;
        }
        wanted = follow(&sweep(&wanted));
    }
    let mut models = objects.models(layouts, layout);
    // One program has one string ABI.
    let best = networks.iter().max_by_key(|networks| networks.len());
    models.extend(best.map(|best| best.models(layout)).unwrap_or_default());
    let best = constants.iter().max_by_key(|constants| constants.len());
    models.extend(best.map(|best| best.models(layout)).unwrap_or_default());
    models.sort_by_key(|model| model.object);
    if !models.is_empty() {
        let mut states = States::new(memory, &layouts.objects, free);
        let wanted = states.begins(&references);
        states.find(&sweep(&wanted));
        models.iter_mut().for_each(|model| states.attach(model, layout));
    }
    models
}
