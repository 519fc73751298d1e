//! tensorcarve, through its library.

use std::fmt::Write;

use tensorcarve::addr::{FileOffset, PhysAddr};
use tensorcarve::dump::{MemoryRange, PhysicalMemory};
use tensorcarve::scan::{Backend, scan};
use tensorcarve::signature::Signatures;

use super::{Found, Peer, Search, locked_version};
use crate::input::{Input, map};
use crate::job::{Job, type_signature};

pub struct Tensorcarve;

impl Peer for Tensorcarve {
    fn name(&self) -> &'static str {
        "tensorcarve"
    }

    fn version(&self) -> Result<String, String> {
        Ok(format!("{}, {}", locked_version("tensorcarve")?, Backend::detect_best()))
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let mut text = String::new();
        match job {
            Job::TypeByRule | Job::TypeByField => text.push_str(type_signature()),
            Job::Needles(needles) => {
                for (needle, id) in needles.iter().zip(0..) {
                    let hex: String = needle.iter().map(|byte| format!("{byte:02x}")).collect();
                    let _ = writeln!(text, "[[needle]]\nname = \"n{id}\"\nhex = \"{hex}\"");
                }
            }
        }
        let signatures = Signatures::from_texts([("job.toml", text.as_str())]).map_err(|error| error.to_string())?;
        let end = PhysAddr(input.bytes.len() as u64);
        let range = MemoryRange { start: PhysAddr(0), end, offset: FileOffset(0) };
        let bytes = map(&input.file).map_err(|error| error.to_string())?;
        let memory = PhysicalMemory::mapped(bytes, vec![range]).map_err(|error| error.to_string())?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| error.to_string())?;
        Ok(Some(Box::new(move || {
            let found = pool.install(|| scan(&memory, &signatures, Backend::detect_best(), &|_| {}));
            let whole = found.hits.iter().filter(|hit| hit.deferred == 0);
            Ok(Found::from(whole.map(|hit| (hit.address.0 as usize, usize::from(hit.signature))).collect::<Vec<_>>()))
        })))
    }
}
