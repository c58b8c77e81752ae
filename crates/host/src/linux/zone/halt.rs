//! How a zone's init is asked to halt, and how the end of one is told in words. Pure.

use nix::{
    libc,
    sys::{signal::Signal, wait::WaitStatus},
};

/// Signals (by number) that can make an init halt, best first, given the program that runs as init and the name it was
/// called by.
///
/// An init takes no harm from a signal it has no handler for: the kernel drops it. So the list ends with what generic
/// programs understand.
pub(crate) fn candidates(executable: &str, called: &str) -> Vec<i32> {
    let (executable, called) = (base_name(executable), base_name(called));
    let own = match executable {
        // "Power off" in systemd's own language of real-time signals.
        "systemd" => Some(libc::SIGRTMIN() + 4),
        "busybox" if called == "init" || called == "linuxrc" => Some(libc::SIGUSR2),
        // runit's stage 1 reads its files on SIGCONT; without them it ignores everything but an interrupt.
        "runit" | "runit-init" => Some(libc::SIGINT),
        "openrc-init" | "init" | "sysvinit" => Some(libc::SIGPWR),
        _ => None,
    };
    own.into_iter().chain([libc::SIGTERM]).collect()
}

/// The first of `candidates` that a process would notice, by `/proc/<pid>/status` and `/proc/<pid>/syscall`: one it catches,
/// holds blocked to read it later, or waits for; while it waits, the kernel shows those it waits for as neither.
pub(crate) fn noticed(candidates: &[i32], status: &str, syscall: &str) -> Option<i32> {
    let call = syscall.split_ascii_whitespace().next().and_then(|number| number.parse::<libc::c_long>().ok());
    if call == Some(libc::SYS_rt_sigtimedwait) {
        return candidates.first().copied();
    }
    let mask = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0)
    };
    let noticing = mask("SigCgt") | mask("SigBlk");
    candidates.iter().copied().find(|signal| (1..=64).contains(signal) && noticing & (1 << (signal - 1)) != 0)
}

/// How a boot ended: exit code, signal, and the reason in words.
pub(crate) fn ending(
    status: WaitStatus,
    oom_kills: u64,
    killed_because: Option<&str>,
) -> (Option<i32>, Option<i32>, String) {
    match status {
        WaitStatus::Exited(_, code) => {
            let lacked = match oom_kills {
                0 => String::new(),
                1 => "; one process had been killed: out of memory".to_owned(),
                many => format!("; {many} processes had been killed: out of memory"),
            };
            (Some(code), None, format!("exited with code {code}{lacked}"))
        }
        WaitStatus::Signaled(_, signal, _) => {
            let reason = match (signal, killed_because) {
                (Signal::SIGKILL, Some(because)) => because.to_owned(),
                (Signal::SIGKILL, None) if oom_kills > 0 => "killed: out of memory".to_owned(),
                // reboot(2) inside a pid namespace ends its init with one of these two.
                (Signal::SIGINT, _) => "halted".to_owned(),
                (Signal::SIGHUP, _) => "rebooted".to_owned(),
                (other, _) => format!("killed by {other}"),
            };
            (None, Some(signal as i32), reason)
        }
        other => (None, None, format!("ended in an unexpected way: {other:?}")),
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn each_init_is_spoken_to_in_its_own_language() {
        assert_eq!(candidates("/bin/busybox", "/sbin/init")[0], libc::SIGUSR2);
        assert_eq!(candidates("/bin/busybox", "/bin/sh"), [libc::SIGTERM]);
        assert_eq!(candidates("/usr/lib/systemd/systemd", "/sbin/init")[0], libc::SIGRTMIN() + 4);
        assert_eq!(candidates("/usr/sbin/nginx", "nginx"), [libc::SIGTERM]);
    }

    #[test]
    fn a_signal_nobody_notices_is_not_waited_for() {
        let status = "Name:\tsh\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000004002\n";
        assert_eq!(noticed(&[libc::SIGUSR2, libc::SIGTERM], status, "7 0x0"), Some(libc::SIGTERM));
        assert_eq!(noticed(&[libc::SIGTERM], "Name:\tsleep\nSigBlk:\t0\nSigCgt:\t0000000000000000\n", "running"), None);
        assert_eq!(noticed(&[libc::SIGTERM], "SigBlk:\t0000000000004000\nSigCgt:\t0\n", ""), Some(libc::SIGTERM));
        assert_eq!(noticed(&[libc::SIGTERM], "garbage", "garbage"), None);
        let waiting = format!("{} 0x7ffc 0x0", libc::SYS_rt_sigtimedwait);
        assert_eq!(noticed(&[libc::SIGUSR2, libc::SIGTERM], "SigBlk:\t0\nSigCgt:\t0\n", &waiting), Some(libc::SIGUSR2));
    }

    #[test]
    fn endings_are_told_in_words() {
        let pid = Pid::from_raw(7);
        let killed = |signal| WaitStatus::Signaled(pid, signal, false);
        assert_eq!(ending(WaitStatus::Exited(pid, 3), 0, None), (Some(3), None, "exited with code 3".to_owned()));
        assert_eq!(ending(killed(Signal::SIGINT), 0, None).2, "halted");
        assert_eq!(ending(killed(Signal::SIGHUP), 0, None).2, "rebooted");
        assert_eq!(ending(killed(Signal::SIGKILL), 2, None).2, "killed: out of memory");
        assert_eq!(ending(killed(Signal::SIGKILL), 0, Some("killed: too slow")).2, "killed: too slow");
        assert_eq!(ending(killed(Signal::SIGKILL), 0, None).2, "killed by SIGKILL");
        assert_eq!(
            ending(WaitStatus::Exited(pid, 0), 2, None).2,
            "exited with code 0; 2 processes had been killed: out of memory"
        );
    }
}
