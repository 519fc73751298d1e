//! The device: opened once, given up for good when it fails. No failure of it is ever a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytemuck::cast_slice;
use wgpu::{
    BindGroupDescriptor, BindGroupEntry, Buffer, BufferDescriptor, BufferUsages, CommandEncoder, ComputePassDescriptor,
    ComputePassTimestampWrites, ComputePipeline, ComputePipelineDescriptor, Device, DeviceDescriptor, ErrorFilter,
    Features, PollType, Queue, ShaderModuleDescriptor, ShaderSource, SubmissionIndex,
};

use super::adapter::{self, AdapterInfo, AdapterKind};
use super::program::Program;
use super::resident::Resident;
use super::ring::Ring;
use super::source::{self, Team};
use crate::addr::FRAME_SIZE;

/// How long a batch may take before the device is taken for hung; on a busy CPU, software needs seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Workgroups of a dispatch: enough to fill the largest devices.
const WORKGROUPS: u32 = 4096;

/// Sizes that depend on the device, and on what a test wants to see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Frames that are uploaded and looked at in one go.
    pub(super) batch_frames: u32,
    /// Room for that many candidates, or found slots, in a batch.
    pub(super) capacity: u32,
    /// Bytes of the dump that may stay on the device for the sweeps.
    pub(super) resident_bytes: u64,
    /// What looks at a frame.
    pub(super) team: Team,
    /// Submissions after which the device is lost.
    pub(super) lost_after: u64,
}

impl Options {
    /// 16 MiB: long enough to keep the link busy, short enough for a ring of four.
    const BATCH_FRAMES: u32 = 4096;
    /// More than real memory ever has, and half a percent of the batch's size when all of it is read back.
    const CANDIDATES_PER_FRAME: u32 = 16;
    /// Where the device's memory is also the CPU's, a copy there must not cost much.
    const SHARED_MEMORY: u64 = 128 << 20;

    pub(super) fn new(adapter: &AdapterInfo) -> Self {
        let most = adapter.max_storage_binding_size.min(adapter.max_buffer_size) / FRAME_SIZE;
        let batch_frames = Self::BATCH_FRAMES.min(u32::try_from(most).unwrap_or(u32::MAX));
        // A card's own memory is bounded by the share of it that the instance may take.
        let is_shared = adapter.kind != AdapterKind::Discrete;
        Self {
            batch_frames,
            capacity: batch_frames * Self::CANDIDATES_PER_FRAME,
            resident_bytes: if is_shared { Self::SHARED_MEMORY } else { u64::MAX },
            team: if adapter.has_subgroups { Team::Subgroup } else { Team::Lane },
            lost_after: u64::MAX,
        }
    }
}

/// A compiled shader.
#[derive(Clone)]
pub(super) struct Shader {
    pipeline: ComputePipeline,
    /// Frames that a workgroup looks at together, at least.
    frames_per_workgroup: u32,
}

/// The compiled shaders that are the same for whatever is looked for.
pub(super) struct Shaders {
    pub(super) sweep: Shader,
    pub(super) sum: Shader,
}

/// A device that is ready to work.
pub(in super::super) struct Gpu {
    pub(super) device: Device,
    pub(super) queue: Queue,
    pub(super) adapter: AdapterInfo,
    pub(super) shaders: Shaders,
    pub(super) options: Options,
    /// What one piece of work needs for itself.
    pub(super) state: Mutex<State>,
    /// The first thing that went wrong.
    failure: Arc<Mutex<Option<String>>>,
    submissions: AtomicU64,
}

/// The buffers that a scan or a sweep works with.
#[derive(Default)]
pub(super) struct State {
    pub(super) ring: Option<Ring>,
    pub(super) resident: Resident,
    /// The last scan's shader, with its source.
    scan: Option<(String, Shader)>,
}

impl Gpu {
    /// Opens the adapter that the user wants, or the best.
    ///
    /// # Errors
    /// In words, what was looked for and not found, or what the driver says.
    pub(super) fn open(options: impl FnOnce(Options) -> Options) -> Result<Self, String> {
        let (adapter, info) = adapter::chosen()?;
        let descriptor = DeviceDescriptor {
            required_features: adapter.features() & (Features::TIMESTAMP_QUERY | Features::SUBGROUP),
            required_limits: adapter.limits(),
            ..DeviceDescriptor::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| format!("{} cannot be opened: {error}", info.name))?;
        let failure = Arc::new(Mutex::new(None));
        let record = |failure: &Arc<Mutex<Option<String>>>| {
            let failure = Arc::clone(failure);
            move |what: String| {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
            }
        };
        let on_error = record(&failure);
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| on_error(error.to_string())));
        let on_loss = record(&failure);
        device.set_device_lost_callback(move |reason, message| on_loss(format!("device lost, {reason:?}: {message}")));
        let shaders = Shaders {
            sweep: Shader::new(&device, "sweep", include_str!("../../../shaders/sweep.wgsl"), 1),
            sum: Shader::new(&device, "sum", include_str!("../../../shaders/sum.wgsl"), 1),
        };
        let options = options(Options::new(&info));
        let state = Mutex::default();
        let gpu =
            Self { device, queue, adapter: info, shaders, options, state, failure, submissions: AtomicU64::new(0) };
        gpu.check().map(|()| gpu)
    }

    /// Why the device was given up, if it was.
    pub(super) fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|reason| format!("{} failed: {}", self.adapter.name, one_line(reason)))
    }

    /// An error once the device was given up.
    pub(super) fn check(&self) -> Result<(), String> {
        self.failure().map_or(Ok(()), Err)
    }

    /// Gives the device up.
    pub(super) fn give_up(&self, reason: String) -> String {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason.clone());
        reason
    }

    /// The scan's shader for these signatures.
    pub(super) fn scan_shader(&self, program: &Program<'_>, state: &mut State) -> Shader {
        let source = source::scan(program, self.options.team);
        if let Some((compiled, shader)) = &state.scan
            && *compiled == source
        {
            return shader.clone();
        }
        let frames_per_workgroup = self.options.team.frames_per_workgroup(self.adapter.subgroup_sizes.1);
        let shader = Shader::new(&self.device, "scan", &source, frames_per_workgroup);
        state.scan = Some((source, shader.clone()));
        shader
    }

    /// The program's structures, tests and tables, in the order of the shader's bindings.
    pub(super) fn program_buffers(&self, program: &Program<'_>) -> [Buffer; 3] {
        let (structures, tests, tables) = (&program.structures, &program.tests, program.tables());
        [cast_slice(structures), cast_slice(tests), cast_slice(&tables)]
            .map(|bytes| self.buffer_with(bytes, BufferUsages::STORAGE))
    }

    /// A new buffer.
    pub(super) fn buffer(&self, size: u64, usage: BufferUsages) -> Buffer {
        self.device.create_buffer(&BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// A new buffer with these bytes; for small ones.
    pub(super) fn buffer_with(&self, bytes: &[u8], usage: BufferUsages) -> Buffer {
        let buffer = self.buffer(bytes.len() as u64, usage | BufferUsages::COPY_DST);
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// A new buffer, or none where there is no memory left for it, which is no failure.
    pub(super) fn buffer_if_room(&self, size: u64, usage: BufferUsages) -> Option<Buffer> {
        let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
        let buffer = self.buffer(size, usage);
        pollster::block_on(scope.pop()).is_none().then_some(buffer)
    }

    /// Adds a shader's work on so many frames to the commands.
    pub(super) fn dispatch(
        &self,
        encoder: &mut CommandEncoder,
        shader: &Shader,
        bindings: &[&Buffer],
        frames: u32,
        timestamps: Option<ComputePassTimestampWrites<'_>>,
    ) {
        let entries: Vec<BindGroupEntry<'_>> = bindings
            .iter()
            .zip(0..)
            .map(|(buffer, binding)| BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = shader.pipeline.get_bind_group_layout(0);
        let descriptor = BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
        let group = self.device.create_bind_group(&descriptor);
        let mut pass = encoder.begin_compute_pass(&ComputePassDescriptor { label: None, timestamp_writes: timestamps });
        pass.set_pipeline(&shader.pipeline);
        pass.set_bind_group(0, &group, &[]);
        // Workgroups take one frame after another, so that each reads its tables once.
        let workgroups = frames.div_ceil(shader.frames_per_workgroup);
        pass.dispatch_workgroups(workgroups.min(WORKGROUPS).min(self.adapter.max_workgroups_per_dimension), 1, 1);
    }

    /// Hands commands to the device.
    pub(super) fn submit(&self, encoder: CommandEncoder) -> SubmissionIndex {
        let submission = self.queue.submit([encoder.finish()]);
        if self.submissions.fetch_add(1, Ordering::Relaxed) + 1 == self.options.lost_after {
            self.device.destroy();
        }
        submission
    }

    /// Waits until a submission is done, and the buffers that were to be mapped after it are.
    pub(super) fn wait(&self, submission: SubmissionIndex) -> Result<(), String> {
        self.check()?;
        let patient = PollType::Wait { submission_index: Some(submission), timeout: Some(PATIENCE) };
        // wgpu panics where a driver reports the loss of its device in a poll: the one such place.
        match catch_unwind(AssertUnwindSafe(|| self.device.poll(patient))) {
            Ok(Ok(_)) => self.check(),
            Ok(Err(error)) => Err(self.give_up(format!("it did not finish its work: {error}"))),
            Err(_) => Err(self.give_up("the device was lost".to_owned())),
        }
    }
}

impl Shader {
    fn new(device: &Device, name: &str, source: &str, frames_per_workgroup: u32) -> Self {
        let module = device.create_shader_module(ShaderModuleDescriptor {
            label: Some(name),
            source: ShaderSource::Wgsl(source.into()),
        });
        let pipeline = device.create_compute_pipeline(&ComputePipelineDescriptor {
            label: Some(name),
            layout: None,
            module: &module,
            entry_point: Some(name),
            compilation_options: Default::default(),
            cache: None,
        });
        Self { pipeline, frames_per_workgroup }
    }
}

/// Messages of drivers come in paragraphs.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
