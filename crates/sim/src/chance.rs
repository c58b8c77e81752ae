//! The story's draws from a seed. What production draws by itself (ids, jitter) comes from [`base::random`], seeded too.

/// A source of chance.
#[derive(Debug, Clone)]
pub(crate) struct Chance(base::random::Chance);

impl Chance {
    /// The source that `seed` names.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(base::random::Chance::new(seed))
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0.bits()
    }

    /// A number below `end`, which is not 0. The bias of the remainder does not matter here.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// Whether something happens that happens `percent` times in a hundred.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`; `None` when there are none.
    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let count = u64::try_from(items.len()).ok().filter(|count| *count > 0)?;
        items.get(usize::try_from(self.below(count)).ok()?)
    }
}
