//! Words of messages: a noun that follows a number.

/// A number with its noun: `1 hook`, `2 hooks`.
pub fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_follow_their_number() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "hook", "hooks")), ["0 hooks", "1 hook", "2 hooks"]);
    }
}
