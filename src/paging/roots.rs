//! Page-table roots, found from the frames themselves.
//!
//! 1. The scan says of every frame which level of table it could be, by its entries alone.
//! 2. From the lowest level up, a table stays only if (nearly) all tables that it points to stayed.
//! 3. What is left on the top level is clustered by the kernel half: all processes of a machine share it.
//! 4. A true root is mapped by its own kernel half, because the kernel writes to it (the direct map).
//!    This also tells 4-level from 5-level machines: read with the wrong number of levels, almost no
//!    root maps itself.
//! 5. The frame after a root that has the same user half is the table that page-table isolation
//!    (KPTI) loads in user mode.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::absent::hidden_levels;
use super::candidates::{Entries, entries_of_candidates};
use super::tables::{
    ENTRIES, PageTables, PresentEntries, UserTables, is_leaf, page_address, present_entries, table_entries,
};
use crate::addr::{FRAME_SIZE, PhysAddr};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::PhysicalMemory;
use crate::scan::{ABSENT_FRAME, FrameClasses, ZERO_FRAME};
use crate::signature::{KernelFacts, Mmu};

/// Clusters that are looked at per number of levels; the largest come first.
const MAX_CLUSTERS: usize = 64;
/// Tables that are read per frame of the dump, for all clusters of a number of levels together: the
/// tables of a kernel are frames of their own, those of a hostile dump may lead from any to all.
const TABLES_PER_FRAME: usize = 8;
/// Roots that map themselves, at least, where nothing is wrong: a machine runs some processes.
const MIN_ROOTS: usize = 3;
/// Of so many pointers to tables one may lead out of the dump where nothing is wrong.
const FEW: usize = 8;
/// The lowest bit of an address that memory encryption could use: all machines that can encrypt have addresses of at least
/// so many bits.
pub(super) const FIRST_ENCRYPTION_BIT: u32 = 32;
/// Tables whose pointers are counted.
const MAX_COUNTED: usize = 1 << 12;
/// One wrong pointer in this many entries is forgiven: a machine that is captured while it runs
/// frees tables and reuses their frames between the capture of a pointer and of its target.
const TOLERATED: u64 = 8;
/// Bit of no level.
const JUDGED: u8 = 0x80;
/// Numbers of levels that a root may have.
const DEPTHS: [u8; 2] = [4, 5];

/// What an address space was used for, as far as its tables tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpaceKind {
    /// The user half maps pages.
    Process,
    /// The kernel's own: no user half, and mapped by the kernel's image beside the direct map.
    Kernel,
    /// No user half: a root that was freed, or is not used yet.
    Stale,
}

/// An address space that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Physical address of the top table.
    pub root: PhysAddr,
    /// Levels of page tables.
    pub levels: u8,
    /// What it is.
    pub kind: SpaceKind,
    /// The top table that is loaded in user mode, where the kernel isolates its page tables.
    pub kpti_user_root: Option<PhysAddr>,
}

/// What root discovery found, with the figures by which it decided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discovery {
    /// The spaces, sorted by root.
    pub spaces: Vec<Space>,
    /// For each number of levels that was tried: candidates left after the fixed point, largest
    /// cluster, and the roots of it that map themselves.
    pub tried: Vec<Attempt>,
    /// The bit that page-table entries of encrypted memory have set; it is not part of an address.
    pub encryption_bit: Option<u32>,
    /// Whether the addresses of a file without headers are unknown: most pointers to tables point outside it.
    pub is_unplaced: bool,
    /// The targets of pointers to tables.
    pub pointers: Pointers,
    /// What an analyst should know about the result.
    pub warnings: Vec<Diagnostic>,
}

impl Discovery {
    /// Roots that map themselves, of the number of levels that has most of these.
    pub fn self_mapped(&self) -> usize {
        self.tried.iter().map(|tried| tried.self_mapped).max().unwrap_or_default()
    }

    /// Whether these seem to be all address spaces of a machine: roots map themselves, and hardly any pointer to a
    /// table points outside the dump.
    pub fn is_convincing(&self) -> bool {
        self.self_mapped() >= MIN_ROOTS && self.pointers.outside.saturating_mul(FEW) <= self.pointers.inside
    }

    /// Whether an entry that points outside the dump could have a bit that is not part of an address.
    pub(super) fn may_be_encrypted(&self) -> bool {
        self.self_mapped() < MIN_ROOTS || self.pointers.by_a_bit.saturating_mul(FEW) > self.pointers.inside
    }

    /// The rules for reading the page tables of this dump: those of the search, plus the encryption bit.
    pub fn rules(&self, mmu: &Mmu) -> Mmu {
        let rules = self.encryption_bit.map_or_else(|| mmu.clone(), |bit| mmu.without_address_bit(bit));
        let of_processes = self.spaces.iter().filter(|space| space.kind == SpaceKind::Process);
        let roots = of_processes.map(|space| (space.root, space.levels)).collect();
        Mmu { kernel: Some(KernelFacts { roots, ..KernelFacts::default() }), ..rules }
    }
}

/// Where the pointers in the tables of spaces lead, those to pages left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointers {
    /// To a frame of the dump.
    pub inside: usize,
    /// To one that the dump does not hold.
    pub outside: usize,
    /// Those of the latter that would lead to a frame of the dump without their highest bit, if that is a high one.
    pub by_a_bit: usize,
    /// Those to a frame of the dump that carry the bit of encrypted memory.
    pub encrypted: usize,
}

/// The figures of one number of levels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Levels of page tables.
    pub levels: u8,
    /// Top-level tables whose pointers lead to tables.
    pub candidates: usize,
    /// Those of them that share the most common kernel half.
    pub cluster: usize,
    /// Those of them that their own kernel half maps.
    pub self_mapped: usize,
}

/// Finds the address spaces in a dump.
pub fn discover(memory: &PhysicalMemory, mmu: &Mmu, classes: &FrameClasses) -> Discovery {
    let tables = Tables::fixed_point(memory, mmu, classes);
    let mut readings: Vec<Reading> = DEPTHS.iter().map(|&levels| Reading::new(&tables, levels)).collect();
    let tried = readings.iter().map(|reading| reading.attempt.clone()).collect();
    let mut discovery = Discovery { tried, ..Discovery::default() };
    let best = readings.iter().map(|reading| reading.attempt.self_mapped).max().unwrap_or_default();
    readings.retain(|reading| reading.attempt.self_mapped == best);
    let mut clusters: Vec<Cluster> = readings.into_iter().flat_map(|reading| reading.clusters).collect();
    if best == 0 {
        let Some(mut largest) = clusters.into_iter().max_by_key(|cluster| cluster.roots.len()) else {
            return discovery;
        };
        let message = format!(
            "no page-table root maps itself (part of memory may be missing): the {} roots with {} levels that share a \
             kernel half are used",
            largest.roots.len(),
            largest.levels
        );
        discovery.warnings.push(Diagnostic::new(Code::NoSelfMap, None, message));
        largest.self_mapped = largest.roots.iter().map(|root| (*root, 0)).collect();
        clusters = vec![largest];
    }
    let mut user_tables = HashMap::new();
    for cluster in &clusters {
        for &(root, mapped) in &cluster.self_mapped {
            discovery.spaces.push(tables.describe(root, cluster.levels, mapped, &mut user_tables));
        }
    }
    discovery.spaces.sort_by_key(|space| space.root);
    discovery.spaces.dedup_by_key(|space| space.root);
    let user_roots: HashSet<PhysAddr> = discovery.spaces.iter().filter_map(|space| space.kpti_user_root).collect();
    discovery.spaces.retain(|space| !user_roots.contains(&space.root));
    discovery.pointers = tables.pointers(&discovery.spaces);
    discovery
}

/// The physical memory that the kernel half of a space maps, as sorted ranges: all that the kernel knows as memory.
///
/// Gaps of up to `gap` bytes are closed.
pub(super) fn kernel_memory(memory: &PhysicalMemory, mmu: &Mmu, space: &Space, gap: u64) -> Vec<Range<u64>> {
    let tables = Tables { memory, mmu, by_level: HashMap::new(), hidden: Vec::new(), frames: 0 };
    let mut pages: Vec<Range<u64>> = Vec::new();
    let mut budget = (memory.size() / FRAME_SIZE) as usize;
    tables.kernel_pages(space.root, space.levels, &mut budget, |page| pages.push(page));
    pages.sort_unstable_by_key(|page| page.start);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if page.start <= last.end.saturating_add(gap) => last.end = last.end.max(page.end),
            _ => ranges.push(page),
        }
    }
    ranges
}

/// The addresses of a frame.
fn frame_of(frame: PhysAddr) -> Range<PhysAddr> {
    frame..PhysAddr(frame.0.saturating_add(FRAME_SIZE))
}

/// The tables of every level whose pointers all lead to tables of the level below.
struct Tables<'a> {
    memory: &'a PhysicalMemory,
    mmu: &'a Mmu,
    /// Per level, from level 2 on.
    by_level: HashMap<u8, HashSet<PhysAddr>>,
    /// For each frame by its position: the levels of which a frame without present entries could be a table all the same,
    /// because its entries name pages, and [`JUDGED`]; 0 until that is asked. Few such frames are.
    hidden: Vec<AtomicU8>,
    /// Frames in the dump.
    frames: usize,
}

/// What an entry that points to a table points to.
enum Target {
    Table,
    /// A frame in which no entry is present.
    Empty,
    /// Not in the dump: says nothing.
    Missing,
    Other,
}

impl<'a> Tables<'a> {
    fn fixed_point(memory: &'a PhysicalMemory, mmu: &'a Mmu, classes: &FrameClasses) -> Self {
        let hidden = (0..classes.len()).map(|_| AtomicU8::new(0)).collect();
        let mut tables = Self { memory, mmu, by_level: HashMap::new(), hidden, frames: classes.len() };
        let top = DEPTHS.into_iter().max().unwrap_or_default();
        let mask = (2..=top).fold(0, |mask, level| mask | 1 << (level - 1));
        let known = entries_of_candidates(memory, mmu, classes, mask, TOLERATED);
        for level in 2..=top {
            let mut frames: Vec<PhysAddr> = classes.with(1 << (level - 1)).map(|(frame, _)| frame).collect();
            let first = frames.iter().filter_map(|frame| known.get(*frame, level));
            tables.fetch_absent(classes, first.flat_map(Entries::targets));
            frames.retain(|frame| {
                known.get(*frame, level).is_none_or(|entries| tables.may_be_table(classes, entries, level))
            });
            memory.fetch(frames.iter().map(|frame| frame_of(*frame)));
            tables.fetch_absent(classes, frames.iter().flat_map(|frame| tables.pointers_of(*frame, level)));
            let kept = frames.into_par_iter().filter(|frame| tables.is_table(classes, *frame, level)).collect();
            tables.by_level.insert(level, kept);
        }
        tables.fetch_last_level();
        tables
    }

    /// Fetches the tables of the lowest level: all that follows reads most of them.
    fn fetch_last_level(&self) {
        if self.memory.remote().is_some() {
            let tables = self.by_level.get(&2).into_iter().flatten();
            self.memory.fetch(tables.flat_map(|table| self.pointers_of(*table, 2)).map(frame_of));
        }
    }

    /// Fetches those of some frames that have no present entries: what their other entries are, decides whether they could be tables.
    fn fetch_absent(&self, classes: &FrameClasses, frames: impl Iterator<Item = PhysAddr>) {
        if self.memory.remote().is_some() {
            let is_absent = |frame: &PhysAddr| classes.get(*frame).is_some_and(|class| class & ABSENT_FRAME != 0);
            self.memory.fetch(frames.filter(is_absent).map(frame_of));
        }
    }

    /// Where the pointers of a table of some level lead.
    fn pointers_of(&self, table: PhysAddr, level: u8) -> impl Iterator<Item = PhysAddr> {
        let entries = table_entries(self.memory.bytes(table, FRAME_SIZE).unwrap_or_default());
        let rules = self.mmu.level(level);
        let is_pointer = move |entry: &u64| {
            entry & self.mmu.present != 0 && rules.is_some_and(|rules| !is_leaf(self.mmu, rules, *entry))
        };
        entries.filter(is_pointer).map(|entry| PhysAddr(entry & self.mmu.address))
    }

    /// Whether a frame may be a table by what is known of its entries; `false` only where [`Tables::is_table`] is.
    fn may_be_table(&self, classes: &FrameClasses, entries: &Entries, level: u8) -> bool {
        let (mut tables, mut wrong) = (0, 0);
        for target in entries.targets() {
            match self.target(classes, target, level - 1) {
                Target::Table => tables += 1,
                Target::Empty | Target::Missing => {}
                Target::Other => wrong += 1,
            }
        }
        let is_useless = entries.is_all() && entries.pointers == entries.present && tables == 0;
        !is_useless && wrong <= entries.present / TOLERATED
    }

    fn is_table(&self, classes: &FrameClasses, frame: PhysAddr, level: u8) -> bool {
        let (Some(rules), Some(bytes)) = (self.mmu.level(level), self.memory.bytes(frame, FRAME_SIZE)) else {
            return false;
        };
        let (mut present, mut useful, mut wrong) = (0, 0, 0);
        for entry in table_entries(bytes).filter(|entry| entry & self.mmu.present != 0) {
            present += 1;
            if is_leaf(self.mmu, rules, entry) {
                useful += 1;
                continue;
            }
            match self.target(classes, PhysAddr(entry & self.mmu.address), level - 1) {
                Target::Table => useful += 1,
                Target::Empty | Target::Missing => {}
                Target::Other => wrong += 1,
            }
            // Most frames end here, after a few entries.
            if wrong > ENTRIES / TOLERATED {
                return false;
            }
        }
        useful > 0 && wrong <= present / TOLERATED
    }

    fn target(&self, classes: &FrameClasses, frame: PhysAddr, level: u8) -> Target {
        if frame.0 == 0 {
            return Target::Other;
        }
        let Some(class) = classes.get(frame) else { return Target::Missing };
        let stayed = match self.by_level.get(&level) {
            Some(tables) => tables.contains(&frame),
            None => class & (1 << (level - 1)) != 0,
        };
        let is_hidden = || self.hidden_levels(classes, frame) & (1 << (level - 1)) != 0;
        if stayed || class & ABSENT_FRAME != 0 && is_hidden() {
            Target::Table
        } else if class & (ZERO_FRAME | ABSENT_FRAME) != 0 {
            Target::Empty
        } else {
            Target::Other
        }
    }

    /// The levels of which a frame without present entries could be a table.
    fn hidden_levels(&self, classes: &FrameClasses, frame: PhysAddr) -> u8 {
        let Some(judged) = classes.position(frame).and_then(|position| self.hidden.get(position)) else { return 0 };
        let known = judged.load(Ordering::Relaxed);
        if known != 0 {
            return known;
        }
        let levels =
            self.memory.bytes(frame, FRAME_SIZE).map_or(0, |bytes| hidden_levels(self.memory, self.mmu, bytes));
        judged.store(levels | JUDGED, Ordering::Relaxed);
        levels
    }

    /// Where the pointers in the tables of these spaces lead. What a freed root leads to and is no table is left out.
    fn pointers(&self, spaces: &[Space]) -> Pointers {
        let mut counted = Pointers::default();
        // What the kernel's own root has beside the half that all share may be anything.
        let others = spaces.iter().rev().filter(|space| space.kind != SpaceKind::Kernel);
        let mut todo: Vec<(PhysAddr, u8)> = others.map(|space| (space.root, space.levels)).collect();
        let mut seen: HashSet<(PhysAddr, u8)> = todo.iter().copied().collect();
        for _ in 0..MAX_COUNTED {
            let Some((table, level)) = todo.pop() else { break };
            let (Some(rules), Some(bytes)) = (self.mmu.level(level), self.memory.bytes(table, FRAME_SIZE)) else {
                continue;
            };
            if self.by_level.get(&level).is_none_or(|tables| !tables.contains(&table)) {
                continue;
            }
            let present = table_entries(bytes).filter(|entry| entry & self.mmu.present != 0);
            for entry in present.filter(|entry| !is_leaf(self.mmu, rules, *entry)) {
                let address = entry & self.mmu.address;
                let next = (PhysAddr(address), level - 1);
                if self.memory.contains(next.0) {
                    counted.inside += 1;
                    counted.encrypted += usize::from(entry & self.mmu.encryption != 0);
                    if level > 2 && seen.insert(next) {
                        todo.push(next);
                    }
                } else {
                    counted.outside += 1;
                    let bit = address.checked_ilog2().filter(|bit| *bit >= FIRST_ENCRYPTION_BIT);
                    let without = bit.map_or(0, |bit| address & !(1 << bit));
                    counted.by_a_bit += usize::from(without != 0 && self.memory.contains(PhysAddr(without)));
                }
            }
        }
        counted
    }

    /// One half of a top table.
    fn half(&self, root: PhysAddr, kernel: bool) -> PresentEntries {
        let mut entries = present_entries(self.memory, self.mmu, root);
        entries.retain(|(index, _)| (*index >= ENTRIES / 2) == kernel);
        entries
    }

    fn describe(&self, root: PhysAddr, levels: u8, mapped: usize, user_tables: &mut UserTables) -> Space {
        let user_half = self.half(root, false);
        let twin = PhysAddr(root.0 + FRAME_SIZE);
        let is_twin = !user_half.is_empty()
            && self.half(twin, false) == user_half
            && self.half(twin, true).len() < self.half(root, true).len();
        let kind = if PageTables::new(self.memory, self.mmu, root, levels).has_user_page(user_tables) {
            SpaceKind::Process
        } else if mapped > 1 {
            SpaceKind::Kernel
        } else {
            SpaceKind::Stale
        };
        Space { root, levels, kind, kpti_user_root: is_twin.then_some(twin) }
    }

    /// Calls `visit` with the physical range of every page that the kernel half of `root` maps.
    ///
    /// `budget` bounds the number of tables that are read.
    fn kernel_pages(&self, root: PhysAddr, levels: u8, budget: &mut usize, mut visit: impl FnMut(Range<u64>)) {
        // Every table once: kernels map some (the zero shadow of KASAN) at millions of addresses.
        let mut seen: HashSet<(PhysAddr, u8)> =
            self.half(root, true).into_iter().map(|(_, table)| (PhysAddr(table), levels - 1)).collect();
        let mut todo: Vec<(PhysAddr, u8)> = seen.iter().copied().collect();
        todo.sort_unstable();
        while let Some((table, level)) = todo.pop() {
            let Some(rest) = budget.checked_sub(1) else { break };
            *budget = rest;
            let (Some(rules), Some(bytes)) = (self.mmu.level(level), self.memory.bytes(table, FRAME_SIZE)) else {
                continue;
            };
            for entry in table_entries(bytes).filter(|entry| entry & self.mmu.present != 0) {
                if is_leaf(self.mmu, rules, entry) {
                    let page = page_address(self.mmu, rules, entry);
                    visit(page..page + (1 << rules.shift));
                } else {
                    let next = (PhysAddr(entry & self.mmu.address), level - 1);
                    if seen.insert(next) {
                        todo.push(next);
                    }
                }
            }
        }
    }

    /// How often the kernel half of the first of `roots`, which are sorted, maps each of them.
    fn times_mapped(&self, roots: &[PhysAddr], levels: u8, budget: &mut usize) -> Vec<usize> {
        // The differences from each root to the next: a large page maps many in a row.
        let mut begun = vec![0usize; roots.len() + 1];
        let mut ended = begun.clone();
        if let Some(first) = roots.first() {
            self.kernel_pages(*first, levels, budget, |page| {
                let first = roots.partition_point(|root| root.0 < page.start);
                let end = roots.partition_point(|root| root.0 < page.end);
                begun.get_mut(first).into_iter().for_each(|count| *count += 1);
                ended.get_mut(end).into_iter().for_each(|count| *count += 1);
            });
        }
        let mut mapped = 0;
        let changes = begun.iter().zip(&ended).take(roots.len());
        changes
            .map(|(begun, ended)| {
                mapped = mapped + begun - ended;
                mapped
            })
            .collect()
    }
}

/// Roots that share a kernel half.
struct Cluster {
    levels: u8,
    roots: Vec<PhysAddr>,
    /// Roots that their kernel half maps, with the number of times that it does.
    self_mapped: Vec<(PhysAddr, usize)>,
}

/// The dump read with a number of levels.
struct Reading {
    attempt: Attempt,
    clusters: Vec<Cluster>,
}

impl Reading {
    fn new(tables: &Tables<'_>, levels: u8) -> Self {
        let mut by_half: HashMap<PresentEntries, Vec<PhysAddr>> = HashMap::new();
        let roots = tables.by_level.get(&levels);
        for &root in roots.into_iter().flatten() {
            let half = tables.half(root, true);
            if !half.is_empty() {
                by_half.entry(half).or_default().push(root);
            }
        }
        let mut groups: Vec<(PresentEntries, Vec<PhysAddr>)> = by_half.into_iter().collect();
        for (_, roots) in &mut groups {
            roots.sort_unstable();
        }
        groups.sort_by(|(_, a), (_, b)| b.len().cmp(&a.len()).then(a.cmp(b)));
        let mut clusters: Vec<(PresentEntries, Cluster)> = Vec::new();
        for (half, roots) in groups.into_iter().take(MAX_CLUSTERS) {
            // Kernel halves differ in an entry or two, where a process has its own (the LDT) or an
            // entry was added after the process began.
            match clusters.iter_mut().find(|(other, _)| alike(other, &half)) {
                Some((_, cluster)) => cluster.roots.extend(roots),
                None => clusters.push((half, Cluster { levels, roots, self_mapped: Vec::new() })),
            }
        }
        let mut clusters: Vec<Cluster> = clusters.into_iter().map(|(_, cluster)| cluster).collect();
        let mut budget = tables.frames.saturating_mul(TABLES_PER_FRAME);
        for cluster in &mut clusters {
            cluster.roots.sort_unstable();
            let times = tables.times_mapped(&cluster.roots, levels, &mut budget);
            let roots = cluster.roots.iter().copied().zip(times);
            cluster.self_mapped = roots.filter(|(_, mapped)| *mapped > 0).collect();
        }
        let best = clusters.iter().max_by_key(|cluster| (cluster.self_mapped.len(), cluster.roots.len()));
        let attempt = Attempt {
            levels,
            candidates: roots.map_or(0, HashSet::len),
            cluster: best.map_or(0, |cluster| cluster.roots.len()),
            self_mapped: best.map_or(0, |cluster| cluster.self_mapped.len()),
        };
        Self { attempt, clusters }
    }
}

/// Whether two kernel halves have more than half of the entries of either in common.
fn alike(a: &[(u64, u64)], b: &[(u64, u64)]) -> bool {
    let common = a.iter().filter(|entry| b.binary_search(entry).is_ok()).count();
    common * 2 > a.len().max(b.len())
}
