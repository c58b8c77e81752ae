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
//! maps per direction lead from bridge and address to a chain. A change writes only what differs: [`super::firewall_change`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use model::{
    firewall::{Action, Direction, FirewallTarget, Layer, LayerId, Match, SetId, SetTarget},
    id::InstanceId,
};

use super::{
    firewall_terms::{conditions, listed},
    nflog::Mark,
    nft_wire::Verdict,
};
use crate::{filter::Firewall, link::LinkNames};

/// Lines a second one rule may write to the log, for each of its conditions: a flood must not drown the machine.
pub(super) const LOG_RATE: u64 = 10;

/// How many at once.
pub(super) const LOG_BURST: u32 = 20;

/// Where the text goes.
pub(super) struct Scope<'a> {
    /// Name of both tables.
    pub(super) table: &'a str,
    pub(super) names: &'a LinkNames,
    /// Where rules log to; the kernel's log if nobody reads ours.
    pub(super) log_group: Option<u16>,
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
        layer(&mut text, scope, target, *id);
    }
    for id in target.instances.keys() {
        instance(&mut text, table, target, *id);
    }
    dispatch(&mut text, table, &places(firewall));
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
    jump known
    ct direction reply ct state established accept
    ct state related accept
    icmpv6 type {{ 133, 134, 135, 136 }} accept
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

/// Makes both tables gone, whether or not they are there.
pub(super) fn removal(table: &str) -> String {
    ["bridge", "inet"].map(|family| format!("add table {family} {table}\ndelete table {family} {table}\n")).concat()
}

/// Maps from a bridge and an address to the chain that judges, and what kind of address.
const MAPS: [(&str, &str); 4] =
    [("in4", "ipv4_addr"), ("in6", "ipv6_addr"), ("out4", "ipv4_addr"), ("out6", "ipv6_addr")];

/// Name of the chain that judges an instance's traffic.
pub(super) fn chain(direction: Direction, id: InstanceId) -> String {
    let letter = match direction {
        Direction::Inbound => 'i',
        Direction::Outbound => 'o',
    };
    format!("{letter}_{}", id.to_string().replace('-', ""))
}

/// A bridge and an address.
pub(super) type Place<'a> = (&'a str, IpAddr);

/// Bridge and address of every filtered NIC.
pub(super) fn places(firewall: &Firewall) -> BTreeMap<Place<'_>, InstanceId> {
    let filtered = firewall.places.iter().filter(|(id, _)| firewall.target.instances.contains_key(id));
    filtered.flat_map(|(id, places)| places.iter().map(|place| ((place.bridge.as_str(), place.address), *id))).collect()
}

fn dispatch(text: &mut String, table: &str, places: &BTreeMap<Place<'_>, InstanceId>) {
    let mut lists: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for ((bridge, address), id) in places {
        let family = if address.is_ipv4() { 4 } else { 6 };
        for (direction, word) in [(Direction::Inbound, "in"), (Direction::Outbound, "out")] {
            let element = format!("\"{bridge}\" . {address} : goto {}", chain(direction, *id));
            lists.entry(format!("{word}{family}")).or_default().push(element);
        }
    }
    for (map, elements) in lists {
        let _ = writeln!(text, "add element inet {table} {map} {{ {} }}", elements.join(", "));
    }
}

/// Names of filtered NICs, and their addresses by name.
pub(super) fn receivers(scope: &Scope<'_>, firewall: &Firewall) -> (BTreeSet<String>, BTreeSet<(String, IpAddr)>) {
    let filtered = firewall.places.iter().filter(|(id, _)| firewall.target.instances.contains_key(id));
    let own: BTreeSet<(String, IpAddr)> =
        filtered.flat_map(|(_, places)| places).map(|place| (scope.names.nic(place.mac), place.address)).collect();
    (own.iter().map(|(name, _)| name.clone()).collect(), own)
}

fn receiving(text: &mut String, table: &str, names: &BTreeSet<String>, addresses: &BTreeSet<(String, IpAddr)>) {
    let of = |is_v4: bool| {
        let some = addresses.iter().filter(move |(_, address)| address.is_ipv4() == is_v4);
        some.map(|(name, address)| format!("\"{name}\" . {address}")).collect::<Vec<_>>()
    };
    let walled: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    for (set, elements) in [("walled", walled), ("own4", of(true)), ("own6", of(false))] {
        if !elements.is_empty() {
            let _ = writeln!(text, "add element bridge {table} {set} {{ {} }}", elements.join(", "));
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
    receiving(text, table, &walled, &own);
}

/// A number for each segment that tracks its connections apart; the same for the same name unless two names collide.
fn zones(firewall: &Firewall) -> String {
    let mut taken = BTreeSet::new();
    let mut elements = Vec::new();
    for bridge in &firewall.separate {
        let mut zone = number_of_name(bridge);
        while !taken.insert(zone) {
            zone = zone % u16::MAX + 1;
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

fn layer(text: &mut String, scope: &Scope<'_>, target: &FirewallTarget, id: LayerId) {
    let table = scope.table;
    let Some(layer) = target.layers.get(&id) else { return };
    for one in target.matches(id) {
        for [first, then] in conditions(&one, layer.direction) {
            let condition = format!("{} {}", first.text(), then.text());
            if let Some(mark) = mark(&one, layer) {
                let rate = format!("limit rate {LOG_RATE}/second burst {LOG_BURST} packets");
                let group = scope.log_group.map_or_else(String::new, |group| format!(" group {group}"));
                let _ = writeln!(text, "add rule inet {table} {id} {condition} {rate} log prefix \"{mark}\"{group}");
            }
            let _ = writeln!(text, "add rule inet {table} {id} {condition} {}", verdict(layer.action));
        }
    }
}

/// What a line of the log begins with.
pub(super) fn mark(one: &Match, layer: &Layer) -> Option<String> {
    let (rule, _) = one.rules.split_first().filter(|_| one.log)?;
    Some(Mark { direction: layer.direction, action: layer.action, rule: *rule }.to_string())
}

/// A number made of a name, the same whenever it is the same name: 1 to 65,535.
pub(super) fn number_of_name(name: &str) -> u16 {
    let sum = name.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u16::try_from(sum % u32::from(u16::MAX) + 1).unwrap_or(1)
}

/// What an action is to the kernel.
pub(super) const fn action(action: Action) -> Verdict {
    match action {
        Action::Allow => Verdict::Accept,
        Action::Block => Verdict::Drop,
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
