//! Processes that have ended: what their freed pages still hold.

use tensorcarve::model::Status;

use super::owners::tensors;
use super::synthetic::{Options, Process, dump, recover, sha256, torch};

#[test]
fn tensors_of_an_ended_process_are_found_in_freed_memory() {
    let torch = torch("3.12", "2.6", Options { page_structs: true, ..Options::default() });
    let process = &torch.python.process;
    let placed = tensors(&torch, &[&[6, 3, 5, 5], &[6], &[16, 6, 5, 5], &[16], &[9, 1600], &[9]]);
    let code = process.words(&[0]);
    let table = process.words(&[code, code, code]);
    placed.iter().for_each(|tensor| process.put(tensor.tensor_impl, table));
    // The heap points to what lies apart from it, as large tensors do.
    (0..16).for_each(|_| process.put(process.alloc(0x1000), placed[4].base));
    // Another process lives: its pages tell where the kernel's array is.
    let other = Process::new(&process.machine);
    other.alloc_pages(0x2_0000);
    process.machine.borrow_mut().own(other.space);
    process.machine.borrow_mut().own(process.space);
    let living = recover(&dump(process));
    assert!(living.processes.iter().all(|process| !process.space.is_freed()));

    let mut machine = process.machine.borrow_mut();
    machine.end(process.space);
    // A page of a tensor was used again.
    let page = machine.physical(process.space, placed[4].base + 0x1000);
    machine.reuse(page);
    drop(machine);
    let recovery = recover(&dump(process));
    let [ended] = recovery.processes.as_slice() else { panic!("{} processes", recovery.processes.len()) };
    assert!(ended.space.is_freed() && ended.root().is_none() && ended.python.is_none());
    let of_models = ended.models.iter().flat_map(|model| &model.tensors);
    let others = ended.standalone.found.iter().map(|found| &found.tensor);
    let found: Vec<_> =
        of_models.chain(others).filter_map(|tensor| Some((tensor.info.as_ref()?.header.0, tensor))).collect();
    for (number, truth) in placed.iter().enumerate() {
        let (_, tensor) = found.iter().find(|(header, _)| *header == truth.tensor_impl).unwrap();
        if number == 4 {
            assert_eq!(tensor.status, Status::Partial);
            assert!(tensor.holes[0].reason.contains("is not in freed memory"), "{:?}", tensor.holes[0]);
        } else {
            assert_eq!(tensor.status, Status::Freed);
            assert_eq!(tensor.sha256.as_deref(), Some(sha256(&truth.logical).as_str()));
        }
    }
}
