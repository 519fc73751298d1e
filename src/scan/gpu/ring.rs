//! The ring: a few sets of buffers, so that upload, computing and reading back overlap on the one queue.
//!
//! A batch's bytes are copied from the dump right into a staging buffer. While the device
//! works on it, the next staging buffer is filled; when all are under way, the oldest is awaited.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use wgpu::{Buffer, BufferUsages, CommandEncoder, MapMode, SubmissionIndex};

use super::super::chunk::View;
use super::device::{Gpu, Shader};
use super::staging::Staging;
use crate::addr::FRAME_SIZE;

/// Batches under way: one is filled, one uploaded, one computed, one read back.
const SLOTS: usize = 4;
/// Bytes before the list that a shader makes: the count.
pub(super) const HEADER: u64 = 8;
/// Entries of the list that are always read back with the count; more than these are rare.
const EAGER_ENTRIES: u64 = 4096;
/// The largest of the shaders' parameters.
const MAX_PARAMS: u64 = 256;

/// The buffers of one batch.
pub(super) struct Slot {
    staging: Staging,
    /// Where a batch is uploaded to, unless it is to stay on the device.
    pub(super) input: Buffer,
    pub(super) params: Buffer,
    /// Which frames of the input are to be looked at.
    pub(super) frames: Buffer,
    /// One class for each frame.
    pub(super) classes: Buffer,
    /// The count and the list that a shader makes.
    pub(super) output: Buffer,
    readback: Buffer,
}

/// What the device is to do with a batch.
pub(super) struct Launch<'a> {
    pub(super) shader: &'a Shader,
    /// In the order of the shader's bindings.
    pub(super) bindings: &'a [&'a Buffer],
    pub(super) params: &'a [u8],
    /// Where the staging buffer goes first, and how many bytes of it.
    pub(super) upload: Option<(&'a Buffer, u64)>,
    pub(super) frame_count: u32,
    /// Bytes of an entry of the list.
    pub(super) entry_size: u64,
    pub(super) reads_classes: bool,
}

/// A batch under way.
pub(super) struct InFlight {
    submission: SubmissionIndex,
    entry_size: u64,
    class_bytes: u64,
    readback_is_mapped: Arc<AtomicBool>,
}

/// What a shader left.
#[derive(Default)]
pub(super) struct Output {
    /// Four bytes for each frame.
    pub(super) classes: Vec<u8>,
    /// The list; nothing where it was too short for all there is.
    pub(super) entries: Option<Vec<u8>>,
}

/// All sets of buffers.
pub(super) struct Ring {
    slots: Vec<Slot>,
}

impl Ring {
    pub(super) fn new(gpu: &Gpu) -> Result<Self, String> {
        let slots = (0..SLOTS).map(|_| Slot::new(gpu)).collect::<Result<_, _>>()?;
        Ok(Self { slots })
    }

    /// Does all `jobs`: `start` brings one on its way, or says that nothing need be awaited; `complete` gets each back,
    /// in their order, with what came out, or with the error after which it must be done elsewhere.
    pub(super) fn run<T>(
        &mut self,
        gpu: &Gpu,
        jobs: impl Iterator<Item = T>,
        mut start: impl FnMut(&mut Slot, &mut T) -> Result<Option<InFlight>, String>,
        mut complete: impl FnMut(T, Result<Output, String>),
    ) {
        // The slots are taken in turns, so that the first of those under way is the first that is done.
        let mut free: VecDeque<&mut Slot> = self.slots.iter_mut().collect();
        let mut under_way = VecDeque::new();
        for mut job in jobs {
            if free.is_empty()
                && let Some((slot, in_flight, job)) = under_way.pop_front()
            {
                let slot: &mut Slot = slot;
                complete(job, slot.finish(gpu, in_flight));
                free.push_back(slot);
            }
            let Some(slot) = free.pop_front() else { return };
            match gpu.check().and_then(|()| start(slot, &mut job)) {
                Ok(Some(in_flight)) => under_way.push_back((slot, in_flight, job)),
                Ok(None) => {
                    free.push_front(slot);
                    complete(job, Ok(Output { classes: Vec::new(), entries: Some(Vec::new()) }));
                }
                Err(error) => {
                    free.push_front(slot);
                    complete(job, Err(error));
                }
            }
        }
        for (slot, in_flight, job) in under_way {
            complete(job, slot.finish(gpu, in_flight));
        }
    }
}

impl Ring {
    /// Uploads all `views` in batches as a scan does, for the measure of what the link can do.
    pub(super) fn upload(&mut self, gpu: &Gpu, views: &[View<'_>]) -> Result<(), String> {
        let most = gpu.options.batch_frames as usize * FRAME_SIZE as usize;
        let mut views = views.iter().peekable();
        let batches = std::iter::from_fn(|| {
            let mut batch = vec![views.next()?.bytes];
            let mut bytes = batch.iter().map(|view| view.len()).sum::<usize>();
            while let Some(view) = views.next_if(|view| bytes + view.bytes.len() <= most) {
                batch.push(view.bytes);
                bytes += view.bytes.len();
            }
            Some((batch, bytes as u64))
        });
        let mut result = Ok(());
        let start = |slot: &mut Slot, (batch, bytes): &mut (Vec<&[u8]>, u64)| {
            slot.fill(batch)?;
            Ok((*bytes > 0).then(|| slot.launch_upload(gpu, *bytes, 1)))
        };
        self.run(gpu, batches, start, |_, output| {
            if let Err(error) = output {
                result = Err(error);
            }
        });
        result
    }

    /// How long the device takes to copy so many bytes from a staging buffer, at least one batch.
    pub(super) fn time_copies(&self, gpu: &Gpu, bytes: u64) -> Result<Duration, String> {
        let slot = self.slots.first().ok_or("there is no staging buffer")?;
        let batch = slot.staging.len() as u64;
        let times = (bytes / batch).max(1);
        let begin = Instant::now();
        let in_flight = slot.launch_upload(gpu, batch, times);
        slot.finish(gpu, in_flight)?;
        Ok(begin.elapsed().mul_f64(bytes as f64 / (times * batch) as f64))
    }
}

impl Slot {
    fn new(gpu: &Gpu) -> Result<Self, String> {
        let bytes = u64::from(gpu.options.batch_frames) * FRAME_SIZE;
        let per_frame = u64::from(gpu.options.batch_frames) * 4;
        let list = HEADER + u64::from(gpu.options.capacity) * 8;
        let storage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let slot = Self {
            staging: Staging::new(&gpu.device, bytes as usize).map_err(|error| gpu.give_up(error))?,
            input: gpu.buffer(bytes, storage),
            params: gpu.buffer(MAX_PARAMS, BufferUsages::UNIFORM | BufferUsages::COPY_DST),
            frames: gpu.buffer(per_frame, storage),
            classes: gpu.buffer(per_frame, storage),
            output: gpu.buffer(list, storage),
            readback: gpu.buffer(list + per_frame, BufferUsages::MAP_READ | BufferUsages::COPY_DST),
        };
        gpu.check()?;
        Ok(slot)
    }

    /// The staging buffer from its beginning on, in parts as long as what is to be copied there.
    pub(super) fn parts(&mut self, sources: &[&[u8]]) -> Result<Vec<&mut [u8]>, String> {
        let mut rest = self.staging.bytes();
        let parts = sources.iter().map(|source| {
            let (part, behind) = std::mem::take(&mut rest).split_at_mut_checked(source.len())?;
            rest = behind;
            Some(part)
        });
        parts.collect::<Option<_>>().ok_or_else(|| "the staging buffer is too short".to_owned())
    }

    /// Copies all to the staging buffer, one after the other.
    pub(super) fn fill(&mut self, sources: &[&[u8]]) -> Result<(), String> {
        let parts = self.parts(sources)?;
        parts.into_par_iter().zip(sources).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }

    /// Brings a batch on its way.
    pub(super) fn launch(&self, gpu: &Gpu, launch: &Launch<'_>) -> InFlight {
        gpu.queue.write_buffer(&self.params, 0, launch.params);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        if let Some((target, bytes)) = launch.upload {
            self.copy_staging(&mut encoder, target, bytes);
        }
        encoder.clear_buffer(&self.output, 0, Some(HEADER));
        gpu.dispatch(&mut encoder, launch.shader, launch.bindings, launch.frame_count, None);
        let class_bytes = if launch.reads_classes { u64::from(launch.frame_count) * 4 } else { 0 };
        self.submit(gpu, encoder, launch.entry_size, class_bytes)
    }

    /// The same so many times, without any work on what was uploaded.
    fn launch_upload(&self, gpu: &Gpu, bytes: u64, times: u64) -> InFlight {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        (0..times).for_each(|_| self.copy_staging(&mut encoder, &self.input, bytes));
        encoder.clear_buffer(&self.output, 0, Some(HEADER));
        self.submit(gpu, encoder, 0, 0)
    }

    fn copy_staging(&self, encoder: &mut CommandEncoder, target: &Buffer, bytes: u64) {
        if let Some(staging) = self.staging.buffer() {
            encoder.copy_buffer_to_buffer(staging, 0, target, 0, bytes);
        }
    }

    /// Adds what is read back, and hands all to the device.
    fn submit(&self, gpu: &Gpu, mut encoder: CommandEncoder, entry_size: u64, class_bytes: u64) -> InFlight {
        let eager = HEADER + EAGER_ENTRIES.min(gpu.options.capacity.into()) * entry_size;
        encoder.copy_buffer_to_buffer(&self.output, 0, &self.readback, 0, eager);
        if class_bytes > 0 {
            encoder.copy_buffer_to_buffer(&self.classes, 0, &self.readback, eager, class_bytes);
        }
        let submission = gpu.submit(encoder);
        let readback_is_mapped = Arc::default();
        map(&self.readback, MapMode::Read, eager + class_bytes, &readback_is_mapped);
        InFlight { submission, entry_size, class_bytes, readback_is_mapped }
    }

    /// Waits for a batch, and reads what came out.
    fn finish(&self, gpu: &Gpu, in_flight: InFlight) -> Result<Output, String> {
        gpu.wait(in_flight.submission)?;
        let capacity = u64::from(gpu.options.capacity);
        let eager_entries = EAGER_ENTRIES.min(capacity);
        let eager = HEADER + eager_entries * in_flight.entry_size;
        let head = self.read(0..eager, &in_flight.readback_is_mapped)?;
        let classes = match in_flight.class_bytes {
            0 => Vec::new(),
            bytes => self.read(eager..eager + bytes, &in_flight.readback_is_mapped)?,
        };
        self.readback.unmap();
        let count = head.first_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
        let in_head = HEADER + count.min(eager_entries) * in_flight.entry_size;
        let mut entries = head.get(HEADER as usize..in_head as usize).unwrap_or_default().to_vec();
        if count > capacity {
            return Ok(Output { classes, entries: None });
        }
        if count > eager_entries {
            let rest = (count - eager_entries) * in_flight.entry_size;
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&self.output, eager, &self.readback, 0, rest);
            let submission = gpu.submit(encoder);
            let is_mapped = Arc::default();
            map(&self.readback, MapMode::Read, rest, &is_mapped);
            gpu.wait(submission)?;
            entries.extend(self.read(0..rest, &is_mapped)?);
            self.readback.unmap();
        }
        Ok(Output { classes, entries: Some(entries) })
    }

    fn read(&self, range: std::ops::Range<u64>, is_mapped: &AtomicBool) -> Result<Vec<u8>, String> {
        if !is_mapped.load(Ordering::Acquire) {
            return Err("the results cannot be mapped".to_owned());
        }
        self.readback.get_mapped_range(range).map(|view| view.to_vec()).map_err(|error| error.to_string())
    }
}

/// Asks for the first bytes of a buffer; the flag is set when they are there.
fn map(buffer: &Buffer, mode: MapMode, bytes: u64, is_mapped: &Arc<AtomicBool>) {
    let is_mapped = Arc::clone(is_mapped);
    buffer.map_async(mode, 0..bytes, move |result| is_mapped.store(result.is_ok(), Ordering::Release));
}
