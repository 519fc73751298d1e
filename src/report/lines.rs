//! What was found as lines for other programs: a model per line of JSON, a tensor per line of CSV.

use std::io::{self, Write};

use serde::Serialize;

use super::model::ModelRow;
use super::tensor::TensorRow;
use crate::addr::PhysAddr;
use crate::recover::Recovery;

#[derive(Serialize)]
struct ModelLine<'a> {
    root: Option<PhysAddr>,
    pid: Option<u32>,
    python: Option<&'a str>,
    torch: Option<&'a str>,
    #[serde(flatten)]
    model: ModelRow<'a>,
}

/// Writes one model per line, as JSON.
///
/// # Errors
/// `out` failed.
pub fn print_jsonl(out: &mut dyn Write, recovery: &Recovery) -> io::Result<()> {
    for process in &recovery.processes {
        for model in &process.models {
            let line = ModelLine {
                root: process.root(),
                pid: process.pid,
                python: process.python.as_ref().and_then(|python| python.version.as_deref()),
                torch: process.facts.torch.as_ref().and_then(|torch| torch.version.as_deref()),
                model: ModelRow::new(model),
            };
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// The columns of the CSV.
const COLUMNS: [&str; 20] = [
    "root",
    "pid",
    "model",
    "class",
    "name",
    "kind",
    "persistent",
    "dtype",
    "shape",
    "stride",
    "storage_offset",
    "data",
    "requires_grad",
    "status",
    "device",
    "file",
    "sha256",
    "same_as",
    "problem",
    "file_name",
];

/// Writes one tensor per line, as CSV with a line of column names; sizes are joined by `x`.
///
/// # Errors
/// `out` failed.
pub fn print_csv(out: &mut dyn Write, recovery: &Recovery) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(COLUMNS).map_err(io_error)?;
    for process in &recovery.processes {
        for model in &process.models {
            let (tensors, training) = TensorRow::all(model);
            for row in tensors.into_iter().chain(training) {
                let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
                let record = writer.write_record([
                    process.root().map(|root| root.to_string()).unwrap_or_default(),
                    process.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                    model.id.clone(),
                    text(model.class.as_deref()),
                    row.name.to_owned(),
                    word(&row.kind),
                    row.persistent.to_string(),
                    text(row.dtype),
                    row.shape.map(joined).unwrap_or_default(),
                    row.stride.map(joined).unwrap_or_default(),
                    row.storage_offset.map(|offset| offset.to_string()).unwrap_or_default(),
                    row.data.map(|data| data.to_string()).unwrap_or_default(),
                    row.requires_grad.map(|flag| flag.to_string()).unwrap_or_default(),
                    word(&row.status),
                    text(row.device),
                    text(row.file),
                    text(row.sha256),
                    text(row.same_as),
                    row.problem.unwrap_or_default(),
                    row.file_name.unwrap_or_default(),
                ]);
                record.map_err(io_error)?;
            }
        }
    }
    writer.flush()
}

/// The system's error itself: whether the reader has gone is told by its kind.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

fn joined(sizes: &[u64]) -> String {
    sizes.iter().map(u64::to_string).collect::<Vec<_>>().join("x")
}

/// A value that JSON writes as one word, without its quotes.
fn word(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    json.trim_matches('"').to_owned()
}
