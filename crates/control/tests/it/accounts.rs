//! Accounts, keys, packages.

use control::{
    Error, Scope,
    accounts::{self, NewAccount, ProfileChange, keys},
    packages::{self, PackageFilter},
};

use crate::world::{World, package};

/// Made by `ssh-keygen -t ed25519`; fingerprints by `ssh-keygen -l -E md5` and `-E sha256`.
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKHEChWuICtWsDLLf3lpEfHpVlJ3YRcwTc5nhP7XFyOs me@here";

#[tokio::test]
async fn an_account_of_another_datacenter_keeps_its_id() {
    let world = World::new().await;
    let id = model::id::AccountId::random();
    let new = NewAccount { id: Some(id), login: "alice".to_owned(), ..NewAccount::default() };
    let made = accounts::create(&world.control, new.clone()).await.expect("made");
    assert_eq!((made.id, made.default_network), (id, None));
    let again = NewAccount { login: "bob".to_owned(), ..new };
    assert!(accounts::create(&world.control, again).await.is_err(), "two accounts with one id");
}

#[tokio::test]
async fn logins_are_unique() {
    let world = World::new().await;
    let again = NewAccount { login: "demo".to_owned(), ..NewAccount::default() };
    let taken = accounts::create(&world.control, again).await.expect_err("the login is taken");
    assert!(matches!(taken, Error::AlreadyExists { what: "account", .. }));
    let bad = NewAccount { login: "9".to_owned(), ..NewAccount::default() };
    assert!(matches!(accounts::create(&world.control, bad).await, Err(Error::Invalid(_))));
    assert_eq!(accounts::by_login(&world.control, "demo").expect("it is there").id, world.owner);
}

#[tokio::test]
async fn profiles_change_field_by_field() {
    let world = World::new().await;
    let change = ProfileChange {
        email: Some("a@b.example".to_owned()),
        city: Some("Kiel".to_owned()),
        ..ProfileChange::default()
    };
    accounts::update(&world.control, world.owner, change).await.expect("changed");
    let change = ProfileChange { phone: Some("1".to_owned()), ..ProfileChange::default() };
    let account = accounts::update(&world.control, world.owner, change).await.expect("changed");
    assert_eq!((account.profile.email.as_str(), account.profile.city.as_deref()), ("a@b.example", Some("Kiel")));
    let bad = ProfileChange { email: Some("nowhere".to_owned()), ..ProfileChange::default() };
    assert!(matches!(accounts::update(&world.control, world.owner, bad).await, Err(Error::Invalid(_))));
    let network = accounts::set_config(&world.control, world.owner, Some(world.network)).await.expect("set");
    assert_eq!(network.default_network, Some(world.network));
}

#[tokio::test]
async fn keys_are_found_by_everything_they_are_called() {
    let world = World::new().await;
    let key = keys::add(&world.control, world.owner, Some("laptop".to_owned()), KEY).await.expect("added");
    let parsed = ssh_key::PublicKey::from_openssh(KEY).expect("a key");
    assert_eq!(key.fingerprint_sha256, parsed.fingerprint(ssh_key::HashAlg::Sha256).to_string());
    for id in ["laptop", key.fingerprint_md5.as_str(), key.fingerprint_sha256.as_str()] {
        assert_eq!(keys::find(&world.control, world.owner, id).as_deref(), Some(&*key), "{id}");
    }
    let twice = keys::add(&world.control, world.owner, None, KEY).await.expect_err("it is there");
    assert!(matches!(twice, Error::AlreadyExists { what: "key", .. }));
    for bad in ["", "ssh-ed25519 AAAA", "hello", "ssh-ed25519 AAAA\nssh-ed25519 AAAA"] {
        let refused = keys::add(&world.control, world.owner, None, bad).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{bad:?}: {refused:?}");
    }
    keys::remove(&world.control, world.owner, "laptop").await.expect("removed");
    assert!(keys::list(&world.control, world.owner).is_empty());
    let key = keys::add(&world.control, world.owner, None, KEY).await.expect("added again");
    assert_eq!(key.name, key.fingerprint_md5);
}

#[tokio::test]
async fn packages_are_offered_and_hidden() {
    let world = World::new().await;
    let taken = packages::create(&world.control, package("small", 64)).await.expect_err("the name is taken");
    assert!(matches!(taken, Error::AlreadyExists { what: "package", .. }));
    let hidden = packages::set_active(&world.control, "small", false).await.expect("hidden");
    let names = |filter: &PackageFilter| {
        packages::list(&world.control, filter).iter().map(|package| package.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&PackageFilter::default()), ["large"]);
    packages::create(&world.control, package("small", 64)).await.expect("the name is free");
    let back = packages::set_active(&world.control, &hidden.id.to_string(), true).await.expect_err("taken meanwhile");
    assert!(matches!(back, Error::AlreadyExists { .. }));
    let filter = PackageFilter { name: Some("s*l".to_owned()), ..PackageFilter::default() };
    assert_eq!(names(&filter), ["small"]);
    let bad = packages::create(&world.control, package("tiny", 1)).await.expect_err("too small");
    assert!(bad.to_string().contains("memory"), "{bad}");
}

#[tokio::test]
async fn networks_are_checked() {
    let world = World::new().await;
    let last = std::net::Ipv4Addr::new(10, 9, 0, 9);
    let taken = control::networks::create(&world.control, crate::world::network("external", last)).await;
    assert!(matches!(taken, Err(Error::AlreadyExists { what: "network", .. })));
    let mut overlapping = crate::world::network("other", last);
    overlapping.layout.subnet = "10.9.0.0/16".parse().ok();
    let refused = control::networks::create(&world.control, overlapping).await.expect_err("it overlaps");
    assert!(refused.to_string().starts_with("subnet: overlaps"), "{refused}");
    let mut second = crate::world::network("other", last);
    second.layout.subnet = "10.20.0.0/24".parse().ok();
    (second.layout.range_start, second.layout.range_end, second.layout.gateway) =
        (None, None, second.layout.subnet.and_then(|subnet| subnet.hosts().next()));
    let refused = control::networks::create(&world.control, second.clone()).await.expect_err("the segment is taken");
    assert!(refused.to_string().starts_with("nic_tag: network \"external\" is on this segment"), "{refused}");
    second.vlan = 7;
    control::networks::create(&world.control, second.clone()).await.expect("a segment of its own");
    (second.name, second.nic_tag) = ("third".to_owned(), "third".to_owned());
    let refused = control::networks::create(&world.control, second).await.expect_err("two gateways of one subnet");
    assert!(refused.to_string().starts_with("subnet: overlaps 10.20.0.0/24"), "{refused}");
    let mut beyond = crate::world::network("other", last);
    beyond.vlan = 4_095;
    let refused = control::networks::create(&world.control, beyond).await.expect_err("no such VLAN on a wire");
    assert_eq!(refused.to_string(), "vlan_id: must be between 0 and 4094");
    let mut outside = crate::world::network("other", std::net::Ipv4Addr::new(10, 10, 0, 9));
    outside.nic_tag = "x".to_owned();
    let refused = control::networks::create(&world.control, outside).await.expect_err("outside");
    assert!(refused.to_string().starts_with("range_end"), "{refused}");
    let own = control::networks::NewNetwork {
        owners: vec![world.owner],
        nic_tag: "own".to_owned(),
        // Tenants' subnets may be the same as others', as long as the machine has no part in them.
        host_gateway: false,
        ..crate::world::network("own", last)
    };
    let own = control::networks::create(&world.control, own).await.expect("made").id;
    let stranger = Scope::Account(model::id::AccountId::random());
    assert!(control::networks::get(&world.control, stranger, own).is_err());
    assert_eq!(control::networks::list(&world.control, world.scope).len(), 3);
}
