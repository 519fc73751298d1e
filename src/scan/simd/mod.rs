//! Scanning with vectors: one algorithm, compiled once per instruction set, chosen at run time.

mod frames;
mod planes;
mod select;
mod slot_tests;
mod sweep;
mod type_slots;

use super::Hit;
use super::chunk::View;
use super::engine::{Engine, Plan};
use super::pointer_set::PointerSet;
use super::type_slots::{FrameSlots, TypeSlot};
use crate::addr::PhysAddr;
use frames::scan_frames;
use sweep::sweep;
use type_slots::type_slots;

/// An engine of the algorithm above for one instruction set.
macro_rules! engine {
    ($(#[$doc:meta])* $engine:ident, $vector:ty, $feature:tt, $detected:expr) => {
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
            fn has_vectors(&self) -> bool {
                true
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
                    unsafe { scan_frames::<$vector>(plan, range, frames, classes, hits) }
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

            fn type_slots(&self, slot: &TypeSlot, frames: View<'_>, found: &mut Vec<FrameSlots>) {
                #[target_feature(enable = $feature)]
                fn compiled(slot: &TypeSlot, frames: View<'_>, found: &mut Vec<FrameSlots>) {
                    // SAFETY: this function is only called where the feature is there.
                    unsafe { type_slots::<$vector>(slot, frames, found) }
                }
                // SAFETY: `detect`, the only constructor, has found the feature.
                unsafe { compiled(slot, frames, found) }
            }
        }
    };
}

#[cfg(target_arch = "aarch64")]
engine!(
    /// Four slots at a time.
    Neon, super::vector::Neon, "neon",
    // A slot is little-endian, the lanes are as the computer is.
    (cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("neon"))
);
#[cfg(target_arch = "x86_64")]
engine!(
    /// Four slots at a time.
    Avx2, std::arch::x86_64::__m256i, "avx2", std::is_x86_feature_detected!("avx2")
);
#[cfg(target_arch = "x86_64")]
engine!(
    /// Eight slots at a time.
    Avx512, std::arch::x86_64::__m512i, "avx512f,avx512bw",
    (std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw"))
);
