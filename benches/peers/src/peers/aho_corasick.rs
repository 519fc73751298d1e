//! The crate `aho-corasick`, with both of its kinds of matching.

use aho_corasick::{AhoCorasick, MatchKind};

use super::{Found, Peer, Search, locked_version, resolve};
use crate::input::Input;
use crate::job::Job;

/// Leftmost-first, with the crate's vector prefilters; what it leaves out is looked up.
pub struct Leftmost;

/// Standard, which finds overlapping matches by itself.
pub struct Standard;

impl Peer for Leftmost {
    fn name(&self) -> &'static str {
        "aho-corasick, leftmost-first"
    }

    fn version(&self) -> Result<String, String> {
        locked_version("aho-corasick")
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let Some(automaton) = automaton(job, MatchKind::LeftmostFirst)? else { return Ok(None) };
        let bytes = &input.bytes[..];
        Ok(Some(Box::new(move || {
            let mut from = 0;
            let starts = std::iter::from_fn(|| {
                let at = from + automaton.find(&bytes[from..])?.start();
                from = at + 1;
                Some(at)
            });
            Ok(Found::from(resolve(job, bytes, starts)))
        })))
    }
}

impl Peer for Standard {
    fn name(&self) -> &'static str {
        "aho-corasick, standard"
    }

    fn version(&self) -> Result<String, String> {
        locked_version("aho-corasick")
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let Job::Needles(_) = job else { return Ok(None) };
        let Some(automaton) = automaton(job, MatchKind::Standard)? else { return Ok(None) };
        let bytes = &input.bytes[..];
        Ok(Some(Box::new(move || {
            let matches = automaton.find_overlapping_iter(bytes);
            Ok(Found::from(matches.map(|found| (found.start(), found.pattern().as_usize())).collect::<Vec<_>>()))
        })))
    }
}

fn automaton(job: &Job, kind: MatchKind) -> Result<Option<AhoCorasick>, String> {
    let Some(literals) = job.literals() else { return Ok(None) };
    AhoCorasick::builder().match_kind(kind).build(literals).map(Some).map_err(|error| error.to_string())
}
