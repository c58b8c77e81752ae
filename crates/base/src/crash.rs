//! Places where a test may kill the process. Compiled in only with the feature `crash-points`; otherwise nothing.
//!
//! With the environment variable `NESO_CRASH_AT=name` the process kills itself (SIGKILL: no handler, no flush, no destructor)
//! the first time it passes [`point`] with that name; `name#3` means the third time.

/// The environment variable that names the point.
pub const VARIABLE: &str = "NESO_CRASH_AT";

/// Die here if the environment says so.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Die here if the environment says so.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    struct Wanted {
        name: String,
        passage: u64,
        seen: AtomicU64,
    }
    static WANTED: LazyLock<Option<Wanted>> = LazyLock::new(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, passage) = match text.rsplit_once('#') {
            Some((name, passage)) => (name.to_owned(), passage.parse().unwrap_or(1)),
            None => (text, 1),
        };
        Some(Wanted { name, passage, seen: AtomicU64::new(0) })
    });

    let Some(wanted) = WANTED.as_ref() else { return };
    if wanted.name == name && wanted.seen.fetch_add(1, Ordering::SeqCst) + 1 == wanted.passage {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // SIGKILL on oneself is delivered before `kill` returns to this thread, or immediately after.
        loop {
            std::thread::park();
        }
    }
}
