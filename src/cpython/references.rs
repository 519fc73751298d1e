//! How an object counts the references to it: what tells a live object from a freed one.

use serde::{Deserialize, Serialize};

use super::layout::Layout;

/// What the count of the others is higher by where only the garbage collector may free the object: classes, modules, functions
/// of free-threaded builds from 3.14 on (`_Py_REF_DEFERRED`, Include/internal/pycore_object.h, CPython 3.14.7).
const DEFERRED: i64 = i64::MAX / 8;
/// More references than anything has.
const MAX_COUNT: i64 = 2 * u32::MAX as i64;

/// Where the counts lie, in bytes from the slot of the object's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum References {
    /// One count.
    One(i64),
    /// In free-threaded builds those of the thread that owns the object (32 bits), and those of all others, above flags.
    Split {
        /// Of the owner.
        local: i64,
        /// Of the others.
        shared: i64,
        /// Bits of the flags below the count of the others.
        flags: i64,
    },
}

impl References {
    /// As a layout has them; `None` where it says neither.
    pub(super) fn of(layout: &Layout) -> Option<Self> {
        let from_type = |offset: i64| offset.checked_sub(layout.ob_type);
        match (layout.ob_refcnt, layout.ob_ref_local, layout.ob_ref_shared) {
            (Some(count), ..) => from_type(count).map(Self::One),
            (None, Some(local), Some(shared)) => {
                let (local, shared) = (from_type(local)?, from_type(shared)?);
                Some(Self::Split { local, shared, flags: layout.ref_shared_shift.unwrap_or_default() })
            }
            _ => None,
        }
    }

    /// One count, in the word before the slot.
    pub(super) const WORD_BEFORE: Self = Self::One(-8);

    /// Whether the counts are those of a live object; `word` reads the 64 bits at a distance in bytes from the slot.
    ///
    /// # Errors
    /// Those of `word`.
    pub(super) fn are_live<E>(self, word: impl Fn(i64) -> Result<u64, E>) -> Result<bool, E> {
        match self {
            Self::One(count) => word(count).map(is_live_count),
            Self::Split { local, shared, flags } => {
                let half = word(local & !7)?.checked_shr((local & 7) as u32 * u8::BITS).unwrap_or_default();
                let owned = i64::from(half as u32);
                let others = word(shared)?.cast_signed().checked_shr(flags as u32).unwrap_or_default();
                let is_deferred = others.saturating_sub(DEFERRED).saturating_abs() <= MAX_COUNT;
                Ok(is_deferred || (1..=MAX_COUNT).contains(&owned.saturating_add(others)))
            }
        }
    }
}

/// Whether a word is the reference count of a live object.
fn is_live_count(word: u64) -> bool {
    // The top 16 bits hold flags from 3.14 on. A freed object holds a pointer to the next one, or zero.
    (1..=u64::from(u32::MAX)).contains(&(word << 16 >> 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_count() {
        let is_live = |count: u64| References::One(-8).are_live(|at| if at == -8 { Ok(count) } else { Err(at) });
        for live in [1, 7, 0xffff_ffff, 0x8000_0000_0000_0001] {
            assert_eq!(is_live(live), Ok(true), "{live:#x}");
        }
        for freed in [0, 0x55_5555_5550, 0xdddd_dddd_dddd_dddd] {
            assert_eq!(is_live(freed), Ok(false), "{freed:#x}");
        }
    }

    #[test]
    fn counts_of_the_owner_and_of_the_others() {
        let references = References::Split { local: -12, shared: -8, flags: 2 };
        let is_live = |local: u32, shared: i64| {
            let words = [(-16, u64::from(local) << 32 | 0x0102), (-8, shared.cast_unsigned())];
            references.are_live(|at| words.iter().find(|(place, _)| *place == at).map(|(_, word)| *word).ok_or(at))
        };
        assert_eq!(is_live(1, 0), Ok(true));
        assert_eq!(is_live(0, 5 << 2 | 3), Ok(true));
        // The others gave up more references than they took: the owner has them.
        assert_eq!(is_live(3, -2 << 2), Ok(true));
        assert_eq!(is_live(u32::MAX, 0), Ok(true), "lives as long as the process");
        assert_eq!(is_live(1, DEFERRED << 2), Ok(true), "a class");
        assert_eq!(
            is_live(0, (DEFERRED - 3) << 2 | 3),
            Ok(true),
            "a class whose references threads count for themselves"
        );
        assert_eq!(is_live(0, 3), Ok(false), "merged and freed");
        assert_eq!(is_live(2, -2 << 2), Ok(false));
        assert_eq!(is_live(0, 0x5555_5555_5550), Ok(false), "a pointer");
    }
}
