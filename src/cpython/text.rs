//! Text of limited length: one long string of a process can occur in a million places.

/// Bytes that are kept of an overlong text.
const KEPT: usize = 256;

/// The text itself or, if it has more than `most` bytes, its beginning and its length.
pub(crate) fn bounded(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let mut end = KEPT.min(most);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    format!("{}…[{} characters]", text.get(..end).unwrap_or_default(), text.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_its_beginning_and_its_length() {
        assert_eq!(bounded("ab".to_owned(), 2), "ab");
        assert_eq!(bounded("ab".repeat(500), 999), format!("{}…[1000 characters]", "ab".repeat(128)));
        assert_eq!(bounded("é".repeat(300), 3), "é…[300 characters]");
    }
}
