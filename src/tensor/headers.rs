//! Tensors that Python has never seen: found by their `TensorImpl`, not by a Python object.

use std::borrow::Cow;

use super::choose::TensorScore;
use super::form::{Form, Quantizer};
use super::keys::Keys;
use super::layout::{Layout, ScalarType};
use super::read::{TensorError, TensorInfo};
use crate::addr::VirtAddr;
use crate::cpython::Objects;

/// A layout, its score, and that of the next best.
type Choice<'a> = (Cow<'a, Layout>, TensorScore, Option<TensorScore>);

/// The table that reads most of what may be a `TensorImpl`; `None` if none reads any. Nothing is inferred here.
pub fn choose_by_headers<'a>(tables: &'a [Layout], objects: &Objects<'_>, headers: &[VirtAddr]) -> Option<Choice<'a>> {
    let mut scored: Vec<_> = tables.iter().map(|table| (table, score(table, objects, headers))).collect();
    scored.retain(|(_, score)| score.readable > 0);
    scored.sort_by_key(|(_, score)| {
        let TensorScore { readable, filled, same_abi, learned, .. } = *score;
        (readable + filled + same_abi + learned, same_abi, learned)
    });
    let (layout, best) = scored.pop()?;
    Some((Cow::Borrowed(layout), best, scored.pop().map(|(_, score)| score)))
}

fn score(layout: &Layout, objects: &Objects<'_>, headers: &[VirtAddr]) -> TensorScore {
    // What has no storage says little: by a wrong layout, nearly anything reads so.
    let read = headers.iter().filter_map(|tensor| layout.read_tensor_impl(objects, *tensor).ok());
    let read: Vec<TensorInfo> = read.filter(|info| info.storage.0 != 0).collect();
    let count = |is: &dyn Fn(&TensorInfo) -> bool| read.iter().filter(|info| is(info)).count();
    let grad_fits = |info: &TensorInfo| {
        layout.read_grad(objects, info).is_ok_and(|grad| grad.is_none_or(|grad| grad.shape == info.shape))
    };
    TensorScore {
        readable: read.len(),
        filled: count(&|info| {
            let end = info.storage_offset.saturating_mul(info.dtype.size).saturating_add(info.byte_len());
            info.storage_bytes > 0 && info.storage_bytes == end
        }),
        same_abi: count(&|info| layout.string_abi_fits(objects, info.tensor_impl) == Some(true)),
        learned: count(&|info| info.requires_grad && grad_fits(info)),
        tried: headers.len(),
        version: layout.offsets.version.clone(),
        ..TensorScore::default()
    }
}

impl Layout {
    /// Reads a tensor by its `TensorImpl`. Where that names a Python object that owns it, the object must name it in turn.
    ///
    /// # Errors
    /// As [`Layout::read`].
    pub fn read_tensor_impl(&self, objects: &Objects<'_>, tensor: VirtAddr) -> Result<TensorInfo, TensorError> {
        let info = self.read_impl(objects, tensor)?;
        // The lowest bit says that C++ owns the Python object, which no longer names the tensor then.
        let is_owned_by_python = objects.word(tensor, self.offsets.pyobj)? & 1 == 0;
        if info.object.0 != 0 && is_owned_by_python {
            let named = objects.pointer(info.object, self.offsets.impl_pointer)?;
            if named != tensor {
                let reason = format!("the Python object of its TensorImpl at {tensor} is that of another, at {named}");
                return Err(TensorError::Contradiction { object: info.object, reason });
            }
        }
        Ok(info)
    }

    /// Whether that is the one `TensorImpl` that stands for no tensor: without elements and storage.
    pub fn is_undefined(&self, objects: &Objects<'_>, tensor: VirtAddr) -> bool {
        objects.pointer(tensor, self.offsets.storage_pointer).is_ok_and(|storage| storage.0 == 0)
            && objects.word(tensor, self.offsets.numel) == Ok(0)
    }

    /// The scalar type of that name in PyTorch.
    pub fn scalar_type_named(&self, name: &str) -> Option<&ScalarType> {
        self.scalar_types().iter().find(|scalar| scalar.name == name)
    }
}

impl TensorInfo {
    /// Elements that lie one after another in no `TensorImpl`, but in a structure at `owner`.
    pub fn contiguous(owner: VirtAddr, dtype: &ScalarType, shape: &[u64], data: VirtAddr) -> Self {
        let mut stride = Vec::new();
        let mut step = 1u64;
        for size in shape.iter().rev() {
            stride.push(step);
            step = step.saturating_mul(*size);
        }
        stride.reverse();
        Self {
            object: VirtAddr(0),
            tensor_impl: owner,
            dtype: dtype.clone(),
            shape: shape.to_vec(),
            stride,
            storage_offset: 0,
            storage: owner,
            data,
            storage_bytes: step.saturating_mul(dtype.size),
            device: "cpu".to_owned(),
            requires_grad: false,
            form: Form::Strided,
            inferred: false,
            jumps: Vec::new(),
            keys: Keys::default(),
        }
    }

    /// Whether its elements are integers that stand for real numbers in a way that is known.
    pub fn is_quantized(&self) -> bool {
        matches!(self.form, Form::Quantized(ref quantizer) if *quantizer != Quantizer::Unknown)
    }
}
