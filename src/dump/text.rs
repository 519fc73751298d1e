//! Text files, which are not dumps: their kinds, and what to do instead.

use super::{DumpErrorKind, maps};

/// Lines that are examined to find the kind of a text.
const LINES: usize = 4;
/// Minimum number of base64 characters in a line for a text to count as base64.
const BASE64_LINE: usize = 60;

/// Why a file is not a dump, if it is text.
pub(super) fn refusal(sample: &[u8]) -> Option<DumpErrorKind> {
    if is_utf16(sample) {
        let remedy = "a program wrote it as text, as PowerShell's `>` does; copy the dump as binary data";
        return Some(DumpErrorKind::NoDump { what: "UTF-16 text", remedy });
    }
    let text = text(sample)?;
    let lines = || text.lines().filter(|line| !line.is_empty()).take(LINES);
    let all = |test: fn(&str) -> bool| lines().next().is_some() && lines().all(test);
    let begins = |with: &str| text.trim_start().get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    if begins("ProblemType:") || begins("ApportVersion:") || text.contains("\nCoreDump: base64") {
        let remedy = "unpack it with `apport-unpack REPORT FOLDER` and pass the file FOLDER/CoreDump";
        return Some(DumpErrorKind::OtherDump { what: "an Apport report", remedy });
    }
    let (what, remedy) = if begins("version https://git-lfs.github.com/") {
        ("a Git LFS pointer", "fetch the file itself with `git lfs pull`")
    } else if begins("<!doctype html") || begins("<html") {
        ("an HTML page", "a failed download often leaves one; download the dump again")
    } else if begins("<?xml") || begins("<") {
        ("an XML document", NAME_DUMP)
    } else if all(maps::is_line) {
        ("a copy of /proc/PID/maps", "pass the copy of /proc/PID/mem as the dump, and this file with --maps")
    } else if all(is_hex_dump) {
        ("a hex dump", "convert it back to binary with `xxd -r`")
    } else if all(is_base64) {
        ("base64 text", "decode it with `base64 -d`")
    } else if begins("{") || begins("[") {
        ("a JSON document", NAME_DUMP)
    } else {
        ("a text file", NAME_DUMP)
    };
    Some(DumpErrorKind::NoDump { what, remedy })
}

const NAME_DUMP: &str = "pass the dump itself";

/// The text of a sample: valid UTF-8 without control characters but those of layout.
fn text(sample: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // A character that the end of the sample cuts in two is no sign against text.
        Err(e) if e.error_len().is_none() => {
            sample.get(..e.valid_up_to()).and_then(|s| std::str::from_utf8(s).ok()).unwrap_or_default()
        }
        Err(_) => return None,
    };
    (!text.is_empty() && text.chars().all(|c| !c.is_control() || "\t\n\r\x0c\x1b".contains(c))).then_some(text)
}

/// Whether a sample begins with the mark of UTF-16 and holds nothing but characters of text, most of them ASCII.
fn is_utf16(sample: &[u8]) -> bool {
    let Some(rest) = sample.strip_prefix(b"\xff\xfe") else { return false };
    let (units, _) = rest.as_chunks::<2>();
    let ascii = units.iter().filter(|unit| matches!(unit, [b'\t' | b'\n' | b'\r' | b' '..=b'~', 0])).count();
    ascii > 0 && ascii * 2 > units.len() && !units.contains(&[0, 0])
}

/// A line of `xxd` or `hexdump -C`: an offset of eight digits, then bytes.
fn is_hex_dump(line: &str) -> bool {
    let Some((offset, rest)) = line.split_at_checked(8) else { return false };
    let is_hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    is_hex(offset) && (rest.starts_with(": ") || rest.starts_with("  ")) && rest.get(2..4).is_some_and(is_hex)
}

/// A long line of base64.
fn is_base64(line: &str) -> bool {
    let digits = line.trim().trim_end_matches('=');
    digits.len() >= BASE64_LINE && digits.chars().all(|c| c.is_ascii_alphanumeric() || c == '+' || c == '/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_named_and_never_said_to_be_raw() {
        let maps = "55d0c0000000-55d0c0001000 r--p 00000000 08:01 42   /usr/bin/python3\n".repeat(9);
        let base64 = format!("{}\n", "QUJD".repeat(19)).repeat(9);
        for (text, what, remedy) in [
            ("one line of text\n", "a text file", "pass the dump"),
            ("Gr\u{fc}\u{df}e, ein Text\n", "a text file", "pass the dump"),
            ("{\"a\": 1}", "a JSON document", "pass the dump"),
            ("<!DOCTYPE html>\n<html>404</html>", "an HTML page", "download the dump again"),
            ("<?xml version=\"1.0\"?><domain/>", "an XML document", "pass the dump"),
            (&maps, "a copy of /proc/PID/maps", "--maps"),
            ("00000000: 454d 694c 0100 0000  EMiL....\n", "a hex dump", "xxd -r"),
            ("00000000  45 4d 69 4c 01 00 00 00  |EMiL....|\n", "a hex dump", "xxd -r"),
            (&base64, "base64 text", "base64 -d"),
            ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer", "git lfs pull"),
            ("ProblemType: Crash\nArchitecture: amd64\nCoreDump: base64\n H4sI\n", "an Apport report", "apport-unpack"),
        ] {
            let refused = refusal(text.as_bytes()).unwrap();
            let message = format!("{refused}; {}", refused.hint());
            assert!(message.contains(what) && message.contains(remedy), "{message}");
            assert!(!message.contains("--input-format"), "{message}");
        }
        let utf16: Vec<u8> = "\u{feff}EMiL and more\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(refusal(&utf16).unwrap().to_string().contains("UTF-16"));
        // A character that the end cuts in two.
        assert!(refusal(&"\u{fc}".repeat(99).as_bytes()[..99]).is_some());
    }

    #[test]
    fn memory_is_no_text() {
        for bytes in [&b""[..], b"text\0", b"\xff\xfe\0\0\0\0", b"\xff\xfe", b"\xffabc", b"abc\x01"] {
            assert!(refusal(bytes).is_none(), "{bytes:x?}");
        }
    }
}
