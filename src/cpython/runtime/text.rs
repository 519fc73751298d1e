//! Plain values in Python notation: quoted text, floats, large integers.

use crate::cpython::DIGIT_BITS;

/// The decimal digits converted in one step, and their power of ten.
const DECIMALS: usize = 9;
const BILLION: u64 = 1_000_000_000;
/// The decimal exponents of floats that are written without an exponent (`float_repr_style` of Python).
const FIXED: std::ops::Range<i32> = -4..16;

/// A text from a dump with its control characters escaped, so that it cannot control a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    text.chars().for_each(|character| push_escaped(character, &mut shown));
    shown
}

/// A `str` as `repr` writes it, up to `most` characters. An ellipsis marks what is left out.
pub(super) fn quoted_str(text: &str, most: usize) -> String {
    // Python chooses the quotes by the whole text.
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut shown = String::from(quote);
    let mut characters = text.chars();
    for character in characters.by_ref().take(most) {
        match character {
            '\\' => shown.push_str("\\\\"),
            _ if character == quote => shown.extend(['\\', quote]),
            _ => push_escaped(character, &mut shown),
        }
    }
    shown.push(quote);
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// A `bytes` as `repr` writes it, given its first bytes.
pub(super) fn quoted_bytes(bytes: &[u8], is_whole: bool) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let mut shown = format!("b{quote}");
    for byte in bytes {
        match char::from(*byte) {
            '\\' => shown.push_str("\\\\"),
            character if character == quote => shown.extend(['\\', quote]),
            character if byte.is_ascii() => push_escaped(character, &mut shown),
            _ => shown.push_str(&format!("\\x{byte:02x}")),
        }
    }
    shown.push(quote);
    if !is_whole {
        shown.push('…');
    }
    shown
}

/// Appends a character as `repr` writes it: unchanged if it is printable.
fn push_escaped(character: char, shown: &mut String) {
    match (character, u32::from(character)) {
        ('\n', _) => shown.push_str("\\n"),
        ('\r', _) => shown.push_str("\\r"),
        ('\t', _) => shown.push_str("\\t"),
        _ if is_printable(character) => shown.push(character),
        (_, code @ 0..0x100) => shown.push_str(&format!("\\x{code:02x}")),
        (_, code @ 0x100..0x1_0000) => shown.push_str(&format!("\\u{code:04x}")),
        (_, code) => shown.push_str(&format!("\\U{code:08x}")),
    }
}

/// `str.isprintable`: neither a control nor a format character, a separator other than the space, a surrogate, nor unassigned.
fn is_printable(character: char) -> bool {
    // In the middle of a text Rust escapes the same classes of characters, and quotes.
    let text = ['a', character].iter().collect::<String>();
    matches!(character, '\'' | '"' | '\\') || text.escape_debug().eq(text.chars())
}

/// A float as `repr` writes it: the fewest digits that give the same number when read.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if FIXED.contains(&exponent) {
        let fixed = format!("{value}");
        return if fixed.contains('.') { fixed } else { fixed + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// The decimal digits of a number given in digits of 30 bits, the lowest first.
pub(super) fn decimal(mut digits: Vec<u32>) -> String {
    let mut pieces: Vec<u64> = Vec::new();
    while digits.iter().any(|digit| *digit != 0) {
        let mut rest = 0;
        for digit in digits.iter_mut().rev() {
            let value = rest << DIGIT_BITS | u64::from(*digit);
            *digit = (value / BILLION) as u32;
            rest = value % BILLION;
        }
        pieces.push(rest);
    }
    let mut text = pieces.pop().unwrap_or_default().to_string();
    pieces.iter().rev().for_each(|piece| text.push_str(&format!("{piece:0DECIMALS$}")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_python_does() {
        let cases = [
            ("plain", "'plain'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("a\\b\n\t\r\0\u{7f}", "'a\\\\b\\n\\t\\r\\x00\\x7f'"),
            ("é 日本 \u{301} 😀", "'é 日本 \u{301} 😀'"),
            (
                "\u{a0}\u{ad}\u{200b}\u{202e}\u{2028}\u{e000}\u{e0001}",
                "'\\xa0\\xad\\u200b\\u202e\\u2028\\ue000\\U000e0001'",
            ),
            ("\u{1b}[31m", "'\\x1b[31m'"),
        ];
        for (text, expected) in cases {
            assert_eq!(quoted_str(text, 100), expected);
        }
        assert_eq!(quoted_str("abcdef", 3), "'abc'…");
        assert_eq!(quoted_bytes(b"a\x00'\"\xff\\", true), "b'a\\x00\\'\"\\xff\\\\'");
        assert_eq!(quoted_bytes(b"it's", false), "b\"it's\"…");
    }

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.5, "1.5"),
            (0.1, "0.1"),
            (100.0, "100.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e-7, "1.25e-07"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e300, "1e+300"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
        ];
        for (value, expected) in cases {
            assert_eq!(float(value), expected);
        }
    }

    #[test]
    fn large_integers_are_decimal() {
        assert_eq!(decimal(vec![]), "0");
        assert_eq!(decimal(vec![7]), "7");
        // 2**150, and 10**40 in digits of 30 bits.
        assert_eq!(decimal(vec![0, 0, 0, 0, 0, 1]), "1427247692705959881058285969449495136382746624");
        let mut digits = vec![];
        let mut value = 10u128.pow(38);
        while value > 0 {
            digits.push((value % (1 << 30)) as u32);
            value >>= 30;
        }
        assert_eq!(decimal(digits), format!("1{}", "0".repeat(38)));
    }
}
