//! Whose turn it is: flows that may begin, in lines by the group they work for, and the lines take turns.
//!
//! A group that has thousands of flows waits behind itself and not in front of others; and it never has every place, however long its
//! flows take.

use std::collections::{HashMap, VecDeque};

use crate::{engine::FLOWS_MAX, record::FlowId};

/// Flows of one group that have a task at once: the rest of the places is for everybody else.
pub(crate) const GROUP_MAX: usize = FLOWS_MAX / 4 * 3;

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Ready {
    groups: HashMap<String, Group>,
    /// Groups with somebody waiting, in the order of their turns.
    turns: VecDeque<String>,
    /// Flows of all groups that have begun and not ended.
    running: usize,
}

#[derive(Default)]
struct Group {
    waiting: VecDeque<(FlowId, String)>,
    running: usize,
}

/// A flow that begins.
pub(crate) struct Begun {
    pub(crate) id: FlowId,
    pub(crate) subject: String,
    pub(crate) group: String,
}

impl Ready {
    /// One more that may begin.
    pub(crate) fn push(&mut self, group: &str, id: FlowId, subject: String) {
        let line = &mut self.groups.entry(group.to_owned()).or_default().waiting;
        line.push_back((id, subject));
        if line.len() == 1 {
            self.turns.push_back(group.to_owned());
        }
    }

    /// The next that begins, if there is a place for one.
    pub(crate) fn begin(&mut self) -> Option<Begun> {
        if self.running >= FLOWS_MAX {
            return None;
        }
        for _ in 0..self.turns.len() {
            let group = self.turns.pop_front()?;
            let Some(line) = self.groups.get_mut(&group) else { continue };
            if line.running < GROUP_MAX
                && let Some((id, subject)) = line.waiting.pop_front()
            {
                line.running += 1;
                self.running += 1;
                if !line.waiting.is_empty() {
                    self.turns.push_back(group.clone());
                }
                return Some(Begun { id, subject, group });
            }
            self.turns.push_back(group);
        }
        None
    }

    /// One of `group` has ended.
    pub(crate) fn ended(&mut self, group: &str) {
        self.running -= 1;
        if let Some(line) = self.groups.get_mut(group) {
            line.running -= 1;
            if line.running == 0 && line.waiting.is_empty() {
                self.groups.remove(group);
            }
        }
    }

    /// Flows that have begun and not ended.
    pub(crate) fn running(&self) -> usize {
        self.running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_waits_behind_itself() {
        let mut ready = Ready::default();
        let flood: Vec<FlowId> = (0..2 * FLOWS_MAX).map(|_| FlowId::new(1)).collect();
        flood.iter().for_each(|id| ready.push("flood", *id, String::new()));
        let begun: Vec<FlowId> = std::iter::from_fn(|| ready.begin()).map(|begun| begun.id).collect();
        assert_eq!(begun, flood[..GROUP_MAX], "in their order, and not on every place");
        let (one, other) = (FlowId::new(2), FlowId::new(2));
        ready.push("one", one, "a".to_owned());
        ready.push("other", other, "b".to_owned());
        let next: Vec<FlowId> = std::iter::from_fn(|| ready.begin()).map(|begun| begun.id).collect();
        assert_eq!(next, [one, other], "at once");
        ready.ended("flood");
        assert_eq!(
            ready.begin().map(|begun| begun.id),
            Some(flood[GROUP_MAX]),
            "a place of its own is the flood's again"
        );
        assert!(ready.begin().is_none());
        assert_eq!(ready.running(), GROUP_MAX + 2);
    }

    #[test]
    fn lines_take_turns() {
        let mut ready = Ready::default();
        for group in ["a", "a", "a", "b", "b", "c"] {
            ready.push(group, FlowId::new(1), String::new());
        }
        let order: Vec<String> = std::iter::from_fn(|| ready.begin()).map(|begun| begun.group).collect();
        assert_eq!(order, ["a", "b", "c", "a", "b", "a"]);
        order.iter().for_each(|group| ready.ended(group));
        assert!(ready.groups.is_empty() && ready.turns.is_empty(), "nothing is remembered of who has nothing");
    }
}
