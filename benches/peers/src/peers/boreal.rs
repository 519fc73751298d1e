//! boreal, YARA's rules evaluated in Rust.

use boreal::Compiler;
use boreal::scanner::ScanParams;

use super::{
    Found, Peer, Search, locked_version,
    rule::{self, Form},
};
use crate::input::Input;
use crate::job::Job;

const FORM: Form = Form::LongString;

pub struct Boreal;

impl Peer for Boreal {
    fn name(&self) -> &'static str {
        "boreal"
    }

    fn version(&self) -> Result<String, String> {
        locked_version("boreal")
    }

    fn prepare<'a>(&self, job: &'a Job, input: &'a Input) -> Result<Option<Search<'a>>, String> {
        let mut compiler = Compiler::new();
        compiler.add_rules_str(rule::text(job, FORM)).map_err(|error| error.to_string())?;
        let mut scanner = compiler.finalize();
        let all_matches = ScanParams::default().compute_full_matches(true).string_max_nb_matches(u32::MAX);
        scanner.set_scan_params(all_matches);
        let bytes = &input.bytes[..];
        Ok(Some(Box::new(move || {
            let result = scanner.scan_mem(bytes).map_err(|(error, _)| error.to_string())?;
            let strings = result.rules.iter().flat_map(|rule| &rule.matches);
            let matches = strings.flat_map(|s| s.matches.iter().map(|m| (s.name, m.offset)));
            let hits = matches.filter_map(|(name, at)| rule::hit(job, FORM, bytes, name, at));
            Ok(Found::from(hits.collect::<Vec<_>>()))
        })))
    }
}
