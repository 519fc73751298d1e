//! The command line. Each verb has a file of its name, with its arguments, its help and `run`.
//!
//! Files that verbs share: `args` (arguments, with the list of verbs), `work` (opening a dump, threads), `linux` and
//! `python` (what their verbs do alike), `stdout` (data), `stderr` (messages), `progress`, `failure` (errors with hints),
//! `interrupt`, `input_hash`, and `machine` (the computer that we run on). `shell` has two verbs: completions and manual pages.

mod args;
mod bench;
mod core;
mod devices;
mod failure;
mod gc;
mod info;
mod input_hash;
mod interrupt;
mod linux;
mod machine;
mod maps;
mod objects;
mod progress;
mod ps;
mod python;
mod recover;
mod scan;
mod shell;
mod spaces;
mod stack;
mod stderr;
mod stdout;
mod work;

pub(crate) use args::Arguments;
pub(crate) use failure::Failure;
pub(crate) use stderr::print_message;
#[allow(unused_imports, reason = "the Python package has this file as well")]
pub(crate) use {core::check_output, work::unpacking};

use args::Verb;

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All that was found could be read.
    Found,
    /// Nothing of what was looked for is there.
    Nothing,
    /// Found, but the dump is damaged or a part could not be read.
    Partly,
}

impl From<Outcome> for u8 {
    /// The exit code.
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Found => 0,
            Outcome::Nothing => 1,
            Outcome::Partly => 3,
        }
    }
}

/// Exit code of an error; clap has the same for wrong usage.
pub(crate) const ERROR: u8 = 2;

/// Does what was asked for.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Failure> {
    interrupt::install()?;
    tensorcarve::dump::catch_unreadable_pages()
        .map_err(|error| Failure::new(format!("cannot install the handler for unreadable pages ({error})")))?;
    match &arguments.verb {
        Verb::Recover(recover) => recover::run(recover),
        Verb::Info(info) => info::run(info),
        Verb::Spaces(spaces) => spaces::run(spaces),
        Verb::Ps(ps) => ps::run(ps),
        Verb::Maps(maps) => maps::run(maps),
        Verb::Core(core) => core::run(core),
        Verb::Scan(scan) => scan::run(scan),
        Verb::Stack(stack) => stack::run(stack),
        Verb::Gc(gc) => gc::run(gc),
        Verb::Objects(objects) => objects::run(objects),
        Verb::Devices(devices) => devices::run(devices),
        Verb::Bench(bench) => bench::run(bench),
        Verb::Completions(completions) => shell::completions(completions),
        Verb::Man(man) => shell::man(man),
    }
}
