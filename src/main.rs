//! The command line of tensorcarve.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    match cli::run(&arguments) {
        Ok(outcome) => outcome.into(),
        Err(failure) => {
            cli::say(&failure.to_string());
            cli::ERROR.into()
        }
    }
}
