//! Where the fields of PyTorch's tensors lie, for one version, and its numbered types.

use serde::Deserialize;

use crate::cpython::{MissingField, layout_struct};
use crate::signature;

layout_struct! {
    /// Offsets in bytes from the start of PyTorch's structures.
    Offsets {
        impl_pointer: "thp.tensor_impl_pointer" as i64,
        storage_pointer: "tensor.storage_pointer" as i64,
        autograd_meta: "tensor.autograd_meta" as i64,
        pyobj: "tensor.pyobj" as i64,
        dim: "tensor.dim" as i64,
        sizes_inline: "tensor.sizes_inline" as i64,
        strides_inline: "tensor.strides_inline" as i64,
        out_of_line: "tensor.out_of_line_pointer" as i64,
        inline_dims: "tensor.inline_max_dims" as i64,
        storage_offset: "tensor.storage_offset" as i64,
        numel: "tensor.numel" as i64,
        dtype: "tensor.dtype_index" as i64,
        device_type: "tensor.device_type" as Option<i64>,
        device_index: "tensor.device_index" as Option<i64>,
        quantizer_scalar_type: "quantizer.scalar_type" as Option<i64>,
        quantizer_scale: "quantizer.scale" as Option<i64>,
        quantizer_zero_point: "quantizer.zero_point" as Option<i64>,
        storage_data: "storage.data" as i64,
        storage_bytes: "storage.size_bytes" as i64,
        storage_device_type: "storage.device_type" as i64,
        storage_device_index: "storage.device_index" as i64,
        requires_grad: "autograd.requires_grad" as i64,
        grad: "autograd.grad" as i64,
        grad_fn: "autograd.grad_fn" as i64,
        name: "autograd.name" as i64,
        name_is_inline: "autograd.name_is_inline" as i64,
    }
}

/// The method of quantized tensors that gives their integers.
const INT_REPR: &str = "int_repr";

/// A `c10::ScalarType`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScalarType {
    /// Its number.
    pub(super) index: u16,
    /// PyTorch's name.
    pub name: String,
    /// Bytes of one element.
    pub size: u64,
    /// The name in safetensors files, if the format has the type.
    pub safetensors: Option<String>,
    /// What an element consists of, where the format has not the type but that.
    #[serde(default)]
    pub raw: Option<Raw>,
}

/// What elements of a type consist of, in terms of safetensors.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    /// PyTorch's method that gives it: `view_as_real`, `int_repr`.
    pub name: String,
    /// Type in safetensors files; a tensor of more than one per element has them as a last dimension.
    pub safetensors: String,
}

impl ScalarType {
    /// The name in safetensors files, or PyTorch's where there is none.
    pub fn label(&self) -> &str {
        self.safetensors.as_deref().unwrap_or(&self.name)
    }

    /// Whether its integers stand for real numbers.
    pub(super) fn is_quantized(&self) -> bool {
        self.raw.as_ref().is_some_and(|raw| raw.name == INT_REPR)
    }
}

/// A `c10::DeviceType`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceType {
    index: u8,
    name: String,
}

/// The layout of one PyTorch version.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Where the fields lie.
    pub offsets: Offsets,
    scalar_types: Vec<ScalarType>,
    device_types: Vec<DeviceType>,
}

/// Why the files of a signature set do not give a PyTorch layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// An offset is missing.
    #[error(transparent)]
    Missing(#[from] MissingField),
    /// A table is missing or has another form.
    #[error("the layout {version} has no usable table {table}: {reason}")]
    Table {
        /// Version of the layout.
        version: String,
        /// Which table, under `[layout.table]`.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Layout {
    fn new(layout: &signature::Layout) -> Result<Self, LayoutError> {
        Ok(Self {
            offsets: Offsets::new(layout)?,
            scalar_types: table(layout, "scalar_types")?,
            device_types: table(layout, "device_types")?,
        })
    }

    /// The scalar type of that number.
    pub fn scalar_type(&self, index: u16) -> Option<&ScalarType> {
        self.scalar_types.iter().find(|scalar| scalar.index == index)
    }

    /// The name of the device type of that number.
    pub fn device_type(&self, index: u8) -> Option<&str> {
        self.device_types.iter().find(|device| device.index == index).map(|device| device.name.as_str())
    }
}

pub(super) fn table<T: for<'de> Deserialize<'de>>(
    layout: &signature::Layout,
    name: &'static str,
) -> Result<Vec<T>, LayoutError> {
    let error = |reason: String| LayoutError::Table { version: layout.version.clone(), table: name, reason };
    let value = layout.table(name).ok_or_else(|| error("it is missing".to_owned()))?;
    value.clone().try_into().map_err(|e: toml::de::Error| error(e.message().to_owned()))
}

/// All PyTorch layouts of a set of signatures.
///
/// # Errors
/// A layout lacks a number or a table that the code needs.
pub fn layouts(signatures: &signature::Signatures) -> Result<Vec<Layout>, LayoutError> {
    signatures.layouts("pytorch").map(Layout::new).collect()
}
