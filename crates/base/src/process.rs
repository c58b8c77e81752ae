//! Other programs. Outside `host` this is the only place that starts one, so that each has its input closed, ends with its
//! parent future, is given a deadline, and cannot fill our memory with its output.

use std::{ffi::OsStr, path::Path, process::Stdio, time::Duration};

use tokio::io::AsyncReadExt;

/// Bytes kept of each of a program's outputs; the rest is read and dropped.
const OUTPUT_MAX: u64 = 4 << 20;

/// A command whose child is killed when its handle is dropped, with no input. Change what you need, then spawn it or give it to [`output`].
#[expect(clippy::disallowed_types, reason = "this is the door to other programs")]
pub fn command(program: impl AsRef<OsStr>) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Becomes another program with these arguments and nothing in its environment. Returns only what went wrong.
#[expect(clippy::disallowed_types, reason = "this is the door to other programs")]
pub fn become_program(program: &Path, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> std::io::Error {
    use std::os::unix::process::CommandExt as _;
    std::process::Command::new(program).args(arguments).env_clear().stdin(Stdio::null()).exec()
}

/// Lets this process be nobody but a user from now on, for a program it becomes and does not trust with more. What is to happen when its
/// parent ends has to be asked for anew after this.
pub fn become_user(uid: u32, gid: u32) -> std::io::Result<()> {
    nix::unistd::setgroups(&[])?;
    nix::unistd::setgid(gid.into())?;
    Ok(nix::unistd::setuid(uid.into())?)
}

/// What a program that ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, at most 4 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 4 MiB.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it ended with code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard error's last non-empty line: usually the reason.
    pub fn reason(&self) -> String {
        let text = String::from_utf8_lossy(&self.stderr);
        text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given").trim().to_owned()
    }
}

/// Why a program gave no output.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Reading from it or waiting for it failed.
    #[error("wait for `{program}`")]
    Wait {
        /// The program.
        program: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It ran longer than it may; it was killed.
    #[error("`{program}` did not end within {} s", deadline.as_secs())]
    Deadline {
        /// The program.
        program: String,
        /// The time it had.
        deadline: Duration,
    },
}

/// Run `command` to its end, within `deadline`.
#[expect(clippy::disallowed_types, reason = "this is the door to other programs")]
pub async fn output(mut command: tokio::process::Command, deadline: Duration) -> Result<Output, Error> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| Error::Start { program: program.clone(), source })?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let finished = tokio::time::timeout(deadline, async {
        let (stdout, stderr) = tokio::join!(read_some(stdout), read_some(stderr));
        Ok::<_, std::io::Error>((child.wait().await?, stdout?, stderr?))
    });
    match finished.await {
        Ok(Ok((status, stdout, stderr))) => Ok(Output { code: status.code(), stdout, stderr }),
        Ok(Err(source)) => Err(Error::Wait { program, source }),
        Err(_) => Err(Error::Deadline { program, deadline }),
    }
}

async fn read_some(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(OUTPUT_MAX).read_to_end(&mut kept).await?;
        let mut rest = [0_u8; 8192];
        while pipe.read(&mut rest).await? > 0 {}
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_code_and_reason_come_back() {
        let mut shell = command("sh");
        shell.args(["-c", "echo out; echo why >&2; exit 3"]);
        let output = output(shell, Duration::from_secs(10)).await.unwrap();
        assert_eq!(
            (output.code, output.stdout.as_slice(), output.reason().as_str()),
            (Some(3), b"out\n".as_slice(), "why")
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_ended() {
        let mut sleeper = command("sleep");
        sleeper.arg("1000");
        let error = output(sleeper, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = output(command("/no/such/program"), Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/program"));
    }
}
