//! Logging to standard error, one line per event; the supervisor gives each process its file.

use tracing_subscriber::EnvFilter;

/// The environment variable that overrides the filter given by settings.
pub const VARIABLE: &str = "NESO_LOG";

/// Start logging with `filter` (`info`, or `info,control=debug`). A filter that does not parse falls back to `info` and says so.
/// Calling it twice changes nothing: tests share one process.
pub fn init(filter: &str) {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| filter.to_owned());
    let parsed = EnvFilter::try_new(&wanted);
    let bad = parsed.is_err();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(parsed.unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_ok() && bad {
        tracing::warn!(filter = wanted, "log filter is not understood; using info");
    }
}
