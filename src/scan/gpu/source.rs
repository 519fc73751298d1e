//! The WGSL of the scan, written for the signatures at hand: what it looks for stands in it as constants.

use std::fmt::Write;

use super::program::{Column, Comparison, Halves, Program, Question, halves};
use crate::addr::FRAME_SIZE;

/// The lanes that look at a frame together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Team {
    /// One lane, on adapters without subgroups.
    Lane,
    /// A subgroup.
    Subgroup,
}

impl Team {
    const fn source(self) -> &'static str {
        match self {
            Self::Lane => include_str!("../../../shaders/scan/lane.wgsl"),
            Self::Subgroup => include_str!("../../../shaders/scan/subgroup.wgsl"),
        }
    }

    /// Frames that a workgroup looks at together, at least, with subgroups of at most so many lanes.
    pub(super) fn frames_per_workgroup(self, subgroup_size: u32) -> u32 {
        match self {
            Self::Lane => 64,
            Self::Subgroup => (128 / subgroup_size.max(1)).max(1),
        }
    }
}

/// The whole shader.
pub(super) fn scan(program: &Program<'_>, team: Team) -> String {
    let rules = program.rules.clone().unwrap_or_default();
    let lines = [
        format!("const HAS_MMU: bool = {};", program.rules.is_some()),
        format!("const PRESENT: vec2<u32> = {};", vector(rules.present)),
        format!("const LEAF_BIT: vec2<u32> = {};", vector(rules.leaf_bit)),
        format!("const RESERVED: vec2<u32> = {};", vector(rules.reserved)),
        format!("const SLOT_STRUCTURES: u32 = {};", program.slot_structures),
        format!("const STRUCTURES: u32 = {};", program.indices.len()),
        format!("const ZERO_SET: u32 = {:#x};", program.looks.zero),
    ];
    let levels = rules.levels.iter().map(|(class, forbidden)| {
        format!("    levels |= select({class:#x}u, 0u, has_any(leaves & {}));", vector(*forbidden))
    });
    let columns = || program.looks.columns.iter().zip(0..);
    let question = match &program.question {
        Question::Comparisons(comparisons) => joined(comparisons.iter().map(comparison), "\n        | ", "false"),
        Question::Columns(count) => {
            let sets = columns().take(*count).map(|(column, index)| set_of(column, index));
            let first = std::iter::once("unless_zero(value)".to_owned());
            format!("({}) != 0", joined(first.chain(sets), "\n        & ", ""))
        }
    };
    let lookups = columns()
        .map(|(column, index)| format!("    if bits != 0 {{\n        bits &= {};\n    }}", set_of(column, index)));
    // Where nothing is looked up, the one entry that there is; a binding must be used.
    let first = if program.looks.columns.is_empty() { "tables[0]" } else { "unless_zero(value)" };
    let written = [
        lines.join("\n"),
        function("levels_of(leaves: vec2<u32>) -> u32", "levels", "0u", levels),
        format!("fn maybe(value: vec2<u32>, place: u32) -> bool {{\n    return {question};\n}}"),
        function("possible(value: vec2<u32>, place: u32) -> u32", "bits", first, lookups),
    ];
    format!("{}\n\n{}\n{}", written.join("\n\n"), include_str!("../../../shaders/scan/frames.wgsl"), team.source())
}

/// A function that changes a variable, line by line, and returns it.
fn function(head: &str, variable: &str, first: &str, lines: impl Iterator<Item = String>) -> String {
    let mut text = format!("fn {head} {{\n    var {variable} = {first};\n");
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text + &format!("    return {variable};\n}}")
}

/// The set of structures that a column's table has for the value.
fn set_of(column: &Column, index: usize) -> String {
    let Column { is_relative, byte, .. } = column;
    let (number, shift) = match (is_relative, byte) {
        (true, _) => (format!("((value.x - place) & {:#x}u)", FRAME_SIZE - 1), 8 * byte),
        (false, 0..4) => ("value.x".to_owned(), 8 * byte),
        (false, _) => ("value.y".to_owned(), 8 * (byte - 4)),
    };
    format!("tables[{} + (({number} >> {shift}u) & 0xffu)]", 256 * index)
}

fn comparison(comparison: &Comparison) -> String {
    let Comparison { value, own, may_be_zero } = comparison;
    let of_value = differences("value.x", "value.y", value.mask, value.value);
    // What a place leaves of a value is known of the bits in a frame alone, which are in the lower half.
    let of_own = differences("(value.x - place)", "0u", own.mask, own.value);
    let difference = joined(of_value.into_iter().chain(of_own), " | ", "0u");
    let nonzero = if *may_be_zero { "" } else { " & has_any(value)" };
    format!("((({difference}) == 0){nonzero})")
}

/// What is zero where the bits under the mask are those of `value`.
fn differences(low: &str, high: &str, mask: u64, value: u64) -> Vec<String> {
    let halves = [low, high].into_iter().zip(halves(mask)).zip(halves(value));
    let asked = halves.filter(|((_, mask), _)| *mask != 0);
    asked.map(|((name, mask), value)| format!("(({name} ^ {value:#x}u) & {mask:#x}u)")).collect()
}

fn joined(parts: impl Iterator<Item = String>, between: &str, none: &str) -> String {
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() { none.to_owned() } else { parts.join(between) }
}

fn vector(number: u64) -> String {
    let [low, high]: Halves = halves(number);
    format!("vec2<u32>({low:#x}u, {high:#x}u)")
}
