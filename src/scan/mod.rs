//! One pass over physical memory: page-table frames, structures and needles; and the sweep for pointer values.
//!
//! [`scan`] looks at every byte once, in chunks that fit the cache, on all threads of the current
//! rayon pool, and finds the same on every [`Backend`] and with any number of threads.
//!
//! Structures are matched within a frame: physical neighbours are not virtual neighbours, so what
//! lies past the frame's border says nothing. A candidate is given by its anchor; fields that are
//! not wholly in the anchor's frame (or past the end of the dump's range) are *deferred*, to be
//! checked through the page tables. Needles are matched within a range, across frame borders.

mod backend;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod byte_vector;
mod chunk;
mod collector;
mod elsewhere;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors only"))]
mod engine;
mod explain;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors only"))]
mod few;
mod filter;
mod frames;
pub mod gpu;
mod needles;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors only"))]
mod pointer_set;
mod prefetch;
mod read;
mod sample;
mod scalar;
mod selection;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors only"))]
mod sieve;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod simd;
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code, reason = "for vectors only"))]
mod slot_set;
mod structures;
mod sweep;
#[cfg(test)]
mod test_inputs;
mod type_slots;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod vector;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::addr::PhysAddr;
use crate::dump::PhysicalMemory;
use crate::signature::Signatures;

pub use backend::{Backend, BackendChoice, BackendError};
pub use collector::Limits;
pub(crate) use elsewhere::{Scan, Slots, Sweep, ask_about_runs, from_pairs};
pub use explain::{Explanation, RejectedCandidate, explain};
pub use frames::{ABSENT_FRAME, FrameClasses, ZERO_FRAME};
pub use pointer_set::PointerSet;
pub use read::{read, sum_words};
pub use selection::{SelectedBackend, select_backend};
pub use structures::Rejection;
pub use sweep::sweep;
pub use type_slots::{FrameSlots, TypeSlot, sweep_slots, type_slots};

use collector::Collector;
use needles::Needles;

/// Where a signature matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// Base of the structure, or first byte of the needle. The base of a structure that begins in
    /// another frame is where it would be if that frame came right before (modulo 2^64): there its
    /// low 12 bits count, not the rest.
    pub address: PhysAddr,
    /// The anchor field; for needles the same as `address`.
    pub anchor: PhysAddr,
    /// The anchor's value; 0 for needles.
    pub value: u64,
    /// Index of the signature, see [`Signatures::get`].
    pub signature: u16,
    /// Fields that were tested and hold; 0 for needles.
    pub tested: u16,
    /// Fields that are not in the anchor's frame.
    pub deferred: u16,
}

impl Hit {
    fn key(&self) -> (PhysAddr, u16) {
        (self.address, self.signature)
    }
}

impl Ord for Hit {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let rest = |hit: &Self| (hit.anchor, hit.value, hit.tested, hit.deferred);
        self.key().cmp(&other.key()).then_with(|| rest(self).cmp(&rest(other)))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanResult {
    /// Sorted by address, then by signature.
    pub hits: Vec<Hit>,
    /// What each frame could be; all 0 if the signatures have no rules of page tables.
    pub frames: FrameClasses,
    /// Hits that were left out, because there are more than the limits allow.
    pub left_out: usize,
}

/// What stays on a GPU after a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing of the memory that was scanned. What was there before stays.
    Nothing,
    /// As much as fits of the memory that was scanned, so that the [`sweep`]s that follow need not upload it again. What was there
    /// before goes.
    Memory,
}

/// Looks at every byte of `memory` once, for all `signatures`.
///
/// `progress` is called from the scanning threads after each chunk with the number of bytes in it;
/// the numbers add up to [`PhysicalMemory::size`].
///
/// Ends early where the dump can't be read any more, see [`PhysicalMemory::check`].
pub fn scan(
    memory: &PhysicalMemory,
    signatures: &Signatures,
    backend: Backend,
    progress: &(dyn Fn(u64) + Sync),
) -> ScanResult {
    scan_within(memory, signatures, backend, Limits::default(), Keep::Nothing, progress)
}

/// The same, but no more hits are kept than `limits` allow. A hostile dump can have one in every slot. A GPU keeps of the memory
/// what `keep` says.
#[cfg_attr(not(feature = "gpu"), allow(unused_variables, reason = "the CPU keeps nothing"))]
pub fn scan_within(
    memory: &PhysicalMemory,
    signatures: &Signatures,
    backend: Backend,
    limits: Limits,
    keep: Keep,
    progress: &(dyn Fn(u64) + Sync),
) -> ScanResult {
    if let Some(remote) = memory.remote() {
        return elsewhere::scan(&remote, signatures, limits, progress);
    }
    let engine = backend.engine();
    let plan = engine::Plan::new(signatures, memory, engine);
    let needles = Needles::new(signatures, backend);
    let mut frames = FrameClasses::unclassified(memory);
    let chunks = chunk::split(memory, &mut frames);
    let collector = Collector::new(limits);
    #[cfg(feature = "gpu")]
    if backend == Backend::Gpu
        && let Ok(gpu) = gpu::device()
    {
        let cpu = BesideGpu { engine, plan: &plan, needles: &needles };
        let kept = (keep == Keep::Memory).then_some(memory);
        let program = gpu::Program::new(signatures, &sample::Sample::new(memory));
        gpu.scan(kept, &program, chunks, &cpu, &collector, progress);
        let (hits, left_out) = collector.finish();
        return ScanResult { hits, frames, left_out };
    }
    chunks.into_par_iter().for_each(|chunk| {
        if memory.is_lost() {
            return;
        }
        let mut hits = Vec::new();
        chunk.partial_frames().for_each(|view| scalar::match_view(&plan, chunk.range, view, &mut hits));
        let (whole, classes) = chunk.whole_frames;
        engine.scan_frames(&plan, chunk.range, whole, classes, &mut hits);
        needles.find(chunk.range, chunk.view, &mut hits);
        progress(chunk.view.bytes.len() as u64);
        collector.add(chunk.view.start, hits);
    });
    let (hits, left_out) = collector.finish();
    ScanResult { hits, frames, left_out }
}

/// How [`scan`] would look for what stands in 8-byte slots, in words, a line for each pass over the frames. For many signatures
/// that is chosen on a sample of `memory`.
pub fn ways(memory: &PhysicalMemory, signatures: &Signatures, backend: Backend) -> Vec<String> {
    #[cfg(feature = "gpu")]
    if backend == Backend::Gpu {
        return vec![gpu::Program::new(signatures, &sample::Sample::new(memory)).to_string()];
    }
    engine::Plan::new(signatures, memory, backend.engine()).passes.iter().map(ToString::to_string).collect()
}

/// What the CPU does while the GPU scans, and in its place where it fails.
#[cfg(feature = "gpu")]
struct BesideGpu<'a> {
    engine: &'a dyn engine::Engine,
    plan: &'a engine::Plan<'a>,
    needles: &'a Needles<'a>,
}

#[cfg(feature = "gpu")]
impl gpu::OnCpu for BesideGpu<'_> {
    fn scan_on_cpu(&self, chunk: &chunk::Chunk<'_>, hits: &mut Vec<Hit>) {
        chunk.partial_frames().for_each(|view| scalar::match_view(self.plan, chunk.range, view, hits));
        self.needles.find(chunk.range, chunk.view, hits);
    }

    fn whole_frames(&self, chunk: &mut chunk::Chunk<'_>, hits: &mut Vec<Hit>) {
        let (whole, classes) = &mut chunk.whole_frames;
        self.engine.scan_frames(self.plan, chunk.range, *whole, classes, hits);
    }
}
