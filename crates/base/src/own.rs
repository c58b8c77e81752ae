//! What this process uses, as its kernel counts it.

use std::fs;

/// Of a second, in which the kernel counts CPU time for programs.
const TICKS: f64 = 100.0;

/// See the head of this file. What cannot be read is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// CPU time in programs and in the kernel, seconds.
    pub cpu_s: Option<f64>,
    /// Threads there are.
    pub threads: Option<u64>,
    /// Memory that is resident, bytes.
    pub resident_bytes: Option<u64>,
}

/// Reads it.
pub fn usage() -> Usage {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    read(&text("/proc/self/stat"), &text("/proc/self/status"))
}

/// Of `/proc/self/stat` and `/proc/self/status`.
fn read(stat: &str, status: &str) -> Usage {
    // The name before may hold anything, also brackets and spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let number = |at: usize| fields.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident_kib = resident.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    #[expect(clippy::cast_precision_loss, reason = "a figure for people may be off by a millionth")]
    let seconds = |ticks: u64| ticks as f64 / TICKS;
    Usage {
        cpu_s: number(11).zip(number(12)).map(|(user, system)| seconds(user.saturating_add(system))),
        threads: number(17),
        resident_bytes: resident_kib.map(|kib| kib.saturating_mul(1024)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_moves_nothing() {
        let stat = "4242 (a) b (c) R 1 1 1 0 -1 0 0 0 0 0 125 25 0 0 20 0 9 0 100 200 300";
        let status = "Name:\tx\nVmHWM:\t  9 kB\nVmRSS:\t  2048 kB\n";
        let wanted = Usage { cpu_s: Some(1.5), threads: Some(9), resident_bytes: Some(2 << 20) };
        assert_eq!(read(stat, status), wanted);
        assert_eq!(read("", "VmRSS: much"), Usage::default());
    }

    #[test]
    fn this_process_is_read() {
        let usage = usage();
        assert!(usage.threads.is_some_and(|threads| threads >= 1), "{usage:?}");
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1 << 16), "{usage:?}");
        assert!(usage.cpu_s.is_some(), "{usage:?}");
    }
}
