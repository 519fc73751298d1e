//! A few signatures tested at once: some bits of each slot are compared, once for several signatures that differ in few bits.
//!
//! For half a dozen signatures that takes fewer instructions than a sieve. What is compared lets through too much, never too little:
//! every member is checked exactly where a test passes.

use std::fmt;

use super::filter::Filter;
use super::sample::{Sample, Window};

/// Signatures that are tested in this way.
const MAX_MEMBERS: usize = 8;
/// Comparisons of the value less its place, and of the value itself.
pub(super) const MAX_OWN: usize = 2;
pub(super) const MAX_PLAIN: usize = 4;
/// One in so many slots may pass.
const PASSES: usize = 256;

/// `v & mask == value`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits {
    pub(super) mask: u64,
    pub(super) value: u64,
}

impl Bits {
    fn new(mask: u64, value: u64) -> Self {
        Self { mask, value: value & mask }
    }

    /// What both ask for: it passes wherever one of them does.
    pub(super) fn common(self, other: Self) -> Self {
        Self::new(self.mask & other.mask & !(self.value ^ other.value), self.value)
    }

    pub(super) fn passes(self, value: u64) -> bool {
        value & self.mask == self.value
    }
}

/// The comparisons of a set of signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Few {
    /// What the signatures are called in the plan.
    pub(super) members: Vec<usize>,
    /// Comparisons of the value less its place in the frame.
    pub(super) own: Vec<Bits>,
    /// Comparisons of the value.
    pub(super) plain: Vec<Bits>,
}

impl Few {
    /// The comparisons for signatures that are each given away by such a test of a slot; `None` where a sieve is better.
    pub(super) fn new(filters: &[(usize, Filter)], sample: &Sample) -> Option<Self> {
        if filters.len() > MAX_MEMBERS {
            return None;
        }
        let (mut own, mut plain) = (Vec::new(), Vec::new());
        for (_, filter) in filters {
            match *filter {
                Filter::Masked { mask, value } => plain.push(Bits::new(mask, value)),
                Filter::MaskedRelative { mask, value } => own.push(Bits::new(mask, value)),
                Filter::Span(_) => return None,
            }
        }
        let members = filters.iter().map(|(member, _)| *member).collect();
        let few = Self { members, own: merged_bits(own, sample, distance), plain: merged_bits(plain, sample, value) };
        let passed = |window: &&Window| few.passes(window);
        let is_small = few.own.len() <= MAX_OWN && few.plain.len() <= MAX_PLAIN;
        (is_small && sample.windows.iter().filter(passed).count() * PASSES <= sample.windows.len()).then_some(few)
    }

    fn passes(&self, window: &Window) -> bool {
        let any = |all: &[Bits], read: fn(&Window) -> Option<u64>| {
            read(window).is_some_and(|value| all.iter().any(|bits| bits.passes(value)))
        };
        any(&self.own, distance) || any(&self.plain, value)
    }
}

impl fmt::Display for Few {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (members, own, plain) = (self.members.len(), self.own.len(), self.plain.len());
        write!(
            f,
            "{} comparisons of each slot for {members} signatures, {own} of them of its distance to its place",
            own + plain
        )
    }
}

fn value(window: &Window) -> Option<u64> {
    window.at(0)
}

fn distance(window: &Window) -> Option<u64> {
    Some(window.at(0)?.wrapping_sub(window.place as u64))
}

/// The same comparisons, but fewer, of what `read` gives.
fn merged_bits(all: Vec<Bits>, sample: &Sample, read: fn(&Window) -> Option<u64>) -> Vec<Bits> {
    let passing = |bits: Bits| sample.windows.iter().filter_map(read).filter(|value| bits.passes(*value)).count();
    merged(all, Bits::common, passing)
}

/// The same with pairs replaced by what they have in common, as long as that lets through no more of a sample than the worse of
/// them; `passing` counts what one lets through.
pub(super) fn merged<T: Copy>(mut all: Vec<T>, common: impl Fn(T, T) -> T, passing: impl Fn(T) -> usize) -> Vec<T> {
    let mut from = 0;
    while let Some(one) = all.get(from).copied() {
        let is_free = |other: T| passing(common(one, other)) <= passing(one).max(passing(other));
        match all.iter().skip(from + 1).position(|other| is_free(*other)) {
            Some(behind) => {
                let other = all.remove(from + 1 + behind);
                if let Some(place) = all.get_mut(from) {
                    *place = common(one, other);
                }
            }
            None => from += 1,
        }
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may simply fail")]
#[allow(clippy::single_range_in_vec_init, reason = "one physical range is meant")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dump::PhysicalMemory;
    use crate::scan::chunk::View;
    use crate::scan::engine::{Pass, Plan};
    use crate::scan::test_inputs::{FRAME, memory, random::Random};
    use crate::scan::{Backend, scalar};
    use crate::signature::Signatures;

    /// Signatures of one field: `own` with a pointer into themselves, `plain` with some bits.
    fn signatures(own: u64, plain: u64) -> Signatures {
        let structure = |name: String, test: String| {
            format!(
                "[[structure]]\nname = \"{name}\"\nanchor = \"a\"\n[[structure.field]]\nname = \"a\"\noffset = 8\nwidth = 8\n\
                 {test}\n"
            )
        };
        // Alternately far from each other and near.
        let own = (0..own).map(|n| {
            let test = format!("user_pointer = true\npage_offset_of_self = -{}", 8 + 1368 * (n / 2) + 16 * (n % 2));
            structure(format!("own{n}"), test)
        });
        let plain = (0..plain).map(|n| {
            let value = 0x1122_3344_5566_0000u64.rotate_left(16 * n as u32) ^ n << 1;
            structure(
                format!("plain{n}"),
                if n % 2 == 0 {
                    format!("equal = {value}")
                } else {
                    format!("mask = 0xffffffff\nvalue = {}", value as u32)
                },
            )
        });
        let text: String = own.chain(plain).collect();
        Signatures::from_texts([("few.toml", text.as_str())]).unwrap()
    }

    /// Memory with what they look for, and what nearly is that.
    fn memory_with(random: &mut Random) -> PhysicalMemory {
        let end = 16 * FRAME;
        let mut builder = memory::Builder::new(&[0x1010..end]);
        for at in (0..end).step_by(8) {
            let n = random.below(6);
            let plain = 0x1122_3344_5566_0000u64.rotate_left(16 * n as u32) ^ n << 1;
            let own = 0x7f00_0000_0000 | (at.wrapping_sub(8 + 1368 * (n / 2) + 16 * (n % 2) - 8) & 0xfff);
            let noise = [plain, own, plain ^ 1 << random.below(64), own ^ 1 << random.below(48), 0, random.next()];
            let word = if random.below(8) > 0 {
                [0, random.next()][random.below(2) as usize]
            } else {
                noise[random.below(6) as usize]
            };
            builder.words(at, &[word]);
        }
        builder.done()
    }

    /// A comparison for each.
    fn apart(signatures: &Signatures) -> Few {
        let mut few = Few { members: Vec::new(), own: Vec::new(), plain: Vec::new() };
        for (structure, member) in signatures.structures().iter().zip(0..) {
            match Filter::of_tests(&structure.anchor().tests) {
                Filter::Masked { mask, value } => few.plain.push(Bits::new(mask, value)),
                Filter::MaskedRelative { mask, value } => few.own.push(Bits::new(mask, value)),
                Filter::Span(_) => panic!("{}", structure.name),
            }
            few.members.push(member);
        }
        few
    }

    #[test]
    fn few_comparisons_find_what_is_there() {
        let (mut kinds, mut found, mut merged) = (BTreeSet::new(), BTreeSet::new(), false);
        for seed in 0..60 {
            let mut random = Random(seed);
            let (own, plain) = (seed % 4, seed / 4 % 5);
            if own + plain < 2 {
                continue;
            }
            let signatures = signatures(own, plain);
            let memory = memory_with(&mut random);
            let range = View { start: memory.ranges()[0].start, bytes: memory.range_bytes(&memory.ranges()[0]) };
            let frames = range.whole_frames();
            let plan = Plan::new(&signatures, &memory, Backend::Scalar.engine());
            let mut expected = Vec::new();
            frames.frames().for_each(|frame| scalar::match_view(&plan, range, frame, &mut expected));
            expected.sort_unstable();
            found.extend(expected.iter().map(|hit| signatures.name(hit.signature).unwrap().to_owned()));
            let apart = apart(&signatures);
            for backend in Backend::available().into_iter().skip(1) {
                let mut plan = Plan::new(&signatures, &memory, backend.engine());
                if let [Pass::Few(few)] = plan.passes.as_slice() {
                    merged |= *few != apart;
                }
                let planned = std::mem::take(&mut plan.passes);
                let is_small = apart.own.len() <= MAX_OWN && apart.plain.len() <= MAX_PLAIN;
                let by_hand = is_small.then(|| vec![Pass::Few(apart.clone())]);
                kinds.extend(is_small.then_some((apart.own.len(), apart.plain.len())));
                for passes in [planned].into_iter().chain(by_hand) {
                    plan.passes = passes;
                    let (mut hits, mut classes) = (Vec::new(), [0; 16]);
                    backend.engine().scan_frames(&plan, range, frames, &mut classes, &mut hits);
                    hits.sort_unstable();
                    assert!(hits == expected, "{backend}, seed {seed}: {} of {}", hits.len(), expected.len());
                }
            }
        }
        assert!(found.len() > 6 && merged, "{found:?}");
        // All with two signatures and more.
        assert!(kinds.len() == 12 || Backend::available().len() == 1, "{kinds:?}");
    }

    #[test]
    fn what_has_little_in_common_is_not_merged() {
        let sample = Sample::default();
        let two = [Bits::new(u64::MAX, 40), Bits::new(u64::MAX, 41)];
        assert_eq!(merged_bits(two.to_vec(), &sample, value), [Bits::new(!1, 40)]);
        // Without a sample nothing speaks against it; with one that has what both leave over, it stays as it is.
        let mut builder = memory::Builder::new(&[0x1000..0x9000]);
        builder.fill(|| 0);
        let sample = Sample::new(&builder.done());
        let zero_in_common = [Bits::new(u64::MAX, 1), Bits::new(u64::MAX, 2)];
        assert_eq!(merged_bits(zero_in_common.to_vec(), &sample, value), zero_in_common);
    }
}
