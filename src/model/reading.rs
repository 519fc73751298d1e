//! Decides what is read of each tensor, so that no dump makes us read or write without end. Ordinary tensors are
//! written in full, overlapping elements are written once, and tensors that are left out say so.

use std::collections::{HashMap, HashSet};

use super::{Model, NamedTensor, StandaloneTensor, fair};
use crate::addr::VirtAddr;
use crate::diagnostic::{Code, Diagnostic};
use crate::tensor::{Elements, Form, Stored};
use crate::words::counted;

/// A tensor whose elements share their bytes is written in full up to this many bytes, and as its storage beyond that.
const MAX_REPEATED: u64 = 1 << 20;
/// All models together are read up to this many times the size of the dump, because forked workers share memory.
const TIMES_THE_DUMP: u64 = 4;

/// What is read and written of a tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Its elements.
    #[default]
    Elements,
    /// Its elements, which are written once for several names.
    SameAsFirst,
    /// The memory under its elements, which share their bytes.
    Storage(Stored),
    /// Nothing; its problem says why.
    LeftOut,
}

/// Decides what is read of the tensors of models from a dump of `size` bytes. Each model has a share that no other
/// uses up; in it come first what lies in memory of its own, small ones before large ones, then other names of the
/// same, then elements that share their bytes.
pub fn limit_models<'m>(models: impl Iterator<Item = &'m mut Model>, size: u64) {
    let mut models: Vec<&mut Model> = models.collect();
    for tensor in models.iter_mut().flat_map(|model| model.all_tensors_mut()) {
        read_storage(tensor);
    }
    let needs = models.iter().map(|model| model.all_tensors().map(need).fold(0, u64::saturating_add));
    let share = fair::share(needs.collect::<Vec<_>>(), size.saturating_mul(TIMES_THE_DUMP));
    for model in models {
        limit_model(model, share);
    }
}

fn limit_model(model: &mut Model, share: u64) {
    let mut known = HashSet::new();
    let mut order = Vec::new();
    for (index, tensor) in model.all_tensors().enumerate() {
        let is_known = !known.insert((tensor.object, tensor.elements()));
        let repeats = tensor.elements().is_some_and(|elements| elements.overlap());
        order.push((is_known, repeats, need(tensor), index));
    }
    order.sort_unstable();
    let mut left = share;
    let mut readings: HashMap<usize, Reading> = HashMap::new();
    let tensors: Vec<&NamedTensor> = model.all_tensors().collect();
    let mut left_out: HashSet<(VirtAddr, Option<Elements>)> = HashSet::new();
    let mut as_storage = HashSet::new();
    for (is_known, _, bytes, index) in order {
        let Some(tensor) = tensors.get(index) else { continue };
        let key = (tensor.object, tensor.elements());
        let stored = || tensor.elements().filter(|_| is_strided(tensor)).and_then(|elements| elements.stored());
        let is_as_the_first = is_known && !left_out.contains(&key) && !as_storage.contains(&key);
        if (!is_known || is_as_the_first) && bytes <= left {
            left -= bytes;
            continue;
        }
        let stored = stored().filter(|stored| stored.elements.byte_len() <= left && !left_out.contains(&key));
        let reading = if is_as_the_first && tensor.same_as.is_some() && tensor.reading == Reading::Elements {
            Reading::SameAsFirst
        } else if let Some(stored) = stored {
            left -= stored.elements.byte_len();
            as_storage.insert(key);
            Reading::Storage(stored)
        } else {
            left_out.insert(key);
            Reading::LeftOut
        };
        readings.insert(index, reading);
    }
    for (index, tensor) in model.all_tensors_mut().enumerate() {
        if let Some(reading) = readings.remove(&index) {
            set(tensor, reading);
        }
    }
}

/// Bytes that are read of a tensor and its parts.
fn need(tensor: &NamedTensor) -> u64 {
    let inner = tensor.inner.iter().map(|inner| inner.elements().map_or(0, |elements| elements.byte_len()));
    let parts = tensor.parts.iter().map(need).chain(inner);
    parts.fold(tensor.elements().map_or(0, |elements| elements.byte_len()), u64::saturating_add)
}

fn set(tensor: &mut NamedTensor, reading: Reading) {
    if reading == Reading::LeftOut {
        if tensor.problem.is_none() {
            tensor.problem = Some(left_out(tensor));
        }
        tensor.parts.iter_mut().for_each(|part| set(part, Reading::LeftOut));
        tensor.inner.iter_mut().for_each(|inner| set(&mut inner.tensor, Reading::LeftOut));
    }
    tensor.reading = reading;
}

/// The problem of a tensor whose bytes are left out.
pub(crate) fn left_out(tensor: &NamedTensor) -> Diagnostic {
    let message = "its bytes are left out: all tensors together have more bytes than the dump can hold";
    tensor.diagnostic(Code::TensorsLeftOut, message)
}

fn is_strided(tensor: &NamedTensor) -> bool {
    tensor.info.as_ref().is_none_or(|info| info.form == Form::Strided)
}

/// Takes the storage in place of many elements that share its bytes.
fn read_storage(tensor: &mut NamedTensor) {
    for inner in &mut tensor.inner {
        read_storage(&mut inner.tensor);
        let elements = inner.elements().filter(|elements| inner.array.is_some() && elements.byte_len() > MAX_REPEATED);
        if elements.is_some_and(|elements| elements.overlap()) {
            set(&mut inner.tensor, Reading::LeftOut);
        }
    }
    let elements = tensor.elements().filter(|elements| is_strided(tensor) && elements.byte_len() > MAX_REPEATED);
    if let Some(stored) = elements.filter(Elements::overlap).and_then(|elements| elements.stored()) {
        tensor.reading = Reading::Storage(stored);
    }
}

/// Leaves out bytes beyond `limit` in total. Tensors whose elements share their bytes come last. Says how many are left
/// out.
pub fn limit<'o>(others: impl Iterator<Item = &'o mut StandaloneTensor>, limit: u64) -> Option<Diagnostic> {
    let mut all: Vec<(Elements, &mut StandaloneTensor)> = others
        .filter_map(|other| {
            let elements = other.elements()?;
            if elements.byte_len() > MAX_REPEATED && elements.overlap() && is_strided(&other.tensor) {
                other.tensor.reading = elements.stored().map_or(Reading::LeftOut, Reading::Storage);
            }
            Some((other.elements().unwrap_or(elements), other))
        })
        .filter(|(elements, _)| elements.byte_len() > 0)
        .collect();
    // The order of the processes and of the addresses, otherwise.
    all.sort_by_key(|(elements, _)| elements.overlap());
    // What forked processes share is written once.
    let mut seen: HashMap<(VirtAddr, VirtAddr, u64), bool> = HashMap::new();
    let (mut left, mut left_out) = (limit, 0);
    for (elements, other) in all {
        let bytes = elements.byte_len();
        let is_in = other.tensor.reading != Reading::LeftOut
            && *seen.entry((other.tensor.object, elements.data, bytes)).or_insert_with(|| {
                let rest = left.checked_sub(bytes);
                left = rest.unwrap_or(left);
                rest.is_some()
            });
        if !is_in {
            other.is_left_out = true;
            let message = "its bytes are left out: all tensors and arrays together have more bytes than the dump";
            other.tensor.problem = Some(other.tensor.diagnostic(Code::TensorsLeftOut, message));
            left_out += 1;
        }
    }
    (left_out > 0).then(|| {
        let left_out = counted(left_out, "tensor or array", "tensors and arrays");
        let message = format!(
            "listed without bytes: {left_out} outside any model, because all together have more bytes than the dump"
        );
        Diagnostic::new(Code::TensorsLeftOut, None, message)
    })
}
