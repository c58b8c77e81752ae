//! What a [`Firewall`] means in nftables: pure text.
//!
//! ```text
//! table bridge <name>_fw  to_nic     a filtered NIC receives what is addressed to one of its own addresses, and ARP and ND
//! table inet <name>_fw    zoning     segments whose addresses may repeat elsewhere track their connections apart
//!                         leaving    forward, input: what an instance sends, by the layers of its chain `o_<id>`; else accepted
//!                         arriving   forward, output: what it is sent, by the layers of its chain `i_<id>`; else dropped
//!                         stamping   forward: a connection that passed both is stamped with the number of this revision
//! ```
//! Bridged frames come here because their bridge hands them to the IP hooks (`nf_call_iptables` of that bridge alone): connections
//! are tracked there on every kernel, in the bridge family only on some. An instance is known by its bridge and its address, which
//! the rules against spoofing vouch for.
//!
//! Answers are accepted; what goes the way of the first packet is accepted when its connection bears the stamp of *this* revision, and
//! judged again otherwise. So a change reaches open connections too, with their next packet, and costs each of them one walk.
//!
//! Layers become chains of verdict rules, sets become sets, instances two chains that jump to their layers, and two
//! maps per direction lead from bridge and address to a chain. A change writes only what differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use ipnet::IpNet;
use model::{
    firewall::{Action, Direction, FirewallTarget, IcmpType, LayerId, Match, Peers, SetId, SetTarget, Traffic, diff},
    id::InstanceId,
};

use crate::{filter::Firewall, link::LinkNames};

/// Lines a second one rule may write to the log, and how many at once: a flood must not drown the machine's log.
const LOG_RATE: &str = "limit rate 10/second burst 20 packets";

/// Where the text goes.
pub(super) struct Scope<'a> {
    /// Name of both tables.
    pub(super) table: &'a str,
    pub(super) names: &'a LinkNames,
}

/// Everything, replacing whatever the tables held. `stamp` marks connections judged by this revision.
pub(super) fn whole(scope: &Scope<'_>, firewall: &Firewall, stamp: u32) -> String {
    let mut text = removal(scope.table);
    let target = &*firewall.target;
    bridge_table(&mut text, scope, firewall);
    let (table, bridges) = (scope.table, scope.names.bridge_prefix());
    let _ = writeln!(text, "table inet {table} {{");
    for (name, key) in MAPS {
        let _ = writeln!(text, "map {name} {{ type ifname . {key} : verdict; }}");
    }
    for id in target.layers.keys() {
        let _ = writeln!(text, "chain {id} {{ }}");
    }
    for id in target.instances.keys() {
        for direction in Direction::ALL {
            let _ = writeln!(text, "chain {} {{ }}", chain(direction, *id));
        }
    }
    hooks(&mut text, &bridges, &zones(firewall));
    for (id, set) in &target.sets {
        new_set(&mut text, table, *id, set);
    }
    for id in target.layers.keys() {
        layer(&mut text, table, target, *id);
    }
    for id in target.instances.keys() {
        instance(&mut text, table, target, *id);
    }
    let none = BTreeMap::new();
    dispatch(&mut text, table, &none, &places(firewall));
    stamped(&mut text, table, stamp);
    text
}

/// Where the kernel hands packets to us; ends the table.
fn hooks(text: &mut String, bridges: &str, zones: &str) {
    let _ = write!(
        text,
        r#"chain known {{ }}
chain stamp {{ }}
chain passing {{
    ct direction reply ct state established accept
    ct state related accept
    icmpv6 type {{ 133, 134, 135, 136 }} accept
    jump known
}}
chain zoning {{
    type filter hook prerouting priority raw; policy accept;
{zones}}}
chain leaving {{
    type filter hook forward priority filter - 6; policy accept;
    iifname != "{bridges}*" accept
    jump passing
    iifname . ip saddr vmap @out4
    iifname . ip6 saddr vmap @out6
}}
chain leaving_to_host {{
    type filter hook input priority filter - 11; policy accept;
    iifname != "{bridges}*" accept
    jump passing
    iifname . ip saddr vmap @out4
    iifname . ip6 saddr vmap @out6
}}
chain arriving {{
    type filter hook forward priority filter - 5; policy accept;
    oifname != "{bridges}*" accept
    jump passing
    oifname . ip daddr vmap @in4
    oifname . ip6 daddr vmap @in6
}}
chain arriving_from_host {{
    type filter hook output priority filter - 5; policy accept;
    oifname != "{bridges}*" accept
    jump passing
    oifname . ip daddr vmap @in4
    oifname . ip6 daddr vmap @in6
}}
chain stamping {{
    type filter hook forward priority filter - 4; policy accept;
    iifname "{bridges}*" jump stamp
    oifname "{bridges}*" jump stamp
}}
}}
"#
    );
}

/// What to do where `held` is in the kernel and `wanted` should be, as one transaction; nothing if there is nothing to do, `None` if
/// it takes [`whole`].
pub(super) fn difference(scope: &Scope<'_>, held: &Firewall, wanted: &Firewall, stamp: u32) -> Option<String> {
    if held.separate != wanted.separate {
        return None;
    }
    let (change, table, target) = (diff(&held.target, &wanted.target), scope.table, &*wanted.target);
    let (before, after) = (places(held), places(wanted));
    if change.is_empty() && before == after {
        return Some(String::new());
    }
    let mut text = String::new();
    for id in &change.sets_added {
        new_set(&mut text, table, *id, &target.sets[id]);
    }
    for (id, elements) in &change.sets_changed {
        let (gone_v4, new_v4) = (listed(&elements.removed_v4), listed(&elements.added_v4));
        let (gone_v6, new_v6) = (listed(&elements.removed_v6), listed(&elements.added_v6));
        for (verb, family, list) in
            [("delete", 4, gone_v4), ("add", 4, new_v4), ("delete", 6, gone_v6), ("add", 6, new_v6)]
        {
            if !list.is_empty() {
                let _ = writeln!(text, "{verb} element inet {table} {id}_{family} {{ {list} }}");
            }
        }
    }
    for id in &change.layers_written {
        let _ = writeln!(text, "add chain inet {table} {id}\nflush chain inet {table} {id}");
        layer(&mut text, table, target, *id);
    }
    for id in &change.instances_written {
        for direction in Direction::ALL {
            let name = chain(direction, *id);
            let _ = writeln!(text, "add chain inet {table} {name}\nflush chain inet {table} {name}");
        }
        instance(&mut text, table, target, *id);
    }
    dispatch(&mut text, table, &before, &after);
    nics(&mut text, scope, held, wanted);
    for id in &change.instances_removed {
        for direction in Direction::ALL {
            let name = chain(direction, *id);
            let _ = writeln!(text, "flush chain inet {table} {name}\ndelete chain inet {table} {name}");
        }
    }
    for id in &change.layers_removed {
        let _ = writeln!(text, "flush chain inet {table} {id}\ndelete chain inet {table} {id}");
    }
    for id in &change.sets_removed {
        let _ = writeln!(text, "delete set inet {table} {id}_4\ndelete set inet {table} {id}_6");
    }
    stamped(&mut text, table, stamp);
    Some(text)
}

/// Makes both tables gone, whether or not they are there.
pub(super) fn removal(table: &str) -> String {
    ["bridge", "inet"].map(|family| format!("add table {family} {table}\ndelete table {family} {table}\n")).concat()
}

/// Maps from a bridge and an address to the chain that judges, and what kind of address.
const MAPS: [(&str, &str); 4] =
    [("in4", "ipv4_addr"), ("in6", "ipv6_addr"), ("out4", "ipv4_addr"), ("out6", "ipv6_addr")];

fn chain(direction: Direction, id: InstanceId) -> String {
    let letter = match direction {
        Direction::Inbound => 'i',
        Direction::Outbound => 'o',
    };
    format!("{letter}_{}", id.to_string().replace('-', ""))
}

/// Bridge and address of every filtered NIC.
fn places(firewall: &Firewall) -> BTreeMap<(&str, IpAddr), InstanceId> {
    let filtered = firewall.places.iter().filter(|(id, _)| firewall.target.instances.contains_key(id));
    filtered.flat_map(|(id, places)| places.iter().map(|place| ((place.bridge.as_str(), place.address), *id))).collect()
}

fn dispatch(
    text: &mut String,
    table: &str,
    before: &BTreeMap<(&str, IpAddr), InstanceId>,
    after: &BTreeMap<(&str, IpAddr), InstanceId>,
) {
    let mut lists: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    let mut put = |verb, (bridge, address): (&str, IpAddr), id| {
        let family = if address.is_ipv4() { 4 } else { 6 };
        for (direction, word) in [(Direction::Inbound, "in"), (Direction::Outbound, "out")] {
            let element = format!("\"{bridge}\" . {address} : goto {}", chain(direction, id));
            lists.entry((verb, format!("{word}{family}"))).or_default().push(element);
        }
    };
    for (key, id) in before.iter().filter(|(key, id)| after.get(key) != Some(id)) {
        put("delete", *key, *id);
    }
    for (key, id) in after.iter().filter(|(key, id)| before.get(key) != Some(id)) {
        put("add", *key, *id);
    }
    // Deletions first, so that an address may go from one instance to another.
    for ((verb, map), elements) in lists.iter().rev() {
        let _ = writeln!(text, "{verb} element inet {table} {map} {{ {} }}", elements.join(", "));
    }
}

/// Names of filtered NICs, and their addresses by name.
fn receivers(scope: &Scope<'_>, firewall: &Firewall) -> (BTreeSet<String>, BTreeSet<(String, IpAddr)>) {
    let filtered = firewall.places.iter().filter(|(id, _)| firewall.target.instances.contains_key(id));
    let own: BTreeSet<(String, IpAddr)> =
        filtered.flat_map(|(_, places)| places).map(|place| (scope.names.nic(place.mac), place.address)).collect();
    (own.iter().map(|(name, _)| name.clone()).collect(), own)
}

fn nics(text: &mut String, scope: &Scope<'_>, held: &Firewall, wanted: &Firewall) {
    let ((walled, own), (walled_now, own_now)) = (receivers(scope, held), receivers(scope, wanted));
    let changes = [
        ("delete", walled.difference(&walled_now).collect::<Vec<_>>(), own.difference(&own_now).collect::<Vec<_>>()),
        ("add", walled_now.difference(&walled).collect(), own_now.difference(&own).collect()),
    ];
    for (verb, names, addresses) in changes {
        receiving(text, scope.table, verb, &names, &addresses);
    }
}

fn receiving(text: &mut String, table: &str, verb: &str, names: &[&String], addresses: &[&(String, IpAddr)]) {
    let of = |is_v4: bool| {
        let some = addresses.iter().filter(move |(_, address)| address.is_ipv4() == is_v4);
        some.map(|(name, address)| format!("\"{name}\" . {address}")).collect::<Vec<_>>()
    };
    let walled: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    for (set, elements) in [("walled", walled), ("own4", of(true)), ("own6", of(false))] {
        if !elements.is_empty() {
            let _ = writeln!(text, "{verb} element bridge {table} {set} {{ {} }}", elements.join(", "));
        }
    }
}

fn bridge_table(text: &mut String, scope: &Scope<'_>, firewall: &Firewall) {
    let table = scope.table;
    let _ = write!(
        text,
        r#"table bridge {table} {{
set walled {{ type ifname; }}
set own4 {{ type ifname . ipv4_addr; }}
set own6 {{ type ifname . ipv6_addr; }}
chain receive {{
    ether type arp accept
    ether type ip oifname . ip daddr @own4 accept
    icmpv6 type {{ 133, 134, 135, 136 }} accept
    ether type ip6 oifname . ip6 daddr @own6 accept
    drop
}}
chain to_nic {{
    type filter hook postrouting priority -300; policy accept;
    oifname @walled jump receive
}}
}}
"#
    );
    let (walled, own) = receivers(scope, firewall);
    receiving(text, table, "add", &walled.iter().collect::<Vec<_>>(), &own.iter().collect::<Vec<_>>());
}

/// A number for each segment that tracks its connections apart; the same for the same name unless two names collide.
fn zones(firewall: &Firewall) -> String {
    let mut taken = BTreeSet::new();
    let mut elements = Vec::new();
    for bridge in &firewall.separate {
        let mut zone =
            bridge.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        zone = zone % u32::from(u16::MAX) + 1;
        while !taken.insert(zone) {
            zone = zone % u32::from(u16::MAX) + 1;
        }
        elements.push(format!("\"{bridge}\" : {zone}"));
    }
    match elements.is_empty() {
        true => String::new(),
        false => format!("    ct zone set iifname map {{ {} }}\n", elements.join(", ")),
    }
}

fn new_set(text: &mut String, table: &str, id: SetId, set: &SetTarget) {
    let v4: Vec<_> = set.addresses.v4.iter().collect();
    let v6: Vec<_> = set.addresses.v6.iter().collect();
    for (family, list) in [(4, listed(&v4)), (6, listed(&v6))] {
        let _ = writeln!(text, "add set inet {table} {id}_{family} {{ type ipv{family}_addr; }}");
        if !list.is_empty() {
            let _ = writeln!(text, "add element inet {table} {id}_{family} {{ {list} }}");
        }
    }
}

fn instance(text: &mut String, table: &str, target: &FirewallTarget, id: InstanceId) {
    let Some(filter) = target.instances.get(&id) else { return };
    for direction in Direction::ALL {
        let name = chain(direction, id);
        for layer in filter.layers(direction) {
            let _ = writeln!(text, "add rule inet {table} {name} jump {layer}");
        }
        let _ = writeln!(text, "add rule inet {table} {name} {}", verdict(direction.default_action()));
    }
}

fn layer(text: &mut String, table: &str, target: &FirewallTarget, id: LayerId) {
    let Some(layer) = target.layers.get(&id) else { return };
    for one in target.matches(id) {
        for condition in conditions(&one, layer.direction) {
            if one.log {
                let rule = one.rules.first().map(ToString::to_string).unwrap_or_default();
                let word = verdict(layer.action);
                let _ = writeln!(
                    text,
                    "add rule inet {table} {id} {condition} {LOG_RATE} log prefix \"neso-fw {word} {rule} \""
                );
            }
            let _ = writeln!(text, "add rule inet {table} {id} {condition} {}", verdict(layer.action));
        }
    }
}

const fn verdict(action: Action) -> &'static str {
    match action {
        Action::Allow => "accept",
        Action::Block => "drop",
    }
}

fn stamped(text: &mut String, table: &str, stamp: u32) {
    let _ = write!(
        text,
        "flush chain inet {table} known\nadd rule inet {table} known ct mark {stamp} accept\n\
         flush chain inet {table} stamp\nadd rule inet {table} stamp ct mark set {stamp}\n"
    );
}

/// The conditions of which one must hold: peers of either family times kinds of traffic.
fn conditions(one: &Match, direction: Direction) -> Vec<String> {
    let mut all = Vec::new();
    for is_v4 in [true, false] {
        let traffic = traffic(&one.traffic, is_v4);
        for peers in peers(&one.peers, direction, is_v4) {
            all.extend(traffic.iter().map(|traffic| format!("{peers} {traffic}")));
        }
    }
    all
}

fn peers(peers: &Peers, direction: Direction, is_v4: bool) -> Vec<String> {
    let (word, family) = if is_v4 { ("ip", 4) } else { ("ip6", 6) };
    let side = match direction {
        Direction::Inbound => "saddr",
        Direction::Outbound => "daddr",
    };
    match peers {
        Peers::Any => vec![format!("meta nfproto ipv{family}")],
        Peers::Of { sets, subnets, addresses } => {
            let mut all: Vec<String> = sets.iter().map(|set| format!("{word} {side} @{set}_{family}")).collect();
            let named = subnets.iter().copied().chain(addresses.iter().map(|address| IpNet::from(*address)));
            let named: Vec<IpNet> = named.filter(|net| net.addr().is_ipv4() == is_v4).collect();
            if !named.is_empty() {
                all.push(format!("{word} {side} {{ {} }}", listed(&IpNet::aggregate(&named))));
            }
            all
        }
    }
}

fn traffic(traffic: &Traffic, is_v4: bool) -> Vec<String> {
    let ports = |word: &str, ports: &Option<Vec<(u16, u16)>>| match ports {
        None => vec![format!("meta l4proto {word}")],
        Some(ranges) => {
            let ranges: Vec<String> = ranges
                .iter()
                .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
                .collect();
            vec![format!("{word} dport {{ {} }}", ranges.join(", "))]
        }
    };
    let types = |word: &str, protocol: u8, types: &Option<Vec<IcmpType>>| match types {
        None => vec![format!("meta l4proto {protocol}")],
        Some(types) => types
            .iter()
            .map(|one| match one.code {
                Some(code) => format!("{word} type {} {word} code {code}", one.kind),
                None => format!("{word} type {}", one.kind),
            })
            .collect(),
    };
    match traffic {
        Traffic::Tcp { ports: list } => ports("tcp", list),
        Traffic::Udp { ports: list } => ports("udp", list),
        Traffic::Icmp { types: list } if is_v4 => types("icmp", 1, list),
        Traffic::Icmp6 { types: list } if !is_v4 => types("icmpv6", 58, list),
        Traffic::Icmp { .. } | Traffic::Icmp6 { .. } => Vec::new(),
        Traffic::Ah => vec!["meta l4proto 51".to_owned()],
        Traffic::Esp => vec!["meta l4proto 50".to_owned()],
    }
}

fn listed<T: ToString>(all: &[T]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
