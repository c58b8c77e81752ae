//! The `sdc:` keys: a guest reads any property of its instance, as if the instance were Triton's object of it.
//!
//! A path is looked up in one JSON object with dots for depth, the longest name first, because tag names may hold dots
//! themselves: `sdc:tags.a.b` is the tag `a.b` if there is one, else `b` of `a`. Text comes out bare, other values as JSON.

use std::net::IpAddr;

use model::{
    id::InstanceId,
    instance::{Brand, Wanted},
    target::{Exit, NicTarget, Target, ZoneTarget},
    time::Timestamp,
};
use serde_json::{Map, Value, json};

/// Where a guest's search domain is when its network names none.
const LOCAL_DOMAIN: &str = "local";

/// What the properties are computed from.
pub(crate) struct View<'a> {
    pub(crate) id: InstanceId,
    pub(crate) target: &'a Target,
    pub(crate) zone: &'a ZoneTarget,
    /// Start of the running boot.
    pub(crate) started_at: Option<Timestamp>,
    /// How the boot before it ended.
    pub(crate) exit: Option<Exit>,
    /// When anything of how it is set up last changed on this machine.
    pub(crate) modified_at: Option<Timestamp>,
}

/// The text of a property, without `sdc:`; `None` when there is none.
pub(crate) fn property(view: &View<'_>, path: &str) -> Option<String> {
    match path {
        "operator-script" => return view.zone.internal_metadata.get(path).cloned(),
        "volumes" => return view.zone.internal_metadata.get("sdc:volumes").cloned(),
        // Cheap, and asked for by every guest at every boot: not worth the whole object.
        "uuid" | "zonename" => return Some(view.id.to_string()),
        "hostname" => return Some(view.zone.hostname.clone()),
        _ => {}
    }
    text(walk(&object(view), path)?)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn walk<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => {
            if let Some(found) = fields.get(path) {
                return Some(found);
            }
            path.rmatch_indices('.').find_map(|(at, _)| walk(fields.get(&path[..at])?, &path[at + 1..]))
        }
        Value::Array(items) => {
            let (index, rest) = path.split_once('.').map_or((path, None), |(index, rest)| (index, Some(rest)));
            let item = items.get(index.parse::<usize>().ok()?)?;
            rest.map_or(Some(item), |rest| walk(item, rest))
        }
        _ => None,
    }
}

fn object(view: &View<'_>) -> Value {
    let (zone, limits) = (view.zone, &view.zone.limits);
    let mut fields: Map<String, Value> = Map::new();
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    set("v", json!(1));
    set("uuid", json!(view.id.to_string()));
    set("zonename", json!(view.id.to_string()));
    set("alias", json!(zone.alias));
    set("hostname", json!(zone.hostname));
    set("server_uuid", json!(view.target.server.to_string()));
    set("owner_uuid", json!(zone.owner.to_string()));
    set("datacenter_name", json!(view.target.datacenter));
    set("dns_domain", json!(zone.dns_domain.as_deref().unwrap_or(LOCAL_DOMAIN)));
    set("brand", json!(zone.brand.as_str()));
    set("type", json!(kind(zone.brand)));
    set("image_uuid", json!(zone.image.to_string()));
    set("dataset_uuid", json!(zone.image.to_string()));
    set("package_name", json!(zone.package_name));
    set("package_version", json!(zone.package_version));
    set("billing_id", json!(zone.package.map(|package| package.to_string())));
    set("max_physical_memory", json!(limits.memory.0));
    set("max_locked_memory", json!(limits.memory.0));
    set("max_swap", json!(limits.swap.0));
    set("tmpfs", json!(limits.memory.0));
    // Triton counts the quota in GiB; a part of one is rounded up so that it is never zero, which would mean "none".
    set("quota", json!(limits.disk.0.div_ceil(1024)));
    set("max_lwps", json!(limits.max_processes));
    set("cpu_shares", json!(limits.cpu_shares.0));
    set("cpu_cap", limits.cpu_cap.map_or(Value::Null, |cap| json!(cap.0)));
    set("autoboot", json!(zone.wanted == Wanted::Running));
    set("create_timestamp", json!(zone.created_at));
    set("boot_timestamp", view.started_at.map_or(Value::Null, |at| json!(at)));
    set("last_modified", json!(view.modified_at.map(|at| at.max(zone.created_at))));
    set("exit_timestamp", json!(view.exit.as_ref().map(|exit| exit.at)));
    set("exit_status", json!(view.exit.as_ref().map(exit_status)));
    set("state", json!("running"));
    set("zone_state", json!("running"));
    set("nics", zone.nics.iter().map(|nic| nic_object(view.target, nic)).collect());
    set("resolvers", zone.resolvers.iter().map(IpAddr::to_string).collect());
    set("routes", zone.routes.iter().map(|(to, via)| route(to.to_string(), *via)).collect());
    set("tags", json!(zone.tags));
    set("customer_metadata", json!(zone.metadata));
    Value::Object(fields)
}

fn nic_object(target: &Target, nic: &NicTarget) -> Value {
    let network = target.networks.get(&nic.network);
    let gateways: Vec<IpAddr> = nic.gateway.map(IpAddr::V4).into_iter().chain(nic.gateway6.map(IpAddr::V6)).collect();
    let first = nic.addresses().next();
    let mut fields = json!({
        "interface": nic.interface,
        "mac": nic.mac.to_string(),
        "vlan_id": network.map_or(0, |network| network.vlan),
        "nic_tag": network.map_or("", |network| network.nic_tag.as_str()),
        "netmask": first.map(|net| net.netmask().to_string()),
        "ip": first.map(|net| net.addr().to_string()),
        "ips": nic.addresses().map(|net| net.to_string()).collect::<Vec<_>>(),
        "network_uuid": nic.network.to_string(),
        "mtu": nic.mtu,
        "gateways": gateways.iter().map(IpAddr::to_string).collect::<Vec<_>>(),
    });
    if let (Some(gateway), Some(fields)) = (gateways.first(), fields.as_object_mut()) {
        fields.insert("gateway".to_owned(), json!(gateway.to_string()));
    }
    if let (true, Some(fields)) = (nic.primary, fields.as_object_mut()) {
        fields.insert("primary".to_owned(), json!(true));
    }
    fields
}

/// Triton's word for a kind of instance.
const fn kind(brand: Brand) -> &'static str {
    match brand {
        Brand::Lx => "LX",
        Brand::Kvm => "KVM",
    }
}

/// The status a shell would show: the code, or 128 and the signal.
fn exit_status(exit: &Exit) -> i32 {
    exit.code.or_else(|| exit.signal.map(|signal| 128 + signal)).unwrap_or(0)
}

fn route(destination: String, gateway: IpAddr) -> Value {
    json!({ "linklocal": false, "dst": destination, "gateway": gateway.to_string() })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use model::{
        id::{AccountId, ImageId, MacAddr, NetworkId, ServerId},
        instance::TagValue,
        pairs::Pairs,
        target::{Limits, NetworkTarget},
        unit::{CpuCap, CpuShares, Mib},
    };

    use super::*;

    fn example() -> (InstanceId, Target) {
        let id: InstanceId = "0b8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11".parse().unwrap();
        let network: NetworkId = "4b8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11".parse().unwrap();
        let tags = [("a.b", TagValue::Text("dotted".to_owned())), ("a", TagValue::Bool(true))];
        let zone = ZoneTarget {
            wanted: Wanted::Running,
            starts: 1,
            reboots: 0,
            owner: AccountId::random(),
            alias: "web".to_owned(),
            hostname: "web".to_owned(),
            brand: Brand::Lx,
            image: ImageId::random(),
            package_name: "g1".to_owned(),
            package_version: Some("1.2.0".to_owned()),
            package: "5c8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11".parse().ok(),
            limits: Limits {
                memory: Mib(256),
                swap: Mib(512),
                disk: Mib(1500),
                max_processes: 2000,
                cpu_cap: Some(CpuCap(100)),
                cpu_shares: CpuShares(100),
            },
            nics: vec![NicTarget {
                mac: MacAddr::from_suffix(1),
                interface: "net0".to_owned(),
                network,
                address: Some("10.0.0.5/24".parse().unwrap()),
                gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
                addresses6: vec!["fd00:9::5/64".parse().unwrap()],
                gateway6: Some("fd00:9::1".parse().unwrap()),
                primary: true,
                mtu: 1500,
            }],
            resolvers: vec!["8.8.8.8".parse().unwrap()],
            dns_domain: None,
            routes: BTreeMap::from([("10.9.0.0/16".parse().unwrap(), Ipv4Addr::new(10, 0, 0, 7).into())]),
            metadata: Pairs::default(),
            internal_metadata: Pairs::from([("operator-script".to_owned(), "#!/bin/sh".to_owned())]),
            tags: tags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            guest_metadata_seen: 0,
            created_at: Timestamp(0),
        };
        let segment = NetworkTarget {
            nic_tag: "ext".to_owned(),
            vlan: 3,
            subnet: Some("10.0.0.0/24".parse().unwrap()),
            host_address: None,
            nat: false,
            mtu: 1500,
            ..NetworkTarget::default()
        };
        let target = Target {
            server: ServerId::random(),
            generation: 1,
            datacenter: "dc1".to_owned(),
            networks: BTreeMap::from([(network, segment)]),
            images: BTreeMap::new(),
            zones: BTreeMap::from([(id, zone.into())]),
            firewall: Default::default(),
            underlay: None,
            vxlan_port: model::network::VXLAN_PORT,
            peers: Default::default(),
            headnode: None,
            headnodes: Vec::new(),
        };
        (id, target)
    }

    #[test]
    fn every_key_guests_ask_for() {
        let (id, target) = example();
        let exit = Exit { at: Timestamp(5000), code: None, signal: Some(1), reason: "rebooted".into(), asked: false };
        let (zone, modified_at) = (&target.zones[&id], Some(Timestamp(7000)));
        let view = View { id, target: &target, zone, started_at: None, exit: Some(exit), modified_at };
        let cases = [
            ("uuid", Some("0b8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11")),
            ("alias", Some("web")),
            ("dns_domain", Some("local")),
            ("datacenter_name", Some("dc1")),
            ("max_physical_memory", Some("256")),
            ("quota", Some("2")),
            ("cpu_cap", Some("100")),
            ("autoboot", Some("true")),
            ("create_timestamp", Some("1970-01-01T00:00:00.000Z")),
            ("boot_timestamp", None),
            ("package_name", Some("g1")),
            ("package_version", Some("1.2.0")),
            ("billing_id", Some("5c8a1f0e-5a3c-4f0e-9d52-7d2f4c0f9a11")),
            ("type", Some("LX")),
            ("last_modified", Some("1970-01-01T00:00:07.000Z")),
            ("exit_status", Some("129")),
            ("exit_timestamp", Some("1970-01-01T00:00:05.000Z")),
            ("volumes", None),
            ("operator-script", Some("#!/bin/sh")),
            ("tags.a", Some("true")),
            ("tags.a.b", Some("dotted")),
            ("tags.c", None),
            ("nics.0.ip", Some("10.0.0.5")),
            ("nics.0.gateway", Some("10.0.0.1")),
            ("nics.0.gateways", Some(r#"["10.0.0.1","fd00:9::1"]"#)),
            ("nics.0.ips", Some(r#"["10.0.0.5/24","fd00:9::5/64"]"#)),
            ("nics.0.nic_tag", Some("ext")),
            ("nics.1.ip", None),
            ("resolvers", Some(r#"["8.8.8.8"]"#)),
            ("routes", Some(r#"[{"dst":"10.9.0.0/16","gateway":"10.0.0.7","linklocal":false}]"#)),
            ("nonsense", None),
            ("", None),
            ("..", None),
        ];
        for (path, expected) in cases {
            assert_eq!(property(&view, path).as_deref(), expected, "sdc:{path}");
        }
        let nics: Value = serde_json::from_str(&property(&view, "nics").unwrap()).unwrap();
        assert_eq!(nics[0]["primary"], true);
    }
}
