//! Addresses as types: physical, virtual, and offsets in the dump file.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Bytes in a page frame, and in the smallest page, on every architecture that we read.
pub const FRAME_SIZE: u64 = 4096;

/// Whether an address is in one of some ranges, which are sorted and do not overlap.
pub(crate) fn is_in(ranges: &[Range<PhysAddr>], address: PhysAddr) -> bool {
    let after = ranges.partition_point(|range| range.start <= address);
    ranges.get(..after).and_then(<[_]>::last).is_some_and(|range| address < range.end)
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// This address plus `bytes`, or `None` past the end of the 64-bit range.
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }

            /// The address of the 4 KiB frame or page that holds this one.
            pub fn frame(self) -> Self {
                Self(self.0 & !(FRAME_SIZE - 1))
            }

            /// The offset within its 4 KiB frame or page, in bytes.
            pub fn in_frame(self) -> u64 {
                self.0 & (FRAME_SIZE - 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:#x})", stringify!($name), self.0)
            }
        }

        // A string, because a JSON number does not hold 64 bits.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                let digits = text.strip_prefix("0x").ok_or_else(|| serde::de::Error::custom("no 0x"))?;
                u64::from_str_radix(digits, 16).map(Self).map_err(serde::de::Error::custom)
            }
        }
    };
}

address! {
    /// An address on the machine's memory bus, as page tables name it.
    PhysAddr
}
address! {
    /// An address as a program on that machine saw it; means something only within an address space.
    VirtAddr
}
address! {
    /// A position in the dump file, in bytes from its start.
    FileOffset
}

/// An address plus a signed offset; wraps, because what lies outside the space faults when read.
pub(crate) fn field(address: VirtAddr, offset: i64) -> VirtAddr {
    VirtAddr(address.0.wrapping_add_signed(offset))
}
