//! What a machine used since its boot, from `/proc`, `/sys` and the kernel's clock.
//!
//! What a kernel or a machine does not have is left out and never an error; without `/proc/stat` there is nothing to say.

#![expect(unsafe_code, reason = "the kernel's opinion of its clock has no safe wrapper")]

use std::{collections::BTreeMap, fs, path::Path};

use model::{
    meters::{ClockMeters, CpuMeters, DiskMeters, MachineMeters},
    metrics::machine::memory_names,
};
use nix::libc;

use super::{hardware::Sources, zone::meters::pressures};
use crate::error::{Error, Result};

/// Bytes of the unit of `/proc/diskstats`, whatever the disk's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// Most sensors that are told.
const SENSORS_MAX: usize = 64;

/// Reads all of it.
pub(super) fn read() -> Result<MachineMeters> {
    let path = "/proc/stat";
    let stat = fs::read_to_string(path).map_err(|source| Error::os(format!("read `{path}`"), source))?;
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Ok(MachineMeters {
        booted_s: booted(&stat),
        up_ms: up_ms(&text("/proc/uptime")),
        cpus: cpus(&stat),
        load: load(&text("/proc/loadavg")),
        memory: memory(&text("/proc/meminfo")),
        disks: disks(&text("/proc/diskstats")),
        pressure: pressures(Path::new("/proc/pressure"), ""),
        temperatures: temperatures(Path::new("/sys/class/hwmon")),
        clock: clock(),
        ..MachineMeters::default()
    })
}

fn booted(stat: &str) -> u64 {
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
}

/// Seconds with two digits of their hundredths, and how long CPUs were idle.
fn up_ms(text: &str) -> Option<u64> {
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    let hundredths: u64 = hundredths.parse().ok().filter(|hundredths| *hundredths < 100)?;
    Some(seconds.parse::<u64>().ok()?.saturating_mul(1_000).saturating_add(hundredths * 10))
}

/// Lines `cpuN user nice system idle iowait irq softirq steal guest guest_nice`; guests are in user and nice already.
fn cpus(stat: &str) -> Vec<CpuMeters> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(' ')?;
        name.strip_prefix("cpu")?.parse::<u32>().ok()?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let at = |place: usize| numbers.get(place).copied().unwrap_or(0);
        Some(CpuMeters { user: at(0) + at(1), system: at(2) + at(5) + at(6), idle: at(3), iowait: at(4), steal: at(7) })
    };
    stat.lines().filter_map(line).collect()
}

fn load(text: &str) -> [f64; 3] {
    let mut numbers = text.split(' ').filter_map(|number| number.parse().ok());
    [(); 3].map(|()| numbers.next().unwrap_or(0.0))
}

/// Lines `Name:   123 kB`.
fn memory(text: &str) -> BTreeMap<String, u64> {
    let find = |name: &'static str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some((name.to_owned(), kib.saturating_mul(1024)))
    };
    memory_names().filter_map(find).collect()
}

/// Lines `major minor name reads merged sectors ms writes merged sectors ms now busy-ms …`; only whole disks.
fn disks(text: &str) -> BTreeMap<String, DiskMeters> {
    let mut all: BTreeMap<&str, DiskMeters> = text.lines().filter_map(disk).collect();
    Sources::default()
        .disks()
        .into_iter()
        .filter_map(|disk| Some((disk.name.clone(), all.remove(disk.name.as_str())?)))
        .collect()
}

fn disk(line: &str) -> Option<(&str, DiskMeters)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let meters = DiskMeters {
        reads: number(3)?,
        read_bytes: number(5)?.saturating_mul(SECTOR_BYTES),
        writes: number(7)?,
        written_bytes: number(9)?.saturating_mul(SECTOR_BYTES),
        busy_ms: number(12)?,
    };
    Some((words.get(2)?, meters))
}

/// Sensors of `/sys/class/hwmon`: thousandths of a degree in files `tempN_input`.
fn temperatures(directory: &Path) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for chip in fs::read_dir(directory).into_iter().flatten().flatten() {
        let chip = chip.path();
        let Ok(name) = fs::read_to_string(chip.join("name")) else { continue };
        for file in fs::read_dir(&chip).into_iter().flatten().flatten() {
            let file_name = file.file_name().to_string_lossy().into_owned();
            let Some(number) = file_name.strip_prefix("temp").and_then(|rest| rest.strip_suffix("_input")) else {
                continue;
            };
            let thousandths = fs::read_to_string(file.path()).ok().and_then(|text| text.trim().parse::<i32>().ok());
            if let Some(thousandths) = thousandths
                && found.len() < SENSORS_MAX
            {
                let place = chip.file_name().unwrap_or_default().to_string_lossy();
                found.insert(format!("{} {place}/{number}", name.trim()), f64::from(thousandths) / 1_000.0);
            }
        }
    }
    found
}

fn clock() -> Option<ClockMeters> {
    // SAFETY: all zeroes is a valid `timex`, and means that nothing is to be changed.
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `timex` that lives for the whole call.
    let state = unsafe { libc::adjtimex(&raw mut answer) };
    let count = |number: libc::c_long| u64::try_from(number).unwrap_or(0);
    (state >= 0).then(|| ClockMeters {
        is_synchronized: answer.status & libc::STA_UNSYNC == 0,
        max_error_us: count(answer.maxerror),
        estimated_error_us: count(answer.esterror),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 10 2 30 40 5 6 7 8 9 10\ncpu1 1\nintr 9\nbtime 1700000000\n";
        let first = CpuMeters { user: 12, system: 43, idle: 40, iowait: 5, steal: 8 };
        assert_eq!(cpus(stat), [first, CpuMeters { user: 1, ..CpuMeters::default() }]);
        assert_eq!(booted(stat), 1_700_000_000);
        assert_eq!(up_ms("68400.07 130000.12\n"), Some(68_400_070));
        assert_eq!((up_ms(""), up_ms("1.234 5")), (None, None));
        assert_eq!(load("0.25 1.50 3.00 1/2 3"), [0.25, 1.5, 3.0]);
        let found = memory("MemTotal:       16 kB\nMemTotalish: 9 kB\nHugePages_Total: 0\n");
        assert_eq!(found, [("MemTotal".to_owned(), 16_384)].into());
    }

    #[test]
    fn this_machine_says_what_it_used() {
        let one = read().expect("/proc is there");
        assert!(
            one.booted_s > 0
                && one.up_ms.is_some_and(|ms| ms > 0)
                && !one.cpus.is_empty()
                && one.memory["MemTotal"] > 0,
            "{one:?}"
        );
        let other = read().expect("/proc is there");
        let sum = |meters: &MachineMeters| meters.cpus.iter().map(|cpu| cpu.user + cpu.system + cpu.idle).sum::<u64>();
        assert!(sum(&other) >= sum(&one), "counters grow");
    }
}
