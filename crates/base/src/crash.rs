//! Places where a test may kill the process. Compiled in with the feature `crash-points` and in debug builds, which is what
//! tests of whole processes run; a release has nothing of it.
//!
//! With the environment variable `NESO_CRASH_AT=name` the process kills itself (SIGKILL: no handler, no flush, no destructor)
//! the first time it passes [`point`] with that name; `name#3` means the third time. With `NESO_CRASH_FILE=path` the name
//! stands in that file, which goes away as the process dies: whoever starts the process again need not change anything,
//! and a test arms the next point by writing the next file. If the path is a directory, each file in it names a point, and dying
//! at one takes its file away: a whole set can be armed at once.

/// The environment variable that names the point.
pub const VARIABLE: &str = "NESO_CRASH_AT";
/// The environment variable that names the file that names the point.
pub const FILE_VARIABLE: &str = "NESO_CRASH_FILE";

/// Die here if the environment says so.
#[cfg(not(any(feature = "crash-points", debug_assertions)))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Die here if the environment says so.
#[cfg(any(feature = "crash-points", debug_assertions))]
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

    static FILE: LazyLock<Option<std::path::PathBuf>> =
        LazyLock::new(|| std::env::var_os(FILE_VARIABLE).map(Into::into));

    let by_name = WANTED
        .as_ref()
        .is_some_and(|wanted| wanted.name == name && wanted.seen.fetch_add(1, Ordering::SeqCst) + 1 == wanted.passage);
    // Whoever removes the file dies; a second process or thread at the same point lives.
    let by_file = FILE.as_ref().is_some_and(|path| {
        let in_directory = !name.contains('/') && std::fs::remove_file(path.join(name)).is_ok();
        in_directory
            || std::fs::read_to_string(path).is_ok_and(|text| text.trim() == name) && std::fs::remove_file(path).is_ok()
    });
    if by_name || by_file {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // SIGKILL on oneself is delivered before `kill` returns to this thread, or immediately after.
        loop {
            std::thread::park();
        }
    }
}
