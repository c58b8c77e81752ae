//! Metrics of a machine.
//!
//! Named as Prometheus' node exporter names them, so that whoever watched machines before sees what he knows, and a few that
//! Triton tells of its compute nodes beside them.

use super::{
    agent,
    exposition::{Exposition, Family, Kind, Labels, Row, Value, count, render, seconds_of_us},
};
use crate::{
    meters::{CpuMeters, DiskMeters, LinkMeters, MachineMeters, Pressures},
    time::Timestamp,
};

/// Hundredths of a second as seconds.
fn seconds(hundredths: u64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a metric may be off by a millionth")]
    Value::Real(hundredths as f64 / 100.0)
}

fn pressure(machine: &MachineMeters, read: impl Fn(&Pressures) -> u64) -> Option<Value> {
    machine.pressure.as_ref().map(|pressures| seconds_of_us(read(pressures)))
}

/// What there is one of.
pub const ROWS: &[Row<MachineMeters>] = &[
    Row::gauge("node_boot_time_seconds", "When the machine was switched on, seconds since 1970.", |m| {
        Some(m.booted_s.into())
    }),
    Row::gauge("node_load1", "Tasks running or waiting, averaged over a minute.", |m| Some(m.load[0].into())),
    Row::gauge("node_load5", "Tasks running or waiting, averaged over five minutes.", |m| Some(m.load[1].into())),
    Row::gauge("node_load15", "Tasks running or waiting, averaged over fifteen minutes.", |m| Some(m.load[2].into())),
    Row::counter("node_pressure_cpu_waiting_seconds_total", "Time in which any task waited for a CPU, seconds.", |m| {
        pressure(m, |p| p.cpu.some_us)
    }),
    Row::counter(
        "node_pressure_memory_waiting_seconds_total",
        "Time in which any task waited for memory, seconds.",
        |m| pressure(m, |p| p.memory.some_us),
    ),
    Row::counter(
        "node_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory, seconds.",
        |m| pressure(m, |p| p.memory.full_us),
    ),
    Row::counter("node_pressure_io_waiting_seconds_total", "Time in which any task waited for a disk, seconds.", |m| {
        pressure(m, |p| p.io.some_us)
    }),
    Row::counter(
        "node_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for a disk, seconds.",
        |m| pressure(m, |p| p.io.full_us),
    ),
    Row::gauge("node_timex_sync_status", "Whether something keeps the clock right (1) or not (0).", |m| {
        count(m.clock.map(|clock| u64::from(clock.is_synchronized)))
    }),
    Row::gauge("node_timex_maxerror_seconds", "How far the clock may be off at most, seconds.", |m| {
        m.clock.map(|clock| seconds_of_us(clock.max_error_us))
    }),
    Row::gauge("node_timex_estimated_error_seconds", "How far the clock is thought to be off, seconds.", |m| {
        m.clock.map(|clock| seconds_of_us(clock.estimated_error_us))
    }),
    Row::gauge("neso_pool_size_bytes", "Size of the pool of images and instances, bytes.", |m| {
        count(m.pool.map(|(size, _)| size))
    }),
    Row::gauge("neso_pool_used_bytes", "What is used of the pool of images and instances, bytes.", |m| {
        count(m.pool.map(|(_, used)| used))
    }),
];

/// What there is of each CPU, with the label `cpu`. Triton's names; the node exporter's come from [`CPU_MODES`].
pub const CPU_ROWS: &[Row<CpuMeters>] = &[
    Row::counter("cpu_idle_seconds_total", "Time a CPU had nothing to do, seconds.", |c| {
        Some(seconds(c.idle + c.iowait))
    }),
    Row::counter("cpu_kernel_seconds_total", "Time a CPU was in the kernel, seconds.", |c| Some(seconds(c.system))),
    Row::counter("cpu_user_seconds_total", "Time a CPU was in programs, seconds.", |c| Some(seconds(c.user))),
];

/// Time of a CPU in one mode: what the mode is called, and where it is read.
type Mode = (&'static str, fn(&CpuMeters) -> u64);

/// Modes of [`CPU_SECONDS`].
const CPU_MODES: [Mode; 5] = [
    ("idle", |c| c.idle),
    ("iowait", |c| c.iowait),
    ("steal", |c| c.steal),
    ("system", |c| c.system),
    ("user", |c| c.user),
];

const CPU_SECONDS: Family =
    Family { name: "node_cpu_seconds_total", kind: Kind::Counter, help: "Time a CPU was in a mode, seconds." };

/// What there is of each disk, with the label `device`.
pub const DISK_ROWS: &[Row<DiskMeters>] = &[
    Row::counter("node_disk_reads_completed_total", "Reads a disk did.", |d| Some(d.reads.into())),
    Row::counter("node_disk_read_bytes_total", "Bytes read from a disk.", |d| Some(d.read_bytes.into())),
    Row::counter("node_disk_writes_completed_total", "Writes a disk did.", |d| Some(d.writes.into())),
    Row::counter("node_disk_written_bytes_total", "Bytes written to a disk.", |d| Some(d.written_bytes.into())),
    Row::counter("node_disk_io_time_seconds_total", "Time a disk had something to do, seconds.", |d| {
        Some(seconds_of_us(d.busy_ms.saturating_mul(1_000)))
    }),
];

/// What there is of each interface, with the label `device`.
pub const LINK_ROWS: &[Row<LinkMeters>] = &[
    Row::counter("node_network_receive_bytes_total", "Bytes that arrived.", |l| Some(l.received_bytes.into())),
    Row::counter("node_network_receive_packets_total", "Packets that arrived.", |l| Some(l.received_packets.into())),
    Row::counter("node_network_receive_drop_total", "Packets that arrived and were dropped.", |l| {
        Some(l.received_drops.into())
    }),
    Row::counter("node_network_transmit_bytes_total", "Bytes that left.", |l| Some(l.sent_bytes.into())),
    Row::counter("node_network_transmit_packets_total", "Packets that left.", |l| Some(l.sent_packets.into())),
    Row::counter("node_network_transmit_drop_total", "Packets that were to leave and were dropped.", |l| {
        Some(l.sent_drops.into())
    }),
];

/// Of `/proc/meminfo`: the kernel's name and ours.
const MEMORY: &[(&str, Family)] = &[
    ("MemTotal", memory("node_memory_MemTotal_bytes", "Memory of the machine, bytes.")),
    ("MemFree", memory("node_memory_MemFree_bytes", "Memory nobody uses, bytes.")),
    ("MemAvailable", memory("node_memory_MemAvailable_bytes", "Memory there is for new programs, bytes.")),
    ("Buffers", memory("node_memory_Buffers_bytes", "Memory in buffers of disks, bytes.")),
    ("Cached", memory("node_memory_Cached_bytes", "Memory in cached files, bytes.")),
    ("SwapTotal", memory("node_memory_SwapTotal_bytes", "Swap of the machine, bytes.")),
    ("SwapFree", memory("node_memory_SwapFree_bytes", "Swap nobody uses, bytes.")),
];

const fn memory(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

const TEMPERATURE: Family =
    Family { name: "node_hwmon_temp_celsius", kind: Kind::Gauge, help: "What a sensor measures, degrees Celsius." };

const TIME: Family =
    Family { name: "node_time_seconds", kind: Kind::Gauge, help: "Time on the machine, seconds since 1970." };

/// Names of `/proc/meminfo` that are told.
pub fn memory_names() -> impl Iterator<Item = &'static str> {
    MEMORY.iter().map(|(name, _)| *name)
}

/// All of one machine, and of its agent.
pub fn all(machine: &MachineMeters, at: Timestamp, text: &mut Exposition) {
    let none = Labels::none();
    render(ROWS, &[(none.clone(), machine)], text);
    for (name, family) in MEMORY {
        text.family(family, machine.memory.get(*name).map(|bytes| (&none, Value::Count(*bytes))));
    }
    let cpus: Vec<(Labels, &CpuMeters)> =
        machine.cpus.iter().enumerate().map(|(at, cpu)| (none.with("cpu", &at.to_string()), cpu)).collect();
    render(CPU_ROWS, &cpus, text);
    let modes: Vec<(Labels, Value)> = cpus
        .iter()
        .flat_map(|(labels, cpu)| CPU_MODES.map(|(mode, read)| (labels.with("mode", mode), seconds(read(cpu)))))
        .collect();
    text.family(&CPU_SECONDS, modes.iter().map(|(labels, value)| (labels, *value)));
    let disks: Vec<(Labels, &DiskMeters)> =
        machine.disks.iter().map(|(name, disk)| (none.with("device", name), disk)).collect();
    render(DISK_ROWS, &disks, text);
    let links: Vec<(Labels, &LinkMeters)> =
        machine.links.iter().map(|(name, link)| (none.with("device", name), link)).collect();
    render(LINK_ROWS, &links, text);
    let sensors: Vec<(Labels, Value)> =
        machine.temperatures.iter().map(|(name, degrees)| (none.with("chip", name), Value::Real(*degrees))).collect();
    text.family(&TEMPERATURE, sensors.iter().map(|(labels, value)| (labels, *value)));
    text.one(&TIME, seconds_of_us(at.millis_since(Timestamp(0)).saturating_mul(1_000)));
    if let Some(agent) = &machine.agent {
        agent::all(agent, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_told_as_dashboards_know_them() {
        let machine = MachineMeters {
            cpus: vec![CpuMeters { user: 150, idle: 50, ..CpuMeters::default() }; 2],
            memory: [("MemTotal".to_owned(), 4096), ("Unheard".to_owned(), 1)].into(),
            disks: [("vda".to_owned(), DiskMeters { busy_ms: 2_500, ..DiskMeters::default() })].into(),
            ..MachineMeters::default()
        };
        let mut text = Exposition::default();
        all(&machine, Timestamp(1_700_000_000_250), &mut text);
        let text = text.into_text();
        for line in [
            "node_cpu_seconds_total{cpu=\"1\",mode=\"user\"} 1.5",
            "cpu_idle_seconds_total{cpu=\"0\"} 0.5",
            "node_memory_MemTotal_bytes 4096",
            "node_disk_io_time_seconds_total{device=\"vda\"} 2.5",
            "node_time_seconds 1700000000.25",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("Unheard") && !text.contains("temp"), "{text}");
    }
}
