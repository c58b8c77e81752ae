//! Events: one thread that waits on a handle of every supervisor and tells the subscriber "look".
//!
//! It also reaps: supervisors are the agent's children until the agent dies.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use model::id::InstanceId;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::{EfdFlags, EventFd},
    },
};
use tokio::sync::mpsc;

use super::process::{PidFd, ProcessRef};
use crate::zone::ZoneEvent;

/// Events kept for a subscriber that does not read: more only repeat "look".
const EVENTS: usize = 1024;

/// Ends taken from the kernel at once.
const BATCH: usize = 64;

/// The token of the descriptor that ends the thread; processes count from one.
const STOP: u64 = 0;

/// The thread and what it watches. Ends with the last handle on it.
pub(super) struct Watch {
    shared: Arc<Shared>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    epoll: Epoll,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last_token: u64,
    watched: HashMap<u64, (InstanceId, PidFd)>,
    subscriber: Option<mpsc::Sender<ZoneEvent>>,
}

impl Watch {
    pub(super) fn start() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let shared = Arc::new(Shared { epoll, state: Mutex::default() });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("zone-watch".to_owned()).spawn(move || theirs.run())?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Watches a process of a zone. One that is gone already is an event at once.
    pub(super) fn add(&self, instance: InstanceId, process: ProcessRef) -> io::Result<()> {
        let Some(handle) = process.open()? else {
            self.shared.lock().tell(instance);
            return Ok(());
        };
        let mut state = self.shared.lock();
        state.last_token += 1;
        let token = state.last_token;
        self.shared.epoll.add(handle.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        state.watched.insert(token, (instance, handle));
        Ok(())
    }

    /// A new subscriber in place of the one before.
    pub(super) fn subscribe(&self) -> mpsc::Receiver<ZoneEvent> {
        let (sender, receiver) = mpsc::channel(EVENTS);
        self.shared.lock().subscriber = Some(sender);
        receiver
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut events = [EpollEvent::empty(); BATCH];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    tracing::error!(%error, "zones are no longer watched; their ends are seen by polling only");
                    return;
                }
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                self.ended(event.data());
            }
        }
    }

    fn ended(&self, token: u64) {
        let mut state = self.lock();
        if let Some((instance, handle)) = state.watched.remove(&token) {
            let _ = self.epoll.delete(handle.as_fd());
            handle.reap();
            state.tell(instance);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&self, instance: InstanceId) {
        if let Some(subscriber) = &self.subscriber {
            // A full channel holds an event already, and each says the same: look.
            let _ = subscriber.try_send(ZoneEvent { instance });
        }
    }
}
