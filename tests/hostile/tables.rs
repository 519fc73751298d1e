//! Page tables that lead in circles, or to the same place a million times.

use tensorcarve::model::Status;

use super::synthetic::{Machine, Options, Process, Python, Random, Torch, dump, recover, sha256, torch};
use super::{alone, bounded, memory};

const TABLE: u64 = 0x67;

#[test]
fn tables_that_contain_themselves() {
    let _alone = alone();
    let mut random = Random(3);
    let dumps = [
        // One table whose entries all lead to itself, a root of any depth.
        ("one table", memory(1024, |frame, _| if frame == 5 { 0x5000 | TABLE } else { 0 })),
        // Every frame is one.
        ("all to themselves", memory(4096, |frame, _| frame << 12 | TABLE)),
        ("all to the same", memory(4096, |_, _| 0x5000 | TABLE)),
        ("all to the next", memory(4096, |frame, _| (frame % 4095 + 1) << 12 | TABLE)),
        ("all to all", memory(4096, |frame, index| ((frame * 512 + index) % 4095 + 1) << 12 | TABLE)),
        ("anywhere", memory(4096, |_, _| (random.below(4095) + 1) << 12 | TABLE)),
        // A root that holds itself in the upper half, as Windows has it.
        ("recursive", memory(1024, |frame, index| if frame > 3 && index == 493 { frame << 12 | TABLE } else { 0 })),
    ];
    for (name, dump) in &dumps {
        let recovery = bounded(name, || recover(dump));
        assert!(recovery.processes.is_empty(), "{name}");
    }
}

#[test]
fn thousands_of_roots_with_one_kernel_half() {
    let _alone = alone();
    // Frames 1 to 3 are the kernel's: a direct map of 1 GB. Frames 4 to 1023 are tables that lead to each other
    // and to no user page. All others are roots that lead there.
    let dump = memory(4096, |frame, index| match (frame, index) {
        (0, _) => 0,
        (1, 0) => 0x1e3,
        (1..=3, _) => 0,
        (4..1024, _) => ((frame * 512 + index) % 1020 + 4) << 12 | 0x63,
        (_, 256) => 0x1063,
        (_, 0..200) => ((frame + index * 7) % 1020 + 4) << 12 | TABLE,
        _ => 0,
    });
    bounded("many roots", || recover(&dump));
}

/// Frames full of headers that could be those of `type`, in an image with hundreds of spaces that map the page they name:
/// what is looked up is pages in spaces, not headers in spaces.
#[test]
fn headers_and_spaces_are_not_multiplied() {
    const NAMED: u64 = 0x10_0000;
    let _alone = alone();
    // Frame 1 is the kernel's, a direct map of 1 GB; frames 2 to 4 are tables that lead to frame 5, which is the page.
    let dump = memory(4096, |frame, index| match (frame, index) {
        (1, 0) => 0x1e3,
        (2, 0) => 0x3067,
        (3, 0) => 0x4067,
        (4, 0x100) => 0x5067,
        (0..6, _) => 0,
        (6..3496, _) => match index % 6 {
            0 => 1,
            1 => NAMED + index / 6 * 48,
            3 => NAMED,
            4 => 904,
            5 => 40,
            _ => 0,
        },
        (_, 0) => 0x2067,
        (_, 256) => 0x1063,
        _ => 0,
    });
    let recovery = bounded("headers in spaces", || recover(&dump));
    assert_eq!(recovery.discovery.spaces.len(), 600);
    assert!(recovery.processes.is_empty());
}

/// A table whose entries all are `entry`.
fn filled(machine: &mut Machine, entry: u64) -> u64 {
    let table = machine.frame();
    for index in 0..512 {
        machine.set(table + index * 8, entry);
    }
    table
}

/// Maps a frame that is full of pointers to `type` at 2^27 addresses, or at so few (50,000) that it could be real.
fn repeat(python: &Python, whole: bool) {
    let process = &python.process;
    let page = process.alloc_pages(4096);
    for at in (page..page + 4096).step_by(8) {
        process.put(at, python.builtin.type_);
    }
    let mut machine = process.machine.borrow_mut();
    let frame = machine.physical(process.space, page);
    let pages = filled(&mut machine, frame | TABLE | 1 << 63);
    let (level, count) = if whole { (3, 512) } else { (2, 100) };
    let target = if whole { filled(&mut machine, pages | TABLE) } else { pages };
    let slot = machine.user_slot(process.space, 0x1000_0000_0000, level);
    for index in 0..count {
        machine.set(slot + index * 8, target | TABLE);
    }
}

#[test]
fn a_frame_that_is_mapped_everywhere_costs_little_and_hides_no_one_else() {
    let _alone = alone();
    for whole in [true, false] {
        // Roots come in any order: the hostile process first, or last.
        for seed in 0..4 {
            let machine = Machine::new(Options { frames: 1024, seed, ..Options::default() });
            let bad = Torch::new(Python::new(Process::new(&machine), "3.11"), "2.6");
            bad.small_model("Bad", &[20]);
            repeat(&bad.python, whole);
            let good = Torch::new(Python::new(Process::new(&machine), "3.12"), "2.6");
            let (_, weight) = good.small_model("Good", &[30]);
            let dump = dump(&good.python.process);
            let recovery = bounded("a frame mapped everywhere", || recover(&dump));
            assert_eq!(recovery.processes.len(), if whole { 1 } else { 2 });
            let models: Vec<_> = recovery.processes.iter().flat_map(|process| &process.models).collect();
            let found = models.iter().find(|model| model.class.as_deref() == Some("__main__.Good"));
            let found = found.unwrap_or_else(|| panic!("whole {whole}, seed {seed}: {:?}", recovery.warnings));
            assert_eq!(found.tensors[0].sha256.as_deref(), Some(sha256(&weight.logical).as_str()));
        }
    }
}

#[test]
fn a_shadow_of_zeros_at_millions_of_addresses_does_no_harm() {
    let _alone = alone();
    // As KASAN maps its zero page, in the kernel half and in the user half; one level after the other.
    let torch = torch("3.13", "2.6", Options::default());
    let (_, weight) = torch.small_model("Net", &[30]);
    {
        let process = &torch.python.process;
        let mut machine = process.machine.borrow_mut();
        let zero = filled(&mut machine, 0);
        let pages = filled(&mut machine, zero | 0x63);
        let directory = filled(&mut machine, pages | 0x63);
        let pointers = filled(&mut machine, directory | 0x63);
        let roots = [machine.kernel_root, machine.root(process.space).0];
        for root in roots {
            for index in 472..=503 {
                machine.set(root + index * 8, pointers | 0x63);
            }
        }
    }
    let dump = dump(&torch.python.process);
    let recovery = bounded("shadow", || recover(&dump));
    let tensor = &recovery.processes[0].models[0].tensors[0];
    assert_eq!(tensor.status, Status::Complete);
    assert_eq!(tensor.sha256.as_deref(), Some(sha256(&weight.logical).as_str()));
}
