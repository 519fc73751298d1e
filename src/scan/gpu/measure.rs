//! How near the scan comes to what the device can do: for benchmarks.

use std::time::{Duration, Instant};

use bytemuck::{bytes_of, cast_slice};
use wgpu::{BufferUsages, ComputePassTimestampWrites, Features, MapMode, QuerySetDescriptor, QueryType};

use super::super::chunk::{self, View};
use super::super::frames::FrameClasses;
use super::super::pointer_set::PointerSet;
use super::super::sample::Sample;
use super::device::{Gpu, Shader};
use super::program::{Program, ScanParams, SweepParams, SweepProgram};
use super::ring::{HEADER, Ring};
use crate::addr::FRAME_SIZE;
use crate::dump::PhysicalMemory;
use crate::signature::Signatures;

/// Times on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Bytes that were resident on the device for the times of scan, sweep and sum.
    pub resident_bytes: u64,
    /// The scan of those bytes, by the device's clock; `None` where it has none.
    pub scan: Option<Duration>,
    /// The sweep of all their frames for the values; `None` without values too.
    pub sweep: Option<Duration>,
    /// The plain sum of the same buffer, by the same clock.
    pub sum: Option<Duration>,
    /// Copies to the device of as many bytes as the memory has, always the same ones.
    pub copies: Duration,
    /// The upload of all bytes of the memory, through the ring that the scan uses, without a look at them.
    pub upload: Duration,
}

/// Rounds of which the fastest counts.
const ROUNDS: usize = 5;

/// How long the device works before anything counts.
const WARM_UP: Duration = Duration::from_millis(500);

/// Measures the process's device with this memory, these signatures and these values to sweep for; the whole scan's own time is
/// for the caller to take.
///
/// # Errors
/// There is no device, it is busy, or it failed, in words.
pub fn measure(memory: &PhysicalMemory, signatures: &Signatures, values: &PointerSet) -> Result<Measured, String> {
    super::device()?.measure(memory, signatures, values)
}

impl Gpu {
    pub(super) fn measure(
        &self,
        memory: &PhysicalMemory,
        signatures: &Signatures,
        values: &PointerSet,
    ) -> Result<Measured, String> {
        let mut state = self.state.try_lock().map_err(|_| "the device is busy".to_owned())?;
        state.resident.begin(memory);
        let mut ring = match state.ring.take() {
            Some(ring) => ring,
            None => Ring::new(self)?,
        };
        let copies = (0..ROUNDS).map(|_| ring.time_copies(self, memory.size())).collect::<Result<Vec<_>, _>>()?;
        let upload = (0..ROUNDS).map(|_| self.time_upload(&mut ring, memory)).collect::<Result<Vec<_>, _>>()?;
        state.ring = Some(ring);
        let fastest = |times: Vec<Duration>| times.into_iter().min().unwrap_or_default();
        let program = Program::new(signatures, &Sample::new(memory));
        let shader = self.scan_shader(&program, &mut state);
        let (resident_bytes, [scan, sweep, sum]) = self.time_resident(memory, &program, &shader, values)?;
        let sweep = sweep.filter(|_| !values.values().is_empty());
        Ok(Measured { resident_bytes, scan, sweep, sum, copies: fastest(copies), upload: fastest(upload) })
    }

    /// Uploads all whole frames, and does nothing with them.
    fn time_upload(&self, ring: &mut Ring, memory: &PhysicalMemory) -> Result<Duration, String> {
        let mut classes = FrameClasses::unclassified(memory);
        let chunks = chunk::split(memory, &mut classes);
        let views: Vec<View<'_>> = chunks.iter().map(|chunk| chunk.whole_frames.0).collect();
        let begin = Instant::now();
        ring.upload(self, &views)?;
        Ok(begin.elapsed())
    }

    /// Scans, sweeps and sums one buffer, as large as a binding may be or the memory is.
    fn time_resident(
        &self,
        memory: &PhysicalMemory,
        program: &Program<'_>,
        scan: &Shader,
        values: &PointerSet,
    ) -> Result<(u64, [Option<Duration>; 3]), String> {
        let largest = memory.ranges().iter().max_by_key(|range| range.len());
        let bytes = largest.map_or(&[][..], |range| memory.range_bytes(range));
        let most = self.adapter.max_storage_binding_size.min(self.adapter.max_buffer_size);
        let len = most.min(bytes.len() as u64) / FRAME_SIZE * FRAME_SIZE;
        let frames = u32::try_from(len / FRAME_SIZE).map_err(|error| error.to_string())?;
        let mut fastest = [None; 3];
        if frames == 0 || !self.device.features().contains(Features::TIMESTAMP_QUERY) {
            return Ok((len, fastest));
        }
        let (params, storage) = (BufferUsages::UNIFORM, BufferUsages::STORAGE);
        let memory = self.buffer_with(bytes.get(..len as usize).unwrap_or_default(), storage);
        let capacity = self.options.capacity;
        let output = self.buffer(HEADER + u64::from(capacity) * 8, storage);
        let total = self.buffer(HEADER, storage);

        let scan_params = self.buffer_with(bytes_of(&ScanParams { frame_count: frames, capacity }), params);
        let [structures, tests, tables] = self.program_buffers(program);
        let classes = self.buffer(u64::from(frames) * 4, storage);
        let scan_bindings = [&scan_params, &structures, &tests, &tables, &memory, &classes, &output];

        let sweep = SweepProgram::new(values);
        let sweep_params = SweepParams { frame_count: frames, capacity, ..sweep.params };
        let sweep_params = self.buffer_with(bytes_of(&sweep_params), params);
        let table = self.buffer_with(cast_slice(&sweep.table), storage);
        let places = self.buffer_with(cast_slice(&(0..frames).collect::<Vec<u32>>()), storage);
        let sweep_bindings = [&sweep_params, &table, &places, &memory, &output];

        let works: [(&Shader, &[&wgpu::Buffer]); 3] =
            [(scan, &scan_bindings), (&self.shaders.sweep, &sweep_bindings), (&self.shaders.sum, &[&memory, &total])];
        // An idle device has a slow clock, and takes its time to raise it.
        let begin = Instant::now();
        while begin.elapsed() < WARM_UP {
            self.time_pass(scan, &scan_bindings, frames)?;
        }
        for _ in 0..ROUNDS {
            for ((shader, bindings), fastest) in works.into_iter().zip(&mut fastest) {
                let time = self.time_pass(shader, bindings, frames)?;
                *fastest = Some(fastest.map_or(time, |fastest: Duration| fastest.min(time)));
            }
        }
        Ok((len, fastest))
    }

    /// The time of one pass by the device's own clock.
    fn time_pass(&self, shader: &Shader, bindings: &[&wgpu::Buffer], frames: u32) -> Result<Duration, String> {
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
        self.dispatch(&mut encoder, shader, bindings, frames, Some(timestamps));
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
