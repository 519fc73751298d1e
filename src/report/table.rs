//! What was found as a table for the terminal.

use comfy_table::{CellAlignment, Table, presets};

use super::assignment::assign_model;
use super::model::{Totals, is_whole};
use crate::model::{Model, Status};
use crate::recover::{Process, Recovery};
use crate::words::{counted, printable};

/// Characters of a name from the dump that are shown; names are there to be told apart, not in full.
const MAX_NAME: usize = 60;

/// Columns without lines between them, with a line of headings; `right` names the columns of numbers.
pub fn columns(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings.iter().copied()).add_rows(rows);
    for index in 0..headings.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((if index == 0 { 0 } else { 2 }, 0));
            if right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// A line per model, and one per Python process without any.
pub fn models_table(recovery: &Recovery) -> String {
    let mut rows = Vec::new();
    for process in &recovery.processes {
        rows.extend(process.models.iter().map(|model| model_row(process, model)));
        if process.models.is_empty() {
            rows.push(empty_row(process));
        }
    }
    let headings = ["PROCESS", "PYTHON", "TORCH", "MODEL", "CLASS", "TENSORS", "PARAMETERS", "BYTES", "STATUS"];
    columns(&headings, &[5, 6, 7], rows)
}

fn process_cells(process: &Process) -> Vec<String> {
    let version = |text: Option<&String>| text.map_or("?".to_owned(), |text| short(text));
    let torch = process.facts.torch.as_ref().map_or_else(|| "-".to_owned(), |torch| version(torch.version.as_ref()));
    vec![
        process_name(process),
        process.python.as_ref().map_or_else(|| "-".to_owned(), |python| version(python.version.as_ref())),
        torch,
    ]
}

/// How a process is named: by its id and command where they are known, else by the root of its page tables.
pub fn process_name(process: &Process) -> String {
    match (process.root(), process.pid, &process.comm) {
        (_, Some(pid), Some(comm)) => format!("{pid} {}", short(comm)),
        (_, Some(pid), None) => pid.to_string(),
        (Some(root), None, _) => root.to_string(),
        (None, None, _) if process.space.is_freed() => "ended".to_owned(),
        (None, None, Some(comm)) => short(comm),
        (None, None, None) => "?".to_owned(),
    }
}

fn model_row(process: &Process, model: &Model) -> Vec<String> {
    let totals = Totals::new(model);
    let mut row = process_cells(process);
    row.extend([
        model.id.clone(),
        class(model),
        format!("{}/{}", totals.complete, totals.tensors),
        thousands(totals.parameters),
        human_bytes(totals.bytes),
        status(model),
    ]);
    row
}

/// The class of a model, or what a chain has in its place.
fn class(model: &Model) -> String {
    match (&model.class, &model.chain) {
        (Some(class), _) => short(class),
        (None, Some(chain)) => {
            let layers = counted(chain.layers.len(), "layer", "layers");
            format!("chain of {layers} (score {:.2})", chain.score)
        }
        (None, None) => "?".to_owned(),
    }
}

fn empty_row(process: &Process) -> Vec<String> {
    let mut row = process_cells(process);
    let shared = process.shared_models.join(", ");
    let (model, status) = match (process.shared_models.is_empty(), process.facts.torch.is_some()) {
        (false, _) => (shared, "shared, see above"),
        (true, true) => ("-".to_owned(), "no model"),
        (true, false) => ("-".to_owned(), "no PyTorch"),
    };
    row.extend([model, String::new(), String::new(), String::new(), String::new(), status.to_owned()]);
    row
}

/// The state of a model in a few words.
fn status(model: &Model) -> String {
    let words = [
        (Status::Freed, "freed"),
        (Status::Partial, "partial"),
        (Status::Missing, "missing"),
        (Status::Device, "on a device"),
    ];
    let assignments = assign_model(model);
    let of_modules = || assignments.iter().take(model.tensors.len());
    let mut parts: Vec<String> = words
        .into_iter()
        .map(|(status, word)| (of_modules().filter(|assignment| assignment.status() == status).count(), word))
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if !model.problems.is_empty() {
        parts.push(counted(model.problems.len(), "problem", "problems"));
    }
    if is_whole(model) {
        parts.push("complete".to_owned());
    }
    match (Totals::new(model).inferred, model.tensors.len()) {
        (0, _) => {}
        (inferred, all) if inferred == all => parts.push("inferred layout".to_owned()),
        (inferred, _) => parts.push(format!("{inferred} with an inferred layout")),
    }
    parts.join(", ")
}

/// A name from a dump, safe for a terminal and not endless.
fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_NAME) {
        Some((end, _)) => printable(text.get(..end).unwrap_or(text)) + "…",
        None => printable(text),
    }
}

/// A number with its digits in groups of three.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes, to three digits, in units of 1024.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        // Not 1024: 1023.9 would be shown as 1024 of the smaller unit.
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.0} PiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_not_endless() {
        assert_eq!(short(&"x".repeat(61)).chars().count(), 61);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 999, 1000, 62006, 1_000_000].map(thousands), ["0", "999", "1,000", "62,006", "1,000,000"]);
        let bytes = [0, 999, 1000, 248_024, 1 << 20, u64::MAX].map(human_bytes);
        assert_eq!(bytes, ["0 B", "999 B", "0.98 KiB", "242 KiB", "1.00 MiB", "16384 PiB"]);
    }
}
