//! The computer that we run on, as it says itself.

use std::fs;

use serde::Serialize;

/// What of the computer matters to speed.
#[derive(Serialize)]
pub(super) struct Machine {
    /// The model, as the CPU names itself.
    pub(super) cpu: Option<String>,
    /// The instruction-set extensions that we have code for, or that tell generations apart.
    pub(super) features: Vec<&'static str>,
    /// Hardware threads that this process may use.
    pub(super) threads: usize,
    /// Bytes of memory.
    pub(super) memory: Option<u64>,
}

impl Machine {
    pub(super) fn detect() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: value(&cpuinfo, "model name").map(str::to_owned),
            features: features(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal"),
        }
    }
}

/// Bytes of memory that can be had without swapping.
pub(super) fn available_memory() -> Option<u64> {
    meminfo("MemAvailable")
}

fn meminfo(key: &str) -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = value(&meminfo, key)?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The first value of a key in the form of files under /proc.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(have, value)| (have.trim(), value.trim())).find_map(|(have, value)| (have == key).then_some(value))
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt),*) => { [$(($name, is_x86_feature_detected!($name))),*] };
    }
    let all = detected!["sse4.2", "avx2", "bmi2", "avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vbmi2"];
    all.into_iter().filter_map(|(name, is_there)| is_there.then_some(name)).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    if std::arch::is_aarch64_feature_detected!("neon") { vec!["neon"] } else { Vec::new() }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_key() {
        let text = "processor\t: 0\nmodel name\t: A: CPU \n\nmodel name\t: other\nMemTotal:     12 kB\n";
        assert_eq!(value(text, "model name"), Some("A: CPU"));
        assert_eq!(value(text, "MemTotal"), Some("12 kB"));
        assert_eq!(value(text, "model"), None);
    }
}
