//! The tensors that their headers alone give, in all address spaces, beside those that Python leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

use super::Spaces;
use super::recover::Process;
use crate::addr::{PhysAddr, VirtAddr};
use crate::chain::{self, Chain, Item};
use crate::dump::PhysicalMemory;
use crate::framework::{Frameworks, HeaderTensor, Headers, standalone};
use crate::model::{Model, NamedTensor, Referrer, StandaloneTensor, TensorKind};
use crate::paging::{self, AddressSpace, DataPages, FreedFrames, FreedPages, Mapping, ReverseMap};
use crate::scan::Backend;
use crate::signature::{Signatures, is_user_pointer};
use crate::tensor::TensorInfo;

/// Addresses of a space under which one header is looked at: a hostile space maps a frame a million times.
const MAX_ALIASES: usize = 64;
/// Bits of sizes that neighbours in a chain agree on, beside networks that Python leads to: as of two links with 64 features.
const MIN_AGREEING_BITS: u32 = 12;
/// Headers in freed memory, at least, for which it is searched for the pages of ended processes.
const MIN_FREED: usize = 4;
/// Ended processes that are read: those with the most headers.
const MAX_ENDED: usize = 64;
/// Two counts of references, in one word.
const MAX_COUNTS: u64 = 0x00ff_ffff_00ff_ffff;
/// Bytes in which the libraries of one process lie, at most.
const LIBRARIES: u64 = 1 << 32;

/// How the tensors that headers give compare with those that Python leads to, in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HeaderComparison {
    /// Tensors that were found by their headers.
    pub found: usize,
    /// Those of them that Python leads to as well.
    pub of_python: usize,
    /// The headers of those that read differently in these two ways.
    pub differing: Vec<VirtAddr>,
    /// The headers of tensors with a storage in the computer's own memory that Python leads to, and that were not found by them.
    pub not_found: Vec<VirtAddr>,
    /// Tensors whose header, storage and data were freed, and whose data nothing seems to have used since.
    pub freed: usize,
}

/// Adds what headers give to the processes: to those that are there, and to new ones.
pub(super) fn add(
    processes: &mut Vec<Process>,
    frameworks: &Frameworks,
    spaces: &Spaces,
    signatures: &Signatures,
    backend: Backend,
) {
    for prefix in frameworks.header_signatures() {
        let candidates = candidates(spaces, signatures, prefix);
        let found =
            candidates.par_iter().map(|found| (found, frameworks.headers(prefix, &found.space, &found.addresses)));
        for (Candidates { space, mappings, .. }, headers) in found.collect::<Vec<_>>() {
            let Some(headers) = headers else { continue };
            let pages = || DataPages::new(PhysicalMemory::clone(&spaces.memory), backend, vec![(0, mappings.to_vec())]);
            let is_here = |process: &&mut Process| !space.is_freed() && process.root() == space.root();
            match processes.iter_mut().find(is_here) {
                Some(process) => join(process, &*headers, &pages),
                None => {
                    let mut process = Process::new(space.clone());
                    headers.describe(&mut process.facts);
                    join(&mut process, &*headers, &pages);
                    processes.push(process);
                }
            }
        }
    }
}

/// Where headers may lie in one address space.
struct Candidates {
    space: AddressSpace,
    /// Its pages of data.
    mappings: Arc<[Mapping]>,
    /// Sorted.
    addresses: Vec<VirtAddr>,
}

/// Where headers may lie, by the hits of the signatures whose names begin with `prefix`.
fn candidates(spaces: &Spaces, signatures: &Signatures, prefix: &str) -> Vec<Candidates> {
    let is_wanted = |signature: u16| signatures.name(signature).is_some_and(|name| name.starts_with(prefix));
    // The base may lie in another frame than the anchor: only the anchor's address can be looked up.
    let anchors: Vec<(PhysAddr, u64)> = spaces
        .hits
        .iter()
        .filter(|hit| is_wanted(hit.signature))
        .filter_map(|hit| Some((hit.anchor, signatures.structures().get(usize::from(hit.signature))?.anchor().offset)))
        .collect();
    if anchors.is_empty() {
        return Vec::new();
    }
    let (all, _) = spaces.distinct();
    let (mapped, _) = paging::data_mappings(all.iter(), spaces.mapping_limit());
    let reverse = ReverseMap::new(mapped.clone());
    let mut found = addresses(&reverse, &anchors);
    let of_space = |(index, mappings): (usize, Vec<Mapping>)| {
        let (space, addresses) = (all.get(index)?.clone(), found.remove(&index)?);
        Some(Candidates { space, mappings: mappings.into(), addresses })
    };
    let mut candidates: Vec<Candidates> = mapped.into_iter().filter_map(of_space).collect();
    let unmapped: Vec<(PhysAddr, u64)> =
        anchors.into_iter().filter(|(anchor, _)| reverse.lookup(*anchor).next().is_none()).collect();
    let has_tables = all.iter().any(|space| space.root().is_some());
    if has_tables && unmapped.len() >= MIN_FREED {
        candidates.extend(freed_candidates(spaces, &reverse, &unmapped));
    }
    candidates
}

/// The places in pages of ended processes.
fn freed_candidates(spaces: &Spaces, reverse: &ReverseMap, anchors: &[(PhysAddr, u64)]) -> Vec<Candidates> {
    let memory: &PhysicalMemory = &spaces.memory;
    let frames = FreedFrames::find(memory, &spaces.mmu, &reverse.frames());
    // An object begins with the address of its virtual table, which lies in a library, and the counts of references to it: of a freed
    // one both may still be there. The libraries of one process lie together.
    let table = |(anchor, offset): &(PhysAddr, u64)| {
        frames.address(*anchor)?;
        let start = anchor.0.checked_sub(*offset)?;
        let (table, counts) = (memory.read_u64(PhysAddr(start))?, memory.read_u64(PhysAddr(start.checked_add(8)?))?);
        let is_object = is_user_pointer(table) && counts & !MAX_COUNTS == 0;
        (is_object && anchor.in_frame() >= *offset).then_some(table)
    };
    let mut tables: Vec<u64> = anchors.iter().filter_map(table).collect();
    tables.sort_unstable();
    let mut libraries: Vec<&[u64]> = tables.chunk_by(|one, next| next - one < LIBRARIES).collect();
    libraries.sort_by_key(|tables| std::cmp::Reverse(tables.len()));
    let first = |tables: &&[u64]| tables.first().copied().map(VirtAddr);
    let libraries: Vec<VirtAddr> = libraries.iter().filter_map(first).take(MAX_ENDED).collect();
    let of_process = |pages: FreedPages| {
        let mappings: Arc<[Mapping]> = pages.mappings().into();
        let addresses = addresses(&ReverseMap::new([(0, mappings.to_vec())]), anchors).remove(&0)?;
        Some(Candidates { space: AddressSpace::of_freed(&spaces.memory, pages), mappings, addresses })
    };
    frames.processes(memory, &libraries).into_iter().filter_map(of_process).collect()
}

/// Where the headers with those anchors, at offsets in them, begin: sorted, for each space.
fn addresses(reverse: &ReverseMap, anchors: &[(PhysAddr, u64)]) -> BTreeMap<usize, Vec<VirtAddr>> {
    let mut found: BTreeMap<usize, Vec<VirtAddr>> = BTreeMap::new();
    for (anchor, offset) in anchors {
        for (space, at) in reverse.lookup(*anchor).take(MAX_ALIASES) {
            found.entry(space).or_default().extend(at.0.checked_sub(*offset).map(VirtAddr));
        }
    }
    for addresses in found.values_mut() {
        addresses.sort_unstable();
        addresses.dedup();
    }
    found
}

/// Compares what headers give with what is known of a process, and adds what is new.
///
/// `pages` gives the pages of data of its space.
fn join(process: &mut Process, headers: &dyn Headers, pages: &dyn Fn() -> DataPages) {
    let found = headers.tensors();
    let (comparison, mut free) = compare(&known(&process.models, &process.standalone.found), found);
    let comparison = HeaderComparison { freed: headers.freed().len(), ..comparison };
    // Where Python leads to networks, most of what is left are values that C++ keeps: a few small ones fit by chance.
    let is_likely = |chain: &Chain| comparison.of_python == 0 || chain.agreeing_bits() >= MIN_AGREEING_BITS;
    let chains = |tensors: &[&HeaderTensor]| {
        let items = items(tensors);
        let chains = chain::assemble(&items).into_iter().filter(is_likely);
        chains.map(|chain| Model::of_chain(&chain, &items)).collect::<Vec<Model>>()
    };
    if !free.is_empty() {
        let pages = pages();
        let sweep = |wanted: &BTreeSet<VirtAddr>| pages.sweep(std::slice::from_ref(wanted)).pop().unwrap_or_default();
        let of_modules = headers.models(&free.iter().map(|tensor| tensor.info.header).collect(), &sweep);
        retain_unknown(&mut free, &of_modules);
        let of_chains = chains(&free);
        retain_unknown(&mut free, &of_chains);
        // Python has the frozen module, but not its weights.
        for model in of_modules {
            match process.models.iter_mut().find(|known| known.lacks_constants(&model)) {
                Some(known) => known.take_constants(model),
                None => process.models.push(model),
            }
        }
        process.models.extend(of_chains);
    }
    // Apart from those that are in use: a network is freed as a whole.
    let mut freed: Vec<&HeaderTensor> = headers.freed().iter().collect();
    let of_chains = chains(&freed);
    retain_unknown(&mut freed, &of_chains);
    process.models.extend(of_chains);
    let of_gradient: BTreeMap<VirtAddr, VirtAddr> =
        found.iter().filter_map(|tensor| Some((tensor.gradient?, tensor.info.header))).collect();
    let root = process.root();
    let standalone = free.into_iter().chain(freed).map(|HeaderTensor { info, .. }| {
        let (header, name) = (info.header, standalone::name(root, info.header));
        let named = NamedTensor::new(name, TensorKind::Other, info.object, Ok(info.clone()));
        let referrers = of_gradient.get(&header).map(|of| Referrer::GradientOf { object: *of }).into_iter().collect();
        StandaloneTensor { referrers, ..StandaloneTensor::new(named) }
    });
    process.standalone.found.extend(standalone);
    process.standalone.warnings.extend(headers.warning());
    process.standalone.sort();
    process.headers = Some(comparison);
}

/// Leaves those that are in none of the models.
fn retain_unknown(tensors: &mut Vec<&HeaderTensor>, models: &[Model]) {
    let known = known(models, &[]);
    tensors.retain(|tensor| !known.contains_key(&tensor.info.header));
}

/// Tensors as what chains are put together from.
fn items(tensors: &[&HeaderTensor]) -> Vec<Item> {
    let indices: BTreeMap<VirtAddr, usize> =
        tensors.iter().enumerate().map(|(index, tensor)| (tensor.info.header, index)).collect();
    let gradient = |tensor: &HeaderTensor| tensor.gradient.and_then(|header| indices.get(&header).copied());
    tensors
        .iter()
        .map(|tensor| Item { info: tensor.info.clone(), gradient: gradient(tensor), last_use: tensor.last_use })
        .collect()
}

/// How the tensors that were found compare with those that are known by other means, and those that are not known.
fn compare<'h>(
    known: &BTreeMap<VirtAddr, Vec<&TensorInfo>>,
    found: &'h [HeaderTensor],
) -> (HeaderComparison, Vec<&'h HeaderTensor>) {
    let mut comparison = HeaderComparison { found: found.len(), ..HeaderComparison::default() };
    let mut free = Vec::new();
    for tensor in found {
        match known.get(&tensor.info.header) {
            Some(others) => {
                comparison.of_python += 1;
                if !others.iter().any(|other| other.is_like(&tensor.info)) {
                    comparison.differing.push(tensor.info.header);
                }
            }
            None => free.push(tensor),
        }
    }
    let is_found = |at: VirtAddr| found.binary_search_by_key(&at, |tensor| tensor.info.header).is_ok();
    // What is packed in another structure has no header of its own.
    let has_header = |info: &&&TensorInfo| info.storage.0 != 0 && info.storage != info.header && info.is_on_cpu();
    let with_header = known.values().filter_map(|infos| infos.first()).filter(has_header).map(|info| info.header);
    comparison.not_found = with_header.filter(|header| !is_found(*header)).collect();
    (comparison, free)
}

/// All tensors of models and beside them, and their parts, by their headers. A part may be read from the header of another.
fn known<'t>(models: &'t [Model], standalone: &'t [StandaloneTensor]) -> BTreeMap<VirtAddr, Vec<&'t TensorInfo>> {
    fn add<'t>(all: &mut BTreeMap<VirtAddr, Vec<&'t TensorInfo>>, tensor: &'t NamedTensor) {
        let inner = tensor.inner.iter().map(|inner| &inner.tensor);
        inner.chain(&tensor.parts).for_each(|tensor| add(all, tensor));
        if let Some(info) = &tensor.info {
            all.entry(info.header).or_default().push(info);
        }
    }
    let mut all = BTreeMap::new();
    let of_models = models.iter().flat_map(Model::all_tensors);
    let others = standalone.iter().map(|found| &found.tensor);
    of_models.chain(others).for_each(|tensor| add(&mut all, tensor));
    all
}
