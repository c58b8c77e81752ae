//! What the machine says of itself, read from `/proc` and the pool.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use base::clock::Clock;
use model::{meters::MachineMeters, server::Hardware, time::Timestamp, unit::Mib};
use nix::{sys::statvfs::statvfs, sys::utsname::uname, unistd::gethostname};

use crate::{
    error::{Error, Result},
    linux::{command, hardware::Sources, machine_meters},
    machine::Machine,
};

/// Ending of the name of a file that says that the boot is being ended.
pub const GOES_DOWN: &str = "ends";

/// There while systemd runs the machine.
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// This machine.
pub struct LinuxMachine {
    clock: Arc<dyn Clock>,
    pool: PathBuf,
    boot_id_file: PathBuf,
    goes_down_file: Option<PathBuf>,
}

impl LinuxMachine {
    /// The machine whose pool is mounted on `pool`. Its boot id is read from `boot_id_file`, or from the kernel when
    /// that is `None`; a file of one's own simulates reboots. While there is a file named like that one and [`GOES_DOWN`], the
    /// machine counts as going down.
    pub fn new(clock: Arc<dyn Clock>, pool: PathBuf, boot_id_file: Option<PathBuf>) -> Self {
        let goes_down_file = boot_id_file.as_ref().map(|file| file.with_extension(GOES_DOWN));
        let boot_id_file = boot_id_file.unwrap_or_else(|| PathBuf::from("/proc/sys/kernel/random/boot_id"));
        Self { clock, pool, boot_id_file, goes_down_file }
    }
}

impl Machine for LinuxMachine {
    fn hardware(&self) -> Result<Hardware> {
        let read = |path: &str| fs::read_to_string(path).map_err(|source| Error::os(format!("read `{path}`"), source));
        let pool = statvfs(&self.pool)
            .map_err(|errno| Error::os(format!("read the size of `{}`", self.pool.display()), errno.into()))?;
        let (cpus, cpu_model) = cpus(&read("/proc/cpuinfo")?);
        let sources = Sources::default();
        let kernel = uname().map_err(|errno| Error::os("ask for the kernel's release", errno.into()))?;
        Ok(Hardware {
            memory: memory(&read("/proc/meminfo")?),
            cpus,
            cpu_model,
            pool_size: Mib::from_bytes(pool.blocks() * pool.fragment_size()),
            kernel: kernel.release().to_string_lossy().into_owned(),
            agent_version: base::release::name().to_owned(),
            disks: sources.disks(),
            cards: sources.cards(),
            product: sources.product(),
            identity: sources.identity(),
            nic_tags: None,
        })
    }

    fn hostname(&self) -> Result<String> {
        let name = gethostname().map_err(|errno| Error::os("ask for the host name", errno.into()))?;
        Ok(name.to_string_lossy().into_owned())
    }

    fn boot_id(&self) -> Result<String> {
        let path = &self.boot_id_file;
        let id = fs::read_to_string(path).map_err(|source| Error::os(format!("read `{}`", path.display()), source))?;
        Ok(id.trim().to_owned())
    }

    fn goes_down(&self) -> bool {
        self.goes_down_file.as_ref().is_some_and(|file| file.exists()) || systemd_stops()
    }

    fn meters(&self) -> Result<MachineMeters> {
        machine_meters::read()
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.clock.now_ms())
    }
}

/// Whether systemd is shutting the machine down.
fn systemd_stops() -> bool {
    // Whoever asks is about to end and waits for no systemd that is busy.
    let question = ["-s", "KILL", "2", "systemctl", "show", "--property=SystemState"];
    Path::new(SYSTEMD_RUNS).exists()
        && command::run("timeout", &question, "").is_ok_and(|answer| answer.trim_ascii() == b"SystemState=stopping")
}

/// Memory the kernel can use, from the text of `/proc/meminfo`.
fn memory(meminfo: &str) -> Mib {
    let total =
        meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    Mib(total.unwrap_or(0_u64) / 1024)
}

/// Logical CPUs and the model of the first, from the text of `/proc/cpuinfo`.
fn cpus(cpuinfo: &str) -> (u32, String) {
    let values = |key: &'static str| {
        cpuinfo.lines().filter_map(move |line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim())
        })
    };
    let count = u32::try_from(values("processor").count()).unwrap_or(u32::MAX);
    // Arm has no model text; what it calls itself is the next best.
    let model = values("model name").next().or_else(|| values("CPU implementer").next()).unwrap_or("unknown");
    (count.max(1), model.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_are_read() {
        assert_eq!(memory("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), Mib(16_000));
        assert_eq!(memory(""), Mib(0));
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2GHz\n";
        assert_eq!(cpus(text), (2, "Some CPU @ 2GHz".to_owned()));
        assert_eq!(cpus(""), (1, "unknown".to_owned()));
    }
}
