//! The job as a rule of the YARA family: YARA, YARA-X and boreal.
//!
//! A rule as a whole only says yes or no, so hits are taken from the matches of its strings. What strings cannot say
//! of the structure stands in the condition, and again in Rust, to tell which of the matches it was.

use std::fmt::Write;

use crate::job::{Hit, Job};

/// How the structure is written; with the wrong one YARA is four times slower, and boreal a fifth.
#[derive(Clone, Copy)]
pub enum Form {
    /// A long string with wildcards, a short condition.
    LongString,
    /// The rarest field as a string, all else in the condition.
    LongCondition,
}

/// `cpython.type` from its second field on.
const LONG_STRING: &str = "rule job {
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

/// The sixth field; 64-bit fields are tested as two halves.
const LONG_CONDITION: &str = "rule job {
    strings:
        $n0 = { 28 00 00 00 00 00 00 00 }
    condition:
        for any i in (1..#n0) : (
            @n0[i] % 8 == 0 and @n0[i] % 4096 >= 40
            and uint32(@n0[i] - 4) == 0 and uint32(@n0[i] - 8) >= 512 and uint32(@n0[i] - 8) <= 4096
            and uint32(@n0[i] - 20) == 0 and uint32(@n0[i] - 24) <= 4096
            and uint32(@n0[i] - 12) < 0x1000000 and (uint32(@n0[i] - 12) > 0 or uint32(@n0[i] - 16) >= 4096)
            and uint32(@n0[i] - 28) < 0x1000000 and (uint32(@n0[i] - 28) > 0 or uint32(@n0[i] - 32) >= 4096)
            and (uint32(@n0[i] - 32) ^ (@n0[i] - 40)) & 0xfff == 0
            and (uint32(@n0[i] - 40) != 0 or uint32(@n0[i] - 36) != 0)
        )
}
";

/// The text of the rule; string `$n7` is literal 7.
pub fn text(job: &Job, form: Form) -> String {
    let Some(literals) = job.literals() else {
        return match form {
            Form::LongString => LONG_STRING.to_owned(),
            Form::LongCondition => LONG_CONDITION.to_owned(),
        };
    };
    let mut strings = String::new();
    for (literal, n) in literals.iter().zip(0..) {
        let hex: String = literal.iter().map(|byte| format!("{byte:02x} ")).collect();
        let _ = writeln!(strings, "        $n{n} = {{ {hex}}}");
    }
    format!("rule job {{\n    strings:\n{strings}    condition:\n        any of them\n}}\n")
}

/// The hit that a match of the string `name` (with or without `$`) at `at` stands for.
pub fn hit(job: &Job, form: Form, bytes: &[u8], name: &str, at: usize) -> Option<Hit> {
    let id: usize = name.trim_start_matches('$').strip_prefix('n')?.parse().ok()?;
    match (job, form) {
        (Job::Needles(_), _) => Some((at, id)),
        (Job::TypeByRule, Form::LongCondition) => Job::TypeByField.hits_at(bytes, at).next(),
        (Job::TypeByRule | Job::TypeByField, _) => job.hits_at(bytes, at).next(),
    }
}
