//! Networks of a running datacenter as those see them who use and abuse them: an instance that lies, one that knocks at
//! the machine's doors, the world outside, an operator whose firewall flushes everything.
//!
//! All of it happens in one datacenter, one step after the other; that nothing was heard is only believed where the same ear
//! heard something honest afterwards.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{
    datacenter::{Datacenter, PATIENCE},
    inside::{Guest, READY, to_hex},
    lies,
    wire::{Wire, contains},
};

/// How long to listen for what shall not come and leaves no other sign.
const SILENCE: Duration = Duration::from_millis(300);

#[test]
fn networks_do_what_is_promised_and_nothing_else() {
    let Some(datacenter) = Datacenter::start() else { return };
    let outside = Outside::new();
    let site = Site::make(&datacenter, &outside);
    site.reach();
    site.isolation(&outside);
    site.translation(&outside);
    site.spoofing();
    site.powers();
    site.nics();
    site.addresses();
    site.repair();
    for name in ["eve", "bob", "far", "quiet", "first"] {
        datacenter.good(&["instance", "delete", name]);
    }
    datacenter.wait("all to be gone", || datacenter.instances().is_empty());
    datacenter.wait_idle();
    datacenter.assert_clean();
}

/// Networks and who is on them.
struct Site<'a> {
    datacenter: &'a Datacenter,
    /// The machine's address on `external`.
    gateway: Ipv4Addr,
    /// The machine's address on `silent`, which has no NAT.
    silent_gateway: Ipv4Addr,
    /// On `external` and `private`; the one that lies.
    eve: Guest<'a>,
    /// On `external` and `private`.
    bob: Guest<'a>,
    /// On `other`, a private network.
    far: Guest<'a>,
    /// On `silent`.
    quiet: Guest<'a>,
}

impl<'a> Site<'a> {
    fn make(datacenter: &'a Datacenter, outside: &Outside) -> Self {
        let [a, b] = outside.octets;
        let subnet = |third: u8| format!("100.{}.{}.{}/28", 64 + third, a, b & 0xf0);
        let address = |third: u8, n: u8| Ipv4Addr::new(100, 64 + third, a, (b & 0xf0) + n);
        let network = |name: &str, subnet: &str, more: &[&str]| {
            let line = ["adm", "network", "create", name, "--nic-tag", name, "--subnet", subnet];
            datacenter.good(&[&line[..], more].concat());
        };
        let silent_gateway = address(0, 1);
        network("silent", &subnet(0), &["--gateway", &silent_gateway.to_string(), "--host-gateway"]);
        network("other", &subnet(1), &[]);
        let only = address(2, 5).to_string();
        network("tiny", &subnet(2), &["--range-start", &only, "--range-end", &only]);
        network("late", &subnet(3), &[]);
        datacenter.good(&["adm", "account", "create", "stranger", "--email", "stranger@example.com"]);
        network("theirs", &subnet(4), &["--owner", "stranger"]);

        Guest::order(datacenter, "eve", &["external", "private"]);
        Guest::order(datacenter, "bob", &["external", "private"]);
        Guest::order(datacenter, "far", &["other"]);
        Guest::order(datacenter, "quiet", &["silent"]);
        Self {
            datacenter,
            gateway: datacenter.settings().external.subnet.hosts().next().expect("it has addresses"),
            silent_gateway,
            eve: Guest::meet(datacenter, "eve"),
            bob: Guest::meet(datacenter, "bob"),
            far: Guest::meet(datacenter, "far"),
            quiet: Guest::meet(datacenter, "quiet"),
        }
    }

    fn bridge(&self, tag: &str) -> String {
        format!("{}b-{tag}", self.datacenter.settings().kernel.link_prefix)
    }

    /// What must work.
    fn reach(&self) {
        let Self { eve, bob, far, quiet, .. } = self;
        assert!(eve.pings(bob.nic(0).ip), "neighbours reach each other");
        assert!(eve.pings(bob.nic(1).ip), "on the private network too");
        assert!(eve.pings(self.gateway), "the gateway answers a ping");
        assert!(quiet.pings(self.silent_gateway), "with and without NAT");

        // Interfaces in the order asked for; the first is the primary one and has the only default route.
        let shows = |guest: &Guest<'_>, line: &str| guest.shell(line).1;
        for (number, interface) in [(0, "net0"), (1, "net1")] {
            let (nic, shown) = (eve.nic(number), shows(eve, &format!("ip addr show {interface}")));
            let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
            assert!(shown.contains(&format!("inet {}/", nic.ip)) && shown.contains(&mac), "{shown}");
        }
        let routes = shows(eve, "ip route");
        assert!(routes.contains(&format!("default via {} dev net0", self.gateway)), "{routes}");
        assert_eq!(routes.matches("default").count(), 1, "{routes}");
        assert!(!shows(far, "ip route").contains("default"), "a network without gateway leads nowhere");
    }

    /// What must not: other networks, other tenants' networks, the machine's own doors.
    fn isolation(&self, outside: &Outside) {
        let Self { eve, bob, far, quiet, .. } = self;
        let nothing: Vec<String> = Vec::new();
        for (who, strangers) in [
            // The other private network, one without NAT, the machine's addresses there and outside.
            (eve, vec![far.nic(0).ip, quiet.nic(0).ip, self.silent_gateway, outside.host, outside.there]),
            (far, vec![eve.nic(0).ip, eve.nic(1).ip, self.gateway, outside.host, outside.there]),
            (quiet, vec![eve.nic(0).ip, eve.nic(1).ip, self.gateway, outside.host, outside.there]),
        ] {
            let reached = who.answering(&strangers);
            let expected = if who.name == "eve" { vec![outside.there.to_string()] } else { nothing.clone() };
            assert_eq!(reached, expected, "what {} reaches of others", who.name);
        }

        // The machine's listeners: ours, and whatever else listens on all addresses.
        let everywhere = TcpListener::bind("0.0.0.0:0").expect("a port");
        let listen = self.datacenter.settings().listen;
        let ports = [everywhere.local_addr().expect("bound").port(), listen.cloudapi.port(), listen.ops.port()];
        let ports = ports.into_iter().chain([listen.node_link.port(), 22]);
        let doors: Vec<SocketAddr> =
            ports.flat_map(|port| [self.gateway, outside.host].map(|address| (address, port).into())).collect();
        assert_eq!(eve.opens(&doors), nothing, "doors of the machine that an instance can open");

        // What is said to many is heard by neighbours and not by the machine.
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let ear = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        ear.join_multicast_v4(&group, &self.gateway).expect("a member of the group");
        ear.set_read_timeout(Some(SILENCE)).expect("a timeout");
        let port = ear.local_addr().expect("bound").port();
        let neighbour = bob.begin_probe(&format!("hear net0 {}", to_hex(b"to many")));
        neighbour.wait_for(READY);
        eve.probe(&format!("greet {group}:{port} to-many"));
        eve.probe(&format!("send net0 {}", to_hex(&lies::truth(eve.nic(0), lies::BROADCAST, b"to many"))));
        assert!(neighbour.heard().iter().any(|frame| contains(frame, b"to-many")), "multicast works");
        assert!(ear.recv(&mut [0; 64]).is_err(), "the machine takes multicasts of an instance");
        // Without an address of its own the machine has nothing in IPv6 to reach.
        let six = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        assert!(!six.contains(&self.bridge("")), "{six}");

        // Its own metadata socket is the only one there.
        let (_, sockets) = eve.shell("ls /.zonecontrol; mdata-get sdc:uuid");
        assert_eq!(sockets, format!("metadata.sock\n{}\n", eve.view["id"].as_str().expect("an id")));

        // Another account's network is not there.
        let all = self.datacenter.good(&["instance", "networks"]);
        assert!(all.contains("other") && !all.contains("theirs"), "{all}");
        let id = self.datacenter.json(&["adm", "-j", "network", "get", "theirs"])["id"].clone();
        let id = id.as_str().expect("an id");
        let refused = self.datacenter.run(&["instance", "create", "-N", id, "minimal", "g1-nano"]);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && words.contains(id), "{words}");
    }

    /// To the outside and back, where the operator says so.
    fn translation(&self, outside: &Outside) {
        let Self { eve, far, quiet, .. } = self;
        let server = outside.enter(|| TcpListener::bind((outside.there, 0)).expect("a port"));
        let at = server.local_addr().expect("bound");
        assert!(eve.connects(at), "NAT leads outside");
        let (_, from) = server.accept().expect("it arrived");
        assert_eq!(from.ip(), IpAddr::V4(outside.host), "the outside sees the machine's address");
        for guest in [quiet, far] {
            assert!(!guest.connects(at), "{} is on a network without NAT and reaches the outside", guest.name);
        }
        server.set_nonblocking(true).expect("it can");
        assert!(server.accept().is_err(), "somebody came without NAT");

        // In from the outside, uninvited: the instance listens, its neighbour and the machine prove it.
        let serving = eve.begin("echo up; timeout 60 nc -l -p 7007 >/dev/null");
        serving.wait_for("up");
        let door = SocketAddr::from((eve.nic(0).ip, 7007));
        let invited = |patience| std::net::TcpStream::connect_timeout(&door, patience).is_ok();
        assert!(!outside.enter(|| invited(SILENCE)), "the outside reaches an instance uninvited");
        self.datacenter.wait("the instance's server", || invited(PATIENCE));
    }

    /// An instance lies, with raw sockets: nobody hears it, neither its neighbour nor the machine.
    fn spoofing(&self) {
        let Self { eve, bob, .. } = self;
        for (number, tag) in [(0, "ext"), (1, "priv")] {
            let (liar, victim, interface) = (eve.nic(number), bob.nic(number), format!("net{number}"));
            let gateway = if number == 0 { self.gateway } else { victim.ip };
            let before = self.counted();
            let host = Wire::open(&self.bridge(tag));
            let ear = bob.begin_probe(&format!("hear {interface} {}", to_hex(b"the truth")));
            ear.wait_for(READY);
            let lies = lies::all(liar, victim, gateway);
            let mut frames: Vec<String> = lies.iter().map(|lie| to_hex(&lie.frame)).collect();
            frames.push(to_hex(&lies::truth(liar, lies::BROADCAST, b"the truth")));
            eve.probe(&format!("send {interface} {}", frames.join(" ")));
            for (who, heard) in [("bob", ear.heard()), ("the machine", host.hear_until(b"the truth"))] {
                for lie in &lies {
                    let believed = heard.iter().any(|frame| contains(frame, &lie.mark));
                    assert!(!believed, "{who} heard on {tag}: {}", lie.name);
                }
            }
            let counted = self.counted() - before;
            assert!(counted >= lies.len() as u64, "{counted} of {} lies were counted as dropped", lies.len());
        }
        assert!(bob.pings(self.gateway) && eve.pings(bob.nic(0).ip), "afterwards all is as before");
    }

    /// Packets our rules for NICs dropped.
    fn counted(&self) -> u64 {
        let table = self.datacenter.settings().kernel.nft_table;
        let listed = Command::new("nft").args(["list", "counters", "table", "bridge", &table]).output().expect("`nft`");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        listed.split("packets ").skip(1).flat_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// An instance has no say in its own addresses.
    fn powers(&self) {
        let (eve, taken) = (&self.eve, self.bob.nic(0).ip);
        for line in [
            format!("ip addr add {taken}/24 dev net0"),
            "ip link set net0 address 02:00:00:00:00:07".to_owned(),
            "ip link set net0 down".to_owned(),
            "ip link add link net0 name tagged type vlan id 7".to_owned(),
            "ip route add default via 10.0.0.1 dev net1".to_owned(),
            "echo 1 >/proc/sys/net/ipv4/ip_forward".to_owned(),
        ] {
            let (done, said) = eve.shell(&line);
            assert!(!done, "eve may `{line}`: {said}");
        }
    }

    /// NICs come and go while the instance runs; addresses go back.
    fn nics(&self) {
        let Self { datacenter, far, .. } = self;
        datacenter.good(&["instance", "nics", "far", "--add", "late"]);
        datacenter.wait("a second NIC inside", || far.shell("ip addr show net1").1.contains("inet 100."));
        assert!(datacenter.init(far.view["id"].as_str().expect("an id")).is_some());
        datacenter.wait_idle();
        let view = datacenter.json(&["adm", "-j", "instance", "get", "far"]);
        let (mac, ip) = (view["nics"][1]["mac"].clone(), view["nics"][1]["ip"].clone());
        let mac = mac.as_str().expect("a MAC");
        let held = || {
            let held = datacenter.json(&["adm", "-j", "network", "ips", "late"]);
            held.as_array().expect("a list").iter().any(|address| address["ip"] == ip)
        };
        assert!(held() && datacenter.rules().contains(mac));
        let again = datacenter.good(&["instance", "nics", "far", "--add", "late"]);
        assert_eq!(again.matches("90:b8:d0").count(), 2, "a second NIC on one network: {again}");

        datacenter.good(&["instance", "nics", "far", "--remove", mac]);
        datacenter.wait("the address to be free again", || !held());
        assert!(!far.shell("ip addr show net1").0 && !datacenter.rules().contains(mac));
        assert!(far.view["nics"][0]["ip"].is_string() && far.shell("ip addr show net0").0);
    }

    /// No address left is said in plain words, and an address is free again when its instance is gone.
    fn addresses(&self) {
        let datacenter = self.datacenter;
        let create = |name| datacenter.run(&["instance", "create", "--name", name, "-N", "tiny", "minimal", "g1-nano"]);
        assert!(create("first").status.success());
        let refused = create("second");
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && words.contains("tiny") && words.contains("address"), "{words}");
        datacenter.wait_idle();
        datacenter.good(&["instance", "delete", "-w", "first"]);
        datacenter.wait("the address to be free", || create("first").status.success());
        datacenter.wait("it to run", || datacenter.state("first").as_deref() == Some("running"));
    }

    /// Somebody takes away rules, bridges and NICs: they come back by themselves and nothing is started again.
    fn repair(&self) {
        let Self { datacenter, eve, bob, .. } = self;
        let boot = datacenter.init(bob.view["id"].as_str().expect("an id")).expect("it runs");
        let settings = datacenter.settings().kernel;
        let (table, prefix) = (&settings.nft_table, &settings.link_prefix);
        let mac: String = bob.nic(0).mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let bridge = self.bridge("ext");
        for damage in [
            format!(
                "nft delete table bridge {table} && nft delete table inet {table} && ip link delete {prefix}v{mac} \
                 && ip address flush dev {bridge} && ip link set {bridge} down"
            ),
            format!("nft flush set bridge {table} nic_arp && ip link delete {bridge}"),
        ] {
            let done = Command::new("sh").args(["-c", &damage]).output().expect("a shell");
            assert!(done.status.success(), "{damage}: {}", String::from_utf8_lossy(&done.stderr));
            datacenter.wait(&format!("all to be well after `{damage}`"), || {
                datacenter.rules().contains(&format!("{prefix}v{mac}"))
                    && eve.pings(bob.nic(0).ip)
                    && bob.pings(self.gateway)
            });
        }
        self.spoofing();
        assert_eq!(datacenter.init(bob.view["id"].as_str().expect("an id")), Some(boot), "it was started again");
    }
}

/// The world outside: a network namespace behind a link of the machine's.
pub(crate) struct Outside {
    namespace: File,
    pub(crate) link: String,
    /// Bytes that tell this test's networks from those of others that run now.
    octets: [u8; 2],
    /// The machine's address on that link.
    host: Ipv4Addr,
    /// The world's.
    there: Ipv4Addr,
}

impl Outside {
    pub(crate) fn new() -> Self {
        let namespace = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            File::open("/proc/thread-self/ns/net").expect("its file")
        });
        let namespace = namespace.join().expect("it was made");
        let pid = std::process::id();
        // Sixteen addresses for each of 4096 processes.
        let octets @ [a, b] = u16::try_from(pid & 0xfff).map(|pid| (pid << 4).to_be_bytes()).expect("twelve bits");
        let (host, there) = (Ipv4Addr::new(198, 18, a, b + 1), Ipv4Addr::new(198, 18, a, b + 2));
        // Tests of one process run side by side.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let outside = Self { link: format!("nit{pid}-{count}"), octets, host, there, namespace };
        let named = format!("/proc/{pid}/fd/{}", outside.namespace.as_raw_fd());
        let link = outside.link.as_str();
        run(&["ip", "link", "add", link, "type", "veth", "peer", "name", "world", "netns", &named]);
        run(&["ip", "address", "add", &format!("{host}/28"), "dev", link]);
        run(&["ip", "link", "set", link, "up"]);
        outside.enter(|| {
            run(&["ip", "address", "add", &format!("{there}/28"), "dev", "world"]);
            run(&["ip", "link", "set", "world", "up"]);
            // It would know the way to instances.
            run(&["ip", "route", "add", "default", "via", &host.to_string()]);
        });
        outside
    }

    /// Runs `there` in the world outside.
    pub(crate) fn enter<R: Send>(&self, there: impl FnOnce() -> R + Send) -> R {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).expect("it can be entered");
                there()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.link]).status();
    }
}

pub(crate) fn run(command: &[&str]) {
    let done = Command::new(command[0]).args(&command[1..]).output().expect("the command is installed");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}
