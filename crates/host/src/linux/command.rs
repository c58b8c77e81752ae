//! Commands this crate runs: few, without a shell, with their last words kept.

use std::{
    ffi::OsStr,
    io::Write,
    process::{Output, Stdio},
};

use crate::error::{Error, Result};

/// Bytes of standard error kept for a message.
const STDERR_MAX: usize = 2048;

/// Runs `program` with `input` on its standard input and returns its standard output.
#[expect(clippy::disallowed_types, reason = "this is the one place of `host` that runs commands")]
pub(super) fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A], input: &str) -> Result<Vec<u8>> {
    let doing = || format!("run `{program}`");
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::Lacking {
                what: format!("the command `{program}`"),
                remedy: "install the package that has it".to_owned(),
            },
            _ => Error::os(doing(), source),
        })?;
    let mut stdin = child.stdin.take().expect("standard input is a pipe");
    // A command that ends early breaks the pipe; its status says why, so the write's own error does not matter.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().map_err(|source| Error::os(doing(), source))?;
    if status.success() {
        return Ok(stdout);
    }
    let from = stderr.len().saturating_sub(STDERR_MAX);
    let arguments: Vec<_> = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect();
    Err(Error::Command {
        command: format!("{program} {}", arguments.join(" ")),
        status: status.to_string(),
        stderr: String::from_utf8_lossy(&stderr[from..]).trim().to_owned(),
    })
}
