//! How near the scan comes to what the device can do: for benchmarks.

use std::time::{Duration, Instant};

use bytemuck::{bytes_of, cast_slice};
use wgpu::{
    BufferUsages, ComputePassTimestampWrites, ComputePipeline, Features, MapMode, QuerySetDescriptor, QueryType,
};

use super::super::chunk::{self, View};
use super::super::frames::FrameClasses;
use super::device::Gpu;
use super::program::{Program, ScanParams};
use super::ring::{HEADER, Ring};
use crate::addr::FRAME_SIZE;
use crate::dump::PhysicalMemory;
use crate::signature::Signatures;

/// Times on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Bytes that were resident on the device for the first two times.
    pub resident_bytes: u64,
    /// The scan of those bytes, by the device's clock; `None` where it has none.
    pub scan: Option<Duration>,
    /// The plain sum of the same buffer, by the same clock.
    pub sum: Option<Duration>,
    /// The upload of all bytes of the memory, through the ring that the scan uses, without a look at them.
    pub upload: Duration,
}

/// Rounds of which the fastest counts.
const ROUNDS: usize = 5;

/// How long the device works before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures the process's device with this memory; the whole scan's own time is for the caller to take.
///
/// # Errors
/// There is no device, it is busy, or it failed, in words.
pub fn measure(memory: &PhysicalMemory, signatures: &Signatures) -> Result<Measured, String> {
    super::device()?.measure(memory, signatures)
}

impl Gpu {
    pub(super) fn measure(&self, memory: &PhysicalMemory, signatures: &Signatures) -> Result<Measured, String> {
        let mut state = self.state.try_lock().map_err(|_| "the device is busy".to_owned())?;
        state.resident.begin(memory);
        let ring = match state.ring.take() {
            Some(ring) => ring,
            None => Ring::new(self)?,
        };
        let upload = (0..ROUNDS).map(|_| self.time_upload(&ring, memory)).collect::<Result<Vec<_>, _>>()?;
        state.ring = Some(ring);
        let (resident_bytes, scan, sum) = self.time_resident(memory, signatures)?;
        Ok(Measured { resident_bytes, scan, sum, upload: upload.into_iter().min().unwrap_or_default() })
    }

    /// Uploads all whole frames, and does nothing with them.
    fn time_upload(&self, ring: &Ring, memory: &PhysicalMemory) -> Result<Duration, String> {
        let mut classes = FrameClasses::unclassified(memory);
        let chunks = chunk::split(memory, &mut classes);
        let views: Vec<View<'_>> = chunks.iter().map(|chunk| chunk.whole_frames.0).collect();
        let begin = Instant::now();
        ring.upload(self, &views)?;
        Ok(begin.elapsed())
    }

    /// Scans and sums one buffer, as large as a binding may be or the memory is.
    fn time_resident(
        &self,
        memory: &PhysicalMemory,
        signatures: &Signatures,
    ) -> Result<(u64, Option<Duration>, Option<Duration>), String> {
        let largest = memory.ranges().iter().max_by_key(|range| range.len());
        let bytes = largest.map_or(&[][..], |range| memory.range_bytes(range));
        let most = self.adapter.max_storage_binding_size.min(self.adapter.max_buffer_size);
        let len = most.min(bytes.len() as u64) / FRAME_SIZE * FRAME_SIZE;
        let frames = u32::try_from(len / FRAME_SIZE).map_err(|error| error.to_string())?;
        let has_clock = self.device.features().contains(Features::TIMESTAMP_QUERY);
        if frames == 0 || !has_clock {
            return Ok((len, None, None));
        }
        let input = bytes.get(..len as usize).unwrap_or_default();
        let memory = self.buffer_with(input, BufferUsages::STORAGE);
        let program = Program::new(signatures);
        let params = ScanParams { frame_count: frames, capacity: self.options.capacity, ..program.params };
        let params = self.buffer_with(bytes_of(&params), BufferUsages::UNIFORM);
        let structures = self.buffer_with(cast_slice(&program.structures), BufferUsages::STORAGE);
        let tests = self.buffer_with(cast_slice(&program.tests), BufferUsages::STORAGE);
        let tables = self.buffer_with(cast_slice(&program.tables), BufferUsages::STORAGE);
        let classes = self.buffer(u64::from(frames) * 4, BufferUsages::STORAGE);
        let output = self.buffer(HEADER + u64::from(self.options.capacity) * 8, BufferUsages::STORAGE);
        let total = self.buffer(HEADER, BufferUsages::STORAGE);
        let bindings = [&params, &structures, &tests, &tables, &memory, &classes, &output];
        let mut fastest: [Option<Duration>; 2] = [None; 2];
        // An idle device has a slow clock, and takes its time to raise it.
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP {
            self.time_pass(&self.pipelines.scan, &bindings, frames)?;
        }
        for _ in 0..ROUNDS {
            let works: [(&ComputePipeline, &[&wgpu::Buffer]); 2] =
                [(&self.pipelines.scan, &bindings), (&self.pipelines.sum, &[&memory, &total])];
            for ((pipeline, bindings), fastest) in works.into_iter().zip(&mut fastest) {
                let time = self.time_pass(pipeline, bindings, frames)?;
                *fastest = Some(fastest.map_or(time, |fastest| fastest.min(time)));
            }
        }
        let [scan, sum] = fastest;
        Ok((len, scan, sum))
    }

    /// The time of one pass by the device's own clock.
    fn time_pass(
        &self,
        pipeline: &ComputePipeline,
        bindings: &[&wgpu::Buffer],
        frames: u32,
    ) -> Result<Duration, String> {
        let descriptor = QuerySetDescriptor { label: None, ty: QueryType::Timestamp, count: 2 };
        let query_set = self.device.create_query_set(&descriptor);
        let times = self.buffer(16, BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC);
        let readback = self.buffer(16, BufferUsages::MAP_READ | BufferUsages::COPY_DST);
        let timestamps = ComputePassTimestampWrites {
            query_set: &query_set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        };
        let mut encoder = self.device.create_command_encoder(&Default::default());
        self.dispatch(&mut encoder, pipeline, bindings, frames, Some(timestamps));
        encoder.resolve_query_set(&query_set, 0..2, &times, 0);
        encoder.copy_buffer_to_buffer(&times, 0, &readback, 0, 16);
        let submission = self.submit(encoder);
        // Whether it could be mapped shows when the bytes are asked for.
        readback.map_async(MapMode::Read, .., |_| {});
        self.wait(submission)?;
        let view = readback.get_mapped_range(..).map_err(|error| error.to_string())?;
        let ticks: Vec<u64> = view.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        let &[begin, end] = ticks.as_slice() else { return Err("there are no timestamps".to_owned()) };
        let nanoseconds = end.saturating_sub(begin) as f64 * f64::from(self.queue.get_timestamp_period());
        Ok(Duration::from_nanos(nanoseconds as u64))
    }
}
