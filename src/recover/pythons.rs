//! The Python interpreters of a dump: what every verb that looks at Python begins with.

use std::collections::BTreeSet;

use super::{Observer, Phase, RecoverError};
use crate::addr::{FRAME_SIZE, PhysAddr, VirtAddr};
use crate::cpython::{self, Candidate, Interpreter, Layout, Sweeper, UnsoundOffset};
use crate::dump::{Addresses, Dump, Format, PhysicalMemory};
use crate::other_pythons::{self, OtherPython};
use crate::paging::{self, AddressSpace, Discovery, Placement, SpaceKind};
use crate::scan::{self, Backend, FrameClasses, Hit, ScanResult, ZERO_FRAME};
use crate::signature::{Mmu, Signatures};

/// The signatures of CPython's `type` object, or what their names begin with, and of the cookie before what it tells.
const TYPE_SIGNATURE: &str = "cpython.type";
const DEBUG_OFFSETS: &str = "cpython.debug_offsets";
/// The signature of the name of a module that every PyPy has.
const PYPY_NAME: &str = "pypy.module_name";
/// Page tables and mappings of a space per frame of the dump, and at least, before it is taken for hostile.
const MAPPINGS_PER_FRAME: u64 = 4;
const MIN_MAPPINGS: u64 = 1 << 16;
/// What is wrong with a file without headers that can't be placed.
const UNPLACED: &str = "more than half of the page tables' targets lie outside of the file: it was written without the holes between the ranges of memory, or cut off; take it in LiME or ELF format, or with the holes as zeros";

/// A dump with its address spaces: the memory with the addresses that are used, and what the one pass found in it.
pub struct View {
    /// The memory: that of the dump, or with the ranges that its page tables tell.
    pub memory: PhysicalMemory,
    /// The address spaces, and how they were found.
    pub discovery: Discovery,
    /// What an analyst should know, in words.
    pub warnings: Vec<String>,
    /// The part of the memory in which objects can lie.
    searched: PhysicalMemory,
    mmu: Mmu,
    found: ScanResult,
    /// Whether the dump is the image of one process.
    is_image: bool,
}

/// The Pythons of a dump.
pub struct Pythons<'a> {
    /// The interpreters.
    pub interpreters: Vec<Interpreter<'a>>,
    /// Pythons that run and are not read.
    pub other_pythons: Vec<OtherPython>,
    /// The pages of the interpreters, for further sweeps.
    pub sweeper: Sweeper<'a>,
    /// What an analyst should know, in words.
    pub warnings: Vec<String>,
}

impl View {
    /// Scans a dump, and finds its address spaces.
    ///
    /// # Errors
    /// The signatures lack what the work needs, or the dump changed meanwhile.
    pub fn new(
        dump: &Dump,
        signatures: &Signatures,
        backend: Backend,
        observer: &dyn Observer,
    ) -> Result<Self, RecoverError> {
        let mmu = signatures.mmu().ok_or(RecoverError::NoMmu)?;
        signatures.index_of(TYPE_SIGNATURE).ok_or(RecoverError::NoTypeSignature)?;
        let is_image = dump.addresses.process().is_some();
        let (memory, found, discovery, warnings) = match &dump.addresses {
            Addresses::Physical => of_machine(dump, mmu, signatures, backend, observer),
            Addresses::Virtual(_) => {
                let found = one_pass(&dump.memory.searchable(), signatures, backend, observer);
                (dump.memory.clone(), found, Discovery::default(), Vec::new())
            }
        };
        memory.check()?;
        let (searched, mmu) = (memory.searchable(), discovery.rules(mmu));
        Ok(Self { memory, discovery, warnings, searched, mmu, found, is_image })
    }

    /// The interpreters in the address spaces, with the instances of the types that `wanted` picks, which is asked again
    /// when more types are known.
    ///
    /// # Errors
    /// A layout of CPython lacks a number, or the dump changed meanwhile.
    pub fn pythons<'a>(
        &'a self,
        signatures: &Signatures,
        backend: Backend,
        observer: &dyn Observer,
        wanted: impl Fn(&Interpreter<'a>) -> BTreeSet<VirtAddr> + Sync,
    ) -> Result<Pythons<'a>, RecoverError> {
        observer.begin(Phase::Cpython, 0);
        let layouts: Vec<Layout> = cpython::layouts(signatures)?;
        let (memory, discovery) = (&self.memory, &self.discovery);
        let mut warnings = Vec::new();
        let space = |root, levels| AddressSpace::new(memory, &self.mmu, root, levels);
        let spaces: Vec<AddressSpace<'_>> = match self.is_image {
            true => vec![AddressSpace::of_image(memory)],
            false => discovery.spaces.iter().map(|found| space(found.root, found.levels)).collect(),
        };
        let hits = |is_wanted: &dyn Fn(&str) -> bool| -> Vec<Hit> {
            let hits = self.found.hits.iter();
            hits.filter(|hit| signatures.name(hit.signature).is_some_and(is_wanted)).copied().collect()
        };
        let types = hits(&|name| name.starts_with(TYPE_SIGNATURE));
        let mut candidates = cpython::candidates(memory, &types, &spaces, &layouts);
        let limit = MAPPINGS_PER_FRAME * self.found.frames.len() as u64 + MIN_MAPPINGS;
        let mut other_pythons = other_pythons::python2(&mut candidates, signatures, limit);
        let of_processes = discovery.spaces.iter().zip(&spaces).filter(|(found, _)| found.kind == SpaceKind::Process);
        let process_spaces: Vec<AddressSpace<'_>> = match self.is_image {
            true => spaces.clone(),
            false => of_processes.map(|(_, space)| *space).collect(),
        };
        other_pythons.extend(other_pythons::pypys(&process_spaces, &hits(&|name| name == PYPY_NAME), limit));
        let (sweeper, left_out) = Sweeper::new(&self.searched, backend, &candidates, limit);
        for root in left_out.into_iter().filter_map(|index| candidates.get(index)?.space.root()) {
            warnings.push(format!("the page tables under {root} map more than the dump can hold: left out"));
        }
        let unsound = cpython::ask(&mut candidates, &hits(&|name| name == DEBUG_OFFSETS), &sweeper, signatures);
        let unsound = unsound.into_iter().filter_map(|(index, found)| Some((candidates.get(index)?, found)));
        warnings.extend(unsound.map(|(candidate, found)| unsound_offsets(candidate, &found)));
        let (interpreters, unread) = cpython::interpreters(&candidates, &layouts, &sweeper, wanted);
        let unreadable = unread.into_iter().filter_map(|index| candidates.get(index)).map(OtherPython::unreadable);
        // What looks like CPython in a process of PyPy is its imitation of CPython's C API.
        let unreadable: Vec<OtherPython> =
            unreadable.filter(|found| other_pythons.iter().all(|other| other.root != found.root)).collect();
        other_pythons.extend(unreadable);
        warnings.extend(other_pythons.iter().map(OtherPython::warning));
        memory.check()?;
        Ok(Pythons { interpreters, other_pythons, sweeper, warnings })
    }
}

/// Looks at the dump of a machine; where it is a file without headers, finds out the addresses first.
fn of_machine(
    dump: &Dump,
    mmu: &Mmu,
    signatures: &Signatures,
    backend: Backend,
    observer: &dyn Observer,
) -> (PhysicalMemory, ScanResult, Discovery, Vec<String>) {
    let look = |memory: &PhysicalMemory| {
        let mut found = one_pass(memory, signatures, backend, observer);
        observer.begin(Phase::Paging, 0);
        let classes = std::mem::take(&mut found.frames);
        let (classes, discovery) = paging::find_spaces(memory, signatures, mmu, classes, backend);
        found.frames = classes;
        (found, discovery)
    };
    let mut memory = dump.memory.clone();
    let mut warnings = Vec::new();
    let (mut found, mut discovery) = look(&memory);
    // What lies above a hole that ends at 4 GiB has bit 32 set, which looks like encryption: the better reading counts.
    if dump.format == Format::Raw && (discovery.encryption_bit.is_some() || !discovery.is_convincing()) {
        match paging::place(&memory, signatures, backend, &discovery) {
            Placement::AsItIs => {}
            Placement::Ranges(ranges) => {
                if let Ok(placed) = memory.with_ranges(ranges) {
                    memory = placed;
                    (found, discovery) = look(&memory);
                    warnings.push(placed_file(&memory));
                }
            }
            Placement::Unknown => {
                discovery.is_unplaced = true;
                warnings.push(UNPLACED.to_owned());
            }
        }
    }
    warnings.extend(zeros(&memory, &found.frames));
    (memory, found, discovery, warnings)
}

/// Says where the ranges of a file without headers lie.
fn placed_file(memory: &PhysicalMemory) -> String {
    let ranges = memory.ranges().iter();
    let ranges: Vec<String> =
        ranges.map(|range| format!("{} to {} from offset {} on", range.start, range.end, range.offset)).collect();
    format!(
        "offsets in the file are not physical addresses: memory was written without its holes; by its page tables the file holds {}; the rest is left out",
        ranges.join(", and ")
    )
}

/// The one pass over memory.
fn one_pass(memory: &PhysicalMemory, signatures: &Signatures, backend: Backend, observer: &dyn Observer) -> ScanResult {
    observer.begin(Phase::Scan, memory.size());
    scan::scan(memory, signatures, backend, &|bytes| observer.advance(bytes))
}

/// Says so if most of the dump is one run of zeros: a capture that gave up looks like that.
fn zeros(memory: &PhysicalMemory, frames: &FrameClasses) -> Option<String> {
    let mut longest = PhysAddr(0)..PhysAddr(0);
    let mut run = longest.clone();
    for (frame, _) in frames.with(ZERO_FRAME) {
        if frame != run.end {
            run.start = frame;
        }
        run.end = PhysAddr(frame.0 + FRAME_SIZE);
        if run.end.0 - run.start.0 > longest.end.0 - longest.start.0 {
            longest = run.clone();
        }
    }
    let len = longest.end.0 - longest.start.0;
    (len > memory.size() / 2).then(|| {
        format!(
            "{} to {} ({} of {} MiB) holds nothing but zeros: free memory, or a capture that gave up (LiME writes zeros when a page takes longer than its `timeout`; `timeout=0` waits)",
            longest.start,
            longest.end,
            len >> 20,
            memory.size() >> 20
        )
    })
}

/// Says that what an interpreter tells of itself contradicts itself.
fn unsound_offsets(candidate: &Candidate<'_>, (address, reason): &(VirtAddr, UnsoundOffset)) -> String {
    format!(
        "the CPython whose `type` is at {} is read without its own _Py_DebugOffsets at {address}: in them {reason}",
        candidate.type_object
    )
}
