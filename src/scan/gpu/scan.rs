//! The scan: batches of frames go to the device, candidates come back and are checked exactly.
//!
//! The shader tests every field that lies in a frame, so few candidates are left; it may let
//! through too much, never too little, and [`structures::check`] makes the same hits of them as of
//! any backend's. So are needles that stand in slots found. Other needles may begin anywhere and cross the
//! borders of frames and of batches: the CPU looks for them, and for what is in parts of frames, while
//! it copies the bytes. They are in its cache then, and it would only wait for the device.

use std::thread;

use bytemuck::bytes_of;
use rayon::prelude::*;

use super::super::Hit;
use super::super::chunk::{Chunk, View};
use super::super::collector::Collector;
use super::super::engine::needle_at;
use super::super::structures;
use super::device::{Gpu, State};
use super::program::{Program, ScanParams};
use super::resident::{Resident, Run};
use super::ring::{InFlight, Launch, Output, Ring, Slot};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::PhysicalMemory;
use crate::signature::Signature;

/// What the CPU does, beside the device or in its place.
pub(in super::super) trait OnCpu: Sync {
    /// Looks for what is not the device's business: needles, and structures in parts of frames.
    fn scan_on_cpu(&self, chunk: &Chunk<'_>, hits: &mut Vec<Hit>);
    /// Does what the device could not: classes and structures of whole frames.
    fn whole_frames(&self, chunk: &mut Chunk<'_>, hits: &mut Vec<Hit>);
}

/// Chunks that the device looks at in one go.
struct Batch<'a> {
    chunks: Vec<Chunk<'a>>,
    /// The first frame of each chunk, and the number of all.
    firsts: Vec<u32>,
    frames: u32,
    /// What the CPU found beside, once it has looked.
    cpu_hits: Option<Vec<Hit>>,
}

impl Gpu {
    /// Adds the hits in all `chunks`, and fills in their frames' classes. The memory that is `kept`, of which the chunks are, stays on
    /// the device for the sweeps.
    pub(in super::super) fn scan(
        &self,
        kept: Option<&PhysicalMemory>,
        program: &Program<'_>,
        chunks: Vec<Chunk<'_>>,
        cpu: &dyn OnCpu,
        collector: &Collector,
        progress: &(dyn Fn(u64) + Sync),
    ) {
        let batches: Vec<Batch<'_>> = batches(chunks, self.options.batch_frames).collect();
        let mut complete = |mut batch: Batch<'_>, output: Result<Output, String>| {
            let bytes = batch.chunks.iter().map(|chunk| chunk.view.bytes.len() as u64).sum();
            let found = output.ok().and_then(|output| batch.take(&output, program));
            let mut hits = found.unwrap_or_else(|| batch.on_cpu(cpu));
            hits.extend(batch.cpu_hits.take().unwrap_or_else(|| batch.scan_on_cpu(cpu)));
            if let Some(first) = batch.chunks.first() {
                collector.add(first.view.start, hits);
            }
            progress(bytes);
        };
        // Two scans at a time would wait for each other, with threads that the other one needs.
        let Ok(mut state) = self.state.try_lock() else {
            batches.into_iter().for_each(|batch| complete(batch, Err("the device is busy".to_owned())));
            return;
        };
        let shader = self.scan_shader(program, &mut state);
        let State { ring, resident, .. } = &mut *state;
        if ring.is_none() {
            *ring = Ring::new(self).ok();
        }
        let Some(ring) = ring.as_mut().filter(|_| self.check().is_ok()) else {
            batches.into_iter().for_each(|batch| complete(batch, Err("the device failed".to_owned())));
            return;
        };
        let mut resident = kept.map(|memory| {
            resident.begin(memory);
            resident
        });
        let [structures, tests, tables] = self.program_buffers(program);
        thread::scope(|scope| {
            let supply =
                resident.is_some().then(|| Resident::supply(self, scope, self.options.batch_frames, batches.len()));
            let start = |slot: &mut Slot, batch: &mut Batch<'_>| -> Result<Option<InFlight>, String> {
                batch.fill(slot, cpu)?;
                if batch.frames == 0 {
                    return Ok(None);
                }
                let block = supply.as_ref().and_then(|supply| supply.recv().ok());
                let block = resident.as_mut().zip(block).map(|(resident, block)| resident.add_block(block));
                let input = block.and_then(|block| resident.as_ref()?.block(block)).unwrap_or(&slot.input);
                let params = ScanParams { frame_count: batch.frames, capacity: self.options.capacity };
                let in_flight = slot.launch(
                    self,
                    &Launch {
                        shader: &shader,
                        bindings: &[&slot.params, &structures, &tests, &tables, input, &slot.classes, &slot.output],
                        params: bytes_of(&params),
                        upload: Some((input, u64::from(batch.frames) * FRAME_SIZE)),
                        frame_count: batch.frames,
                        entry_size: 8,
                        reads_classes: true,
                    },
                );
                for (chunk, first) in batch.chunks.iter().zip(&batch.firsts) {
                    let frames = chunk.whole_frames.1.len() as u32;
                    if let Some((block, resident)) = block.filter(|_| frames > 0).zip(resident.as_mut()) {
                        resident.add_run(chunk.whole_frames.0.start, Run { block, first: *first, frames });
                    }
                }
                Ok(Some(in_flight))
            };
            ring.run(self, batches.into_iter(), start, &mut complete);
        });
    }
}

/// The chunks in batches of at most so many frames.
fn batches(chunks: Vec<Chunk<'_>>, most: u32) -> impl Iterator<Item = Batch<'_>> {
    let mut chunks = chunks.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = Batch { chunks: vec![chunks.next()?], firsts: vec![0], frames: 0, cpu_hits: None };
        batch.frames = batch.chunks.first().map_or(0, |chunk| chunk.whole_frames.1.len()) as u32;
        while let Some(chunk) =
            chunks.next_if(|next| batch.frames as usize + next.whole_frames.1.len() <= most as usize)
        {
            batch.firsts.push(batch.frames);
            batch.frames += chunk.whole_frames.1.len() as u32;
            batch.chunks.push(chunk);
        }
        Some(batch)
    })
}

impl Batch<'_> {
    /// Copies the frames to the staging buffer, and looks for what the CPU is to find.
    fn fill(&mut self, slot: &mut Slot, cpu: &dyn OnCpu) -> Result<(), String> {
        let frames: Vec<&[u8]> = self.chunks.iter().map(|chunk| chunk.whole_frames.0.bytes).collect();
        let parts = slot.parts(&frames)?;
        let hits = self.chunks.par_iter().zip(parts).flat_map_iter(|(chunk, part)| {
            let mut hits = Vec::new();
            part.copy_from_slice(chunk.whole_frames.0.bytes);
            cpu.scan_on_cpu(chunk, &mut hits);
            hits
        });
        self.cpu_hits = Some(hits.collect());
        Ok(())
    }

    /// What the device found, checked; `None` where it found more than fits.
    fn take(&mut self, output: &Output, program: &Program<'_>) -> Option<Vec<Hit>> {
        let entries = output.entries.as_ref()?;
        let mut classes = output.classes.as_chunks::<4>().0.iter().map(|class| u32::from_le_bytes(*class) as u8);
        for chunk in &mut self.chunks {
            chunk.whole_frames.1.iter_mut().zip(&mut classes).for_each(|(to, class)| *to = class);
        }
        let candidates = entries.as_chunks::<8>().0;
        Some(candidates.par_iter().filter_map(|entry| self.check(*entry, program)).collect())
    }

    /// The hit of one candidate, if it is one.
    fn check(&self, entry: [u8; 8], program: &Program<'_>) -> Option<Hit> {
        let [a, b, c, d, e, f, g, h] = entry;
        let byte = u32::from_le_bytes([a, b, c, d]);
        let signature = *program.indices.get(u32::from_le_bytes([e, f, g, h]) as usize)?;
        let frame = byte / FRAME_SIZE as u32;
        let chunk = self.firsts.partition_point(|first| *first <= frame).checked_sub(1)?;
        let (chunk, first) = self.chunks.get(chunk).zip(self.firsts.get(chunk))?;
        let whole: View<'_> = chunk.whole_frames.0;
        let start = PhysAddr(whole.start.0 + u64::from(frame - first) * FRAME_SIZE);
        let at = u64::from(byte) % FRAME_SIZE;
        match program.signatures.get(signature)? {
            Signature::Structure(structure) => {
                let view = whole.part(start..PhysAddr(start.0 + FRAME_SIZE));
                structures::check(structure, signature, view, at as usize)
            }
            Signature::Needle(needle) => needle_at(needle, signature, chunk.range, PhysAddr(start.0 + at)),
        }
    }

    fn on_cpu(&mut self, cpu: &dyn OnCpu) -> Vec<Hit> {
        let look = |chunk: &mut Chunk<'_>| {
            let mut hits = Vec::new();
            cpu.whole_frames(chunk, &mut hits);
            hits
        };
        self.chunks.par_iter_mut().flat_map_iter(look).collect()
    }

    fn scan_on_cpu(&self, cpu: &dyn OnCpu) -> Vec<Hit> {
        let look = |chunk: &Chunk<'_>| {
            let mut hits = Vec::new();
            cpu.scan_on_cpu(chunk, &mut hits);
            hits
        };
        self.chunks.par_iter().flat_map_iter(look).collect()
    }
}
