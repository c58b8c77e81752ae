//! What people ask for: tenants of their instances, networks and rules, operators of their machines.
//!
//! A request is drawn from what the records say now and carried out later, beside others: what it refers to may be gone by then,
//! as with real people.

use std::{collections::BTreeMap, pin::Pin};

use control::{
    Control, Error, Scope, fabrics, firewall, instances, servers,
    tables::{BY_OWNER, INSTANCES, VLANS},
};
use model::{
    id::{AccountId, ImageId, InstanceId, NetworkId, ServerId},
    instance::{Caller, TagValue},
    layout::Layout,
};

use crate::{chance::Chance, datacenter::Datacenter, furnish::PACKAGES};

/// VLANs a tenant uses, and subnets on them: few, so that tenants' are the same and get in each other's way.
const VLANS_USED: u64 = 3;
const SUBNETS: [&str; 4] = ["10.0.0.0/28", "10.0.1.0/28", "10.0.2.0/24", "192.168.7.0/28"];

/// Values of the one tag there is.
const ROLES: [&str; 3] = ["web", "db", "cache"];

/// Rules of the firewall.
const RULES: [&str; 5] = [
    "FROM any TO tag \"role\" = \"web\" ALLOW tcp PORT 80",
    "FROM tag \"role\" = \"web\" TO tag \"role\" = \"db\" ALLOW tcp PORT 5432",
    "FROM any TO all vms ALLOW icmp TYPE 8",
    "FROM all vms TO subnet 10.99.0.0/16 BLOCK udp PORT 53",
    "FROM tag \"role\" TO all vms BLOCK tcp PORT 22",
];

/// Rules of affinity.
const AFFINITY: [&str; 3] = ["role!=~db", "instance!=web*", "role==~cache"];

/// Somebody's wish on its way.
pub(crate) type Wish = Pin<Box<dyn Future<Output = Result<String, Error>> + Send>>;

/// A request of somebody's, in words, and itself.
pub(crate) struct Request {
    pub(crate) what: String,
    pub(crate) wish: Wish,
}

/// Who asks, and what they may choose from.
struct Asker {
    control: Control,
    account: AccountId,
    image: ImageId,
    /// The operator's networks and the account's own.
    networks: Vec<NetworkId>,
    vlans: Vec<u16>,
    instances: Vec<InstanceId>,
}

/// Draws a request. Beyond `instances_max` instances nobody asks for more.
pub(crate) fn draw(datacenter: &Datacenter, chance: &mut Chance, instances_max: usize) -> Option<Request> {
    let asker = Asker::choose(datacenter, chance)?;
    if chance.percent(2) {
        return operator(datacenter, chance);
    }
    let present = datacenter.control.snapshot().scan(&INSTANCES).filter(|entry| entry.deleted_at.is_none()).count();
    match chance.below(100) {
        0..14 => asker.fabric(chance),
        14..22 => asker.firewall(chance),
        _ if present < instances_max && (asker.instances.is_empty() || chance.percent(40)) => {
            Some(asker.create(chance))
        }
        _ => asker.change(chance),
    }
}

/// Instances that are not deleted, oldest first.
pub(crate) fn present(control: &Control) -> Vec<(InstanceId, AccountId)> {
    let snapshot = control.snapshot();
    let mut present: Vec<_> = snapshot.scan(&INSTANCES).filter(|entry| entry.deleted_at.is_none()).collect();
    present.sort_by_key(|entry| (entry.created_at, entry.id));
    present.iter().map(|entry| (entry.id, entry.owner)).collect()
}

/// Deletes every instance. What cannot be deleted, in words.
pub(crate) async fn delete_instances(control: &Control) -> Vec<String> {
    let mut wrong = Vec::new();
    for (id, owner) in present(control) {
        match instances::delete(control, &Caller::System, Scope::Account(owner), id).await {
            Ok(_) | Err(Error::NotFound { .. } | Error::Gone(_)) => {}
            Err(error) => wrong.push(format!("{id} cannot be deleted: {}", base::errors::chain(&error))),
        }
    }
    wrong
}

/// Deletes every rule, network and VLAN of the tenants. What cannot be deleted, in words.
pub(crate) async fn delete_networks(control: &Control) -> Vec<String> {
    let mut wrong = Vec::new();
    for rule in firewall::list(control, Scope::All) {
        if let Err(error) = firewall::delete(control, Scope::All, rule.id).await {
            wrong.push(format!("rule {} cannot be deleted: {}", rule.id, base::errors::chain(&error)));
        }
    }
    for vlan in fabrics::vlan_list(control, None) {
        for network in fabrics::network_list(control, vlan.owner, vlan.vlan).unwrap_or_default() {
            if let Err(error) = fabrics::network_delete(control, vlan.owner, vlan.vlan, network.id).await {
                wrong.push(format!("network {} cannot be deleted: {}", network.id, base::errors::chain(&error)));
            }
        }
        if let Err(error) = fabrics::vlan_delete(control, vlan.owner, vlan.vlan).await {
            wrong.push(format!("VLAN {} cannot be deleted: {}", vlan.vlan, base::errors::chain(&error)));
        }
    }
    wrong
}

/// An operator closes a machine, empties it or opens it again.
fn operator(datacenter: &Datacenter, chance: &mut Chance) -> Option<Request> {
    let servers: Vec<ServerId> = datacenter.nodes.iter().map(|node| node.server).collect();
    let (id, control, what) = (*chance.pick(&servers)?, datacenter.control.clone(), chance.below(4));
    Some(request(
        format!("server {id}: {}", ["close", "drain", "open", "open"][usize::try_from(what).unwrap_or(0)]),
        async move {
            match what {
                0 => servers::set_accepts_instances(&control, id, false).await,
                1 => servers::drain(&control, id, "fate").await,
                _ => servers::set_accepts_instances(&control, id, true).await,
            }
            .map(|_| String::new())
        },
    ))
}

fn request(what: String, wish: impl Future<Output = Result<String, Error>> + Send + 'static) -> Request {
    Request { what, wish: Box::pin(wish) }
}

// === impl Asker ===

impl Asker {
    fn choose(datacenter: &Datacenter, chance: &mut Chance) -> Option<Self> {
        let (account, control) = (*chance.pick(&datacenter.accounts)?, datacenter.control.clone());
        let snapshot = control.snapshot();
        let own = snapshot.range(&VLANS, &format!("{account}/")).take_while(|vlan| vlan.owner == account);
        let vlans: Vec<u16> = own.map(|vlan| vlan.vlan).collect();
        let mut networks = datacenter.networks.clone();
        for vlan in &vlans {
            networks.extend(fabrics::network_list(&control, account, *vlan).unwrap_or_default().iter().map(|it| it.id));
        }
        let owned = snapshot.find(&INSTANCES, BY_OWNER, &account.to_string());
        let mut owned: Vec<_> = owned.filter(|entry| entry.deleted_at.is_none()).collect();
        owned.sort_by_key(|entry| (entry.created_at, entry.id));
        let instances = owned.iter().map(|entry| entry.id).collect();
        Some(Self { control, account, image: datacenter.image, networks, vlans, instances })
    }

    fn create(self, chance: &mut Chance) -> Request {
        let count = 1 + chance.below(3);
        let mut networks: Vec<NetworkId> = (0..count).filter_map(|_| chance.pick(&self.networks).copied()).collect();
        networks.dedup();
        let role = chance.pick(&ROLES).copied().unwrap_or_default();
        let alias = chance.percent(50).then(|| format!("{role}{}", chance.below(50)));
        let tag = chance.percent(60).then(|| ("role".to_owned(), TagValue::Text(role.to_owned())));
        let affinity = chance.percent(20).then(|| chance.pick(&AFFINITY).copied().unwrap_or_default().to_owned());
        let asked = instances::CreateInstance {
            alias,
            package: chance.pick(&PACKAGES).copied().unwrap_or_default().to_owned(),
            image: self.image.to_string(),
            networks: networks.into_iter().map(instances::NetworkChoice::any).collect(),
            tags: tag.into_iter().collect(),
            firewall_enabled: chance.percent(50),
            affinity: affinity.into_iter().collect(),
            ..instances::CreateInstance::default()
        };
        let (control, account) = (self.control, self.account);
        request("create".to_owned(), async move {
            let view = instances::create(&control, &Caller::System, account, asked).await?;
            Ok(format!("{} on {}", view.instance.id, view.instance.server))
        })
    }

    /// Something is asked of one instance.
    fn change(self, chance: &mut Chance) -> Option<Request> {
        let (id, network) = (*chance.pick(&self.instances)?, *chance.pick(&self.networks)?);
        let (package, role) = (*chance.pick(&PACKAGES)?, *chance.pick(&ROLES)?);
        let (kind, number, flag) = (chance.below(16), chance.below(50), chance.percent(60));
        let nics = instances::nics::list(&self.control, Scope::Account(self.account), id).unwrap_or_default();
        let mac = chance.pick(&nics).map(|nic| nic.nic.mac);
        let (control, scope, by) = (self.control, Scope::Account(self.account), Caller::System);
        let words = [
            "stop",
            "stop",
            "start",
            "start",
            "reboot",
            "resize",
            "rename",
            "tag",
            "tag",
            "firewall",
            "metadata",
            "add a NIC to",
            "remove a NIC from",
            "delete",
            "delete",
            "delete",
        ];
        let what = format!("{} {id}", words[usize::try_from(kind).unwrap_or(0)]);
        Some(request(what, async move {
            let tags = BTreeMap::from([("role".to_owned(), TagValue::Text(role.to_owned()))]);
            let done = match kind {
                0 | 1 => instances::stop(&control, &by, scope, id).await,
                2 | 3 => instances::start(&control, &by, scope, id).await,
                4 => instances::reboot(&control, &by, scope, id).await,
                5 => instances::resize(&control, &by, scope, id, package).await,
                6 => instances::rename(&control, &by, scope, id, &format!("{role}{number}")).await,
                7 => instances::tags::replace(&control, &by, scope, id, tags).await,
                8 => instances::tags::delete_all(&control, &by, scope, id).await,
                9 => instances::set_firewall(&control, &by, scope, id, flag).await,
                10 => {
                    let metadata = BTreeMap::from([("number".to_owned(), number.to_string())]);
                    instances::metadata::add(&control, &by, scope, id, metadata).await
                }
                11 => {
                    let choice = instances::NetworkChoice::any(network);
                    return instances::nics::add(&control, &by, scope, id, choice)
                        .await
                        .map(|nic| nic.nic.mac.to_string());
                }
                12 => match mac {
                    Some(mac) => instances::nics::remove(&control, &by, scope, id, mac).await,
                    None => return Ok("it has none".to_owned()),
                },
                _ => instances::delete(&control, &by, scope, id).await,
            };
            done.map(|_| String::new())
        }))
    }

    fn fabric(self, chance: &mut Chance) -> Option<Request> {
        let (control, account) = (self.control, self.account);
        let vlan = chance.pick(&self.vlans).copied();
        let network = vlan.and_then(|vlan| {
            let all: Vec<NetworkId> =
                fabrics::network_list(&control, account, vlan).ok()?.iter().map(|network| network.id).collect();
            chance.pick(&all).copied()
        });
        let subnet: ipnet::Ipv4Net = chance.pick(&SUBNETS)?.parse().ok()?;
        let (number, nat, routed) = (2 + chance.below(VLANS_USED), chance.percent(50), chance.percent(50));
        Some(match (chance.below(8), vlan, network) {
            (0 | 1, ..) | (_, None, _) => {
                let number = u16::try_from(number).unwrap_or(2);
                let new = fabrics::NewVlan { vlan: number, name: format!("vlan{number}"), description: None };
                request(format!("{account}: make VLAN {number}"), async move {
                    fabrics::vlan_create(&control, account, new).await.map(|vlan| format!("VNI {}", vlan.vni))
                })
            }
            (2..=4, Some(vlan), _) | (_, Some(vlan), None) => {
                let new = fabrics::NewFabricNetwork {
                    name: format!("net{}", chance.below(100)),
                    internet_nat: nat,
                    routed,
                    layout: Layout { subnet: Some(subnet), gateway: subnet.hosts().next(), ..Layout::default() },
                    ..fabrics::NewFabricNetwork::default()
                };
                request(format!("{account}: make a network on VLAN {vlan}"), async move {
                    fabrics::network_create(&control, account, vlan, new).await.map(|network| network.id.to_string())
                })
            }
            (5 | 6, Some(vlan), Some(id)) => {
                let change = fabrics::NetworkChange {
                    internet_nat: Some(nat),
                    routed: Some(routed),
                    ..fabrics::NetworkChange::default()
                };
                request(format!("network {id}: NAT {nat}, routed {routed}"), async move {
                    fabrics::network_update(&control, account, vlan, id, change).await.map(|_| String::new())
                })
            }
            (_, Some(vlan), Some(id)) => request(format!("delete network {id} and VLAN {vlan}"), async move {
                fabrics::network_delete(&control, account, vlan, id).await?;
                fabrics::vlan_delete(&control, account, vlan).await.map(|()| String::new())
            }),
        })
    }

    fn firewall(self, chance: &mut Chance) -> Option<Request> {
        let (control, scope) = (self.control, Scope::Account(self.account));
        let rules = firewall::list(&control, scope);
        let (text, enabled) = (*chance.pick(&RULES)?, chance.percent(70));
        let rule = chance.pick(&rules).map(|rule| rule.id);
        Some(match (chance.below(4), rule) {
            (0 | 1, _) | (_, None) => {
                let new = firewall::NewRule { rule: text.to_owned(), enabled, ..firewall::NewRule::default() };
                let owner = Some(self.account);
                request(format!("rule {text}"), async move {
                    firewall::create(&control, owner, new).await.map(|rule| rule.id.to_string())
                })
            }
            (2, Some(id)) => {
                let rule = chance.percent(50).then(|| text.to_owned());
                let change = firewall::RuleChange { rule, enabled: Some(enabled), ..firewall::RuleChange::default() };
                request(format!("change rule {id}"), async move {
                    firewall::update(&control, scope, id, change).await.map(|_| String::new())
                })
            }
            (_, Some(id)) => request(format!("delete rule {id}"), async move {
                firewall::delete(&control, scope, id).await.map(|()| String::new())
            }),
        })
    }
}
