//! Tensors: types, strides, views, devices, and what is left of them where memory is missing.

use tensorcarve::addr::VirtAddr;
use tensorcarve::diagnostic::Code;
use tensorcarve::model::{Model, Status};
use tensorcarve::recover::Recovery;
use tensorcarve::tensor::{TooLarge, gather};

use super::synthetic::{ModuleSpec, Options, PYTORCHES, Placed, Tensor, Torch, dump, recover, sha256, torch};
use super::{assert_headers, assert_whole, only_model, tensor};

/// Puts tensors into a model of one module, as buffers `t0`, `t1`, ….
fn hold(torch: &Torch, tensors: &[&Placed]) -> u64 {
    let names: Vec<String> = (0..tensors.len()).map(|i| format!("t{i}")).collect();
    let buffers = names.iter().map(String::as_str).zip(tensors.iter().map(|tensor| Some(*tensor))).collect();
    torch.module(torch.module_type("__main__", "Holder"), &ModuleSpec { buffers, ..ModuleSpec::default() })
}

/// Gathers a tensor's bytes once more and compares them with the truth: equal, or in a hole and zero.
fn assert_bytes(recovery: &Recovery, model: &Model, name: &str, truth: &Placed) {
    let process = &recovery.processes[0];
    let space = &process.space;
    let found = tensor(model, name);
    let mut bytes = Vec::new();
    let holes = gather::<TooLarge>(space, &found.info.as_ref().unwrap().elements().unwrap(), 1 << 30, |part| {
        bytes.extend_from_slice(part);
        Ok(())
    });
    assert_eq!(holes.as_ref(), Ok(&found.holes));
    assert_eq!(found.sha256.as_deref(), Some(sha256(&bytes).as_str()));
    let mut wanted = truth.logical.clone();
    for hole in &found.holes {
        wanted[hole.start as usize..hole.end as usize].fill(0);
    }
    // Of very many holes the first are listed, and the bytes of all are counted.
    let listed: u64 = found.holes.iter().map(|hole| hole.end - hole.start).sum();
    let wrong: Vec<u8> =
        bytes.iter().zip(&wanted).filter(|(byte, wanted)| byte != wanted).map(|(byte, _)| *byte).collect();
    assert!(wrong.iter().all(|byte| *byte == 0), "{name} has wrong bytes outside of its holes");
    assert!(wrong.len() as u64 <= found.holes.bytes - listed, "{name} lacks more bytes than its holes have");
}

#[test]
fn types_shapes_strides_and_views() {
    for pytorch in PYTORCHES {
        let torch = torch("3.11", pytorch, Options { frames: 2048, ..Options::default() });
        let new = Tensor::new;
        let specs = [
            new("Float", &[]),
            new("Double", &[7]).learned(),
            new("Half", &[3, 5, 7]),
            new("BFloat16", &[129]),
            new("Long", &[2, 2]),
            new("Int", &[1, 1, 1]),
            new("Short", &[9]),
            new("Char", &[17]),
            new("Byte", &[2, 3, 4, 5, 6]),
            new("Bool", &[11]),
            new("ComplexFloat", &[4]),
            new("ComplexDouble", &[4]),
            // Out of line from six dimensions on.
            new("Float", &[2, 1, 3, 2, 2, 2]),
            new("Float", &[1, 2, 1, 2, 1, 2, 1, 3]).strided(&[999, 1, 77, 2, 5, 4, 8, 8]),
            new("Float", &[0, 3]),
            new("Float", &[3, 0]).at_offset(2),
            // Transposed, channels last, every other, expanded, with an offset.
            new("Float", &[40, 50]).strided(&[1, 40]),
            new("Float", &[2, 3, 8, 8]).strided(&[192, 1, 24, 3]),
            new("Half", &[1500]).strided(&[2]).at_offset(3),
            new("Long", &[5, 6]).strided(&[0, 1]),
            new("Float", &[5, 6]).strided(&[1, 0]).at_offset(1),
            new("Float", &[64, 128]).strided(&[256, 1]).at_offset(100),
            Tensor { grad_fn: true, ..new("Float", &[3]) },
        ];
        let placed: Vec<Placed> = specs.iter().map(|spec| torch.tensor(spec)).collect();
        hold(&torch, &placed.iter().collect::<Vec<_>>());
        let recovery = recover(&dump(&torch.python.process));
        let model = only_model(&recovery);
        assert_eq!(recovery.processes[0].facts.torch.as_ref().unwrap().layout.as_ref().unwrap().0.version, pytorch);
        assert_eq!(model.tensors.len(), placed.len());
        for (found, truth) in model.tensors.iter().zip(&placed) {
            assert_whole(&torch, found, truth);
            assert_bytes(&recovery, model, &found.name, truth);
        }
    }
}

#[test]
fn views_and_tied_tensors_keep_their_storage() {
    let torch = torch("3.13", "2.6", Options::default());
    let whole = torch.tensor(&Tensor::f32(&[60, 60]));
    let row = torch.view(&Tensor::f32(&[60]).at_offset(120), &whole);
    let column = torch.view(&Tensor::f32(&[60]).strided(&[60]).at_offset(7), &whole);
    hold(&torch, &[&whole, &row, &column, &whole, &row]);
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    for (found, truth) in model.tensors.iter().zip([&whole, &row, &column, &whole, &row]) {
        assert_whole(&torch, found, truth);
    }
    let same: Vec<_> = model.tensors.iter().map(|tensor| tensor.same_as.as_deref()).collect();
    assert_eq!(same, [None, None, None, Some("t0"), Some("t1")]);
    let data = |index: usize| model.tensors[index].info.as_ref().unwrap().data;
    assert_eq!((data(0), data(1)), (VirtAddr(whole.base), VirtAddr(whole.base + 480)));
}

#[test]
fn other_devices_have_headers_only() {
    let torch = torch("3.12", "2.14", Options::default());
    let specs = [Tensor::f32(&[4, 4]).on("cuda", 1).learned(), Tensor::f32(&[4, 4]).on("meta", -1), Tensor::f32(&[2])];
    let placed = specs.map(|spec| torch.tensor(&spec));
    hold(&torch, &placed.iter().collect::<Vec<_>>());
    let recovery = recover(&dump(&torch.python.process));
    let model = only_model(&recovery);
    for (found, truth) in model.tensors.iter().zip(&placed) {
        assert_headers(&torch, found, truth);
    }
    let statuses: Vec<_> = model.tensors.iter().map(|tensor| (tensor.status, tensor.sha256.is_some())).collect();
    assert_eq!(statuses, [(Status::Device, false), (Status::Device, false), (Status::Complete, true)]);
    assert!(model.tensors[1].problem.as_ref().unwrap().message.contains("meta"));
}

#[test]
fn missing_pages_are_holes_at_the_right_place() {
    for cpython in ["3.10", "3.13"] {
        let torch = torch(cpython, "2.6", Options::default());
        let weight = torch.parameter(&[8, 1024]);
        let columns = torch.view(&Tensor::f32(&[1024, 8]).strided(&[1, 1024]), &weight);
        let last_row = torch.view(&Tensor::f32(&[1024]).at_offset(7 * 1024), &weight);
        let first = torch.view(&Tensor::f32(&[4]), &weight);
        hold(&torch, &[&weight, &columns, &last_row, &first]);
        let process = &torch.python.process;
        let page = weight.base & !0xfff;
        {
            let mut machine = process.machine.borrow_mut();
            // Two neighbours, then one that is swapped out, then one that never was.
            machine.lose(process.space, page + 0x2000);
            machine.lose(process.space, page + 0x3000);
            machine.swap_out(process.space, page + 0x4000, 0x1234_5678_0a00);
            machine.swap_out(process.space, page + 0x6000, 0);
        }
        let recovery = recover(&dump(process));
        let model = only_model(&recovery);
        let found = tensor(model, "t0");
        assert_eq!(found.status, Status::Partial);
        let holes: Vec<_> = found.holes.iter().map(|hole| (hole.start, hole.end, hole.address.0)).collect();
        let head = weight.base - page;
        assert_eq!(
            holes,
            [
                (0x2000 - head, 0x4000 - head, page + 0x2000),
                (0x4000 - head, 0x5000 - head, page + 0x4000),
                (0x6000 - head, 0x7000 - head, page + 0x6000),
            ]
        );
        assert!(found.holes[0].reason.contains("not in the dump"), "{:?}", found.holes);
        assert!(found.holes[1].reason.contains("0x123456780a00"), "{:?}", found.holes);
        for (name, truth, status, missing) in [
            ("t0", &weight, Status::Partial, 0x4000),
            ("t1", &columns, Status::Partial, 0x4000),
            // 0x40 bytes behind a page border on both ends.
            ("t2", &last_row, Status::Complete, 0),
            ("t3", &first, Status::Complete, 0),
        ] {
            let found = tensor(model, name);
            assert_headers(&torch, found, truth);
            assert_bytes(&recovery, model, name, truth);
            assert_eq!(found.status, status, "{name}");
            assert_eq!(found.holes.bytes, missing, "{name}");
        }
    }
}

#[test]
fn tensors_without_any_byte_or_header_are_missing() {
    let torch = torch("3.11", "1.13", Options::default());
    let process = &torch.python.process;
    let (gone, whole) = (torch.parameter(&[2048]), torch.parameter(&[16]));
    let headless: Vec<Placed> = (0..3).map(|_| torch.parameter(&[16])).collect();
    // Moves a header to a page of its own, which gets lost.
    let lose = |pointer: u64, size: u64| {
        let page = process.alloc_pages(size);
        process.write(page, &process.read(process.get(pointer), size));
        process.put(pointer, page);
        process.machine.borrow_mut().lose(process.space, page);
    };
    lose(headless[0].object + torch.numbers.at("thp.tensor_impl_pointer"), 256);
    lose(headless[1].tensor_impl + torch.numbers.at("tensor.storage_pointer"), 128);
    lose(headless[2].tensor_impl + torch.numbers.at("tensor.autograd_meta"), 256);
    for page in (gone.base & !0xfff..gone.base + 8192).step_by(0x1000) {
        process.machine.borrow_mut().lose(process.space, page);
    }
    hold(&torch, &[&gone, &whole, &headless[0], &headless[1], &headless[2]]);
    let recovery = recover(&dump(process));
    let model = only_model(&recovery);
    assert_headers(&torch, &model.tensors[0], &gone);
    assert_eq!(model.tensors[0].status, Status::Missing);
    assert_eq!((model.tensors[0].holes[0].start, model.tensors[0].holes[0].end), (0, 8192));
    assert_whole(&torch, &model.tensors[1], &whole);
    for found in &model.tensors[2..] {
        assert_eq!((found.status, &found.sha256), (Status::Missing, &None), "{found:?}");
        let problem = found.problem.as_ref().unwrap();
        assert!(found.info.is_none() && problem.code == Code::UnreadableTensor, "{found:?}");
        assert!(problem.address.is_some(), "{problem:?}");
    }
}
