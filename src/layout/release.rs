//! Which tables could be of a version that a program tells of itself.

use std::collections::BTreeSet;

/// Major and minor number of a release.
pub(crate) type Release = (u32, u32);

/// The release of a version: `1.13.0+cu117` is of 1.13.
pub(crate) fn release(version: &str) -> Option<Release> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The releases of the tables that could be of a version: its own, or else the last before it and the first after it.
pub(crate) fn nearest<'t>(tables: impl Iterator<Item = &'t str>, version: Option<&str>) -> BTreeSet<Release> {
    let Some(own) = version.and_then(release) else { return BTreeSet::new() };
    let known: BTreeSet<Release> = tables.filter_map(release).collect();
    let before = known.range(..=own).next_back().copied();
    let after = known.range(own..).next().copied().filter(|_| before != Some(own));
    before.into_iter().chain(after).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_could_be_of_a_version() {
        let tables = ["1.7", "1.8-old-abi", "1.13", "2.1", "2.10", "2.6"];
        let nearest = |version| nearest(tables.into_iter(), Some(version)).into_iter().collect::<Vec<_>>();
        assert_eq!(nearest("1.13.0a0"), [(1, 13)]);
        assert_eq!(nearest("2.0.1+cu117"), [(1, 13), (2, 1)]);
        assert_eq!(nearest("2.10.0"), [(2, 10)]);
        assert_eq!(nearest("2.8.0"), [(2, 6), (2, 10)]);
        assert_eq!(nearest("1.5.0"), [(1, 7)]);
        assert_eq!(nearest("99.1"), [(2, 10)]);
        for nothing in ["", "unknown", "2", "99999999999.1"] {
            assert!(nearest(nothing).is_empty(), "{nothing:?}");
        }
    }
}
