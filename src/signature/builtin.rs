//! The signature files that are built into the program.

/// What is looked for, and the rules of page tables.
pub(super) static SIGNATURES: &[(&str, &str)] = &[
    ("signatures/cpython.toml", include_str!("../../signatures/cpython.toml")),
    ("signatures/linux.toml", include_str!("../../signatures/linux.toml")),
    ("signatures/pypy.toml", include_str!("../../signatures/pypy.toml")),
    ("signatures/x86_64.toml", include_str!("../../signatures/x86_64.toml")),
];

macro_rules! layouts {
    ($($name:literal,)*) => {
        &[$((concat!("signatures/layouts/", $name), include_str!(concat!("../../signatures/layouts/", $name))),)*]
    };
}
/// Struct layouts per version.
pub(super) static LAYOUTS: &[(&str, &str)] = layouts![
    "cpython-2.toml",
    "cpython-3.6.toml",
    "cpython-3.6-trace-refs.toml",
    "cpython-3.8.toml",
    "cpython-3.8-trace-refs.toml",
    "cpython-3.9.toml",
    "cpython-3.9-trace-refs.toml",
    "cpython-3.10.toml",
    "cpython-3.10-trace-refs.toml",
    "cpython-3.11.toml",
    "cpython-3.11-trace-refs.toml",
    "cpython-3.12.toml",
    "cpython-3.12-trace-refs.toml",
    "cpython-3.13.toml",
    "cpython-3.13-free-threaded.toml",
    "cpython-3.14.toml",
    "cpython-3.14-free-threaded.toml",
    "cpython-3.15.toml",
    "cpython-3.15-free-threaded.toml",
    "cpython-debug-offsets-3.13.toml",
    "cpython-debug-offsets-3.14.toml",
    "cpython-debug-offsets-3.15.toml",
    "fbgemm-2021.toml",
    "fbgemm.toml",
    "numpy-1.toml",
    "numpy-2.toml",
    "pytorch-1.7-old-abi.toml",
    "pytorch-1.7.toml",
    "pytorch-1.8-old-abi.toml",
    "pytorch-1.8.toml",
    "pytorch-1.13.toml",
    "pytorch-1.13-old-abi.toml",
    "pytorch-2.1-old-abi.toml",
    "pytorch-2.1.toml",
    "pytorch-2.6.toml",
    "pytorch-2.6-old-abi.toml",
    "pytorch-2.10.toml",
    "pytorch-2.14.toml",
    "torchscript-old-abi.toml",
    "torchscript.toml",
    "torch-keys-1.7.toml",
    "torch-keys-1.8.toml",
    "torch-keys-1.9.toml",
    "torch-keys-1.10.toml",
    "torch-keys-1.11.toml",
    "torch-keys-1.12.toml",
    "torch-keys-1.13.toml",
    "torch-keys-2.0.toml",
    "torch-keys-2.1.toml",
    "torch-keys-2.2.toml",
    "torch-keys-2.3.toml",
    "torch-keys-2.4.toml",
    "torch-keys-2.5.toml",
    "torch-keys-2.7.toml",
    "torch-keys-2.8.toml",
    "torch-keys-2.13.toml",
];
