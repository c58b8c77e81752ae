//! Metrics of an instance.
//!
//! Names, kinds and units are those of Triton's container monitor (`triton-cmon-agent`), so that its dashboards and rules work, with what
//! Linux counts closest to each. What has no counterpart here is left out rather than made up: `load_average` (Linux averages whole
//! machines), `vfs_*` (files are not counted by instance), `tcp_duplicate_ack_count`, and of `cpucap_*` what describes bursting, which our
//! ceiling does not do. Behind Triton's come our own.

use super::exposition::{Exposition, Family, Kind, Labels, Row, Value, count, render, seconds_of_us};
use crate::{
    meters::{InstanceMeters, LinkMeters, Pressures, TcpMeters, ZoneMeters},
    time::Timestamp,
};

fn zone(meters: &InstanceMeters, read: impl Fn(&ZoneMeters) -> Option<u64>) -> Option<Value> {
    count(meters.zone.as_ref().and_then(read))
}

fn tcp(meters: &InstanceMeters, read: impl Fn(&TcpMeters) -> u64) -> Option<Value> {
    zone(meters, |zone| zone.tcp.as_ref().map(&read))
}

fn pressure(meters: &InstanceMeters, read: impl Fn(&Pressures) -> u64) -> Option<Value> {
    meters.zone?.pressure.as_ref().map(|pressures| seconds_of_us(read(pressures)))
}

/// Everything but what is told for each NIC.
pub const ROWS: &[Row<InstanceMeters>] = &[
    Row::counter("cpu_user_usage", "CPU time its programs used, nanoseconds.", |m| zone(m, |z| Some(z.cpu_user_ns))),
    Row::counter("cpu_sys_usage", "CPU time the kernel used on its behalf, nanoseconds.", |m| {
        zone(m, |z| Some(z.cpu_system_ns))
    }),
    Row::counter("cpu_wait_time", "Time in which any of its threads waited for a CPU, nanoseconds.", |m| {
        zone(m, |z| z.pressure.map(|pressures| pressures.cpu.some_us.saturating_mul(1_000)))
    }),
    Row::gauge("cpucap_limit_percentage", "Most CPU time it may use, percent of one CPU.", |m| {
        count(m.limits.as_ref()?.cpu_cap.map(|cap| u64::from(cap.0)))
    }),
    Row::counter("cpucap_above_seconds_total", "Time it was held back by its ceiling on CPU time, seconds.", |m| {
        m.zone?.cpu_held_back_ns.map(|ns| seconds_of_us(ns / 1_000))
    }),
    Row::gauge("mem_agg_usage", "Memory it uses, without files that are only cached, bytes.", |m| {
        zone(m, |z| Some(z.memory_bytes))
    }),
    Row::gauge("mem_limit", "Most memory it may use, bytes.", |m| count(m.limits.as_ref().map(|l| l.memory.bytes()))),
    Row::gauge("mem_swap", "Memory and swap it uses together, bytes.", |m| zone(m, |z| z.memory_and_swap_bytes)),
    Row::gauge("mem_swap_limit", "Most memory and swap it may use together, bytes.", |m| {
        count(m.limits.as_ref().map(|l| l.swap.bytes()))
    }),
    Row::counter("mem_anon_alloc_fail", "How often it was at its limit of memory.", |m| zone(m, |z| z.memory_failures)),
    Row::counter("tcp_active_open_count", "TCP connections it began.", |m| tcp(m, |t| t.active_opens)),
    Row::counter("tcp_passive_open_count", "TCP connections it accepted.", |m| tcp(m, |t| t.passive_opens)),
    Row::counter("tcp_failed_connection_attempt_count", "TCP connections that did not come about.", |m| {
        tcp(m, |t| t.failed_attempts)
    }),
    Row::gauge("tcp_current_established_connections_total", "TCP connections there are.", |m| {
        tcp(m, |t| t.established)
    }),
    Row::counter("tcp_retransmitted_segment_count", "TCP segments it sent again.", |m| tcp(m, |t| t.retransmitted)),
    Row::counter("tcp_listen_drop_count", "TCP connections dropped because it did not accept them in time.", |m| {
        tcp(m, |t| t.listen_drops)
    }),
    Row::counter("tcp_half_open_drop_count", "TCP connections dropped half open.", |m| tcp(m, |t| t.half_open_drops)),
    Row::counter("tcp_retransmit_timeout_drop_count", "TCP connections given up because nobody acknowledged.", |m| {
        tcp(m, |t| t.timeout_drops)
    }),
    Row::gauge("zfs_used", "Bytes it uses of its disk quota.", |m| count(m.disk_bytes)),
    Row::gauge("zfs_available", "Bytes left of its disk quota.", |m| {
        count(Some(m.limits.as_ref()?.disk.bytes().saturating_sub(m.disk_bytes?)))
    }),
    Row::counter("oom_kills_total", "Processes the kernel killed for lack of memory.", |m| {
        zone(m, |z| Some(z.oom_kills))
    }),
    Row::gauge("processes", "Processes and threads it has.", |m| zone(m, |z| Some(z.processes))),
    Row::gauge("processes_limit", "Most processes and threads it may have.", |m| {
        count(m.limits.as_ref().map(|l| u64::from(l.max_processes)))
    }),
    Row::counter("pressure_cpu_waiting_seconds_total", "Time in which any task waited for a CPU, seconds.", |m| {
        pressure(m, |p| p.cpu.some_us)
    }),
    Row::counter("pressure_memory_waiting_seconds_total", "Time in which any task waited for memory, seconds.", |m| {
        pressure(m, |p| p.memory.some_us)
    }),
    Row::counter("pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, seconds.", |m| {
        pressure(m, |p| p.memory.full_us)
    }),
    Row::counter("pressure_io_waiting_seconds_total", "Time in which any task waited for a disk, seconds.", |m| {
        pressure(m, |p| p.io.some_us)
    }),
    Row::counter("pressure_io_stalled_seconds_total", "Time in which all tasks waited for a disk, seconds.", |m| {
        pressure(m, |p| p.io.full_us)
    }),
];

/// What is told for each NIC, with the label `interface`.
pub const NIC_ROWS: &[Row<LinkMeters>] = &[
    Row::counter("net_agg_packets_in", "Packets that arrived.", |l| Some(l.received_packets.into())),
    Row::counter("net_agg_packets_out", "Packets that left.", |l| Some(l.sent_packets.into())),
    Row::counter("net_agg_bytes_in", "Bytes that arrived.", |l| Some(l.received_bytes.into())),
    Row::counter("net_agg_bytes_out", "Bytes that left.", |l| Some(l.sent_bytes.into())),
    Row::counter("net_agg_drops_in", "Packets that arrived and were dropped.", |l| Some(l.received_drops.into())),
    Row::counter("net_agg_drops_out", "Packets that were to leave and were dropped.", |l| Some(l.sent_drops.into())),
];

/// The clock when all this was read.
const TIME_OF_DAY: Family =
    Family { name: "time_of_day", kind: Kind::Counter, help: "Time on its machine, milliseconds since 1970." };

/// The interface's name as Triton tells it: `net0` inside is `vnic0`.
fn interface(inside: &str) -> String {
    inside
        .strip_prefix("net")
        .or_else(|| inside.strip_prefix("eth"))
        .map_or_else(|| inside.to_owned(), |n| format!("vnic{n}"))
}

/// All of one instance, without labels but the interface.
pub fn one(meters: &InstanceMeters, at: Timestamp) -> String {
    let mut text = Exposition::default();
    all(&[(Labels::none(), meters)], &mut text);
    text.one(&TIME_OF_DAY, at.millis_since(Timestamp(0)));
    text.into_text()
}

/// All of many instances, told apart by their labels.
pub fn all(subjects: &[(Labels, &InstanceMeters)], text: &mut Exposition) {
    render(ROWS, subjects, text);
    let nics: Vec<(Labels, &LinkMeters)> = subjects
        .iter()
        .flat_map(|(labels, meters)| {
            meters.nics.iter().map(|(name, link)| (labels.with("interface", &interface(name)), link))
        })
        .collect();
    render(NIC_ROWS, &nics, text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meters::Pressure;

    #[test]
    fn what_is_not_known_is_not_told() {
        let text = one(&InstanceMeters::default(), Timestamp(1_500));
        assert_eq!(
            text,
            "# HELP time_of_day Time on its machine, milliseconds since 1970.\n# TYPE time_of_day counter\ntime_of_day 1500\n"
        );
    }

    #[test]
    fn names_and_units_are_tritons() {
        let pressures = Pressures { cpu: Pressure { some_us: 7, full_us: 0 }, ..Pressures::default() };
        let tcp = TcpMeters { established: 3, ..TcpMeters::default() };
        let zone = ZoneMeters {
            cpu_user_ns: 5_000,
            cpu_held_back_ns: Some(1_500_000_000),
            memory_bytes: 1 << 20,
            pressure: Some(pressures),
            tcp: Some(tcp),
            ..ZoneMeters::default()
        };
        let link = LinkMeters { received_bytes: 9, ..LinkMeters::default() };
        let meters =
            InstanceMeters { zone: Some(zone), nics: [("net0".to_owned(), link)].into(), ..InstanceMeters::default() };
        let text = one(&meters, Timestamp(0));
        for line in [
            "cpu_user_usage 5000",
            "cpu_wait_time 7000",
            "cpucap_above_seconds_total 1.5",
            "mem_agg_usage 1048576",
            "tcp_current_established_connections_total 3",
            "net_agg_bytes_in{interface=\"vnic0\"} 9",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("mem_limit"), "{text}");
    }

    #[test]
    fn no_name_is_used_twice() {
        let names = ROWS.iter().map(|row| row.family.name).chain(NIC_ROWS.iter().map(|row| row.family.name));
        let mut all: Vec<&str> = names.collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        let is_name = |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        assert!(all.iter().all(is_name), "{all:?}");
    }
}
