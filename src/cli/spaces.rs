//! `spaces`: the address spaces in a dump.

use clap::Args;
use serde::Serialize;
use tensorcarve::diagnostic::Diagnostic;
use tensorcarve::paging::{Attempt, Discovery, Space, SpaceKind};
use tensorcarve::report::columns;

use super::args::{CaseArgs, PlainFormat};
use super::progress::print_work;
use super::stderr::{print_diagnostics, print_message};
use super::work::{gpu_warning, in_pool};
use super::{Failure, Outcome, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve spaces memory.lime
  tensorcarve spaces memory.raw --input-format raw --format json | jq '.spaces[] | select(.kind == \"process\")'";

/// Arguments of `spaces`.
#[derive(Args)]
pub(super) struct SpacesArgs {
    #[command(flatten)]
    case: CaseArgs,
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: PlainFormat,
}

#[derive(Serialize)]
struct Document<'a> {
    spaces: &'a [Space],
    tried: &'a [Attempt],
    /// The bit that page-table entries of encrypted memory have set; it is not part of an address.
    encryption_bit: Option<u32>,
    warnings: Vec<String>,
}

pub(super) fn run(args: &SpacesArgs) -> Result<Outcome, Failure> {
    let CaseArgs { work, verbosity, .. } = &args.case;
    let (case, progress) = args.case.open()?;
    if case.dump().addresses.process().is_some() {
        progress.finish();
        return Err(Failure::new("the dump is a process image, which has no page tables")
            .hint("`tensorcarve info` lists its address ranges"));
    }
    let (spaces, choice) = in_pool(work.threads, || -> Result<_, Failure> {
        // To select a backend can take a measurement, which is needed only if it searches or is printed.
        Ok((case.spaces()?, verbosity.verbose.then(|| case.backend()).transpose()?))
    })
    .flatten()?;
    let times = progress.finish();
    let (dump, discovery) = (case.dump(), &spaces.discovery);
    stdout::print_document(args.format, &document(discovery), |_| table(discovery))?;
    let warnings = dump.warnings.iter().chain(&spaces.warnings).chain(&discovery.warnings);
    print_diagnostics(warnings.chain(&gpu_warning()).chain(&case.notes()), verbosity);
    if verbosity.verbose {
        print_work(choice.as_deref(), &spaces, &times);
    }
    Ok(match (discovery.spaces.is_empty(), dump.damaged) {
        (true, _) => {
            print_message("no address space found: is this a complete dump of an x86-64 machine?");
            Outcome::Nothing
        }
        (false, true) => Outcome::Partly,
        (false, false) => Outcome::Found,
    })
}

fn document(discovery: &Discovery) -> Document<'_> {
    Document {
        spaces: &discovery.spaces,
        tried: &discovery.tried,
        encryption_bit: discovery.encryption_bit,
        warnings: discovery.warnings.iter().map(Diagnostic::to_string).collect(),
    }
}

fn table(discovery: &Discovery) -> String {
    let rows = discovery.spaces.iter().map(|space| {
        let kind = match space.kind {
            SpaceKind::Process => "process",
            SpaceKind::Kernel => "kernel",
            SpaceKind::Stale => "stale",
        };
        let user = space.kpti_user_root.map_or("-".to_owned(), |root| root.to_string());
        vec![space.root.to_string(), space.levels.to_string(), kind.to_owned(), user]
    });
    columns(&["ROOT", "LEVELS", "KIND", "KPTI USER ROOT"], &[1], rows)
}
