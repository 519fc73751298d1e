//! Parts of a split file, which only their names reveal.

use std::path::Path;

use crate::diagnostic::{Code, Diagnostic};

/// Maximum number of digits at the end of a part's name.
const MAX_DIGITS: usize = 4;

/// A name that ends in a number, or in two letters counted like those of `split`.
#[derive(Debug, PartialEq, Eq)]
struct Numbered<'a> {
    stem: &'a str,
    number: u32,
    /// Digits of the number; `None` for letters.
    digits: Option<usize>,
}

impl<'a> Numbered<'a> {
    fn new(name: &'a str) -> Option<Self> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (stem, end) = name.split_at_checked(name.len().checked_sub(if digits > 0 { digits } else { 2 })?)?;
        if digits > 0 {
            let is_part = stem.ends_with(['.', '_', '-']) && digits > 1 || stem.to_ascii_lowercase().ends_with("part");
            let number = end.parse().ok()?;
            return (is_part && digits <= MAX_DIGITS).then_some(Self { stem, number, digits: Some(digits) });
        }
        let letters: Vec<u32> = end.bytes().filter(u8::is_ascii_lowercase).map(|b| u32::from(b - b'a')).collect();
        let [tens, ones] = *letters.as_slice() else { return None };
        (stem.ends_with(['.', '_', '-']) || stem == "x").then_some(Self {
            stem,
            number: 26 * tens + ones,
            digits: None,
        })
    }

    /// The name of another part.
    fn sibling(&self, number: u32) -> Option<String> {
        let Self { stem, digits, .. } = self;
        match digits {
            Some(digits) => Some(format!("{stem}{number:0digits$}")),
            None => {
                let letter =
                    |index: u32| Some(char::from(b'a' + u8::try_from(index).ok().filter(|index| *index < 26)?));
                Some(format!("{stem}{}{}", letter(number / 26)?, letter(number % 26)?))
            }
        }
    }
}

/// A warning if a file looks like one of several parts: its name has a number, a file with the next or previous number
/// is in the same folder, and no part is larger than the one before.
pub(super) fn warning(path: &Path) -> Option<Diagnostic> {
    let name = path.file_name()?.to_str()?;
    let numbered = Numbered::new(name)?;
    let size =
        |name: &str| path.with_file_name(name).metadata().ok().filter(|file| file.is_file()).map(|file| file.len());
    let len = size(name)?;
    let before = numbered.number.checked_sub(1).and_then(|number| numbered.sibling(number));
    let before = before.filter(|before| size(before).is_some_and(|size| size >= len));
    let after = numbered.number.checked_add(1).and_then(|number| numbered.sibling(number));
    let after = after.filter(|after| size(after).is_some_and(|size| size <= len));
    let which = if before.is_some() { "a later part" } else { "the first part" };
    let neighbour = before.or(after)?;
    let stem = numbered.stem;
    let message = format!("judging by its name, this is {which} of a split file ({neighbour} is next to it)");
    let hint = format!("join all parts in order, for example with `cat {stem}* > whole`, and pass the result");
    Some(Diagnostic { hint: Some(hint), ..Diagnostic::new(Code::SplitFile, None, message) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts_have_numbers() {
        let numbered = |name| Numbered::new(name).map(|found| (found.stem, found.number, found.digits));
        assert_eq!(numbered("memory.raw.001"), Some(("memory.raw.", 1, Some(3))));
        assert_eq!(numbered("memory.part2"), Some(("memory.part", 2, Some(1))));
        assert_eq!(numbered("memory-00"), Some(("memory-", 0, Some(2))));
        assert_eq!(numbered("memory.ab"), Some(("memory.", 1, None)));
        assert_eq!(numbered("xba"), Some(("x", 26, None)));
        for name in ["memory.7", "memory7", "core.123456", "memory.lime", "ab", "", "x", "\u{fc}\u{fc}"] {
            assert_eq!(numbered(name), None, "{name}");
        }
    }

    #[test]
    fn a_part_has_others_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, len: usize| std::fs::write(dir.path().join(name), vec![0; len]).unwrap();
        let said = |name: &str| warning(&dir.path().join(name)).map_or(String::new(), |said| said.to_string());
        write("memory.001", 4096);
        assert_eq!(said("memory.001"), "");
        write("memory.002", 4096);
        write("memory.003", 100);
        assert!(
            said("memory.001").contains("the first part") && said("memory.001").contains("memory.002 is next to it")
        );
        assert!(said("memory.002").contains("a later part"));
        let hint = warning(&dir.path().join("memory.002")).and_then(|warning| warning.hint);
        assert!(hint.is_some_and(|hint| hint.contains("cat memory.* > whole")));
        assert!(said("memory.003").contains("memory.002 is next to it"));
        // Dumps of several machines.
        write("host-01", 4096);
        write("host-02", 8192);
        assert_eq!((said("host-01"), said("host-02")), (String::new(), String::new()));
    }
}
