//! Which machine does the looking: chosen by the user, or the best that this computer has.

use std::fmt;
use std::str::FromStr;

use super::engine::Engine;
use super::gpu;
use super::scalar::Scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::simd;

/// A way to scan. All find the same; they differ in speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// One slot at a time; the reference.
    Scalar,
    /// Four slots at a time, on ARM.
    Neon,
    /// Four slots at a time, on x86.
    Avx2,
    /// Eight slots at a time, on x86.
    Avx512,
    /// Frames at a time, on a GPU; what the GPU does not do, the best of the others does.
    Gpu,
}

impl Backend {
    /// All backends of the CPU, slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512];

    /// The fastest that this computer's CPU has.
    pub fn detect_best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Scalar)
    }

    /// Those that this computer's CPU has, slowest first; the first is the scalar one.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|backend| backend.lookup().is_some()).collect()
    }

    /// The CPU feature that it needs.
    pub fn needs(self) -> Option<&'static str> {
        match self {
            Self::Scalar | Self::Gpu => None,
            Self::Neon => Some("neon"),
            Self::Avx2 => Some("avx2"),
            Self::Avx512 => Some("avx512bw"),
        }
    }

    /// The engine; the scalar one, which finds the same, where the CPU lacks what is needed.
    pub(super) fn engine(self) -> &'static dyn Engine {
        self.lookup().unwrap_or(&Scalar)
    }

    fn lookup(self) -> Option<&'static dyn Engine> {
        match self {
            Self::Scalar => Some(&Scalar),
            Self::Gpu => Self::detect_best().lookup(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => simd::Neon::detect(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => None,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => simd::Avx2::detect(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => simd::Avx512::detect(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => None,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Gpu => "gpu",
        })
    }
}

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The best there is.
    #[default]
    Auto,
    /// The reference.
    Scalar,
    /// The best vector unit there is, and none other.
    Simd,
    /// NEON.
    Neon,
    /// AVX2.
    Avx2,
    /// AVX-512.
    Avx512,
    /// The GPU.
    Gpu,
}

impl BackendChoice {
    /// The names, as a user writes them.
    pub const NAMES: [&str; 7] = ["auto", "scalar", "simd", "neon", "avx2", "avx512", "gpu"];

    /// The backend for this choice on this computer; for `Auto` the best of the CPU, see [`super::select_backend`].
    ///
    /// # Errors
    /// This computer lacks what was asked for.
    pub fn resolve(self) -> Result<Backend, BackendError> {
        let wanted = match self {
            Self::Auto => return Ok(Backend::detect_best()),
            Self::Simd => match Backend::detect_best() {
                Backend::Scalar => return Err(BackendError::NoSimd),
                best => return Ok(best),
            },
            Self::Scalar => Backend::Scalar,
            Self::Neon => Backend::Neon,
            Self::Avx2 => Backend::Avx2,
            Self::Avx512 => Backend::Avx512,
            Self::Gpu => return gpu::ready().map(|_| Backend::Gpu).map_err(BackendError::NoGpu),
        };
        match wanted.needs() {
            Some(feature) if wanted.lookup().is_none() => Err(BackendError::Missing { backend: wanted, feature }),
            _ => Ok(wanted),
        }
    }
}

impl FromStr for BackendChoice {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        match name {
            "auto" => Ok(Self::Auto),
            "scalar" => Ok(Self::Scalar),
            "simd" => Ok(Self::Simd),
            "neon" => Ok(Self::Neon),
            "avx2" => Ok(Self::Avx2),
            "avx512" => Ok(Self::Avx512),
            "gpu" => Ok(Self::Gpu),
            _ => Err(BackendError::Unknown(name.to_owned())),
        }
    }
}

/// Why a backend cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No backend has this name.
    #[error("no backend is named `{0}`; the backends are {names}", names = BackendChoice::NAMES.join(", "))]
    Unknown(String),
    /// The CPU lacks a feature.
    #[error("the backend {backend} needs the CPU feature {feature}, which this computer lacks")]
    Missing {
        /// The backend asked for.
        backend: Backend,
        /// What it needs.
        feature: &'static str,
    },
    /// The CPU has no vector unit that we use.
    #[error("the backend simd needs the CPU feature avx2, avx512bw or neon, but this computer has none of them")]
    NoSimd,
    /// No GPU can be used.
    #[error("the backend gpu found no usable GPU ({0})")]
    NoGpu(String),
}

impl BackendError {
    /// What to try.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unknown(..) => "`tensorcarve devices` lists the backends",
            Self::Missing { .. } => "use auto or scalar",
            Self::NoSimd => "use scalar",
            Self::NoGpu(..) => "install a Vulkan driver (on Debian: mesa-vulkan-drivers), or use auto",
        }
    }
}
