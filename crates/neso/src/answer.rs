//! A command's answer on standard output.

use std::{
    fmt::Display,
    io::{self, Write as _},
    time::Duration,
};

/// Prints text that ends its lines itself, at once. A reader that has gone away is an error here: there is no more to do.
pub(crate) fn print_text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints one piece of the answer and an end of line. A reader that has gone away (`neso … | head`) wants no more, which is
/// not an error; a full disk is.
pub(crate) fn print(piece: impl Display) -> io::Result<()> {
    match writeln!(io::stdout().lock(), "{piece}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// As [`print`], of an answer without an end: whether anybody still reads it.
pub(crate) fn print_more(piece: impl Display) -> io::Result<bool> {
    match print_text(&format!("{piece}\n")) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Says beside the answer that it may be an old one: for so long the headnode has not known.
pub(crate) fn note_if_stale(age: Option<Duration>) {
    if let Some(age) = age {
        eprintln!(
            "neso: what is shown may be old: for {:.1} s this headnode has not heard from a majority of the store's members",
            age.as_secs_f64()
        );
    }
}
