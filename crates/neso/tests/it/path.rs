//! Where a packet stops, as an operator asks: the machine is really looked at, and what is broken by hand is found.

use std::process::Command;

use serde_json::Value;

use crate::{datacenter::Datacenter, inside::Guest};

#[test]
fn an_operator_hears_where_a_packet_stops() {
    let Some(datacenter) = Datacenter::start() else { return };
    for name in ["here", "there"] {
        Guest::order(&datacenter, name, &["external"]);
    }
    let (here, there) = (Guest::meet(&datacenter, "here"), Guest::meet(&datacenter, "there"));
    let path = |to: &str| datacenter.json(&["adm", "-j", "path", "here", to]);
    datacenter.wait("the agent to have its document and say so", || stops(&path("there")).is_empty());
    let whole = path("there");
    for hop in ["instance", "agent", "NIC", "anti-spoofing", "firewall out", "bridge", "firewall in"] {
        assert_eq!(verdict(&whole, hop), "passes", "{hop}: {whole}");
    }
    assert!(datacenter.good(&["adm", "path", "here", "there"]).contains("Nothing that was looked at"));

    // What is outside of all networks: the machine translates, and nobody knows what is beyond.
    let outside = path("198.51.100.1");
    assert_eq!(stops(&outside), Vec::<String>::new(), "{outside}");
    assert_eq!(verdict(&outside, "outside"), "unknown", "{outside}");

    // Somebody pulls the other's cable out; whoever asks before the agent puts it back is told.
    let mac: String = there.nic(0).mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let nic = format!("{}v{mac}", datacenter.settings().kernel.link_prefix);
    let found = (0..20).any(|_| {
        let done = Command::new("ip").args(["link", "set", &nic, "down"]).status().expect("`ip` runs");
        assert!(done.success());
        let seen = path("there");
        stops(&seen) == ["NIC"]
    });
    assert!(found, "{}", path("there"));
    assert_eq!(stops(&path("198.51.100.1")), Vec::<String>::new(), "the first one's NIC is well");
    drop((here, there));

    // A stopped instance answers nobody.
    datacenter.good(&["instance", "stop", "there"]);
    datacenter.wait("it to stop", || datacenter.state("there").as_deref() == Some("stopped"));
    assert!(stops(&path("there")).contains(&"instance".to_owned()));
    let none = datacenter.run(&["adm", "path", "here", "nobody"]);
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("nobody"));

    for name in ["here", "there"] {
        datacenter.good(&["instance", "delete", name]);
    }
    datacenter.wait("all to be gone", || datacenter.instances().is_empty());
    datacenter.wait_idle();
    datacenter.assert_clean();
}

fn hops(path: &Value) -> &[Value] {
    path["hops"].as_array().expect("hops")
}

/// What stops it, in order.
fn stops(path: &Value) -> Vec<String> {
    let stops = hops(path).iter().filter(|hop| hop["verdict"] == "stops");
    stops.map(|hop| hop["what"].as_str().expect("a text").to_owned()).collect()
}

fn verdict<'a>(path: &'a Value, what: &str) -> &'a str {
    let hop = hops(path).iter().find(|hop| hop["what"] == what).unwrap_or_else(|| panic!("no {what}: {path}"));
    hop["verdict"].as_str().expect("a text")
}
