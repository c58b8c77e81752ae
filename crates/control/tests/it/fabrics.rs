//! Tenants' own VLANs and networks: what is made, what is kept apart, and what is refused with which words.

use control::{
    Error, Scope,
    accounts::{self, NewAccount},
    fabrics::{self, FirstFabric, NetworkChange, NewFabricNetwork, NewVlan, VlanChange},
    instances::{self, NetworkChoice},
    networks,
};
use model::{id::AccountId, layout::Layout, state::PublicState};

use crate::world::{Choices, Laid as _, Machine, World, caller};

fn vlan(vlan: u16, name: &str) -> NewVlan {
    NewVlan { vlan, name: name.to_owned(), description: None }
}

fn new(name: &str, subnet: &str) -> NewFabricNetwork {
    let subnet: ipnet::Ipv4Net = subnet.parse().expect("a subnet");
    NewFabricNetwork {
        name: name.to_owned(),
        internet_nat: true,
        layout: Layout { subnet: Some(subnet), gateway: subnet.hosts().next(), ..Layout::default() },
        ..NewFabricNetwork::default()
    }
}

async fn account(world: &World, login: &str) -> AccountId {
    let new = NewAccount { login: login.to_owned(), ..NewAccount::default() };
    accounts::create(&world.control, new).await.expect("an account").id
}

#[tokio::test]
async fn tenants_lay_out_the_same_subnets_and_never_share_a_segment() {
    let world = World::new().await;
    let other = account(&world, "other").await;
    let mut seen = Vec::new();
    for owner in [world.owner, other] {
        fabrics::vlan_create(&world.control, owner, vlan(7, "dmz")).await.expect("a VLAN");
        let made = fabrics::network_create(&world.control, owner, 7, new("web", "10.0.0.0/24")).await.expect("made");
        assert_eq!((made.vlan, made.mtu, made.owners.as_slice()), (7, 1_400, [owner].as_slice()));
        assert_eq!(made.range_start, "10.0.0.2".parse().ok());
        let fabric = made.fabric.expect("it is a fabric's");
        assert_eq!(made.nic_tag, format!("x{:06x}", fabric.vni));
        assert!(fabric.internet_nat && !fabric.routed && !made.nat && !made.host_gateway);
        seen.push((made.id, fabric.vni));
    }
    assert_ne!(seen[0].1, seen[1].1, "a number each");
    let mine = networks::list(&world.control, world.scope);
    assert!(mine.iter().any(|network| network.id == seen[0].0));
    assert!(mine.iter().all(|network| network.id != seen[1].0), "nobody sees another's");
    let strange = fabrics::network_get(&world.control, world.owner, 7, seen[1].0);
    assert!(matches!(strange, Err(Error::NotFound { what: "network", .. })));
    assert_eq!(fabrics::vlan_list(&world.control, Some(other)).len(), 1);
    assert_eq!(fabrics::vlan_list(&world.control, None).len(), 2);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_the_name_of_its_field() {
    let world = World::new().await;
    let (control, owner) = (&world.control, world.owner);
    fabrics::vlan_create(control, owner, vlan(3, "three")).await.expect("a VLAN");
    fabrics::network_create(control, owner, 3, new("first", "10.3.0.0/24")).await.expect("made");
    let beyond = fabrics::vlan_create(control, owner, vlan(4_096, "beyond")).await.expect_err("no such VLAN");
    assert_eq!(beyond.to_string(), "vlan_id: must be between 0 and 4095");
    let address = |text: &str| Some(text.parse().expect("an address"));
    let cases: [(&str, NewFabricNetwork); 12] = [
        ("subnet: 8.8.8.0/24 must lie in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16", new("x", "8.8.8.0/24")),
        ("subnet: 172.32.0.0/16 must lie in", new("x", "172.32.0.0/16")),
        ("subnet: 10.0.0.0/7 must have a prefix length from 8 to 30", {
            NewFabricNetwork {
                internet_nat: false,
                layout: Layout { gateway: None, ..new("x", "10.0.0.0/7").layout },
                ..new("x", "10.0.0.0/7")
            }
        }),
        ("subnet: overlaps 10.3.0.0/24 of network \"first\" on the same VLAN", new("x", "10.3.0.128/25")),
        ("provision_start_ip: 10.5.0.1 does not lie in", {
            new("x", "10.4.0.0/24").laid(|layout| layout.range_start = address("10.5.0.1"))
        }),
        ("provision_end_ip: 10.4.0.5 comes before the start of the range, 10.4.0.9", {
            let (range_start, range_end) = (address("10.4.0.9"), address("10.4.0.5"));
            new("x", "10.4.0.0/24").laid(|layout| {
                layout.range_start = range_start;
                layout.range_end = range_end;
            })
        }),
        ("gateway: 10.5.0.1 does not lie in 10.4.0.0/24", {
            new("x", "10.4.0.0/24").laid(|layout| layout.gateway = address("10.5.0.1"))
        }),
        ("internet_nat: a network without a gateway cannot masquerade", {
            new("x", "10.4.0.0/24").laid(|layout| layout.gateway = None)
        }),
        ("routes: the next hop to 10.9.0.0/16, 10.5.0.2, does not lie in 10.4.0.0/24", {
            let routes = [("10.9.0.0/16".parse().expect("a subnet"), "10.5.0.2".parse().expect("an address"))];
            new("x", "10.4.0.0/24").laid(|layout| layout.routes = routes.into())
        }),
        ("resolvers: has more than 4 entries", {
            let resolvers = (1..=5).map(|last| std::net::Ipv4Addr::new(9, 9, 9, last).into()).collect();
            new("x", "10.4.0.0/24").laid(|layout| layout.resolvers = resolvers)
        }),
        ("subnet6: 2001:db8::/64 must lie in fc00::/7", {
            new("x", "10.4.0.0/24").laid(|layout| layout.subnet6 = "2001:db8::/64".parse().ok())
        }),
        ("network \"first\" already exists", new("first", "10.4.0.0/24")),
    ];
    for (expected, new) in cases {
        let refused = fabrics::network_create(control, owner, 3, new).await.expect_err(expected).to_string();
        assert!(refused.starts_with(expected), "{refused:?} is not {expected:?}");
    }
    let refused = fabrics::network_create(control, owner, 4, new("x", "10.4.0.0/24")).await.expect_err("no VLAN");
    assert!(matches!(refused, Error::NotFound { what: "VLAN", .. }));
    let refused = fabrics::vlan_create(control, owner, vlan(4_096, "x")).await.expect_err("there are 4096");
    assert_eq!(refused.to_string(), "vlan_id: must be between 0 and 4095");
    let refused = fabrics::vlan_create(control, owner, vlan(3, "x")).await.expect_err("it is there");
    assert!(matches!(refused, Error::AlreadyExists { what: "VLAN", .. }));
    // On another VLAN the same subnet is fine, until traffic is to be routed between the two.
    fabrics::vlan_create(control, owner, vlan(5, "five")).await.expect("a VLAN");
    let routed = NewFabricNetwork { routed: true, ..new("second", "10.3.0.0/24") };
    let second = fabrics::network_create(control, owner, 5, routed).await.expect("the other is not routed");
    let first = fabrics::network_list(control, owner, 3).expect("the VLAN is there")[0].id;
    let routed = NetworkChange { routed: Some(true), ..NetworkChange::default() };
    let refused = fabrics::network_update(control, owner, 3, first, routed.clone()).await.expect_err("ambiguous");
    assert!(refused.to_string().contains("traffic is routed between the two"), "{refused}");
    fabrics::network_delete(control, owner, 5, second.id).await.expect("nobody uses it");
    fabrics::network_update(control, owner, 3, first, routed).await.expect("now it can be");
}

#[tokio::test]
async fn numbers_run_out_and_come_back() {
    let world = World::with(Choices { vnis: 10..=12, ..Choices::default() }).await;
    let (control, owner) = (&world.control, world.owner);
    for number in 0..3 {
        fabrics::vlan_create(control, owner, vlan(number, "x")).await.expect("there are three");
    }
    let mut vnis: Vec<u32> = fabrics::vlan_list(control, Some(owner)).iter().map(|vlan| vlan.vni).collect();
    vnis.sort_unstable();
    assert_eq!(vnis, [10, 11, 12]);
    let refused = fabrics::vlan_create(control, owner, vlan(3, "x")).await.expect_err("none is left");
    assert!(matches!(refused, Error::NoVni { count: 3 }), "{refused}");
    let freed = fabrics::vlan_get(control, owner, 1).expect("it is there").vni;
    fabrics::vlan_delete(control, owner, 1).await.expect("it is empty");
    let again = fabrics::vlan_create(control, owner, vlan(3, "x")).await.expect("one is free");
    assert_eq!(again.vni, freed);
}

#[tokio::test]
async fn nothing_goes_while_it_is_used() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let (control, owner) = (&world.control, world.owner);
    fabrics::vlan_create(control, owner, vlan(2, "two")).await.expect("a VLAN");
    let network = fabrics::network_create(control, owner, 2, new("mine", "10.7.0.0/24")).await.expect("made").id;
    accounts::set_config(control, owner, Some(network)).await.expect("it is one's own");
    let mut request = world.request("web");
    request.networks = vec![NetworkChoice { ip: "10.7.0.77".parse().ok(), ..NetworkChoice::any(network) }];
    let id = instances::create(control, &caller(), owner, request).await.expect("asked for").instance.id;
    machine.obey(&world, id).await;
    let view = world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    assert_eq!(view.primary_ip().map(|ip| ip.to_string()).as_deref(), Some("10.7.0.77"));
    let told = machine.target.as_ref().expect("a target").networks[&network].clone();
    assert_eq!(
        (told.vlan, told.host_address, told.nat),
        (0, None, false),
        "no tag on a wire, no part of the machine's"
    );
    let used = fabrics::network_delete(control, owner, 2, network).await.expect_err("used");
    assert_eq!(used.to_string(), "network \"mine\" is used by 1 instance");
    let used = fabrics::vlan_delete(control, owner, 2).await.expect_err("used");
    assert_eq!(used.to_string(), "VLAN 2 has 1 network; delete what is on it first");
    let change = NetworkChange {
        name: Some("ours".to_owned()),
        range_start: "10.7.0.100".parse().ok(),
        resolvers: Some(vec!["9.9.9.9".parse().expect("an address")]),
        ..NetworkChange::default()
    };
    let changed = fabrics::network_update(control, owner, 2, network, change).await.expect("changed");
    assert_eq!((changed.name.as_str(), changed.range_start), ("ours", "10.7.0.100".parse().ok()));
    let change = VlanChange { description: Some("both".to_owned()), ..VlanChange::default() };
    let changed = fabrics::vlan_update(control, owner, 2, change).await.expect("changed");
    assert_eq!((changed.name.as_str(), changed.description.as_deref()), ("two", Some("both")));
    instances::delete(control, &caller(), world.scope, id).await.expect("asked for");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Deleted).await;
    fabrics::network_delete(control, owner, 2, network).await.expect("nobody uses it");
    assert_eq!(accounts::get(control, owner).expect("there").default_network, None);
    fabrics::vlan_delete(control, owner, 2).await.expect("it is empty");
    assert!(fabrics::vlan_list(control, Some(owner)).is_empty());
}

#[tokio::test]
async fn a_new_account_may_get_a_fabric_of_its_own() {
    for (subnet, subnet6) in [(FirstFabric::default().subnet, "fd00:5::/64"), (None, "fd00:5::/64")] {
        let first = FirstFabric { subnet, subnet6: subnet6.parse().ok(), ..FirstFabric::default() };
        let world = World::with(Choices { first: Some(first), ..Choices::default() }).await;
        let id = account(&world, "six").await;
        let own = accounts::get(&world.control, id).expect("an account").default_network.expect("a network");
        let own = control::networks::get(&world.control, control::Scope::All, own).expect("it is there");
        assert_eq!((own.subnet, own.subnet6, own.gateway6), (subnet, subnet6.parse().ok(), "fd00:5::1".parse().ok()));
        assert!(own.fabric.is_some_and(|fabric| fabric.internet_nat));
    }
    let world = World::with(Choices { first: Some(FirstFabric::default()), ..Choices::default() }).await;
    let (control, owner) = (&world.control, world.owner);
    let own = fabrics::network_list(control, owner, 2).expect("the first VLAN");
    assert_eq!(
        (own.len(), own[0].name.as_str(), own[0].gateway),
        (1, "My-Fabric-Network", "192.168.128.1".parse().ok())
    );
    assert_eq!(accounts::get(control, owner).expect("there").default_network, Some(own[0].id));
    // Beside the datacenter's way out, had it a public one: here it is the only network.
    let mut request = world.request("web");
    request.networks.clear();
    let view = instances::create(control, &caller(), owner, request).await.expect("asked for");
    assert_eq!(view.networks().collect::<Vec<_>>(), [own[0].id]);
    let second = account(&world, "second").await;
    let theirs = fabrics::network_list(control, second, 2).expect("theirs");
    assert_ne!(theirs[0].fabric, own[0].fabric, "the same subnet on a segment of its own");
    assert!(networks::get(control, Scope::Account(second), own[0].id).is_err());
}

#[tokio::test]
async fn both_families_are_given_and_given_back() {
    let world = World::new().await;
    let mut machine = Machine::new(&world);
    let (control, owner) = (&world.control, world.owner);
    fabrics::vlan_create(control, owner, vlan(2, "two")).await.expect("a VLAN");
    let dual = NewFabricNetwork {
        layout: Layout {
            subnet6: "fd00:7::/64".parse().ok(),
            gateway6: "fd00:7::1".parse().ok(),
            ..new("dual", "10.7.0.0/24").layout
        },
        ..new("dual", "10.7.0.0/24")
    };
    let network = fabrics::network_create(control, owner, 2, dual).await.expect("made").id;
    let mut request = world.request("web");
    request.networks = vec![NetworkChoice::any(network)];
    let view = instances::create(control, &caller(), owner, request.clone()).await.expect("asked for");
    let ips = |view: &instances::InstanceView| view.ips().map(|ip| ip.to_string()).collect::<Vec<_>>();
    assert_eq!(ips(&view), ["10.7.0.2", "fd00:7::2"]);
    let id = view.instance.id;
    request.alias = Some("chosen".to_owned());
    request.networks[0].ips6 = vec!["fd00:7::abcd".parse().expect("an address")];
    let chosen = instances::create(control, &caller(), owner, request.clone()).await.expect("asked for");
    assert_eq!(ips(&chosen), ["10.7.0.3", "fd00:7::abcd"]);
    request.alias = Some("late".to_owned());
    let taken = instances::create(control, &caller(), owner, request.clone()).await.expect_err("it is taken");
    assert!(taken.to_string().contains("fd00:7::abcd is in use"), "{taken}");
    request.networks[0].ips6 = vec!["fd00:8::1".parse().expect("an address")];
    let outside = instances::create(control, &caller(), owner, request).await.expect_err("outside");
    assert!(outside.to_string().contains("fd00:8::1 cannot be held"), "{outside}");
    let reserved = "fd00:7::5".parse().expect("an address");
    networks::reserve_ip(control, world.scope, network, reserved, true).await.expect("reserved");
    let listed: Vec<String> = networks::ips(control, world.scope, network)
        .expect("listed")
        .into_iter()
        .map(|view| format!("{}{}", view.ip, if view.managed { " managed" } else { "" }))
        .collect();
    let expected = [
        "10.7.0.0 managed",
        "10.7.0.1 managed",
        "10.7.0.2",
        "10.7.0.3",
        "10.7.0.255 managed",
        "fd00:7:: managed",
        "fd00:7::1 managed",
        "fd00:7::2",
        "fd00:7::5",
        "fd00:7::abcd",
    ];
    assert_eq!(listed, expected);
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Running && view.instance.flow.is_none()).await;
    let nic = &machine.told(id).expect("told").nics[0];
    let told: Vec<String> = nic.addresses().map(|net| net.to_string()).collect();
    assert_eq!(told, ["10.7.0.2/24", "fd00:7::2/64"]);
    assert_eq!(nic.gateway6, "fd00:7::1".parse().ok());
    let segment = &machine.target.as_ref().expect("a target").networks[&network];
    assert_eq!((segment.gateway6, segment.host_address6), (nic.gateway6, None), "its router holds it, not the machine");
    assert!(segment.outside6.is_none() && segment.is_routed());
    let held = world.held().2;
    instances::delete(control, &caller(), world.scope, id).await.expect("asked for");
    machine.obey(&world, id).await;
    world.until(id, |view| view.state == PublicState::Deleted).await;
    assert_eq!(world.held().2, held - 2, "an address of each family comes back");
}
