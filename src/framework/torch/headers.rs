//! Tensors that are found by their headers alone: no Python object leads to them.
//!
//! Signatures give addresses at which a `TensorImpl` may lie. Here the layout is chosen by which most of them read as
//! tensors, and each is held against the memory around it: its storage is read, and its virtual table is one.

use std::collections::{BTreeMap, BTreeSet};

use super::tensor::{Layout, Sample, TensorScore, is_virtual_table, select_layout};
use super::{Facts, SAMPLE, Torch, owners};
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::framework::{self, HeaderTensor, Headers, Sweep};
use crate::model::Model;
use crate::paging::{AddressSpace, VirtualMemory};
use crate::tensor::TensorInfo;

/// What the names of the signatures of `TensorImpl`s begin with (`signatures/pytorch.toml`).
pub(super) const SIGNATURES: &str = "pytorch.tensor_impl";
/// Headers of one address space that are read.
const MAX_HEADERS: usize = 1 << 18;
/// Tensors whose virtual table can't be read must be so many that share it: chance does not give two of them the same.
const MIN_SHARED: usize = 2;

/// The tensors of one address space.
pub(super) struct TorchHeaders<'a> {
    torch: &'a Torch,
    space: &'a AddressSpace,
    layout: Layout,
    tensors: Vec<HeaderTensor>,
    facts: Facts,
    /// Addresses that were not looked at.
    left_out: usize,
}

impl<'a> TorchHeaders<'a> {
    /// Those whose `TensorImpl`s lie at some of the addresses; `None` if none is one.
    pub(super) fn read(torch: &'a Torch, space: &'a AddressSpace, addresses: &[VirtAddr]) -> Option<Self> {
        let (addresses, rest) = addresses.split_at_checked(MAX_HEADERS).unwrap_or((addresses, &[]));
        let sample: Vec<VirtAddr> = addresses.iter().step_by(addresses.len() / SAMPLE + 1).copied().collect();
        let selected = select_layout(&torch.layouts, space, &Sample { headers: &sample, ..Sample::default() });
        let (layout, best, next) = selected.filter(|(_, best, _)| best.readable > 0)?;
        let layout = layout.into_owned().with_keys(&torch.key_tables, space, &sample, None, false);
        let tensors = tensors(&layout, space, addresses);
        let facts = facts(&layout, best, next);
        (!tensors.is_empty()).then_some(Self { torch, space, layout, tensors, facts, left_out: rest.len() })
    }
}

fn facts(layout: &Layout, best: TensorScore, next: Option<TensorScore>) -> Facts {
    let dispatch_keys = layout.keys.as_ref().map(|keys| keys.version.clone());
    Facts { version: None, layout: Some((best, next)), dispatch_keys }
}

/// The tensors at some of the addresses: those with a storage, and with a virtual table that others have as well.
fn tensors(layout: &Layout, space: &AddressSpace, addresses: &[VirtAddr]) -> Vec<HeaderTensor> {
    let read = |at: &VirtAddr| {
        // A signature may match one on the meta device as well, which has no data.
        let has_data = |info: &TensorInfo| info.storage.0 != 0 && info.is_on_cpu();
        let info = layout.read_tensor_impl(space, *at).ok().filter(has_data)?;
        Some((space.pointer(*at, 0).ok()?, info))
    };
    let read: Vec<(VirtAddr, TensorInfo)> = addresses.iter().filter_map(read).collect();
    let mut sharing: BTreeMap<VirtAddr, usize> = BTreeMap::new();
    read.iter().for_each(|(table, _)| *sharing.entry(*table).or_default() += 1);
    sharing.retain(|table, count| is_virtual_table(space, *table).unwrap_or(*count >= MIN_SHARED));
    let gradient = |info: &TensorInfo| layout.read_grad(space, info).ok().flatten().map(|gradient| gradient.header);
    let sound = read.into_iter().filter(|(table, _)| sharing.contains_key(table));
    sound.map(|(_, info)| HeaderTensor { gradient: gradient(&info), info }).collect()
}

impl Headers for TorchHeaders<'_> {
    fn tensors(&self) -> &[HeaderTensor] {
        &self.tensors
    }

    fn models(&self, headers: &BTreeSet<VirtAddr>, sweep: &Sweep<'_>) -> Vec<Model> {
        owners::models(self.space, &self.layout, &self.torch.script_layouts, headers, sweep)
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
