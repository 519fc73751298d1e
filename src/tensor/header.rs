//! A tensor as its headers describe it, whatever framework it is of.

use super::dtype::ScalarType;
use super::form::{Form, Quantizer};
use super::gather::{Elements, Flips, Jump};
use super::obstacle::{Obstacle, Shortage};
use crate::addr::VirtAddr;
use crate::heap::FreedMemory;
use crate::signature::USER_POINTER_MIN;

/// The device that is the computer itself.
pub const CPU: &str = "cpu";

/// A tensor, as its own headers describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// The Python object; null for a tensor that Python has never seen, as a gradient may be.
    pub object: VirtAddr,
    /// The structure that these headers are read from: PyTorch's `TensorImpl`.
    pub header: VirtAddr,
    /// Type of the elements.
    pub dtype: ScalarType,
    /// Elements along each dimension, outermost first; empty for a nested tensor, whose parts have them.
    pub shape: Vec<u64>,
    /// Elements between neighbours along each dimension; empty for a tensor without a storage.
    pub stride: Vec<u64>,
    /// Elements before the first, from the start of the storage.
    pub storage_offset: u64,
    /// The `StorageImpl`, which views of the same data share; null where the form has none.
    pub storage: VirtAddr,
    /// The first element: the storage's data plus the offset. Null for a tensor without elements.
    pub data: VirtAddr,
    /// Bytes of the storage.
    pub storage_bytes: u64,
    /// Where the data lies: `cpu`, `cuda:0`, ….
    pub device: String,
    /// Whether gradients are recorded for it.
    pub requires_grad: bool,
    /// How its elements are kept.
    pub form: Form,
    /// Whether no layout file reads it in this way: the layout was inferred from the tensors of the process.
    pub inferred: bool,
    /// The gaps along its dimensions if they are stored in blocks.
    pub jumps: Vec<Jump>,
    /// Bits of each element that its value has flipped.
    pub flips: Flips,
    /// The names of the dispatch keys that an ordinary tensor does not have.
    pub dispatch_keys: Vec<String>,
    /// If its memory was freed: what has been written there since.
    pub freed: Option<FreedMemory>,
    /// Why its bytes may mean something else than its type and form say.
    pub doubt: Option<Obstacle>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn numel(&self) -> u64 {
        match &self.form {
            Form::Nested(Some(nested)) => nested.values.numel(),
            Form::Nested(None) => 0,
            _ => self.shape.iter().product(),
        }
    }

    /// Whether its data lie in the computer's own memory, of which the dump is.
    pub fn is_on_cpu(&self) -> bool {
        self.device == CPU
    }

    /// Whether it names a storage and, if it has elements, an address that data may have.
    pub(crate) fn names_data(&self) -> bool {
        self.storage.0 != 0 && (self.numel() == 0 || self.data.0 >= USER_POINTER_MIN)
    }

    /// Bytes of the elements when they lie one after another.
    pub fn byte_len(&self) -> u64 {
        self.numel().saturating_mul(self.dtype.size)
    }

    /// Whether the other tensor has the same elements at the same place.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let place = |info: &Self| (info.header, info.storage, info.data, info.storage_offset, info.storage_bytes);
        (place(self), &self.shape, &self.stride) == (place(other), &other.shape, &other.stride)
            && (&self.dtype.name, &self.device, &self.form) == (&other.dtype.name, &other.device, &other.form)
    }

    /// The bytes that the elements need, and the bytes of the storage.
    pub(crate) fn shortage(&self) -> Shortage {
        let Self { shape, stride, storage_offset, storage_bytes, .. } = self;
        let (shape, stride) = (shape.clone(), stride.clone());
        Shortage { shape, stride, storage_offset: *storage_offset, storage_bytes: *storage_bytes }
    }

    /// Where the elements lie, and which of their bits the tensor's value has flipped; `None` for a tensor without
    /// a storage, or with one that they do not lie in.
    pub fn elements(&self) -> Option<Elements> {
        if matches!(self.form, Form::Sparse(_) | Form::Nested(_) | Form::Opaque | Form::Short) {
            return None;
        }
        let size = self.dtype.size;
        // Strides that are used have been checked; those of dimensions without neighbours may be anything.
        let stride = self.stride.iter().map(|stride| stride.wrapping_mul(size).cast_signed()).collect();
        let (shape, jumps, flips) = (self.shape.clone(), self.jumps.clone(), self.flips);
        let overwritten = self.freed.as_ref().map(|freed| freed.overwritten.clone()).unwrap_or_default();
        Some(Elements { data: self.data, shape, stride, size, jumps, flips, overwritten })
    }

    /// Elements that lie one after another in no `TensorImpl`, but in a structure at `owner`.
    pub fn contiguous(owner: VirtAddr, dtype: &ScalarType, shape: &[u64], data: VirtAddr) -> Self {
        let mut stride = Vec::new();
        let mut step = 1u64;
        for size in shape.iter().rev() {
            stride.push(step);
            step = step.saturating_mul(*size);
        }
        stride.reverse();
        let storage_bytes = step.saturating_mul(dtype.size);
        let empty = Self::without_storage(VirtAddr(0), owner, dtype.clone(), shape.to_vec());
        Self { stride, storage: owner, data, storage_bytes, device: CPU.to_owned(), ..empty }
    }

    /// A tensor whose header names no storage. All that a header can add is as in an ordinary tensor.
    pub(crate) fn without_storage(object: VirtAddr, header: VirtAddr, dtype: ScalarType, shape: Vec<u64>) -> Self {
        Self {
            object,
            header,
            dtype,
            shape,
            stride: Vec::new(),
            storage_offset: 0,
            storage: VirtAddr(0),
            data: VirtAddr(0),
            storage_bytes: 0,
            device: String::new(),
            requires_grad: false,
            form: Form::Strided,
            inferred: false,
            jumps: Vec::new(),
            flips: Flips::default(),
            dispatch_keys: Vec::new(),
            freed: None,
            doubt: None,
        }
    }

    /// Whether its elements are integers that stand for real numbers in a way that is known.
    pub fn is_quantized(&self) -> bool {
        matches!(self.form, Form::Quantized(ref quantizer) if *quantizer != Quantizer::Unknown)
    }

    /// Why its bytes are not its elements, or may not be, even if all bytes are there; `None` if they are.
    pub fn obstacle(&self) -> Option<Obstacle> {
        if self.doubt.is_some() {
            return self.doubt.clone();
        }
        match self.form {
            Form::Nested(None) => Some(Obstacle::Jagged),
            Form::Short if self.storage_bytes == 0 => Some(Obstacle::FreedStorage),
            Form::Short => Some(Obstacle::ShortStorage(self.shortage())),
            Form::Strided | Form::Quantized(_) | Form::Sparse(_) | Form::Nested(Some(_)) | Form::Opaque => None,
        }
    }
}
