//! The store's revisions and etcd's own.
//!
//! A store that was kept elsewhere before has had revisions already, and they never fall. So every revision of etcd has a number added to it, the
//! *base*, which is kept in etcd itself beside the records and does not change while the store is in use.

use store::Revision;

/// What is added to etcd's revisions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Base(pub(crate) u64);

impl Base {
    /// The store's revision of one of etcd's, which are signed and never negative.
    pub(crate) fn up(self, revision: i64) -> Revision {
        Revision(self.0.saturating_add(u64::try_from(revision).unwrap_or(0)))
    }

    /// etcd's revision of one of the store's; `None` when it is from before.
    pub(crate) fn down(self, revision: Revision) -> Option<i64> {
        // One that etcd cannot have, a provisional one say, is none that a key has.
        revision.0.checked_sub(self.0).map(|own| i64::try_from(own).unwrap_or(i64::MAX))
    }

    /// What a key's revision must be equal to, to be at `revision`.
    pub(crate) fn expected(self, revision: Revision) -> i64 {
        // No key is at a negative one; 0 would be a key that does not exist.
        self.down(revision).filter(|own| *own > 0).unwrap_or(-1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_same_but_for_the_base() {
        let base = Base(1_000);
        assert_eq!(base.up(7), Revision(1_007));
        assert_eq!((base.down(Revision(1_007)), base.expected(Revision(1_007))), (Some(7), 7));
        assert_eq!((base.down(Revision(1_000)), base.expected(Revision(1_000))), (Some(0), -1));
        assert_eq!((base.down(Revision(999)), base.expected(Revision(999))), (None, -1), "from before");
        assert!(base.expected(Revision(1 << 63 | 5)) > i64::MAX / 2, "provisional");
        assert_eq!(Base(0).expected(Revision(3)), 3);
    }
}
