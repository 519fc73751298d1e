//! The list of verbs, and the arguments that several of them share.

use std::ops::Range;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tensorcarve::addr::PhysAddr;
use tensorcarve::case::Index;
use tensorcarve::dump::{self, MappedFiles, OpenOptions};
use tensorcarve::scan::BackendChoice;

use super::{bench, core, devices, gc, info, maps, objects, ps, recover, scan, shell, spaces, stack};

const AFTER: &str = "\
Examples:
  tensorcarve recover memory.lime -o out      find the models and write them to out/
  python3 out/models/m0/load.py               rebuild the first model with stock PyTorch
  tensorcarve info memory.lime                show the dump's format and memory ranges
  tensorcarve spaces memory.lime              list the address spaces
  tensorcarve ps memory.lime                  list the processes
  tensorcarve maps memory.lime --pid 188      show the memory map of a process
  tensorcarve core memory.lime --pid 188 -o core.188
                                              write a process as an ELF core for gdb
  tensorcarve scan memory.lime                list the addresses where signatures match
  tensorcarve bench                           measure how fast this computer searches memory

Data goes to stdout, everything else to stderr.
Exit codes: 0 found, 1 nothing found, 2 error, 3 found but partly unreadable, 130 interrupted.";

/// Recovers neural networks from a dump of a machine's physical memory, or of one process.
#[derive(Parser)]
#[command(name = "tensorcarve", version, after_help = AFTER, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Find the models in a dump and write them to a folder
    #[command(after_help = recover::AFTER)]
    Recover(recover::RecoverArgs),
    /// Show a dump's format, compression, size, memory ranges and damage
    #[command(after_help = info::AFTER)]
    Info(info::InfoArgs),
    /// List the address spaces in a dump, by their page-table roots
    #[command(after_help = spaces::AFTER)]
    Spaces(spaces::SpacesArgs),
    /// List the processes of a Linux machine
    // Here --threads lists threads.
    #[command(after_help = ps::AFTER, mut_arg(THREAD_COUNT, |arg| arg.long("jobs")))]
    Ps(ps::PsArgs),
    /// List what a process had mapped
    #[command(after_help = maps::AFTER)]
    Maps(maps::MapsArgs),
    /// Write a process of a machine as an ELF core, for gdb and other debuggers
    #[command(after_help = core::AFTER)]
    Core(core::CoreArgs),
    /// Say where the Python code of a process stood: threads, frames, generators
    #[command(after_help = stack::AFTER)]
    Stack(stack::StackArgs),
    /// Walk the garbage collector's lists: generations, counts, broken links
    #[command(after_help = gc::AFTER)]
    Gc(gc::GcArgs),
    /// List the Python objects: types with counts, or instances, modules, strings
    #[command(after_help = objects::AFTER)]
    Objects(objects::ObjectsArgs),
    /// List where signatures match in a dump
    #[command(after_help = scan::AFTER)]
    Scan(scan::ScanArgs),
    /// Show which CPU features and GPUs can search memory, and which would be used
    #[command(after_help = devices::AFTER)]
    Devices(devices::DevicesArgs),
    /// Measure how fast memory is searched, compared with reading it
    #[command(after_help = bench::AFTER)]
    Bench(bench::BenchArgs),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = shell::AFTER_COMPLETIONS)]
    Completions(shell::CompletionsArgs),
    /// Write manual pages to a folder
    #[command(after_help = shell::AFTER_MAN)]
    Man(shell::ManArgs),
}

/// Arguments of every verb that asks a case.
#[derive(Args)]
pub(super) struct CaseArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    #[command(flatten)]
    pub(super) index: IndexArgs,
    #[command(flatten)]
    pub(super) verbosity: VerbosityArgs,
}

/// Which process of a machine.
#[derive(Args)]
pub(super) struct ProcessArgs {
    /// The process with this id
    #[arg(long, value_name = "PID")]
    pub(super) pid: Option<u32>,
    /// The process with this root of page tables, as `tensorcarve spaces` lists them
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address, conflicts_with = "pid")]
    pub(super) root: Option<PhysAddr>,
}

/// The dump, and how to open it.
#[derive(Args)]
pub(super) struct InputArgs {
    /// The dump: raw, LiME or an ELF core, of a machine or of one process; detected by content. It can be compressed with
    /// zstd, gzip, xz or zlib
    #[arg(value_name = "DUMP")]
    pub(super) dump: PathBuf,
    /// Format of the dump, instead of detecting it
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// A copy of /proc/PID/maps, if the dump is a copy of the mappings in /proc/PID/mem, one after another
    #[arg(long, value_name = "MAPS", conflicts_with = "input_format")]
    maps: Option<PathBuf>,
    /// Folder to unpack a compressed dump to [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    spool_dir: Option<PathBuf>,
}

impl InputArgs {
    pub(super) fn options(&self) -> OpenOptions {
        let format = self.input_format.map(|format| match format {
            InputFormat::Raw => dump::Format::Raw,
            InputFormat::Lime => dump::Format::Lime,
            InputFormat::Elf => dump::Format::Elf,
        });
        OpenOptions { spool_dir: self.spool_dir.clone(), format, maps: self.maps.clone() }
    }
}

/// Files that fill the holes of a process image.
#[derive(Args)]
pub(super) struct MappedArgs {
    /// A file that the process had mapped and that the core leaves out, such as model.safetensors. It fills the holes of
    /// that mapped file, which is found by the file name. Use RECORDED=PATH if the file had another name when it was
    /// mapped. Can be repeated
    #[arg(long = "file", value_name = "[RECORDED=]PATH")]
    files: Vec<PathBuf>,
    /// A folder with a copy of the machine's files, which fill the holes of any mapped file
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
}

impl MappedArgs {
    pub(super) fn files(&self) -> MappedFiles {
        MappedFiles { files: self.files.clone(), sysroot: self.sysroot.clone() }
    }
}

/// The argument with the number of threads: in `ps`, `--threads` lists those of the processes.
const THREAD_COUNT: &str = "thread_count";

/// Backend, threads and signatures.
#[derive(Args)]
pub(super) struct WorkArgs {
    /// Backend that searches memory. All backends find the same hits, at different speeds. For large dumps, `auto` measures
    /// whether a GPU is faster. The environment variable TENSORCARVE_GPU chooses the GPU by number or by part of its name
    #[arg(long, default_value = "auto", value_name = "NAME", value_parser = backend_parser())]
    pub(super) backend: BackendChoice,
    /// Number of threads that work [default: one per core]
    #[arg(
        id = THREAD_COUNT,
        short = 'j',
        long = "threads",
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    pub(super) threads: Option<u16>,
    /// Signature file, or folder with such files (*.toml), that adds to the built-in ones or replaces them by name
    #[arg(long, value_name = "PATH")]
    pub(super) signatures: Option<PathBuf>,
}

impl WorkArgs {
    /// How many threads work.
    pub(super) fn thread_count(&self) -> usize {
        self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }
}

/// Results that are kept for the next command.
#[derive(Args)]
pub(super) struct IndexArgs {
    /// Folder for the index, which keeps what a command learned about a dump, so that the next command need not read the
    /// whole dump again. It holds evidence [default: tensorcarve in $XDG_CACHE_HOME or ~/.cache]
    #[arg(long, value_name = "DIR", conflicts_with = "no_index")]
    index: Option<PathBuf>,
    /// Do not use or write an index
    #[arg(long)]
    no_index: bool,
}

impl IndexArgs {
    /// The index to use, if any.
    pub(super) fn index(&self) -> Option<Index> {
        if self.no_index { None } else { self.index.as_ref().map(Index::new).or_else(Index::of_user) }
    }
}

/// Messages on stderr.
#[derive(Args)]
pub(super) struct VerbosityArgs {
    /// Print how long each phase took and how well each layout fits
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Print only errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Do not show progress, which is only shown on a terminal
    #[arg(long)]
    pub(super) no_progress: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum InputFormat {
    Raw,
    Lime,
    Elf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LineFormat {
    Table,
    Json,
    Jsonl,
    Csv,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PlainFormat {
    Table,
    Json,
}

/// The names of backends.
pub(super) fn backend_parser() -> impl TypedValueParser<Value = BackendChoice> {
    PossibleValuesParser::new(BackendChoice::NAMES).try_map(|name| name.parse::<BackendChoice>())
}

/// Hexadecimal with `0x`, or decimal.
pub(super) fn parse_number(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|error| format!("`{text}`: {error}"))
}

fn parse_address(text: &str) -> Result<PhysAddr, String> {
    parse_number(text).map(PhysAddr)
}

/// `START-END`, each as above.
pub(super) fn parse_range(text: &str) -> Result<Range<PhysAddr>, String> {
    let (start, end) = text.split_once('-').ok_or("write it as START-END, such as 0x1000-0x9fc00")?;
    let range = parse_address(start)?..parse_address(end)?;
    if range.is_empty() { Err("the end must be above the start".to_owned()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        // clap checks this as well, but not in a release build.
        for verb in Arguments::command().get_subcommands() {
            let mut seen = std::collections::HashSet::new();
            for arg in verb.get_arguments() {
                let names = [Some(arg.get_id().to_string()), arg.get_long().map(|long| format!("--{long}"))];
                let short = arg.get_short().map(|short| format!("-{short}"));
                for name in names.into_iter().chain([short]).flatten() {
                    assert!(seen.insert(name.clone()), "{} has two arguments {name}", verb.get_name());
                }
            }
        }
        Arguments::command().debug_assert();
    }
}
