//! Where the fields of PyTorch's tensors lie, for one version, and its numbered types.

use serde::Deserialize;

use super::keys::KeyTable;
use crate::layout::{LayoutError, Numbers, StructLayout, layout_struct, required, table};
use crate::signature;
use crate::tensor::{Raw, ScalarType};

// Names in the layout files of what has more than one form.
const DIM: &str = "tensor.dim";
const SIZES: &str = "tensor.sizes_inline";
const STRIDES: &str = "tensor.strides_inline";
const OUT_OF_LINE: &str = "tensor.out_of_line_pointer";
const INLINE_DIMS: &str = "tensor.inline_max_dims";
const SIZES_BEGIN: &str = "tensor.sizes_begin";
const SIZES_END: &str = "tensor.sizes_end";
const STRIDES_BEGIN: &str = "tensor.strides_begin";
const DTYPE_INDEX: &str = "tensor.dtype_index";
const TYPE_META: &str = "tensor.type_meta_pointer";
const ITEM_SIZE: &str = "type_meta.item_size";
const TYPE_ID: &str = "type_meta.id";

layout_struct! {
    /// Offsets in bytes from the start of PyTorch's structures.
    Offsets {
        impl_pointer: "thp.tensor_impl_pointer" as i64,
        storage_pointer: "tensor.storage_pointer" as i64,
        autograd_meta: "tensor.autograd_meta" as i64,
        pyobj: "tensor.pyobj" as i64,
        storage_offset: "tensor.storage_offset" as i64,
        numel: "tensor.numel" as i64,
        device_has_value: "tensor.device_has_value" as Option<i64>,
        key_set: "tensor.key_set" as Option<i64>,
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

/// Where a `TensorImpl` keeps sizes and strides: two forms, of which a layout has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeAt {
    /// A count, then both in the structure itself, or behind one pointer (`c10::impl::SizesAndStrides`, PyTorch 1.8 and later).
    Counted {
        /// Number of dimensions.
        dim: i64,
        /// Sizes, if there are few.
        sizes: i64,
        /// Strides, if there are few.
        strides: i64,
        /// The pointer to both, if there are many.
        out_of_line: i64,
        /// The most dimensions that are few.
        inline_dims: u64,
    },
    /// Two vectors, each with pointers to its begin and end (`c10::SmallVector`, PyTorch before 1.8).
    Vectors {
        /// Pointer to the first size.
        sizes_begin: i64,
        /// Pointer behind the last size.
        sizes_end: i64,
        /// Pointer to the first stride.
        strides_begin: i64,
    },
}

/// How a `TensorImpl` names the type of its elements: two forms, of which a layout has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DtypeAt {
    /// The number of the scalar type, 16 bits wide.
    Index(i64),
    /// A pointer to the type's description (`caffe2::detail::TypeMetaData`, PyTorch before 1.8).
    Pointer {
        /// The pointer.
        pointer: i64,
        /// In the description: bytes of one element.
        item_size: i64,
        /// In the description: the checksum of the type's name.
        id: i64,
    },
}

impl DtypeAt {
    /// Where in the `TensorImpl` the number or the pointer lies.
    pub(super) fn offset(self) -> i64 {
        match self {
            Self::Index(offset) | Self::Pointer { pointer: offset, .. } => offset,
        }
    }
}

/// A `c10::ScalarType`.
#[derive(Clone, Debug)]
pub(super) struct NumberedType {
    /// Its number.
    pub(super) index: u16,
    /// The checksum of its name, in versions that point to a description of the type.
    type_id: Option<i64>,
    /// PyTorch's name, and the rest.
    pub(super) scalar: ScalarType,
}

/// The same as it stands in a layout file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeRow {
    index: u16,
    type_id: Option<i64>,
    name: String,
    size: u64,
    safetensors: Option<String>,
    #[serde(default)]
    raw: Option<Raw>,
}

impl From<TypeRow> for NumberedType {
    fn from(row: TypeRow) -> Self {
        let TypeRow { index, type_id, name, size, safetensors, raw } = row;
        Self { index, type_id, scalar: ScalarType { name, size, safetensors, raw } }
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
    /// Where sizes and strides lie.
    pub shape: ShapeAt,
    /// Where the type of the elements lies.
    pub dtype: DtypeAt,
    scalar_types: Vec<NumberedType>,
    device_types: Vec<DeviceType>,
    /// Layouts that fit the process equally well: what they read differently is not known.
    pub(super) rivals: Vec<Layout>,
    /// The best table, if this layout is inferred: what it reads as well is known without the inference.
    pub(super) table: Option<Box<Layout>>,
    /// What the dispatch keys mean, if that is known ([`Layout::with_keys`]).
    pub keys: Option<KeyTable>,
}

impl Layout {
    fn new(layout: &signature::Layout) -> Result<Self, LayoutError> {
        let get = |key| required(layout, key);
        let shape = if layout.get(SIZES_BEGIN).is_some() {
            ShapeAt::Vectors {
                sizes_begin: get(SIZES_BEGIN)?,
                sizes_end: get(SIZES_END)?,
                strides_begin: get(STRIDES_BEGIN)?,
            }
        } else {
            ShapeAt::Counted {
                dim: get(DIM)?,
                sizes: get(SIZES)?,
                strides: get(STRIDES)?,
                out_of_line: get(OUT_OF_LINE)?,
                inline_dims: get(INLINE_DIMS)?.unsigned_abs(),
            }
        };
        let dtype = if layout.get(TYPE_META).is_some() {
            DtypeAt::Pointer { pointer: get(TYPE_META)?, item_size: get(ITEM_SIZE)?, id: get(TYPE_ID)? }
        } else {
            DtypeAt::Index(get(DTYPE_INDEX)?)
        };
        Ok(Self {
            offsets: Offsets::new(layout)?,
            shape,
            dtype,
            scalar_types: table::<Vec<TypeRow>>(layout, "scalar_types")?.into_iter().map(NumberedType::from).collect(),
            device_types: table(layout, "device_types")?,
            rivals: Vec::new(),
            table: None,
            keys: None,
        })
    }

    /// The same, for tensors that others fit as well.
    pub(super) fn with_rivals(&self, rivals: &[&Self]) -> Self {
        Self { rivals: rivals.iter().map(|rival| (*rival).clone()).collect(), ..self.clone() }
    }

    /// The same, as one that was inferred where that table was the best.
    pub(super) fn inferred_beside(self, table: &Self) -> Self {
        Self { table: Some(Box::new(table.clone())), ..self }
    }

    /// All offsets by their names in layout files.
    pub(super) fn numbers(&self) -> Numbers {
        let mut numbers = self.offsets.numbers();
        let mut add = |forms: &[(&'static str, i64)]| numbers.extend(forms.iter().map(|(name, at)| (*name, Some(*at))));
        match self.shape {
            ShapeAt::Counted { dim, sizes, strides, out_of_line, inline_dims } => add(&[
                (DIM, dim),
                (SIZES, sizes),
                (STRIDES, strides),
                (OUT_OF_LINE, out_of_line),
                (INLINE_DIMS, inline_dims.cast_signed()),
            ]),
            ShapeAt::Vectors { sizes_begin, sizes_end, strides_begin } => {
                add(&[(SIZES_BEGIN, sizes_begin), (SIZES_END, sizes_end), (STRIDES_BEGIN, strides_begin)])
            }
        }
        match self.dtype {
            DtypeAt::Index(index) => add(&[(DTYPE_INDEX, index)]),
            DtypeAt::Pointer { pointer, item_size, id } => {
                add(&[(TYPE_META, pointer), (ITEM_SIZE, item_size), (TYPE_ID, id)])
            }
        }
        numbers
    }

    pub(super) fn scalar_types(&self) -> &[NumberedType] {
        &self.scalar_types
    }

    /// The scalar type of that number.
    pub fn scalar_type(&self, index: u16) -> Option<&ScalarType> {
        self.scalar_types.iter().find(|known| known.index == index).map(|known| &known.scalar)
    }

    /// The scalar type of that size whose name has that checksum.
    pub fn scalar_type_described(&self, item_size: u64, id: i64) -> Option<&ScalarType> {
        let is_meant = |known: &&NumberedType| known.type_id == Some(id) && known.scalar.size == item_size;
        self.scalar_types.iter().find(is_meant).map(|known| &known.scalar)
    }

    /// The name of the device type of that number.
    pub fn device_type(&self, index: u8) -> Option<&str> {
        self.device_types.iter().find(|device| device.index == index).map(|device| device.name.as_str())
    }
}

/// All PyTorch layouts of a set of signatures.
///
/// # Errors
/// A layout lacks a number or a table that the code needs.
pub fn layouts(signatures: &signature::Signatures) -> Result<Vec<Layout>, LayoutError> {
    signatures.layouts("pytorch").map(Layout::new).collect()
}
