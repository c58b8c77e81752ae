//! Two tenants with the same subnet and the same addresses, on three machines: each meets its own, nobody meets the other's, and all of
//! it goes on without a headnode.
//!
//! ```text
//!   head   a3            m1   a1 b1            m2   a2 b2            the world outside
//!      └─────────────────┴──── switch ─────────┴──────────────────────┘
//! ```
//! That nothing was heard is only believed where the same ear heard something honest afterwards.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    fleet::{Fleet, WORLD},
    guest::{Door, Guest, Outside},
    lies, logging, six,
    space::Space,
    wire::{Nic, Wire, contains},
};

/// The tenant `neso up` makes, and another.
pub(crate) const TENANTS: [&str; 2] = ["demo", "other"];
/// Subnet of both.
const SUBNET: &str = "10.50.0.0/24";
/// Gateway of both.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 1);
/// An address neither has.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 99);
/// A door the firewall is about.
pub(crate) const FIRST: u16 = 7_007;
/// UDP port between machines.
const VXLAN: u16 = 4_789;
/// Bytes sent across in one go.
const TRANSFER_MIB: u32 = 24;

#[test]
fn tenants_networks_span_machines_and_need_no_headnode() {
    let Some(mut fleet) = Fleet::start_with(2, |text| text) else { return };
    let world = fleet.world();
    let site = Site::make(&fleet);
    site.reach(&fleet);
    site.strangers(&fleet);
    site.lies(&fleet);
    site.outside(&fleet, &world);
    six::reach(&site, &fleet);
    six::strangers(&site, &fleet);
    six::lies(&site, &fleet);
    six::outside(&site, &fleet, &world);
    let rule = site.firewall(&fleet);
    six::firewall(&site, &fleet);
    logging::of_several_machines(&site, &fleet);
    let mut agent = site.alone(&mut fleet, &world, &rule);
    site.departure(&fleet);
    agent.kill().expect("our own process");
    agent.wait().expect("our own process");
}

/// Who is where.
pub(crate) struct Site {
    pub(crate) a1: Guest,
    pub(crate) a2: Guest,
    pub(crate) a3: Guest,
    pub(crate) b1: Guest,
    pub(crate) b2: Guest,
    /// Networks of the two tenants.
    networks: [String; 2],
    /// VNIs of their segments.
    pub(crate) vnis: [u32; 2],
}

/// Asks CloudAPI as one of the tenants.
#[track_caller]
pub(crate) fn ask(fleet: &Fleet, tenant: &str, method: &str, path: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut line = vec!["cloudapi", "-X", method, path];
    if method != "GET" {
        line.extend(["-d", &body]);
    }
    let output = fleet.head.command(&line).env("TRITON_ACCOUNT", tenant).output().expect("the binary under test runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{method} {path} of {tenant}: {out}{err}");
    serde_json::from_str(&out).unwrap_or(Value::Null)
}

/// An id in an answer.
#[track_caller]
pub(crate) fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("an id in {value}")).to_owned()
}

impl Site {
    fn make(fleet: &Fleet) -> Self {
        let ssh = fleet.head.root.join("home/.ssh");
        let keys = fs::read_dir(&ssh).expect("the tenant's keys").flatten().map(|entry| entry.path());
        let public = keys.into_iter().find(|path| path.extension().is_some_and(|end| end == "pub")).expect("a key");
        let public = public.display().to_string();
        fleet.good(&["adm", "account", "create", TENANTS[1], "--email", "other@example.com", "--key", &public]);
        let image = id(&fleet.json(&["image", "get", "-j", "minimal"]));
        let networks = TENANTS.map(|tenant| {
            ask(fleet, tenant, "POST", "/my/fabrics/default/vlans", &json!({"vlan_id": 2, "name": "own"}));
            let wish = json!({
                "name": "own", "subnet": SUBNET, "gateway": GATEWAY, "provision_start_ip": "10.50.0.10",
                "provision_end_ip": "10.50.0.50", "internet_nat": true, "subnet6": six::SUBNET, "gateway6": six::GATEWAY
            });
            id(&ask(fleet, tenant, "POST", "/my/fabrics/default/vlans/2/networks", &wish))
        });
        let servers: Vec<String> = (0..3).map(|at| fleet.machine(at).server_id()).collect();
        let cordon = |verb: &str, at: usize| fleet.good(&["adm", "server", verb, &servers[at]]);
        (0..3).for_each(|at| drop(cordon("cordon", at)));
        let mut asked = Vec::new();
        for (name, at) in [("a1", 1), ("a2", 2), ("a3", 0), ("b1", 1), ("b2", 2)] {
            let of = usize::from(name.starts_with('b'));
            let wish = json!({"name": name, "image": image, "package": "g1-nano", "networks": [networks[of]]});
            cordon("uncordon", at);
            asked.push((name, at, id(&ask(fleet, TENANTS[of], "POST", "/my/machines", &wish))));
            cordon("cordon", at);
        }
        (0..3).for_each(|at| drop(cordon("uncordon", at)));
        let meet = |(name, at, id): (&'static str, usize, String)| {
            let running = || fleet.instance(&id).filter(|view| view["state"] == "running");
            fleet.wait(&format!("{name} to run"), || running().is_some());
            let view = running().unwrap_or_else(|| panic!("{name} runs no more"));
            assert_eq!(view["server"], servers[at].as_str(), "{name} is elsewhere");
            Guest { name, id, at, nic: Nic::of(&view, 0) }
        };
        let [a1, a2, a3, b1, b2] = <[_; 5]>::try_from(asked).expect("five of them").map(meet);
        assert_eq!((a1.nic.ip, a2.nic.ip), (b1.nic.ip, b2.nic.ip), "both tenants have the same addresses");
        let vlans = fleet.json(&["adm", "-j", "fabric", "list"]);
        let vni_of = |tenant: &str| {
            let owner = fleet.json(&["adm", "-j", "account", "get", tenant])["id"].clone();
            let found = vlans.as_array().expect("a list").iter().find(|vlan| vlan["owner"] == owner);
            found.and_then(|vlan| vlan["vni"].as_u64()?.try_into().ok()).expect("a VNI")
        };
        Self { a1, a2, a3, b1, b2, networks, vnis: TENANTS.map(vni_of) }
    }

    fn all(&self) -> [&Guest; 5] {
        [&self.a1, &self.a2, &self.a3, &self.b1, &self.b2]
    }

    /// Instances of one tenant meet across machines: pings, and a transfer that arrives whole.
    fn reach(&self, fleet: &Fleet) {
        let Self { a1, a2, a3, b1, b2, .. } = self;
        for (one, other) in [(a1, a2), (a2, a1), (a1, a3), (a3, a2), (b1, b2), (b2, b1)] {
            let what = format!("{} to reach {}", one.name, other.name);
            fleet.wait(&what, || one.pings(fleet, other.nic.ip));
        }
        assert!(a1.pings(fleet, GATEWAY) && b2.pings(fleet, GATEWAY), "the gateway is on every machine");

        let receiving = a2.begin(fleet, "nc -l -p 5001 | sha256sum");
        let make =
            format!("dd if=/dev/urandom of=/root/much bs=1M count={TRANSFER_MIB} 2>/dev/null && sha256sum /root/much");
        let (made, sum) = a1.shell(fleet, &make);
        assert!(made, "{sum}");
        fleet.wait("the receiver to listen", || a1.shell(fleet, &format!("nc {} 5001 </root/much", a2.nic.ip)).0);
        let received = receiving.wait_with_output().expect("it ends");
        let received = String::from_utf8_lossy(&received.stdout).into_owned();
        assert_eq!(received.split(' ').next(), sum.split(' ').next(), "what a1 sent and what a2 received");
    }

    /// Nobody reaches the other tenant, though the addresses are the same.
    fn strangers(&self, fleet: &Fleet) {
        let Self { a1, a2, a3, b1, b2, .. } = self;
        let mark = b"nobody but ours";
        let _doors: Vec<Door> = [a2, b2].map(|guest| guest.serve(fleet, FIRST)).into();
        let ear = b2.enter(fleet, || Wire::open("net0"));
        assert_eq!(a1.asks(fleet, a2.door(FIRST)).as_deref(), Some("a2"));
        assert_eq!(b1.asks(fleet, b2.door(FIRST)).as_deref(), Some("b2"), "the same address, another machine's answer");
        assert!(a3.pings(fleet, a2.nic.ip));
        assert!(!b1.pings(fleet, a3.nic.ip), "there is no a3 for the other tenant");
        assert!(!a1.pings(fleet, NOBODY));
        b1.enter(fleet, || Wire::open("net0").send(&lies::truth(b1.nic, b2.nic.mac, mark)));
        let heard = ear.hear_until(mark);
        for guest in [a1, a2, a3] {
            assert!(!heard.iter().any(|frame| contains(frame, &guest.nic.mac)), "b2 heard {}", guest.name);
        }
    }

    /// An instance that lies is heard by nobody, here or on another machine; nor does one that speaks to machines as machines do.
    fn lies(&self, fleet: &Fleet) {
        let Self { a1, a2, b1, b2, vnis, .. } = self;
        let machine = fleet.machine(a1.at);
        let bridge = format!("{}b-x{:06x}", machine.settings().kernel.link_prefix, vnis[0]);
        let here = machine.space.enter(|| Wire::open(&bridge));
        let there = a2.enter(fleet, || Wire::open("net0"));
        let lies = lies::all(a1.nic, a2.nic, GATEWAY);
        a1.enter(fleet, || {
            let wire = Wire::open("net0");
            lies.iter().for_each(|lie| wire.send(&lie.frame));
            for to in [a2.nic.mac, lies::BROADCAST] {
                wire.send(&lies::truth(a1.nic, to, b"the truth"));
            }
        });
        for (who, heard) in [("a2", there.hear_until(b"the truth")), ("the machine", here.hear_until(b"the truth"))] {
            for lie in &lies {
                assert!(!heard.iter().any(|frame| contains(frame, &lie.mark)), "{who} heard: {}", lie.name);
            }
        }

        // What machines send each other, made by an instance and sent through its own way out.
        let ear = b2.enter(fleet, || Wire::open("net0"));
        let mut forged = vec![0x08, 0, 0, 0];
        forged.extend((vnis[1] << 8).to_be_bytes());
        forged.extend(lies::truth(b1.nic, b2.nic.mac, b"forged by another"));
        let target = SocketAddr::from((fleet.machine(b2.at).address.parse::<IpAddr>().expect("an address"), VXLAN));
        a1.enter(fleet, || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            for _ in 0..3 {
                // Being refused is as good as being lost.
                let _ = socket.send_to(&forged, target);
            }
        });
        b1.enter(fleet, || Wire::open("net0").send(&lies::truth(b1.nic, b2.nic.mac, b"the truth")));
        let heard = ear.hear_until(b"the truth");
        assert!(!heard.iter().any(|frame| contains(frame, b"forged by")), "an instance spoke as a machine");
        assert!(a1.pings(fleet, a2.nic.ip), "afterwards all is as before");
    }

    /// Each machine translates for its own instances; nobody comes in that way.
    fn outside(&self, fleet: &Fleet, world: &Space) {
        let Self { a1, a2, a3, b1, .. } = self;
        let door = world.enter(|| Outside::open(WORLD));
        for guest in [a1, a2, a3, b1] {
            let asking = guest.enter(fleet, || TcpStream::connect_timeout(&door.address(), Duration::from_secs(5)));
            assert!(asking.is_ok(), "{} reaches the outside: {asking:?}", guest.name);
            let expected: IpAddr = fleet.machine(guest.at).address.parse().expect("an address");
            let mut seen = None;
            fleet.wait("the visitor", || {
                seen = door.visitor();
                seen.is_some()
            });
            assert_eq!(seen, Some(expected), "{} comes from its own machine", guest.name);
        }
        // Whoever asks is told.
        let machines = [a1, a2, a3].map(|guest| fleet.machine(guest.at).address.as_str());
        let told = |view: &Value| machines.iter().all(|address| view.to_string().contains(&format!("\"{address}\"")));
        fleet.wait("the operator to be told", || {
            let view = fleet.ask(&["adm", "-j", "network", "get", &self.networks[0]]).unwrap_or_default();
            told(&view["nat_addresses"])
        });
        let view = ask(fleet, TENANTS[0], "GET", &format!("/my/networks/{}", self.networks[0]), &Value::Null);
        assert!(told(&view["nat_ips"]), "{view}");

        // The world knows the way and is not let in.
        let _door = a1.serve(fleet, FIRST);
        world.run(&format!("ip route add {SUBNET} via {}", fleet.machine(a1.at).address));
        let invited = world.enter(|| TcpStream::connect_timeout(&a1.door(FIRST), Duration::from_millis(500)).is_ok());
        assert!(!invited, "the outside reaches an instance uninvited");
        assert_eq!(a2.asks(fleet, a1.door(FIRST)).as_deref(), Some("a1"), "though it listens");
    }

    /// A rule follows tags, on every machine, while it is watched. Returns the rule's id; a1 is let in then, a3 is not.
    fn firewall(&self, fleet: &Fleet) -> String {
        let Self { a1, a2, a3, b1, b2, .. } = self;
        let _doors: Vec<Door> = [a2, b2].map(|guest| guest.serve(fleet, FIRST)).into();
        let let_in = |guest: &Guest| guest.asks(fleet, a2.door(FIRST)).is_some();
        assert!(let_in(a1) && let_in(a3));
        ask(fleet, TENANTS[0], "POST", &format!("/my/machines/{}?action=enable_firewall", a2.id), &json!({}));
        fleet.wait("a2 to be closed", || !let_in(a1) && !let_in(a3));
        assert!(a1.pings(fleet, a2.nic.ip), "the global rule lets everybody ping");

        let text = format!("FROM tag \"role\" = \"web\" TO vm {} ALLOW tcp PORT {FIRST}", a2.id);
        let wish = json!({"rule": text, "enabled": true, "wait": "enforced"});
        let rule = ask(fleet, TENANTS[0], "POST", "/my/fwrules", &wish);
        assert!(rule["enforced"]["nodes"].as_u64() >= Some(1), "{rule}");
        assert_eq!(rule["enforced"]["live"], rule["enforced"]["nodes"], "{rule}");
        assert!(!let_in(a1) && !let_in(a3), "nobody has the tag");
        let tag = |guest: &Guest| fleet.good(&["instance", "tags", guest.name, "role=web"]);
        let untag = |guest: &Guest| fleet.good(&["instance", "tags", guest.name, "role="]);
        tag(a1);
        fleet.wait("a1 to be let in by its tag", || let_in(a1));
        assert!(!let_in(a3), "it has no tag");
        tag(a3);
        fleet.wait("a3 to be let in by its tag", || let_in(a3));
        untag(a1);
        fleet.wait("a1 to be kept out without its tag", || !let_in(a1));
        assert!(let_in(a3));

        // A change that waits is in force when it is answered.
        let set = |verb: &str| {
            let path = format!("/my/fwrules/{}/{verb}?wait=enforced", id(&rule));
            let answer = ask(fleet, TENANTS[0], "POST", &path, &json!({}));
            assert_eq!(answer["enforced"]["live"], answer["enforced"]["nodes"], "{answer}");
        };
        set("disable");
        assert!(!let_in(a3), "kept out at once");
        set("enable");
        assert!(let_in(a3), "let in at once");
        untag(a3);
        tag(a1);
        fleet.wait("a1 alone to be let in", || let_in(a1) && !let_in(a3));
        assert_eq!(b1.asks(fleet, b2.door(FIRST)).as_deref(), Some("b2"), "the other tenant has no firewall");
        id(&rule)
    }

    /// Every process of the headnode's machine is stopped: nobody notices, machines boot, and when they are back nothing is restarted.
    /// Returns the agent of the machine that was booted.
    fn alone(&self, fleet: &mut Fleet, world: &Space, rule: &str) -> Child {
        let Self { a1, a2, a3, b2, .. } = self;
        fleet.good(&["down", "--keep-instances"]);
        assert!(
            ["supervisor", "headnode", "node"].iter().all(|name| fleet.head.pid(name).is_none()),
            "all are stopped"
        );
        {
            let _door = a2.serve(fleet, FIRST);
            self.holds(fleet, world);
            // Nothing that was learnt before helps.
            for guest in [a1, a2, a3] {
                guest.enter(fleet, || {
                    let done = Command::new("ip").args(["neigh", "flush", "all"]).status();
                    assert!(done.is_ok_and(|status| status.success()), "neighbours can be forgotten");
                });
            }
            self.holds(fleet, world);
            // One restarts by itself, on a machine that goes on.
            let before = a1.init(fleet);
            a1.shell(fleet, "reboot");
            let again = |fleet: &Fleet| fleet.machine(a1.at).init(&a1.id).is_some_and(|pid| pid != before);
            fleet.wait("a1 to run again", || again(fleet));
            fleet.wait("a1 to be let in again", || a1.asks(fleet, a2.door(FIRST)).is_some());
            self.holds(fleet, world);
        }

        // A machine loses its power and comes back, from its disk.
        let before = [a2, b2].map(|guest| guest.init(fleet));
        let Fleet { machines, switch, .. } = fleet;
        machines[a2.at - 1].power_cycle(switch);
        let fleet = &*fleet;
        let machine = fleet.machine(a2.at);
        machine.look_outside();
        let agent = machine.command(&["node"]).stderr(Stdio::null()).spawn();
        let agent = agent.expect("the binary under test runs");
        for (guest, before) in [a2, b2].into_iter().zip(before) {
            let again = || machine.init(&guest.id).is_some_and(|pid| pid != before);
            fleet.wait(&format!("{} to run again", guest.name), again);
        }
        {
            fleet.wait("a2 to be reached again", || a1.pings(fleet, a2.nic.ip));
            let _door = a2.serve(fleet, FIRST);
            fleet.wait("a1 to be let in", || a1.asks(fleet, a2.door(FIRST)).is_some());
            self.holds(fleet, world);
        }

        self.back(fleet, world, rule);
        agent
    }

    /// The headnode returns: nothing is restarted, and the records agree.
    fn back(&self, fleet: &Fleet, world: &Space, rule: &str) {
        let inits = self.all().map(|guest| guest.init(fleet));
        fleet.good(&["up"]);
        for guest in self.all() {
            let running = || fleet.instance(&guest.id).is_some_and(|view| view["state"] == "running");
            fleet.wait(&format!("the records to say that {} runs", guest.name), running);
        }
        let servers = || fleet.ask(&["adm", "-j", "server", "list"]).unwrap_or_default();
        fleet.wait("every machine to be running", || {
            servers().as_array().is_some_and(|all| all.iter().all(|server| server["condition"]["state"] == "running"))
        });
        let live = || {
            let rule = fleet.ask(&["adm", "-j", "firewall", "get", rule]).unwrap_or_default();
            rule["machines"].as_u64() >= Some(1) && rule["live"] == rule["machines"]
        };
        fleet.wait("the rule to be known as enforced", live);
        let flows = || fleet.ask(&["adm", "-j", "flow", "list", "--unfinished"]);
        fleet.wait("nothing to be under way", || flows() == Some(json!([])));
        assert_eq!(self.all().map(|guest| guest.init(fleet)), inits, "the headnode's return restarted something");
        let _door = self.a2.serve(fleet, FIRST);
        self.holds(fleet, world);
    }

    /// What goes on whatever happens: traffic between machines, silence between tenants, the firewall, the way out. a2's door is open.
    fn holds(&self, fleet: &Fleet, world: &Space) {
        let Self { a1, a2, a3, b1, b2, .. } = self;
        for (one, other) in [(a1, a2), (a2, a1), (a3, a1), (b1, b2)] {
            assert!(one.pings(fleet, other.nic.ip), "{} reaches {}", one.name, other.name);
        }
        assert!(!b1.pings(fleet, a3.nic.ip), "there is no a3 for the other tenant");
        assert_eq!(a1.asks(fleet, a2.door(FIRST)).as_deref(), Some("a2"), "a1 has the tag");
        assert_eq!(a3.asks(fleet, a2.door(FIRST)), None, "a3 has no tag");
        six::holds(self, fleet);
        let door = world.enter(|| Outside::open(WORLD));
        let asking = a2.enter(fleet, || TcpStream::connect_timeout(&door.address(), Duration::from_secs(5)));
        assert!(asking.is_ok(), "a2 reaches the outside: {asking:?}");
    }

    /// A machine is cut off while one of its instances is deleted, cleans up when it is back, and the others forget.
    fn departure(&self, fleet: &Fleet) {
        let (b1, b2) = (&self.b1, &self.b2);
        let mac = b2.nic.mac.map(|byte| format!("{byte:02x}")).join(":");
        let (machine, other) = (fleet.machine(b2.at), fleet.machine(b1.at));
        let peers = || other.space.run("bridge fdb show") + &other.space.run("ip neigh show nud all");
        assert!(peers().matches(&mac).count() >= 2, "b1's machine knows b2: {}", peers());
        fleet.plug(machine, false);
        ask(fleet, TENANTS[1], "DELETE", &format!("/my/machines/{}", b2.id), &Value::Null);
        assert!(machine.init(&b2.id).is_some(), "nobody can have told its machine");
        fleet.plug(machine, true);
        fleet.wait("b2 to go", || machine.init(&b2.id).is_none());
        fleet.wait("b1's machine to forget it", || !peers().contains(&mac));
        let vxlan = format!("{}x{:06x}", machine.settings().kernel.link_prefix, self.vnis[1]);
        let has_segment = || machine.space.output(&format!("ip link show {vxlan}")).status.success();
        fleet.wait("its machine to have no part in the segment any more", || !has_segment());
        let network = fleet.json(&["adm", "-j", "instance", "get", &b1.id])["nics"][0]["network"].clone();
        let network = network.as_str().expect("a network");
        let held = || fleet.ask(&["adm", "-j", "network", "ips", network]).unwrap_or_default().to_string();
        fleet.wait("its address to be free", || !held().contains(&b2.id));
        assert!(self.a1.pings(fleet, self.a2.nic.ip), "the others notice nothing");
    }
}
