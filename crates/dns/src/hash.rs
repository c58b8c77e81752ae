//! Hashing names, which every question does a few times.

use std::hash::BuildHasher;

/// Names are tenants' choice, so the hash depends on chance of this process; beyond that it is made to be fast on few bytes.
#[derive(Debug, Clone)]
pub(crate) struct NameHash {
    seed: u64,
}

impl NameHash {
    /// A hash that no other zone has.
    pub(crate) fn new() -> Self {
        Self { seed: base::random::bits() }
    }
}

impl Default for NameHash {
    fn default() -> Self {
        Self::new()
    }
}

impl BuildHasher for NameHash {
    type Hasher = NameHasher;

    fn build_hasher(&self) -> NameHasher {
        NameHasher { state: self.seed }
    }
}

/// See [`NameHash`].
#[derive(Debug)]
pub(crate) struct NameHasher {
    state: u64,
}

impl std::hash::Hasher for NameHasher {
    fn finish(&self) -> u64 {
        fold(self.state, 0x9e37_79b9_7f4a_7c15)
    }

    fn write(&mut self, bytes: &[u8]) {
        let (eights, rest) = bytes.as_chunks::<8>();
        for eight in eights {
            self.state = fold(self.state ^ u64::from_le_bytes(*eight), 0xa076_1d64_78bd_642f);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.state = fold(self.state ^ u64::from_le_bytes(last), 0xe703_7ed1_a0b4_28db);
    }

    fn write_usize(&mut self, number: usize) {
        // A slice's length, before its bytes.
        self.state ^= number as u64;
    }
}

fn fold(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    let halves = (product as u64, (product >> 64) as u64);
    halves.0 ^ halves.1
}
