//! How a file is read: mapped, or with `pread` into a buffer; from the page cache, or from the disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;
use rustix::fs::{Advice, fadvise};
use tensorcarve::dump::{self, Format, OpenOptions, PhysicalMemory};
use tensorcarve::scan;

use super::{Row, Samples};
use crate::cli::Failure;
use crate::cli::work::in_pool;

/// Bytes that a thread reads at once: more costs cache misses, less costs system calls.
const BUFFER: usize = 2 << 20;

/// Measures the ways in turn, `rounds` times, against a mapping whose pages have been touched.
pub(super) fn measure(path: &Path, threads: u16, rounds: u16) -> Result<Vec<Row>, Failure> {
    in_pool(Some(threads), || {
        let failed = |error: io::Error| Failure::new(format!("cannot read {} ({error})", path.display()));
        let file = File::open(path).map_err(failed)?;
        let touched = map(path)?;
        let size = touched.size();
        let sum = scan::read(&touched);
        let same = |other: u64| {
            if other == sum { Ok(()) } else { Err(Failure::new("the file changed while it was measured")) }
        };
        let pass = |way: &str| match way {
            "map" => Ok(scan::read(&map(path)?)),
            _ => read_all(&file, size).map_err(failed),
        };
        let mut rows = Vec::new();
        let mut add = |way: &str, set: &str, speeds: &Samples, reads: &Samples| {
            let ratios: Vec<f64> = speeds.iter().zip(reads.iter()).map(|(speed, read)| speed / read).collect();
            rows.push(Row::new(way, threads, set.to_owned(), size, speeds, &ratios, reads.median(), None));
        };
        let mut reads = Samples::default();
        let mut warm = [("map", Samples::default()), ("pread", Samples::default())];
        for _ in 0..rounds {
            same(reads.add(size, || scan::read(&touched)))?;
            for (way, speeds) in &mut warm {
                same(speeds.add(size, || pass(way))?)?;
            }
        }
        add("map", "input-touched", &reads, &reads);
        warm.iter().for_each(|(way, speeds)| add(way, "input-warm", speeds, &reads));
        touched.check()?;
        // Pages that a mapping holds do not leave the cache.
        drop(touched);
        let mut cold = [("map", Samples::default()), ("pread", Samples::default())];
        for _ in 0..rounds {
            for (way, speeds) in &mut cold {
                fadvise(&file, 0, None, Advice::DontNeed).map_err(|error| failed(error.into()))?;
                same(speeds.add(size, || pass(way))?)?;
            }
        }
        cold.iter().for_each(|(way, speeds)| add(way, "input-cold", speeds, &reads));
        Ok(rows)
    })
    .flatten()
}

/// The file as it is, whatever is in it.
fn map(path: &Path) -> Result<PhysicalMemory, Failure> {
    let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    let dump = dump::open(path, &options, &|_, _| {})?;
    match dump.compression {
        Some(compression) => Err(Failure::new(format!(
            "{} is compressed ({compression}), so its unpacked copy would be measured",
            path.display()
        ))
        .hint("unpack it first")),
        None => Ok(dump.memory),
    }
}

fn read_all(file: &File, size: u64) -> io::Result<u64> {
    let pieces = (0..size.div_ceil(BUFFER as u64)).into_par_iter();
    pieces
        .map_init(
            || vec![0; BUFFER],
            |buffer, index| {
                let offset = index * BUFFER as u64;
                let piece = buffer.get_mut(..BUFFER.min((size - offset) as usize)).unwrap_or_default();
                file.read_exact_at(piece, offset)?;
                Ok(scan::sum_words(piece))
            },
        )
        .try_reduce(|| 0, |a, b| Ok(a.wrapping_add(b)))
}
