//! What a zone uses, from the files of its control groups and of its network namespace.
//!
//! A file a kernel does not have is a number that is not known; only the three that every kernel we run on has (memory, processes, CPU
//! time) must be there.

use std::{fs, path::Path};

use model::meters::{Pressure, Pressures, TcpMeters, ZoneMeters};

use super::cgroup::{Version, field, read, read_number};
use crate::error::Result;

/// The directories of a zone's control groups.
pub(super) struct Places<'a> {
    pub(super) memory: &'a Path,
    pub(super) cpu: &'a Path,
    pub(super) pids: &'a Path,
    pub(super) unified: &'a Path,
}

/// Reads them; `versions` are those of memory and CPU.
pub(super) fn of_group(places: &Places<'_>, versions: (Version, Version), oom_kills: u64) -> Result<ZoneMeters> {
    let cpu = read(&places.unified.join("cpu.stat"))?;
    let ns = |name: &str| field(&cpu, name).unwrap_or(0).saturating_mul(1_000);
    let held_back = fs::read_to_string(places.cpu.join("cpu.stat")).unwrap_or_default();
    let cpu_held_back_ns = match versions.1 {
        Version::V1 => field(&held_back, "throttled_time"),
        Version::V2 => field(&held_back, "throttled_usec").map(|us| us.saturating_mul(1_000)),
    };
    let memory = memory(places.memory, versions.0)?;
    Ok(ZoneMeters {
        started_at: None,
        cpu_user_ns: ns("user_usec"),
        cpu_system_ns: ns("system_usec"),
        cpu_held_back_ns,
        memory_bytes: memory.own,
        memory_and_swap_bytes: memory.with_swap,
        memory_failures: memory.failures,
        oom_kills,
        processes: read_number(&places.pids.join("pids.current"))?,
        pressure: pressures(places.unified, ".pressure"),
        tcp: None,
    })
}

struct Memory {
    own: u64,
    with_swap: Option<u64>,
    failures: Option<u64>,
}

fn memory(group: &Path, version: Version) -> Result<Memory> {
    let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let number = |name: &str| read_number(&group.join(name)).ok();
    match version {
        Version::V1 => {
            let cached = field(&statistics, "total_inactive_file").unwrap_or(0);
            Ok(Memory {
                own: read_number(&group.join("memory.usage_in_bytes"))?.saturating_sub(cached),
                with_swap: number("memory.memsw.usage_in_bytes").map(|both| both.saturating_sub(cached)),
                failures: number("memory.failcnt"),
            })
        }
        Version::V2 => {
            let cached = field(&statistics, "inactive_file").unwrap_or(0);
            let own = read_number(&group.join("memory.current"))?.saturating_sub(cached);
            let events = fs::read_to_string(group.join("memory.events")).unwrap_or_default();
            let with_swap = number("memory.swap.current").map(|swap| own.saturating_add(swap));
            Ok(Memory { own, with_swap, failures: field(&events, "max") })
        }
    }
}

/// Pressure stalls from `cpu`, `memory` and `io` in `directory`, each with an `ending`: none in `/proc/pressure`.
pub(in crate::linux) fn pressures(directory: &Path, ending: &str) -> Option<Pressures> {
    let one = |name: &str| pressure(&fs::read_to_string(directory.join(format!("{name}{ending}"))).ok()?);
    Some(Pressures { cpu: one("cpu")?, memory: one("memory")?, io: one("io")? })
}

/// Reads `some avg10=… avg60=… avg300=… total=N`, and the line `full` of the same shape, where there is one.
fn pressure(text: &str) -> Option<Pressure> {
    let total = |name: &str| {
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit_once("total=")?.1.trim().parse::<u64>().ok()
    };
    Some(Pressure { some_us: total("some")?, full_us: total("full").unwrap_or(0) })
}

/// TCP of the network namespace a process is in.
pub(super) fn tcp(pid: u32) -> Option<TcpMeters> {
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
    read_tcp(&file("snmp")?, &file("netstat").unwrap_or_default())
}

/// Reads both files: pairs of lines, names above numbers.
fn read_tcp(snmp: &str, netstat: &str) -> Option<TcpMeters> {
    let tcp = row(snmp, "Tcp:")?;
    let more = row(netstat, "TcpExt:").unwrap_or_default();
    let find =
        |row: &[(&str, u64)], name: &str| row.iter().find(|(found, _)| *found == name).map_or(0, |(_, number)| *number);
    Some(TcpMeters {
        active_opens: find(&tcp, "ActiveOpens"),
        passive_opens: find(&tcp, "PassiveOpens"),
        failed_attempts: find(&tcp, "AttemptFails"),
        established: find(&tcp, "CurrEstab"),
        retransmitted: find(&tcp, "RetransSegs"),
        listen_drops: find(&more, "ListenDrops"),
        half_open_drops: find(&more, "TCPReqQFullDrop"),
        timeout_drops: find(&more, "TCPAbortOnTimeout"),
    })
}

fn row<'a>(text: &'a str, name: &str) -> Option<Vec<(&'a str, u64)>> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let (names, numbers) = (lines.next()?, lines.next()?);
    // `MaxConn` is -1; nobody here asks for it.
    let numbers = numbers.split_whitespace().map(|number| number.parse().unwrap_or(0));
    Some(names.split_whitespace().zip(numbers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let snmp =
            "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoAlgorithm MaxConn ActiveOpens CurrEstab\nTcp: 1 -1 7 2\n";
        let netstat = "TcpExt: SyncookiesSent ListenDrops\nTcpExt: 0 5\n";
        let wanted = TcpMeters { active_opens: 7, established: 2, listen_drops: 5, ..TcpMeters::default() };
        assert_eq!(read_tcp(snmp, netstat), Some(wanted));
        assert_eq!(read_tcp(snmp, ""), Some(TcpMeters { listen_drops: 0, ..wanted }));
        assert_eq!(read_tcp("Ip: a\nIp: 1\n", netstat), None);
    }

    #[test]
    fn pressure_is_read_with_and_without_the_second_line() {
        let some = "some avg10=0.00 avg60=1.25 avg300=0.30 total=12345\n";
        assert_eq!(pressure(some), Some(Pressure { some_us: 12_345, full_us: 0 }));
        let both = format!("{some}full avg10=0.00 avg60=0.00 avg300=0.00 total=45\n");
        assert_eq!(pressure(&both), Some(Pressure { some_us: 12_345, full_us: 45 }));
        assert_eq!(pressure("nonsense"), None);
    }
}
