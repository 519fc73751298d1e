//! `memchr::memmem`, one pass for each pattern.

use memchr::memmem::Finder;

use super::{Found, Peer, Search, locked_version};
use crate::input::Input;
use crate::job::Job;

pub struct Memmem;

impl Peer for Memmem {
    fn name(&self) -> &'static str {
        "memchr::memmem"
    }

    fn version(&self) -> Result<String, String> {
        locked_version("memchr")
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let Some(literals) = job.literals() else { return Ok(None) };
        let finders: Vec<Finder<'_>> = literals.into_iter().map(Finder::new).collect();
        let bytes = &input.bytes[..];
        Ok(Some(Box::new(move || {
            let mut hits = Vec::new();
            for (finder, id) in finders.iter().zip(0..) {
                let mut from = 0;
                while let Some(found) = finder.find(&bytes[from..]) {
                    let at = from + found;
                    match job {
                        Job::Needles(_) => hits.push((at, id)),
                        Job::TypeByRule | Job::TypeByField => hits.extend(job.hits_at(bytes, at)),
                    }
                    from = at + 1;
                }
            }
            Ok(Found::from(hits))
        })))
    }
}
