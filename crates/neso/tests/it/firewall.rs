//! Rules of the firewall in an operator's hands: made, changed, refused, and in force on a real machine when the command returns.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use serde_json::json;

use crate::{datacenter::Datacenter, signed::Tenant};

#[test]
fn operators_change_rules_and_see_them_enforced() {
    let Some(datacenter) = Datacenter::start() else { return };
    datacenter.good(&["instance", "create", "-w", "--name", "walled", "minimal", "g1-nano"]);
    let tenant = Tenant::of(&datacenter);
    let instance = datacenter.instances()[0]["id"].as_str().expect("an id").to_owned();
    let (status, body) = tenant.ask("POST", &format!("/machines/{instance}?action=enable_firewall"));
    assert_eq!(status, 202, "{body}");
    let rules = |verb: &[&str]| datacenter.json(&[&["adm", "-j", "firewall"], verb].concat());

    let made = rules(&["create", "from any to all vms allow tcp port 4321", "--description", "first"]);
    let id = made["rule"]["id"].as_str().expect("an id").to_owned();
    assert_eq!((&made["machines"], &made["live"], &made["rule"]["version"]), (&json!(1), &json!(1), &json!(1)));
    assert!(kernel(&datacenter).contains("dport 4321"), "it is in the kernel when the command returns");

    let text = "FROM any TO all vms ALLOW udp PORT 5432";
    let changed = rules(&["set", &id, "--rule", text, "--description", ""]);
    let record = &changed["rule"];
    assert_eq!((&record["rule"], &record["version"], &changed["live"]), (&json!(text), &json!(2), &json!(1)));
    assert!(record.get("description").is_none_or(serde_json::Value::is_null), "an empty one takes it away: {record}");
    let held = kernel(&datacenter);
    assert!(held.contains("dport 5432") && !held.contains("dport 4321"), "{held}");

    let off = rules(&["set", &id, "--enabled", "false", "--description", "off for now"]);
    assert_eq!(
        (&off["rule"]["enabled"], &off["rule"]["rule"], &off["machines"]),
        (&json!(false), &json!(text), &json!(0))
    );
    assert!(!kernel(&datacenter).contains("dport 5432"), "a disabled rule leaves the kernel");
    assert_eq!(rules(&["get", &id])["rule"]["description"], "off for now");

    let long = "x".repeat(256);
    let many = (1..=25).map(|n| format!("ip 10.0.0.{n}")).collect::<Vec<_>>().join(" OR ");
    let many = format!("FROM ({many}) TO all vms ALLOW tcp PORT 1");
    for (bad, named) in [
        (["--rule", &many], "rule: maximum of 24 targets allowed per side; FROM has 25"),
        (["--rule", "FROM any TO any ALLOW ah"], "rule: rule does not affect VMs"),
        (["--description", &long], "description: "),
    ] {
        let refused = datacenter.run(&[&["adm", "firewall", "set", &id], &bad[..]].concat());
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(named), "{bad:?}: {said}");
    }
    assert!(!datacenter.run(&["adm", "firewall", "set", &id]).status.success(), "nothing to change is named");
    assert_eq!(rules(&["get", &id])["rule"]["version"], 3, "what is refused changes nothing");

    datacenter.good(&["adm", "firewall", "delete", &id]);
    lines_reach_the_operator(&datacenter, &instance);
    let tagged = rules(&["create", "FROM tag role = db TO all vms ALLOW tcp PORT 4322"]);
    let address = datacenter.good(&["instance", "ip", "walled"]);
    // Sets of addresses, not the maps beside them, in which every address is.
    let elements = || {
        let held = kernel(&datacenter);
        held.split("\tset s")
            .skip(1)
            .filter(|set| set.split('}').next().is_some_and(|set| set.contains(address.trim())))
            .count()
    };
    assert_eq!(elements(), 0, "nobody has the tag");
    let (status, body) = tenant.ask("POST", &format!("/machines/{instance}/tags?wait=enforced&role=db"));
    assert_eq!((status, body.trim()), (200, r#"{"role":"db"}"#));
    assert_eq!(elements(), 1, "the set has it when the answer is there: {}", kernel(&datacenter));
    let (_, shown) = tenant.ask("GET", &format!("/machines/{instance}?wait=enforced"));
    assert!(shown.contains(r#""enforced":{"nodes":1,"live":1,"revision":"#), "{shown}");
    let (status, _) = tenant.ask("DELETE", &format!("/machines/{instance}/tags/role?wait=enforced"));
    assert_eq!((status, elements()), (204, 0), "and has not when the next one is");
    datacenter.good(&["adm", "firewall", "delete", tagged["rule"]["id"].as_str().expect("an id")]);
    datacenter.good(&["instance", "delete", "-w", "walled"]);
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// What a rule with logging decides is told by the machine that decided, to whoever asks for the rule or the instance.
fn lines_reach_the_operator(datacenter: &Datacenter, instance: &str) {
    let rules = |verb: &[&str]| datacenter.json(&[&["adm", "-j", "firewall"], verb].concat());
    let made = rules(&["create", "--log", "FROM any TO all vms BLOCK tcp PORT 4545 PRIORITY 9"]);
    let rule = made["rule"]["id"].as_str().expect("an id").to_owned();
    let address = datacenter.good(&["instance", "ip", "walled"]);
    let to: SocketAddr = format!("{}:4545", address.trim()).parse().expect("an address");
    let log = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let said = datacenter.good(&[&["adm", "-j", "firewall", "log"], arguments].concat());
        said.lines().map(|line| serde_json::from_str(line).expect("an object on each line")).collect()
    };
    assert_eq!(log(&["--rule", &rule]), Vec::<serde_json::Value>::new());
    assert!(TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err(), "it is dropped");
    let mut lines = Vec::new();
    datacenter.wait("a line of the log", || {
        lines = log(&["--rule", &rule]);
        !lines.is_empty()
    });
    let line = &lines[0];
    assert_eq!(
        (&line["event"], &line["direction"], &line["protocol"]),
        (&json!("reject"), &json!("in"), &json!("tcp"))
    );
    assert_eq!((&line["vm"], &line["alias"], &line["rule"]), (&json!(instance), &json!("walled"), &json!(rule)));
    assert_eq!((&line["destination_ip"], &line["destination_port"]), (&json!(address.trim()), &json!(4545)));
    assert!(!log(&["--instance", "walled"]).is_empty() && log(&["--instance", "walled", "--lines", "1"]).len() == 1);
    assert!(datacenter.good(&["adm", "firewall", "log"]).contains("reject in  walled: tcp "));
    let wrong = datacenter.run(&["adm", "firewall", "log", "--lines", "9999"]);
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("lines: is 9999"), "{wrong:?}");
    follows(datacenter, &rule, to);
    datacenter.good(&["adm", "firewall", "delete", &rule]);
}

/// Whoever follows sees what was there, then what comes, each line once and as it comes.
fn follows(datacenter: &Datacenter, rule: &str, to: SocketAddr) {
    let listed = |text: &str| text.lines().filter(|line| line.contains("reject in  walled: tcp ")).count();
    let there = listed(&datacenter.good(&["adm", "firewall", "log", "--rule", rule]));
    let mut command = datacenter.command(&["adm", "firewall", "log", "--rule", rule, "--follow"]);
    let mut following = command.stdout(Stdio::piped()).spawn().expect("the binary under test runs");
    let mut output = following.stdout.take().expect("it is piped");
    let heard = Arc::new(Mutex::new(String::new()));
    let hearing = {
        let heard = heard.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                heard.lock().expect("nobody panicked").push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        })
    };
    let seen = || listed(&heard.lock().expect("nobody panicked"));
    datacenter.wait("what was there", || seen() == there);
    for more in 1..=3 {
        assert!(TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err(), "it is dropped");
        datacenter.wait("a line more", || seen() >= there + more);
    }
    assert!(following.try_wait().expect("our own process").is_none(), "it goes on");
    following.kill().expect("our own process");
    following.wait().expect("our own process");
    hearing.join().expect("nobody panicked");
    let all = listed(&datacenter.good(&["adm", "firewall", "log", "--rule", rule]));
    assert!(seen() <= all, "{} lines told of {all}", seen());
}

/// The firewall's table in the kernel's packet filter, as text.
fn kernel(datacenter: &Datacenter) -> String {
    let table = format!("{}_fw", datacenter.settings().kernel.nft_table);
    let listed = Command::new("nft").args(["list", "table", "inet", &table]).output().expect("`nft` runs");
    String::from_utf8_lossy(&listed.stdout).into_owned()
}
