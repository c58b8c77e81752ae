//! Links and filters: one suite for the fake and the real ones, then what only a kernel can show.

mod attach;
mod changes;
mod detours;
mod fabric;
mod firewall;
mod frames;
mod isolation;
mod log;
mod nat;
mod probe;
mod rules;
mod site;
mod six;
mod spoof;

use std::collections::BTreeMap;

use host::{
    Error,
    fake::{Faults, link::FakeLinks, link::LinkMachine},
    link::{LinkNames, Links, NetworkSetup},
    linux::link::LinuxLinks,
};
use model::id::{InstanceId, MacAddr};
use site::{Namespace, in_host, network, nic};

#[test]
fn fake_links_pass_the_suite() {
    suite(&FakeLinks::new(LinkMachine::default(), Faults::default()), std::path::Path::new("/fake"));
}

#[test]
fn linux_links_pass_the_suite() {
    in_host(|| {
        let zone = Namespace::new();
        suite(&LinuxLinks::new(LinkNames::default()), &zone.path());
    });
}

fn suite(links: &dyn Links, netns: &std::path::Path) {
    let (ext, private) = (network("ext", "10.88.0.0/16"), network("priv", "192.168.128.0/22"));
    let instance = InstanceId::random();
    let mac = MacAddr::from_suffix;
    let setup = |nics| NetworkSetup { nics, routes: BTreeMap::new() };
    let one = (nic(1, "eth0", "10.88.0.5/16"), ext.clone());
    let two = (nic(2, "eth1", "192.168.128.5/22"), private.clone());

    let early = links.attach(instance, netns, &setup(vec![one.clone()]));
    assert!(matches!(early, Err(Error::Missing(_))), "bridges come first: {early:?}");
    let bridge = links.ensure_bridge(&ext).expect("a bridge");
    assert_eq!(links.ensure_bridge(&ext).expect("again"), bridge);
    assert_ne!(links.ensure_bridge(&private).expect("another"), bridge);

    let macs = || {
        let mut macs: Vec<MacAddr> = links.nics().expect("a list").into_iter().map(|nic| nic.mac).collect();
        macs.sort_unstable();
        macs
    };
    for _ in 0..2 {
        links.attach(instance, netns, &setup(vec![one.clone(), two.clone()])).expect("two NICs");
        assert_eq!(macs(), [mac(1), mac(2)]);
    }
    let found = links.nics().expect("a list");
    assert!(found.iter().all(|nic| nic.instance == instance && nic.host_name == LinkNames::default().nic(nic.mac)));
    let mut ports: Vec<_> = found.iter().flat_map(|nic| nic.bridge.as_deref()).collect();
    ports.sort_unstable();
    assert_eq!(ports, ["nb-ext", "nb-priv"]);
    links.attach(instance, netns, &setup(vec![two.clone()])).expect("one less");
    assert_eq!(macs(), [mac(2)]);
    links.detach(InstanceId::random()).expect("another's are none");
    assert_eq!(macs(), [mac(2)]);
    links.attach(instance, netns, &setup(vec![])).expect("none");
    assert_eq!(macs(), []);
    links.attach(instance, netns, &setup(vec![one.clone()])).expect("one");
    links.remove_bridges_except(&[]).expect("its bridge away");
    assert_eq!(links.nics().expect("a list")[0].bridge, None, "a port of nothing");
    links.ensure_bridge(&ext).expect("a bridge");
    links.ensure_bridge(&private).expect("another");
    links.attach(instance, netns, &setup(vec![one])).expect("the same, again a port");
    assert_eq!(links.nics().expect("a list")[0].bridge.as_deref(), Some("nb-ext"));
    links.detach(instance).expect("all away");
    links.detach(instance).expect("again");
    assert_eq!(macs(), []);
    links.remove_bridges_except(&[private]).expect("one bridge away");
    links.remove_bridges_except(&[]).expect("all away");
    links.remove_bridges_except(&[]).expect("again");
}
