//! Whose turn it is to decide, when many want to: a limited number of decisions wait for the disk at once, and the lines take turns at
//! the places that become free.
//!
//! What was decided lands in the order it was decided in, so whoever is let in after a thousand others waits for all their commits. Callers
//! therefore wait *before* they decide, each in the line it names (an account, as a rule): a flood waits behind itself, and somebody else's
//! call waits for the few that are in already. The line without a name is the datacenter's own, facts and loops: it has every second turn
//! while somebody stands in it, since what is reported ends what others wait for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// The datacenter's own line.
pub(crate) const OWN: &str = "";

/// See the head of this file.
pub(crate) struct Turns {
    // Leaf data: held to look whose turn it is, never across an await.
    state: Mutex<State>,
}

struct State {
    free: usize,
    lines: HashMap<Arc<str>, VecDeque<oneshot::Sender<()>>>,
    /// Lines in which somebody stands, in the order of their turns; without the datacenter's own.
    order: VecDeque<Arc<str>>,
    /// The last turn was the datacenter's own.
    own_last: bool,
}

/// A place among those who wait for the disk. Dropped, it is somebody else's.
pub(crate) struct Turn<'a>(&'a Turns);

/// Somebody in a line.
struct Standing<'a> {
    turns: &'a Turns,
    called: oneshot::Receiver<()>,
}

impl Turns {
    /// So many places.
    pub(crate) fn new(places: usize) -> Self {
        let state = State { free: places, lines: HashMap::new(), order: VecDeque::new(), own_last: false };
        Self { state: Mutex::new(state) }
    }

    /// Waits in `line` for a turn.
    pub(crate) async fn take(&self, line: &Arc<str>) -> Turn<'_> {
        let mut standing = {
            let mut state = self.lock();
            // Where a place is free nobody stands in a line.
            if state.free > 0 {
                state.free -= 1;
                return Turn(self);
            }
            let (call, called) = oneshot::channel();
            state.push(line, call);
            Standing { turns: self, called }
        };
        (&mut standing.called).await.expect("who stands in a line is called, or goes away");
        // Called: from here on the place is the turn's.
        standing.called.close();
        Turn(self)
    }

    fn give_back(&self) {
        let mut state = self.lock();
        while let Some(next) = state.pop() {
            // Those who went away are passed over.
            if next.send(()).is_ok() {
                return;
            }
        }
        state.free += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, line: &Arc<str>, call: oneshot::Sender<()>) {
        let standing = self.lines.entry(line.clone()).or_default();
        standing.push_back(call);
        if standing.len() == 1 && **line != *OWN {
            self.order.push_back(line.clone());
        }
    }

    fn pop(&mut self) -> Option<oneshot::Sender<()>> {
        let own = self.lines.contains_key(OWN) && (!self.own_last || self.order.is_empty());
        self.own_last = own;
        let line = if own { Arc::from(OWN) } else { self.order.pop_front()? };
        let standing = self.lines.get_mut(&line)?;
        let call = standing.pop_front();
        if standing.is_empty() {
            self.lines.remove(&line);
        } else if !own {
            self.order.push_back(line);
        }
        call
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.give_back();
    }
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.called.close();
        // Called at the very moment it went away.
        if self.called.try_recv().is_ok() {
            self.turns.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::Pin, task::Poll};

    use super::*;

    type Waiting<'a> = Pin<Box<dyn Future<Output = Turn<'a>> + 'a>>;

    fn ask<'a>(turns: &'a Turns, line: &str) -> Waiting<'a> {
        let line: Arc<str> = line.into();
        Box::pin(async move { turns.take(&line).await })
    }

    /// Stands in a line, and is not called at once.
    fn stand<'a>(turns: &'a Turns, line: &str) -> Waiting<'a> {
        let mut waiting = ask(turns, line);
        assert!(called(&mut waiting).is_none(), "it has to wait");
        waiting
    }

    fn called<'a>(waiting: &mut Waiting<'a>) -> Option<Turn<'a>> {
        match waiting.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn lines_take_turns_and_the_datacenters_own_has_every_second() {
        let turns = Turns::new(1);
        let mut inside = called(&mut ask(&turns, "x"));
        assert!(inside.is_some());
        let names = ["a", "a", "a", "b", OWN, OWN, "c", OWN, OWN];
        let mut waiting: Vec<(&str, Waiting<'_>)> = names.iter().map(|name| (*name, stand(&turns, name))).collect();
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(inside.take());
            let next = waiting.iter_mut().enumerate().find_map(|(at, (_, one))| Some((at, called(one)?)));
            let (at, turn) = next.expect("one of them is called");
            order.push(waiting.remove(at).0);
            inside = Some(turn);
            assert!(waiting.iter_mut().all(|(_, one)| called(one).is_none()), "and one alone");
        }
        assert_eq!(order, [OWN, "a", OWN, "b", OWN, "c", OWN, "a", "a"]);
    }

    #[test]
    fn who_goes_away_takes_no_place_along() {
        let turns = Turns::new(1);
        let inside = called(&mut ask(&turns, "x"));
        let (early, late, mut last) = (stand(&turns, "a"), stand(&turns, "a"), stand(&turns, "a"));
        drop(early);
        drop(inside);
        // Called, and not there to hear it.
        drop(late);
        drop(called(&mut last).expect("the next one's turn"));
        assert!(called(&mut ask(&turns, "b")).is_some(), "a free place needs no waiting");
        assert!(turns.lock().lines.is_empty() && turns.lock().order.is_empty());
    }
}
