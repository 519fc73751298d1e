//! ripgrep, the program, over the same file; the time that it takes for an empty file is subtracted.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::{Found, Peer, Search, resolve};
use crate::input::Input;
use crate::job::Job;

pub struct Ripgrep;

impl Peer for Ripgrep {
    fn name(&self) -> &'static str {
        "ripgrep"
    }

    fn version(&self) -> Result<String, String> {
        let out = Command::new("rg").arg("--version").output().map_err(|error| format!("rg: {error}"))?;
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(out.split_whitespace().nth(1).unwrap_or_default().to_owned())
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let expressions = job.expressions().into_iter().map(|expression| format!("(?s-u:{expression})"));
        let expressions = expressions.collect::<Vec<_>>().join("\n");
        let mut list = NamedTempFile::new().map_err(|error| error.to_string())?;
        list.write_all(expressions.as_bytes()).map_err(|error| error.to_string())?;
        let empty = NamedTempFile::new().map_err(|error| error.to_string())?;
        Ok(Some(Box::new(move || {
            let (start, _) = search(&list, &empty)?;
            let (whole, starts) = search(&list, &input.file)?;
            let hits = resolve(job, &input.bytes, starts.into_iter());
            Ok(Found { hits, time: Some(whole.saturating_sub(start)) })
        })))
    }
}

/// Starts of the matches, and how long the program ran. With `--multiline` bytes that end lines are like any other.
fn search(list: &NamedTempFile, file: &NamedTempFile) -> Result<(Duration, Vec<usize>), String> {
    let mut command = Command::new("rg");
    command.args(["--no-config", "--text", "--only-matching", "--byte-offset", "--no-filename", "--no-line-number"]);
    command.args(["--no-unicode", "--multiline", "--mmap", "--threads=1", "--file"]);
    command.args([list.path(), file.path()]);
    let clock = Instant::now();
    let out = command.output().map_err(|error| error.to_string())?;
    let time = clock.elapsed();
    // 1 says that nothing was found.
    if !matches!(out.status.code(), Some(0 | 1)) {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    let lines = out.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    // A match that holds a line feed goes on in a further line, which begins with the same offset.
    let start = |line: &[u8]| {
        let digits = line.split(|byte| *byte == b':').next().and_then(|digits| std::str::from_utf8(digits).ok())?;
        digits.parse().ok()
    };
    let mut starts: Vec<usize> = lines.filter_map(start).collect();
    starts.dedup();
    Ok((time, starts))
}
