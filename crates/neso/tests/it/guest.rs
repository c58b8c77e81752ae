//! What a guest sees and may do, told by the guest: a script run at its boot tries things and puts what happened into its
//! metadata, where its tenant reads it over CloudAPI.
//!
//! Each probe writes one key, so that a probe that fails is named. The script's last key is `done`; waiting for it is
//! waiting for all of them. It runs at every boot and counts the boots in a file.

use std::fs;

use serde_json::Value;

use crate::datacenter::Datacenter;

/// The probes, in what the small image has.
const PROBES: &str = r#"#!/bin/sh
say() { mdata-put "$1" "$(eval "$2" 2>&1)"; }
say uid_map 'cat /proc/self/uid_map'
say seccomp 'grep ^Seccomp: /proc/self/status'
say hostname 'hostname'
say resolvers 'cat /etc/resolv.conf'
say addresses 'ip -4 addr'
say routes 'ip route'
say init 'tr "\0" " " < /proc/1/cmdline'
say processes 'ls /proc | grep -c "^[0-9]"'
say mount 'mount -t tmpfs t /mnt && echo done'
say link 'ip link set dev net0 address 02:00:00:00:00:01 && echo done'
say sysctl 'echo 1 > /proc/sys/kernel/panic && echo done'
say device 'mknod /tmp/device b 8 0 && echo done'
say keys 'cat /proc/keys | wc -c'
say kcore 'head -c 1 /proc/kcore | wc -c'
say uuid 'mdata-get sdc:uuid'
say nics 'mdata-get sdc:nics'
say refused 'mdata-put sdc:uuid x'
say list 'mdata-list'
mdata-put gone 1; mdata-delete gone
echo boot >> /boots
say boots 'wc -l < /boots'
mdata-put "done-$(wc -l < /boots | tr -d ' ')" yes
"#;

/// A guest is alone, itself, reachable for its tenant and without power over the machine; its script runs at every boot.
#[test]
fn a_guest_is_at_home_and_has_no_power() {
    let Some(datacenter) = Datacenter::start() else { return };
    let script = datacenter.settings().paths.run.join("probes.sh");
    fs::write(&script, PROBES).expect("the script is written");
    let script = script.display().to_string();
    datacenter.good(&["instance", "create", "-w", "--name", "guest", "--script", &script, "minimal", "g1-nano"]);
    let told = |boot: u32| {
        let key = format!("done-{boot}");
        datacenter.wait(&format!("the guest to tell {key}"), || metadata(&datacenter)[&key] == "yes");
        metadata(&datacenter)
    };
    let said = told(1);
    let text = |key: &str| said[key].as_str().unwrap_or_else(|| panic!("the guest did not tell {key}: {said}")).trim();

    let id_map: Vec<u64> = text("uid_map").split_whitespace().flat_map(str::parse).collect();
    let settings = datacenter.settings();
    assert!(id_map[0] == 0 && id_map[1] >= u64::from(settings.kernel.id_base) && id_map[2] == 65_536, "{id_map:?}");
    assert!(text("seccomp").ends_with('2'), "{}", text("seccomp"));
    assert_eq!(text("hostname"), "guest");
    for resolver in ["nameserver 1.1.1.1", "nameserver 9.9.9.9"] {
        assert!(text("resolvers").contains(resolver), "{}", text("resolvers"));
    }
    let address = datacenter.good(&["instance", "ip", "guest"]).trim().to_owned();
    assert!(text("addresses").contains(&format!("inet {address}/")), "{}", text("addresses"));
    assert!(text("routes").contains("default via "), "{}", text("routes"));
    assert!(text("init").contains("init"), "{}", text("init"));
    let processes: u32 = text("processes").parse().expect("a number");
    assert!(processes < 30, "it sees {processes} processes");
    for power in ["mount", "link", "sysctl", "device"] {
        let refused = ["not permitted", "ermission denied", "ead-only"].iter().any(|word| text(power).contains(word));
        assert!(refused && !text(power).contains("done"), "it may {power}: {}", text(power));
    }
    for masked in ["keys", "kcore"] {
        assert_eq!(text(masked).lines().last().map(str::trim), Some("0"), "{masked} can be read: {}", text(masked));
    }
    let instance = datacenter.json(&["adm", "-j", "instance", "get", "guest"]);
    assert_eq!(text("uuid"), instance["id"]);
    let nics: Value = serde_json::from_str(text("nics")).expect("sdc:nics is JSON");
    assert!(nics.as_array().expect("a list").iter().any(|nic| nic["ip"] == address.as_str()), "{nics}");
    assert!(text("refused").contains("cannot be changed"), "{}", text("refused"));
    assert!(text("list").contains("user-script"), "{}", text("list"));
    assert_eq!(said["gone"], Value::Null, "what the guest deleted is still there");
    assert_eq!(text("boots"), "1");

    datacenter.good(&["instance", "reboot", "-w", "guest"]);
    assert_eq!(told(2)["boots"].as_str().expect("told").trim(), "2");
    datacenter.good(&["instance", "delete", "-w", "guest"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// The guest's metadata as its tenant reads it.
fn metadata(datacenter: &Datacenter) -> Value {
    datacenter.json(&["instance", "metadata", "-j", "guest"])
}
