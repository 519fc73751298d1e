//! Parameters that a C++ object has packed for a kernel: quantized weights and what belongs to them.
//!
//! Such a class differs between engines and versions, so its fields are identified by their contents: a pointer to a
//! readable `TensorImpl`, a pointer to a packed matrix with consistent numbers, a vector of scales.

use super::fbgemm::Matrix;
use super::layout::ScriptLayouts;
use super::object::{Reader, ScriptError, SlotValue, is_pointer, words_at};
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::framework::torch::tensor::Layout;
use crate::paging::{Fault, VirtualMemory};
use crate::tensor::{Form, Quantizer, TensorInfo};

/// The one attribute of a class that C++ code defines: the C++ object itself (torch/custom_class.h).
const CAPSULE: &str = "capsule";
/// Words of a C++ object that are looked at, at most.
const MAX_WORDS: u64 = 512;
/// Where the allocator's heap is no other: what is looked at then.
const FEW_WORDS: u64 = 24;
/// How far C++ objects are followed from one to another, and how many.
const MAX_DEPTH: u32 = 3;
const MAX_VISITS: usize = 1 << 10;
/// Flags in the size of a block (malloc/malloc.c of the GNU C library).
const BLOCK_FLAGS: u64 = 7;
/// Bytes of a number of a vector: `float` and `int32_t`.
const NUMBER: u64 = 4;
/// The part of a weight that is its bias.
const BIAS: &str = "bias";

/// A weight in a C++ object, or what is there instead.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Packed {
    /// What tells it from others in the same object; empty if there are none.
    pub(crate) suffix: String,
    /// Its headers, or why there are none.
    pub(crate) weight: Result<TensorInfo, PackedError>,
    /// Tensors that belong to it.
    pub(crate) parts: Vec<(String, TensorInfo)>,
}

/// Why a packed weight is not recovered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum PackedError {
    #[error("it is packed in a C++ object ({class} at {object}), which is not read")]
    NotRead { class: String, object: VirtAddr },
    #[error("its C++ object can't be read: {0}")]
    Object(ScriptError),
    #[error("it is in a C++ object of class {0}, whose attributes are not read")]
    Attributes(String),
    #[error("it is packed in a {0}, and no known layout reads this PyTorch's tensors")]
    NoLayout(String),
    #[error("it is packed in a {0} in an unknown format: its weight is not recovered")]
    UnknownFormat(String),
    #[error("a pointer in its {class}, possibly to its bias, can't be followed: {fault}")]
    LostPointer { class: String, fault: Fault },
}

impl PackedError {
    /// The same as a problem of the tensor that the C++ object at that address has packed.
    pub(super) fn diagnostic(&self, object: VirtAddr) -> Diagnostic {
        let code = match self {
            Self::NoLayout(_) => Code::NoTensorLayout,
            _ => Code::PackedWeight,
        };
        Diagnostic::new(code, Some(object.into()), self.to_string())
    }
}

/// What C++ objects are read with.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) memory: &'a dyn VirtualMemory,
    pub(super) reader: Reader<'a>,
    pub(super) layouts: &'a ScriptLayouts,
    pub(super) layout: Option<&'a Layout>,
}

/// What may still be visited, and what could not be read.
struct Walk {
    /// The class of the object that holds all of them.
    class: String,
    /// C++ objects that may still be visited.
    visits: usize,
    /// The first pointer to unreadable memory.
    unreadable: Option<Fault>,
}

/// Whether the attributes are those of a class that C++ code defines; the C++ object then.
pub(super) fn capsule(slots: &[super::object::Slot]) -> Option<VirtAddr> {
    match slots {
        [slot] if slot.name == CAPSULE => match slot.value {
            SlotValue::Other(payload) => Some(VirtAddr(payload)).filter(is_pointer),
            _ => None,
        },
        _ => None,
    }
}

/// Words of a C++ object: as many as its block on the heap has, as far as they can be read.
pub(super) fn fields(memory: &dyn VirtualMemory, object: VirtAddr) -> Vec<u64> {
    let size = memory.word(object, -8).unwrap_or_default() & !BLOCK_FLAGS;
    let is_block = size.is_multiple_of(16) && (32..=8 * MAX_WORDS).contains(&size);
    words_at(memory, object, if is_block { (size - 8) / 8 } else { FEW_WORDS })
}

impl Context<'_> {
    /// The weights in the object that a script object or an attribute is; `class` is what it is called.
    pub(super) fn packed(&self, object: VirtAddr) -> Vec<Packed> {
        let read = match self.reader.read(object) {
            Ok(read) => read,
            Err(error) => return vec![unread(PackedError::Object(error))],
        };
        let class = read.class.clone();
        let Some(holder) = capsule(&read.slots) else {
            return vec![unread(PackedError::Attributes(class))];
        };
        if self.layout.is_none() {
            return vec![unread(PackedError::NoLayout(class))];
        }
        let mut walk = Walk { class: class.clone(), visits: MAX_VISITS, unreadable: None };
        let mut found = self.holder(holder, MAX_DEPTH, &mut walk);
        if found.iter().all(|packed| packed.weight.is_err()) {
            let parts = found.into_iter().flat_map(|packed| packed.parts).collect();
            return vec![Packed { parts, ..unread(PackedError::UnknownFormat(class)) }];
        }
        if let [only] = found.as_mut_slice() {
            only.suffix.clear();
        }
        let has_bias = |packed: &Packed| packed.parts.iter().any(|(name, _)| name == BIAS);
        if let Some(fault) = walk.unreadable.filter(|_| !found.iter().all(has_bias)) {
            let error = PackedError::LostPointer { class, fault };
            found.push(Packed { suffix: ".unreadable".to_owned(), ..unread(error) });
        }
        found
    }

    /// The weights in a C++ object and in those that it points to.
    fn holder(&self, holder: VirtAddr, depth: u32, walk: &mut Walk) -> Vec<Packed> {
        let (Some(layout), Some(left)) = (self.layout, walk.visits.checked_sub(1)) else { return Vec::new() };
        walk.visits = left;
        let words = fields(self.memory, holder);
        let mut weights = Vec::new();
        let mut tensors: Vec<TensorInfo> = Vec::new();
        let pointers = words.iter().map(|word| VirtAddr(*word)).skip(1);
        let unreadable = words.windows(2).skip(1).find_map(|pair| self.lost_pointer(pair));
        walk.unreadable = walk.unreadable.or(unreadable);
        for pointer in pointers.clone().filter(is_pointer) {
            if let Some(info) = self.tensor(layout, pointer) {
                let known = tensors.iter().chain(&weights).any(|known: &TensorInfo| known.header == pointer);
                let list = if info.is_quantized() { &mut weights } else { &mut tensors };
                if !known {
                    list.push(info);
                }
            } else if let Some(matrix) = Matrix::read(self.memory, &self.layouts.matrices, pointer) {
                weights.extend(self.weight_of(layout, &matrix, &words));
            }
        }
        let mut found: Vec<Packed> = Vec::new();
        for weight in weights {
            let outputs = weight.shape.first().copied();
            let is_bias = |info: &TensorInfo| {
                matches!(info.shape.as_slice(), [count] if Some(*count) == outputs) && info.dtype.name == "Float"
            };
            let bias = tensors.iter().position(is_bias).map(|index| (BIAS.to_owned(), tensors.remove(index)));
            found.push(Packed { suffix: String::new(), weight: Ok(weight), parts: bias.into_iter().collect() });
        }
        if found.is_empty()
            && let Some(depth) = depth.checked_sub(1)
        {
            // A cell of a recurrent layer holds such objects; each has a virtual table and is no vector.
            for pointer in pointers.filter(is_pointer) {
                let is_object = self.memory.word(pointer, 0).is_ok_and(|table| is_pointer(&VirtAddr(table)));
                if is_object && self.tensor(layout, pointer).is_none() {
                    let inner = self.holder(pointer, depth, walk);
                    found.extend(inner.into_iter().filter(|packed| packed.weight.is_ok()));
                }
            }
        }
        // A cell names the biases of its weights again.
        let is_known = |info: &TensorInfo| {
            found.iter().flat_map(|packed| &packed.parts).any(|(_, part)| part.header == info.header)
        };
        tensors.retain(|info| !is_known(info));
        let named = found.first().map_or(0, |first| first.parts.len());
        let rest = (named..).zip(tensors).map(|(index, info)| (format!("tensor{index}"), info));
        match found.first_mut() {
            Some(first) => first.parts.extend(rest),
            None => {
                found.push(Packed { parts: rest.collect(), ..unread(PackedError::UnknownFormat(walk.class.clone())) })
            }
        }
        for (index, packed) in found.iter_mut().enumerate() {
            packed.suffix = format!(".{index}");
        }
        found
    }

    /// Why the pointer in the first of two words can't be followed, if it is one that was in use.
    ///
    /// An empty `std::optional` holds anything. Behind the pointer of one that is not empty stands a 1; and what page tables
    /// still lead to was in use.
    fn lost_pointer(&self, pair: &[u64]) -> Option<Fault> {
        let [pointer, next] = *pair else { return None };
        match self.memory.word(Some(VirtAddr(pointer)).filter(is_pointer)?, 0) {
            Err(fault) => (matches!(fault, Fault::NotInDump { .. }) || next & 0xff == 1).then_some(fault),
            _ => None,
        }
    }

    fn tensor(&self, layout: &Layout, pointer: VirtAddr) -> Option<TensorInfo> {
        layout.read_tensor_impl(self.memory, pointer).ok().filter(|info| info.storage.0 != 0)
    }

    /// The headers of a packed matrix of a linear layer, with its scales and zero points from the vectors beside it: sums of
    /// the columns, scales, zero points, in this order (ATen/native/quantized/cpu/fbgemm_utils.h, `PackedLinearWeight`).
    fn weight_of(&self, layout: &Layout, matrix: &Matrix, words: &[u64]) -> Option<TensorInfo> {
        let vector = |window: &[u64]| {
            let [begin, end, room] = *window else { return None };
            let bytes = end.checked_sub(begin).filter(|bytes| *bytes > 0 && bytes.is_multiple_of(NUMBER))?;
            (is_pointer(&VirtAddr(begin)) && end <= room).then_some((VirtAddr(begin), bytes / NUMBER))
        };
        let [outputs, _] = matrix.shape;
        let (scales, zero_points, count) = words.windows(9).find_map(|window| {
            let mut vectors = window.chunks(3).map(vector);
            let ((_, sums), (scales, count), (zero_points, points)) =
                (vectors.next()??, vectors.next()??, vectors.next()??);
            (sums == outputs && count == points && [1, outputs].contains(&count)).then_some((
                scales,
                zero_points,
                count,
            ))
        })?;
        let part = |name: &str, data| {
            layout.scalar_type_named(name).map(|dtype| TensorInfo::contiguous(data, dtype, &[count], data))
        };
        let quantizer = if count == 1 {
            let low = |at| self.memory.word(at, 0).ok().map(|word| word as u32);
            let scale = f64::from(f32::from_bits(low(scales)?));
            let zero_point = i64::from(low(zero_points)?.cast_signed());
            (scale.is_normal() && scale > 0.0).then_some(Quantizer::PerTensor { scale, zero_point })?
        } else {
            let (scales, zero_points) = (Box::new(part("Float", scales)?), Box::new(part("Int", zero_points)?));
            Quantizer::PerChannel { axis: 0, scales, zero_points }
        };
        let dtype = layout.scalar_type_named("QInt8")?;
        Some(TensorInfo {
            stride: matrix.stride.to_vec(),
            storage_bytes: matrix.bytes,
            form: Form::Quantized(quantizer),
            jumps: matrix.jumps.clone(),
            ..TensorInfo::contiguous(matrix.object, dtype, &matrix.shape, matrix.data)
        })
    }
}

fn unread(error: PackedError) -> Packed {
    Packed { suffix: String::new(), weight: Err(error), parts: Vec::new() }
}
