//! What of a dump stays in the device's memory after the scan, for the sweeps.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use wgpu::{Buffer, BufferUsages};

use super::device::Gpu;
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::{MemoryKey, PhysicalMemory};

/// Blocks that are made before they are needed: a driver takes as long for one as for a few batches.
const AHEAD: usize = 8;

/// Frames on the device, and where they are.
#[derive(Default)]
pub(super) struct Resident {
    /// The memory that they are from.
    key: Option<MemoryKey>,
    blocks: Vec<Buffer>,
    /// Runs of frames by their address.
    runs: BTreeMap<PhysAddr, Run>,
}

/// Frames that follow each other in memory and in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Index of the block.
    pub(super) block: usize,
    /// The first frame's place in the block, in frames.
    pub(super) first: u32,
    pub(super) frames: u32,
}

impl Resident {
    /// Lets go of what was there, for the frames of `memory`.
    pub(super) fn begin(&mut self, memory: &PhysicalMemory) {
        *self = Self { key: Some(memory.key()), ..Self::default() };
    }

    /// Whether the frames are those of `memory`.
    pub(super) fn is_of(&self, memory: &PhysicalMemory) -> bool {
        self.key.as_ref().is_some_and(|key| *key == memory.key())
    }

    /// Blocks for so many frames each, up to so many, as long as there is room; a thread of their own makes them.
    pub(super) fn supply<'scope>(
        gpu: &'scope Gpu,
        scope: &'scope Scope<'scope, '_>,
        frames: u32,
        count: usize,
    ) -> Receiver<Buffer> {
        let bytes = u64::from(frames) * FRAME_SIZE;
        let room = usize::try_from(gpu.options.resident_bytes / bytes.max(1)).unwrap_or(usize::MAX);
        let (sender, receiver) = sync_channel(AHEAD);
        scope.spawn(move || {
            let make = || gpu.buffer_if_room(bytes, BufferUsages::STORAGE | BufferUsages::COPY_DST);
            for block in std::iter::from_fn(make).take(count.min(room)) {
                if sender.send(block).is_err() {
                    break;
                }
            }
        });
        receiver
    }

    /// Takes a block; gives its index.
    pub(super) fn add_block(&mut self, block: Buffer) -> usize {
        self.blocks.push(block);
        self.blocks.len() - 1
    }

    /// Says which frames a block holds.
    pub(super) fn add_run(&mut self, start: PhysAddr, run: Run) {
        self.runs.insert(start, run);
    }

    pub(super) fn block(&self, index: usize) -> Option<&Buffer> {
        self.blocks.get(index)
    }

    /// Where the frame at `pa` is, and how many follow.
    pub(super) fn find(&self, pa: PhysAddr) -> Option<Run> {
        let (start, run) = self.runs.range(..=pa).next_back()?;
        let skipped = u32::try_from((pa.0 - start.0) / FRAME_SIZE).ok()?;
        let frames = run.frames.checked_sub(skipped).filter(|frames| *frames > 0)?;
        Some(Run { block: run.block, first: run.first + skipped, frames })
    }

    /// Bytes of the dump that are here.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.blocks.iter().map(Buffer::size).sum()
    }
}
