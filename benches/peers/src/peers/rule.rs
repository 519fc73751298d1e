//! The job as a rule of the YARA family: YARA, YARA-X and boreal get the same text.
//!
//! A rule as a whole only says yes or no, so hits are taken from the matches of its strings. What strings cannot say
//! of the structure stands in the condition, and again in Rust, to tell which of the matches it was.

use std::fmt::Write;

use crate::job::{Hit, Job};

/// `cpython.type` from its second field on.
const TYPE: &str = "rule job {
    strings:
        $n0 = {
            ?? ?? ?? ?? ?? ?? ?? 00
            ?? (0? | 10) 00 00 00 00 00 00
            ?? ?? ?? ?? ?? ?? ?? 00
            ?? (0? | 10) 00 00 00 00 00 00
            28 00 00 00 00 00 00 00
        }
    condition:
        for any i in (1..#n0) : (
            @n0[i] % 8 == 0 and @n0[i] % 4096 >= 8 and @n0[i] % 4096 <= 4056
            and (uint32(@n0[i]) ^ (@n0[i] - 8)) & 0xfff == 0
            and (uint32(@n0[i] - 8) != 0 or uint32(@n0[i] - 4) != 0)
        )
}
";

/// The text of the rule; string `$n7` is pattern 7.
pub fn text(job: &Job) -> String {
    let Some(literals) = job.literals() else { return TYPE.to_owned() };
    let mut strings = String::new();
    for (pattern, n) in literals.iter().zip(0..) {
        let hex: String = pattern.iter().map(|byte| format!("{byte:02x} ")).collect();
        let _ = writeln!(strings, "        $n{n} = {{ {hex}}}");
    }
    format!("rule job {{\n    strings:\n{strings}    condition:\n        any of them\n}}\n")
}

/// The hits that a match of the string `name` (with or without `$`) at `at` stands for.
pub fn hits(job: &Job, bytes: &[u8], name: &str, at: usize) -> Option<Hit> {
    let id: usize = name.trim_start_matches('$').strip_prefix('n')?.parse().ok()?;
    match job {
        Job::Needles(_) => Some((at, id)),
        Job::TypeByRule | Job::TypeByField => job.hits_at(bytes, at).next(),
    }
}
