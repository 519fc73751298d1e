//! AMD memory encryption (SME, SEV): one address bit in a page-table entry marks the page as encrypted.
//!
//! The processor says which bit it is (CPUID 0x8000001f), but memory does not. Bits 47 and 51 are known, and it may be
//! any bit above the machine's addresses. So the entries decide: it is the high bit without which most possible entries
//! point into the dump, and with which they do not. Source: AMD APM vol. 2, 7.10 and 15.34.

use std::cmp::Reverse;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::roots::{Discovery, FIRST_ENCRYPTION_BIT, Pointers, discover};
use super::tables::table_entries;
use crate::addr::{FRAME_SIZE, PhysAddr, is_in};
use crate::diagnostic::{Code, Diagnostic};
use crate::dump::{PhysicalMemory, Question, ShardMemory, ShardPart};
use crate::scan::{Backend, FrameClasses, from_pairs, scan};
use crate::signature::{Mmu, Signatures};

/// Frames whose entries agree on a bit, at least, for it to be tried.
const MIN_FRAMES: usize = 4;
/// Page tables themselves are always encrypted, so all but one in this many pointers to tables must carry the bit. In a dump
/// that lacks the memory above a power of two, fewer do: there the bit is part of an address.
const FEW_PLAIN: usize = 16;
/// Bits that are tried, those with most frames first.
const MAX_TRIED: usize = 3;

/// Finds the address spaces in a dump, taking memory encryption into account.
///
/// `classes` are the result of a scan with the rules `mmu` of `signatures`. The returned classes are those by which the
/// spaces were found. `None` if the signatures have no rules of page tables.
pub fn find_spaces(
    memory: &PhysicalMemory,
    signatures: &Signatures,
    mmu: &Mmu,
    classes: FrameClasses,
    backend: Backend,
) -> (FrameClasses, Discovery) {
    let plain = discover(memory, mmu, &classes);
    let rank = |found: &Discovery| (found.self_mapped(), Reverse(found.pointers.outside));
    if !plain.may_be_encrypted() {
        return (classes, plain);
    }
    let plain_rank = rank(&plain);
    let read_without = |bit: u32| {
        let rules = mmu.without_address_bit(bit);
        let classes = scan(memory, &signatures.mmu_only().with_mmu(rules.clone()), backend, &|_| ()).frames;
        let mut found = discover(memory, &rules, &classes);
        found.encryption_bit = Some(bit);
        let message = format!(
            "page-table entries have bit {bit} set, which is not part of an address: the machine encrypts its memory \
             (AMD SME or SEV), so this bit is ignored"
        );
        found.warnings.push(Diagnostic::new(Code::EncryptedMemory, None, message));
        (rank(&found), classes, found)
    };
    let is_marked = |found: &Discovery| {
        let Pointers { inside, encrypted, .. } = found.pointers;
        inside.saturating_sub(encrypted).saturating_mul(FEW_PLAIN) <= inside
    };
    let tried = bits(memory, mmu).into_iter().map(read_without).filter(|(.., found)| is_marked(found));
    let best = tried.max_by_key(|(rank, ..)| *rank).filter(|(rank, ..)| *rank > plain_rank && rank.0 > 0);
    best.map_or((classes, plain), |(_, classes, found)| (classes, found))
}

/// How many frames of a part of a dump agree on each bit.
#[derive(Serialize, Deserialize)]
pub(crate) struct EncryptionVotes {
    mmu: Mmu,
    /// Start and end of all ranges of the dump.
    ranges: Vec<[u64; 2]>,
}

impl Question for EncryptionVotes {
    const NAME: &'static str = "votes for an encryption bit";
    type Answer = Vec<usize>;

    fn answer(self, ShardMemory { memory, .. }: &ShardMemory) -> Self::Answer {
        let ranges = from_pairs(&self.ranges);
        votes(memory, &self.mmu, &|address| is_in(&ranges, address)).to_vec()
    }
}

/// The possible encryption bits, most likely first.
fn bits(memory: &PhysicalMemory, mmu: &Mmu) -> Vec<u32> {
    let votes: Vec<usize> = match memory.remote() {
        None => votes(memory, mmu, &|address| memory.contains(address)).to_vec(),
        Some(remote) => {
            let ranges: Vec<[u64; 2]> = memory.ranges().iter().map(|range| [range.start.0, range.end.0]).collect();
            let question = |shard: &ShardPart| {
                Some((shard.ranges.clone(), EncryptionVotes { mmu: mmu.clone(), ranges: ranges.clone() }))
            };
            let answers = remote.ask(question, &|_| ());
            (0..64).map(|bit| answers.iter().filter_map(|(_, votes)| votes.get(bit)).sum()).collect()
        }
    };
    let mut bits: Vec<(usize, u32)> = votes.into_iter().zip(0..).filter(|(votes, _)| *votes >= MIN_FRAMES).collect();
    bits.sort_unstable_by_key(|(votes, bit)| (Reverse(*votes), *bit));
    bits.into_iter().take(MAX_TRIED).map(|(_, bit)| bit).collect()
}

/// How many frames of a memory agree on each bit; `holds` says whether the dump holds an address.
fn votes(memory: &PhysicalMemory, mmu: &Mmu, holds: &(impl Fn(PhysAddr) -> bool + Sync)) -> [usize; 64] {
    let of_range = |range: &crate::dump::MemoryRange| {
        let frames = PhysicalMemory::frames(range);
        (frames.start.0..frames.end.0).step_by(FRAME_SIZE as usize).collect::<Vec<_>>()
    };
    let frames: Vec<u64> = memory.ranges().iter().flat_map(of_range).collect();
    let of_frame = |frame: u64| agreed_bit(mmu, memory.bytes(PhysAddr(frame), FRAME_SIZE)?, holds);
    frames
        .into_par_iter()
        .fold(
            || [0usize; 64],
            |mut votes, frame| {
                count(&mut votes, of_frame(frame));
                votes
            },
        )
        .reduce(|| [0; 64], |a, b| std::array::from_fn(|bit| a.get(bit).unwrap_or(&0) + b.get(bit).unwrap_or(&0)))
}

fn count(votes: &mut [usize; 64], bit: Option<u32>) {
    if let Some(count) = bit.and_then(|bit| votes.get_mut(bit as usize)) {
        *count += 1;
    }
}

/// The bit without which most of what could be present entries of a frame lead into the dump.
fn agreed_bit(mmu: &Mmu, frame: &[u8], holds: &impl Fn(PhysAddr) -> bool) -> Option<u32> {
    let (mut present, mut votes) = (0usize, [0usize; 64]);
    for entry in table_entries(frame).filter(|entry| entry & mmu.present != 0) {
        present += 1;
        let address = entry & mmu.address;
        let bit = address.checked_ilog2().filter(|bit| *bit >= FIRST_ENCRYPTION_BIT);
        // The bit lies above all addresses of the machine, so it is the highest.
        let leads = |bit: &u32| {
            let without = PhysAddr(address & !(1 << bit));
            without.0 != 0 && holds(without) && !holds(PhysAddr(address))
        };
        count(&mut votes, bit.filter(leads));
    }
    let (most, bit) = votes.into_iter().zip(0..).max_by_key(|(votes, _)| *votes)?;
    (most > 0 && most * 2 > present).then_some(bit)
}
