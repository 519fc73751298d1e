//! Reads of objects from memory that holds anything.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tensorcarve::addr::VirtAddr;
use tensorcarve::cpython::{self, Builtins, Objects, Value, attribute_str};
use tensorcarve::framework::{numpy, torch};
use tensorcarve::paging::{Fault, Gone, VirtualMemory};
use tensorcarve::tensor::{Elements, TooLarge, gather};

use super::alone;
use super::synthetic::SIGNATURES;

const PAGE: u64 = 0x1000;

/// The pages from address 0 on, and those at the very end of the address space.
#[derive(Debug)]
struct Memory {
    low: Vec<u8>,
    high: Vec<u8>,
}

impl VirtualMemory for Memory {
    fn bytes_at(&self, va: VirtAddr) -> Result<&[u8], Fault> {
        let fault = Fault::NotPresent { va, level: 1, entry: 0, cause: Gone::Untouched };
        let from_end = va.0.wrapping_sub((self.high.len() as u64).wrapping_neg());
        let (bytes, at) = if va.0 < self.low.len() as u64 { (&self.low, va.0) } else { (&self.high, from_end) };
        if at >= bytes.len() as u64 {
            return Err(fault);
        }
        // Page by page: neighbours lie elsewhere.
        let end = (at / PAGE + 1) * PAGE;
        Ok(&bytes[at as usize..end as usize])
    }
}

/// Words that lead on: addresses in the memory, small counts, flags, and the extremes.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..4 * PAGE / 8).prop_map(|slot| slot * 8),
        1 => 0..4 * PAGE,
        2 => 0..20u64,
        1 => (0..2 * PAGE).prop_map(|below| u64::MAX - below),
        // Type flags, with kinds of subclass.
        2 => any::<u64>().prop_map(|bits| bits & 0xffff_ffff | 0x0100_0000 << (bits >> 61)),
        1 => (0..64u32).prop_map(|bit| 1 << bit),
        1 => any::<u64>(),
    ]
}

fn bytes(pages: u64) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(word(), (pages * PAGE / 8) as usize)
        .prop_map(|words| words.into_iter().flat_map(u64::to_le_bytes).collect())
}

fn memory() -> impl Strategy<Value = Memory> {
    (bytes(4), bytes(1)).prop_map(|(low, high)| Memory { low, high })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 24 } else { 80 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn objects_are_read_or_refused(
        memory in memory(),
        places in prop::collection::vec(word(), 64),
        pick in any::<prop::sample::Index>(),
    ) {
        let _alone = alone();
        let layouts = cpython::layouts(&SIGNATURES).unwrap();
        let torch_layouts = torch::layouts(&SIGNATURES).unwrap();
        let array_layouts = numpy::array_layouts(&SIGNATURES).unwrap();
        for layout in &layouts {
            let objects = Objects::new(&memory, layout);
            let anywhere = places.iter().copied().map(VirtAddr);
            let builtins = Builtins { none: Some(VirtAddr(8)), float_type: places.first().copied().map(VirtAddr) };
            for at in anywhere {
                let _ = objects.type_of(at);
                let _ = objects.is_alive(at);
                let _ = objects.type_info(at);
                let _ = objects.type_name(at);
                let _ = objects.heap_type_name(at);
                let _ = objects.mro(at);
                let _ = objects.str(at);
                let _ = objects.float(at);
                let _ = objects.attributes(at);
                let _ = objects.str_dict(at);
                let _ = objects.set(at);
                let _ = objects.list(at);
                let _ = objects.tuple(at);
                if let Ok(Some(value)) = objects.int(at) {
                    prop_assert!(value.unsigned_abs() < 1 << 120);
                }
                let _ = attribute_str(&objects, at, "name");
                if let Some(value) = Value::read(&objects, &builtins, at) {
                    prop_assert!(serde_json::to_string(&value).is_ok());
                }
            }
        }
        let tensors: Vec<VirtAddr> = places.iter().copied().map(VirtAddr).collect();
        // Python's layout makes little difference to tensors: one for each case is enough.
        let objects = Objects::new(&memory, pick.get(&layouts));
        let sample = torch::Sample { tensors: &tensors, ..Default::default() };
        if let Some((chosen, best, _)) = torch::select_layout(&torch_layouts, objects.memory(), &sample) {
            prop_assert!(best.readable > 0 && best.readable <= best.tried);
            let read = tensors.iter().filter_map(|at| chosen.read(objects.memory(), *at).ok());
            for elements in read.filter_map(|info| info.elements()) {
                check_elements(&memory, &elements)?;
            }
        }
        if let Some(chosen) = numpy::select_layout(&array_layouts, &objects, &tensors, None) {
            prop_assert!(chosen.score.readable > 0 && chosen.score.readable <= chosen.score.tried);
            let read = tensors.iter().filter_map(|at| chosen.read(&objects, *at).ok());
            for elements in read.filter_map(|info| info.elements()) {
                check_elements(&memory, &elements)?;
            }
        }
    }
}

/// As many bytes are gathered as there are elements, or too many are refused; what is gathered lies in the span.
fn check_elements(memory: &dyn VirtualMemory, elements: &Elements) -> Result<(), TestCaseError> {
    let mut length = 0;
    let result = gather::<TooLarge>(memory, elements, 1 << 16, |bytes| {
        length += bytes.len() as u64;
        Ok(())
    });
    prop_assert!(result.is_err() || length == elements.byte_len());
    if let (Some((start, end)), Ok(holes)) = (elements.span(), result) {
        prop_assert!(holes.iter().all(|hole| start <= hole.address && hole.address < end));
    }
    Ok(())
}
