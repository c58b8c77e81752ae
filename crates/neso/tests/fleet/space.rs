//! A machine's namespaces: its own network, mounts and host name, held by one process that sleeps.
//!
//! Whoever enters later sees what was mounted before, as on a machine, so the agent may be restarted. When the holder and all
//! who entered are gone, the kernel removes interfaces, rules and mounts: that is how power is lost.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use nix::sched::{CloneFlags, setns};

/// Makes the namespaces' own view: interfaces in /sys, control groups as they are, an id of this installation, and none of the
/// pools of others, which would stay in use for as long as we hold them.
const SETTLE: &str = r#"
set -e
mount --make-rprivate /
for pool in $(awk '$3 == "btrfs" && $2 != "/" { print $2 }' /proc/self/mounts); do umount -l "$pool" || true; done
mkdir -p "$1/groups" && mount --rbind /sys/fs/cgroup "$1/groups"
mount -t sysfs neso-fleet /sys && mount --rbind "$1/groups" /sys/fs/cgroup && umount -l "$1/groups"
[ ! -e /etc/machine-id ] || mount --bind "$1/machine-id" /etc/machine-id
ip link set lo up
hostname "$2"
echo ready
exec sleep infinity
"#;

/// See the head of this file.
pub(crate) struct Space {
    holder: Child,
}

impl Space {
    /// Makes one that calls itself as `directory`, which keeps its few files, is called up to a dot.
    pub(crate) fn new(directory: &Path, machine_id: &str) -> Self {
        let name = directory.file_stem().expect("a directory with a name");
        fs::create_dir_all(directory).expect("a directory");
        fs::write(directory.join("machine-id"), format!("{machine_id}\n")).expect("a file");
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--uts", "sh", "-c", SETTLE, "sh"]).arg(directory).arg(name);
        let mut holder =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("`unshare` of util-linux runs");
        let mut line = String::new();
        let output = holder.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut line).expect("its output is text");
        assert_eq!(line, "ready\n", "namespaces can be made");
        Self { holder }
    }

    /// Process that holds the namespaces.
    pub(crate) fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that will run inside, not yet run.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.pid().to_string(), "--net", "--mount", "--uts"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Runs words parted by spaces, which must succeed; what was printed.
    #[track_caller]
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{line}` failed: {out}{err}");
        out.into_owned()
    }

    /// Runs words parted by spaces, which read `input` and must succeed.
    #[track_caller]
    pub(crate) fn feed(&self, line: &str, input: &str) {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a program"));
        let mut child = command.args(words).stdin(Stdio::piped()).spawn().expect("`nsenter` of util-linux runs");
        let mut pipe = child.stdin.take().expect("its input is a pipe");
        pipe.write_all(input.as_bytes()).expect("it reads");
        drop(pipe);
        assert!(child.wait().expect("it ends").success(), "`{line}` failed on\n{input}");
    }

    /// Runs words parted by spaces.
    pub(crate) fn output(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a program");
        self.command(program).args(words).output().expect("`nsenter` of util-linux runs")
    }

    /// Runs `there` in its network.
    pub(crate) fn enter<R: Send>(&self, there: impl FnOnce() -> R + Send) -> R {
        enter_network(u64::from(self.pid()), there)
    }

    /// Kills everything inside at once.
    pub(crate) fn end(&mut self) {
        let namespace = |pid: &str| Some(fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?.ino());
        let ours = namespace(&self.pid().to_string());
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Ok(pid) = name.parse::<u32>()
                && ours.is_some()
                && namespace(&name) == ours
            {
                // It may have ended with another.
                let _ = base::daemon::kill(pid);
            }
        }
        // The holder was among them.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `there` in a process's network, on a thread of its own.
#[track_caller]
pub(crate) fn enter_network<R: Send>(pid: u64, there: impl FnOnce() -> R + Send) -> R {
    let network = fs::File::open(format!("/proc/{pid}/ns/net")).expect("a process's network namespace");
    std::thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(&network, CloneFlags::CLONE_NEWNET).expect("it can be entered");
            there()
        });
        entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
