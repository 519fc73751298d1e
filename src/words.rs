//! Words of messages: a noun that follows a number, text from a dump.

/// A number with its noun: `1 hook`, `2 hooks`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Text from a dump, made safe for a terminal: nothing in it moves the cursor.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        match character {
            // Marks that turn the direction of what follows are no control characters.
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(character.escape_unicode());
            }
            _ if character.is_control() => shown.extend(character.escape_default()),
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "hook", "hooks")), ["0 hooks", "1 hook", "2 hooks"]);
    }

    #[test]
    fn text_does_not_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\n\u{202e}b\u{9b}ü"), "a\\u{1b}[2J\\n\\u{202e}b\\u{9b}ü");
    }
}
