//! Which id range belongs to which zone: the lowest free one is given, and taken back when the zone is gone.
//!
//! Two ledgers may name one range: that of a removed zone may come back when power is lost, after its range was given to another. The
//! range is free again when both have given it back.

use std::collections::BTreeMap;

use host::zone::IdRange;

use crate::config::IdRanges;

/// The ranges in use.
#[derive(Debug)]
pub(crate) struct IdPool {
    ranges: IdRanges,
    /// How many hold each range, by its first id.
    taken: BTreeMap<u32, u32>,
}

impl IdPool {
    pub(crate) fn new(ranges: IdRanges, taken: impl IntoIterator<Item = IdRange>) -> Self {
        let mut pool = Self { ranges, taken: BTreeMap::new() };
        taken.into_iter().for_each(|range| pool.hold(range.first));
        pool
    }

    /// The lowest free range; `None` when all are taken.
    pub(crate) fn take(&mut self) -> Option<IdRange> {
        // Walks the taken ranges once: they are sorted, the first gap is the answer.
        let mut index = 0;
        for (first, _) in self.taken.range(self.ranges.first..) {
            if *first != self.at(index)? {
                break;
            }
            index += 1;
        }
        let first = self.at(index)?;
        self.hold(first);
        Some(IdRange { first, count: IdRange::COUNT })
    }

    pub(crate) fn give_back(&mut self, range: IdRange) {
        let Some(holders) = self.taken.get_mut(&range.first) else { return };
        *holders -= 1;
        if *holders == 0 {
            self.taken.remove(&range.first);
        }
    }

    fn hold(&mut self, first: u32) {
        *self.taken.entry(first).or_insert(0) += 1;
    }

    /// How many ranges there are in all.
    pub(crate) const fn size(&self) -> u32 {
        self.ranges.count
    }

    fn at(&self, index: u32) -> Option<u32> {
        if index >= self.ranges.count {
            return None;
        }
        self.ranges.first.checked_add(index.checked_mul(IdRange::COUNT)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_free_first() {
        let mut pool = IdPool::new(IdRanges { first: 1 << 20, count: 3 }, []);
        let ranges: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!(ranges.iter().map(|range| range.first).collect::<Vec<_>>(), [1 << 20, 0x11_0000, 0x12_0000]);
        assert_eq!(pool.take(), None);
        pool.give_back(ranges[1]);
        assert_eq!(pool.take(), Some(ranges[1]));
    }

    #[test]
    fn ranges_of_other_settings_are_not_given_twice() {
        let odd = IdRange { first: 0x11_0000, count: IdRange::COUNT };
        let mut pool = IdPool::new(IdRanges { first: 1 << 20, count: 3 }, [odd]);
        let given: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(given.len(), 2);
        assert!(!given.contains(&odd));
    }

    #[test]
    fn a_range_that_two_ledgers_name_is_free_when_both_are_gone() {
        let both = IdRange { first: 1 << 20, count: IdRange::COUNT };
        let mut pool = IdPool::new(IdRanges { first: 1 << 20, count: 2 }, [both, both]);
        pool.give_back(both);
        assert_ne!(pool.take(), Some(both), "the other one runs with it");
        pool.give_back(both);
        assert_eq!(pool.take(), Some(both));
    }

    #[test]
    fn the_default_stretch_ends_within_32_bits() {
        let ranges = IdRanges::default();
        let last = u64::from(ranges.first) + u64::from(ranges.count) * u64::from(IdRange::COUNT);
        assert!(last <= u64::from(u32::MAX));
    }
}
