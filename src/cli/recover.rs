//! `recover`: from a dump to models in a folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use tensorcarve::case::{Case, HeaderComparison, Options, Spaces};
use tensorcarve::cpython::Change;
use tensorcarve::diagnostic::{Code, Diagnostic};
use tensorcarve::dump::{Dump, Format, Source};
use tensorcarve::model::Model;
use tensorcarve::other_pythons::{OtherPython, OtherPythonKind};
use tensorcarve::paging::SpaceKind;
use tensorcarve::recover::{PythonProcess, Recovery};
use tensorcarve::report::{self, OutputFolder, Run};
use tensorcarve::scan::SelectedBackend;
use tensorcarve::signature::Signatures;
use tensorcarve::words::counted;

use super::args::{IndexArgs, InputArgs, LineFormat, MappedArgs, VerbosityArgs, WorkArgs};
use super::input_hash::{self, HashChoice, Hashed, InputHash};
use super::progress::{PhaseTime, Progress, print_work, rate};
use super::stderr::{print_diagnostics, print_message};
use super::work::{case_options, gpu_warning, in_pool, open_source};
use super::{Failure, Outcome, interrupt, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve recover memory.lime -o out
  tensorcarve recover memory.raw.zst -o out --spool-dir /big/disk
  tensorcarve recover memory.elf -o out --overwrite --format jsonl | jq .class
  tensorcarve recover memory.lime -o out --hash sha256,md5
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

DIR/manifest.json has the hash of DUMP as it was named. BLAKE3 is computed by all threads, SHA-256 and
MD5 by one. If a procedure asks for SHA-256, use --hash sha256. With --hash sha256-pieces=64MiB all
threads compute a list of SHA-256 digests, each of which dd and sha256sum can confirm:

    dd if=DUMP iflag=skip_bytes,count_bytes skip=OFFSET count=LENGTH | sha256sum

DIR/recovery.json lists everything that was found. It is written last: a folder without it is
incomplete. DIR/models/m0/ holds the first model: model.safetensors, model.json, load.py. Nothing is
written outside DIR, except the unpacked copy of a compressed dump, which is deleted at the end.";

/// Arguments of `recover`.
#[derive(Args)]
pub(super) struct RecoverArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    mapped: MappedArgs,
    /// Output folder, which must be empty or not exist [default: <dump name>.carved in the current folder]
    #[arg(short, long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Replace the output of an earlier run in the folder, without touching any other file
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    index: IndexArgs,
    /// Find tensors by their headers alone, as if no Python could be read
    #[arg(long)]
    without_python: bool,
    /// Hashes of the dump file for the manifest: blake3, sha256, md5, sha256-pieces=SIZE (SHA-256 of each piece of SIZE
    /// bytes, at least 16MiB), or none. Separate several by commas
    #[arg(long = "hash", value_name = "NAMES", default_value = "blake3", value_delimiter = ',')]
    hashes: Vec<HashChoice>,
    /// What to print: table, json (the content of recovery.json), jsonl (one model per line) or csv (one tensor per line)
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: LineFormat,
    #[command(flatten)]
    verbosity: VerbosityArgs,
}

pub(super) fn run(args: &RecoverArgs) -> Result<Outcome, Failure> {
    let started = SystemTime::now();
    // Whatever can be refused is refused before the long work.
    let algorithms = input_hash::algorithms(&args.hashes)?;
    args.work.backend.resolve()?;
    let signatures = Signatures::load(args.work.signatures.as_deref())?;
    let output_dir = args.output_dir.clone().unwrap_or_else(|| default_output_dir(&args.input.dump));
    let folder = interrupt::undoable(|| OutputFolder::create(&output_dir, args.overwrite), |folder| folder.cleanup())?;
    let progress = Arc::new(Progress::new(&args.verbosity));
    let source = Source::open(&args.input.dump)?;
    let hash = InputHash::start(source.file(), &algorithms, args.work.thread_count());
    let mut dump = open_source(source, &args.input, &progress)?;
    let (mut times, mut hashed, mut unhashed) = (Vec::new(), Hashed::default(), None);
    let (case, recovery, choice) = in_pool(args.work.threads, || -> Result<_, Failure> {
        dump.fill(&args.mapped.files())?;
        let options = case_options(&args.work, &args.index, &progress);
        let case = Case::new(dump, signatures, Options { without_python: args.without_python, ..options });
        let (choice, recovery) = (case.backend()?, case.recovery()?);
        let threads = rayon::current_num_threads();
        report::write(folder, case.dump(), &recovery, &*progress, || {
            hashed = match hash.and_then(|hash| hash.finish(&progress)) {
                Ok(hash) => hash,
                Err(error) => {
                    let message = format!("the hashes of the dump file could not be computed ({error})");
                    unhashed = Some(Diagnostic::new(Code::NoFileHash, None, message));
                    Hashed::default()
                }
            };
            times = progress.finish();
            Run {
                arguments: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
                backend: choice.backend.to_string(),
                backend_reason: choice.reason.clone(),
                warnings: gpu_warning().into_iter().chain(unhashed.clone()).collect(),
                threads,
                input: args.input.dump.clone(),
                hashes: hashed.hashes.clone(),
                started,
                phases: times.iter().map(|done| (done.name, done.time)).collect(),
                division: None,
            }
        })?;
        Ok((case, recovery, choice))
    })
    .flatten()
    .inspect_err(|_| drop(progress.finish()))?;
    interrupt::keep();
    let dump = case.dump();
    print(args.format, dump, &recovery)?;
    if !args.verbosity.quiet {
        print_summary(
            args,
            dump,
            &recovery,
            &output_dir,
            &Work {
                times,
                hashed,
                choice,
                spaces: case.spaces()?,
                notes: [case.notes(), unhashed.into_iter().collect()].concat(),
            },
        );
    }
    let outcome = outcome(dump, &recovery);
    // The process ends now, and gives back all memory at once: to free a million small pieces first takes longer.
    std::mem::forget((case, recovery));
    Ok(outcome)
}

/// `<name of the dump>.carved` in the current folder.
fn default_output_dir(dump: &Path) -> PathBuf {
    let mut name = dump.file_name().unwrap_or("dump".as_ref()).to_owned();
    name.push(".carved");
    PathBuf::from(name)
}

fn print(format: LineFormat, dump: &Dump, recovery: &Recovery) -> Result<(), Failure> {
    stdout::print(|out| match format {
        LineFormat::Table if recovery.processes.is_empty() => Ok(()),
        LineFormat::Table => out.write_all(report::models_table(recovery).as_bytes()),
        LineFormat::Json => report::print_json(out, dump, recovery),
        LineFormat::Jsonl => report::print_jsonl(out, recovery),
        LineFormat::Csv => report::print_csv(out, recovery),
    })
}

/// How the work went.
struct Work {
    times: Vec<PhaseTime>,
    hashed: Hashed,
    choice: Arc<SelectedBackend>,
    spaces: Arc<Spaces>,
    /// What the index and the hash could not do.
    notes: Vec<Diagnostic>,
}

/// What the user should know beside the data, and what to do next.
fn print_summary(args: &RecoverArgs, dump: &Dump, recovery: &Recovery, output_dir: &Path, work: &Work) {
    let warnings = report::warnings(dump, recovery);
    print_diagnostics(warnings.chain(&gpu_warning()).chain(&work.notes), &args.verbosity);
    if args.verbosity.verbose {
        print_work(Some(&work.choice), &work.spaces, &work.times);
        let Hashed { hashes, bytes, time } = &work.hashed;
        if !hashes.is_empty() {
            let names: Vec<&str> = hashes.iter().map(|hash| hash.algorithm).collect();
            let (names, seconds) = (names.join(", "), time.as_secs_f64());
            let rate = rate(*bytes, *time).unwrap_or_default();
            print_message(&format!("{names} of the dump file: {seconds:.3} s beside the other work, {rate:.2} GB/s"));
        }
        recovery.processes.iter().for_each(print_layouts);
        for model in recovery.processes.iter().flat_map(|process| &process.models) {
            for problem in &model.problems {
                print_message(&format!("{}: {}", model.id, report::printable(&problem.to_string())));
            }
        }
    }
    let others = recovery.processes.iter().flat_map(|process| &process.standalone.found);
    let (arrays, tensors): (Vec<_>, Vec<_>) = others.partition(|other| other.array.is_some());
    if !(arrays.is_empty() && tensors.is_empty()) {
        let list = output_dir.join(report::STANDALONE);
        let tensors = counted(tensors.len(), "tensor", "tensors");
        let arrays = counted(arrays.len(), "NumPy array", "NumPy arrays");
        print_message(&format!("outside any model: {tensors}, {arrays}; see {}", list.display()));
    }
    let models: Vec<&Model> = recovery.processes.iter().flat_map(|process| &process.models).collect();
    let has_bytes = |model: &&Model| model.all_tensors().any(|tensor| tensor.status.has_bytes());
    match models.iter().copied().find(has_bytes).or(models.first().copied()) {
        Some(model) => {
            let loader = output_dir.join(report::model_dir(model)).join("load.py");
            let partial = if report::is_loadable(model) { "" } else { " --partial" };
            print_message(&format!("next: python3 {}{partial}", loader.display()));
        }
        None => print_nothing_found(dump, recovery, output_dir, args.without_python),
    }
}

fn print_layouts(process: &tensorcarve::recover::Process) {
    let name = report::process_name(process);
    let next_best = |version: &str, readable: usize| format!(" (next best: {version}, {readable})");
    if let Some(PythonProcess { layout: (best, next), .. }) = &process.python {
        let next = next.as_ref().map_or(String::new(), |next| next_best(&next.version, next.readable));
        print_message(&format!(
            "process {name}: the layout for CPython {} ({}) reads {} of {} types{next}",
            best.version, best.source, best.readable, best.sampled
        ));
    }
    let torch_layout = process.facts.torch.as_ref().and_then(|torch| torch.layout.as_ref());
    if let Some((best, next)) = torch_layout {
        let next = next.as_ref().map_or(String::new(), |next| next_best(&next.version, next.readable));
        print_message(&format!(
            "process {name}: the layout {} PyTorch {} reads {} of {} tensors{next}",
            if best.inferred { "inferred from" } else { "for" },
            best.version,
            best.readable,
            best.tried
        ));
    }
    if let Some(HeaderComparison { found, of_python, differing, not_found, freed }) = &process.headers {
        print_message(&format!(
            "process {name}: {found} tensors found by their headers, {of_python} of them through Python as well, of which {} \
             read differently; {} found through Python alone; {freed} whose memory was freed",
            differing.len(),
            not_found.len()
        ));
    }
    let of_python = process.python.iter().flat_map(|python| &python.layout.0.changes);
    let of_torch = torch_layout.iter().flat_map(|(best, _)| &best.changes);
    for Change { number, from, to } in of_python.chain(of_torch) {
        let in_words = |value: &Option<i64>| value.map_or_else(|| "absent".to_owned(), |value| value.to_string());
        let (from, to) = (in_words(from), in_words(to));
        print_message(&format!("process {name}: {number} is {to} instead of {from}"));
    }
}

/// How far the search came, and what to try.
fn print_nothing_found(dump: &Dump, recovery: &Recovery, output_dir: &Path, without_python: bool) {
    let spaces = &recovery.discovery.spaces;
    let of_processes = spaces.iter().filter(|space| space.kind == SpaceKind::Process).count();
    let python = recovery.processes.iter().filter(|process| process.python.is_some()).count();
    let torch = recovery.processes.iter().filter(|process| process.facts.torch.is_some()).count();
    let is_image = dump.addresses.process().is_some();
    let searched = match is_image {
        true => "the process image".to_owned(),
        false => {
            let all = counted(spaces.len(), "address space", "address spaces");
            format!("{all} ({of_processes} of processes)")
        }
    };
    let others = match recovery.other_pythons.len() {
        0 => String::new(),
        others => format!(", Pythons that can't be read: {others}"),
    };
    print_message(&format!("no model found in {searched}: Python processes: {python}, with PyTorch: {torch}{others}"));
    print_message(&format!("hint: {}", why_nothing(dump, recovery, without_python)));
    let swapped = recovery.swapped_bytes();
    if swapped > 0 {
        print_message(&format!(
            "hint: {} of the processes' memory is swapped out and not in the dump: if the machine still runs, bring it back \
             with `swapoff -a` and take the dump again",
            report::human_bytes(swapped)
        ));
    }
    print_message(&format!("see {} for everything that was found", output_dir.join("recovery.json").display()));
}

/// Why no model was found, and what to try.
fn why_nothing(dump: &Dump, recovery: &Recovery, without_python: bool) -> String {
    let is_image = dump.addresses.process().is_some();
    let spaces = &recovery.discovery.spaces;
    let has_torch = recovery.processes.iter().any(|process| process.facts.torch.is_some());
    let has_others = recovery.processes.iter().any(|process| !process.standalone.found.is_empty());
    let hint = if without_python && !has_others {
        "no header of a tensor with data was found; without --without-python, Python is looked for as well"
    } else if has_torch && has_others {
        "PyTorch was imported, but no module was found that holds its tensors: they are listed in tensors.json"
    } else if has_torch {
        "PyTorch was imported, but no module with tensors was alive when the dump was taken"
    } else if !recovery.processes.is_empty() && has_others {
        "Python was running, but no PyTorch was found in it: its NumPy arrays are listed in tensors.json"
    } else if !recovery.processes.is_empty() {
        "Python was running, but no PyTorch was found in it: either it was not imported when the dump was taken, or \
         that part of memory is not in the dump"
    } else if recovery.other_pythons.iter().any(|other| other.kind == OtherPythonKind::UnreadableCpython) {
        "a CPython interpreter was found, but its classes can't be read: either its version has no layout yet (see \
         signatures/README.md), or too much of its memory is not in the dump"
    } else if !recovery.other_pythons.is_empty() {
        return format!("only CPython 3 is supported, but this is {}", names(&recovery.other_pythons));
    } else if is_image && dump.damaged {
        "the process image is cut off: if Python is a shared library, the interpreter's data is at high addresses, \
         which come last in the image; take it again without a size limit (`ulimit -c unlimited`)"
    } else if is_image {
        "no Python interpreter was found in the process: if it ran one, either its version has no layout yet (see \
         signatures/README.md), or the image lacks writable memory (a coredump_filter without bit 0)"
    } else if recovery.discovery.is_unplaced {
        "the physical addresses of the dump's contents are unknown, so its page tables can't be used: see the warning \
         above"
    } else if spaces.is_empty() && dump.format == Format::Raw {
        "no page tables were found: is this a complete dump of an x86-64 machine, rather than of one process?"
    } else if spaces.is_empty() {
        "no page tables were found: check with `tensorcarve info` that this is a complete dump of an x86-64 machine"
    } else if dump.damaged {
        "no Python interpreter was found, but it may be in the part of the dump that is missing; take the dump again"
    } else {
        "no Python interpreter was found: if one was running, its version may have no layout yet (see \
         signatures/README.md)"
    };
    hint.to_owned()
}

/// The Pythons that can't be read, each once.
fn names(others: &[OtherPython]) -> String {
    let names: BTreeSet<String> = others.iter().map(OtherPython::to_string).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn outcome(dump: &Dump, recovery: &Recovery) -> Outcome {
    let has_model = recovery.processes.iter().any(|process| !process.models.is_empty());
    match (has_model, report::is_whole(recovery) && !dump.damaged) {
        (false, _) => Outcome::Nothing,
        (true, true) => Outcome::Found,
        (true, false) => Outcome::Partly,
    }
}
