//! Volatility 3's scanners, in Python, in a process of their own with a clock of its own.

use std::io::Write;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Found, Peer, Search};
use crate::input::Input;
use crate::job::{FRAME, Hit, Job, TYPE_REGEX};

/// Where `run` installs it.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/bin/python");

/// What is searched, from the middle of the file: all of it would take longer than all others together.
const SLICE: usize = 64 << 20;

pub struct Volatility;

impl Peer for Volatility {
    fn name(&self) -> &'static str {
        "Volatility 3"
    }

    fn version(&self) -> Result<String, String> {
        let script = "import importlib.metadata; print(importlib.metadata.version('volatility3'))";
        let text = python(&["-c", script], "")?;
        Ok(text.trim().to_owned())
    }

    fn range(&self, input: &Input) -> Range<usize> {
        let size = input.bytes.len().min(SLICE);
        let start = (input.bytes.len() - size) / 2 / FRAME * FRAME;
        start..start + size
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let hex = |literal: &[u8]| literal.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let literals: Option<Vec<String>> = job.literals().map(|literals| literals.into_iter().map(hex).collect());
        let range = self.range(input);
        let task = json!({
            "path": input.file.path(), "start": range.start, "size": range.len(),
            "job": job.name(), "literals": literals, "regex": TYPE_REGEX,
        });
        Ok(Some(Box::new(move || {
            let text = python(&["-c", include_str!("volatility.py")], &task.to_string())?;
            let answer: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let hits: Vec<Hit> = serde_json::from_value(answer["hits"].clone()).map_err(|error| error.to_string())?;
            let seconds = answer["seconds"].as_f64().ok_or("no seconds")?;
            Ok(Found { hits, time: Some(Duration::from_secs_f64(seconds)) })
        })))
    }
}

fn python(arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(PYTHON);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{PYTHON}: {error}"))?;
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes())).map_err(|e| e.to_string())?;
    let out = child.wait_with_output().map_err(|error| error.to_string())?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}
