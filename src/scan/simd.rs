//! Scanning with vectors: one algorithm, compiled once per instruction set, chosen at run time.

use std::ops::Range;

use super::Hit;
use super::chunk::View;
use super::engine::{Engine, FrameRules, Pass, Plan};
use super::filter::{Filter, Span};
use super::frames::ZERO_FRAME;
use super::pointer_set::{PointerSet, Search};
use super::scalar::{Scalar, match_structure};
use super::sieve::{self, Neighbour, Shape, Sieve};
use super::vector::{Vector, Work};
use crate::addr::{FRAME_SIZE, PhysAddr};

const FRAME: usize = FRAME_SIZE as usize;
/// The most vectors whose matches are looked at together.
const MAX_GROUP: usize = 8;
/// Bytes of a frame between two looks at whether it can still be a page table.
const BLOCK: usize = 512;

/// A sieve that needs no more digits of the value lets hardly anything through.
const FEW_DIGITS: usize = 3;
/// Neighbours of slots that are held against the tables before it is seen whether that left any.
const AT_ONCE: usize = 3;
/// Bytes of a cache line.
const LINE: usize = 64;
/// How far ahead memory is asked for. Operations that wait for a load fill the core's scheduler, so that it does not
/// look far ahead by itself where there are many for each load.
const AHEAD: usize = 2048;

/// A test of slots.
trait SlotTest<V: Vector>: Copy {
    /// What the test knows of the slots of a vector beside whether they pass.
    type Known: Copy;
    /// Vectors that are looked at together: most of the time none of them passes. More of them mean fewer branches, where
    /// a few slots of some frames always pass.
    const GROUP: usize = 4;

    /// The lanes that may be what is looked for.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, Self::Known);

    /// Calls `found` with the place of every slot in the vector at `place` of `bytes` that passes, and with what it
    /// could be as bits.
    ///
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`, and the vector lies in `bytes`.
    #[inline(always)]
    unsafe fn survivors(
        &self,
        passed: (V::Mask, Self::Known),
        _bytes: &[u8],
        place: usize,
        found: &mut impl FnMut(usize, u64),
    ) {
        // SAFETY: as for this function.
        let mut bits = unsafe { V::bits(passed.0) };
        while bits != 0 {
            found(place + bits.trailing_zeros() as usize * 8, u64::MAX);
            bits &= bits - 1;
        }
    }
}

/// Classifies whole frames, and matches what stands in them.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn scan_frames<V: Vector, const OWN: usize, const FEW: usize, const MANY: usize>(
    plan: &Plan<'_>,
    range: View<'_>,
    frames: View<'_>,
    classes: &mut [u8],
    hits: &mut Vec<Hit>,
) {
    // SAFETY: as for this function.
    unsafe {
        #[expect(clippy::manual_map, reason = "a closure may lack the instruction set")]
        let mut typing = match &plan.rules {
            Some(rules) => Some(Typing::<V>::new(rules)),
            None => None,
        };
        for pass in &plan.passes {
            let typing = typing.take();
            match pass {
                Pass::One(filter, index) => {
                    let found = &mut |frame: View<'_>, at: usize, _| plan.check(*index, range, frame, at, hits);
                    match *filter {
                        Filter::Masked { mask, value } => {
                            let test = MaskedTest { mask: V::splat(mask), value: V::splat(value) };
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                        Filter::MaskedOwn { mask, value, may_be_zero } => {
                            let masked = MaskedTest { mask: V::splat(mask), value: V::splat(value) };
                            let test = OwnTest { masked, zeros: V::splat(if may_be_zero { u64::MAX } else { 0 }) };
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                        Filter::Span(span) => {
                            V::isolate(Look { test: VectorSpan::new(span), typing, frames, classes, found });
                        }
                    }
                }
                Pass::Many(sieve) => {
                    let found = &mut |frame: View<'_>, at: usize, bits: u64| {
                        sieve.members(bits).for_each(|index| plan.check(index, range, frame, at, hits));
                    };
                    let (own, few) = (!sieve.own.is_empty(), sieve.value.len() <= FEW);
                    match (sieve.skips_zeros, own, few) {
                        (true, false, true) => {
                            let test = SieveTest::<V, true, 0, FEW>::new(sieve);
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                        (true, false, false) => {
                            let test = SieveTest::<V, true, 0, MANY>::new(sieve);
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                        (true, true, true) => {
                            let test = SieveTest::<V, true, OWN, FEW>::new(sieve);
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                        (true, true, false) => {
                            let test = SieveTest::<V, true, OWN, MANY>::new(sieve);
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                        (false, ..) => {
                            let test = SieveTest::<V, false, OWN, MANY>::new(sieve);
                            V::isolate(Look { test, typing, frames, classes, found });
                        }
                    }
                }
            }
        }
        if let Some(typing) = typing {
            V::isolate(Look { test: NoTest, typing: Some(typing), frames, classes, found: &mut |_, _, _| () });
        }
    }
    for (signature, structure) in &plan.loose {
        frames.frames().for_each(|frame| match_structure(structure, *signature, frame, hits));
    }
}

/// One look at all frames, which fills in their classes if `typing` is there.
struct Look<'a, V, T> {
    test: T,
    typing: Option<Typing<'a, V>>,
    frames: View<'a>,
    classes: &'a mut [u8],
    /// Gets the frame, the place in it, and bits that say what it could be.
    found: &'a mut dyn FnMut(View<'_>, usize, u64),
}

impl<V: Vector, T: SlotTest<V>> Work for Look<'_, V, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let starts = (0..).map(|n: u64| PhysAddr(self.frames.start.0 + n * FRAME_SIZE));
        let frames = self.frames.bytes.as_chunks::<FRAME>().0;
        for ((frame, class), start) in frames.iter().zip(self.classes).zip(starts) {
            let mut found = |at: usize, bits: u64| (self.found)(View { start, bytes: frame }, at, bits);
            // SAFETY: as for this function.
            unsafe {
                match self.typing {
                    Some(typing) => *class = look::<V, T>(&self.test, typing, frame, &mut found),
                    None => _ = select(frame, 0..FRAME, &self.test, &mut Unseen, &mut found),
                }
            }
        }
    }
}

/// Looks at a frame once: its class, as [`super::scalar::classify`] says, and the slots that pass the test.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn look<V: Vector, T: SlotTest<V>>(
    test: &T,
    typing: Typing<'_, V>,
    frame: &[u8; FRAME],
    found: &mut impl FnMut(usize, u64),
) -> u8 {
    // SAFETY: as for this function.
    unsafe {
        let mut table = Table { typing, seen: Seen(V::splat(0)), present: V::splat(0), leaves: V::splat(0) };
        let mut could_be_table = true;
        for start in (0..FRAME).step_by(BLOCK) {
            let block = start..start + BLOCK;
            if could_be_table {
                select(frame, block, test, &mut table, found);
                could_be_table = !table.present.has_any(typing.reserved);
            } else {
                select(frame, block, test, &mut table.seen, found);
            }
        }
        if !table.seen.0.has_any(table.seen.0) {
            return ZERO_FRAME;
        }
        typing.rules.class(table.present.fold(), table.leaves.fold())
    }
}

/// Sees all vectors on the way.
trait Watch<V: Vector> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    unsafe fn see(&mut self, v: V);
}

/// Watches nothing.
struct Unseen;

impl<V: Vector> Watch<V> for Unseen {
    #[inline(always)]
    unsafe fn see(&mut self, _v: V) {}
}

/// All vectors, or-ed.
struct Seen<V>(V);

impl<V: Vector> Watch<V> for Seen<V> {
    #[inline(always)]
    unsafe fn see(&mut self, v: V) {
        // SAFETY: as for this function.
        self.0 = unsafe { self.0.or(v) };
    }
}

/// What a page table is told by: its present entries, or-ed, and those of them with the leaf bit.
struct Table<'a, V> {
    typing: Typing<'a, V>,
    seen: Seen<V>,
    present: V,
    leaves: V,
}

impl<V: Vector> Watch<V> for Table<'_, V> {
    #[inline(always)]
    unsafe fn see(&mut self, v: V) {
        // SAFETY: as for this function.
        unsafe {
            self.seen.see(v);
            let present = v.keep(v.and(self.typing.present).equal(self.typing.present));
            self.present = self.present.or(present);
            self.leaves = self.leaves.or(present.keep(present.and(self.typing.leaf).equal(self.typing.leaf)));
        }
    }
}

/// The rules of page tables in every lane.
#[derive(Clone, Copy)]
struct Typing<'a, V> {
    rules: &'a FrameRules,
    present: V,
    leaf: V,
    reserved: V,
}

impl<'a, V: Vector> Typing<'a, V> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(rules: &'a FrameRules) -> Self {
        // SAFETY: as for this function.
        unsafe {
            Self {
                rules,
                present: V::splat(rules.present),
                leaf: V::splat(rules.leaf_bit),
                reserved: V::splat(rules.reserved),
            }
        }
    }
}

/// For scans that look for nothing but page tables.
#[derive(Clone, Copy)]
struct NoTest;

impl<V: Vector> SlotTest<V> for NoTest {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, _values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: as for this function.
        (unsafe { V::none() }, ())
    }
}

/// [`Filter::Masked`] in every lane.
#[derive(Clone, Copy)]
struct MaskedTest<V> {
    mask: V,
    value: V,
}

impl<V: Vector> SlotTest<V> for MaskedTest<V> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: as for this function.
        (unsafe { values.xor(self.value).lacks(self.mask) }, ())
    }
}

/// [`Filter::MaskedOwn`] in every lane.
#[derive(Clone, Copy)]
struct OwnTest<V> {
    masked: MaskedTest<V>,
    /// All bits where zeros may pass, else none: in a frame of zeros one slot would, and be checked.
    zeros: V,
}

impl<V: Vector> SlotTest<V> for OwnTest<V> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, ()) {
        // SAFETY: as for this function.
        unsafe {
            let passed = self.masked.test(values.sub(places), places).0;
            let seen = values.or(self.zeros);
            (V::both(passed, seen.has(seen)), ())
        }
    }
}

/// The tables of a [`Sieve`] in registers: `OWN` digits of the value less its place, `VALUE` of the value.
#[derive(Clone, Copy)]
struct SieveTest<'a, V: Vector, const SKIP_ZEROS: bool, const OWN: usize, const VALUE: usize> {
    own: [(V, V::Lookup); OWN],
    value: [(V, V::Lookup); VALUE],
    neighbours: &'a [Neighbour],
}

impl<'a, V: Vector, const SKIP_ZEROS: bool, const OWN: usize, const VALUE: usize>
    SieveTest<'a, V, SKIP_ZEROS, OWN, VALUE>
{
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(sieve: &'a Sieve) -> Self {
        let neighbours = &sieve.neighbours;
        // SAFETY: as for this function.
        unsafe { Self { own: digits::<V, OWN>(&sieve.own), value: digits::<V, VALUE>(&sieve.value), neighbours } }
    }
}

/// Shifts and tables in registers; tables that allow all where the sieve has fewer.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn digits<V: Vector, const N: usize>(digits: &[(u32, sieve::Table)]) -> [(V, V::Lookup); N] {
    // SAFETY: as for this function.
    unsafe {
        let mut registers = [(V::splat(0), V::lookup_table(&[u64::MAX; 16])); N];
        for (to, (shift, table)) in registers.iter_mut().zip(digits) {
            *to = (V::splat((*shift).into()), V::lookup_table(table));
        }
        registers
    }
}

impl<V: Vector, const SKIP_ZEROS: bool, const OWN: usize, const VALUE: usize> SlotTest<V>
    for SieveTest<'_, V, SKIP_ZEROS, OWN, VALUE>
{
    /// The entries that each slot could be.
    type Known = V;
    const GROUP: usize = if VALUE > FEW_DIGITS { V::SIEVE_GROUP } else { 4 };

    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, V) {
        // SAFETY: as for this function.
        unsafe {
            let mut left = V::splat(V::LOOKED_UP);
            for (shift, table) in &self.value {
                left = left.and(values.digit(*shift).look_up(*table));
            }
            if OWN > 0 {
                let own = values.sub(places);
                for (shift, table) in &self.own {
                    left = left.and(own.digit(*shift).look_up(*table));
                }
            }
            let passed = left.has(left);
            (if SKIP_ZEROS { V::both(passed, values.has(values)) } else { passed }, left)
        }
    }

    #[inline(always)]
    unsafe fn survivors(&self, passed: (V::Mask, V), bytes: &[u8], place: usize, found: &mut impl FnMut(usize, u64)) {
        // SAFETY: as for this function; neighbours are loaded where all of them lie in the bytes.
        unsafe {
            let mut left = passed.1.keep(passed.0);
            for neighbours in self.neighbours.chunks(AT_ONCE) {
                if !left.has_any(left) {
                    return;
                }
                for neighbour in neighbours {
                    // Where some lie in another frame, the exact check decides.
                    let at = place.wrapping_add_signed(neighbour.distance);
                    if at > bytes.len() - V::BYTES {
                        continue;
                    }
                    let beside = V::load(bytes.as_ptr().add(at));
                    let mut allowed = V::splat(neighbour.zero).or(V::splat(u64::MAX).keep(beside.has(beside)));
                    for (shift, table) in &neighbour.digits {
                        let digit = beside.digit(V::splat((*shift).into()));
                        allowed = allowed.and(digit.look_up(V::lookup_table(table)));
                    }
                    left = left.and(allowed);
                }
            }
            let mut bits = V::bits(left.has(left));
            let mut lanes = [0; 8];
            V::store(left, &mut lanes);
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize;
                found(place + lane * 8, lanes.get(lane).copied().unwrap_or_default());
                bits &= bits - 1;
            }
        }
    }
}

/// Calls `found` for every slot of `places` that passes `test`, as [`SlotTest::survivors`] does.
/// Bytes past the last whole group of vectors are not looked at; their number is returned.
///
/// Tests and watches are traits, not closures: only functions can be told to be inlined, and one that is not
/// would lack the instruction set.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn select<V: Vector, T: SlotTest<V>, W: Watch<V>>(
    bytes: &[u8],
    places: Range<usize>,
    test: &T,
    watch: &mut W,
    found: &mut impl FnMut(usize, u64),
) -> usize {
    let looked_at = bytes.get(places.clone()).unwrap_or_default();
    let groups = looked_at.chunks_exact(T::GROUP * V::BYTES);
    let rest = groups.remainder().len();
    // SAFETY: as for this function; a group holds `T::GROUP` vectors, at most `MAX_GROUP`.
    unsafe {
        let step = V::splat(V::BYTES as u64);
        let mut slots = V::slots().add(V::splat(places.start as u64));
        for (group, start) in groups.zip((places.start..).step_by(T::GROUP * V::BYTES)) {
            // The first vector only fills the array, to be tested in its turn.
            let mut tested = [test.test(V::splat(0), slots); MAX_GROUP];
            let mut any = V::none();
            for (n, tested) in tested.iter_mut().enumerate().take(T::GROUP) {
                let vector = group.as_ptr().add(n * V::BYTES);
                let v = V::load(vector);
                if n * V::BYTES % LINE == 0 {
                    V::prefetch(vector.wrapping_add(AHEAD));
                }
                watch.see(v);
                *tested = test.test(v, slots);
                any = V::either(any, tested.0);
                slots = slots.add(step);
            }
            if V::any(any) {
                for (passed, place) in tested.into_iter().take(T::GROUP).zip((start..).step_by(V::BYTES)) {
                    if V::any(passed.0) {
                        test.survivors(passed, bytes, place, found);
                    }
                }
            }
        }
    }
    rest
}

/// A [`Span`] in every lane.
#[derive(Clone, Copy)]
struct VectorSpan<V> {
    right: V,
    left: V,
    low: V,
    bound: V,
}

impl<V: Vector> VectorSpan<V> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(span: Span) -> Self {
        // SAFETY: as for this function.
        unsafe {
            Self {
                right: V::splat(span.rotate.into()),
                left: V::splat(u64::from(64 - span.rotate)),
                // Subtracting the bias is adding it, modulo 2^64.
                low: V::splat(span.low.wrapping_add(V::BIAS)),
                bound: V::splat(span.span.wrapping_add(V::BIAS)),
            }
        }
    }
}

impl<V: Vector> SlotTest<V> for VectorSpan<V> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: as for this function.
        (unsafe { values.rotate(self.right, self.left).sub(self.low).at_most(self.bound) }, ())
    }
}

/// Adds every slot whose value is in the set.
///
/// # Safety
///
/// The CPU has the instruction set of `V`.
#[inline(always)]
unsafe fn sweep<V: Vector>(values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
    let (bytes, all) = (slots.bytes, 0..slots.bytes.len());
    let value_at = |at: usize| bytes.get(at..).and_then(<[u8]>::first_chunk).map(|b| u64::from_le_bytes(*b));
    let mut survivor = |at: usize, _| {
        if let Some(value) = value_at(at)
            && values.contains_quick(value)
        {
            found.push((PhysAddr(slots.start.0 + at as u64), value));
        }
    };
    // SAFETY: as for this function.
    let rest = unsafe {
        match values.search() {
            Search::Few1(values) => select(bytes, all, &EqualTest::<V, 1>::new(values), &mut Unseen, &mut survivor),
            Search::Few2(values) => select(bytes, all, &EqualTest::<V, 2>::new(values), &mut Unseen, &mut survivor),
            Search::Few4(values) => select(bytes, all, &EqualTest::<V, 4>::new(values), &mut Unseen, &mut survivor),
            Search::Few8(values) => select(bytes, all, &EqualTest::<V, 8>::new(values), &mut Unseen, &mut survivor),
            Search::Spans1(spans) => select(bytes, all, &SpansTest::<V, 1>::new(spans), &mut Unseen, &mut survivor),
            Search::Spans4(spans) => select(bytes, all, &SpansTest::<V, 4>::new(spans), &mut Unseen, &mut survivor),
        }
    };
    let tail = PhysAddr(slots.end().0 - rest as u64)..slots.end();
    Scalar.sweep(values, slots.part(tail), found);
}

/// Equal to one of a few values.
#[derive(Clone, Copy)]
struct EqualTest<V, const N: usize>([V; N]);

impl<V: Vector, const N: usize> EqualTest<V, N> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(values: &[u64; N]) -> Self {
        // SAFETY: as for this function.
        unsafe {
            let mut registers = [V::splat(0); N];
            for (to, value) in registers.iter_mut().zip(values) {
                *to = V::splat(*value);
            }
            Self(registers)
        }
    }
}

impl<V: Vector, const N: usize> SlotTest<V> for EqualTest<V, N> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, _places: V) -> (V::Mask, ()) {
        // SAFETY: as for this function.
        unsafe {
            let mut mask = V::none();
            for value in &self.0 {
                mask = V::either(mask, values.equal(*value));
            }
            (mask, ())
        }
    }
}

/// In one of a few spans.
#[derive(Clone, Copy)]
struct SpansTest<V, const N: usize>([VectorSpan<V>; N]);

impl<V: Vector, const N: usize> SpansTest<V, N> {
    /// # Safety
    ///
    /// The CPU has the instruction set of `V`.
    #[inline(always)]
    unsafe fn new(spans: &[Span; N]) -> Self {
        // SAFETY: as for this function.
        unsafe {
            let mut registers = [VectorSpan::new(Span::new(0, 0, 0)); N];
            for (to, span) in registers.iter_mut().zip(spans) {
                *to = VectorSpan::new(*span);
            }
            Self(registers)
        }
    }
}

impl<V: Vector, const N: usize> SlotTest<V> for SpansTest<V, N> {
    type Known = ();

    #[inline(always)]
    unsafe fn test(&self, values: V, places: V) -> (V::Mask, ()) {
        // SAFETY: as for this function.
        unsafe {
            let mut mask = V::none();
            for span in &self.0 {
                mask = V::either(mask, span.test(values, places).0);
            }
            (mask, ())
        }
    }
}

/// An engine of the algorithm above for one instruction set.
macro_rules! engine {
    ($(#[$doc:meta])* $engine:ident, $vector:ty, $feature:tt, $detected:expr, $shape:expr) => {
        $(#[$doc])*
        pub(super) struct $engine(());

        impl $engine {
            /// The engine, where the CPU has the instruction set.
            pub(super) fn detect() -> Option<&'static dyn Engine> {
                static ENGINE: $engine = $engine(());
                $detected.then_some(&ENGINE)
            }
        }

        impl Engine for $engine {
            fn shape(&self) -> Option<Shape> {
                Some($shape)
            }

            fn scan_frames(
                &self,
                plan: &Plan<'_>,
                range: View<'_>,
                frames: View<'_>,
                classes: &mut [u8],
                hits: &mut Vec<Hit>,
            ) {
                #[target_feature(enable = $feature)]
                fn compiled(
                    plan: &Plan<'_>,
                    range: View<'_>,
                    frames: View<'_>,
                    classes: &mut [u8],
                    hits: &mut Vec<Hit>,
                ) {
                    // SAFETY: this function is only called where the feature is there.
                    unsafe {
                        const SHAPE: Shape = $shape;
                        const { assert!(SHAPE.entries <= 64) };
                        scan_frames::<$vector, { SHAPE.own }, { SHAPE.few }, { SHAPE.many }>(
                            plan, range, frames, classes, hits,
                        )
                    }
                }
                // SAFETY: `detect`, the only constructor, has found the feature.
                unsafe { compiled(plan, range, frames, classes, hits) }
            }

            fn sweep(&self, values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
                #[target_feature(enable = $feature)]
                fn compiled(values: &PointerSet, slots: View<'_>, found: &mut Vec<(PhysAddr, u64)>) {
                    // SAFETY: this function is only called where the feature is there.
                    unsafe { sweep::<$vector>(values, slots, found) }
                }
                // SAFETY: `detect`, the only constructor, has found the feature.
                unsafe { compiled(values, slots, found) }
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
engine!(
    /// Four slots at a time.
    Neon, super::vector::Neon, "neon",
    // A slot is little-endian, the lanes are as the computer is.
    (cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon")),
    // Eight entries of 32 bits in two registers.
    Shape { digit_bits: 3, entries: 32, own: 4, few: 3, many: 6 }
);
#[cfg(target_arch = "x86_64")]
engine!(
    /// Four slots at a time.
    Avx2, std::arch::x86_64::__m256i, "avx2", std::is_x86_feature_detected!("avx2"),
    // Eight entries of 32 bits in a register.
    Shape { digit_bits: 3, entries: 32, own: 4, few: 3, many: 6 }
);
#[cfg(target_arch = "x86_64")]
engine!(
    /// Eight slots at a time.
    Avx512, std::arch::x86_64::__m512i, "avx512f", std::is_x86_feature_detected!("avx512f"),
    // Sixteen entries of 64 bits in two registers.
    Shape { digit_bits: 4, entries: 64, own: 3, few: 2, many: 4 }
);
