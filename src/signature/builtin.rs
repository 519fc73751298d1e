//! The signature files that are built into the program.

/// What is looked for, and the rules of page tables.
pub(super) static SIGNATURES: &[(&str, &str)] = &[
    ("signatures/cpython.toml", include_str!("../../signatures/cpython.toml")),
    ("signatures/x86_64.toml", include_str!("../../signatures/x86_64.toml")),
];

/// Struct layouts per version, as `("signatures/layouts/cpython-3.11.toml", include_str!(…))`.
pub(super) static LAYOUTS: &[(&str, &str)] = &[];
