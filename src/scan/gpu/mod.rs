//! The scan on a GPU, through wgpu and Vulkan: the same hits, bit for bit, as on the CPU.
//!
//! Shaders stand in `shaders/`; that of the scan is written anew for each set of signatures, around what stands there. Each has a
//! twin in `twin/`, the same algorithm for the CPU, that tests compare it with. The device is opened once in a process, when
//! it is first asked for. One scan or sweep has it at a time; what runs beside it runs on the CPU,
//! because to wait could deadlock with the pool's threads. When it fails, whatever the reason, it is
//! given up for the rest of the process and the CPU does what is left: [`given_up`] says so.

mod adapter;
#[cfg(feature = "gpu")]
mod device;
#[cfg(feature = "gpu")]
mod measure;
#[cfg(feature = "gpu")]
mod program;
#[cfg(feature = "gpu")]
mod resident;
#[cfg(feature = "gpu")]
mod ring;
#[cfg(feature = "gpu")]
mod scan;
#[cfg(feature = "gpu")]
mod source;
#[cfg(feature = "gpu")]
mod staging;
#[cfg(feature = "gpu")]
mod sweep;
#[cfg(test)]
#[cfg(feature = "gpu")]
mod tests;
#[cfg(test)]
#[cfg(feature = "gpu")]
mod twin;

pub use adapter::{ADAPTER_VARIABLE, AdapterInfo, AdapterKind, adapters};
#[cfg(feature = "gpu")]
pub use measure::{Measured, measure};
#[cfg(feature = "gpu")]
pub(super) use {device::Gpu, program::Program, scan::OnCpu};

/// The device of this process.
#[cfg(feature = "gpu")]
static DEVICE: std::sync::OnceLock<Result<Gpu, String>> = std::sync::OnceLock::new();

/// The device, opened if it was not yet.
///
/// # Errors
/// What was looked for and not found, in words.
#[cfg(feature = "gpu")]
pub(super) fn device() -> Result<&'static Gpu, String> {
    DEVICE.get_or_init(|| Gpu::open(|options| options)).as_ref().map_err(String::clone)
}

/// Opens the device, if that is not done yet, and says which it is.
///
/// # Errors
/// Why there is none, in words.
#[cfg(feature = "gpu")]
pub(super) fn ready() -> Result<AdapterInfo, String> {
    let gpu = device()?;
    gpu.check().map(|()| gpu.adapter.clone())
}

/// Says that this build has no device.
#[cfg(not(feature = "gpu"))]
pub(super) fn ready() -> Result<AdapterInfo, String> {
    Err("this build does not have the feature `gpu`".to_owned())
}

/// Why the CPU does what the GPU was to do, once the GPU has failed.
pub fn given_up() -> Option<String> {
    #[cfg(feature = "gpu")]
    return DEVICE.get().and_then(|device| device.as_ref().ok()?.failure());
    #[cfg(not(feature = "gpu"))]
    None
}
