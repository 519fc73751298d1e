//! Staging buffers: memory of the CPU that the device copies from.
//!
//! wgpu puts buffers for upload into the device's own memory where the CPU can write there. Each write crosses the bus then, past
//! the CPU's caches, and many threads are no faster than a few. What a dump needs is ordinary cached memory that is mapped once,
//! from which the device fetches by itself. wgpu has no way to ask for it, so it is allocated through Vulkan (crate `ash`).
//!
//! This is the one file of the GPU's code with `unsafe`. What it relies on:
//!
//! - The buffer and its memory are ours. wgpu gets the handle as one that it does not own, so it never frees them, not even when
//!   the device is lost; they are freed here, when wgpu has let go of the buffer and the device has finished its work.
//! - The memory is mapped from its allocation to its end, so the pointer is valid as long as the value is.
//! - It is coherent: what was written before a submission is seen by it, without a flush.
//! - Nobody writes while the device reads. A slot of the ring is filled only when the work that was submitted for it is done. If
//!   it were not, the device would read torn bytes, which the CPU never looks at.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use ash::vk;
use wgpu::hal::api::Vulkan;
use wgpu::{Buffer, BufferDescriptor, BufferUsages, Device, PollType};

use super::device::PATIENCE;

/// Kinds of memory, the best first: cached, and not the device's own if there is a choice.
const KINDS: [(vk::MemoryPropertyFlags, vk::MemoryPropertyFlags); 3] = {
    let visible = vk::MemoryPropertyFlags::from_raw(
        vk::MemoryPropertyFlags::HOST_VISIBLE.as_raw() | vk::MemoryPropertyFlags::HOST_COHERENT.as_raw(),
    );
    let cached = vk::MemoryPropertyFlags::from_raw(visible.as_raw() | vk::MemoryPropertyFlags::HOST_CACHED.as_raw());
    [
        (cached, vk::MemoryPropertyFlags::DEVICE_LOCAL),
        (cached, vk::MemoryPropertyFlags::empty()),
        (visible, vk::MemoryPropertyFlags::empty()),
    ]
};

/// A buffer that the CPU writes and the device copies from.
pub(super) struct Staging {
    /// wgpu's view of it; nothing only while it is dropped.
    buffer: Option<Buffer>,
    bytes: NonNull<u8>,
    len: usize,
    raw: Raw,
    /// The device lives as long as what is allocated from it.
    device: Device,
}

/// What Vulkan gave us, to be given back.
struct Raw {
    device: ash::Device,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
}

// SAFETY: the pointer is to memory that nobody else has, and the handles may be used from any thread.
unsafe impl Send for Staging {}
// SAFETY: through a shared reference nothing but the handle for commands can be had.
unsafe impl Sync for Staging {}

impl Staging {
    /// A buffer of so many bytes, all of them zero.
    pub(super) fn new(device: &Device, len: usize) -> Result<Self, String> {
        // SAFETY: the guard is only used to make objects of this device, none of which outlives it.
        let hal = unsafe { device.as_hal::<Vulkan>() }.ok_or("it is not reached through Vulkan")?;
        let failed = |what: &'static str| move |error: vk::Result| format!("staging memory cannot be {what}: {error}");
        // SAFETY: the physical device is that of this instance.
        let kinds = unsafe {
            hal.shared_instance().raw_instance().get_physical_device_memory_properties(hal.raw_physical_device())
        };
        let mut raw =
            Raw { device: hal.raw_device().clone(), buffer: vk::Buffer::null(), memory: vk::DeviceMemory::null() };
        let info = vk::BufferCreateInfo::default().size(len as u64).usage(vk::BufferUsageFlags::TRANSFER_SRC);
        // SAFETY: the device is alive, and `info` is complete.
        raw.buffer = unsafe { raw.device.create_buffer(&info, None) }.map_err(failed("created"))?;
        // SAFETY: the buffer is the one just made.
        let needs = unsafe { raw.device.get_buffer_memory_requirements(raw.buffer) };
        let kind = kind(&kinds, needs.memory_type_bits).ok_or("it has no memory that the CPU can write")?;
        let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind);
        // SAFETY: size and kind are what the buffer asks for.
        raw.memory = unsafe { raw.device.allocate_memory(&info, None) }.map_err(failed("allocated"))?;
        // SAFETY: the memory is large enough, of a kind that the buffer allows, and bound to nothing.
        unsafe { raw.device.bind_buffer_memory(raw.buffer, raw.memory, 0) }.map_err(failed("bound"))?;
        // SAFETY: the memory can be mapped, is not mapped yet, and has at least `len` bytes.
        let bytes = unsafe { raw.device.map_memory(raw.memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) };
        let bytes = NonNull::new(bytes.map_err(failed("mapped"))?.cast::<u8>())
            .ok_or("staging memory was mapped at address 0")?;
        // SAFETY: `len` bytes are mapped there, and nobody else has them.
        unsafe { bytes.write_bytes(0, len) };
        // SAFETY: the handle stays ours, and is destroyed after wgpu has let go of the buffer, see `drop`.
        let buffer = unsafe { wgpu::hal::vulkan::Buffer::from_raw_externally_owned(raw.buffer, Box::new(|| ())) };
        let descriptor = BufferDescriptor {
            label: None,
            size: len as u64,
            usage: BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        };
        drop(hal);
        // SAFETY: it was made from this device, with this size and use, and is initialized.
        let buffer = unsafe { device.create_buffer_from_hal::<Vulkan>(buffer, &descriptor) };
        Ok(Self { buffer: Some(buffer), bytes, len, raw, device: device.clone() })
    }

    /// What commands copy from.
    pub(super) fn buffer(&self) -> Option<&Buffer> {
        self.buffer.as_ref()
    }

    /// What the CPU writes to.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `len` initialized bytes are mapped there as long as we live, and the only way to them is this one.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.len) }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// The index of the best kind of memory, of those whose bits are set.
fn kind(kinds: &vk::PhysicalDeviceMemoryProperties, allowed: u32) -> Option<u32> {
    let kinds = || kinds.memory_types_as_slice().iter().zip(0u32..).filter(|(_, index)| allowed >> index & 1 != 0);
    KINDS.iter().find_map(|(with, without)| {
        let fits = |flags: vk::MemoryPropertyFlags| flags.contains(*with) && !flags.intersects(*without);
        kinds().find(|(kind, _)| fits(kind.property_flags)).map(|(_, index)| index)
    })
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.buffer = None;
        let patient = PollType::Wait { submission_index: None, timeout: Some(PATIENCE) };
        // wgpu panics where a driver reports the loss of its device in a poll. What a device may still read is never freed.
        let is_done = catch_unwind(AssertUnwindSafe(|| self.device.poll(patient)));
        if !matches!(is_done, Ok(Ok(_))) {
            self.raw.leak();
        }
    }
}

impl Raw {
    fn leak(&mut self) {
        self.buffer = vk::Buffer::null();
        self.memory = vk::DeviceMemory::null();
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: both are ours, no submitted work uses them, and Vulkan ignores handles that are null. Memory may be freed mapped.
        unsafe {
            self.device.destroy_buffer(self.buffer, None);
            self.device.free_memory(self.memory, None);
        }
    }
}
