//! Tensors that a running process has freed, and what has become of their memory since.

use tensorcarve::model::{NamedTensor, Status};

use super::owners::tensors;
use super::synthetic::{Options, Placed, Torch, dump, recover, sha256, torch};

const KEY: u64 = 0x4350_2617_2489_208c;

/// The chunk of memory that `malloc` gave out for a tensor's elements, with values that weights may have; where it ends.
fn fill(torch: &Torch, tensor: &mut Placed) -> u64 {
    let process = &torch.python.process;
    let bytes = tensor.logical.len() as u64;
    let size = (bytes + 8).next_multiple_of(16);
    process.put(tensor.base - 8, size | 1);
    let values = (0..bytes / 4).flat_map(|number| (number as f32 / 1000.0 - 0.5).to_le_bytes());
    tensor.logical = values.collect();
    process.write(tensor.base, &tensor.logical);
    process.put(tensor.storage + torch.numbers.at("storage.data") + 16, tensor.base);
    tensor.base - 16 + size
}

/// Frees the headers of a tensor as the destructors and `malloc` do.
fn free_headers(torch: &Torch, tensor: &Placed) {
    for header in [tensor.tensor_impl, tensor.storage] {
        torch.python.process.put(header, header >> 12);
        torch.python.process.put(header + 8, KEY);
    }
}

/// Frees the elements: `malloc` links the chunk to others, and repeats its size behind it.
fn free_elements(torch: &Torch, tensor: &Placed, end: u64) {
    let process = &torch.python.process;
    let size = end - (tensor.base - 16);
    process.put(end, size);
    process.put(end + 8, 0x20);
    (0..4).for_each(|word| process.put(tensor.base + 8 * word, tensor.base - 16));
}

#[test]
fn freed_tensors_are_read_where_nothing_has_used_their_memory_since() {
    let torch = torch("3.12", "2.6", Options::default());
    let process = &torch.python.process;
    let shapes: [&[u64]; 8] = [&[9, 1600], &[9], &[1600, 5], &[40, 40], &[41, 40], &[42, 40], &[43, 40], &[44, 40]];
    let mut placed = tensors(&torch, &shapes);
    let code = process.words(&[0]);
    let table = process.words(&[code, code, code]);
    let mut ends = Vec::new();
    for tensor in &mut placed {
        process.put(tensor.tensor_impl, table);
        process.put(tensor.storage, table);
        process.put(tensor.storage + 8, 1);
        ends.push(fill(&torch, tensor));
    }
    let [.., two_sizes, in_use, text, addresses, storage_in_use, freed] = placed.as_slice() else { panic!() };
    let free = |tensor: &Placed, end: usize| {
        free_headers(&torch, tensor);
        free_elements(&torch, tensor, ends[end]);
    };
    free(freed, 7);
    // Each of the others has one thing that speaks against it.
    free(storage_in_use, 6);
    process.put(storage_in_use.storage, table);
    process.put(storage_in_use.storage + 8, 1);
    free(addresses, 5);
    process.put(addresses.base + 0x100, table);
    free(text, 4);
    process.write(text.base + 0x40, &b"the quick brown fox jumps over the lazy dog. ".repeat(100));
    free_headers(&torch, in_use);
    free(two_sizes, 2);
    process.put(two_sizes.storage + torch.numbers.at("storage.size_bytes"), two_sizes.logical.len() as u64 - 64);

    let recovery = recover(&dump(process));
    let [found] = recovery.processes.as_slice() else { panic!("{} processes", recovery.processes.len()) };
    let of_models = found.models.iter().flat_map(|model| &model.tensors);
    let all: Vec<&NamedTensor> = of_models.chain(found.standalone.found.iter().map(|found| &found.tensor)).collect();
    let at = |tensor: &Placed| {
        let header = tensor.tensor_impl;
        all.iter().find(|found| found.info.as_ref().is_some_and(|info| info.header.0 == header))
    };
    for live in &placed[..2] {
        assert_eq!(at(live).unwrap().status, Status::Complete);
        assert_eq!(at(live).unwrap().sha256.as_deref(), Some(sha256(&live.logical).as_str()));
    }
    let [hole] = &at(freed).unwrap().holes[..] else { panic!("{:?}", at(freed)) };
    assert_eq!((hole.start, hole.end, at(freed).unwrap().status), (0, 32, Status::Partial));
    assert!(hole.reason.contains("was overwritten by the allocator"), "{}", hole.reason);
    let mut without = freed.logical.clone();
    without[..32].fill(0);
    assert_eq!(at(freed).unwrap().sha256.as_deref(), Some(sha256(&without).as_str()));
    for (tensor, why) in [
        (storage_in_use, "its storage is in use"),
        (addresses, "its memory holds an address"),
        (text, "its memory holds text"),
        (in_use, "its memory is in use"),
        (two_sizes, "its storage has another size"),
    ] {
        assert!(at(tensor).is_none(), "{why}");
    }
    assert_eq!(found.headers.as_ref().unwrap().freed, 1);
}
