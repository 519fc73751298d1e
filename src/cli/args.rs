//! The arguments, and the help that teaches them.

use std::ops::Range;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tensorcarve::addr::PhysAddr;
use tensorcarve::case::Index;
use tensorcarve::dump::{self, MappedFiles, OpenOptions};
use tensorcarve::scan::BackendChoice;

use super::{bench, core, gc, objects, stack};

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

const RECOVER_AFTER: &str = "\
Examples:
  tensorcarve recover memory.lime -o out
  tensorcarve recover memory.raw.zst -o out --spool-dir /big/disk
  tensorcarve recover memory.elf -o out --overwrite --format jsonl | jq .class
  tensorcarve recover core.4321 -o out        a core of one process, from gcore or the kernel
  tensorcarve recover core.4321 -o out --file model.safetensors
                                              and the checkpoint that it had mapped, which cores leave out
  tensorcarve recover mem --maps maps -o out  a copy of /proc/4321/mem, made in bash as follows:

    kill -STOP 4321
    cat /proc/4321/maps > maps
    while IFS='- ' read -r start end access _ _ _ path; do
      [[ $access == r* && $start != ffffffff* && $path != /dev/nvidia* ]] &&
        dd if=/proc/4321/mem bs=4096 status=none iflag=skip_bytes,count_bytes conv=noerror,sync \\
          skip=$((0x$start)) count=$((0x$end - 0x$start))
    done < maps > mem
    kill -CONT 4321

  dd reports errors for unreadable pages, such as [vvar] and (from Linux 6.13 on) the guard pages
  of stacks. The copy has zeros in their place.

DIR/recovery.json lists everything that was found. It is written last: a folder without it is
incomplete. DIR/models/m0/ holds the first model: model.safetensors, model.json, load.py. Nothing is
written outside DIR, except the unpacked copy of a compressed dump, which is deleted at the end.";

const INFO_AFTER: &str = "\
Examples:
  tensorcarve info memory.lime.zst
  tensorcarve info memory.lime --format json | jq '.ranges[0]'";

const SPACES_AFTER: &str = "\
Examples:
  tensorcarve spaces memory.lime
  tensorcarve spaces memory.raw --input-format raw --format json | jq '.spaces[] | select(.kind == \"process\")'";

const PS_AFTER: &str = "\
Examples:
  tensorcarve ps memory.lime
  tensorcarve ps memory.lime --tree
  tensorcarve ps memory.lime --python         which Python runs where, and with how many models
  tensorcarve ps memory.lime --threads --pid 188
  tensorcarve ps memory.lime --format json | jq '.processes[] | select(.kind == \"process\") | .cmdline'

No kernel symbols are needed: offsets in the kernel's structures are taken from the BTF in its memory or,
where that is lost, from what the tasks of the dump agree on. What can't be established is null, or `?` in the table.
The plain table does not look at Python, which takes longer; the other formats and --python do.";

const MAPS_AFTER: &str = "\
Examples:
  tensorcarve maps memory.lime --pid 188
  tensorcarve maps memory.lime --root 0xfa7a000 --format csv
  tensorcarve maps core.4321                  what the core of a process says of its mappings

Where the kernel's records can't be read, ranges come from the page tables, with the source `page_tables`.";

const SCAN_AFTER: &str = "\
Examples:
  tensorcarve scan memory.lime
  tensorcarve scan memory.lime --signature cpython.type --explain
  tensorcarve scan memory.lime --signatures my/ --range 0x100000-0x8000000 --format jsonl | jq .address

A hit shows the address of the structure, the address and value of its anchor, and how many fields
were tested. Fields outside the anchor's 4 KiB frame are deferred. signatures/README.md explains how
to write your own signatures. Addresses are physical, or virtual for a process image. The formats
json, jsonl and csv also have file_offset, the anchor's position in the (unpacked) file.";

const DEVICES_AFTER: &str = "\
Examples:
  tensorcarve devices
  tensorcarve devices --format json | jq -r .chosen";

const BENCH_AFTER: &str = "\
Examples:
  tensorcarve bench                           synthetic memory, all sets and backends, one thread and all
  tensorcarve bench --set default -j 1 --backend simd
  tensorcarve bench memory.lime --set default --format json
  tensorcarve bench memory.lime --set input   the file itself: mapped or read, warm or cold cache

OF READ compares the speed with a plain sum over the same bytes on the same threads. Both are
measured in turn, round by round. OF READ is the median round, MIN-MAX the lowest and the highest.
Synthetic memory has a known number of hits. On a dump, all backends must find the same hits.
Otherwise the run fails. The set `input` evicts the file from the page cache.";

/// Recovers neural networks from a dump of a machine's physical memory, or of one process.
#[derive(Parser)]
#[command(version, after_help = AFTER, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Find the models in a dump and write them to a folder
    #[command(after_help = RECOVER_AFTER)]
    Recover(RecoverArgs),
    /// Show a dump's format, compression, size, memory ranges and damage
    #[command(after_help = INFO_AFTER)]
    Info(InfoArgs),
    /// List the address spaces in a dump, by their page-table roots
    #[command(after_help = SPACES_AFTER)]
    Spaces(SpacesArgs),
    /// List the processes of a Linux machine
    // Here --threads lists threads.
    #[command(after_help = PS_AFTER, mut_arg(THREAD_COUNT, |arg| arg.long("jobs")))]
    Ps(PsArgs),
    /// List what a process had mapped
    #[command(after_help = MAPS_AFTER)]
    Maps(MapsArgs),
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
    #[command(after_help = SCAN_AFTER)]
    Scan(ScanArgs),
    /// Show which CPU features and GPUs can search memory, and which would be used
    #[command(after_help = DEVICES_AFTER)]
    Devices(DevicesArgs),
    /// Measure how fast memory is searched, compared with reading it
    #[command(after_help = BENCH_AFTER)]
    Bench(BenchArgs),
}

#[derive(Args)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    #[command(flatten)]
    pub(super) mapped: MappedArgs,
    /// Output folder, which must be empty or not exist [default: <dump name>.carved in the current folder]
    #[arg(short, long, value_name = "DIR")]
    pub(super) output_dir: Option<PathBuf>,
    /// Replace the output of an earlier run in the folder, without touching any other file
    #[arg(long)]
    pub(super) overwrite: bool,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    #[command(flatten)]
    pub(super) index: IndexArgs,
    /// Do not compute the SHA-256 of the dump file for the manifest
    #[arg(long)]
    pub(super) no_hash: bool,
    /// What to print: table, json (the content of recovery.json), jsonl (one model per line) or csv (one tensor per line)
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: LineFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct SpacesArgs {
    #[command(flatten)]
    pub(super) case: CaseArgs,
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
}

#[derive(Args)]
pub(super) struct PsArgs {
    #[command(flatten)]
    pub(super) case: CaseArgs,
    /// List threads as well
    #[arg(long)]
    pub(super) threads: bool,
    /// Show which process created which
    #[arg(long)]
    pub(super) tree: bool,
    /// List only processes in which a Python runs, with its version, frameworks and number of models
    #[arg(long)]
    pub(super) python: bool,
    #[command(flatten)]
    pub(super) which: ProcessArgs,
    /// What to print: a table, one document, one process per line
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: LineFormat,
}

#[derive(Args)]
pub(super) struct MapsArgs {
    #[command(flatten)]
    pub(super) case: CaseArgs,
    #[command(flatten)]
    pub(super) which: ProcessArgs,
    /// What to print: a table, one document, one mapping per line
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: LineFormat,
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
    pub(super) talk: TalkArgs,
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

#[derive(Args)]
pub(super) struct ScanArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    /// Search for this signature only; can be repeated [default: all]
    #[arg(long = "signature", value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Search only these addresses (END is exclusive); can be repeated [default: all]
    #[arg(long = "range", value_name = "START-END", value_parser = parse_range)]
    pub(super) ranges: Vec<Range<PhysAddr>>,
    /// Print at most N hits and N rejected candidates
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// Also list rejected candidates (addresses where only a structure's anchor matched) and the reasons
    #[arg(long)]
    pub(super) explain: bool,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    /// Output format; --explain needs table or json
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: LineFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct DevicesArgs {
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
}

#[derive(Args)]
pub(super) struct BenchArgs {
    /// A dump to measure on [default: synthetic memory]
    #[arg(value_name = "DUMP")]
    pub(super) dump: Option<PathBuf>,
    /// What to search for; can be repeated [default: all except input]
    #[arg(long = "set", value_name = "NAME", value_parser = PossibleValuesParser::new(bench::SETS))]
    pub(super) sets: Vec<String>,
    /// Backend to measure; can be repeated [default: all CPU backends, and a hardware GPU if there is one]
    #[arg(
        long = "backend",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(BackendChoice::NAMES).try_map(|name| name.parse::<BackendChoice>())
    )]
    pub(super) backends: Vec<BackendChoice>,
    /// Numbers of threads, such as 1,2,4 [default: one, and one per core]
    #[arg(short = 'j', long, value_name = "N", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) threads: Vec<u16>,
    /// Size of the synthetic memory in MiB [default: 512, or a quarter of the free memory]
    #[arg(long, value_name = "MIB", conflicts_with = "dump", value_parser = clap::value_parser!(u32).range(16..))]
    pub(super) size: Option<u32>,
    /// Number of rounds; the result is the median
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) rounds: u16,
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
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
pub(super) const THREAD_COUNT: &str = "thread_count";

/// Backend, threads and signatures.
#[derive(Args)]
pub(super) struct WorkArgs {
    /// Backend that searches memory. All backends find the same hits, at different speeds. For large dumps, `auto` measures
    /// whether a GPU is faster. The environment variable TENSORCARVE_GPU chooses the GPU by number or by part of its name
    #[arg(
        long,
        default_value = "auto",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(BackendChoice::NAMES).try_map(|name| name.parse::<BackendChoice>())
    )]
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
    /// Folder with signature files (*.toml) that add to the built-in ones, or replace them by name
    #[arg(long, value_name = "DIR")]
    pub(super) signatures: Option<PathBuf>,
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
pub(super) struct TalkArgs {
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
fn parse_range(text: &str) -> Result<Range<PhysAddr>, String> {
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
