//! The first stage: one pass over memory, and the address spaces in it.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::CaseError;
use super::index::Kept;
use crate::addr::{FRAME_SIZE, FileOffset, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::{Dump, Format, MemoryRange, PhysicalMemory};
use crate::linux::{self, Machine};
use crate::paging::{self, AddressSpace, Discovery, Placement, SpaceKind};
use crate::progress::{Observer, Phase};
use crate::scan::{self, Backend, FrameClasses, Hit, Keep, Limits, ScanResult, ZERO_FRAME};
use crate::signature::{Mmu, Signatures};

/// The warning for a file without headers that can't be placed, and its hint.
const UNPLACED: &str = "more than half of the page tables' targets are outside the file: it was cut off, or written \
                        without the holes between memory ranges";
const UNPLACED_HINT: &str = "take the dump in LiME or ELF format, or with the holes as zeros";

/// The most hits that are kept in an index: a real dump has some thousands.
const MAX_KEPT_HITS: usize = 1 << 20;

/// The most hits of one signature in a frame that are looked at. No more than ten type objects fit in one, but what only looks
/// like one can be there more often: a dump of Linux 5.10 has frames with over 16 of them.
const MAX_HITS_PER_FRAME: usize = 64;

/// The most hits that are looked at. Each has 32 bytes.
const MAX_HITS: usize = 4_000_000;

/// Page tables and mappings of a space per frame of the dump, and at least, before it is taken for hostile.
const MAPPINGS_PER_FRAME: u64 = 4;
const MIN_MAPPINGS: u64 = 1 << 16;

/// What the one pass over a dump found, and the address spaces in it.
pub struct Spaces {
    /// The memory of the dump, with the addresses that are used; for a file without headers they were determined from
    /// page tables.
    pub memory: Arc<PhysicalMemory>,
    /// The rules by which its page tables are read.
    pub mmu: Arc<Mmu>,
    /// Where signatures matched.
    pub hits: Vec<Hit>,
    /// The address spaces of a machine, and how they were found.
    pub discovery: Discovery,
    /// Warnings for the analyst.
    pub warnings: Vec<Diagnostic>,
    /// Whether they are from the index, so that memory was not searched again.
    pub from_index: bool,
    /// Whether the dump is a process image.
    is_image: bool,
}

impl Spaces {
    /// Scans a dump and finds its address spaces.
    ///
    /// # Errors
    /// The signatures have no page-table rules, or the dump can no longer be read.
    pub fn find(
        dump: &Dump,
        signatures: &Signatures,
        backend: Backend,
        observer: &dyn Observer,
    ) -> Result<Self, CaseError> {
        let mmu = signatures.mmu().ok_or(CaseError::NoMmu)?;
        let is_image = is_image(dump);
        let found = if is_image {
            Found {
                found: one_pass(&dump.memory.searchable(), signatures, backend, observer),
                memory: dump.memory.clone(),
                discovery: Discovery::default(),
                warnings: Vec::new(),
            }
        } else {
            of_machine(dump, mmu, signatures, backend, observer)
        };
        let Found { memory, found, discovery, mut warnings } = found;
        if found.left_out > 0 {
            let message = format!(
                "{} signature matches are left out: a frame holds more than {MAX_HITS_PER_FRAME} of one signature, or the \
                 dump more than {MAX_HITS}",
                found.left_out
            );
            warnings.push(Diagnostic::new(Code::MatchesLeftOut, None, message));
        }
        memory.check()?;
        let mmu = Arc::new(discovery.rules(mmu));
        Ok(Self { memory: Arc::new(memory), mmu, hits: found.hits, discovery, warnings, from_index: false, is_image })
    }

    /// The same as the index keeps it; `None` if it is too much, as of a hostile dump.
    pub(super) fn to_kept(&self) -> Option<KeptSpaces> {
        let range = |range: &MemoryRange| (range.start, range.end, range.offset);
        (self.hits.len() <= MAX_KEPT_HITS).then(|| KeptSpaces {
            ranges: self.memory.ranges().iter().map(range).collect(),
            hits: self.hits.clone(),
            discovery: self.discovery.clone(),
            warnings: self.warnings.clone(),
        })
    }

    /// What the index has kept of a dump; `None` if it does not belong to it.
    pub(super) fn from_kept(kept: KeptSpaces, dump: &Dump, signatures: &Signatures) -> Option<Self> {
        let KeptSpaces { ranges, hits, discovery, warnings } = kept;
        let range = |(start, end, offset)| MemoryRange { start, end, offset };
        let ranges: Vec<MemoryRange> = ranges.into_iter().map(range).collect();
        let memory =
            if ranges == dump.memory.ranges() { dump.memory.clone() } else { dump.memory.with_ranges(ranges).ok()? };
        let mmu = Arc::new(discovery.rules(signatures.mmu()?));
        let memory = Arc::new(memory);
        Some(Self { memory, mmu, hits, discovery, warnings, from_index: true, is_image: is_image(dump) })
    }

    /// All address spaces, in the order of [`Discovery::spaces`]; the one of a process image.
    pub fn all(&self) -> Vec<AddressSpace> {
        self.of_kind(|_| true)
    }

    /// The address spaces without those that show the same user memory as one before, as copies of a page-table root do; and
    /// how many these are.
    pub(super) fn distinct(&self) -> (Vec<AddressSpace>, usize) {
        let mut all = self.all();
        let (mut known, count) = (HashSet::new(), all.len());
        all.retain(|space| {
            let half = space.user_half();
            half.is_empty() || known.insert(half)
        });
        let copies = count - all.len();
        (all, copies)
    }

    /// Page tables and mappings together that a space may have before it is taken for hostile.
    pub(super) fn mapping_limit(&self) -> u64 {
        let frames: u64 = self.memory.ranges().iter().map(|range| range.len() / FRAME_SIZE).sum();
        MAPPINGS_PER_FRAME * frames + MIN_MAPPINGS
    }

    /// The roots of the spaces that have the same user memory as the one with this root: that one first.
    pub fn roots_of_same_memory(&self, root: PhysAddr) -> Vec<PhysAddr> {
        let all = self.all();
        let half_of = |space: &AddressSpace| space.user_half();
        let wanted = all.iter().find(|space| space.root() == Some(root)).map(half_of).filter(|half| !half.is_empty());
        let same = all.iter().filter(|space| wanted.as_ref().is_some_and(|wanted| half_of(space) == *wanted));
        let others = same.filter_map(AddressSpace::root).filter(|other| *other != root);
        [root].into_iter().chain(others).collect()
    }

    /// The process whose memory an address space shows: of several roots with the same memory, the kernel knows one.
    pub fn process_of<'m>(&self, machine: &'m Machine, root: PhysAddr) -> Option<&'m linux::Process> {
        let same = || self.roots_of_same_memory(root).into_iter().find_map(|root| machine.process_of(root));
        machine.process_of(root).or_else(same)
    }

    /// Those of processes.
    pub fn of_processes(&self) -> Vec<AddressSpace> {
        self.of_kind(|kind| kind == SpaceKind::Process)
    }

    fn of_kind(&self, is_wanted: impl Fn(SpaceKind) -> bool) -> Vec<AddressSpace> {
        if self.is_image {
            return vec![AddressSpace::of_image(&self.memory)];
        }
        let wanted = self.discovery.spaces.iter().filter(|space| is_wanted(space.kind));
        wanted.map(|space| AddressSpace::new(&self.memory, &self.mmu, space.root, space.levels)).collect()
    }

    /// The hits of the signatures whose names are wanted, one by one: a hostile dump may hold a needle in every slot.
    pub fn hits_of(&self, signatures: &Signatures, is_wanted: fn(&str) -> bool) -> impl Iterator<Item = Hit> {
        self.hits.iter().copied().filter(move |hit| signatures.name(hit.signature).is_some_and(is_wanted))
    }
}

fn is_image(dump: &Dump) -> bool {
    dump.addresses.process().is_some()
}

/// [`Spaces`] as the index keeps them.
#[derive(Serialize, Deserialize)]
pub(super) struct KeptSpaces {
    /// Start, end, offset in the dump.
    ranges: Vec<(PhysAddr, PhysAddr, FileOffset)>,
    hits: Vec<Hit>,
    discovery: Discovery,
    warnings: Vec<Diagnostic>,
}

impl Kept for KeptSpaces {
    const NAME: &'static str = "spaces";
    const VERSION: u32 = 2;
}

/// What was found, while the addresses may still change.
struct Found {
    memory: PhysicalMemory,
    found: ScanResult,
    discovery: Discovery,
    warnings: Vec<Diagnostic>,
}

/// Examines the dump of a machine. For a file without headers, the addresses are determined first.
fn of_machine(dump: &Dump, mmu: &Mmu, signatures: &Signatures, backend: Backend, observer: &dyn Observer) -> Found {
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
        match paging::infer_ranges(&memory, signatures, backend, &discovery) {
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
                let unplaced = Diagnostic::new(Code::UnknownAddresses, None, UNPLACED.to_owned());
                warnings.push(Diagnostic { hint: Some(UNPLACED_HINT.to_owned()), ..unplaced });
            }
        }
    }
    warnings.extend(zeros(&memory, &found.frames));
    Found { memory, found, discovery, warnings }
}

/// The warning with the ranges of a file without headers.
fn placed_file(memory: &PhysicalMemory) -> Diagnostic {
    let ranges = memory.ranges().iter();
    let ranges: Vec<String> =
        ranges.map(|range| format!("{} to {} from file offset {} on", range.start, range.end, range.offset)).collect();
    let message = format!(
        "file offsets are not physical addresses, because the dump was written without the holes between memory \
         ranges; by its page tables the file holds {}; the rest is left out",
        ranges.join(", and ")
    );
    Diagnostic::new(Code::InferredAddresses, None, message)
}

/// The one pass over memory.
fn one_pass(memory: &PhysicalMemory, signatures: &Signatures, backend: Backend, observer: &dyn Observer) -> ScanResult {
    observer.begin(Phase::Scan, memory.size());
    let limits = Limits { per_frame: Some(MAX_HITS_PER_FRAME), total: Some(MAX_HITS) };
    scan::scan_within(memory, signatures, backend, limits, Keep::Memory, &|bytes| observer.advance(bytes))
}

/// A warning if most of the dump is one run of zeros, as after a capture that gave up.
fn zeros(memory: &PhysicalMemory, frames: &FrameClasses) -> Option<Diagnostic> {
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
        let message = format!(
            "{} to {} ({} of {} MiB) holds only zeros: either this memory was free, or the capture gave up (LiME \
             writes zeros when a page takes longer than its `timeout`; with `timeout=0` it waits)",
            longest.start,
            longest.end,
            len >> 20,
            memory.size() >> 20
        );
        Diagnostic::new(Code::ZeroMemory, Some(longest.start.into()), message)
    })
}
