//! `devices`: what of this computer can search memory, and what would be used.

use clap::Args;
use serde::Serialize;
use tensorcarve::report::{columns, human_bytes, printable};
use tensorcarve::scan::gpu::{self, AdapterInfo};
use tensorcarve::scan::{Backend, BackendChoice};

use super::args::PlainFormat;
use super::machine::Machine;
use super::{Failure, Outcome, stdout};

pub(super) const AFTER: &str = "\
Examples:
  tensorcarve devices
  tensorcarve devices --format json | jq -r .chosen";

/// Arguments of `devices`.
#[derive(Args)]
pub(super) struct DevicesArgs {
    /// Output format
    #[arg(long, value_enum, default_value = "table", value_name = "FORMAT")]
    format: PlainFormat,
}

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    machine: Machine,
    backends: Vec<BackendRow>,
    /// What `--backend auto` takes of the CPU.
    chosen: String,
    adapters: Vec<AdapterRow>,
}

#[derive(Serialize)]
struct BackendRow {
    name: String,
    /// The CPU feature that it needs.
    needs: Option<&'static str>,
    available: bool,
}

/// A GPU; sizes in bytes.
#[derive(Serialize)]
struct AdapterRow {
    name: String,
    kind: String,
    interface: String,
    driver: String,
    max_buffer_size: u64,
    max_storage_binding_size: u64,
    max_workgroups_per_dimension: u32,
    max_invocations_per_workgroup: u32,
    max_workgroup_storage_size: u32,
    subgroup_min: u32,
    subgroup_max: u32,
    has_subgroups: bool,
    has_timestamps: bool,
    is_software: bool,
    would_be_used: bool,
}

impl From<AdapterInfo> for AdapterRow {
    fn from(adapter: AdapterInfo) -> Self {
        Self {
            name: adapter.name,
            kind: adapter.kind.to_string(),
            interface: adapter.backend,
            driver: [adapter.driver, adapter.driver_info].join(" "),
            max_buffer_size: adapter.max_buffer_size,
            max_storage_binding_size: adapter.max_storage_binding_size,
            max_workgroups_per_dimension: adapter.max_workgroups_per_dimension,
            max_invocations_per_workgroup: adapter.max_invocations_per_workgroup,
            max_workgroup_storage_size: adapter.max_workgroup_storage_size,
            subgroup_min: adapter.subgroup_sizes.0,
            subgroup_max: adapter.subgroup_sizes.1,
            has_subgroups: adapter.has_subgroups,
            has_timestamps: adapter.has_timestamps,
            is_software: adapter.is_software,
            would_be_used: adapter.would_be_used,
        }
    }
}

pub(super) fn run(args: &DevicesArgs) -> Result<Outcome, Failure> {
    let available = Backend::available();
    let row = |backend: Backend| BackendRow {
        name: backend.to_string(),
        needs: backend.needs(),
        available: available.contains(&backend),
    };
    let document = Document {
        machine: Machine::detect(),
        backends: Backend::ALL.into_iter().map(row).collect(),
        chosen: BackendChoice::Auto.resolve()?.to_string(),
        adapters: gpu::adapters().into_iter().map(AdapterRow::from).collect(),
    };
    stdout::print_document(args.format, &document, table)?;
    Ok(Outcome::Found)
}

fn table(document: &Document) -> String {
    let machine = &document.machine;
    let facts = [
        ["CPU".to_owned(), machine.cpu.as_deref().map_or("?".to_owned(), printable)],
        ["features".to_owned(), machine.features.join(" ")],
        ["threads".to_owned(), machine.threads.to_string()],
        ["memory".to_owned(), machine.memory.map_or("?".to_owned(), human_bytes)],
    ];
    let backends = document.backends.iter().map(|backend| {
        let state = match (backend.available, backend.needs) {
            (true, _) if backend.name == document.chosen => "chosen by --backend auto".to_owned(),
            (true, _) => "available".to_owned(),
            (false, needs) => format!("needs {}", needs.unwrap_or("another CPU")),
        };
        vec![backend.name.clone(), state]
    });
    let facts = columns(&["DEVICE", ""], &[], facts.map(Vec::from));
    facts + "\n" + &columns(&["BACKEND", ""], &[], backends) + "\n" + &adapters(&document.adapters)
}

/// A block for each GPU.
fn adapters(adapters: &[AdapterRow]) -> String {
    if adapters.is_empty() {
        return format!(
            "no GPU: {}\n",
            if cfg!(feature = "gpu") { "no Vulkan driver provides one" } else { "this build has no GPU support" }
        );
    }
    let block = |adapter: &AdapterRow| {
        let used = match (adapter.would_be_used, adapter.is_software) {
            (true, false) => "used by --backend gpu",
            (true, true) => "used by --backend gpu; it runs on the CPU and is slower than the backends above",
            (false, _) => "not used; set TENSORCARVE_GPU to choose a GPU",
        };
        let rows = [
            ("type", format!("{} GPU, {used}", adapter.kind)),
            ("driver", printable(&format!("{}: {}", adapter.interface, adapter.driver))),
            ("largest buffer", human_bytes(adapter.max_buffer_size)),
            ("largest binding", human_bytes(adapter.max_storage_binding_size)),
            ("workgroups", format!("{} per dimension", adapter.max_workgroups_per_dimension)),
            (
                "workgroup size",
                format!(
                    "{} invocations, {} of shared memory",
                    adapter.max_invocations_per_workgroup,
                    human_bytes(adapter.max_workgroup_storage_size.into())
                ),
            ),
            (
                "subgroups",
                match adapter.has_subgroups {
                    true => format!("{} to {} lanes", adapter.subgroup_min, adapter.subgroup_max),
                    false => "not for shaders; the scan is slower without".to_owned(),
                },
            ),
            ("timestamps", if adapter.has_timestamps { "yes" } else { "no" }.to_owned()),
        ];
        columns(&["GPU", &printable(&adapter.name)], &[], rows.map(|(key, value)| vec![key.to_owned(), value]))
    };
    adapters.iter().map(block).collect::<Vec<_>>().join("\n")
}
