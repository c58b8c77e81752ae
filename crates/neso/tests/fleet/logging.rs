//! What rules log on several machines, told in one answer.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    fabric::{Site, TENANTS, ask},
    fleet::Fleet,
};

/// Where nobody is let in.
const PORT: u16 = 4_545;

/// One rule decides on two machines; one question has the lines of both.
pub(crate) fn of_several_machines(site: &Site, fleet: &Fleet) {
    let Site { a1, a2, a3, .. } = site;
    // a2 has its firewall already.
    let set = |action: &str| {
        let path = format!("/my/machines/{}?action={action}&wait=enforced", a3.id);
        ask(fleet, TENANTS[0], "POST", &path, &json!({}));
    };
    set("enable_firewall");
    let text = format!("FROM any TO all vms BLOCK tcp PORT {PORT} PRIORITY 9");
    let made = fleet.json(&["adm", "-j", "firewall", "create", "--log", &text]);
    assert_eq!((&made["machines"], &made["live"]), (&json!(2), &json!(2)), "{made}");
    let rule = made["rule"]["id"].as_str().expect("an id").to_owned();
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let said = fleet.good(&[&["adm", "-j", "firewall", "log"], arguments].concat());
        said.lines().map(|line| serde_json::from_str(line).expect("an object on each line")).collect()
    };
    let of = |lines: &[Value], field: &str| -> BTreeSet<String> {
        lines.iter().map(|line| line[field].as_str().expect("a text").to_owned()).collect()
    };
    assert_eq!(lines(&["--rule", &rule]), Vec::<Value>::new(), "nobody came yet");
    for guest in [a2, a3] {
        assert_eq!(a1.asks(fleet, guest.door(PORT)), None, "it is dropped");
    }
    let mut all = Vec::new();
    fleet.wait("lines of both machines", || {
        all = lines(&["--rule", &rule]);
        of(&all, "vm").len() == 2
    });
    let machines = [a2, a3].map(|guest| fleet.machine(guest.at).server_id());
    assert_eq!(of(&all, "vm"), [a2, a3].map(|guest| guest.id.clone()).into());
    assert_eq!(of(&all, "server"), machines.clone().into(), "each told by the machine that decided");
    let times: Vec<&str> = all.iter().map(|line| line["time"].as_str().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    let some = lines(&["--rule", &rule, "--server", &machines[1]]);
    assert_eq!(of(&some, "server"), [machines[1].clone()].into(), "one machine, when it is named");
    fleet.good(&["adm", "firewall", "delete", &rule]);
    set("disable_firewall");
}
