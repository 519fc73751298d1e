//! Those who are measured, and what each must be able to do.

mod aho_corasick;
mod boreal;
mod memmem;
mod ripgrep;
mod rule;
mod tensorcarve;
#[cfg(feature = "vectorscan")]
mod vectorscan;
mod volatility;
mod yara;
mod yara_x;

use std::ops::Range;
use std::time::Duration;

use crate::input::Input;
use crate::job::{Hit, Job};

/// What a search found, in any order.
pub struct Found {
    pub hits: Vec<Hit>,
    /// How long it took by the peer's own clock, where it has one; else the call is timed.
    pub time: Option<Duration>,
}

impl From<Vec<Hit>> for Found {
    fn from(hits: Vec<Hit>) -> Self {
        Self { hits, time: None }
    }
}

/// A search that is ready to run, on one thread, as often as one likes.
pub type Search<'a> = Box<dyn FnMut() -> Result<Found, String> + 'a>;

pub trait Peer {
    fn name(&self) -> &'static str;

    /// Its version, or why it cannot be had here.
    fn version(&self) -> Result<String, String>;

    /// What of the input it searches: all, unless that takes too long.
    fn range(&self, input: &Input) -> Range<usize> {
        0..input.bytes.len()
    }

    /// Compiles what there is to compile, untimed; nothing where the peer is not made for the job.
    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String>;
}

/// All peers; tensorcarve first.
pub fn all() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(tensorcarve::Tensorcarve),
        #[cfg(feature = "vectorscan")]
        Box::new(vectorscan::Vectorscan),
        Box::new(yara_x::YaraX),
        Box::new(boreal::Boreal),
        Box::new(yara::Yara),
        Box::new(ripgrep::Ripgrep),
        Box::new(aho_corasick::Leftmost),
        Box::new(aho_corasick::Standard),
        Box::new(memmem::Memmem),
        Box::new(volatility::Volatility),
    ]
}

/// The version of a crate in this package's lock file.
fn locked_version(name: &str) -> Result<String, String> {
    let lock = include_str!("../../Cargo.lock");
    let (_, after) = lock.split_once(&format!("name = \"{name}\"\nversion = \"")).ok_or("not in Cargo.lock")?;
    Ok(after.split('"').next().unwrap_or_default().to_owned())
}

/// The hits of a job, where a search for its patterns found them at `starts`.
fn resolve(job: &Job, bytes: &[u8], starts: impl Iterator<Item = usize>) -> Vec<Hit> {
    starts.flat_map(|at| job.hits_at(bytes, at)).collect()
}
