//! Bytes of tensors as arrays of NumPy.

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::error::refuse;

/// The element type in NumPy: its own name for it, or the name in the package `ml_dtypes` and that of the unsigned integers without it.
fn names(label: &str) -> Option<(&'static str, Option<&'static str>)> {
    Some(match label {
        "BOOL" => ("bool", None),
        "U8" | "QUInt8" => ("uint8", None),
        "I8" | "QInt8" => ("int8", None),
        "I16" => ("int16", None),
        "U16" => ("uint16", None),
        "I32" | "QInt32" => ("int32", None),
        "U32" => ("uint32", None),
        "I64" => ("int64", None),
        "U64" => ("uint64", None),
        "F16" => ("float16", None),
        "F32" => ("float32", None),
        "F64" => ("float64", None),
        "C64" => ("complex64", None),
        "ComplexDouble" => ("complex128", None),
        "BF16" => ("uint16", Some("bfloat16")),
        "F8_E5M2" => ("uint8", Some("float8_e5m2")),
        "F8_E4M3" => ("uint8", Some("float8_e4m3fn")),
        "F8_E8M0" => ("uint8", Some("float8_e8m0fnu")),
        "Float8_e5m2fnuz" => ("uint8", Some("float8_e5m2fnuz")),
        "Float8_e4m3fnuz" => ("uint8", Some("float8_e4m3fnuz")),
        _ => return None,
    })
}

/// An array that owns the bytes of a tensor, in row-major order. `bits` asks for the unsigned integers of a type that NumPy itself
/// does not have.
pub(crate) fn array<'py>(
    py: Python<'py>,
    label: &str,
    shape: &[u64],
    bytes: Vec<u8>,
    bits: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let Some((own, other)) = names(label) else {
        return Err(refuse(py, format!("NumPy has no type for {label}"), "tobytes() gives the bytes"));
    };
    let of_package = |name: &str| py.import("ml_dtypes").and_then(|package| package.getattr(name)).ok();
    let dtype = py.import("numpy")?.getattr("dtype")?;
    let dtype = match other.filter(|_| !bits).and_then(of_package) {
        Some(of_package) => dtype.call1((of_package,))?,
        None => dtype.call1((own,))?,
    };
    PyArray1::from_vec(py, bytes).call_method1("view", (dtype,))?.call_method1("reshape", (shape.to_vec(),))
}

/// What PyTorch calls a type whose arrays have unsigned integers.
pub(crate) fn torch_name(label: &str) -> Option<&'static str> {
    names(label)?.1
}
