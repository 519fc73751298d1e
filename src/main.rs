//! The command line of tensorcarve.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    // Mesa's layer that picks a GPU for a desktop prints an error where there is no desktop, as on most servers.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    let arguments = cli::Arguments::parse();
    match cli::run(&arguments) {
        Ok(outcome) => u8::from(outcome).into(),
        Err(failure) => {
            cli::print_message(&failure.to_string());
            cli::ERROR.into()
        }
    }
}
