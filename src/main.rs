//! The command line of tensorcarve.
fn main() {}
