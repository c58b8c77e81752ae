//! Where a packet between two machines' instances stops, as an operator asks, beside what packets really do.
//!
//! ```text
//!   m1   here ──── switch ──── there   m2         (each machine also hears the headnode's)
//! ```

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    fabric::{ask, id},
    fleet::{Fleet, Machine, PATIENCE},
    guest::Guest,
    wire::Nic,
};

const TENANT: &str = "demo";
const PORT: u16 = 7_008;
/// Bytes of a ping that fills a packet of the network: 1400 with its two headers.
const FULL: u32 = 1_372;
/// An MTU too small for that on the wire, where it takes 1450 bytes.
const NARROW: u32 = 1_404;

#[test]
fn an_operator_hears_where_a_packet_between_machines_stops() {
    let Some(fleet) = Fleet::start(2) else { return };
    let site = Site::make(fleet);
    site.whole();
    site.blocked();
    site.six();
    site.cut();
    site.closed();
    site.narrow();
    site.stopped();
}

/// The same where machines meet by IPv6: other headers, other pings, and both families of the tenant's within.
#[test]
fn wires_of_ipv6_are_tried_too() {
    let Some(fleet) = Fleet::start(2) else { return };
    let machines = || std::iter::once(&fleet.head).chain(&fleet.machines);
    for (machine, last) in machines().zip([1, 11, 12]) {
        machine.meet_at_six(&format!("fd77::{last}"));
    }
    fleet.wait("every machine to say where it is met", || {
        let servers = fleet.ask(&["adm", "-j", "server", "list"]).unwrap_or_default();
        let met = |server: &Value| text(&server["underlay"]).starts_with("fd77::") && server["reachable"] == true;
        servers.as_array().is_some_and(|all| all.len() == 3 && all.iter().all(met))
    });
    let site = Site::make(fleet);
    let path = site.wait_whole(&["--probe"]);
    let wire = hops(&path).iter().find(|hop| hop["what"] == "wire").expect("a hop");
    assert!(text(&wire["says"]).contains("m2 sent back 1470 bytes, of which 1470 are needed"), "{wire}");
    assert!(site.pings(FULL), "what is said to pass passes");
    site.wait_whole(&["-6"]);
    let [_, machine] = site.machines();
    machine.space.run(&format!("ip link set eth0 mtu {NARROW}"));
    assert!(site.pings(56) && !site.pings(FULL), "small ones pass, full ones do not");
    let said = site.wait_stops(&["--probe"], &[("m1", "wire"), ("m2", "underlay MTU"), ("m2", "wire back")]);
    let numbers = format!("up to {} bytes arrive at m2, and those of 1400 bytes need 1470", NARROW + 4);
    assert!(said.contains(&numbers), "{said}");
    machine.space.run("ip link set eth0 down");
    assert!(!site.pings(56), "it is cut");
    let said = site.wait_stops(&["--probe"], &[("m1", "wire"), ("m2", "underlay MTU")]);
    assert!(said.contains("m2 does not answer since"), "{said}");
}

struct Site {
    fleet: Fleet,
    here: Guest,
    there: Guest,
    network: String,
}

impl Site {
    fn make(fleet: Fleet) -> Self {
        ask(&fleet, TENANT, "POST", "/my/fabrics/default/vlans", &json!({"vlan_id": 2, "name": "own"}));
        let wish = json!({
            "name": "own", "subnet": "10.60.0.0/24", "provision_start_ip": "10.60.0.10", "provision_end_ip": "10.60.0.50",
            "subnet6": "fd60::/64", "provision_start_ip6": "fd60::10", "provision_end_ip6": "fd60::50",
            "internet_nat": false
        });
        let network = id(&ask(&fleet, TENANT, "POST", "/my/fabrics/default/vlans/2/networks", &wish));
        let image = id(&fleet.json(&["image", "get", "-j", "minimal"]));
        let servers = [1, 2].map(|at| fleet.machine(at).server_id());
        let make = |name: &'static str, at: usize| {
            fleet.good(&["adm", "server", "cordon", &servers[2 - at]]);
            let wish = json!({"name": name, "image": image, "package": "g1-nano", "networks": [network]});
            let id = id(&ask(&fleet, TENANT, "POST", "/my/machines", &wish));
            fleet.good(&["adm", "server", "uncordon", &servers[2 - at]]);
            let running = || fleet.instance(&id).filter(|view| view["state"] == "running");
            fleet.wait(&format!("{name} to run"), || running().is_some());
            let view = running().unwrap_or_else(|| panic!("{name} runs no more"));
            assert_eq!(view["server"], servers[at - 1].as_str(), "{name} is elsewhere");
            Guest { name, id, at, nic: Nic::of(&view, 0) }
        };
        let (here, there) = (make("here", 1), make("there", 2));
        Self { fleet, here, there, network }
    }

    fn machines(&self) -> [&Machine; 2] {
        [self.fleet.machine(self.here.at), self.fleet.machine(self.there.at)]
    }

    fn path(&self, options: &[&str]) -> Value {
        let words = [&["adm", "-j", "path", "here", "there"], options].concat();
        self.fleet.ask(&words).unwrap_or_default()
    }

    /// Waits until the way is seen to be whole.
    fn wait_whole(&self, options: &[&str]) -> Value {
        let whole = |path: &Value| {
            stops(path).is_empty() && ["wire", "wire back"].iter().all(|hop| verdict(path, hop) == Some("passes"))
        };
        self.fleet.wait("the way to be whole", || whole(&self.path(options)));
        let path = self.path(options);
        assert!(whole(&path), "{path}");
        path
    }

    /// Waits until the way stops at exactly these hops, each a machine and what is there; what is said of the first.
    #[track_caller]
    fn wait_stops(&self, options: &[&str], expected: &[(&str, &str)]) -> String {
        let at = |path: &Value| {
            let stops = stops(path).into_iter();
            stops.map(|hop| (text(&hop["host"]).to_owned(), text(&hop["what"]).to_owned())).collect::<Vec<_>>()
        };
        let expected: Vec<_> = expected.iter().map(|(host, what)| ((*host).to_owned(), (*what).to_owned())).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = self.path(options);
            if at(&path) == expected {
                return stops(&path).first().map(|hop| text(&hop["says"]).to_owned()).unwrap_or_default();
            }
            assert!(Instant::now() < deadline, "it does not stop at {expected:?}: {path:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn pings(&self, size: u32) -> bool {
        self.here.shell(&self.fleet, &format!("ping -c 1 -W 1 -s {size} {}", self.there.nic.ip)).0
    }

    fn whole(&self) {
        let path = self.wait_whole(&[]);
        for hop in ["instance", "agent", "NIC", "anti-spoofing", "firewall out", "peer entry", "underlay MTU", "wire"] {
            assert_eq!(verdict(&path, hop), Some("passes"), "{hop}: {path:#}");
        }
        assert!(self.pings(FULL), "what is said to pass passes");
        assert!(self.fleet.good(&["adm", "path", "here", "there", "--probe"]).contains("Nothing that was looked at"));
        let server = self.fleet.server(self.machines()[0]);
        let wires = server["wires"].as_array().expect("its wires");
        assert_eq!(wires.len(), 1, "only machines with a peer are tried: {server:#}");
        assert_eq!(wires[0]["machine"], self.machines()[1].address.as_str());
        assert_eq!((&wires[0]["mtu"], &wires[0]["hostname"]), (&json!(1_450), &json!("m2")));
        let head = self.fleet.server(&self.fleet.head);
        assert!(head["wires"].is_null(), "nobody on the headnode's machine has a neighbour: {head:#}");
    }

    /// A rule that blocks is named, and its traffic alone.
    fn blocked(&self) {
        let Self { fleet, here, there, .. } = self;
        let set = |guest: &Guest, verb: &str| {
            ask(fleet, TENANT, "POST", &format!("/my/machines/{}?action={verb}_firewall", guest.id), &json!({}));
        };
        set(here, "enable");
        let text = format!("FROM vm {} TO any BLOCK tcp PORT {PORT}", here.id);
        let rule =
            ask(fleet, TENANT, "POST", "/my/fwrules", &json!({"rule": text, "enabled": true, "wait": "enforced"}));
        let rule = id(&rule);
        let _door = there.serve(fleet, PORT);
        let port = PORT.to_string();
        let said = self.wait_stops(&["--tcp", &port], &[("m1", "firewall out")]);
        assert_eq!(said, format!("dropped: by rule {rule}"));
        assert_eq!(here.asks(fleet, there.door(PORT)), None, "it is dropped");
        self.wait_whole(&[]);
        assert!(self.pings(56), "a ping is not");
        ask(fleet, TENANT, "DELETE", &format!("/my/fwrules/{rule}"), &json!({}));
        self.wait_whole(&["--tcp", &port]);
        set(there, "enable");
        let said = self.wait_stops(&["--tcp", &port], &[("m2", "firewall in")]);
        assert!(said.contains("no rule matches"), "{said}");
        set(here, "disable");
        set(there, "disable");
        self.wait_whole(&["--tcp", &port]);
        fleet.wait("the door to be open", || here.asks(fleet, there.door(PORT)).as_deref() == Some("there"));
    }

    /// The way of IPv6 is another one: its entries are looked at, not those of IPv4.
    fn six(&self) {
        let path = self.wait_whole(&["-6"]);
        let spoofing = hops(&path).iter().find(|hop| hop["what"] == "anti-spoofing").expect("a hop");
        assert!(text(&spoofing["says"]).contains(&self.here.nic.six().to_string()), "{path:#}");
        let (done, out) = self.here.shell(&self.fleet, &format!("ping -6 -c 1 -W 2 {}", self.there.nic.six()));
        assert!(done, "{out}");
        let machine = self.machines()[0];
        let network = self.fleet.json(&["adm", "-j", "network", "get", &self.network]);
        let tag = text(&network["nic_tag"]);
        let bridge = format!("{}b-{tag}", machine.settings().kernel.link_prefix);
        // Until the agent looks again, one of the two families has nobody who answers.
        let found = (0..20).any(|_| {
            machine.space.run(&format!("ip -6 neigh flush dev {bridge} nud permanent"));
            let (six, four) = (self.path(&["-6"]), self.path(&[]));
            let stops = stops(&six);
            stops.len() == 1
                && stops[0]["what"] == "peer entry"
                && text(&stops[0]["says"]).contains(&self.there.nic.six().to_string())
                && self::stops(&four).is_empty()
        });
        assert!(found, "{:#}", self.path(&["-6"]));
        self.wait_whole(&["-6"]);
    }

    /// The two machines do not hear each other, though the headnode hears both.
    fn cut(&self) {
        let isolate = |state: &str| {
            for port in ["p1", "p2"] {
                self.fleet.switch.run(&format!("bridge link set dev {port} isolated {state}"));
            }
        };
        isolate("on");
        assert!(!self.pings(56), "it is cut");
        let said = self.wait_stops(&["--probe"], &[("m1", "wire"), ("m2", "wire back")]);
        assert!(said.contains("m2 does not answer since") && said.contains("tried just now"), "{said}");
        let line = self.fleet.good(&["adm", "path", "here", "there"]);
        assert!(line.contains("It stops at m1: wire (m2 does not answer since"), "{line}");
        self.fleet.wait("the operator to see it at the machine", || {
            let server = self.fleet.server(self.machines()[0]);
            server["wires"][0]["reachable"] == false && server["wires_well"] == 0
        });
        let doctor = self.fleet.head.run(&["doctor"]);
        let doctor = String::from_utf8_lossy(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(doctor.contains("from m1 to m2 (10.77.0.12): no answer since"), "{doctor}");
        isolate("off");
        self.wait_whole(&["--probe"]);
        assert!(self.pings(FULL), "it is whole again");
    }

    /// A firewall on one machine lets pings through and no VXLAN.
    fn closed(&self) {
        let [_, machine] = self.machines();
        machine.space.run("nft add table inet closed");
        machine.space.run("nft add chain inet closed input { type filter hook input priority -300 ; }");
        machine.space.run("nft add rule inet closed input udp dport 4789 drop");
        assert!(!self.pings(56), "tenants' packets do not arrive");
        let said = self.wait_stops(&["--probe"], &[("m1", "wire"), ("m2", "wire back")]);
        assert!(said.contains("m2 answers pings and no VXLAN: its UDP port is closed"), "{said}");
        self.fleet.wait("the operator to see it at the machine", || {
            let server = self.fleet.server(self.machines()[0]);
            let wire = &server["wires"][0];
            (&wire["reachable"], &wire["vxlan"], &wire["mtu"]) == (&json!(true), &json!(false), &json!(1_450))
                && server["wires_well"] == 0
        });
        let doctor = self.fleet.head.run(&["doctor"]);
        let doctor = String::from_utf8_lossy(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(doctor.contains("from m1 to m2 (10.77.0.12): it answers pings and no VXLAN"), "{doctor}");
        machine.space.run("nft delete table inet closed");
        self.wait_whole(&["--probe"]);
        assert!(self.pings(FULL), "it is open again");
    }

    /// One machine's interface takes less than full packets of the network become.
    fn narrow(&self) {
        let [_, machine] = self.machines();
        machine.space.run(&format!("ip link set eth0 mtu {NARROW}"));
        assert!(self.pings(56) && !self.pings(FULL), "small ones pass, full ones do not");
        let expected = [("m1", "wire"), ("m2", "underlay MTU"), ("m2", "wire back")];
        let said = self.wait_stops(&["--probe"], &expected);
        // An interface receives four bytes more than its MTU, for a VLAN's tag.
        let numbers = format!("up to {} bytes arrive at m2, and those of 1400 bytes need 1450", NARROW + 4);
        assert!(said.contains(&numbers), "{said}");
        let back = self.path(&[]);
        let back = hops(&back).iter().find(|hop| hop["what"] == "wire back").expect("a hop");
        assert!(text(&back["says"]).contains(&format!("up to {NARROW} bytes arrive at m1")), "{back}");
        let server = self.fleet.server(machine);
        assert_eq!((&server["underlay_mtu"], &server["underlay_needed"]), (&json!(NARROW), &json!(1_450)));
        let shown = self.fleet.good(&["adm", "server", "get", &machine.server_id()]);
        assert!(shown.contains(&format!("{NARROW} bytes: too small, full packets of fabrics need 1450")), "{shown}");
        let doctor = self.fleet.head.run(&["doctor"]);
        let doctor = String::from_utf8_lossy(&doctor.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(doctor.contains(&format!("m2 takes packets of {NARROW} bytes between machines")), "{doctor}");
        machine.space.run("ip link set eth0 mtu 1500");
        self.wait_whole(&["--probe"]);
        assert!(self.pings(FULL), "it is wide again");
    }

    fn stopped(&self) {
        self.fleet.good(&["instance", "stop", "there"]);
        let said = self.wait_stops(&[], &[("m2", "NIC"), ("m2", "instance")]);
        assert!(said.contains("no interface"), "{said}");
        assert!(!self.pings(56));
        let line = self.fleet.good(&["adm", "path", "here", "there"]);
        assert!(line.contains("there is stopped"), "{line}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn hops(path: &Value) -> &[Value] {
    path["hops"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What stops it, in order.
fn stops(path: &Value) -> Vec<Value> {
    hops(path).iter().filter(|hop| hop["verdict"] == "stops").cloned().collect()
}

fn verdict<'a>(path: &'a Value, what: &str) -> Option<&'a str> {
    hops(path).iter().find(|hop| hop["what"] == what)?["verdict"].as_str()
}
