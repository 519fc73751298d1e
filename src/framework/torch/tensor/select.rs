//! Which layout reads the tensors of a process: the layout file with the most evidence, or an inferred layout if no
//! file reads them.
//!
//! Layout files are trusted. A damaged tensor is unreadable by the right layout and may be readable by a wrong one. So
//! a layout file that reads most tensors is kept, and an inferred layout must be better than damage to a few words
//! could explain.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::error::TensorError;
use super::infer::Evidence;
use super::layout::Layout;
use crate::addr::VirtAddr;
use crate::cpython::ObjectError;
use crate::layout::{Change, Ranking, Release, changes, nearest, release};
use crate::paging::VirtualMemory;
use crate::tensor::TensorInfo;

/// Number of damaged words that must not decide which layout is right.
const FEW: usize = 5;

/// What a process tells about the layout of its tensors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample<'s> {
    /// The Python objects of its modules' tensors.
    pub tensors: &'s [VirtAddr],
    /// Other apparent tensors. Some are not tensors, so an unreadable one is no evidence.
    pub standalone: &'s [VirtAddr],
    /// What seems to be the `TensorImpl`s of tensors that C++ objects hold. They decide where the modules have no tensors.
    pub headers: &'s [VirtAddr],
    /// PyTorch's version as it says itself: `1.13.0+cu117`.
    pub version: Option<&'s str>,
}

impl Sample<'_> {
    /// What decides which layout it is.
    fn deciding(&self) -> &[VirtAddr] {
        if self.tensors.is_empty() { self.headers } else { self.tensors }
    }
}

/// How well a layout reads the tensors of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorScore {
    /// Tensors whose fields agree.
    pub readable: usize,
    /// Tensors whose storage ends where their elements end: of most it does, and chance does not give that.
    pub exact_storages: usize,
    /// Tensors of which all was there to be read, and whose fields contradict each other.
    pub contradicted: usize,
    /// Tensors whose autograd data are of the layout's C++ ABI.
    pub same_abi: usize,
    /// Tensors that gradients are recorded for, and whose gradient, if they have one, has their shape.
    pub requiring_grad: usize,
    /// Tensors that were tried.
    pub tried: usize,
    /// Tensors of no module that it reads as well.
    pub standalone: usize,
    /// Version of the table.
    pub version: String,
    /// Whether the table is one of those that are nearest to PyTorch's own version.
    pub is_of_version: bool,
    /// Versions of the tables that fit equally well and read some tensors differently.
    pub rivals: Vec<String>,
    /// Whether the table was only the first guess, and the tensors themselves told the rest.
    pub inferred: bool,
    /// The numbers that are not those of the table.
    pub changes: Vec<Change>,
}

/// The evidence for a layout.
#[derive(Clone, Debug, Default)]
struct Tally {
    score: TensorScore,
    /// Tensors whose headers agree, with or without their autograd data.
    headers: usize,
    /// Tensors with inconsistent headers.
    broken: usize,
    /// Tensors that have autograd data, by this layout.
    autograd: usize,
    /// Storages of those tensors.
    storages: BTreeSet<VirtAddr>,
    /// The same evidence from tensors of no module, all together, and of their C++ ABI.
    of_others: usize,
    abi_of_others: usize,
}

impl Tally {
    fn new(layout: &Layout, memory: &dyn VirtualMemory, sample: &Sample<'_>, nearest: &BTreeSet<Release>) -> Self {
        let of_objects = |tensors: &[VirtAddr]| {
            let read = tensors.iter().map(|tensor| layout.read_headers(memory, *tensor));
            Self::count(layout, memory, read)
        };
        let read = sample.headers.iter().map(|tensor| layout.read_tensor_impl(memory, *tensor));
        // What has no storage says little: by a wrong layout, nearly anything reads so.
        let names_data = |read: &Result<TensorInfo, _>| read.as_ref().is_ok_and(TensorInfo::names_data);
        let of_headers = Self::count(layout, memory, read.filter(names_data));
        let (mut tally, mut others) = (of_objects(sample.tensors), vec![of_objects(sample.standalone)]);
        if sample.tensors.is_empty() {
            tally = of_headers
        } else {
            others.push(of_headers)
        }
        tally.of_others = others.iter().map(Self::points).sum();
        tally.abi_of_others = others.iter().map(|others| others.score.same_abi).sum();
        let is_of_version = release(&layout.offsets.version).is_some_and(|release| nearest.contains(&release));
        let (version, tried) = (layout.offsets.version.clone(), sample.deciding().len());
        let standalone = others.iter().map(|others| others.score.readable).sum();
        tally.score = TensorScore { version, tried, is_of_version, standalone, ..tally.score };
        tally
    }

    fn count(
        layout: &Layout,
        memory: &dyn VirtualMemory,
        tensors: impl Iterator<Item = Result<TensorInfo, TensorError>>,
    ) -> Self {
        let mut tally = Self::default();
        let score = &mut tally.score;
        for tensor in tensors {
            let info = match tensor {
                Ok(info) => info,
                Err(error) => {
                    // A storage of no bytes was freed, as FSDP does it: that says nothing of the layout.
                    let is_telling = match &error {
                        TensorError::Object(ObjectError::Fault(_)) => false,
                        TensorError::Short(info) => info.storage_bytes > 0,
                        _ => true,
                    };
                    tally.broken += usize::from(is_telling);
                    continue;
                }
            };
            tally.headers += 1;
            tally.storages.extend(Some(info.storage).filter(|storage| storage.0 != 0));
            score.exact_storages += usize::from(fills_its_storage(&info));
            if let Some(is_same) = layout.string_abi_fits(memory, info.header) {
                tally.autograd += 1;
                score.same_abi += usize::from(is_same);
            }
            match layout.requires_grad(memory, info.header) {
                Ok(requires_grad) => {
                    let grad_fits = || {
                        let grad = layout.read_grad(memory, &info);
                        grad.is_ok_and(|grad| grad.is_none_or(|grad| grad.shape == info.shape))
                    };
                    score.readable += 1;
                    score.requiring_grad += usize::from(requires_grad && grad_fits());
                }
                Err(error) => score.contradicted += usize::from(!matches!(error, ObjectError::Fault(_))),
            }
        }
        score.contradicted += tally.broken;
        tally
    }

    /// How many fields of how many tensors agree.
    fn points(&self) -> usize {
        let score = &self.score;
        // A wrong place for the storage may read as one that is large, and on some device: that it is filled counts by itself.
        self.headers + score.readable + score.exact_storages + score.same_abi + score.requiring_grad + self.of_others
    }

    /// What decides between layouts. PyTorch's own version outweighs as much as a few damaged words can change, if the
    /// layout reads anything at all: what vendors build does not always keep to the version that it names. Among layouts
    /// for which as much speaks the rarer evidence decides.
    fn key(&self) -> (usize, bool, [usize; 4], Reverse<usize>) {
        let points = self.points();
        let is_of_version = self.score.is_of_version && points > 0;
        let TensorScore { readable, exact_storages, same_abi, requiring_grad, .. } = self.score;
        let rarest_first = [same_abi + self.abi_of_others, requiring_grad, exact_storages, readable];
        (points + if is_of_version { FEW } else { 0 }, is_of_version, rarest_first, Reverse(self.score.changes.len()))
    }

    fn reads_most(&self) -> bool {
        self.headers > self.broken
    }
}

/// The layout with the most evidence, its score, and the score of the next best layout file.
///
/// `None` if no layout reads any tensor. If PyTorch's version is known, it is the table of that version even then: it
/// says of each tensor what is wrong with it.
pub fn select_layout<'a>(
    tables: &'a [Layout],
    memory: &dyn VirtualMemory,
    sample: &Sample<'_>,
) -> Option<(Cow<'a, Layout>, TensorScore, Option<TensorScore>)> {
    let nearest = nearest(tables.iter().map(|table| table.offsets.version.as_str()), sample.version);
    let tally = |layout: &Layout| Tally::new(layout, memory, sample, &nearest);
    let ranked = |table| {
        let tally = tally(table);
        ((tally.key(), tally.score.is_of_version), (table, tally))
    };
    let ranking: Ranking<_, (&Layout, Tally)> = tables.iter().map(ranked).collect();
    let (_, (table, best)) = ranking.best()?;
    let mut scores = ranking.iter().filter(|(_, tally)| tally.points() > 0).map(|(_, tally)| tally.score.clone());
    if let Some((layout, score)) = inferred(&ranking, memory, sample, tally) {
        return Some((Cow::Owned(layout), score, scores.next()));
    }
    let runner_up = scores.nth(1);
    if best.points() == 0 {
        return best.score.is_of_version.then(|| (Cow::Borrowed(*table), best.score.clone(), None));
    }
    let differs = |rival: &Layout, tensor: &VirtAddr| {
        let (own, other) = (table.read_headers(memory, *tensor), rival.read_headers(memory, *tensor));
        own.is_ok_and(|own| !other.is_ok_and(|other| other.is_like(&own)))
    };
    let all = || sample.tensors.iter().chain(sample.standalone);
    let tied = ranking.rivals().map(|(layout, _)| *layout);
    let rivals: Vec<&Layout> = tied.filter(|rival| all().any(|tensor| differs(rival, tensor))).collect();
    if rivals.is_empty() {
        return Some((Cow::Borrowed(*table), best.score.clone(), runner_up));
    }
    let versions = rivals.iter().map(|rival| rival.offsets.version.clone()).collect();
    let layout = table.with_rivals(&rivals);
    Some((Cow::Owned(layout), TensorScore { rivals: versions, ..best.score.clone() }, runner_up))
}

/// A layout in place of the best table, if there is more against that table than damage to a few words would be.
fn inferred<K: Ord>(
    ranking: &Ranking<K, (&Layout, Tally)>,
    memory: &dyn VirtualMemory,
    sample: &Sample<'_>,
    tally: impl Fn(&Layout) -> Tally,
) -> Option<(Layout, TensorScore)> {
    let (_, (table, best)) = ranking.best()?;
    // Python objects lead to their headers, and headers back: without them nothing tells chance from a layout.
    if sample.tensors.is_empty() {
        return None;
    }
    let evidence = || Evidence::new(memory, sample.tensors);
    let scored = |of: &Layout, layout: Layout| {
        let changes = changes(of.numbers(), layout.numbers());
        let tally = tally(&layout);
        // As it stands, the table is among those that were tried.
        (!changes.is_empty()).then(|| {
            let score = TensorScore { inferred: true, changes, ..tally.score.clone() };
            (layout, Tally { score, ..tally })
        })
    };
    if best.reads_most() {
        // All but the autograd data is where the table has it: those may have moved by themselves.
        if best.autograd <= FEW || best.score.same_abi > 0 {
            return None;
        }
        let evidence = evidence();
        let is_alike =
            |tally: &Tally| (tally.headers, tally.score.exact_storages) == (best.headers, best.score.exact_storages);
        let alike = ranking.iter().filter(|(_, tally)| is_alike(tally));
        let moved = alike.filter_map(|(start, _)| scored(start, evidence.infer_autograd(start)?));
        let gain = |tally: &Tally| tally.score.same_abi + tally.score.requiring_grad;
        let (layout, found) = moved.max_by_key(|(_, tally)| gain(tally))?;
        return (gain(&found) > gain(best) + FEW).then(|| (layout.inferred_beside(table), found.score));
    }
    let evidence = evidence();
    let candidates = ranking.iter().filter_map(|(start, _)| scored(start, evidence.infer(start)?));
    // Each word belongs to one tensor or to one storage: damage to a few makes no more than a few storages unreadable.
    let is_better = |(layout, found): &(Layout, Tally)| {
        found.storages.len() > best.storages.len() + FEW && agrees(layout, (table, best), memory, sample.tensors)
    };
    let (layout, found) = candidates.filter(is_better).max_by_key(|(_, tally)| tally.key())?;
    Some((layout.inferred_beside(table), found.score))
}

/// Whether a layout reads what a table reads as that reads it, where chance would not give that.
fn agrees(
    layout: &Layout,
    (table, tally): (&Layout, &Tally),
    memory: &dyn VirtualMemory,
    tensors: &[VirtAddr],
) -> bool {
    let mut known = tensors.iter().filter_map(|tensor| Some((tensor, table.read_headers(memory, *tensor).ok()?)));
    tally.score.exact_storages == 0
        || known.all(|(tensor, info)| {
            info.numel() <= 1 || layout.read_headers(memory, *tensor).is_ok_and(|found| found.is_like(&info))
        })
}

/// Whether the storage ends where the elements end.
pub(in crate::framework::torch) fn fills_its_storage(info: &TensorInfo) -> bool {
    let end = info.storage_offset.saturating_mul(info.dtype.size).saturating_add(info.byte_len());
    info.storage_bytes > 0 && info.storage_bytes == end
}
