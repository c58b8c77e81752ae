//! A whole machine, as operators have it: Debian 12 with its own kernel, systemd and nothing but control groups version 2,
//! emulated by QEMU. What no other test can see is here: `neso install`, restarts by systemd, full disk quotas, modules
//! loaded when they are needed, going down, and losing power.
//!
//! One machine and one story, because a boot costs most. Without QEMU, mmdebstrap or root the test says so and passes,
//! unless `NESO_REQUIRE_MACHINE` is set, as `make test` does.
#![allow(clippy::disallowed_types, clippy::print_stdout, reason = "the subject is a machine, and skips are said")]

mod root;
mod vm;

use std::{fs, process::Command};

use serde_json::Value;

use crate::{root::Root, vm::Machine};

/// The script of the instance that exceeds its limits, each told in its metadata.
const PROBES: &str = r#"#!/bin/sh
say() { mdata-put "$1" "$(eval "$2" 2>&1 | tail -n 3)"; }
say disk 'dd if=/dev/zero of=/fill bs=1M count=100'
rm -f /fill
say memory 'head -c 100m /dev/zero | tail -c 90m | wc -c'
say processes '(i=0; while [ $i -lt 60 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done; echo all of them)'
killall sleep
say cpu 'i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; echo $i'
mdata-put done yes
"#;

/// What every script begins with: a tenant's profile.
const TENANT: &str = "export TRITON_URL=https://127.0.0.1:8443 TRITON_ACCOUNT=demo TRITON_TLS_INSECURE=1
export TRITON_KEY_ID=$(ssh-keygen -E md5 -lf ~/.ssh/id_neso.pub | sed 's/.*MD5:\\([^ ]*\\).*/\\1/')
";

#[test]
fn a_debian_machine_is_a_host() {
    if let Some(lack) = lack() {
        assert!(std::env::var_os("NESO_REQUIRE_MACHINE").is_none(), "cannot run the machine's test: {lack}");
        println!("skipped: a whole Debian machine, because {lack}");
        return;
    }
    let payload = payload();
    let mut machine = Machine::new(Root::ensure(), payload.path());
    machine.boot();
    machine.good("mkdir -p /etc/neso /root/payload && tar -xf /dev/vdb -C /root/payload");
    machine.good("cp /root/payload/neso.toml /etc/neso/ && /root/payload/neso install");
    let found: Value = serde_json::from_str(&machine.good("neso doctor -j")).expect("JSON");
    let bad: Vec<_> = found.as_array().expect("a list").iter().filter(|one| one["severity"] == "fatal").collect();
    assert!(bad.is_empty(), "the doctor finds {bad:?}");
    machine.good("findmnt -n -o SOURCE,FSTYPE /var/lib/neso/pool | grep -q '/dev/vdc *btrfs'");

    limits_hold(&mut machine);
    the_agent_ends_alone(&mut machine);

    machine.good("systemctl disable neso-headnode && sync");
    machine.cut_power();
    machine.boot();
    machine.wait("the instance to come back", "grep -q '\"exit\":null' /run/neso/zones/*/status.json");
    assert_ne!(machine.run("systemctl is-active neso-headnode").0, 0, "a headnode runs; the agent was to be alone");
    machine.good("systemctl enable neso-headnode && neso up");
    machine.wait("its record to agree", "neso adm -j instance list | tr -d ' \\n' | grep -q '\"state\":\"running\"'");
    machine.power_off();
    let console = machine.console();
    let halted = console.rfind("last unmount of filesystem").expect("the pool was unmounted");
    let killed = console.find("Sending SIGTERM to remaining processes").expect("it went down in order");
    assert!(halted < killed, "instances were killed instead of halted");
}

/// Memory, processes, CPU time and disk are limited by the kernel; afterwards nothing of the instance is left.
fn limits_hold(machine: &mut Machine) {
    machine.good("neso adm package create tiny --memory 64 --swap 64 --disk 64 --max-processes 40 --cpu-cap 50");
    let create = "neso instance create -w --name limits --script /root/payload/probes.sh minimal tiny";
    machine.good(&format!("{TENANT}{create}"));
    let told = "neso instance metadata -j limits | grep -q '\"done\"'";
    machine.wait("the guest to try its limits", &format!("{{ {TENANT}{told}; }}"));
    let said: Value =
        serde_json::from_str(&machine.good(&format!("{TENANT}neso instance metadata -j limits"))).expect("JSON");
    let text = |key: &str| said[key].as_str().unwrap_or_else(|| panic!("the guest did not tell {key}: {said}"));
    assert!(text("disk").contains("quota exceeded"), "{said}");
    assert!(text("memory").contains("Killed"), "{said}");
    assert!(!text("processes").contains("all of them"), "{said}");
    let limits: Value = serde_json::from_str(&machine.good("neso adm -j instance get limits")).expect("JSON");
    let group = format!("/sys/fs/cgroup/neso/zone-{}", limits["id"].as_str().expect("an id"));
    let counted = |text: String, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    assert!(counted(machine.good(&format!("cat {group}/cpu.stat")), "nr_throttled") > 0);
    assert!(counted(machine.good(&format!("cat {group}/memory.events")), "oom_kill") > 0);
    assert!(counted(machine.good(&format!("cat {group}/pids.events")), "max") > 0);
    let lost_count = machine.run("btrfs qgroup show /var/lib/neso/pool 2>&1 | grep inconsistent");
    assert_eq!(lost_count.1, "", "the pool lost count: no quota holds");

    machine.good(&format!("{TENANT}neso instance stop -w limits && neso instance start -w limits"));
    machine.good(&format!("{TENANT}neso instance delete -w limits"));
    machine.wait("its control group to go", &format!("[ ! -e {group} ]"));
    machine.wait("its root to go", "[ $(ls /var/lib/neso/pool/roots | wc -l) = 1 ]");
}

/// Restarting the agent, and systemd's own work on control groups, touch no instance and no limit.
fn the_agent_ends_alone(machine: &mut Machine) {
    // What was deleted has left the disk too, so the agent's next start takes away what counted it.
    machine.good("sync && btrfs subvolume sync /var/lib/neso/pool && btrfs filesystem sync /var/lib/neso/pool");
    let look = "cat /run/neso/zones/*/status.json /sys/fs/cgroup/neso/zone-*/cpu.max";
    let before = machine.good(look);
    machine.good("systemctl restart neso-node && systemctl daemon-reload && systemctl set-property --runtime driver.service CPUWeight=50");
    machine.wait("the agent to report", "neso adm -j server list | tr -d ' \\n' | grep -q '\"reachable\":true'");
    assert_eq!(machine.good(look), before, "the restart was noticed");
    machine.wait("quota groups to go", "[ -z \"$(btrfs qgroup show /var/lib/neso/pool | grep stale)\" ]");
}

/// The program, the settings and the script, as they go onto a disk.
fn payload() -> tempfile::TempDir {
    let payload = tempfile::tempdir().expect("a directory");
    let program = payload.path().join("neso");
    root::good(Command::new("strip").arg("-o").arg(&program).arg(env!("CARGO_BIN_EXE_neso")));
    let settings = headnode::Settings::generate(None)
        .expect("settings")
        .replace("images = [\"minimal\", \"debian-12\"]", "images = [\"minimal\"]")
        .replace("instance_image = \"debian-12\"", "instance_image = \"minimal\"")
        .replace("instance_package = \"g1-small\"", "instance_package = \"g1-nano\"")
        .replace("memory_kept_mib = 1024", "memory_kept_mib = 256")
        .replace("# device = \"/dev/disk/by-id/…\"", "device = \"/dev/vdc\"");
    fs::write(payload.path().join("neso.toml"), settings).expect("the settings are written");
    fs::write(payload.path().join("probes.sh"), PROBES).expect("the script is written");
    payload
}

/// What keeps the test from running here, if anything does.
fn lack() -> Option<String> {
    let works = |program: &str, argument: &str| {
        Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success())
    };
    let user = Command::new("id").arg("-u").output().expect("`id` runs");
    if user.stdout.trim_ascii() != b"0" {
        return Some("it needs root".to_owned());
    }
    if !cfg!(target_arch = "x86_64") {
        return Some("its kernel is for x86-64".to_owned());
    }
    let tools = [("qemu-system-x86_64", "--version"), ("mmdebstrap", "--version"), ("strip", "--version")];
    tools
        .into_iter()
        .find(|(program, argument)| !works(program, argument))
        .map(|(program, _)| format!("`{program}` cannot be run"))
}
