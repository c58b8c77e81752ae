//! Chance with one owner, as time has one. Production draws from the operating system. A simulation gives its thread a seed
//! ([`seed`]); from then on whatever is drawn on that thread follows from it, so that a seed tells the same story twice.
//!
//! The seed is the thread's and not the process's, because tests run many simulations at once, each on a thread of its own.
//! Nothing here is for keys: those who make keys ask their own library.

use std::{
    cell::RefCell,
    sync::{Mutex, PoisonError},
};

/// Bits behind the time in what [`ordered`] returns.
const TAIL_BITS: u32 = 74;

thread_local! {
    static SEEDED: RefCell<Option<Seeded>> = const { RefCell::new(None) };
}

// Leaf data: read and written within one draw.
static ORDER: Mutex<Order> = Mutex::new(Order::new());

struct Seeded {
    chance: Chance,
    order: Order,
}

/// The next 64 bits.
pub fn bits() -> u64 {
    SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => seeded.chance.bits(),
        None => system_bits(),
    })
}

/// The next 128 bits.
pub fn wide_bits() -> u128 {
    u128::from(bits()) << 64 | u128::from(bits())
}

/// A time and 74 bits behind it that, taken together, are larger than all that were drawn before: also when two are drawn within one
/// millisecond, and when the clock goes back. `now_ms` is milliseconds since the epoch.
pub fn ordered(now_ms: u64) -> (u64, u128) {
    let fresh = wide_bits();
    SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => seeded.order.next(now_ms, fresh),
        None => ORDER.lock().unwrap_or_else(PoisonError::into_inner).next(now_ms, fresh),
    })
}

/// Everything drawn on this thread follows from `seed`, until the answer is dropped.
#[must_use = "chance is the system's again as soon as this is dropped"]
pub fn seed(seed: u64) -> Seed {
    let fresh = Seeded { chance: Chance::new(seed), order: Order::new() };
    Seed { before: SEEDED.with_borrow_mut(|seeded| seeded.replace(fresh)), not_elsewhere: std::marker::PhantomData }
}

/// See [`seed`].
pub struct Seed {
    before: Option<Seeded>,
    /// The seed is this thread's.
    not_elsewhere: std::marker::PhantomData<*const ()>,
}

impl Drop for Seed {
    fn drop(&mut self) {
        SEEDED.with_borrow_mut(|seeded| *seeded = self.before.take());
    }
}

fn system_bits() -> u64 {
    getrandom::u64().expect("the kernel gives random numbers once it has booted")
}

/// A source that is a function of its seed: SplitMix64, which is ten lines and the same everywhere for ever.
#[derive(Debug, Clone)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// The source that `seed` names.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// The last of an ascending row.
#[derive(Debug)]
struct Order {
    ms: u64,
    tail: u128,
}

impl Order {
    const fn new() -> Self {
        Self { ms: 0, tail: 0 }
    }

    fn next(&mut self, now_ms: u64, fresh: u128) -> (u64, u128) {
        if now_ms > self.ms {
            // The top bit stays free, so that counting up within one millisecond does not run over.
            *self = Self { ms: now_ms, tail: fresh & ((1 << (TAIL_BITS - 1)) - 1) };
        } else {
            self.tail += 1 + (fresh & u128::from(u32::MAX));
            if self.tail >> TAIL_BITS != 0 {
                *self = Self { ms: self.ms + 1, tail: fresh & ((1 << (TAIL_BITS - 1)) - 1) };
            }
        }
        (self.ms, self.tail)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |number| {
            let _seed = seed(number);
            (bits(), wide_bits(), ordered(5), ordered(5), ordered(4))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert_ne!(bits(), bits(), "and the system's own chance is back afterwards");
    }

    #[test]
    fn the_published_values_come_out() {
        // The first values of SplitMix64 for seed 1234567.
        let mut chance = Chance::new(1_234_567);
        assert_eq!([chance.bits(), chance.bits()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    proptest! {
        #[test]
        fn what_is_drawn_later_is_larger(times in proptest::collection::vec(0_u64..5, 2..50), seeded in any::<u64>()) {
            let _seed = seed(seeded);
            let drawn: Vec<_> = times.into_iter().map(ordered).collect();
            prop_assert!(drawn.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(drawn.iter().all(|(_, tail)| tail >> TAIL_BITS == 0));
        }
    }
}
