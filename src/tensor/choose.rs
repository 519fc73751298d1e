//! Which layout reads the tensors of a process: the table that fits best, or one that is inferred where none does.

use std::borrow::Cow;
use std::cmp::Reverse;

use super::infer::Evidence;
use super::layout::Layout;
use super::read::TensorError;
use crate::addr::VirtAddr;
use crate::cpython::{Change, ObjectError, Objects};

/// A table fits if at most one in this many tensors contradicts it: some are odd, or were captured while they changed.
const ODD_ONE_IN: usize = 8;

/// How well a layout reads the tensors of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorScore {
    /// Tensors whose fields agree.
    pub readable: usize,
    /// Tensors whose storage ends where their elements end: of most it does, and chance does not give that.
    pub filled: usize,
    /// Tensors of which all was there to be read, and whose fields contradict each other.
    pub contradicted: usize,
    /// Tensors whose autograd data are of the layout's C++ ABI.
    pub same_abi: usize,
    /// Tensors that gradients are recorded for, and whose gradient, if they have one, has their shape.
    pub learned: usize,
    /// Tensors that were tried.
    pub tried: usize,
    /// Version of the table.
    pub version: String,
    /// Whether the table was only the first guess, and the tensors themselves told the rest.
    pub inferred: bool,
    /// The numbers that are not those of the table.
    pub changes: Vec<Change>,
}

impl TensorScore {
    /// Whether another layout could read more.
    fn is_doubtful(&self, has_autograd: bool) -> bool {
        let fits = self.readable > 0 && self.contradicted * ODD_ONE_IN <= self.tried;
        !fits || (has_autograd && (self.same_abi == 0 || self.learned == 0))
    }

    /// What decides between layouts, the most important first.
    fn key(&self) -> (usize, usize, usize, Reverse<usize>) {
        // A wrong place for the storage may read as one that is large, and on some device.
        (self.readable + self.filled, self.same_abi, self.learned, Reverse(self.changes.len()))
    }
}

/// The layout that reads most of the tensors, its score, and that of the next best table.
///
/// `None` if no layout reads any.
pub fn choose<'a>(
    tables: &'a [Layout],
    objects: &Objects<'_>,
    tensors: &[VirtAddr],
) -> Option<(Cow<'a, Layout>, TensorScore, Option<TensorScore>)> {
    let mut scored: Vec<_> =
        tables.iter().map(|table| (Cow::Borrowed(table), score(table, objects, tensors))).collect();
    scored.sort_by_key(|(_, score)| score.key());
    let has_autograd = |layout: &Layout| {
        let mut read = tensors.iter().filter_map(|tensor| layout.read(objects, *tensor).ok());
        read.any(|info| layout.string_abi_fits(objects, info.tensor_impl).is_some())
    };
    let is_doubtful = scored.last().is_some_and(|(table, score)| score.is_doubtful(has_autograd(table)));
    if is_doubtful {
        let evidence = Evidence::new(objects, tensors);
        let inferred = tables.iter().filter_map(|table| {
            let layout = evidence.infer(table)?;
            let score = score(&layout, objects, tensors);
            let changes = changes(table, &layout);
            // As it stands, the table is among those that were tried.
            (!changes.is_empty()).then_some((Cow::Owned(layout), TensorScore { inferred: true, changes, ..score }))
        });
        let best = inferred.max_by_key(|(_, score)| score.key());
        scored.extend(best);
        scored.sort_by_key(|(_, score)| score.key());
    }
    scored.retain(|(_, score)| score.readable > 0);
    let (layout, best) = scored.pop()?;
    Some((layout, best, scored.pop().map(|(_, score)| score)))
}

fn score(layout: &Layout, objects: &Objects<'_>, tensors: &[VirtAddr]) -> TensorScore {
    let mut score = TensorScore {
        readable: 0,
        filled: 0,
        contradicted: 0,
        same_abi: 0,
        learned: 0,
        tried: tensors.len(),
        version: layout.offsets.version.clone(),
        inferred: false,
        changes: Vec::new(),
    };
    for tensor in tensors {
        let info = match layout.read(objects, *tensor) {
            Ok(info) => info,
            Err(error) => {
                score.contradicted += usize::from(!matches!(error, TensorError::Object(ObjectError::Fault(_))));
                continue;
            }
        };
        score.readable += 1;
        let end = info.storage_offset.saturating_mul(info.dtype.size).saturating_add(info.byte_len());
        score.filled += usize::from(info.storage_bytes > 0 && info.storage_bytes == end);
        score.same_abi += usize::from(layout.string_abi_fits(objects, info.tensor_impl) == Some(true));
        let grad_fits =
            layout.read_grad(objects, &info).is_ok_and(|grad| grad.is_none_or(|grad| grad.shape == info.shape));
        score.learned += usize::from(info.requires_grad && grad_fits);
    }
    score
}

fn changes(table: &Layout, found: &Layout) -> Vec<Change> {
    let pairs = table.numbers().into_iter().zip(found.numbers());
    pairs
        .filter(|((_, table), (_, found))| table != found)
        .map(|((number, table), (_, found))| Change { number, from: Some(table), to: Some(found) })
        .collect()
}
