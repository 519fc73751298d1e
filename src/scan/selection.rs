//! `auto`: the backend that a short measurement on the dump itself shows to be the fastest.

use std::time::{Duration, Instant};

use super::backend::{Backend, BackendChoice, BackendError};
use super::{gpu, scan};
use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};
use crate::dump::{MemoryRange, PhysicalMemory};
use crate::signature::Signatures;

/// A backend, and why it was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectedBackend {
    /// The backend.
    pub backend: Backend,
    /// The reason, in words.
    pub reason: String,
}

/// The sample: so many windows, spread over the dump, of so many bytes each.
const WINDOWS: u64 = 8;
const WINDOW: u64 = 4 << 20;
/// Scans that the CPU does in less are not worth the start of a device, which takes some tenths of a second with
/// the drivers of real GPUs: it would be more than a tenth of the whole.
const WORTH_IT: Duration = Duration::from_secs(8);
/// Smaller dumps are not measured: any CPU scans them in less than [`WORTH_IT`], unless a disk holds up both.
const MEASURED_FROM: u64 = 2 << 30;
/// The GPU must promise to take at most this share of the CPU's time: a probe is short, and a scan is long.
const MARGIN: f64 = 0.9;

/// The backend for `choice` on this computer and this dump; for [`BackendChoice::Auto`] after a measurement,
/// which is left out where its outcome is known: for a small dump, and where no GPU but a software one is there.
///
/// # Errors
/// This computer lacks what was asked for.
pub fn select_backend(
    memory: &PhysicalMemory,
    signatures: &Signatures,
    choice: BackendChoice,
) -> Result<SelectedBackend, BackendError> {
    let backend = choice.resolve()?;
    if choice != BackendChoice::Auto {
        let adapter = if backend == Backend::Gpu { gpu::ready().ok() } else { None };
        let which = adapter.map_or(String::new(), |adapter| format!("; {} ({})", adapter.name, adapter.kind));
        return Ok(SelectedBackend { backend, reason: format!("requested{which}") });
    }
    let on_cpu = |reason: String| SelectedBackend { backend, reason: format!("best CPU backend; {reason}") };
    if memory.remote().is_some() {
        return Ok(on_cpu("the dump lies elsewhere, and those who have its parts search them".to_owned()));
    }
    if memory.size() < MEASURED_FROM {
        return Ok(on_cpu("the dump is too small for a GPU to be worth starting".to_owned()));
    }
    let Some(sample) = sample(memory) else {
        return Ok(on_cpu("no part of the dump can be measured".to_owned()));
    };
    let rest = memory.size() as f64 / sample.size() as f64;
    // The first run may have to read pages from disk: only if it takes long does a second one tell more.
    let mut cpu_time = time(&sample, signatures, backend).mul_f64(rest);
    if cpu_time >= WORTH_IT {
        cpu_time = time(&sample, signatures, backend).mul_f64(rest);
    }
    if cpu_time < WORTH_IT {
        return Ok(on_cpu(format!(
            "the scan takes only about {:.1} s, so a GPU is not worth starting",
            cpu_time.as_secs_f64()
        )));
    }
    match gpu::adapters().into_iter().find(|adapter| adapter.would_be_used) {
        None => return Ok(on_cpu("there is no GPU".to_owned())),
        Some(adapter) if adapter.is_software => {
            return Ok(on_cpu(format!("{} is a software GPU that runs on the CPU", adapter.name)));
        }
        Some(_) => {}
    }
    let start = Instant::now();
    let adapter = match gpu::ready() {
        Ok(adapter) => adapter,
        Err(error) => return Ok(on_cpu(format!("no GPU can be used: {error}"))),
    };
    // What opening the device took is spent, whatever is chosen now.
    let opened = start.elapsed();
    time(&sample, signatures, Backend::Gpu);
    let gpu_time = time(&sample, signatures, Backend::Gpu).mul_f64(rest);
    let measured = format!(
        "measured on {} MiB, the whole scan would take the CPU ({backend}) {:.1} s and {} {:.1} s, plus {:.1} s to \
         open it",
        sample.size() >> 20,
        cpu_time.as_secs_f64(),
        adapter.name,
        gpu_time.as_secs_f64(),
        opened.as_secs_f64(),
    );
    if gpu::given_up().is_none() && gpu_time < cpu_time.mul_f64(MARGIN) {
        return Ok(SelectedBackend { backend: Backend::Gpu, reason: measured });
    }
    Ok(SelectedBackend { backend, reason: measured })
}

/// The time of a scan.
fn time(sample: &PhysicalMemory, signatures: &Signatures, backend: Backend) -> Duration {
    let start = Instant::now();
    scan(sample, signatures, backend, &|_| {});
    start.elapsed()
}

/// Windows of the dump, spread evenly over its bytes.
fn sample(memory: &PhysicalMemory) -> Option<PhysicalMemory> {
    let step = memory.size() / WINDOWS;
    let mut wanted = (0..WINDOWS).map(|window| window * step).peekable();
    let mut ranges = Vec::new();
    // Bytes of the dump before the range.
    let mut before = 0;
    for range in memory.ranges() {
        while let Some(at) = wanted.next_if(|at| *at < before + range.len()) {
            let skip = (at - before) & !(FRAME_SIZE - 1);
            let len = WINDOW.min(range.len() - skip);
            let start = range.start.0 + skip;
            ranges.push(MemoryRange {
                start: PhysAddr(start),
                end: PhysAddr(start + len),
                offset: FileOffset(range.offset.0 + skip),
            });
        }
        before += range.len();
    }
    memory.with_ranges(ranges).ok().filter(|sample| sample.size() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(len: u64) -> PhysicalMemory {
        let half = len / 2;
        let ranges = [(0x1000, 0), (1 << 40, half)].map(|(start, offset)| MemoryRange {
            start: PhysAddr(start),
            end: PhysAddr(start + half),
            offset: FileOffset(offset),
        });
        PhysicalMemory::owned(vec![0; len as usize], ranges.to_vec()).unwrap()
    }

    #[test]
    fn a_sample_is_spread_over_the_dump() {
        let memory = memory(256 << 20);
        let sample = sample(&memory).unwrap();
        assert_eq!(sample.size(), WINDOWS * WINDOW);
        assert_eq!(sample.ranges().iter().filter(|range| range.start.0 >= 1 << 40).count(), 4);
        assert!(sample.ranges().iter().all(|range| memory.range_of(range.start).is_some_and(|r| range.end <= r.end)));
    }

    #[test]
    fn every_choice_has_a_reason() {
        let signatures = Signatures::load(None).unwrap();
        let small = select_backend(&memory(1 << 20), &signatures, BackendChoice::Auto).unwrap();
        assert_eq!(small.backend, Backend::detect_best());
        assert!(small.reason.contains("too small"), "{}", small.reason);
        let quick = select_backend(&memory(MEASURED_FROM), &signatures, BackendChoice::Auto).unwrap();
        assert_eq!(quick.backend, Backend::detect_best());
        // Under an emulator, the scan takes so long that a GPU would be worth it: then there is none, or only a software one.
        assert!(quick.reason.starts_with("best CPU backend; "), "{}", quick.reason);
        let asked = select_backend(&memory(1 << 20), &signatures, BackendChoice::Scalar).unwrap();
        assert_eq!((asked.backend, asked.reason.as_str()), (Backend::Scalar, "requested"));
    }
}
