//! The program that is tested.

use std::process::Command;

/// The program, whose index lies in the folder for what tests leave behind.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tensorcarve"));
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}
