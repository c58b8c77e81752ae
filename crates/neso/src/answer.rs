//! A command's answer on standard output.

use std::{
    fmt::Display,
    io::{self, Write as _},
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
