//! The sets of things to look for, and what must be found of them.

use tensorcarve::addr::PhysAddr;
use tensorcarve::dump::PhysicalMemory;
use tensorcarve::scan::{Backend, PointerSet, ScanResult, scan, sweep};
use tensorcarve::signature::{Leaf, SignatureError, Signatures};

use super::memory::{Tile, needles, structures, sweep_values};
use crate::cli::Failure;

/// What is looked for in one measurement.
pub(super) enum Work {
    Scan(Box<Signatures>),
    Sweep(PointerSet),
}

/// The built-in signatures of CPython alone, and the rules of page tables.
fn cpython() -> Result<Signatures, SignatureError> {
    Signatures::from_texts([
        ("cpython.toml", include_str!("../../../signatures/cpython.toml")),
        ("x86_64.toml", include_str!("../../../signatures/x86_64.toml")),
    ])
}

/// What was found.
#[derive(PartialEq)]
pub(super) enum Found {
    Scan(ScanResult),
    Sweep(Vec<(PhysAddr, u64)>),
}

impl Work {
    pub(super) fn new(set: &str) -> Result<Self, Failure> {
        let built_in = || Signatures::load(None);
        let failed = |error: Box<dyn std::error::Error>| Failure::new(error);
        let sweep = |count| Work::Sweep(PointerSet::new(&sweep_values(count)));
        Ok(match set {
            "cpython" => Self::Scan(Box::new(cpython()?)),
            "typing" => Self::Scan(Box::new(built_in()?.mmu_only())),
            "single" => Self::Scan(Box::new(built_in()?.only(&["cpython.type".to_owned()])?)),
            "16" => Self::Scan(Box::new(structures(16).map_err(failed)?)),
            "64" => Self::Scan(Box::new(structures(64).map_err(failed)?)),
            "needle-1" => Self::Scan(Box::new(needles(1).map_err(failed)?)),
            "needle-20" => Self::Scan(Box::new(needles(20).map_err(failed)?)),
            "needle-200" => Self::Scan(Box::new(needles(200).map_err(failed)?)),
            "sweep-1" => sweep(1),
            "sweep-16" => sweep(16),
            "sweep-5000" => sweep(5000),
            _ => Self::Scan(Box::new(built_in()?)),
        })
    }

    pub(super) fn run(&self, memory: &PhysicalMemory, backend: Backend) -> Found {
        match self {
            Self::Scan(signatures) => Found::Scan(scan(memory, signatures, backend, &|_| {})),
            Self::Sweep(values) => {
                let whole = PhysAddr(0)..PhysAddr(u64::MAX);
                Found::Sweep(sweep(memory, &[whole], values, backend, &|_| {}))
            }
        }
    }

    /// Plants in the tile what is looked for, and says what a backend must find in it.
    pub(super) fn plant(&self, tile: &mut Tile) -> Expected {
        match self {
            Self::Scan(signatures) => Expected { places: tile.plant(signatures), hits: None },
            Self::Sweep(values) => Expected { places: Vec::new(), hits: Some(tile.count(values.values())) },
        }
    }

    /// Hits; where only frames are typed, the frames that could be top-level page tables.
    pub(super) fn hits(&self, found: &Found) -> u64 {
        let count = match (self, found) {
            (Self::Scan(signatures), Found::Scan(result)) if signatures.get(0).is_none() => {
                result.frames.with(top_levels(signatures)).count()
            }
            (_, Found::Scan(result)) => result.hits.len(),
            (_, Found::Sweep(slots)) => slots.len(),
        };
        count as u64
    }
}

/// The classes of tables that never hold a leaf.
fn top_levels(signatures: &Signatures) -> u8 {
    let levels = signatures.mmu().map(|mmu| mmu.levels.as_slice()).unwrap_or_default();
    let top = levels.iter().filter(|level| level.leaf == Leaf::Never);
    top.fold(0, |mask, level| mask | 1 << (level.level - 1))
}

/// What is known to be in one tile.
pub(super) struct Expected {
    /// Where each signature's anchor stands, by index.
    places: Vec<PhysAddr>,
    hits: Option<u64>,
}

impl Expected {
    /// Whether all that was planted in a tile was found: the number of hits, or an error.
    pub(super) fn check(&self, work: &Work, found: &Found) -> Result<u64, Failure> {
        let hits = work.hits(found);
        let missed = |found: &ScanResult| {
            let has = |(place, index): &(&PhysAddr, u16)| {
                found.hits.iter().any(|hit| hit.signature == *index && hit.anchor == **place)
            };
            self.places.iter().zip(0..).filter(|place| !has(place)).count()
        };
        let expected = match (self.hits, found) {
            (Some(hits), _) => hits,
            (None, Found::Scan(_)) if self.places.is_empty() => Tile::tables(),
            (None, Found::Scan(result)) if missed(result) > 0 => {
                return Err(Failure::new(format!(
                    "{} of {} planted hits were not found",
                    missed(result),
                    self.places.len()
                )));
            }
            _ => hits,
        };
        if hits == expected { Ok(hits) } else { Err(wrong_count(hits, expected)) }
    }
}

pub(super) fn wrong_count(hits: u64, expected: u64) -> Failure {
    Failure::new(format!("{hits} hits were found, but {expected} were planted"))
}
