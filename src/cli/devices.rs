//! `devices`: what of this computer can search memory, and what would be used.

use serde::Serialize;
use tensorcarve::report::{bytes_in_words, columns, printable};
use tensorcarve::scan::{Backend, BackendChoice};

use super::args::{DevicesArgs, PlainFormat};
use super::machine::Machine;
use super::{Failure, Outcome, stdout};

#[derive(Serialize)]
struct Document {
    #[serde(flatten)]
    machine: Machine,
    backends: Vec<BackendRow>,
    /// What `--backend auto` takes.
    chosen: String,
}

#[derive(Serialize)]
struct BackendRow {
    name: String,
    /// The CPU feature that it needs.
    needs: Option<&'static str>,
    available: bool,
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
    };
    stdout::print(|out| match args.format {
        PlainFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, &document)?;
            out.write_all(b"\n")
        }
        PlainFormat::Table => out.write_all(table(&document).as_bytes()),
    })?;
    Ok(Outcome::Found)
}

fn table(document: &Document) -> String {
    let machine = &document.machine;
    let facts = [
        ["CPU".to_owned(), machine.cpu.as_deref().map_or("?".to_owned(), printable)],
        ["features".to_owned(), machine.features.join(" ")],
        ["threads".to_owned(), machine.threads.to_string()],
        ["memory".to_owned(), machine.memory.map_or("?".to_owned(), bytes_in_words)],
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
    facts + "\n" + &columns(&["BACKEND", ""], &[], backends)
}
