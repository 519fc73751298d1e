//! YARA, the library in C.

use super::{
    Found, Peer, Search,
    rule::{self, Form},
};
use crate::input::Input;
use crate::job::Job;

const FORM: Form = Form::LongCondition;

pub struct Yara;

impl Peer for Yara {
    fn name(&self) -> &'static str {
        "YARA"
    }

    /// The feature of the `yara` crate that brings YARA's sources.
    fn version(&self) -> Result<String, String> {
        Ok("4.5.5".to_owned())
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let compiler = yara::Compiler::new().map(|compiler| compiler.add_rules_str(&rule::text(job, FORM)));
        let rules = compiler.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let rules = rules.compile_rules().map_err(|error| error.to_string())?;
        let bytes = &input.bytes[..];
        Ok(Some(Box::new(move || {
            let mut scanner = rules.scanner().map_err(|error| error.to_string())?;
            scanner.set_timeout(600);
            let matching = scanner.scan_mem(bytes).map_err(|error| error.to_string())?;
            let strings = matching.iter().flat_map(|rule| &rule.strings);
            let matches = strings.flat_map(|s| s.matches.iter().map(|m| (s.identifier, m.offset)));
            let hits = matches.filter_map(|(name, at)| rule::hit(job, FORM, bytes, name, at));
            Ok(Found::from(hits.collect::<Vec<_>>()))
        })))
    }
}
