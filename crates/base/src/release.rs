//! Which release this program is.
//!
//! A test of a rolling restart needs two, and has one build: in debug builds, and with the feature `crash-points`, the environment may say otherwise. A
//! release has nothing of it.

/// The environment variable that makes a debug build call itself something else.
pub const VARIABLE: &str = "NESO_RELEASE";

/// Its version: `MAJOR.MINOR.PATCH`.
#[cfg(not(any(feature = "crash-points", debug_assertions)))]
pub const fn name() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Its version: `MAJOR.MINOR.PATCH`.
#[cfg(any(feature = "crash-points", debug_assertions))]
pub fn name() -> &'static str {
    static NAME: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::env::var(VARIABLE).unwrap_or_else(|_| env!("CARGO_PKG_VERSION").to_owned()));
    &NAME
}
