//! Faults to inject: the next passages of a verb fail in words, as a kernel's refusal would.
//!
//! A test arms a verb by name (`"zones.start"`, `"datasets.clone_image"` …), for every subject or for one; each passage
//! of a fake verb asks [`Faults::pass`] first. Nothing is armed by default, and a fault is spent when it has struck.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use crate::error::{Error, Result};

/// Armed faults of one fake machine; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    armed: Arc<Mutex<VecDeque<Fault>>>,
}

/// One armed fault.
#[derive(Debug, Clone)]
struct Fault {
    verb: String,
    subject: Option<String>,
    why: String,
    strikes_left: u32,
}

impl Faults {
    /// The next `times` passages of `verb` fail, saying `why`.
    pub fn arm(&self, verb: &str, times: u32, why: &str) {
        self.push(verb, None, times, why);
    }

    /// The same for one subject alone, e.g. an instance's id.
    pub fn arm_for(&self, verb: &str, subject: &str, times: u32, why: &str) {
        self.push(verb, Some(subject.to_owned()), times, why);
    }

    /// Disarms everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Called by each fake verb before it does anything.
    pub fn pass(&self, verb: &str, subject: &str) -> Result<()> {
        let mut armed = self.lock();
        let found = armed
            .iter()
            .position(|fault| fault.verb == verb && fault.subject.as_deref().is_none_or(|only| only == subject));
        let Some(index) = found else { return Ok(()) };
        let fault = &mut armed[index];
        fault.strikes_left = fault.strikes_left.saturating_sub(1);
        let why = fault.why.clone();
        if fault.strikes_left == 0 {
            armed.remove(index);
        }
        Err(Error::Library { doing: format!("{verb} {subject}"), why })
    }

    fn push(&self, verb: &str, subject: Option<String>, times: u32, why: &str) {
        if times == 0 {
            return;
        }
        self.lock().push_back(Fault { verb: verb.to_owned(), subject, why: why.to_owned(), strikes_left: times });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Fault>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
