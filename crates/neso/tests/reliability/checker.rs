//! Whether a history could have happened one operation after the other.
//!
//! A history is linearizable when each operation can be given one moment between its call and its return at which it took effect, such that
//! what everybody saw fits (Herlihy and Wing, 1990). The search is Wing and Gong's with Lowe's memory: take the earliest call that fits the
//! state, go on, and step back where nothing fits; a set of operations that led to a state once is not gone into again. Objects are
//! independent, so each is searched by itself, which keeps histories short.
//!
//! An operation whose answer was lost has a call and no return: it may have taken effect at any time since, or never.

use std::{collections::HashSet, fmt::Debug, hash::Hash};

/// What an object does.
pub(crate) trait Model {
    /// What it is between two operations.
    type State: Clone + Eq + Hash + Debug;
    /// An operation with its outcome.
    type Action: Debug;

    /// Before the first operation.
    fn initial() -> Self::State;

    /// What it is after `action`; `None` when this action cannot have ended so in this state.
    fn apply(state: &Self::State, action: &Self::Action) -> Option<Self::State>;
}

/// One operation on one object.
#[derive(Debug, Clone)]
pub(crate) struct Span<A> {
    /// When it was called.
    pub(crate) called: u64,
    /// When it returned; `None`: nobody knows whether it happened.
    pub(crate) returned: Option<u64>,
    /// What it was.
    pub(crate) action: A,
}

/// States after which the search gives up: many operations that may or may not have happened make more of them than there is memory for.
const STATES_MAX: usize = 2_000_000;

/// Why a history is not known to be linearizable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// It is not. The longest part of it that is, as positions in the history in the order of a possible effect, for whoever looks for the reason.
    Impossible(Vec<usize>),
    /// The search gave up.
    Undecided,
}

/// Whether the history of one object is linearizable.
pub(crate) fn check<M: Model>(history: &[Span<M::Action>]) -> Result<(), Doubt> {
    let mut line = Line::new(history);
    let mut open = history.iter().filter(|span| span.returned.is_some()).count();
    let mut state = M::initial();
    let mut taken = Vec::<(usize, M::State)>::new();
    let mut done = vec![0_u64; history.len().div_ceil(64)];
    let mut seen = HashSet::new();
    let mut longest = Vec::new();
    let mut at = line.first();
    while open > 0 {
        if seen.len() > STATES_MAX {
            return Err(Doubt::Undecided);
        }
        let moment = at.expect("an operation that returned is still in the line");
        if line.is_call(moment) {
            let operation = line.operation(moment);
            let next = M::apply(&state, &history[operation].action).filter(|next| {
                done[operation / 64] |= 1 << (operation % 64);
                let is_new = seen.insert((done.clone(), next.clone()));
                if !is_new {
                    done[operation / 64] &= !(1 << (operation % 64));
                }
                is_new
            });
            match next {
                Some(next) => {
                    taken.push((operation, std::mem::replace(&mut state, next)));
                    open -= usize::from(history[operation].returned.is_some());
                    line.take(operation);
                    at = line.first();
                }
                None => at = line.after(moment),
            }
            continue;
        }
        // Somebody returned, and nothing that was called before gives it a moment: step back.
        if taken.len() > longest.len() {
            longest = taken.iter().map(|(operation, _)| *operation).collect();
        }
        let Some((operation, before)) = taken.pop() else { return Err(Doubt::Impossible(longest)) };
        state = before;
        done[operation / 64] &= !(1 << (operation % 64));
        open += usize::from(history[operation].returned.is_some());
        line.put_back(operation);
        at = line.after(line.call_of(operation));
    }
    Ok(())
}

/// Calls and returns in the order of time, from which operations are taken out and put back.
struct Line {
    /// Operation of each moment, and whether it is its call.
    moments: Vec<(usize, bool)>,
    /// Position of each operation's call and return.
    places: Vec<(usize, Option<usize>)>,
    /// Links between moments; the last is the head and the end of the ring.
    next: Vec<usize>,
    previous: Vec<usize>,
}

impl Line {
    fn new<A>(history: &[Span<A>]) -> Self {
        let calls = history.iter().enumerate().map(|(operation, span)| (span.called, true, operation));
        let returns =
            history.iter().enumerate().filter_map(|(operation, span)| Some((span.returned?, false, operation)));
        let mut all: Vec<_> = calls.chain(returns).collect();
        // At one moment calls come first: then more is possible, and nobody is accused for a clock's grain.
        all.sort_by_key(|(time, is_call, operation)| (*time, !is_call, *operation));
        let moments: Vec<_> = all.into_iter().map(|(_, is_call, operation)| (operation, is_call)).collect();
        let mut places = vec![(0, None); history.len()];
        for (position, (operation, is_call)) in moments.iter().enumerate() {
            match is_call {
                true => places[*operation].0 = position,
                false => places[*operation].1 = Some(position),
            }
        }
        let ring = moments.len() + 1;
        let next = (0..ring).map(|at| (at + 1) % ring).collect();
        let previous = (0..ring).map(|at| (at + ring - 1) % ring).collect();
        Self { moments, places, next, previous }
    }

    fn first(&self) -> Option<usize> {
        self.after(self.moments.len())
    }

    fn after(&self, moment: usize) -> Option<usize> {
        Some(self.next[moment]).filter(|next| *next < self.moments.len())
    }

    fn is_call(&self, moment: usize) -> bool {
        self.moments[moment].1
    }

    fn operation(&self, moment: usize) -> usize {
        self.moments[moment].0
    }

    fn call_of(&self, operation: usize) -> usize {
        self.places[operation].0
    }

    fn take(&mut self, operation: usize) {
        let (call, end) = self.places[operation];
        for moment in [Some(call), end].into_iter().flatten() {
            let (before, after) = (self.previous[moment], self.next[moment]);
            self.next[before] = after;
            self.previous[after] = before;
        }
    }

    /// The other way round, last taken first.
    fn put_back(&mut self, operation: usize) {
        let (call, end) = self.places[operation];
        for moment in [end, Some(call)].into_iter().flatten() {
            let (before, after) = (self.previous[moment], self.next[moment]);
            self.next[before] = moment;
            self.previous[after] = moment;
        }
    }
}

/// The checker's own trial.
pub(crate) mod trial {
    use std::sync::Mutex;

    use proptest::{
        collection::vec,
        prelude::{Strategy as _, any},
        test_runner::{Config, TestRunner},
    };

    use super::{Model, Span, check};

    /// A cell that is set, and read.
    struct Cell;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Act {
        Set(u8),
        Get(u8),
    }

    impl Model for Cell {
        type State = u8;
        type Action = Act;

        fn initial() -> u8 {
            0
        }

        fn apply(state: &u8, action: &Act) -> Option<u8> {
            match action {
                Act::Set(value) => Some(*value),
                Act::Get(value) => (value == state).then_some(*state),
            }
        }
    }

    fn span(called: u64, returned: u64, action: Act) -> Span<Act> {
        Span { called, returned: Some(returned), action }
    }

    fn lost(called: u64, action: Act) -> Span<Act> {
        Span { called, returned: None, action }
    }

    /// Every order there is, tried.
    fn by_trying_all(history: &[Span<Act>]) -> bool {
        fn go(history: &[Span<Act>], left: &mut Vec<usize>, state: u8) -> bool {
            if left.iter().all(|one| history[*one].returned.is_none()) {
                return true;
            }
            (0..left.len()).any(|at| {
                let one = left[at];
                // Nothing else that is left returned before this was called.
                let may_be_next =
                    left.iter().all(|other| history[*other].returned.is_none_or(|end| end >= history[one].called));
                let Some(next) = Cell::apply(&state, &history[one].action).filter(|_| may_be_next) else {
                    return false;
                };
                left.remove(at);
                let found = go(history, left, next);
                left.insert(at, one);
                found
            })
        }
        go(history, &mut (0..history.len()).collect(), 0)
    }

    /// Known histories are judged rightly, and the search agrees with trying every order.
    pub(crate) fn run() {
        let good = |history: &[Span<Act>]| check::<Cell>(history).is_ok();
        assert!(good(&[]));
        assert!(good(&[span(0, 9, Act::Set(1)), span(1, 2, Act::Get(0)), span(3, 4, Act::Get(1))]));
        // Seen, and then no more: the history that stale reads make.
        assert!(!good(&[span(0, 9, Act::Set(1)), span(1, 2, Act::Get(1)), span(3, 4, Act::Get(0))]));
        assert!(!good(&[span(0, 1, Act::Set(1)), span(2, 3, Act::Get(0))]), "acknowledged, and lost");
        assert!(good(&[lost(0, Act::Set(1)), span(5, 6, Act::Get(0)), span(7, 8, Act::Get(1))]), "late, not lost");
        assert!(good(&[lost(0, Act::Set(1)), span(5, 6, Act::Get(0))]), "never happened");
        assert!(!good(&[lost(0, Act::Set(1)), span(5, 6, Act::Get(1)), span(7, 8, Act::Get(0))]));

        let verdicts = Mutex::new([0_usize; 2]);
        let act = (any::<bool>(), 0_u8..3).prop_map(|(set, value)| if set { Act::Set(value) } else { Act::Get(value) });
        let one = (0_u64..12, 0_u64..6, act, 0_u8..5).prop_map(|(called, length, action, luck)| Span {
            called,
            // What is read and never returned says nothing; only changes are lost.
            returned: (luck > 0 || matches!(action, Act::Get(_))).then_some(called + length),
            action,
        });
        let mut runner = TestRunner::new(Config { cases: 4_000, failure_persistence: None, ..Config::default() });
        let outcome = runner.run(&vec(one, 0..7), |history| {
            let found = check::<Cell>(&history).is_ok();
            verdicts.lock().expect("no case panicked")[usize::from(found)] += 1;
            proptest::prop_assert_eq!(found, by_trying_all(&history));
            Ok(())
        });
        outcome.expect("the search agrees with trying every order");
        let [bad, good] = verdicts.into_inner().expect("no case panicked");
        assert!(bad > 500 && good > 500, "both verdicts were tried: {bad} and {good}");
    }
}
