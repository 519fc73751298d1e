//! The GPUs of this computer: which there are, what they can do, which one would be used.

/// The variable that names the adapter to use: its number in [`adapters`], or a part of its name.
pub const ADAPTER_VARIABLE: &str = "TENSORCARVE_GPU";

/// A GPU, or a driver that acts as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Name of the device.
    pub name: String,
    /// What it is.
    pub kind: AdapterKind,
    /// The interface that it is reached through, as Vulkan.
    pub backend: String,
    /// Name of the driver.
    pub driver: String,
    /// The driver's own words on its version.
    pub driver_info: String,
    /// The largest buffer, in bytes.
    pub max_buffer_size: u64,
    /// The most that a shader sees of a buffer, in bytes.
    pub max_storage_binding_size: u64,
    /// Workgroups that one dispatch may have along one dimension.
    pub max_workgroups_per_dimension: u32,
    /// Invocations in one workgroup.
    pub max_invocations_per_workgroup: u32,
    /// Memory that a workgroup shares, in bytes.
    pub max_workgroup_storage_size: u32,
    /// Invocations that run in step, the least and the most.
    pub subgroup_sizes: (u32, u32),
    /// Whether shaders can use them.
    pub has_subgroups: bool,
    /// Whether it can say when a pass began and ended.
    pub has_timestamps: bool,
    /// Whether it is a program on the CPU: never faster than our own.
    pub is_software: bool,
    /// Whether the backend `gpu` would use this one.
    pub would_be_used: bool,
}

/// What an adapter is, the most promising first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdapterKind {
    /// A card with memory of its own.
    Discrete,
    /// A GPU that shares the CPU's memory.
    Integrated,
    /// A GPU given to a virtual machine.
    Virtual,
    /// The driver does not say.
    Other,
    /// A program on the CPU.
    Software,
}

impl std::fmt::Display for AdapterKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Discrete => "discrete",
            Self::Integrated => "integrated",
            Self::Virtual => "virtual",
            Self::Other => "other",
            Self::Software => "software",
        })
    }
}

/// All adapters, the most promising first; none in a build without the feature `gpu`.
#[cfg(not(feature = "gpu"))]
pub fn adapters() -> Vec<AdapterInfo> {
    Vec::new()
}

#[cfg(feature = "gpu")]
pub use with_gpu::adapters;
#[cfg(feature = "gpu")]
pub(super) use with_gpu::chosen;

#[cfg(feature = "gpu")]
mod with_gpu {
    use wgpu::{Adapter, Backends, DeviceType, Features, Instance, InstanceDescriptor, InstanceFlags};

    use super::{ADAPTER_VARIABLE, AdapterInfo, AdapterKind};

    /// Percentage of a device's memory above which we get no more of it: others use it as well.
    const MEMORY_SHARE: u8 = 50;

    /// All adapters, the most promising first.
    pub fn adapters() -> Vec<AdapterInfo> {
        let mut infos: Vec<AdapterInfo> = enumerate().iter().map(describe).collect();
        if let Some(used) = select_adapter(&infos).ok().and_then(|index| infos.get_mut(index)) {
            used.would_be_used = true;
        }
        infos
    }

    /// The adapter to use; what was looked for, and what to do, where there is none.
    pub(in super::super) fn chosen() -> Result<(Adapter, AdapterInfo), String> {
        let adapters = enumerate();
        let infos: Vec<AdapterInfo> = adapters.iter().map(describe).collect();
        let index = select_adapter(&infos)?;
        adapters.into_iter().zip(infos).nth(index).ok_or_else(none)
    }

    fn none() -> String {
        "no Vulkan driver provides an adapter".to_owned()
    }

    fn enumerate() -> Vec<Adapter> {
        let mut descriptor = InstanceDescriptor::new_without_display_handle();
        descriptor.backends = Backends::VULKAN;
        descriptor.flags = InstanceFlags::empty();
        descriptor.memory_budget_thresholds.for_resource_creation = Some(MEMORY_SHARE);
        let instance = Instance::new(descriptor);
        let mut adapters = pollster::block_on(instance.enumerate_adapters(Backends::VULKAN));
        adapters.sort_by_key(|adapter| kind(adapter.get_info().device_type));
        adapters
    }

    /// Index of the adapter that the user names, or of the first.
    fn select_adapter(infos: &[AdapterInfo]) -> Result<usize, String> {
        let Some(wanted) = std::env::var(ADAPTER_VARIABLE).ok().filter(|wanted| !wanted.is_empty()) else {
            return if infos.is_empty() { Err(none()) } else { Ok(0) };
        };
        let by_number = wanted.parse::<usize>().ok().filter(|index| *index < infos.len());
        let has_name = |info: &AdapterInfo| info.name.to_lowercase().contains(&wanted.to_lowercase());
        by_number.or_else(|| infos.iter().position(has_name)).ok_or_else(|| {
            let names: Vec<String> = infos.iter().enumerate().map(|(n, info)| format!("{n} {}", info.name)).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            format!("{ADAPTER_VARIABLE} is `{wanted}`, but the Vulkan adapters are: {there}")
        })
    }

    fn describe(adapter: &Adapter) -> AdapterInfo {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let kind = kind(info.device_type);
        AdapterInfo {
            name: info.name,
            kind,
            backend: info.backend.to_string(),
            driver: info.driver,
            driver_info: info.driver_info,
            max_buffer_size: limits.max_buffer_size,
            max_storage_binding_size: limits.max_storage_buffer_binding_size,
            max_workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            max_invocations_per_workgroup: limits.max_compute_invocations_per_workgroup,
            max_workgroup_storage_size: limits.max_compute_workgroup_storage_size,
            subgroup_sizes: (info.subgroup_min_size, info.subgroup_max_size),
            has_subgroups: adapter.features().contains(Features::SUBGROUP),
            has_timestamps: adapter.features().contains(Features::TIMESTAMP_QUERY),
            is_software: kind == AdapterKind::Software,
            would_be_used: false,
        }
    }

    fn kind(device_type: DeviceType) -> AdapterKind {
        match device_type {
            DeviceType::DiscreteGpu => AdapterKind::Discrete,
            DeviceType::IntegratedGpu => AdapterKind::Integrated,
            DeviceType::VirtualGpu => AdapterKind::Virtual,
            DeviceType::Cpu => AdapterKind::Software,
            DeviceType::Other => AdapterKind::Other,
        }
    }
}
