//! `manifest.json`: how this output came about; all that differs from run to run is here alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::SCHEMA_VERSION;
use super::memory::{self, FileRow, RangesLeftOut};
use super::time::rfc3339;
use crate::diagnostic::Diagnostic;
use crate::dump::{Compression, Dump, Format, MemoryRange};
use crate::recover::Recovery;

/// What the caller knows about a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// The command line, the program's name first.
    pub arguments: Vec<String>,
    /// Name of the backend that scanned.
    pub backend: String,
    /// Why that one.
    pub backend_reason: String,
    /// What went otherwise than asked for, and changed nothing in what was found.
    pub warnings: Vec<Diagnostic>,
    /// Threads that worked.
    pub threads: usize,
    /// The dump as it was named.
    pub input: PathBuf,
    /// Hashes of that file; none where none was asked for, or it could not be hashed.
    pub hashes: Vec<FileHash>,
    /// When the run began.
    pub started: SystemTime,
    /// Each phase with its time, in their order.
    pub phases: Vec<(&'static str, Duration)>,
    /// Who searched it, if it was divided.
    pub division: Option<Division>,
}

/// How a dump that lies elsewhere was divided, and what went between its workers and the one who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Division {
    /// Bytes of a shard.
    pub shard_size: u64,
    /// Those who answered, by name.
    pub workers: BTreeMap<String, WorkerShare>,
    /// Questions that were asked again, because a worker was lost or failed.
    pub repeated: u64,
    /// Bytes of the answers of workers.
    pub bytes_answered: u64,
    /// Bytes that were read from where the dump lies by the one who asked.
    pub bytes_read: u64,
}

/// What one worker did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkerShare {
    /// Questions that it answered.
    pub answers: u64,
    /// Bytes that it read, or mapped, of the dump.
    pub bytes_read: u64,
}

/// A hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileHash {
    /// Its name, as for the option `--hash`.
    pub algorithm: &'static str,
    /// Of the whole file, in lower-case hex; `None` if only its pieces were hashed.
    pub digest: Option<String>,
    /// Pieces that were hashed each for itself, in their order; together they are the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<PieceHash>,
}

/// A hash of a part of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PieceHash {
    /// Of its first byte in the file.
    pub offset: u64,
    /// In bytes.
    pub length: u64,
    /// In lower-case hex.
    pub digest: String,
}

/// The document.
#[derive(Serialize)]
pub(super) struct Manifest<'a> {
    schema_version: u32,
    tool: &'static str,
    version: &'static str,
    arguments: &'a [String],
    backend: &'a str,
    backend_reason: &'a str,
    threads: usize,
    host: Host,
    started: String,
    finished: String,
    seconds: Seconds<'a>,
    input: Input<'a>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    division: Option<&'a Division>,
    /// The files of the output beside this one, with their sizes in bytes: what a later run may overwrite.
    output: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Host {
    name: String,
    system: String,
    release: String,
    machine: String,
}

#[derive(Serialize)]
struct Input<'a> {
    path: String,
    /// Of the file as it was named.
    size: u64,
    hashes: &'a [FileHash],
    compression: Option<Compression>,
    format: Format,
    addresses: &'static str,
    /// Of the container in it.
    unpacked_size: u64,
    damaged: bool,
    ranges: Vec<&'a MemoryRange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranges_left_out: Option<RangesLeftOut>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FileRow<'a>>,
}

struct Seconds<'a>(&'a [(&'static str, Duration)]);

impl Serialize for Seconds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, duration) in self.0 {
            map.serialize_entry(name, &((duration.as_secs_f64() * 1e3).round() / 1e3))?;
        }
        map.end()
    }
}

impl<'a> Manifest<'a> {
    /// `output` are the files that were written, with their sizes.
    pub(super) fn new(dump: &'a Dump, recovery: &'a Recovery, run: &'a Run, output: BTreeMap<String, u64>) -> Self {
        let system = rustix::system::uname();
        let (ranges, ranges_left_out) = memory::ranges(&recovery.memory);
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        Self {
            schema_version: SCHEMA_VERSION,
            tool: super::TOOL,
            version: env!("CARGO_PKG_VERSION"),
            arguments: &run.arguments,
            backend: &run.backend,
            backend_reason: &run.backend_reason,
            threads: run.threads,
            host: Host {
                name: text(system.nodename()),
                system: text(system.sysname()),
                release: text(system.release()),
                machine: text(system.machine()),
            },
            started: rfc3339(run.started),
            finished: rfc3339(SystemTime::now()),
            seconds: Seconds(&run.phases),
            input: Input {
                path: run.input.display().to_string(),
                size: dump.file_size,
                hashes: &run.hashes,
                compression: dump.compression,
                format: dump.format,
                addresses: dump.addresses.name(),
                unpacked_size: dump.size,
                damaged: dump.damaged,
                ranges,
                ranges_left_out,
                files: FileRow::all(&recovery.memory, true),
            },
            warnings: super::warnings(dump, recovery).chain(&run.warnings).map(Diagnostic::to_string).collect(),
            division: run.division.as_ref(),
            output,
        }
    }
}
