//! The pointer sweep: over what of the dump is on the device already, and over the rest through the ring.

use bytemuck::{bytes_of, cast_slice};
use rayon::prelude::*;
use wgpu::BufferUsages;

use super::super::chunk::View;
use super::super::pointer_set::PointerSet;
use super::device::{Gpu, State};
use super::program::{SweepParams, SweepProgram};
use super::resident::Resident;
use super::ring::{InFlight, Launch, Output, Ring, Slot};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::dump::PhysicalMemory;

/// Addresses and values of slots.
type Found = Vec<(PhysAddr, u64)>;

/// Sweeps a view on the CPU.
pub(in super::super) type SweepOnCpu<'a> = &'a (dyn Fn(View<'_>, &mut Found) + Sync);

/// Frames that the device looks at in one go.
struct Job<'a> {
    /// The block that they lie in; none where they must be uploaded.
    block: Option<usize>,
    /// Each frame, and its place in the block, or in the upload.
    frames: Vec<View<'a>>,
    places: Vec<u32>,
}

impl Gpu {
    /// What [`super::super::sweep`] finds in `views`, in any order.
    pub(in super::super) fn sweep(
        &self,
        memory: &PhysicalMemory,
        views: &[View<'_>],
        values: &PointerSet,
        cpu: SweepOnCpu<'_>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Found {
        let mut found = Vec::new();
        let on_cpu = |views: &[View<'_>], found: &mut Found| {
            found.par_extend(views.par_iter().flat_map_iter(|view| {
                let mut found = Vec::new();
                cpu(*view, &mut found);
                found
            }));
            progress(views.iter().map(|view| view.bytes.len() as u64).sum());
        };
        // As for the scan: two at a time would wait for each other.
        let Ok(mut state) = self.state.try_lock() else {
            on_cpu(views, &mut found);
            return found;
        };
        let State { ring, resident, .. } = &mut *state;
        if ring.is_none() {
            *ring = Ring::new(self).ok();
        }
        let program = SweepProgram::new(values);
        let table_size = size_of_val(program.table.as_slice()) as u64;
        let is_possible = self.check().is_ok() && table_size <= self.adapter.max_storage_binding_size;
        let Some(ring) = ring.as_mut().filter(|_| is_possible) else {
            on_cpu(views, &mut found);
            return found;
        };
        // Parts of frames, at the ends of ranges.
        let is_whole = |view: &View<'_>| view.bytes.len() as u64 == FRAME_SIZE;
        let parts: Vec<View<'_>> =
            views.iter().flat_map(|view| view.frames()).filter(|frame| !is_whole(frame)).collect();
        on_cpu(&parts, &mut found);

        let resident = resident.is_of(memory).then_some(&*resident);
        let table = self.buffer_with(cast_slice(&program.table), BufferUsages::STORAGE);
        let fixed = SweepParams { capacity: self.options.capacity, ..program.params };
        let start = |slot: &mut Slot, job: &mut Job<'_>| -> Result<Option<InFlight>, String> {
            let block = job.block.and_then(|block| resident?.block(block));
            let frame_count = job.frames.len() as u32;
            if block.is_none() {
                job.fill(slot)?;
            }
            self.queue.write_buffer(&slot.frames, 0, cast_slice(&job.places));
            let params = SweepParams { frame_count, ..fixed };
            let input = block.unwrap_or(&slot.input);
            let launch = Launch {
                shader: &self.shaders.sweep,
                bindings: &[&slot.params, &table, &slot.frames, input, &slot.output],
                params: bytes_of(&params),
                upload: block.is_none().then_some((input, u64::from(frame_count) * FRAME_SIZE)),
                frame_count,
                entry_size: 4,
                reads_classes: false,
            };
            Ok(Some(slot.launch(self, &launch)))
        };
        ring.run(self, jobs(views, resident, self.options.batch_frames as usize), start, |job, output| {
            match output.ok().and_then(|output| job.take(&output)) {
                Some(new) => {
                    found.extend(new);
                    progress(job.frames.len() as u64 * FRAME_SIZE);
                }
                None => on_cpu(&job.frames, &mut found),
            }
        });
        found
    }
}

/// The whole frames of all views, in jobs of one source and at most so many frames.
fn jobs<'a>(views: &[View<'a>], resident: Option<&Resident>, most: usize) -> impl Iterator<Item = Job<'a>> {
    let mut frames = views.iter().flat_map(move |view| placed_frames(*view, resident)).peekable();
    std::iter::from_fn(move || {
        let block = frames.peek()?.0.map(|(block, _)| block);
        let mut job = Job { block, frames: Vec::new(), places: Vec::new() };
        while job.frames.len() < most
            && let Some((place, frame)) = frames.next_if(|(place, _)| place.map(|(block, _)| block) == block)
        {
            job.places.push(place.map_or(job.frames.len() as u32, |(_, index)| index));
            job.frames.push(frame);
        }
        Some(job)
    })
}

/// The whole frames of a view, each with its block and its place there, where it is on the device.
fn placed_frames<'a>(
    view: View<'a>,
    resident: Option<&Resident>,
) -> impl Iterator<Item = (Option<(usize, u32)>, View<'a>)> {
    let whole = view.frames().filter(|frame| frame.bytes.len() as u64 == FRAME_SIZE);
    let first = PhysAddr(view.start.0.checked_next_multiple_of(FRAME_SIZE).unwrap_or(u64::MAX));
    // A view lies in one chunk, so that one look is enough.
    let run = resident.and_then(|resident| resident.find(first));
    whole.zip(0..).map(move |(frame, n)| {
        let place = run.filter(|run| n < run.frames).map(|run| (run.block, run.first + n));
        (place, frame)
    })
}

impl Job<'_> {
    /// Copies the frames to the staging buffer.
    fn fill(&self, slot: &mut Slot) -> Result<(), String> {
        let frames: Vec<&[u8]> = self.frames.iter().map(|frame| frame.bytes).collect();
        slot.fill(&frames)
    }

    /// What the device found; `None` where it found more than fits.
    fn take(&self, output: &Output) -> Option<Found> {
        let entries = output.entries.as_ref()?;
        let found = entries.as_chunks::<4>().0.iter().map(|entry| {
            let entry = u32::from_le_bytes(*entry);
            let frame = self.frames.get((entry / 512) as usize)?;
            let at = (entry % 512 * 8) as usize;
            let value = frame.bytes.get(at..)?.first_chunk()?;
            Some((PhysAddr(frame.start.0 + at as u64), u64::from_le_bytes(*value)))
        });
        found.collect()
    }
}
