//! `completions` and `man`: what shells and manuals need to know of the command.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::args::Arguments;
use super::{Failure, Outcome, stdout};

pub(super) const AFTER_COMPLETIONS: &str = "\
Examples:
  tensorcarve completions bash > /etc/bash_completion.d/tensorcarve
  tensorcarve completions zsh > ~/.zfunc/_tensorcarve
  tensorcarve completions fish > ~/.config/fish/completions/tensorcarve.fish";

pub(super) const AFTER_MAN: &str = "\
Examples:
  tensorcarve man /usr/local/share/man/man1
  man tensorcarve-recover";

/// Arguments of `completions`.
#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Args)]
pub(super) struct ManArgs {
    /// Folder for the pages, one for each command. It must exist, and pages in it are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Outcome, Failure> {
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    stdout::print(|out| out.write_all(&script))?;
    Ok(Outcome::Found)
}

pub(super) fn man(args: &ManArgs) -> Result<Outcome, Failure> {
    if !args.folder.is_dir() {
        let message = format!("{}: there is no such folder", args.folder.display());
        return Err(Failure::new(message).hint("create it first"));
    }
    clap_mangen::generate_to(Arguments::command(), &args.folder).map_err(|error| {
        let message = format!("the pages could not be written to {} ({error})", args.folder.display());
        Failure::new(message).hint("choose another folder")
    })?;
    Ok(Outcome::Found)
}
