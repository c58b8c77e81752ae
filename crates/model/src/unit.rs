//! Units as types, so that MiB are never added to bytes nor percent to shares.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Mebibytes (2^20 bytes): memory, swap and disk sizes of packages and instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mib(pub u64);

impl Mib {
    /// The same size in bytes; saturates instead of wrapping.
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(1 << 20)
    }

    /// The whole mebibytes in `bytes`, rounded down.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes >> 20)
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A ceiling on CPU time, in percent of one core: 250 is two and a half cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuCap(pub u32);

/// Relative CPU weight under contention; 100 is one ordinary instance (Triton's FSS default).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuShares(pub u32);
