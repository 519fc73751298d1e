//! The arguments, and the help that teaches them.

use std::ops::Range;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tensorcarve::addr::PhysAddr;
use tensorcarve::dump::{self, MappedFiles, OpenOptions};
use tensorcarve::scan::BackendChoice;

use super::{bench, gc, objects, stack};

const AFTER: &str = "\
Examples:
  tensorcarve recover memory.lime -o out      find the models, write them to out/
  python3 out/models/m0/load.py               rebuild the first one with stock PyTorch
  tensorcarve info memory.lime                what the dump is, which ranges it holds
  tensorcarve spaces memory.lime              the address spaces in it
  tensorcarve scan memory.lime                where a signature matches, address by address
  tensorcarve bench                           how fast this computer looks at memory

Data go to stdout, everything else to stderr.
Exit codes: 0 found, 1 nothing found, 2 error, 3 found but partly unreadable, 130 interrupted.";

const RECOVER_AFTER: &str = "\
Examples:
  tensorcarve recover memory.lime -o out
  tensorcarve recover memory.raw.zst -o out --spool-dir /big/disk
  tensorcarve recover memory.elf -o out --overwrite --format jsonl | jq .class
  tensorcarve recover core.4321 -o out        the core of one process, by gcore or by the kernel
  tensorcarve recover core.4321 -o out --file model.safetensors
                                              with the checkpoint that the process had mapped: cores leave such files out
  tensorcarve recover mem --maps maps -o out  a copy of /proc/4321/mem, made like this in bash:

    kill -STOP 4321
    cat /proc/4321/maps > maps
    while IFS='- ' read -r start end access _ _ _ path; do
      [[ $access == r* && $start != ffffffff* && $path != /dev/nvidia* ]] &&
        dd if=/proc/4321/mem bs=4096 status=none iflag=skip_bytes,count_bytes conv=noerror,sync \\
          skip=$((0x$start)) count=$((0x$end - 0x$start))
    done < maps > mem
    kill -CONT 4321

  dd complains of pages that nobody can read, such as [vvar] and (from Linux 6.13 on) the guard
  pages of stacks; the copy has zeros for them.

DIR/recovery.json lists everything that was found, and is written last: a folder without it is not
complete. DIR/models/m0/ holds the first model: model.safetensors, model.json, load.py. Nothing is
written outside DIR, but for the unpacked copy of a compressed dump, which is gone in the end.";

const INFO_AFTER: &str = "\
Examples:
  tensorcarve info memory.lime.zst
  tensorcarve info memory.lime --format json | jq '.ranges[0]'";

const SPACES_AFTER: &str = "\
Examples:
  tensorcarve spaces memory.lime
  tensorcarve spaces memory.raw --input-format raw --format json | jq '.spaces[] | select(.kind == \"process\")'";

const SCAN_AFTER: &str = "\
Examples:
  tensorcarve scan memory.lime
  tensorcarve scan memory.lime --signature cpython.type --explain
  tensorcarve scan memory.lime --signatures my/ --range 0x100000-0x8000000 --format jsonl | jq .address

A hit names the address of the structure, the place and the value of its anchor, and how many fields
were tested; those outside the anchor's 4 KiB frame are deferred. signatures/README.md says how to
write signatures of your own. All addresses are physical, or virtual in the image of a process; file_offset, where the anchor lies in the
(unpacked) file, is in the formats for programs.";

const DEVICES_AFTER: &str = "\
Examples:
  tensorcarve devices
  tensorcarve devices --format json | jq -r .chosen";

const BENCH_AFTER: &str = "\
Examples:
  tensorcarve bench                           made-up memory, all sets and backends, one thread and all
  tensorcarve bench --set default -j 1 --backend simd
  tensorcarve bench memory.lime --set default --format json
  tensorcarve bench memory.lime --set input   the file itself: mapped or read, cache warm or cold

OF READ is the speed as a share of that of a plain sum over the same bytes on the same threads, taken in turn
with it, round by round: the middle round, the lowest and the highest. Made-up memory holds hits whose
number is known, and on a dump all backends must find the same; where they do not, the run fails.
The set `input` throws the file out of the page cache.";

/// Recovers the neural networks that ran on a machine from a dump of its physical memory, or of one process.
#[derive(Parser)]
#[command(version, after_help = AFTER, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Find the models in a dump, and write them to a folder
    #[command(after_help = RECOVER_AFTER)]
    Recover(RecoverArgs),
    /// Say what a dump is: format, compression, size, ranges, damage
    #[command(after_help = INFO_AFTER)]
    Info(InfoArgs),
    /// List the address spaces in a dump, by their page-table roots
    #[command(after_help = SPACES_AFTER)]
    Spaces(SpacesArgs),
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
    /// Say what of this computer can search memory, and what would be used
    #[command(after_help = DEVICES_AFTER)]
    Devices(DevicesArgs),
    /// Measure how fast memory is searched, against reading it
    #[command(after_help = BENCH_AFTER)]
    Bench(BenchArgs),
}

#[derive(Args)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    #[command(flatten)]
    pub(super) mapped: MappedArgs,
    /// Folder of the output; it must be empty or not exist [default: <name of the dump>.carved here]
    #[arg(short, long, value_name = "DIR")]
    pub(super) output_dir: Option<PathBuf>,
    /// Replace what an earlier run has written to the folder; no other file in it is touched
    #[arg(long)]
    pub(super) overwrite: bool,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    /// Do not compute the SHA-256 of the dump file for the manifest
    #[arg(long)]
    pub(super) no_hash: bool,
    /// What to print: a table, recovery.json's document, one model per line, one tensor per line
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: LineFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    /// What to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct SpacesArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    /// What to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct ScanArgs {
    #[command(flatten)]
    pub(super) input: InputArgs,
    /// Look for this signature only; may be said several times [default: all]
    #[arg(long = "signature", value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// Look only at these addresses, END exclusive; may be said several times [default: all]
    #[arg(long = "range", value_name = "START-END", value_parser = parse_range)]
    pub(super) ranges: Vec<Range<PhysAddr>>,
    /// Print only the first N hits, and as many rejected candidates
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// Say which candidates were rejected, places where a structure's anchor passes, and why
    #[arg(long)]
    pub(super) explain: bool,
    #[command(flatten)]
    pub(super) work: WorkArgs,
    /// What to print; with --explain table or json
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: LineFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

#[derive(Args)]
pub(super) struct DevicesArgs {
    /// What to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
}

#[derive(Args)]
pub(super) struct BenchArgs {
    /// A dump to measure on [default: made-up memory]
    #[arg(value_name = "DUMP")]
    pub(super) dump: Option<PathBuf>,
    /// What is looked for; may be said several times [default: all but input]
    #[arg(long = "set", value_name = "NAME", value_parser = PossibleValuesParser::new(bench::SETS))]
    pub(super) sets: Vec<String>,
    /// What searches; may be said several times [default: all of the CPU, and a GPU that is none in software]
    #[arg(
        long = "backend",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(BackendChoice::NAMES).try_map(|name| name.parse::<BackendChoice>())
    )]
    pub(super) backends: Vec<BackendChoice>,
    /// Threads to work with, as 1,2,4 [default: one, and one per core]
    #[arg(short = 'j', long, value_name = "N", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) threads: Vec<u16>,
    /// MiB of made-up memory [default: 512, or a quarter of what is free]
    #[arg(long, value_name = "MIB", conflicts_with = "dump", value_parser = clap::value_parser!(u32).range(16..))]
    pub(super) size: Option<u32>,
    /// Rounds; the middle one counts
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) rounds: u16,
    /// What to print
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: PlainFormat,
    #[command(flatten)]
    pub(super) talk: TalkArgs,
}

/// The dump, and how to open it.
#[derive(Args)]
pub(super) struct InputArgs {
    /// The dump: raw, LiME or an ELF core, of a machine or of one process, told by content; also inside zstd, gzip, xz or
    /// zlib
    #[arg(value_name = "DUMP")]
    pub(super) dump: PathBuf,
    /// What the dump is, whatever it looks like
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// A copy of /proc/PID/maps: the dump is a copy of /proc/PID/mem, the mappings one after another
    #[arg(long, value_name = "MAPS", conflicts_with = "input_format")]
    maps: Option<PathBuf>,
    /// Where a compressed dump is unpacked [default: the system's folder for temporary files]
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

/// Files for what the image of a process leaves out.
#[derive(Args)]
pub(super) struct MappedArgs {
    /// A file that the process had mapped and that its core leaves out, such as model.safetensors: what is missing of it is
    /// taken from here. It is known by its name; say RECORDED=PATH where that is another now. May be said several times
    #[arg(long = "file", value_name = "[RECORDED=]PATH")]
    files: Vec<PathBuf>,
    /// A folder with a copy of the machine's files: what is missing of any mapped file is taken from there
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
}

impl MappedArgs {
    pub(super) fn files(&self) -> MappedFiles {
        MappedFiles { files: self.files.clone(), sysroot: self.sysroot.clone() }
    }
}

/// How the work is done.
#[derive(Args)]
pub(super) struct WorkArgs {
    /// What searches memory; all find the same, at different speeds. `auto` measures on large dumps whether a GPU is
    /// worth it; the variable TENSORCARVE_GPU names the GPU, by its number or a part of its name
    #[arg(
        long,
        default_value = "auto",
        value_name = "NAME",
        value_parser = PossibleValuesParser::new(BackendChoice::NAMES).try_map(|name| name.parse::<BackendChoice>())
    )]
    pub(super) backend: BackendChoice,
    /// Threads to work with [default: one per core]
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) threads: Option<u16>,
    /// Signature files (*.toml) that add to the built-in ones, or replace them by name
    #[arg(long, value_name = "DIR")]
    pub(super) signatures: Option<PathBuf>,
}

/// What is said on stderr.
#[derive(Args)]
pub(super) struct TalkArgs {
    /// Say how long each phase took, and how well each layout fits
    #[arg(short, long, conflicts_with = "quiet")]
    pub(super) verbose: bool,
    /// Say nothing but errors
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Show no progress; it is shown only on a terminal in any case
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

/// `START-END`, each hexadecimal with `0x` or decimal.
fn parse_range(text: &str) -> Result<Range<PhysAddr>, String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let (start, end) = text.split_once('-').ok_or("write it as START-END, such as 0x1000-0x9fc00")?;
    let bound = |text: &str| number(text).map(PhysAddr).map_err(|error| format!("`{text}`: {error}"));
    let range = bound(start)?..bound(end)?;
    if range.is_empty() { Err("the end must be above the start".to_owned()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }
}
