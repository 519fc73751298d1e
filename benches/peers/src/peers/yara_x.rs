//! YARA-X, YARA's successor in Rust.

use super::{
    Found, Peer, Search, locked_version,
    rule::{self, Form},
};
use crate::input::Input;
use crate::job::Job;

const FORM: Form = Form::LongString;

pub struct YaraX;

impl Peer for YaraX {
    fn name(&self) -> &'static str {
        "YARA-X"
    }

    fn version(&self) -> Result<String, String> {
        locked_version("yara-x")
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let rules = yara_x::compile(rule::text(job, FORM).as_str()).map_err(|error| error.to_string())?;
        let bytes = &input.bytes[..];
        Ok(Some(Box::new(move || {
            let mut scanner = yara_x::Scanner::new(&rules);
            scanner.max_matches_per_pattern(usize::MAX);
            let results = scanner.scan(bytes).map_err(|error| error.to_string())?;
            let mut hits = Vec::new();
            for pattern in results.matching_rules().flat_map(|rule| rule.patterns()) {
                let starts = pattern.matches().map(|found| found.range().start);
                hits.extend(starts.filter_map(|at| rule::hit(job, FORM, bytes, pattern.identifier(), at)));
            }
            Ok(Found::from(hits))
        })))
    }
}
