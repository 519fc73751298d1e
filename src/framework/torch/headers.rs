//! Tensors that are found by their headers alone: no Python object leads to them.
//!
//! Signatures give addresses at which a `TensorImpl` may lie. Here the layout is chosen by which most of them read as
//! tensors, and each is held against the memory around it: its storage is read, and its virtual table is one.

use std::collections::{BTreeMap, BTreeSet};

use super::script::ObjectNumbers;
use super::tensor::{Layout, Sample, is_virtual_table, select_layout};
use super::{Facts, SAMPLE, Torch, autograd, freed, owners};
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::framework::{self, HeaderTensor, Headers, Sweep};
use crate::model::Model;
use crate::paging::{AddressSpace, Cached, VirtualMemory};
use crate::signature::is_user_pointer;
use crate::tensor::TensorInfo;

/// What the names of the signatures of `TensorImpl`s begin with (`signatures/pytorch.toml`).
pub(super) const SIGNATURES: &str = "pytorch.tensor_impl";
/// Headers of one address space that are read.
const MAX_HEADERS: usize = 1 << 18;
/// References to an object, at most.
const MAX_REFERENCES: u64 = 0xff_ffff;
/// Tensors whose virtual table can't be read must be so many that share it: chance does not give two of them the same.
const MIN_SHARED: usize = 2;

/// The tensors of one address space.
pub(super) struct TorchHeaders<'a> {
    torch: &'a Torch,
    space: &'a AddressSpace,
    layout: Layout,
    tensors: Vec<HeaderTensor>,
    freed: Vec<HeaderTensor>,
    facts: Facts,
    /// Addresses that were not looked at.
    left_out: usize,
}

impl<'a> TorchHeaders<'a> {
    /// Those whose `TensorImpl`s lie at some of the addresses; `None` if none is one.
    pub(super) fn read(torch: &'a Torch, space: &'a AddressSpace, addresses: &[VirtAddr]) -> Option<Self> {
        let (addresses, rest) = addresses.split_at_checked(MAX_HEADERS).unwrap_or((addresses, &[]));
        let memory = Cached::new(space.clone());
        let (in_use, not_in_use): (Vec<VirtAddr>, Vec<VirtAddr>) =
            addresses.iter().partition(|address| is_in_use(&memory, **address));
        let sample = |all: &[VirtAddr]| all.iter().step_by(all.len() / SAMPLE + 1).copied().collect::<Vec<_>>();
        // Those whose table no other has are no tensors, and must not choose the layout.
        let (used, other) = (sample(&with_table(&memory, &in_use)), sample(&not_in_use));
        let selected = select_layout(&torch.layouts, space, &Sample { headers: &used, ..Sample::default() });
        let selected = selected.filter(|(_, best, _)| best.readable > 0);
        // Of a process that has freed nearly all of them, the freed ones say what the layout is.
        let by_freed = || {
            let read = selected.as_ref().map_or(0, |(_, best, _)| best.readable);
            let found = freed::select(&torch.layouts, &memory, &other).filter(|(_, score)| score.readable > read);
            found.filter(|_| read == 0 || space.is_freed())
        };
        let (layout, scores, sample) = match (by_freed(), selected.as_ref()) {
            (Some((layout, score)), _) => (layout.clone(), (score, None), &other),
            (None, Some((layout, best, next))) => (Layout::clone(layout), (best.clone(), next.clone()), &used),
            (None, None) => return None,
        };
        let layout = layout.with_keys(&torch.key_tables, space, sample, None, false);
        let tensors = tensors(&layout, torch.script_layouts.objects.first(), space, &in_use);
        let live: Vec<&TensorInfo> = tensors.iter().map(|tensor| &tensor.info).collect();
        let freed = freed::tensors(&layout, &memory, &not_in_use, &live);
        let freed: Vec<HeaderTensor> =
            freed.into_iter().map(|info| HeaderTensor { info, gradient: None, last_use: None }).collect();
        let dispatch_keys = layout.keys.as_ref().map(|keys| keys.version.clone());
        let facts = Facts { version: None, layout: Some(scores), dispatch_keys };
        let left_out = rest.len();
        (!tensors.is_empty() || !freed.is_empty()).then_some(Self {
            torch,
            space,
            layout,
            tensors,
            freed,
            facts,
            left_out,
        })
    }
}

/// The tensors at some of the addresses: those with a storage, and with a virtual table that others have as well.
fn tensors(
    layout: &Layout,
    numbers: Option<&ObjectNumbers>,
    space: &AddressSpace,
    addresses: &[VirtAddr],
) -> Vec<HeaderTensor> {
    let read = |at: &VirtAddr| {
        // A signature may match one on the meta device as well, which has no data.
        let has_data = |info: &TensorInfo| info.names_data() && info.is_on_cpu();
        let info = layout.read_tensor_impl(space, *at).ok().filter(has_data)?;
        Some((*at, info))
    };
    let mut read: BTreeMap<VirtAddr, TensorInfo> = addresses.iter().filter_map(read).collect();
    let gradient = |info: &TensorInfo| layout.read_grad(space, info).ok().flatten().map(|gradient| gradient.header);
    let sound = with_table(space, &read.keys().copied().collect::<Vec<_>>());
    let sound = sound.iter().filter_map(|at| read.remove(at));
    let sound: Vec<TensorInfo> = sound.collect();
    let uses = numbers.map(|numbers| autograd::last_uses(space, layout, numbers, &sound)).unwrap_or_default();
    let tensor = |info: TensorInfo| {
        let last_use = uses.get(&info.header).copied();
        HeaderTensor { gradient: gradient(&info), last_use, info }
    };
    sound.into_iter().map(tensor).collect()
}

/// Those of some objects that begin with the address of a virtual table: what lies there is one or, where it can't be read, another
/// object begins with the same address.
fn with_table(memory: &dyn VirtualMemory, objects: &[VirtAddr]) -> Vec<VirtAddr> {
    let table = |object: &VirtAddr| Some((memory.pointer(*object, 0).ok()?, *object));
    let mut by_table: BTreeMap<VirtAddr, Vec<VirtAddr>> = BTreeMap::new();
    for (table, object) in objects.iter().filter_map(table) {
        by_table.entry(table).or_default().push(object);
    }
    by_table.retain(|table, objects| is_virtual_table(memory, *table).unwrap_or(objects.len() >= MIN_SHARED));
    let mut all: Vec<VirtAddr> = by_table.into_values().flatten().collect();
    all.sort_unstable();
    all
}

/// Whether a `TensorImpl` or a `StorageImpl` seems to be in use: it begins with the address of a virtual table, and there are references
/// to it. What has been freed has neither, or other numbers in their place (`c10::intrusive_ptr_target`).
pub(super) fn is_in_use(memory: &dyn VirtualMemory, object: VirtAddr) -> bool {
    let has_table = || {
        let table = memory.pointer(object, 0).ok().filter(|table| is_user_pointer(table.0));
        table.is_some_and(|table| is_virtual_table(memory, table).unwrap_or(true))
    };
    // From 2.10 on, both counts and flags are in one word.
    let references = memory.word(object, 8).unwrap_or_default() & u64::from(u32::MAX);
    (1..=MAX_REFERENCES).contains(&references) && has_table()
}

impl Headers for TorchHeaders<'_> {
    fn tensors(&self) -> &[HeaderTensor] {
        &self.tensors
    }

    fn freed(&self) -> &[HeaderTensor] {
        &self.freed
    }

    fn models(&self, headers: &BTreeSet<VirtAddr>, sweep: &Sweep<'_>) -> Vec<Model> {
        let all = self.tensors.iter().map(|tensor| tensor.info.header).collect();
        owners::models(self.space, &self.layout, &self.torch.script_layouts, (headers, &all), sweep)
    }

    fn warning(&self) -> Option<Diagnostic> {
        let left_out = self.left_out;
        let message =
            format!("{left_out} places that may hold headers of tensors are left out: at most {MAX_HEADERS} are read");
        (left_out > 0).then(|| Diagnostic::new(Code::TensorsLeftOut, None, message))
    }

    fn describe(&self, facts: &mut framework::Facts) {
        facts.torch = Some(self.facts.clone());
    }
}
